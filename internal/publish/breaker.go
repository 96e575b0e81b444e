package publish

import (
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"

	"sluice/pkg/retry"
)

const (
	// A broker is given up when of its requests in the last window, which were so
	// many at least, that share failed; or so many in a row: few lanes and slow
	// answers make few requests.
	breakerWindow   = 10 * time.Second
	breakerRequests = 10
	breakerShare    = 0.5
	breakerInRow    = 3

	// maxTargets bounds the label: broker ids come from the network.
	maxTargets = 256
	others     = -1
)

// breakers are the circuit breakers, one a broker that leads a partition.
type breakers struct {
	openFor time.Duration
	log     *slog.Logger
	mu      sync.RWMutex
	byID    map[int]*breaker
	state   *prometheus.Desc
}

func newBreakers(o Options) *breakers {
	return &breakers{openFor: o.OpenFor, log: o.Log, byID: map[int]*breaker{},
		state: prometheus.NewDesc("sluice_breaker_state",
			"Circuit breaker of a broker, by its id: 0 closed, 1 half-open, 2 open.", []string{"target"}, nil)}
}

// get returns a broker's breaker, nil where it was never asked for.
func (s *breakers) get(leader int) *breaker {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byID[leader]
}

// of returns a broker's breaker.
func (s *breakers) of(leader int) *breaker {
	if b := s.get(leader); b != nil {
		return b
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.byID[leader]; b != nil {
		return b
	}
	key := leader
	if len(s.byID) >= maxTargets {
		key = others
		if b := s.byID[key]; b != nil {
			return b
		}
	}
	b := &breaker{target: strconv.Itoa(key)}
	if key == others {
		b.target = "other"
	}
	b.cb = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:         b.target,
		MaxRequests:  1,
		Interval:     breakerWindow,
		BucketPeriod: breakerWindow / 10,
		Timeout:      s.openFor,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			return c.ConsecutiveFailures >= breakerInRow ||
				(c.Requests >= breakerRequests && float64(c.TotalFailures) >= breakerShare*float64(c.Requests))
		},
		IsExcluded: excluded,
		// The breaker's lock is held: State here would wait for it for ever.
		OnStateChange: func(_ string, from, to gobreaker.State) {
			s.log.Warn("circuit breaker", "broker", b.target, "from", from.String(), "to", to.String())
		},
	})
	s.byID[key] = b
	return b
}

// excluded is what says nothing about the broker: our own end, a request that was
// not made, records it refused for what they are, a partition that has moved.
func excluded(err error) bool {
	var moved interface {
		error
		Moved()
	}
	return err != nil && (isRefusal(err) || errors.As(err, &moved) || errors.Is(err, errUnused) || retry.ClassOf(err) == retry.Shutdown)
}

// Describe implements prometheus.Collector.
func (s *breakers) Describe(ch chan<- *prometheus.Desc) { ch <- s.state }

// Collect implements prometheus.Collector. The states are asked for, not kept:
// an open breaker becomes half-open by the clock.
func (s *breakers) Collect(ch chan<- prometheus.Metric) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, b := range s.byID {
		ch <- prometheus.MustNewConstMetric(s.state, prometheus.GaugeValue, float64(b.cb.State()), b.target)
	}
}

type breaker struct {
	target string
	cb     *gobreaker.TwoStepCircuitBreaker[struct{}]
}

// allow returns how to report what became of the request, exactly once, or an
// error where none is allowed.
func (b *breaker) allow() (func(error), error) { return b.cb.Allow() }

// open reports whether the broker is left alone.
func (b *breaker) open() bool { return b.cb.State() == gobreaker.StateOpen }
