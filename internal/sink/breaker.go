package sink

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"sluice/pkg/retry"
)

const (
	// So many requests to ClickHouse that failed in a row, of all partitions
	// together, open the breaker.
	breakerInRow = 3
	// How long the first probe waits, and the later ones at most; each wait is
	// between the half of it and all of it. The longest is what an outage's end may
	// go unnoticed for.
	probeFirst = time.Second
	probeMost  = 5 * time.Second
	// An outage that begins so soon after the last one goes on with its waits: a
	// ClickHouse that answers probes and nothing else is not asked every second.
	probeSettled = 30 * time.Second
	probeTimeout = 5 * time.Second
)

// errBreakerOpen is what an insert that is already open gets instead of being
// sent: ClickHouse would have ended it by the time the outage is over.
var errBreakerOpen = errors.New("ClickHouse is taken to be down")

// breaker keeps the partitions of a process from asking a ClickHouse that does
// not answer. While it is open whoever wants something of ClickHouse waits, one
// probe at a time asks whether it is back, and the first answer lets all go on at
// once: nobody sleeps through the end of an outage. What ClickHouse refuses, and
// what it has no room for at the moment, are answers. Safe for concurrent use.
type breaker struct {
	cb      *gobreaker.TwoStepCircuitBreaker[struct{}]
	tripped chan struct{} // holds one: wake the prober

	mu sync.Mutex
	up chan struct{} // closed while the breaker is closed
}

func newBreaker(log *slog.Logger, m *Metrics) *breaker {
	b := &breaker{tripped: make(chan struct{}, 1), up: make(chan struct{})}
	close(b.up)
	m.breaker.Set(float64(gobreaker.StateClosed))
	b.cb = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:        "clickhouse",
		MaxRequests: 1,
		// Half-open as soon as it is asked: the prober keeps the time, nobody else
		// asks.
		Timeout:     time.Millisecond,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= breakerInRow },
		IsSuccessful: func(err error) bool {
			return err == nil || retry.ClassOf(err) == retry.Permanent
		},
		IsExcluded: func(err error) bool {
			c := retry.ClassOf(err)
			return err != nil && (c == retry.Shutdown || c == retry.Throttled)
		},
		// gobreaker's lock is held: asking it anything would wait for it for ever.
		OnStateChange: func(_ string, from, to gobreaker.State) {
			m.breaker.Set(float64(to))
			switch {
			case to == gobreaker.StateClosed:
				log.Info("ClickHouse answers again; going on")
				b.mu.Lock()
				close(b.up)
				b.mu.Unlock()
			case from == gobreaker.StateClosed:
				log.Warn("ClickHouse does not answer; waiting for it, Kafka keeps what comes", "failures_in_a_row", breakerInRow)
				b.mu.Lock()
				b.up = make(chan struct{})
				b.mu.Unlock()
				select {
				case b.tripped <- struct{}{}:
				default:
				}
			}
		},
	})
	return b
}

// closed is a channel that is closed while ClickHouse may be asked. It is a new
// one after each outage.
func (b *breaker) closed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.up
}

// wait returns nil when ClickHouse may be asked, or ctx's error. Where that is not
// at once it calls waiting first, and what that returned when the wait is over.
func (b *breaker) wait(ctx context.Context, waiting func() (over func())) error {
	up := b.closed()
	if isClosed(up) {
		return nil
	}
	defer waiting()()
	select {
	case <-up:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// do makes one request when ClickHouse may be asked.
func (b *breaker) do(ctx context.Context, waiting func() (over func()), request func() error) error {
	for {
		if err := b.wait(ctx, waiting); err != nil {
			return err
		}
		if asked, err := b.try(ctx, request); asked {
			return err
		}
	}
}

// try makes one request now. It reports false, and errBreakerOpen, where ClickHouse
// may not be asked.
func (b *breaker) try(ctx context.Context, request func() error) (asked bool, err error) {
	done, err := b.cb.Allow()
	if err != nil {
		return false, errBreakerOpen
	}
	if !isClosed(b.closed()) { // the prober's place
		done(context.Canceled) // says nothing about ClickHouse
		return false, errBreakerOpen
	}
	return true, ask(ctx, done, request)
}

// ask makes a request and tells the breaker, once, what became of it.
func ask(ctx context.Context, done func(error), request func() error) (err error) {
	defer func() {
		said := err
		if ctx.Err() != nil {
			said = context.Canceled // our end, not ClickHouse's
		}
		done(said)
	}()
	return request()
}

// probe asks whether ClickHouse is back while the breaker is open, until ctx
// ends.
func (b *breaker) probe(ctx context.Context, ping func(context.Context) error) {
	var settled time.Time
	wait := probeFirst
	for {
		select {
		case <-b.tripped:
		case <-ctx.Done():
			return
		}
		if time.Since(settled) > probeSettled {
			wait = probeFirst
		}
		for up := b.closed(); !isClosed(up); wait = min(2*wait, probeMost) {
			if !retry.Sleep(ctx, wait/2+rand.N(wait/2)) {
				return
			}
			done, err := b.cb.Allow()
			if err != nil {
				continue
			}
			// Its error leaves the breaker open, which is all there is to say about it.
			_ = ask(ctx, done, func() error {
				bounded, cancel := context.WithTimeout(ctx, probeTimeout)
				defer cancel()
				return ping(bounded)
			})
		}
		settled = time.Now()
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
