package kafka

import (
	"context"
	"crypto/rand"
	"sync"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

func offsets(ds []batch.Delivery) []int64 {
	out := make([]int64, len(ds))
	for i := range ds {
		out[i] = ds[i].Offset
	}
	return out
}

func TestFetchIsExact(t *testing.T) {
	c := testClient(t)
	topic := Topics(testTopics(t, c, 1)).Batches
	p, s := c.NewProducer(topic), c.NewSource(topic)
	for range 3 {
		produce(t, p, 0, testRecords(5, 100)) // three batches of five
	}
	fetch := func(offset int64, maxBytes int) ([]batch.Delivery, batch.Bounds, error) {
		return s.Fetch(t.Context(), 0, offset, maxBytes, 50*time.Millisecond)
	}
	for _, tt := range []struct {
		from int64
		want []int64
	}{
		{0, []int64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}},
		{5, []int64{5, 6, 7, 8, 9, 10, 11, 12, 13, 14}},
		{7, []int64{7, 8, 9, 10, 11, 12, 13, 14}}, // the broker sends 5 and 6 too
		{14, []int64{14}},
		{15, []int64{}}, // nothing yet
	} {
		got, bounds, err := fetch(tt.from, 1<<20)
		require.NoError(t, err)
		assert.Equal(t, tt.want, offsets(got), "from %d", tt.from)
		assert.Equal(t, batch.Bounds{Start: 0, End: 15}, bounds)
	}
	got, _, err := fetch(6, 1) // less than one batch: it comes all the same
	require.NoError(t, err)
	assert.Equal(t, []int64{6, 7, 8, 9}, offsets(got))

	_, _, err = fetch(16, 1<<20)
	classOf(t, retry.Permanent, err)
	assert.ErrorIs(t, err, batch.ErrOffsetGone)

	deleteRecords(t, c, topic, 0, 7)
	_, _, err = fetch(6, 1<<20)
	assert.ErrorIs(t, err, batch.ErrOffsetGone, "never jumps to the new start")
	bounds, err := s.Bounds(t.Context(), 0)
	require.NoError(t, err)
	assert.Equal(t, batch.Bounds{Start: 7, End: 15}, bounds)
	got, bounds, err = fetch(7, 1<<20)
	require.NoError(t, err)
	assert.Equal(t, []int64{7, 8, 9, 10, 11, 12, 13, 14}, offsets(got))
	assert.Equal(t, batch.Bounds{Start: 7, End: 15}, bounds)

	deleteRecords(t, c, topic, 0, 15)
	got, bounds, err = fetch(15, 1<<20)
	require.NoError(t, err)
	assert.Empty(t, got)
	assert.Equal(t, batch.Bounds{Start: 15, End: 15}, bounds)
}

func TestFetchLargeRecordAndLimit(t *testing.T) {
	c := testClient(t)
	topic := Topics(testTopics(t, c, 1)).Batches
	p, s := c.NewProducer(topic), c.NewSource(topic)
	for range 4 {
		r := testRecord(0, make([]byte, 900<<10))
		rand.Read(r.Value)
		produce(t, p, 0, []batch.Record{r})
	}
	got, _, err := s.Fetch(t.Context(), 0, 0, 100<<10, time.Second)
	require.NoError(t, err)
	require.Equal(t, []int64{0}, offsets(got))
	assert.Len(t, got[0].Value, 900<<10)
	got, _, err = s.Fetch(t.Context(), 0, 1, 2<<20, time.Second)
	require.NoError(t, err)
	assert.Equal(t, []int64{1, 2}, offsets(got), "what is cut short comes with the next fetch")
}

func TestFetchCompressions(t *testing.T) {
	c := testClient(t)
	topic := Topics(testTopics(t, c, 1)).Batches
	s, k := c.NewSource(topic), c.open([]string{topic})
	records := testRecords(3, 5000)
	for i, how := range []kafkago.Compression{0, compress.Gzip, compress.Snappy, compress.Lz4, compress.Zstd} {
		_, err := k.Produce(t.Context(), &kafkago.ProduceRequest{Topic: topic, RequiredAcks: kafkago.RequireAll, Records: encode(t, records), Compression: how})
		require.NoError(t, err)
		got, _, err := s.Fetch(t.Context(), 0, int64(3*i), 1<<20, time.Second)
		require.NoError(t, err, how)
		require.Len(t, got, 3)
		for j := range got {
			assert.NoError(t, got[j].Bad)
			assert.Equal(t, records[j].Value, got[j].Value, how)
		}
	}
}

func TestFetchUnreadableRecord(t *testing.T) {
	c := testClient(t)
	topic := Topics(testTopics(t, c, 1)).Batches
	k := c.open([]string{topic})
	_, err := k.Produce(t.Context(), &kafkago.ProduceRequest{Topic: topic, RequiredAcks: kafkago.RequireAll,
		Records: kafkago.NewRecordReader(
			kafkago.Record{Value: kafkago.NewBytes([]byte("no key, no header"))},
			kafkago.Record{Key: kafkago.NewBytes([]byte("x"))})})
	require.NoError(t, err)
	got, _, err := c.NewSource(topic).Fetch(t.Context(), 0, 0, 1<<20, time.Second)
	require.NoError(t, err, "one bad record does not stop its neighbours")
	require.Len(t, got, 2)
	assert.Error(t, got[0].Bad)
	assert.Equal(t, "no key, no header", string(got[0].Value))
	assert.Error(t, got[1].Bad)
}

// The marker at a transaction's end takes an offset and is no record.
func TestFetchShowsGaps(t *testing.T) {
	c := testClient(t)
	topic := Topics(testTopics(t, c, 1)).Batches
	p, s := c.NewProducer(topic), c.NewSource(topic)
	transaction(t, c, topic, 2)
	awaitEnd(t, s, 0, 3) // the marker is written after the answer
	got, bounds, err := s.Fetch(t.Context(), 0, 0, 1<<20, time.Second)
	require.NoError(t, err)
	assert.Equal(t, []int64{0, 1}, offsets(got))
	assert.Equal(t, int64(3), bounds.End)
	got, bounds, err = s.Fetch(t.Context(), 0, 2, 1<<20, 50*time.Millisecond)
	require.NoError(t, err)
	assert.Empty(t, got, "nothing but the marker")
	assert.Equal(t, int64(3), bounds.End)
	produce(t, p, 0, testRecords(1, 1))
	got, _, err = s.Fetch(t.Context(), 0, 2, 1<<20, time.Second)
	require.NoError(t, err)
	assert.Equal(t, []int64{3}, offsets(got), "the caller sees that 2 is not there")
}

func TestFetchNewRecordEndsTheWait(t *testing.T) {
	c := testClient(t)
	topic := Topics(testTopics(t, c, 4)).Batches
	p, s := c.NewProducer(topic), c.NewSource(topic)
	var wg sync.WaitGroup
	for id := range 4 {
		wg.Go(func() {
			got, _, err := s.Fetch(t.Context(), id, 0, 1<<20, 8*time.Second)
			assert.NoError(t, err)
			assert.Len(t, got, id+1)
		})
		wg.Go(func() { produce(t, p, id, testRecords(id+1, 10)) })
	}
	wg.Wait()
}

func TestFetchCancelled(t *testing.T) {
	c := testClient(t)
	topic := Topics(testTopics(t, c, 1)).Batches
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	_, _, err := c.NewSource(topic).Fetch(ctx, 0, 0, 1<<20, time.Minute)
	classOf(t, retry.Shutdown, err)
}

func TestFetchOfNoTopic(t *testing.T) {
	c := testClient(t)
	s := c.NewSource("t-" + batch.Random().String())
	_, _, err := s.Fetch(t.Context(), 0, 0, 1<<20, time.Second)
	classOf(t, retry.Transient, err)
	_, err = s.Bounds(t.Context(), 0)
	classOf(t, retry.Transient, err)
	topic := Topics(testTopics(t, c, 1)).Batches
	_, err = c.NewSource(topic).Bounds(t.Context(), 7)
	classOf(t, retry.Transient, err)
}

func BenchmarkFetch(b *testing.B) {
	c := testClient(b)
	topic := Topics(testTopics(b, c, 1)).Batches
	p, s := c.NewProducer(topic), c.NewSource(topic)
	produce(b, p, 0, testRecords(28, 30_000))
	b.SetBytes(28 * 30_000)
	b.ReportAllocs()
	for b.Loop() {
		got, _, err := s.Fetch(b.Context(), 0, 0, 2<<20, time.Second)
		require.NoError(b, err)
		require.Len(b, got, 28)
	}
}
