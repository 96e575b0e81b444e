package ingest

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxLimiters bounds the limiters held. There is one a key, and keys come from a
// file, so it takes ten thousand keys to reach it; then all start afresh, which
// costs at most one burst each.
const maxLimiters = 10_000

// rates holds each key to its own events a second.
type rates struct {
	mu       sync.Mutex
	byKey    map[string]*rate.Limiter
	minBurst int // one whole batch: with less, a large one could never pass
}

func newRates(minBurst int) *rates {
	return &rates{byKey: map[string]*rate.Limiter{}, minBurst: minBurst}
}

// limiter returns the key's limiter, or nil for a key without a rate.
func (r *rates) limiter(g *Grant) *rate.Limiter {
	if g.Rate <= 0 {
		return nil
	}
	limit, burst := rate.Limit(g.Rate), max(g.Burst, r.minBurst)
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.byKey[g.ID]
	if l == nil {
		if len(r.byKey) >= maxLimiters {
			clear(r.byKey)
		}
		l = rate.NewLimiter(limit, burst)
		r.byKey[g.ID] = l
		return l
	}
	// The keys file may have changed.
	if l.Limit() != limit {
		l.SetLimit(limit)
	}
	if l.Burst() != burst {
		l.SetBurst(burst)
	}
	return l
}

// spent returns how long a key has to wait before it may send anything at all;
// zero: it may. It takes nothing, and is asked before a body is read.
func spent(l *rate.Limiter) time.Duration {
	if l == nil {
		return 0
	}
	if missing := 1 - l.Tokens(); missing > 0 {
		return time.Duration(missing / float64(l.Limit()) * float64(time.Second))
	}
	return 0
}

// charge takes n events from the key's allowance, or returns how long it has to
// wait for them.
func charge(l *rate.Limiter, n int) time.Duration {
	if l == nil || n <= 0 {
		return 0
	}
	now := time.Now()
	r := l.ReserveN(now, min(n, l.Burst()))
	d := r.DelayFrom(now)
	if d > 0 {
		r.CancelAt(now)
	}
	return d
}
