package retry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var errBroken = errors.New("broken")

func TestClassOf(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want Class
	}{
		"unknown":           {errBroken, Transient},
		"deadline":          {context.DeadlineExceeded, Transient},
		"cancelled":         {fmt.Errorf("x: %w", context.Canceled), Shutdown},
		"marked":            {fmt.Errorf("x: %w", Mark(errBroken, Permanent)), Permanent},
		"outermost counts":  {Mark(Mark(errBroken, Permanent), Throttled), Throttled},
		"mark beats cancel": {Mark(context.Canceled, Transient), Transient},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, tt.want, ClassOf(tt.err)) })
	}
	assert.NoError(t, Mark(nil, Permanent))
	assert.ErrorIs(t, Mark(errBroken, Throttled), errBroken)
	assert.Equal(t, 3*time.Second, After(fmt.Errorf("x: %w", MarkAfter(errBroken, Throttled, 3*time.Second))))
}

func TestWaitIsFullJitterWithinBounds(t *testing.T) {
	p := Policy{Min: 10 * time.Millisecond, Max: 80 * time.Millisecond}
	for attempt, bound := range []time.Duration{10, 20, 40, 80, 80, 80} {
		low, high := time.Hour, time.Duration(0)
		for range 2000 {
			w := p.Wait(attempt, nil)
			low, high = min(low, w), max(high, w)
		}
		bound *= time.Millisecond
		assert.LessOrEqual(t, high, bound)
		assert.Greater(t, high, bound*9/10, "the whole range is used")
		assert.Less(t, low, bound/10)
	}
	assert.LessOrEqual(t, p.Wait(1<<40, nil), p.Max, "no overflow")
	assert.GreaterOrEqual(t, p.Wait(0, MarkAfter(errBroken, Throttled, time.Minute)), time.Minute)
}

func TestDo(t *testing.T) {
	for name, tt := range map[string]struct {
		policy  Policy
		timeout time.Duration
		errs    []error // of the calls in order; the last one repeats
		calls   int
		class   Class
		atMost  time.Duration
		ok      bool
	}{
		"works at once":     {errs: []error{nil}, calls: 1, ok: true},
		"works the third":   {errs: []error{errBroken, errBroken, nil}, calls: 3, ok: true, atMost: time.Second},
		"permanent":         {errs: []error{Mark(errBroken, Permanent)}, calls: 1, class: Permanent},
		"shutdown":          {errs: []error{Mark(errBroken, Shutdown)}, calls: 1, class: Shutdown},
		"attempts used up":  {policy: Policy{Attempts: 4}, errs: []error{Mark(errBroken, Throttled)}, calls: 4, class: Throttled, atMost: 10 * time.Second},
		"no time to repeat": {timeout: time.Second, errs: []error{MarkAfter(errBroken, Throttled, time.Minute)}, calls: 1, class: Throttled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				if tt.timeout > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.timeout)
					defer cancel()
				}
				start, calls := time.Now(), 0
				err := tt.policy.Do(ctx, func(context.Context) error {
					calls++
					return tt.errs[min(calls, len(tt.errs))-1]
				})
				assert.Equal(t, tt.calls, calls)
				assert.LessOrEqual(t, time.Since(start), tt.atMost)
				if tt.ok {
					require.NoError(t, err)
					return
				}
				require.ErrorIs(t, err, errBroken)
				assert.Equal(t, tt.class, ClassOf(err))
			})
		})
	}
}

func TestDoEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		err := Policy{}.Do(ctx, func(context.Context) error { return errBroken })
		require.ErrorIs(t, err, errBroken)
		require.ErrorIs(t, err, context.Canceled)
		assert.Equal(t, Shutdown, ClassOf(err))
	})
}

func TestParseAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for v, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "-1": 0, "x": 0, "999999999": 24 * time.Hour,
		now.Add(time.Minute).Format(http.TimeFormat): time.Minute,
		now.Add(-time.Hour).Format(http.TimeFormat):  0,
	} {
		assert.Equal(t, want, ParseAfter(http.Header{"Retry-After": {v}}, now), v)
	}
}
