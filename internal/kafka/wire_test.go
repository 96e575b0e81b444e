package kafka

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

type script struct {
	io.Reader
	io.Writer
}

func TestExchangeRefusesNonsense(t *testing.T) {
	frame := func(size int32, correlation uint32, rest ...byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(size))
		return append(binary.BigEndian.AppendUint32(b, correlation), rest...)
	}
	for name, tt := range map[string]struct {
		answer []byte
		want   error
	}{
		"nothing":          {nil, io.EOF},
		"cut":              {frame(100, 1, 0, 0), io.ErrUnexpectedEOF},
		"another's":        {frame(4, 2), errResponse},
		"negative":         {frame(-1, 1), errResponse},
		"huge":             {frame(1<<31-1, 1), errResponse},
		"empty":            {frame(4, 1), errResponse},
		"unknown tags":     {frame(6, 1, 1, 0), errResponse},
		"not enough of it": {frame(7, 1, 0, 0, 0), errResponse},
	} {
		t.Run(name, func(t *testing.T) {
			req := kmsg.NewPtrMetadataRequest()
			req.SetVersion(12)
			_, err := exchange(script{bytes.NewReader(tt.answer), io.Discard}, "test", req)
			assert.ErrorIs(t, err, tt.want)
		})
	}
}

func TestOldBrokerHasNoTopicIDs(t *testing.T) {
	topic := kmsg.NewMetadataResponseTopic()
	topic.Topic = kmsg.StringPtr("t")
	topic.Partitions = append(topic.Partitions, kmsg.NewMetadataResponseTopicPartition())
	res := kmsg.NewPtrMetadataResponse()
	res.SetVersion(8)
	res.Topics = append(res.Topics, topic)
	m, err := readMetadata(res, []string{"t"})
	require.NoError(t, err)
	assert.Zero(t, m.topics["t"].id)
	_, err = readMetadata(res, []string{"t", "u"})
	assert.ErrorIs(t, err, errResponse)
	res.Topics[0].Partitions[0].Partition = 1
	_, err = readMetadata(res, []string{"t"})
	assert.ErrorIs(t, err, errResponse)
}
