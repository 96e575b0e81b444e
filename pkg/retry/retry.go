// Package retry tells errors apart by what may be done about them, and repeats
// what is worth repeating: with full jitter, never past the caller's deadline,
// and not before the other side said it should be.
package retry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Class is what may be done about an error. An adapter decides it once, where
// the error enters; everybody above asks ClassOf.
type Class uint8

// The classes. Transient is the zero value: of an error nobody knows, waiting is
// the safe mistake.
const (
	Transient Class = iota // goes away by itself: repeat
	Throttled              // the other side has too much in hand: repeat later
	Permanent              // the same again fails the same: do not repeat
	Shutdown               // this process is ending: leave it to the next one
)

// String is the class as a metric label.
func (c Class) String() string {
	switch c {
	case Throttled:
		return "throttled"
	case Permanent:
		return "permanent"
	case Shutdown:
		return "shutdown"
	}
	return "transient"
}

type marked struct {
	error
	class Class
	after time.Duration
}

func (m *marked) Unwrap() error { return m.error }

// RetryAfter is how long the other side asked to be left alone; 0: it did not say.
func (m *marked) RetryAfter() time.Duration { return m.after }

// Mark gives err a class. It returns nil for nil.
func Mark(err error, c Class) error { return MarkAfter(err, c, 0) }

// MarkAfter gives err a class and the time the other side asked to be left alone
// for. It returns nil for nil.
func MarkAfter(err error, c Class, after time.Duration) error {
	if err == nil {
		return nil
	}
	return &marked{error: err, class: c, after: after}
}

// ClassOf is the class of the outermost mark in err's chain. Without one, a
// cancelled context is Shutdown and everything else Transient.
func ClassOf(err error) Class {
	var m *marked
	switch {
	case errors.As(err, &m):
		return m.class
	case errors.Is(err, context.Canceled):
		return Shutdown
	}
	return Transient
}

// After is how long the other side asked to be left alone; 0: it did not say.
func After(err error) time.Duration {
	var a interface{ RetryAfter() time.Duration }
	if errors.As(err, &a) {
		return a.RetryAfter()
	}
	return 0
}

// Policy is how something is repeated. Safe for concurrent use.
type Policy struct {
	Min      time.Duration // upper bound of the first wait; default 100 ms
	Max      time.Duration // upper bound of every wait; default 10 s
	Attempts int           // calls at most; 0: until the context ends
}

// Wait is the wait after the attempt-th failure, counted from 0: full jitter, a
// random share of min(Max, Min·2^attempt). Of the ways to spread clients that
// failed together it gets the work done soonest for the fewest calls
// (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
// What the other side asked for is added, so that jitter still spreads those who
// were told the same time.
func (p Policy) Wait(attempt int, err error) time.Duration {
	lowest, highest := p.Min, p.Max
	if lowest <= 0 {
		lowest = 100 * time.Millisecond
	}
	if highest <= 0 {
		highest = 10 * time.Second
	}
	bound := highest
	if attempt < 62 && lowest < highest>>attempt {
		bound = lowest << attempt
	}
	return After(err) + rand.N(bound+1)
}

// Do calls fn until it returns nil, an error that is Permanent or Shutdown, or
// the attempts are used up. It never sleeps past ctx's deadline: when the next
// attempt could not start before it, Do returns at once, with fn's last error.
// The error it returns keeps fn's class.
func (p Policy) Do(ctx context.Context, fn func(context.Context) error) error {
	for attempt := 0; ; attempt++ {
		err := fn(ctx)
		if err == nil {
			return nil
		}
		if c := ClassOf(err); c == Permanent || c == Shutdown {
			return err
		}
		if p.Attempts > 0 && attempt+1 >= p.Attempts {
			return fmt.Errorf("after %d attempts: %w", attempt+1, err)
		}
		wait := p.Wait(attempt, err)
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= wait {
			return fmt.Errorf("no time for another attempt after %d: %w", attempt+1, err)
		}
		if !Sleep(ctx, wait) {
			return Mark(fmt.Errorf("%w (after %d attempts: %w)", context.Cause(ctx), attempt+1, err), Shutdown)
		}
	}
}

// Sleep waits for d and reports whether ctx is still alive.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ctx.Err() == nil
	}
}

// ParseAfter reads a Retry-After header (RFC 9110, section 10.2.3): seconds or a
// date. 0 where there is none, it cannot be read, or lies in the past. More than
// a day counts as a day.
func ParseAfter(h http.Header, now time.Time) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	const most = 24 * time.Hour
	if s, err := strconv.ParseUint(v, 10, 32); err == nil {
		return min(time.Duration(s)*time.Second, most)
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(t.Sub(now), 0), most)
	}
	return 0
}
