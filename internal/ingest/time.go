package ingest

import (
	"context"
	"sync/atomic"
	"time"
)

// timeSteps is into how many parts the time for publishing is divided: requests that
// begin in the same one end together, and the last of them has as much less.
const timeSteps = 128

// timed hands out contexts that end when the time for publishing is over. Requests
// that begin at about the same time share one: of its own, each would cost a timer.
type timed struct {
	time time.Duration
	last atomic.Pointer[timedContext]
}

type timedContext struct {
	context.Context
	cancel context.CancelFunc // never called: it ends by the clock
	until  time.Time          // for whom it is
}

// left returns a context for a request that is published now. It goes by the clock
// only, not by the request: copies of its batch may be waiting for the outcome.
func (t *timed) left() context.Context {
	now := time.Now()
	if c := t.last.Load(); c != nil && now.Before(c.until) {
		return c.Context
	}
	// Several may come here at once. Each of their contexts is right.
	c := &timedContext{until: now.Add(t.time / timeSteps)}
	c.Context, c.cancel = context.WithDeadline(context.Background(), now.Add(t.time))
	t.last.Store(c)
	return c.Context
}
