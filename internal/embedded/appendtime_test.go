package embedded

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Records have the broker's time, whatever their sender says, and answers tell it:
// what the setting LogAppendTime of the pipeline's topics asks for.
func TestBrokerStampsRecords(t *testing.T) {
	dir := t.TempDir()
	b, err := StartBroker(t.Context(), BrokerConfig{Dir: dir})
	require.NoError(t, err)
	c := client(t, b.Addr(), kgo.DisableIdempotentWrite())
	createTopic(t, c)
	began := time.Now().Truncate(time.Millisecond)
	sent := map[string]bool{}
	for i := range 20 {
		value := strconv.Itoa(i)
		sent[value] = true
		record := &kgo.Record{Topic: topic, Value: []byte(value), Timestamp: time.Unix(1_000_000, 0)}
		require.NoError(t, c.ProduceSync(t.Context(), record).FirstErr())
	}
	require.NoError(t, b.Close())

	// They are read back from disk, with their checksums.
	b, err = StartBroker(t.Context(), BrokerConfig{Dir: dir, Listen: Endpoint{Addr: b.Addr()}})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	assert.Len(t, values(t, b.Addr(), sent), 20)
	reader := client(t, b.Addr(), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	for read := 0; read < 20; {
		fetches := reader.PollFetches(t.Context())
		require.NoError(t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			read++
			assert.False(t, r.Timestamp.Before(began), r.Timestamp)
			assert.False(t, r.Timestamp.After(time.Now()))
		})
	}
}

// Every version of the request, one of which has a longer header, and answers
// before and behind that are none of its business.
func TestBrokerAnswersWithItsTime(t *testing.T) {
	b, err := StartBroker(t.Context(), BrokerConfig{Dir: t.TempDir()})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	c := client(t, b.Addr())
	createTopic(t, c)
	// A batch of one record, as the client makes it.
	record := &kgo.Record{Topic: topic, Value: []byte("x")}
	require.NoError(t, c.ProduceSync(t.Context(), record).FirstErr())
	batch := fetched(t, b.Addr(), record.Partition)
	conn, err := net.Dial("tcp", b.Addr())
	require.NoError(t, err)
	defer conn.Close()
	began := time.Now().UnixMilli()
	for version := int16(3); version <= 11; version++ {
		for _, name := range []string{topic, "not.there"} {
			req := kmsg.NewPtrProduceRequest()
			req.SetVersion(version)
			req.Acks, req.TimeoutMillis = -1, 10_000
			rt, rp := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
			rt.Topic, rp.Partition, rp.Records = name, record.Partition, batch
			rt.Partitions = append(rt.Partitions, rp)
			req.Topics = append(req.Topics, rt)
			resp := exchange(t, conn, req, int32(version)).(*kmsg.ProduceResponse)
			part := resp.Topics[0].Partitions[0]
			if name != topic {
				assert.Equal(t, kerr.UnknownTopicOrPartition.Code, part.ErrorCode)
				assert.EqualValues(t, -1, part.LogAppendTime)
				continue
			}
			require.Zero(t, part.ErrorCode, "version %d", version)
			assert.GreaterOrEqual(t, part.LogAppendTime, began)
			assert.LessOrEqual(t, part.LogAppendTime, time.Now().UnixMilli())
		}
		m := kmsg.NewPtrMetadataRequest()
		m.SetVersion(8)
		assert.Len(t, exchange(t, conn, m, 99).(*kmsg.MetadataResponse).Brokers, 1)
	}
}

func TestBrokerAdvertises(t *testing.T) {
	b, err := StartBroker(t.Context(), BrokerConfig{Dir: t.TempDir(), Advertised: "127.0.0.1:1234"})
	require.NoError(t, err)
	m := metadata(t, client(t, b.Addr()))
	require.Len(t, m.Brokers, 1)
	assert.EqualValues(t, 1234, m.Brokers[0].Port)
	require.NoError(t, b.Close())
	_, err = StartBroker(t.Context(), BrokerConfig{Dir: t.TempDir(), Advertised: "nowhere"})
	require.ErrorContains(t, err, `advertised address "nowhere"`)
}

// exchange sends a request by hand, byte by byte, and reads its answer.
func exchange(t *testing.T, conn net.Conn, req kmsg.Request, correlation int32) kmsg.Response {
	t.Helper()
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	for _, b := range kmsg.NewRequestFormatter().AppendRequest(nil, req, correlation) {
		_, err := conn.Write([]byte{b})
		require.NoError(t, err)
	}
	head := make([]byte, 8)
	_, err := io.ReadFull(conn, head)
	require.NoError(t, err)
	require.EqualValues(t, correlation, binary.BigEndian.Uint32(head[4:]))
	body := make([]byte, binary.BigEndian.Uint32(head)-4)
	_, err = io.ReadFull(conn, body)
	require.NoError(t, err)
	resp := req.ResponseKind()
	if resp.IsFlexible() {
		body = body[1:] // no tagged fields
	}
	require.NoError(t, resp.ReadFrom(body))
	return resp
}

// fetched is the first record batch of a partition, as it would be produced.
func fetched(t *testing.T, addr string, partition int32) []byte {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(11)
	req.MaxBytes, req.MaxWaitMillis = 1<<20, 1000
	ft, fp := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
	ft.Topic, fp.Partition, fp.PartitionMaxBytes = topic, partition, 1<<20
	ft.Partitions = append(ft.Partitions, fp)
	req.Topics = append(req.Topics, ft)
	resp := exchange(t, conn, req, 7).(*kmsg.FetchResponse)
	require.Len(t, resp.Topics, 1)
	batch := resp.Topics[0].Partitions[0].RecordBatches
	require.NotEmpty(t, batch)
	// Without the producer's id, so that it may come again: a plain batch.
	for i := 43; i < 57; i++ {
		batch[i] = 0xff
	}
	binary.BigEndian.PutUint32(batch[17:], crc32.Checksum(batch[21:], crc32.MakeTable(crc32.Castagnoli)))
	return batch
}
