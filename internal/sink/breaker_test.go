package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// countingSource counts the fetches.
type countingSource struct {
	Source
	fetches atomic.Int64
}

func (s *countingSource) Fetch(ctx context.Context, partition int, offset int64, maxBytes int, maxWait time.Duration) ([]batch.Delivery, batch.Bounds, error) {
	s.fetches.Add(1)
	return s.Source.Fetch(ctx, partition, offset, maxBytes, maxWait)
}

func state(t *testing.T, r prometheus.Gatherer, want int) {
	t.Helper()
	assert.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(fmt.Sprintf(`
# HELP sluice_breaker_state Circuit breaker: 0 closed, 1 half-open, 2 open; while it is open nothing is read from Kafka.
# TYPE sluice_breaker_state gauge
sluice_breaker_state{target="clickhouse"} %d
`, want)), "sluice_breaker_state"))
}

// ClickHouse is away for hours while records come: nothing is read or inserted,
// what is held does not grow, the membership goes on, and seconds after it is back
// everything is stored, in one large block.
func TestOutageOfHours(t *testing.T) {
	for name, how := range map[string]struct {
		err  error
		hang time.Duration
	}{
		"refuses connections": {errAway, 0},
		"does not answer":     {retry.Mark(context.DeadlineExceeded, retry.Transient), 70 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 1)
				// Another partition, with nothing in it: it asks nothing of ClickHouse.
				r.log.records[1], r.log.committed[1] = nil, commit{offset: -1}
				source := &countingSource{Source: r.log}
				r.source = source
				s, metrics, stop := r.start(nil)
				defer stop()
				add := func(from, n int) {
					for i := range n {
						r.log.append(0, sample(fmt.Sprint(from+i), 10))
					}
				}
				add(0, 50)
				r.until("drained", time.Minute, r.drained)
				state(t, metrics, 0)

				r.store.set(how.err, how.hang)
				add(50, 50)
				r.until("open", 10*time.Minute, func() bool { return value(t, metrics, "sluice_breaker_state", "clickhouse") == 2 })
				retry.Sleep(t.Context(), fetchWait) // of those in flight
				fetches, held := source.fetches.Load(), s.budget.inUse()
				r.store.set(how.err, how.hang)
				for hour := range 3 {
					add(100+100*hour, 100)
					retry.Sleep(t.Context(), time.Hour)
					assert.Equal(t, "waiting", s.Status()[0].State)
					assert.Equal(t, "waiting", s.Status()[1].State)
					assert.EqualValues(t, 150+100*hour, s.Status()[0].Lag, "what is late shows")
				}
				assert.Equal(t, fetches, source.fetches.Load(), "nothing is fetched")
				assert.Equal(t, held, s.budget.inUse(), "what is held does not grow")
				asked, pings := r.store.calls()
				assert.LessOrEqual(t, asked, breakerInRow, "only what was asked before goes on")
				per := probeMost + min(how.hang, probeTimeout)
				assert.InDelta(t, 3*time.Hour/per, pings, float64(3*time.Hour/per)/2, "a probe every few seconds")
				assert.Equal(t, 1, r.log.generations(), "no rebalance")

				sent := len(r.store.inserts())
				r.store.set(nil, 0)
				r.until("caught up", probeMost+probeTimeout+3*time.Second, r.drained)
				state(t, metrics, 0)
				assert.Equal(t, "running", s.Status()[0].State)
				assert.Equal(t, "running", s.Status()[1].State)
				got := r.store.take()
				assert.Len(t, got[schema.Exposures].Events, 4000)
				assert.Len(t, got[schema.Events].Events, 400)
				assert.LessOrEqual(t, len(r.store.inserts())-sent, 6, "in large blocks: the one in doubt, and the rest")
				assert.Zero(t, value(t, metrics, "sluice_sink_alarms_total", "permanent"))
			})
		})
	}
}

// Which answers open the breaker, and which do not.
func TestBreakerCounts(t *testing.T) {
	broken := errors.New("broken")
	for name, tt := range map[string]struct {
		said []error
		open bool
	}{
		"transient in a row": {[]error{broken, broken, broken}, true},
		"one works":          {[]error{broken, broken, nil, broken, broken}, false},
		"permanent":          {[]error{retry.Mark(broken, retry.Permanent), retry.Mark(broken, retry.Permanent), retry.Mark(broken, retry.Permanent)}, false},
		"permanent between":  {[]error{broken, broken, retry.Mark(broken, retry.Permanent), broken}, false},
		"throttled":          {[]error{retry.Mark(broken, retry.Throttled), retry.Mark(broken, retry.Throttled), retry.Mark(broken, retry.Throttled)}, false},
		"throttled between":  {[]error{broken, broken, retry.Mark(broken, retry.Throttled), broken}, true},
		"our own end":        {[]error{context.Canceled, context.Canceled, context.Canceled}, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBreaker(slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()))
			for _, err := range tt.said {
				asked, got := b.try(t.Context(), func() error { return err })
				assert.True(t, asked)
				assert.Equal(t, err, got)
			}
			assert.Equal(t, tt.open, !isClosed(b.closed()))
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			asked, err := b.try(ctx, func() error { return nil })
			assert.Equal(t, !tt.open, asked)
			if tt.open {
				assert.Equal(t, retry.Transient, retry.ClassOf(err))
				waited := 0
				assert.ErrorIs(t, b.wait(ctx, func() func() { waited++; return func() { waited++ } }), context.Canceled)
				assert.Equal(t, 2, waited)
			}
		})
	}
}

// A caller that went away says nothing about ClickHouse.
func TestBreakerCallerGone(t *testing.T) {
	b := newBreaker(slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2 * breakerInRow {
		asked, err := b.try(ctx, func() error { return errAway })
		assert.True(t, asked)
		assert.Equal(t, errAway, err)
	}
	assert.True(t, isClosed(b.closed()))
}

// One probe at a time, at waits that grow and are forgotten once it was up for a
// while; all who wait go on when it answers.
func TestBreakerProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()))
		var up atomic.Bool
		var mu sync.Mutex
		var at []time.Time // of the probes
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			b.probe(ctx, func(context.Context) error {
				mu.Lock()
				at = append(at, time.Now())
				mu.Unlock()
				if up.Load() {
					return nil
				}
				return errAway
			})
		})
		trip := func() (start time.Time) {
			up.Store(false)
			for range breakerInRow {
				_, _ = b.try(ctx, func() error { return errAway })
			}
			mu.Lock()
			defer mu.Unlock()
			at = nil
			return time.Now()
		}
		gaps := func(start time.Time) (out []time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			for _, when := range at {
				out = append(out, when.Sub(start))
				start = when
			}
			return out
		}
		within := func(gap, longest time.Duration) {
			t.Helper()
			assert.GreaterOrEqual(t, gap, longest/2)
			assert.LessOrEqual(t, gap, longest)
		}

		start := trip()
		for range 10 {
			wg.Go(func() {
				assert.NoError(t, b.do(ctx, func() func() { return func() {} }, func() error { return nil }))
			})
		}
		retry.Sleep(ctx, time.Minute)
		for i, gap := range gaps(start) {
			within(gap, min(probeFirst<<i, probeMost))
		}
		n := len(gaps(start))
		up.Store(true)
		retry.Sleep(ctx, time.Minute)
		assert.Len(t, gaps(start), n+1, "one answer is enough")
		assert.True(t, isClosed(b.closed()))

		start = trip()
		retry.Sleep(ctx, 2*time.Second)
		within(gaps(start)[0], probeFirst)
		up.Store(true)
		retry.Sleep(ctx, 10*time.Second)
		require.True(t, isClosed(b.closed()))
		start = trip()
		retry.Sleep(ctx, 30*time.Second)
		assert.Greater(t, gaps(start)[0], probeFirst, "an outage soon after the last one goes on with its waits")
		cancel()
		wg.Wait()
	})
}

// ClickHouse answers probes and nothing else: it is not asked without a pause, no
// budget is used up, and the end of it is not slept through.
func TestBreakerFlaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		s, metrics, stop := r.start(nil)
		defer stop()
		retry.Sleep(t.Context(), time.Minute)
		r.store.pong = true
		r.store.set(errAway, 0)
		for i := range 100 {
			r.log.append(0, sample(fmt.Sprint(i), 10))
		}
		retry.Sleep(t.Context(), time.Hour)
		asked, pings := r.store.calls()
		assert.LessOrEqual(t, asked, 2*breakerInRow+breakerInRow*int(time.Hour/(probeMost/2)))
		assert.Positive(t, pings)
		assert.Zero(t, value(t, metrics, "sluice_sink_alarms_total", "permanent"))
		assert.Zero(t, value(t, metrics, "sluice_sink_alarms_total", "torn"), "transient errors use up nothing")
		assert.Equal(t, "waiting", s.Status()[0].State)
		r.store.set(nil, 0)
		r.until("drained", 3*probeMost, r.drained)
	})
}

// A sink that is asked to end ends, also in the middle of an outage.
func TestEndDuringOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.store.set(errAway, time.Hour)
		s, _, stop := r.start(nil)
		r.log.append(0, sample("a", 1))
		retry.Sleep(t.Context(), 10*time.Minute)
		start := time.Now()
		stop()
		assert.Zero(t, time.Since(start))
		assert.Zero(t, s.budget.inUse())
	})
}

// The companion runs where partition 0 is, as long as the generation, and does not
// end it when it ends.
func TestCompanion(t *testing.T) {
	for name, tt := range map[string]struct {
		partitions []int
		early      bool
		runs       int64
	}{
		"with partition 0":   {[]int{2, 0}, false, 1},
		"without":            {[]int{1, 2}, false, 0},
		"none at all":        {nil, false, 0},
		"that returns early": {[]int{0}, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 1)
				var runs, ended atomic.Int64
				r.cfg.Companion = func(ctx context.Context) {
					runs.Add(1)
					if !tt.early {
						<-ctx.Done()
					}
					ended.Add(1)
				}
				delete(r.log.records, 0)
				for _, p := range tt.partitions {
					r.log.records[p] = nil
					r.log.committed[p] = commit{offset: -1}
				}
				_, _, stop := r.start(nil)
				retry.Sleep(t.Context(), time.Minute)
				assert.Equal(t, tt.runs, runs.Load())
				assert.Equal(t, tt.early, ended.Load() > 0)
				assert.Equal(t, 1, r.log.generations())
				stop()
				assert.Equal(t, tt.runs, ended.Load())
			})
		})
	}
}
