package client

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A host's transport that reports a cancellation of its own fails like any other: it
// is not asked again without a pause.
func TestCanceledBySomebodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, func(r request) reply {
			if r.n < 1000 && r.at.Before(time.UnixMilli(946684800000).Add(time.Minute)) {
				return reply{err: fmt.Errorf("fetch a token: %w", context.Canceled)}
			}
			return reply{}
		})
		l := start(t, w)
		expose(l, 0, 3)
		pass(30 * time.Second)
		assert.Less(t, len(w.seen()), 60)
		assert.Positive(t, l.Stats().Failures)
		pass(2 * time.Minute)
		require.NoError(t, l.Close(t.Context()))
		w.once(3)
	})
}

// A batch whose text a firewall takes offence at is tried every few minutes, and
// does not make the logger leave the collector alone for the others.
func TestBatchThatOffends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, func(r request) reply {
			if r.decoded[0].UnitID == "u0" {
				return reply{status: 403}
			}
			return reply{}
		})
		l := start(t, w, func(o *Options) { o.BatchEvents = 1 })
		slow := 0
		for i := range 3600 {
			expose(l, i, i+1)
			pass(time.Second)
			if l.Stats().Waiting > 1 {
				slow++
			}
		}
		poison := 0
		for _, r := range w.seen() {
			if r.decoded[0].UnitID == "u0" {
				poison++
			}
		}
		assert.Greater(t, poison, 3)
		assert.Less(t, poison, 60)
		assert.Less(t, slow, 450, "seconds that others waited: for its first two failures, no more")
		w.once(3599)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		require.Error(t, l.Close(ended))
	})
}

// What Close itself has to drop is reported, too.
func TestCloseReportsItsDrops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, func(r request) reply {
			if r.n == 0 {
				return reply{status: 400}
			}
			return reply{}
		})
		l := start(t, w)
		expose(l, 0, 3)
		require.NoError(t, l.Close(t.Context()))
		assert.Equal(t, map[string]float64{"e/v refused": 3}, w.reports())
	})
}

// A date in Retry-After is of the server's clock, which may not be ours.
func TestRetryAfterByTheServersClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, nil)
		n := 0
		base := w.client()
		base.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			resp, err := w.RoundTrip(r)
			if n++; n == 1 && err == nil {
				theirs := time.Now().Add(3 * time.Hour)
				resp.StatusCode = http.StatusServiceUnavailable
				resp.Header.Set("Date", theirs.UTC().Format(http.TimeFormat))
				resp.Header.Set("Retry-After", theirs.Add(20*time.Second).UTC().Format(http.TimeFormat))
			}
			return resp, err
		})
		l := start(t, w, func(o *Options) { o.HTTP = base })
		expose(l, 0, 1)
		begun := time.Now()
		require.NoError(t, l.Flush(t.Context()))
		assert.GreaterOrEqual(t, time.Since(begun), 20*time.Second)
		assert.Less(t, time.Since(begun), time.Minute)
		require.NoError(t, l.Close(t.Context()))
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// The answer to a large batch whose every event was rejected is read to its end.
func TestLongAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := `{"rejected":[` + strings.Repeat(`{"index":1,"code":"missing_field","message":"`+strings.Repeat("x", 300)+`"},`, 4999) +
			`{"index":1}],"code":"all_rejected"}`
		w := newWire(t, func(request) reply { return reply{status: 422, body: body} })
		l := start(t, w, func(o *Options) { o.BatchEvents = 5000 })
		expose(l, 0, 5000)
		require.NoError(t, l.Flush(t.Context()))
		assert.Equal(t, []uint64{5000, 0}, []uint64{l.Stats().Rejected, l.Stats().Refused})
		require.NoError(t, l.Close(t.Context()))
	})
}
