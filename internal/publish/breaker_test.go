package publish

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sony/gobreaker/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

func (p *Publisher) state(leader int) gobreaker.State { return p.breakers.get(leader).cb.State() }

// A broker fails, is given up, is tried again with one batch, fails, is tried
// again, and is back.
func TestBreakerOpensProbesAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1)
		p := newPublisher(t, Options{Producer: k, OpenFor: 5 * time.Second})
		defer shut(t, p)
		publish := func(seq int) error { return publishAll(t.Context(), p, record(0, seq))[0] }
		require.NoError(t, publish(0))

		k.set(failing)
		for i := range breakerInRow {
			resend(t, publish(i), retry.Transient)
		}
		assert.Equal(t, gobreaker.StateOpen, p.state(1))
		assert.ErrorIs(t, p.Ready(), errOpen)
		n := k.count()
		for i := range 100 {
			err := publish(i)
			resend(t, err, retry.Transient)
			assert.ErrorIs(t, err, errOpen)
		}
		assert.Equal(t, n, k.count(), "nobody asks the broker")

		retry.Sleep(t.Context(), 6*time.Second)
		assert.Equal(t, gobreaker.StateHalfOpen, p.state(1))
		assert.NoError(t, p.Ready(), "it may be back: the next batch finds out")
		resend(t, publish(1), retry.Transient)
		assert.Equal(t, gobreaker.StateOpen, p.state(1))
		assert.Equal(t, n+1, k.count())

		retry.Sleep(t.Context(), 6*time.Second)
		k.set(slow(100 * time.Millisecond))
		errs := publishAll(t.Context(), p, record(0, 10), record(0, 11), record(0, 12))
		for _, err := range errs {
			assert.NoError(t, err, "one goes ahead, the others queue behind it")
		}
		assert.Equal(t, gobreaker.StateClosed, p.state(1))
		assert.NoError(t, p.Ready())
	})
}

// While one batch tries a broker that may be back, its other partitions do not.
func TestHalfOpenLetsOneThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1, 1, 1)
		p := newPublisher(t, Options{Producer: k, OpenFor: 5 * time.Second})
		defer shut(t, p)
		k.set(failing)
		for i := range breakerInRow {
			require.Error(t, publishAll(t.Context(), p, record(0, i))[0])
		}
		retry.Sleep(t.Context(), 6*time.Second)
		k.set(slow(time.Second))
		n := k.count()
		failed := 0
		for _, err := range publishAll(t.Context(), p, record(0, 1), record(1, 1), record(2, 1)) {
			if err != nil {
				assert.ErrorIs(t, err, errOpen)
				failed++
			}
		}
		assert.Equal(t, 2, failed)
		assert.Equal(t, n+1, k.count())
		assert.Equal(t, gobreaker.StateClosed, p.state(1))
	})
}

// A stopped broker is given up when its answers are late, not when they fail;
// who waits behind is told then.
func TestHungBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1, 1, 1, 2)
		k.set(func(ctx context.Context, partition int, records []batch.Record) error {
			if partition < 3 {
				return hanging(ctx, partition, records)
			}
			return nil
		})
		p := newPublisher(t, Options{Producer: k, SlowAfter: 2 * time.Second, ProduceTimeout: 10 * time.Second})
		defer shut(t, p)
		start := time.Now()
		var wg sync.WaitGroup
		for partition := range 3 {
			wg.Go(func() {
				err := publishAll(t.Context(), p, record(partition, 1))[0]
				resend(t, err, retry.Transient)
				assert.Equal(t, 10*time.Second, time.Since(start), "in flight: known at its deadline")
			})
			synctest.Wait()
			wg.Go(func() {
				err := publishAll(t.Context(), p, record(partition, 2))[0]
				assert.ErrorIs(t, err, errOpen)
				assert.Equal(t, 2*time.Second, time.Since(start), "queued: known when the broker is given up")
			})
		}
		retry.Sleep(t.Context(), 3*time.Second)
		assert.Equal(t, gobreaker.StateOpen, p.state(1))
		assert.ErrorIs(t, publishAll(t.Context(), p, record(0, 3))[0], errOpen)
		assert.NoError(t, publishAll(t.Context(), p, record(3, 3))[0], "the other broker's partition goes on")
		assert.NoError(t, p.Ready())
		assert.Equal(t, 3*time.Second, time.Since(start))
		wg.Wait()
	})
}

func TestSlowAnswersCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1)
		k.set(slow(3 * time.Second))
		p := newPublisher(t, Options{Producer: k, SlowAfter: 2 * time.Second})
		defer shut(t, p)
		for i := range breakerInRow {
			assert.Equal(t, gobreaker.StateClosed, p.breakers.of(1).cb.State())
			assert.NoError(t, publishAll(t.Context(), p, record(0, i))[0], "late is not lost")
		}
		assert.Equal(t, gobreaker.StateOpen, p.state(1))
	})
}

// Half of the requests failing is too many, even if never three in a row.
func TestShareOfFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1)
		i := 0
		k.set(func(context.Context, int, []batch.Record) error {
			if i++; i%2 == 0 {
				return errDown
			}
			return nil
		})
		p := newPublisher(t, Options{Producer: k})
		defer shut(t, p)
		for i := range breakerRequests {
			_ = publishAll(t.Context(), p, record(0, i))
		}
		assert.Equal(t, gobreaker.StateOpen, p.state(1))
	})
}

// What says nothing about a broker does not count: a half-open breaker gets its
// one request back and can be tried again.
func TestExcluded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1)
		p := newPublisher(t, Options{Producer: k, OpenFor: time.Second})
		defer shut(t, p)
		k.set(failing)
		for i := range breakerInRow {
			require.Error(t, publishAll(t.Context(), p, record(0, i))[0])
		}
		retry.Sleep(t.Context(), 2*time.Second)
		k.set(func(context.Context, int, []batch.Record) error { return refusing() })
		require.Error(t, publishAll(t.Context(), p, record(0, 1))[0])
		assert.Equal(t, gobreaker.StateHalfOpen, p.state(1))
		k.set(nil)
		require.NoError(t, publishAll(t.Context(), p, record(0, 1))[0])
		assert.Equal(t, gobreaker.StateClosed, p.state(1))
		k.set(func(context.Context, int, []batch.Record) error { return movedError{errDown} })
		for i := range 2 * breakerRequests {
			resend(t, publishAll(t.Context(), p, record(0, i))[0], retry.Transient)
		}
		assert.Equal(t, gobreaker.StateClosed, p.state(1))
		assert.True(t, excluded(retry.Mark(errors.New("x"), retry.Shutdown)))
		assert.False(t, excluded(errDown))
		assert.False(t, excluded(errSlow))
		assert.False(t, excluded(nil))
	})
}

func TestReadyNeedsKafka(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka()
		k.setProbe(errDown)
		p := newPublisher(t, Options{Producer: k, ProbeEvery: 2 * time.Second})
		defer shut(t, p)
		assert.Error(t, p.Ready(), "not before Kafka was reached")
		retry.Sleep(t.Context(), 10*time.Second)
		assert.ErrorIs(t, p.Ready(), errDown)
		assert.LessOrEqual(t, k.probed(), 11)
		k.mu.Lock()
		k.leaders, k.probe = []int{1}, nil
		k.mu.Unlock()
		retry.Sleep(t.Context(), 3*time.Second)
		assert.NoError(t, p.Ready())
		before := k.probed()
		retry.Sleep(t.Context(), time.Minute)
		assert.LessOrEqual(t, k.probed()-before, 12, "seldom while all is well")

		before = k.probed()
		for i := range 60 {
			require.NoError(t, publishAll(t.Context(), p, record(0, i))[0])
			retry.Sleep(t.Context(), time.Second)
		}
		assert.LessOrEqual(t, k.probed()-before, 1, "not at all while requests succeed")

		k.setProbe(errDown)
		retry.Sleep(t.Context(), 30*time.Second)
		assert.ErrorIs(t, p.Ready(), errDown)
	})
}

// remembering knows of the leaders what it saw when it was last asked for a
// partition, or probed, as the real producer does.
type remembering struct {
	*fakeKafka
	mu   sync.Mutex
	seen []int
}

func (k *remembering) look() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen = k.fakeKafka.Leaders()
}

func (k *remembering) Leaders() []int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.seen
}

func (k *remembering) Partition(ctx context.Context, id batch.ID) (int, error) {
	k.look()
	return k.fakeKafka.Partition(ctx, id)
}

func (k *remembering) Probe(ctx context.Context) error {
	k.look()
	return k.fakeKafka.Probe(ctx)
}

// Requests are turned away while no partition has a leader, so they are not what
// finds out that there is one again.
func TestReadyAgainWithoutRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &remembering{fakeKafka: newFakeKafka(1)}
		p := newPublisher(t, Options{Producer: k, ProbeEvery: 2 * time.Second})
		defer shut(t, p)
		require.NoError(t, publishAll(t.Context(), p, record(0, 1))[0])
		k.setLeaders(-1)
		resend(t, publishAll(t.Context(), p, record(0, 2))[0], retry.Transient)
		require.ErrorIs(t, p.Ready(), errNoLeader)
		k.setLeaders(1)
		retry.Sleep(t.Context(), 2*time.Second)
		synctest.Wait()
		assert.NoError(t, p.Ready())
	})
}

// A probe that fails while requests succeed says nothing.
func TestRequestsKnowBetterThanAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &slowProbe{fakeKafka: newFakeKafka(1)}
		p := newPublisher(t, Options{Producer: k, ProduceTimeout: 10 * time.Second})
		defer shut(t, p)
		require.NoError(t, publishAll(t.Context(), p, record(0, 1))[0])
		k.hang.Store(true)
		for range 30 {
			retry.Sleep(t.Context(), time.Second)
			require.NoError(t, p.Ready())
			if k.hung.Load() > 0 {
				require.NoError(t, publishAll(t.Context(), p, record(0, 2))[0])
			}
		}
		assert.NotZero(t, k.hung.Load())
	})
}

type slowProbe struct {
	*fakeKafka
	hang atomic.Bool
	hung atomic.Int32 // probes that did
}

func (k *slowProbe) Probe(ctx context.Context) error {
	if k.hang.Load() {
		k.hung.Add(1)
		return hanging(ctx, 0, nil)
	}
	return nil
}

func TestReadyWithSpool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s := newFakeKafka(1), newFakeSpool()
		k.setProbe(errDown)
		p := newPublisher(t, Options{Producer: k, Spool: s})
		defer shut(t, p)
		assert.NoError(t, p.Ready(), "the spool will do")
		s.set(func(s *fakeSpool) { s.ready = errDisk })
		assert.ErrorIs(t, p.Ready(), errDisk)
	})
}

func TestTargetsAreBounded(t *testing.T) {
	o := Options{Producer: newFakeKafka()}
	require.NoError(t, o.defaults())
	s := newBreakers(o)
	for i := range 10 * maxTargets {
		require.NotNil(t, s.of(i))
	}
	assert.Len(t, s.byID, maxTargets+1)
	assert.Same(t, s.of(5*maxTargets), s.of(6*maxTargets))
	assert.NotSame(t, s.of(1), s.of(2))
}
