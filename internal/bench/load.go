package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// LoadConfig is how a workload is sent.
type LoadConfig struct {
	Addr        string // host:port of a collector
	Connections int    // 1 to 1,000
	// Rate is how many events a second become due, whatever the collector does (an
	// open loop); 0: each connection sends as soon as it has its answer (a closed
	// loop).
	Rate     float64
	Workload Workload
	// Tolerant counts what is refused instead of ending the load with an error.
	Tolerant bool
}

// Load is a load that is under way. Its counts may be read at any time.
type Load struct {
	cfg    LoadConfig
	g      *generator
	cancel context.CancelFunc
	ended  <-chan struct{} // of ctx
	wg     sync.WaitGroup
	next   atomic.Uint64 // number of the next request

	events  atomic.Int64 // of distinct requests that were acknowledged
	repeats atomic.Int64 // events acknowledged again
	refused atomic.Int64 // requests

	mu      sync.Mutex
	latency *hdrhistogram.Histogram // µs
	err     error
}

// The span of latencies that are told apart, with three digits: what is longer
// counts as the longest.
const longestLatency = 2 * time.Minute

// StartLoad connects, and then sends until Stop, or until something fails.
func StartLoad(ctx context.Context, cfg LoadConfig) (*Load, error) {
	if cfg.Connections < 1 || cfg.Connections > 1000 {
		return nil, fmt.Errorf("%d connections: want 1 to 1000", cfg.Connections)
	}
	g, err := newGenerator(cfg.Workload)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &Load{cfg: cfg, g: g, cancel: cancel, ended: ctx.Done(), latency: hdrhistogram.New(1, longestLatency.Microseconds(), 3)}
	// Numbers of different loads never meet: they make the idempotency keys.
	l.next.Store(rand.Uint64N(1<<24) << 24)
	conns := make([]*connection, 0, cfg.Connections)
	templates := make([][]*template, cfg.Connections)
	for i := range cfg.Connections {
		// Enough different bodies that no cache of the processor or the server holds them.
		if templates[i], err = g.templates(max(2, min(32, 400/g.Events)), uint64(i+2)); err == nil {
			var c *connection
			if c, err = dial(ctx, cfg.Addr); err == nil {
				conns = append(conns, c)
			}
		}
		if err != nil {
			for _, c := range conns {
				c.close()
			}
			cancel()
			return nil, err
		}
	}
	var due chan time.Time
	if cfg.Rate > 0 {
		due = make(chan time.Time, 1<<14)
		l.wg.Go(func() { l.pace(ctx, due) })
	}
	for i, c := range conns {
		l.wg.Go(func() {
			defer c.close()
			// A request in flight gets its answer also after the end, so that it is counted.
			if err := l.run(ctx, c, templates[i], due); err != nil {
				l.fail(err)
			}
		})
	}
	return l, nil
}

func (l *Load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	l.cancel()
}

// pace says when requests become due: at equal distances.
func (l *Load) pace(ctx context.Context, due chan<- time.Time) {
	defer close(due)
	every := time.Duration(float64(time.Second) * float64(l.g.Events) / l.cfg.Rate)
	for at := time.Now(); ctx.Err() == nil; at = at.Add(every) {
		sleepUntil(at)
		select {
		case due <- at:
		case <-ctx.Done():
		}
	}
}

func (l *Load) run(ctx context.Context, c *connection, templates []*template, due <-chan time.Time) error {
	fresh := false // whether there is a request that can be repeated
	var t *template
	for i := 0; ctx.Err() == nil; {
		var begin time.Time
		if due != nil {
			at, ok := <-due
			if !ok {
				return nil
			}
			begin = at
		} else {
			begin = time.Now()
		}
		repeat := fresh && l.cfg.Workload.Duplicates > 0 && rand.Float64() < l.cfg.Workload.Duplicates
		if !repeat {
			t = templates[i]
			i = (i + 1) % len(templates)
			t.stamp(l.g, l.next.Add(1))
		}
		status, refusal, err := c.send(t.wire)
		if err != nil {
			return err
		}
		fresh = status/100 == 2
		switch {
		case !fresh && !l.cfg.Tolerant:
			return fmt.Errorf("a request was answered %d: %s", status, refusal)
		case !fresh:
			l.refused.Add(1)
		case repeat:
			l.repeats.Add(int64(t.count))
		default:
			l.events.Add(int64(t.count))
		}
		us := min(max(1, time.Since(begin).Microseconds()), longestLatency.Microseconds())
		l.mu.Lock()
		err = l.latency.RecordValue(us)
		l.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// Events are the events of requests that were acknowledged so far, repeats not
// counted.
func (l *Load) Events() int64 { return l.events.Load() }

// Handled are all events that were acknowledged so far.
func (l *Load) Handled() int64 { return l.events.Load() + l.repeats.Load() }

// Refused are the requests so far that were not acknowledged.
func (l *Load) Refused() int64 { return l.refused.Load() }

// Latencies are those of the answers since it was last called.
type Latencies struct {
	N             int64
	P50, P99, Max time.Duration
}

// Latencies takes the latencies so far and begins anew. In an open loop they
// count from when a request was due.
func (l *Load) Latencies() Latencies {
	l.mu.Lock()
	defer l.mu.Unlock()
	us := func(v int64) time.Duration { return time.Duration(v) * time.Microsecond }
	out := Latencies{N: l.latency.TotalCount(), P50: us(l.latency.ValueAtQuantile(50)), P99: us(l.latency.ValueAtQuantile(99)), Max: us(l.latency.Max())}
	l.latency.Reset()
	return out
}

// Stop ends the load, waits for the answers that are on their way, and returns
// what went wrong.
func (l *Load) Stop() error {
	l.cancel()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(l.err, context.Canceled) {
		return nil
	}
	return l.err
}

// Failed is closed when the load has ended, by Stop or because something failed.
func (l *Load) Failed() <-chan struct{} { return l.ended }

// Err is what went wrong so far.
func (l *Load) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
