package kafka

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

func TestDeadWrite(t *testing.T) {
	c := testClient(t)
	prefix := testTopics(t, c, 3)
	d, p := c.NewDead(prefix), c.NewProducer(Topics(prefix).Dead)
	id := batch.ForKey("p", "1")
	headers := map[string]string{"project": "p", "stage": "sink", "reason": "bad_value"}
	require.NoError(t, d.Write(t.Context(), []byte(id.String()), []byte("the event"), headers))
	require.NoError(t, d.Write(t.Context(), []byte(id.String()), nil, nil))

	partition, err := p.Partition(t.Context(), id)
	require.NoError(t, err)
	raw := fetchRaw(t, c, Topics(prefix).Dead, partition)
	require.Len(t, raw, 2, "where a batch of that id would go")
	assert.Equal(t, id.String(), string(raw[0].Key))
	assert.Equal(t, "the event", string(raw[0].Value))
	got := map[string]string{}
	for _, h := range raw[0].Headers {
		got[h.Key] = string(h.Value)
	}
	assert.Equal(t, headers, got)
	assert.NotNil(t, raw[1].Value, "no value is not a tombstone")
}

func TestDeadRefused(t *testing.T) {
	c := testClient(t)
	d := c.NewDead(testTopics(t, c, 1))
	large := make([]byte, 2<<20)
	rand.Read(large)
	err := d.Write(t.Context(), []byte("k"), large, nil)
	classOf(t, retry.Permanent, err)
	var refused interface{ Refused() []int }
	assert.True(t, errors.As(err, &refused), "the broker will never take it")
	require.NoError(t, d.Write(t.Context(), []byte("k"), []byte("v"), nil))
}

func TestDeadOfNoTopicAndCancelled(t *testing.T) {
	c := testClient(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	classOf(t, retry.Transient, c.NewDead("t-"+batch.Random().String()).Write(ctx, nil, nil, nil))
	d := c.NewDead(testTopics(t, c, 1))
	require.NoError(t, d.Write(ctx, nil, []byte("v"), nil))
	cancel()
	classOf(t, retry.Shutdown, d.Write(ctx, nil, []byte("v"), nil))
}

// fetchRaw reads a partition's records as they are, from its start.
func fetchRaw(t testing.TB, c *Client, topic string, partition int) []kmsg.Record {
	t.Helper()
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.PartitionMaxBytes = int32(partition), 1<<20
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic, rt.Partitions = topic, append(rt.Partitions, p)
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(11)
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.Topics = 1000, 1, 1<<20, append(req.Topics, rt)
	k := c.open([]string{topic})
	defer c.release(k)
	m, err := k.Transport.RoundTrip(t.Context(), c.addr, &leaderRequest{rawRequest: rawRequest{body: req, clientID: "test"}, topic: topic, partition: partition})
	require.NoError(t, err)
	src := m.(*rawResponse).body.(*kmsg.FetchResponse).Topics[0].Partitions[0].RecordBatches
	var out []kmsg.Record
	for len(src) > 0 {
		var b kmsg.RecordBatch
		require.NoError(t, b.ReadFrom(src))
		src = src[batchLengthEnd+int(b.Length):]
		plain, err := decompress(&b)
		require.NoError(t, err)
		for range b.NumRecords {
			var r kmsg.Record
			length, used := binary.Varint(plain)
			require.NoError(t, r.ReadFrom(plain[:used+int(length)]))
			plain = plain[used+int(length):]
			out = append(out, r)
		}
	}
	return out
}
