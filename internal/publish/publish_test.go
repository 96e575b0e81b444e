package publish

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/embedded/teststack"
	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

func TestMain(m *testing.M) {
	os.Exit(teststack.Main(m, teststack.NeedKafka, teststack.CheckLeaks))
}

func TestPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1, 1)
		p := newPublisher(t, Options{Producer: k})
		defer shut(t, p)
		where, err := p.Publish(t.Context(), []batch.Record{record(0, 1), record(0, 2), record(1, 3)})
		require.NoError(t, err)
		assert.Equal(t, batch.InKafka, where)
		assert.Equal(t, []uint64{1, 2}, k.stored(0))
		assert.Equal(t, []uint64{3}, k.stored(1))
		where, err = p.Publish(t.Context(), nil)
		require.NoError(t, err)
		assert.Equal(t, batch.InKafka, where)
		assert.Zero(t, p.queued.Load())
	})
}

func TestGatherWhileInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1)
		k.set(slow(100 * time.Millisecond))
		p := newPublisher(t, Options{Producer: k, GroupRecords: 4})
		defer shut(t, p)
		var wg sync.WaitGroup
		for i := range 11 {
			wg.Go(func() {
				_, err := p.Publish(t.Context(), []batch.Record{record(0, i)})
				assert.NoError(t, err)
			})
			synctest.Wait() // in this order
		}
		wg.Wait()
		assert.Equal(t, []uint64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, k.stored(0))
		var sizes []int
		for _, r := range k.requests {
			sizes = append(sizes, len(r))
		}
		assert.Equal(t, []int{1, 4, 4, 2}, sizes, "the first goes alone; the others gather meanwhile")
		assert.Equal(t, 1, k.most)
	})
}

func TestGroupBytesAndInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1)
		k.set(slow(100 * time.Millisecond))
		r := record(0, 0)
		p := newPublisher(t, Options{Producer: k, GroupBytes: 3 * int64(r.Size()), InFlight: 2})
		defer shut(t, p)
		var records []batch.Record
		for i := range 10 {
			records = append(records, record(0, i))
		}
		for _, err := range publishAll(t.Context(), p, records...) {
			assert.NoError(t, err)
		}
		assert.Len(t, k.log[0], 10)
		assert.Equal(t, 2, k.most)
		for _, r := range k.requests {
			assert.LessOrEqual(t, len(r), 3)
		}
		big := record(0, 1)
		big.Value = make([]byte, 100_000)
		_, err := p.Publish(t.Context(), []batch.Record{big})
		assert.NoError(t, err, "a record over the bound goes alone")
	})
}

func TestOneHungPartitionLeavesTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1, 2)
		k.set(func(ctx context.Context, partition int, records []batch.Record) error {
			if partition == 0 {
				return hanging(ctx, partition, records)
			}
			return nil
		})
		r := record(0, 0)
		p := newPublisher(t, Options{Producer: k, LaneBytes: 3 * int64(r.Size()), ProduceTimeout: 10 * time.Second, SlowAfter: time.Hour})
		defer shut(t, p)
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				_, err := p.Publish(t.Context(), []batch.Record{record(0, i)})
				resend(t, err, retry.Transient)
			})
		}
		synctest.Wait()
		start := time.Now()
		_, err := p.Publish(t.Context(), []batch.Record{record(0, 9)})
		resend(t, err, retry.Throttled)
		assert.ErrorIs(t, err, errQueueFull)
		_, err = p.Publish(t.Context(), []batch.Record{record(1, 1)})
		require.NoError(t, err)
		assert.Zero(t, time.Since(start), "neither waited")
		wg.Wait()
		assert.Zero(t, p.queued.Load())
	})
}

func TestQueueFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1, 1, 1)
		k.set(slow(time.Second))
		r := record(0, 0)
		p := newPublisher(t, Options{Producer: k, QueueBytes: 2 * int64(r.Size())})
		defer shut(t, p)
		errs := publishAll(t.Context(), p, record(0, 1), record(1, 1), record(2, 1))
		full := 0
		for _, err := range errs {
			if err != nil {
				resend(t, err, retry.Throttled)
				full++
			}
		}
		assert.Equal(t, 1, full)
		big := record(0, 2)
		big.Value = make([]byte, 10_000)
		_, err := p.Publish(t.Context(), []batch.Record{big})
		assert.NoError(t, err, "with nothing queued one batch is always possible")
	})
}

func TestRefusedRecordFailsAlone(t *testing.T) {
	for name, known := range map[string]bool{"named": true, "not named": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bad := map[uint64]bool{3: true, 7: true}
				k := newFakeKafka(1)
				k.set(func(ctx context.Context, partition int, records []batch.Record) error {
					var at []int
					for i, r := range records {
						if bad[r.Seq] {
							at = append(at, i)
						}
					}
					if at == nil {
						return slow(time.Second)(ctx, partition, records)
					}
					if !known {
						at = nil
					}
					return refusing(at...)
				})
				p := newPublisher(t, Options{Producer: k})
				defer shut(t, p)
				var records []batch.Record
				for i := range 12 {
					records = append(records, record(0, i))
				}
				for i, err := range publishAll(t.Context(), p, records...) {
					if bad[uint64(i)] {
						require.Error(t, err)
						assert.Equal(t, retry.Permanent, retry.ClassOf(err))
						assert.Zero(t, retry.After(err), "it need not come again")
					} else {
						assert.NoError(t, err, i)
					}
				}
				assert.Len(t, k.stored(0), 10)
				assert.False(t, p.breakers.get(1).open(), "none of the broker's fault")
				assert.NoError(t, p.Ready())
			})
		})
	}
}

func TestPublishersGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1)
		k.set(slow(time.Second))
		p := newPublisher(t, Options{Producer: k})
		defer shut(t, p)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 2 {
			wg.Go(func() {
				_, err := p.Publish(ctx, []batch.Record{record(0, i)})
				resend(t, err, retry.Transient)
				assert.ErrorIs(t, err, context.DeadlineExceeded)
			})
			synctest.Wait()
		}
		wg.Wait()
		assert.Equal(t, 300*time.Millisecond, time.Since(start))
		assert.NoError(t, publishAll(t.Context(), p, record(0, 3))[0])
		assert.Equal(t, []uint64{0, 3}, k.stored(0), "what was in flight got there, what was queued was dropped")
		assert.False(t, p.breakers.get(1).open(), "nobody's failure")
		assert.Zero(t, p.queued.Load())
	})
}

// A request that failed and was written all the same is claimed by nobody; the
// sender comes again, and the copy has the same identity.
func TestErroredButPersisted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1)
		first := true
		k.set(func(_ context.Context, partition int, records []batch.Record) error {
			if !first {
				return nil
			}
			first = false
			k.mu.Lock()
			k.log[partition] = append(k.log[partition], records...)
			k.mu.Unlock()
			return errDown
		})
		p := newPublisher(t, Options{Producer: k})
		defer shut(t, p)
		r := record(0, 1)
		_, err := p.Publish(t.Context(), []batch.Record{r})
		resend(t, err, retry.Transient)
		_, err = p.Publish(t.Context(), []batch.Record{r})
		require.NoError(t, err)
		require.Len(t, k.log[0], 2)
		assert.Equal(t, k.log[0][0], k.log[0][1])
	})
}

func TestNoTopicNoLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka()
		p := newPublisher(t, Options{Producer: k})
		defer shut(t, p)
		_, err := p.Publish(t.Context(), []batch.Record{record(0, 1)})
		resend(t, err, retry.Transient)
		k.mu.Lock()
		k.leaders = []int{-1}
		k.mu.Unlock()
		_, err = p.Publish(t.Context(), []batch.Record{record(0, 1)})
		resend(t, err, retry.Transient)
		assert.ErrorIs(t, err, errNoLeader)
		assert.Zero(t, k.count())
		synctest.Wait()
		assert.ErrorIs(t, p.Ready(), errNoLeader)
	})
}

func TestWrongRightsAreWorthAnotherTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1)
		k.set(func(context.Context, int, []batch.Record) error {
			return retry.Mark(errors.New("not authorized"), retry.Permanent)
		})
		p := newPublisher(t, Options{Producer: k})
		defer shut(t, p)
		_, err := p.Publish(t.Context(), []batch.Record{record(0, 1)})
		resend(t, err, retry.Transient)
		assert.Equal(t, 1, k.count(), "not taken apart: the records are not at fault")
	})
}

func TestCloseFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1, 1)
		k.set(slow(time.Second))
		p := newPublisher(t, Options{Producer: k, GroupRecords: 1})
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				_, err := p.Publish(t.Context(), []batch.Record{record(i%2, i)})
				assert.NoError(t, err)
			})
		}
		synctest.Wait()
		shut(t, p)
		wg.Wait()
		assert.Len(t, k.log[0], 3)
		assert.Len(t, k.log[1], 3)
		_, err := p.Publish(t.Context(), []batch.Record{record(0, 9)})
		resend(t, err, retry.Shutdown)
		assert.Error(t, p.Ready())
		shut(t, p) // again: nothing
	})
}

func TestCloseGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1)
		k.set(hanging)
		p := newPublisher(t, Options{Producer: k, GroupRecords: 1})
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				_, err := p.Publish(t.Context(), []batch.Record{record(0, i)})
				resend(t, err, retry.Shutdown)
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		require.Error(t, p.Close(ctx))
		assert.Equal(t, time.Second, time.Since(start))
		wg.Wait()
		assert.Zero(t, p.queued.Load())
	})
}

func TestCloseDuringLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1, 1, 2)
		k.set(slow(3 * time.Millisecond))
		p := newPublisher(t, Options{Producer: k, GroupRecords: 3})
		var mu sync.Mutex
		acked := map[uint64]bool{}
		var wg sync.WaitGroup
		for w := range 20 {
			wg.Go(func() {
				for i := range 200 {
					r := record(rand.IntN(3), w*1000+i)
					if _, err := p.Publish(t.Context(), []batch.Record{r}); err != nil {
						resend(t, err, retry.Shutdown)
						return
					}
					mu.Lock()
					acked[r.Seq] = true
					mu.Unlock()
				}
			})
		}
		retry.Sleep(t.Context(), 100*time.Millisecond)
		shut(t, p)
		wg.Wait()
		stored := map[uint64]bool{}
		for partition := range 3 {
			for _, seq := range k.stored(partition) {
				stored[seq] = true
			}
		}
		assert.NotEmpty(t, acked)
		for seq := range acked {
			assert.True(t, stored[seq], "%d was acknowledged", seq)
		}
	})
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := prometheus.NewRegistry()
		k := newFakeKafka(7)
		p := newPublisher(t, Options{Producer: k, Registerer: r})
		defer shut(t, p)
		require.NoError(t, publishAll(t.Context(), p, record(0, 1))[0])
		k.set(failing)
		for i := range 5 {
			require.Error(t, publishAll(t.Context(), p, record(0, i))[0])
		}
		require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(fmt.Sprintf(`
# HELP sluice_breaker_state Circuit breaker of a broker, by its id: 0 closed, 1 half-open, 2 open.
# TYPE sluice_breaker_state gauge
sluice_breaker_state{target="7"} 2
# HELP sluice_produce_errors_total Produce requests that failed, by class: transient, throttled, permanent, shutdown, or refused for the records themselves.
# TYPE sluice_produce_errors_total counter
sluice_produce_errors_total{class="transient"} %d
# HELP sluice_publish_queued_bytes Bytes of records that wait for Kafka or are on their way to it.
# TYPE sluice_publish_queued_bytes gauge
sluice_publish_queued_bytes 0
# HELP sluice_publish_rejected_total Batches and groups that were not sent to Kafka, by reason: queue_full, slow, breaker_open, no_leader, no_topic, closed.
# TYPE sluice_publish_rejected_total counter
sluice_publish_rejected_total{reason="breaker_open"} 2
`, breakerInRow)), "sluice_breaker_state", "sluice_produce_errors_total", "sluice_publish_queued_bytes", "sluice_publish_rejected_total"))
		problems, err := testutil.GatherAndLint(r)
		require.NoError(t, err)
		assert.Empty(t, problems)
	})
}

func BenchmarkPublish(b *testing.B) {
	p := newPublisher(b, Options{Producer: newFakeKafkaThatForgets()})
	defer shut(b, p)
	b.ReportAllocs()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		records := []batch.Record{record(rand.IntN(2), 1)}
		for pb.Next() {
			if _, err := p.Publish(b.Context(), records); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

type forgetful struct{ *fakeKafka }

func newFakeKafkaThatForgets() Producer { return forgetful{newFakeKafka(1, 1)} }

func (forgetful) Produce(context.Context, int, []batch.Record) (int64, time.Time, error) {
	return 0, time.Time{}, nil
}
