package kafka

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/internal/embedded/teststack"
	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

func TestMain(m *testing.M) {
	os.Exit(teststack.Main(m, teststack.NeedKafka, teststack.CheckLeaks))
}

func testClient(t testing.TB) *Client {
	c, err := Open(Config{Brokers: []string{teststack.Kafka(t)}, ClientID: "test"})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// testTopics makes a prefix of its own with its topics, which are deleted after
// the test.
func testTopics(t testing.TB, c *Client, partitions int) string {
	prefix := "t-" + batch.Random().String()
	require.NoError(t, retry.Policy{Attempts: 5}.Do(t.Context(), func(ctx context.Context) error {
		return c.EnsureTopics(ctx, prefix, partitions, 0)
	}))
	t.Cleanup(func() { deleteTopics(t, c, prefix) })
	return prefix
}

func deleteTopics(t testing.TB, c *Client, prefix string) {
	// The test's own context may have ended by now.
	assert.NoError(t, c.DeleteTopics(context.Background(), prefix))
}

// deleteRecords does what retention does: the log then begins at an offset.
func deleteRecords(t testing.TB, c *Client, topic string, partition int32, before int64) {
	p := kmsg.NewDeleteRecordsRequestTopicPartition()
	p.Partition, p.Offset = partition, before
	rt := kmsg.NewDeleteRecordsRequestTopic()
	rt.Topic, rt.Partitions = topic, append(rt.Partitions, p)
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.SetVersion(1)
	req.TimeoutMillis, req.Topics = 10_000, append(req.Topics, rt)
	res, err := c.send(t.Context(), req)
	require.NoError(t, err)
	require.Zero(t, res.(*kmsg.DeleteRecordsResponse).Topics[0].Partitions[0].ErrorCode)
}

func testRecord(n int, value []byte) batch.Record {
	id := batch.ForKey("p", fmt.Sprint(n))
	return batch.Record{
		BatchID: id, DedupID: batch.PartID(id, 0, 1), Digest: batch.Digest{byte(n), 2}, Project: "p",
		Collector: batch.ForKey("c", "1"), Epoch: 1<<63 - 1, Seq: uint64(n + 1), Path: batch.Direct,
		Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		Value:       value, ReceivedAt: time.UnixMicro(1_700_000_000_123_456),
	}
}

func testRecords(n, size int) []batch.Record {
	out := make([]batch.Record, n)
	for i := range out {
		out[i] = testRecord(i, []byte(strings.Repeat(string(rune('a'+i%26)), size)))
	}
	return out
}

func produce(t testing.TB, p *Producer, partition int, records []batch.Record) int64 {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	base, at, err := p.Produce(ctx, partition, records)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), at, time.Minute)
	return base
}

func classOf(t testing.TB, want retry.Class, err error) {
	t.Helper()
	require.Error(t, err)
	assert.Equal(t, want, retry.ClassOf(err), "%v", err)
}

// awaitEnd waits until the log ends at an offset.
func awaitEnd(t testing.TB, s *Source, partition int, end int64) {
	require.NoError(t, endsAt(t, s, partition, end))
}

// endsAt returns nil once the log ends at an offset, and an error if it does not come
// to.
func endsAt(t testing.TB, s *Source, partition int, end int64) error {
	return retry.Policy{Min: 10 * time.Millisecond, Max: 500 * time.Millisecond, Attempts: 40}.Do(t.Context(), func(ctx context.Context) error {
		bounds, err := s.Bounds(ctx, partition)
		if err == nil && bounds.End != end {
			err = fmt.Errorf("the log ends at %d, not at %d", bounds.End, end)
		}
		return err
	})
}

func topicSettings(t testing.TB, c *Client, topic string) map[string]string {
	k := c.open([]string{topic})
	defer c.release(k)
	res, err := k.DescribeConfigs(t.Context(), &kafkago.DescribeConfigsRequest{Resources: []kafkago.DescribeConfigRequestResource{{
		ResourceType: kafkago.ResourceTypeTopic, ResourceName: topic}}})
	require.NoError(t, err)
	out := map[string]string{}
	for _, e := range res.Resources[0].ConfigEntries {
		out[e.ConfigName] = e.ConfigValue
	}
	return out
}

// transaction commits n records in a transaction.
func transaction(t testing.TB, c *Client, topic string, n int) {
	k := c.open([]string{topic})
	id := "t-" + batch.Random().String()
	var session *kafkago.ProducerSession
	require.NoError(t, retry.Policy{Attempts: 10}.Do(t.Context(), func(ctx context.Context) error {
		res, err := k.InitProducerID(ctx, &kafkago.InitProducerIDRequest{TransactionalID: id, TransactionTimeoutMs: 30_000})
		if err == nil {
			err = res.Error
		}
		if err == nil {
			session = res.Producer
		}
		return err
	}))
	added, err := k.AddPartitionsToTxn(t.Context(), &kafkago.AddPartitionsToTxnRequest{TransactionalID: id,
		ProducerID: session.ProducerID, ProducerEpoch: session.ProducerEpoch,
		Topics: map[string][]kafkago.AddPartitionToTxn{topic: {{Partition: 0}}}})
	require.NoError(t, err)
	require.NoError(t, added.Topics[topic][0].Error)
	part := kmsg.NewProduceRequestTopicPartition()
	part.Records = rawBatch(n, func(b *kmsg.RecordBatch) {
		b.Attributes, b.ProducerID, b.ProducerEpoch, b.FirstSequence = 0x10, int64(session.ProducerID), int16(session.ProducerEpoch), 0
	})
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic, rt.Partitions = topic, append(rt.Partitions, part)
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(8)
	req.Acks, req.TimeoutMillis, req.TransactionID, req.Topics = -1, 10_000, &id, append(req.Topics, rt)
	res, err := c.send(t.Context(), req)
	require.NoError(t, err)
	require.Zero(t, res.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode)
	ended, err := k.EndTxn(t.Context(), &kafkago.EndTxnRequest{TransactionalID: id,
		ProducerID: session.ProducerID, ProducerEpoch: session.ProducerEpoch, Committed: true})
	require.NoError(t, err)
	require.NoError(t, ended.Error)
}

// rawBatch lays out a record batch as a broker keeps it: n records of one byte,
// at offset 0 unless edit says otherwise.
func rawBatch(n int, edit func(*kmsg.RecordBatch)) []byte {
	b := kmsg.RecordBatch{Magic: 2, LastOffsetDelta: int32(n - 1), NumRecords: int32(n),
		FirstTimestamp: 1000, MaxTimestamp: 2000, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1}
	for i := range n {
		r := kmsg.Record{OffsetDelta: int32(i), TimestampDelta64: int64(i), Key: []byte("k"), Value: []byte{byte('a' + i)},
			Headers: []kmsg.Header{{Key: "seq", Value: []byte("1")}}}
		r.Length = int32(len(r.AppendTo(nil))) - 1
		b.Records = r.AppendTo(b.Records)
	}
	if edit != nil {
		edit(&b)
	}
	b.Length = int32(49 + len(b.Records))
	raw := b.AppendTo(nil)
	crc := crc32.Checksum(raw[batchCRCStart:], crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(raw[batchCRCStart-4:], crc)
	return raw
}
