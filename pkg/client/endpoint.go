package client

import (
	"time"

	"sluice/pkg/retry"
)

// endpoint is a collector. It belongs to the sending goroutine.
type endpoint struct {
	url string // of the requests
	bit uint   // in batch.tried

	inflight  int
	failures  int       // in a row; attempts that ran at the same time count as one
	failedAt  time.Time // the last that counted
	notBefore time.Time // leave it alone until then, unless it answers before
	asked     time.Time // it asked to be left alone until then
}

// free is when it may be used again.
func (e *endpoint) free() time.Time { return later(e.notBefore, e.asked) }

// usable reports whether a request may go there now. One that failed is tried with
// one request at a time, until it answers.
func (e *endpoint) usable(now time.Time) bool {
	return !now.Before(e.free()) && (e.failures == 0 || e.inflight == 0)
}

// working reports whether nothing speaks against it.
func (e *endpoint) working(now time.Time) bool {
	return e.failures == 0 && !now.Before(e.free())
}

// answered notes that the collector works. What it asked for in another answer
// still counts.
func (e *endpoint) answered() {
	e.failures, e.notBefore = 0, time.Time{}
}

// failed notes a failure of an attempt that began at started, and when to come back.
func (e *endpoint) failed(started, now time.Time, wait retry.Policy, err error) {
	if after := retry.After(err); after > 0 {
		e.asked = later(e.asked, now.Add(after))
	}
	if e.failures > 0 && started.Before(e.failedAt) {
		return // it ran beside one that failed before: the same outage
	}
	e.notBefore = now.Add(wait.Wait(e.failures, err))
	e.failures++
	e.failedAt = now
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// pick is the endpoint for the batch now: the first usable one that has not failed
// with it since it went round all of them; else the first usable one; nil: wait.
func pick(endpoints []*endpoint, b *batch, now time.Time) *endpoint {
	if now.Before(b.notBefore) {
		return nil
	}
	var again *endpoint
	for _, e := range endpoints {
		switch {
		case !e.usable(now):
		case b.tried&e.bit == 0:
			return e
		case again == nil:
			again = e
		}
	}
	if again != nil {
		b.tried = 0
	}
	return again
}

// slowly is how an endpoint is come back to that answers as if the key or the URL
// were wrong: somebody may put it right, but hardly in the next seconds. slowest is
// the least that it is left alone for.
func slowly() retry.Policy { return retry.Policy{Min: 2 * time.Minute, Max: 10 * time.Minute} }

const slowest = 30 * time.Second

// failed notes at endpoint and batch that an attempt came to nothing.
func (l *Logger) failed(b *batch, e *endpoint, started, now time.Time, wrong bool, err error) {
	policy := l.policy
	if wrong {
		policy = slowly()
	}
	switch {
	case !wrong:
		e.failed(started, now, policy, err)
	case e.failures == 0 && b.failures >= len(l.endpoints):
		// It failed before, and others have not since: something takes offence at this
		// batch (a firewall at its text, say), not at the key or the URL.
		e.asked = later(e.asked, now.Add(retry.After(err)))
	default:
		e.failed(started, now, policy, retry.MarkAfter(err, retry.Throttled, max(slowest, retry.After(err))))
	}
	b.tried |= e.bit
	b.failures++
	// A batch that fails where others succeed would be tried without a pause: the
	// endpoints' own waits end with each success.
	if rounds := b.failures / len(l.endpoints); rounds > e.failures {
		b.notBefore = now.Add(policy.Wait(rounds-1, nil))
	}
}
