package publish

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/embedded/teststack"
	"sluice/internal/kafka"
	"sluice/internal/spool"
	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

var _ Spool = (*spool.Spool)(nil)

// openTopic makes a topic on a Kafka.
func openTopic(t testing.TB, brokers string, partitions int) (*kafka.Client, string) {
	c, err := kafka.Open(kafka.Config{Brokers: strings.Split(brokers, ","), ClientID: "test"})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	prefix := "t-" + batch.Random().String()
	require.NoError(t, retry.Policy{Attempts: 5}.Do(t.Context(), func(ctx context.Context) error {
		return c.EnsureTopics(ctx, prefix, partitions, 0)
	}))
	return c, kafka.Topics(prefix).Batches
}

// realRecord is the n-th record, of about that size.
func realRecord(n, size int) batch.Record {
	id := batch.ForKey("p", fmt.Sprint(n))
	return batch.Record{BatchID: id, DedupID: id, Project: "p", Collector: batch.ForKey("c", ""), Epoch: 1, Seq: uint64(n),
		Path: batch.Direct, ReceivedAt: time.Now(), Value: []byte(strings.Repeat("x", size))}
}

// A Kafka that is stopped in its tracks, goes on, is killed and comes back, under
// load, with the real spool: everything is acknowledged at once or soon, and
// everything that was is there in the end, where the ledger was told.
func TestOutagesOfARealKafka(t *testing.T) {
	const partitions, publishers = 6, 16
	k := teststack.StartKafka(t)
	c, topic := openTopic(t, k.Addr(), partitions)
	dir := t.TempDir()
	s, err := spool.Open(dir, spool.Options{})
	require.NoError(t, err)
	l := newFakeLedger()
	o := Options{Producer: c.NewProducer(topic), Spool: s, Ledger: l, OpenFor: time.Second}
	p := newPublisher(t, o)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var n atomic.Int64
	var where sync.Map // by sequence number
	var load sync.WaitGroup
	for range publishers {
		load.Go(func() {
			for ctx.Err() == nil {
				r := realRecord(int(n.Add(1)), 3000)
				durable, err := p.Publish(t.Context(), []batch.Record{r})
				if assert.NoError(t, err, "no request is refused") {
					where.Store(r.Seq, durable)
				}
				retry.Sleep(ctx, 5*time.Millisecond)
			}
		})
	}
	const wait, often = time.Minute, 20 * time.Millisecond
	direct := func() bool { // a new record goes straight
		r := realRecord(int(n.Add(1)), 3000)
		durable, err := p.Publish(t.Context(), []batch.Record{r})
		if err == nil {
			where.Store(r.Seq, durable)
		}
		return err == nil && durable == batch.InKafka
	}
	drained := func() bool { return s.Backlog().Records == 0 }
	require.Eventually(t, direct, wait, often)
	for name, fault := range map[string]struct{ begin, end func() error }{
		"stopped": {k.Pause, k.Resume},
		"killed":  {k.Kill, func() error { return k.Restart(t.Context()) }},
	} {
		require.NoError(t, fault.begin(), name)
		before := n.Load()
		require.Eventually(t, func() bool { return n.Load() > before+2000 && s.Backlog().Records > 1000 }, wait, often, name)
		require.NoError(t, p.Ready())
		require.NoError(t, fault.end(), name)
		require.Eventually(t, func() bool { return drained() && direct() }, wait, often, name)
	}
	// And a process that ends while Kafka is away.
	require.NoError(t, k.Pause())
	require.Eventually(t, func() bool { return s.Backlog().Records > 500 }, wait, often)
	stop()
	load.Wait()
	shut(t, p)
	require.NoError(t, s.Close())
	require.NoError(t, k.Resume())
	s, err = spool.Open(dir, spool.Options{})
	require.NoError(t, err)
	o.Spool, o.Producer = s, c.NewProducer(topic)
	p = newPublisher(t, o)
	require.Eventually(t, drained, wait, often)
	shut(t, p)
	require.NoError(t, s.Close())

	at := map[uint64][]string{}
	source := c.NewSource(topic)
	for id := range partitions {
		for next := int64(0); ; {
			got, bounds, err := source.Fetch(t.Context(), id, next, 1<<20, time.Second)
			require.NoError(t, err)
			for _, d := range got {
				require.NoError(t, d.Bad)
				at[d.Seq] = append(at[d.Seq], fmt.Sprintf("%d/%d", id, d.Offset))
				next = d.Offset + 1
			}
			if next >= bounds.End {
				break
			}
		}
	}
	records, copies, spooled := 0, 0, 0
	for seq := uint64(1); seq <= uint64(n.Load()); seq++ {
		durable, acked := where.Load(seq)
		if !assert.True(t, acked, seq) || !assert.NotEmpty(t, at[seq], "record %d, acknowledged in %v, is lost", seq, durable) {
			continue
		}
		records++
		copies += len(at[seq]) - 1
		if durable == batch.InSpool {
			spooled++
		}
		id := realRecord(int(seq), 0)
		assert.Subset(t, at[seq], l.where[keyOf(&id)], "it is where the ledger was told")
	}
	l.check(t)
	t.Logf("%d records, %d by way of the spool, %d copies", records, spooled, copies)
}

// What the drain costs live traffic: open is 2,000 batches of 3 KB a second,
// closed 32 callers with 30 KB each that wait for nothing but the answer. rate is
// the live batches a second; drained what the spool gave meanwhile.
func BenchmarkLiveBesideTheDrain(b *testing.B) {
	for _, partitions := range []int{12, 1} {
		for _, load := range []string{"open", "closed"} {
			for _, backlog := range []bool{false, true} {
				b.Run(fmt.Sprintf("partitions=%d/%s/drain=%v", partitions, load, backlog), func(b *testing.B) {
					benchmarkBeside(b, partitions, load == "open", backlog)
				})
			}
		}
	}
}

func benchmarkBeside(b *testing.B, partitions int, open, backlog bool) {
	const lasts = 8 * time.Second
	c, topic := openTopic(b, teststack.Kafka(b), partitions)
	s, err := spool.Open(b.TempDir(), spool.Options{})
	require.NoError(b, err)
	if backlog {
		for i := range 1300 {
			var records []batch.Record
			for j := range 100 {
				records = append(records, realRecord(1<<30+i*100+j, 3000))
			}
			_, err := s.Append(b.Context(), records)
			require.NoError(b, err)
		}
	}
	before := s.Backlog()
	p := newPublisher(b, Options{Producer: c.NewProducer(topic), Spool: s})
	require.Eventually(b, func() bool { return p.Ready() == nil && p.kafkaReady() == nil }, time.Minute, time.Millisecond)
	var n atomic.Int64
	var mu sync.Mutex
	var took []time.Duration
	var spooled atomic.Int64
	publish := func(size int) {
		r := realRecord(int(n.Add(1)), size)
		start := time.Now()
		where, err := p.Publish(b.Context(), []batch.Record{r})
		d := time.Since(start)
		assert.NoError(b, err)
		if where == batch.InSpool {
			spooled.Add(1)
		}
		mu.Lock()
		defer mu.Unlock()
		took = append(took, d)
	}
	for range 100 {
		publish(3000)
	}
	took = nil
	b.ResetTimer()
	start := time.Now()
	var load sync.WaitGroup
	if open {
		for i := range int(lasts.Seconds() * 2000) {
			retry.Sleep(b.Context(), time.Until(start.Add(time.Duration(i)*time.Second/2000)))
			load.Go(func() { publish(3000) })
		}
	} else {
		for range 32 {
			load.Go(func() {
				for time.Since(start) < lasts {
					publish(30000)
				}
			})
		}
	}
	load.Wait()
	elapsed := time.Since(start)
	left := s.Backlog()
	slices.Sort(took)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(len(took))/elapsed.Seconds(), "rate")
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(spooled.Load()), "spooled")
	b.ReportMetric(float64(before.Bytes-left.Bytes)/elapsed.Seconds()/(1<<20), "drained-MiB/s")
	require.NoError(b, p.Close(b.Context()))
	require.NoError(b, s.Close())
}
