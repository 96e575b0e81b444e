package kafka

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func at(first int64) func(*kmsg.RecordBatch) {
	return func(b *kmsg.RecordBatch) { b.FirstOffset = first }
}

func TestReadBatches(t *testing.T) {
	two, three := rawBatch(2, at(10)), rawBatch(3, at(12))
	both := slices.Concat(two, three)
	for name, tt := range map[string]struct {
		src  []byte
		from int64
		want []int64
		err  string
	}{
		"nothing":                {nil, 0, []int64{}, ""},
		"one":                    {two, 10, []int64{10, 11}, ""},
		"two":                    {both, 10, []int64{10, 11, 12, 13, 14}, ""},
		"from inside":            {both, 11, []int64{11, 12, 13, 14}, ""},
		"from the second":        {both, 13, []int64{13, 14}, ""},
		"from beyond":            {both, 99, []int64{}, ""},
		"cut in the second":      {both[:len(both)-1], 10, []int64{10, 11}, ""},
		"cut in its header":      {both[:len(two)+20], 10, []int64{10, 11}, ""},
		"cut before its length":  {both[:len(two)+5], 10, []int64{10, 11}, ""},
		"cut in the first":       {two[:len(two)-1], 10, nil, "cannot be read"},
		"holes":                  {slices.Concat(two, rawBatch(1, at(20))), 10, []int64{10, 11, 20}, ""},
		"marker":                 {slices.Concat(rawBatch(1, func(b *kmsg.RecordBatch) { b.Attributes = 0x30 }), two), 0, []int64{10, 11}, ""},
		"compacted to nothing":   {slices.Concat(rawBatch(0, func(b *kmsg.RecordBatch) { b.LastOffsetDelta = 9 }), two), 0, []int64{10, 11}, ""},
		"checksum":               {corrupt(two, len(two)-1), 10, nil, "checksum"},
		"checksum of the second": {corrupt(both, len(both)-1), 10, nil, "checksum"},
		"old format":             {corrupt(two, 16), 10, nil, "format"},
		"negative length":        {negative(two), 10, nil, "cannot be read"},
		"unknown compression":    {rawBatch(1, func(b *kmsg.RecordBatch) { b.Attributes = 7 }), 0, nil, "compression"},
		"bad gzip":               {rawBatch(1, func(b *kmsg.RecordBatch) { b.Attributes = 1 }), 0, nil, "decompress"},
		"more than there is":     {rawBatch(1, func(b *kmsg.RecordBatch) { b.NumRecords = 1 << 30 }), 0, nil, "cut short"},
		"record cut short":       {rawBatch(1, func(b *kmsg.RecordBatch) { b.Records = b.Records[:5] }), 0, nil, "cut short"},
		"bad header count":       {rawBatch(1, func(b *kmsg.RecordBatch) { b.Records[8] = 0x7e }), 0, nil, "record 0 of 1"},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := readBatches(tt.src, 3, tt.from, 1<<20)
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				assert.ErrorIs(t, err, errBatch)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, tt.want, offsets(got))
			for _, d := range got {
				assert.Equal(t, 3, d.Partition)
			}
		})
	}
}

func corrupt(b []byte, i int) []byte {
	b = slices.Clone(b)
	b[i] ^= 1
	return b
}

func negative(b []byte) []byte {
	b = slices.Clone(b)
	binary.BigEndian.PutUint32(b[8:], 1<<31)
	return b
}

func TestTimestamps(t *testing.T) {
	got, _, err := readBatches(rawBatch(2, nil), 0, 0, 1<<20)
	require.NoError(t, err)
	assert.Equal(t, time.UnixMilli(1001), got[1].AppendAt, "the producer's, where the topic takes it")
	got, _, err = readBatches(rawBatch(2, func(b *kmsg.RecordBatch) { b.Attributes = 8 }), 0, 0, 1<<20)
	require.NoError(t, err)
	assert.Equal(t, time.UnixMilli(2000), got[0].AppendAt, "the broker's")
	assert.Equal(t, time.UnixMilli(2000), got[1].AppendAt)
}

func FuzzReadBatches(f *testing.F) {
	f.Add(slices.Concat(rawBatch(2, at(10)), rawBatch(3, at(12))), int64(11), byte(0))
	f.Add(rawBatch(1, func(b *kmsg.RecordBatch) { b.Attributes = 3 }), int64(0), byte(3))
	f.Fuzz(func(t *testing.T, src []byte, from int64, attributes byte) {
		// A checksum hardly ever fits by chance: the second run is past it.
		for _, src := range [][]byte{src, rawBatch(1, func(b *kmsg.RecordBatch) {
			b.Records, b.NumRecords, b.Attributes = src, int32(from), int16(attributes&7)
		})} {
			got, _, err := readBatches(bytes.Clone(src), 0, from, 1<<20)
			if err != nil {
				continue
			}
			for i := range got {
				if got[i].Offset < from {
					t.Fatalf("record %d is before %d", got[i].Offset, from)
				}
			}
		}
	})
}

// The answer's version is one without tagged fields: kmsg takes a broker's word
// for how many there are, and may be busy for seconds with four billion of them.
func FuzzExchange(f *testing.F) {
	info := kmsg.NewPtrMetadataResponse()
	info.SetVersion(8)
	info.ClusterID = kmsg.StringPtr("c")
	topic := kmsg.NewMetadataResponseTopic()
	topic.Topic = kmsg.StringPtr("t")
	topic.Partitions = append(topic.Partitions, kmsg.NewMetadataResponseTopicPartition())
	info.Topics = append(info.Topics, topic)
	body := info.AppendTo([]byte{0, 0, 0, 1})
	f.Add(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	f.Fuzz(func(t *testing.T, answer []byte) {
		if len(answer) > 4 && binary.BigEndian.Uint32(answer) > 1<<20 {
			return // within bounds, but slow to allocate again and again
		}
		req := kmsg.NewPtrMetadataRequest()
		req.SetVersion(8)
		res, err := exchange(script{bytes.NewReader(answer), io.Discard}, "test", req)
		if err != nil {
			return
		}
		m, err := readMetadata(res.(*kmsg.MetadataResponse), []string{"t"})
		if err == nil && m.topics["t"].err == 0 && len(m.topics["t"].leaders) == 0 {
			t.Fatal("a topic without partitions")
		}
	})
}

func TestReadBatchesStopsAtTheLimit(t *testing.T) {
	two := rawBatch(2, at(10))
	src := slices.Concat(two, rawBatch(3, at(12)))
	got, read, err := readBatches(src, 0, 10, 1)
	require.NoError(t, err)
	assert.Equal(t, []int64{10, 11}, offsets(got), "the first batch, whatever its size")
	assert.Equal(t, len(two), read.wire)
	assert.Positive(t, read.memory)
	got, more, err := readBatches(src, 0, 10, read.memory+1)
	require.NoError(t, err)
	assert.Len(t, got, 5, "the limit lies in the second")
	assert.Greater(t, more.memory, read.memory)
}

func TestWireBytesFollowCompression(t *testing.T) {
	s := &Source{last: map[int]amount{}}
	assert.Equal(t, 2<<20, s.wireBytes(0, 2<<20), "nothing is known yet")
	s.learn(0, amount{wire: 1 << 20, memory: 8 << 20})
	assert.Equal(t, 256<<10, s.wireBytes(0, 2<<20))
	assert.Equal(t, 2<<20, s.wireBytes(1, 2<<20), "another partition")
	s.learn(0, amount{})
	assert.Equal(t, 256<<10, s.wireBytes(0, 2<<20), "an empty answer says nothing")
	s.learn(0, amount{wire: 1, memory: 1 << 20})
	assert.Equal(t, 64<<10, s.wireBytes(0, 2<<20), "never less than this")
}
