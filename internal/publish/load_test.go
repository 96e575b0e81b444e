package publish

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sony/gobreaker/v2"
	"github.com/stretchr/testify/assert"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// A stopped Kafka costs everybody at most the time-out, and no memory.
func TestHungKafkaUnderLoad(t *testing.T) {
	leaders := make([]int, 12)
	for i := range leaders {
		leaders[i] = 1 + i%3
	}
	for name, partitions := range map[string]int{"twelve partitions": 12, "one": 1} {
		t.Run(name, func(t *testing.T) {
			withSpool(t, leaders[:partitions], Options{}, func(t *testing.T, e *outage) {
				e.k.set(hanging)
				size := int64(len("value") + 256)
				var wg sync.WaitGroup
				late := 0
				for i := range 2000 * 10 {
					wg.Go(func() {
						where, took, err := e.publish(i%partitions, i)
						assert.NoError(t, err)
						assert.Equal(t, batch.InSpool, where)
						assert.LessOrEqual(t, took, ack)
						if took > 0 {
							e.l.mu.Lock()
							late++
							e.l.mu.Unlock()
						}
					})
					if i%100 == 0 {
						synctest.Wait()
						assert.LessOrEqual(t, e.p.queued.Load(), (2000/4+100)*size, "what waits is a time-out's worth")
					}
					retry.Sleep(t.Context(), time.Second/2000)
				}
				wg.Wait()
				assert.LessOrEqual(t, late, 2000/4+partitions, "who comes while nobody knows yet")
				assert.LessOrEqual(t, e.p.queued.Load(), int64(2*partitions)*size, "in flight, and nothing behind")
				for _, l := range e.p.lanes {
					assert.LessOrEqual(t, cap(l.queue), 4096)
				}
				e.k.set(nil)
				e.wait(2 * time.Minute)
				assert.Empty(t, e.s.pending())
			})
		})
	}
}

// While the breaker has not opened, a brown-out costs the time-out at most, and
// what got there late is not sent twice.
func TestBrownOut(t *testing.T) {
	withSpool(t, []int{1, 1}, Options{}, func(t *testing.T, e *outage) {
		e.k.set(slow(600 * time.Millisecond))
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				_, took, err := e.publish(i%2, i)
				assert.NoError(t, err)
				assert.LessOrEqual(t, took, ack)
			})
			retry.Sleep(t.Context(), 5*time.Millisecond)
		}
		wg.Wait()
		e.k.set(nil)
		e.wait(time.Minute)
		assert.Equal(t, gobreaker.StateClosed, e.p.state(1))
		assert.Empty(t, e.s.pending())
		assert.Len(t, append(e.k.stored(0), e.k.stored(1)...), 1000, "each once: no request failed")
	})
}

// busyBroker serves one request at a time.
type busyBroker struct {
	*fakeKafka
	turn chan struct{}
	each time.Duration
}

func (k *busyBroker) Produce(ctx context.Context, partition int, records []batch.Record) (int64, time.Time, error) {
	select {
	case k.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, time.Time{}, hanging(ctx, partition, records)
	}
	defer func() { <-k.turn }()
	if !retry.Sleep(ctx, k.each) {
		return 0, time.Time{}, hanging(ctx, partition, records)
	}
	return k.fakeKafka.Produce(ctx, partition, records)
}

// However slow a broker is, live traffic that wants all of it keeps four fifths,
// also with as few partitions as there can be.
func TestLiveTrafficKeepsItsRate(t *testing.T) {
	for _, partitions := range []int{1, 2, 4} {
		t.Run(fmt.Sprint(partitions), func(t *testing.T) {
			leaders := slices.Repeat([]int{1}, partitions)
			withSpool(t, leaders, Options{GroupRecords: 10}, func(t *testing.T, e *outage) {
				shut(t, e.p)
				k := &busyBroker{fakeKafka: e.k, turn: make(chan struct{}, 1), each: 10 * time.Millisecond}
				e.p = newPublisher(t, Options{Producer: k, Spool: e.s, Ledger: e.l, GroupRecords: 10})
				defer shut(t, e.p)
				rate := func() (live int) {
					start := time.Now()
					var mu sync.Mutex
					var wg sync.WaitGroup
					for i := range 20 * partitions {
						wg.Go(func() {
							for time.Since(start) < 5*time.Second {
								where, _, err := e.publish(i%partitions, 1e6)
								assert.NoError(t, err)
								assert.Equal(t, batch.InKafka, where)
								mu.Lock()
								live++
								mu.Unlock()
							}
						})
					}
					wg.Wait()
					return live
				}
				alone := rate()
				e.k.setLeaders(slices.Repeat([]int{-1}, partitions)...)
				e.fill(partitions, 0, 4000)
				e.k.setLeaders(leaders...)
				beside := rate()
				drained := 4000 - len(e.s.pending())
				assert.GreaterOrEqual(t, beside, alone*4/5)
				assert.GreaterOrEqual(t, drained, alone/50, "and the spool gets its part")
				assert.NotEmpty(t, e.s.pending(), "all the time")
				e.wait(time.Minute)
				assert.Empty(t, e.s.pending())
				e.l.told[key{seq: 1e6}] = nil
			})
		})
	}
}
