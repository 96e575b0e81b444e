package publish_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/embedded/teststack"
	"sluice/internal/kafka"
	"sluice/internal/publish"
	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

var _ publish.Producer = (*kafka.Producer)(nil)

// testKafka makes a topic of its own.
func testKafka(t testing.TB, partitions int) (*kafka.Client, string) {
	brokers := teststack.Kafka(t)
	c, err := kafka.Open(kafka.Config{Brokers: strings.Split(brokers, ","), ClientID: "test"})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	prefix := "t-" + batch.Random().String()
	require.NoError(t, retry.Policy{Attempts: 5}.Do(t.Context(), func(ctx context.Context) error {
		return c.EnsureTopics(ctx, prefix, partitions, 0)
	}))
	t.Cleanup(func() { assert.NoError(t, c.DeleteTopics(context.Background(), prefix)) })
	return c, kafka.Topics(prefix).Batches
}

func testRecord(n, size int) batch.Record {
	id := batch.ForKey("p", fmt.Sprint(n))
	return batch.Record{BatchID: id, DedupID: id, Project: "p", Collector: batch.ForKey("c", ""), Epoch: 1, Seq: uint64(n),
		Path: batch.Direct, ReceivedAt: time.Now(), Value: []byte(strings.Repeat("x", size))}
}

func TestRealKafka(t *testing.T) {
	const partitions, workers, each = 3, 8, 50
	c, topic := testKafka(t, partitions)
	p, err := publish.New(publish.Options{Producer: c.NewProducer(topic)})
	require.NoError(t, err)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				where, err := p.Publish(t.Context(), []batch.Record{testRecord(w*each+i, 200)})
				assert.NoError(t, err)
				assert.Equal(t, batch.InKafka, where)
			}
		})
	}
	// One that Kafka will not take, among them.
	wg.Go(func() {
		big := testRecord(1<<20, 0)
		for range 2 << 20 / 16 {
			id := batch.Random()
			big.Value = append(big.Value, id[:]...)
		}
		_, err := p.Publish(t.Context(), []batch.Record{big})
		if assert.Error(t, err) {
			assert.Equal(t, retry.Permanent, retry.ClassOf(err))
		}
	})
	wg.Wait()
	assert.NoError(t, p.Ready())
	require.NoError(t, p.Close(t.Context()))

	seen := map[uint64]int{}
	s := c.NewSource(topic)
	for id := range partitions {
		for next := int64(0); ; {
			got, bounds, err := s.Fetch(t.Context(), id, next, 1<<20, time.Second)
			require.NoError(t, err)
			for _, d := range got {
				require.NoError(t, d.Bad)
				seen[d.Seq]++
				next = d.Offset + 1
			}
			if next >= bounds.End {
				break
			}
		}
	}
	assert.Len(t, seen, workers*each)
	for seq, n := range seen {
		assert.Equal(t, 1, n, "record %d", seq)
	}
}

// A topic that is deleted and made again, with more partitions, is written to
// again before long, also by a publisher whose callers heed Ready.
func TestRecreatedTopic(t *testing.T) {
	c, topic := testKafka(t, 2)
	prefix := strings.TrimSuffix(topic, ".batches")
	written := c.NewProducer(topic)
	p, err := publish.New(publish.Options{Producer: written, ProbeEvery: 200 * time.Millisecond, OpenFor: 200 * time.Millisecond})
	require.NoError(t, err)
	defer p.Close(t.Context())
	send := func(n int) error {
		if err := p.Ready(); err != nil {
			return err
		}
		_, err := p.Publish(t.Context(), []batch.Record{testRecord(n, 200)})
		return err
	}
	const wait, often = 30 * time.Second, 20 * time.Millisecond
	require.Eventually(t, func() bool { return send(1) == nil }, wait, often)
	require.NoError(t, c.DeleteTopics(t.Context(), prefix))
	require.Eventually(t, func() bool { return send(2) != nil && p.Ready() != nil }, wait, often)
	require.NoError(t, retry.Policy{Attempts: 10}.Do(t.Context(), func(ctx context.Context) error {
		return c.EnsureTopics(ctx, prefix, 5, 0)
	}))
	require.Eventually(t, func() bool {
		for n := range 40 { // every partition
			if send(n) != nil {
				return false
			}
		}
		// Until it has seen the new partitions it goes on writing to the old ones.
		return len(written.Leaders()) == 5
	}, wait, often)
	for n := range 40 {
		require.NoError(t, send(n))
	}
	producer := c.NewProducer(topic)
	s := c.NewSource(topic)
	for n := range 40 {
		id, err := producer.Partition(t.Context(), testRecord(n, 0).BatchID)
		require.NoError(t, err)
		got, _, err := s.Fetch(t.Context(), id, 0, 1<<20, time.Second)
		require.NoError(t, err)
		assert.True(t, slices.ContainsFunc(got, func(d batch.Delivery) bool { return d.Seq == uint64(n) }), "record %d is where its copies go", n)
	}
}

// What one batch of 100 exposures (30 KB) costs, with as many callers as a busy
// collector has; cpu-ns/event is this process alone.
func BenchmarkPublish(b *testing.B) {
	const events = 100
	value := make([]byte, 0, 30_000)
	for i := range events {
		id := batch.ForKey("p", fmt.Sprint(i)) // a sixteenth that does not compress
		value = append(append(value, id[:]...), strings.Repeat("checkout_button,variant-b;", 11)[:284]...)
	}
	for _, inFlight := range []int{1, 2, 4} {
		b.Run(fmt.Sprintf("inflight=%d", inFlight), func(b *testing.B) {
			c, topic := testKafka(b, 12)
			p, err := publish.New(publish.Options{Producer: c.NewProducer(topic), InFlight: inFlight})
			require.NoError(b, err)
			n := atomic.Int64{}
			b.SetBytes(int64(len(value)))
			b.ReportAllocs()
			b.SetParallelism(32)
			_, err = p.Publish(b.Context(), []batch.Record{testRecord(0, 10)})
			require.NoError(b, err)
			before := cpu(b)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					r := testRecord(int(n.Add(1)), 0)
					r.Value = value
					if _, err := p.Publish(b.Context(), []batch.Record{r}); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(b.N)/events, "cpu-ns/event")
			require.NoError(b, p.Close(b.Context()))
		})
	}
}

// cpu is what this process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
