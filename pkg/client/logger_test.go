package client

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/schema"
)

// What a collector gets, over a real connection.
func TestOnTheWire(t *testing.T) {
	w := newWire(t, nil)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		resp, err := w.RoundTrip(r)
		if assert.NoError(t, err) {
			rw.WriteHeader(resp.StatusCode)
			_, err = io.Copy(rw, resp.Body)
			assert.NoError(t, err)
		}
	}))
	defer server.Close()
	l := start(t, w, func(o *Options) {
		o.Endpoints, o.HTTP, o.GzipAbove = []string{server.URL + "/prefix/"}, nil, 2000
	})
	at := time.UnixMilli(1_790_000_000_123)
	before := time.Now()
	l.Exposure(Exposure{
		Experiment: "checkout", Variant: "blue \"1\"\n", UnitID: "ü", UnitType: "device", Time: at, Rule: "r", Reason: "why", ID: "mine",
		Attributes: map[string]any{"s": "x", "b": true, "i": -3, "u": uint8(7), "f": 0.1, "g": float32(0.1), "nan": math.NaN(), "d": time.Second, "nil": nil},
	})
	l.Event(Event{Name: "paid", UnitID: "u", Value: new(12.5), Time: at})
	l.Event(Event{Name: "seen", UnitID: "u", Value: new(math.Inf(1))})
	require.NoError(t, l.Flush(t.Context()))
	for range 50 {
		l.Exposure(Exposure{Experiment: "big", Variant: "v", UnitID: strings.Repeat("x", 100)})
	}
	require.NoError(t, l.Close(t.Context()))

	reqs := w.seen()
	require.Len(t, reqs, 2)
	r := reqs[0]
	assert.Equal(t, "/prefix/v1/exposures", r.path)
	assert.Equal(t, "Bearer slk_test", r.header.Get("Authorization"))
	assert.Equal(t, "application/json", r.header.Get("Content-Type"))
	assert.Empty(t, r.header.Get("Content-Encoding"))
	assert.Equal(t, "sluice-go/"+Version, r.sdk)
	assert.InDelta(t, float64(before.UnixMilli()), float64(r.sentAt), 60_000)
	require.Len(t, r.decoded, 3)
	e := r.decoded[0]
	assert.Equal(t, []schema.Attribute{{Key: "b", Value: "true"}, {Key: "d", Value: "1s"}, {Key: "f", Value: "0.1"}, {Key: "g", Value: "0.1"},
		{Key: "i", Value: "-3"}, {Key: "nan", Value: "NaN"}, {Key: "s", Value: "x"}, {Key: "u", Value: "7"}}, e.Attributes)
	assert.Equal(t, []string{"checkout", "blue \"1\"\n", "ü", "device", "r", "why", "mine"},
		[]string{e.Experiment, e.Variant, e.UnitID, e.UnitType, e.Rule, e.Reason, e.ClientID})
	assert.Equal(t, at.UnixMicro(), e.Time)
	e = r.decoded[1]
	assert.Equal(t, schema.KindEvent, e.Kind)
	assert.Equal(t, "paid", e.Name)
	assert.Equal(t, 12.5, e.Value)
	e = r.decoded[2]
	assert.False(t, e.HasValue)
	assert.GreaterOrEqual(t, e.Time, before.Truncate(time.Millisecond).UnixMicro())
	assert.Regexp(t, `^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`, e.ClientID)

	assert.Equal(t, "gzip", reqs[1].header.Get("Content-Encoding"))
	assert.Less(t, reqs[1].size, 3000)
	assert.NotEqual(t, reqs[0].key, reqs[1].key)
	s := l.Stats()
	assert.Equal(t, []uint64{53, 53, 2, 0}, []uint64{s.Logged, s.Acknowledged, s.Attempts, s.Dropped()})
	assert.Zero(t, s.Waiting)
}

// A batch goes when it has enough events, enough bytes, or is old enough.
func TestBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, nil)
		l := start(t, w, func(o *Options) { o.BatchEvents, o.BatchBytes = 10, 3000 })
		begun := time.Now()
		expose(l, 0, 25)
		synctest.Wait()
		assert.Len(t, w.seen(), 2, "full ones")
		assert.Equal(t, 5, l.Stats().Waiting)
		pass(time.Second)
		synctest.Wait()
		reqs := w.seen()
		require.Len(t, reqs, 3, "and the rest after FlushInterval")
		assert.Equal(t, time.Second, reqs[2].at.Sub(begun))
		for i := range 4 {
			l.Exposure(Exposure{Experiment: "e", Variant: "v", UnitID: fmt.Sprintf("l%d", i), Rule: strings.Repeat("r", 1200)})
		}
		require.NoError(t, l.Close(t.Context()))
		reqs = w.seen()
		require.Len(t, reqs, 5)
		assert.Len(t, reqs[3].decoded, 2)
		w.once(29)
	})
}

// The statuses and what they mean for the batch.
func TestAnswers(t *testing.T) {
	const ok = `{"batch_id":"b","accepted":2,"rejected":[{"index":1,"code":"missing_field"}]}`
	for name, tt := range map[string]struct {
		reply    reply
		attempts uint64 // within two hours
		want     Stats
	}{
		"202":                            {reply{status: 202, body: ok}, 1, Stats{Acknowledged: 2, Rejected: 1}},
		"202 without a body":             {reply{status: 202, body: "{"}, 1, Stats{Acknowledged: 3}},
		"200":                            {reply{status: 200, body: ok}, 1, Stats{Acknowledged: 2, Rejected: 1}},
		"200 of a portal":                {reply{status: 200, body: "<html>"}, 0, Stats{Waiting: 3}},
		"204":                            {reply{status: 204}, 0, Stats{Waiting: 3}},
		"301":                            {reply{status: 301, body: "."}, 0, Stats{Waiting: 3}},
		"400":                            {reply{status: 400}, 1, Stats{Refused: 3}},
		"400 of a body that broke off":   {reply{status: 400, body: `{"code":"incomplete_body"}`}, 0, Stats{Waiting: 3}},
		"400 of a body that was damaged": {reply{status: 400, body: `{"code":"bad_encoding"}`}, 0, Stats{Waiting: 3}},
		"401":                            {reply{status: 401}, 0, Stats{Waiting: 3}},
		"403":                            {reply{status: 403}, 0, Stats{Waiting: 3}},
		"404":                            {reply{status: 404}, 0, Stats{Waiting: 3}},
		"405":                            {reply{status: 405}, 0, Stats{Waiting: 3}},
		"408":                            {reply{status: 408}, 0, Stats{Waiting: 3}},
		"413":                            {reply{status: 413}, 5, Stats{TooLarge: 3, Halved: 2}},
		"415":                            {reply{status: 415}, 1, Stats{Refused: 3}},
		"422 all rejected":               {reply{status: 422, body: `{"code":"all_rejected"}`}, 1, Stats{Rejected: 3}},
		"422 key used before":            {reply{status: 422, body: `{"code":"idempotency_key_reused"}`}, 1, Stats{Refused: 3}},
		"429":                            {reply{status: 429}, 0, Stats{Waiting: 3}},
		"500":                            {reply{status: 500}, 0, Stats{Waiting: 3}},
		"503":                            {reply{status: 503}, 0, Stats{Waiting: 3}},
		"cut off":                        {reply{err: errCut}, 0, Stats{Waiting: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(t, func(r request) reply {
					if r.decoded[0].Name == droppedName {
						return reply{}
					}
					return tt.reply
				})
				l := start(t, w)
				expose(l, 0, 3)
				pass(30 * time.Second)
				got := l.Stats()
				failed := tt.want.Waiting > 0
				if failed {
					assert.Positive(t, got.Failures)
				} else {
					assert.Equal(t, tt.attempts, got.Attempts-uint64(len(w.reports())))
				}
				assert.Equal(t, failed, got.Waiting > 0)
				got.Attempts, got.Failures, got.Logged, got.Waiting = 0, 0, 0, tt.want.Waiting
				assert.Equal(t, tt.want, got)

				// It is put right: what was kept arrives.
				w.now(reply{})
				pass(12 * time.Minute)
				require.NoError(t, l.Close(t.Context()))
				if failed {
					w.once(3)
				}
			})
		})
	}
}

// A redirect is not followed: the POST would become a GET, and its 200 mean nothing.
func TestRedirect(t *testing.T) {
	var got []string
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		got = append(got, r.Method)
		mu.Unlock()
		http.Redirect(rw, r, "/", http.StatusMovedPermanently)
	}))
	defer server.Close()
	failed := make(chan error, 1)
	l, err := New(Options{Endpoints: []string{server.URL}, OnError: func(err error) { failed <- err }})
	require.NoError(t, err)
	expose(l, 0, 1)
	assert.ErrorContains(t, <-failed, "301")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.Error(t, l.Close(ended))
	assert.Equal(t, []string{"POST"}, got)
	assert.Equal(t, uint64(1), l.Stats().Unsent)
}

// The same key and events at each attempt (the wire checks the events), sent_at
// anew, and waits that grow, within their bounds.
func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const failures = 12
		w := newWire(t, func(r request) reply {
			switch {
			case r.n >= failures:
				return reply{}
			case r.n%3 == 0:
				return reply{err: errCut, stored: true}
			}
			return reply{status: 503}
		})
		l := start(t, w)
		expose(l, 0, 5)
		require.NoError(t, l.Close(t.Context()))
		reqs := w.seen()
		require.Len(t, reqs, failures+1)
		for i, r := range reqs[1:] {
			assert.Equal(t, reqs[0].key, r.key)
			assert.Equal(t, r.at.UnixMilli(), r.sentAt)
			assert.LessOrEqual(t, r.at.Sub(reqs[i].at), min(30*time.Second, 500*time.Millisecond<<i))
		}
		w.once(5)
		s := l.Stats()
		assert.Equal(t, uint64(5), s.Acknowledged)
		assert.Equal(t, uint64(failures), s.Failures)
	})
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, func(r request) reply {
			if r.n == 0 {
				return reply{status: 429, after: "90"}
			}
			return reply{}
		})
		l := start(t, w)
		expose(l, 0, 1)
		require.NoError(t, l.Flush(t.Context()))
		reqs := w.seen()
		require.Len(t, reqs, 2)
		assert.GreaterOrEqual(t, reqs[1].at.Sub(reqs[0].at), 90*time.Second)
		assert.LessOrEqual(t, reqs[1].at.Sub(reqs[0].at), 91*time.Second)
		require.NoError(t, l.Close(t.Context()))
	})
}

// What an endpoint asked for holds, also when another request to it succeeds
// meanwhile.
func TestRetryAfterBesideASuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := make(chan struct{})
		w := newWire(t, func(r request) reply {
			if r.decoded[0].UnitID == "u0" && r.n < 2 {
				return reply{status: 503, after: "60"}
			}
			if r.n < 2 {
				return reply{hang: late}
			}
			return reply{}
		})
		l := start(t, w, func(o *Options) { o.BatchEvents = 1 })
		begun := time.Now()
		expose(l, 0, 2)
		synctest.Wait()
		close(late)
		synctest.Wait()
		assert.Equal(t, uint64(1), l.Stats().Acknowledged)
		require.NoError(t, l.Close(t.Context()))
		reqs := w.seen()
		require.Len(t, reqs, 3)
		assert.GreaterOrEqual(t, reqs[2].at.Sub(begun), time.Minute)
		w.once(2)
	})
}

// The next attempt goes to the next endpoint at once, and the first one is used
// again when it answers.
func TestFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		recovers := time.Now().Add(10 * time.Second)
		w := newWire(t, func(r request) reply {
			if r.host == "a.test" && time.Now().Before(recovers) {
				return reply{status: 503, after: "2"}
			}
			return reply{}
		})
		l := start(t, w, func(o *Options) { o.Endpoints = []string{"http://a.test", "http://b.test"} })
		for i := range 120 {
			expose(l, i, i+1)
			require.NoError(t, l.Flush(t.Context()))
			pass(time.Second)
		}
		require.NoError(t, l.Close(t.Context()))
		w.once(120)
		reqs := w.seen()
		assert.Equal(t, "a.test", reqs[0].host)
		assert.Equal(t, "b.test", reqs[1].host)
		assert.Equal(t, reqs[0].at, reqs[1].at, "at once")
		last := time.Time{}
		for _, r := range reqs {
			if r.host == "a.test" && r.at.Before(recovers) {
				assert.GreaterOrEqual(t, r.at.Sub(last), 2*time.Second, "never sooner than it asked")
				last = r.at
			}
		}
		assert.Equal(t, "a.test", reqs[len(reqs)-1].host)
	})
}

// One endpoint hangs: it is tried with one request at a time while the others go on.
func TestHangingEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, func(r request) reply {
			if r.host == "a.test" {
				return reply{hang: make(chan struct{})}
			}
			return reply{}
		})
		l := start(t, w, func(o *Options) { o.Endpoints = []string{"http://a.test", "http://b.test"} })
		for i := range 60 {
			expose(l, i*100, i*100+100)
			pass(time.Second)
		}
		require.NoError(t, l.Close(t.Context()))
		w.once(6000)
		hung := 0
		for _, r := range w.seen() {
			if r.host == "a.test" {
				hung++
			}
		}
		assert.LessOrEqual(t, hung, 4+6, "four at first, then one for each time-out")
	})
}

// A batch that fails where others succeed does not hold them up, and is not sent
// again without a pause.
func TestBatchThatAlwaysFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, func(r request) reply {
			if r.decoded[0].UnitID == "u0" {
				return reply{status: 500}
			}
			return reply{}
		})
		l := start(t, w, func(o *Options) { o.BatchEvents = 1; o.Endpoints = []string{"http://a.test", "http://b.test"} })
		for i := range 600 {
			expose(l, i, i+1)
			pass(100 * time.Millisecond)
		}
		synctest.Wait()
		poison := 0
		for _, r := range w.seen() {
			if r.decoded[0].UnitID == "u0" {
				poison++
			}
		}
		assert.LessOrEqual(t, poison, 60)
		assert.Greater(t, poison, 4)
		w.once(599)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		assert.ErrorContains(t, l.Close(ctx), "1 events")
	})
}

// A batch that is too large is halved; the halves' keys are a function of its own.
func TestHalves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, func(r request) reply {
			if len(r.decoded) > 3 || r.decoded[0].UnitID == "u7" {
				return reply{status: 413}
			}
			return reply{}
		})
		l := start(t, w, func(o *Options) { o.BatchEvents = 10 })
		expose(l, 0, 10)
		require.NoError(t, l.Flush(t.Context()))
		reqs := w.seen()
		keys := map[string]bool{}
		for _, r := range reqs {
			keys[r.key] = true
		}
		assert.Len(t, keys, len(reqs), "each its own")
		assert.True(t, keys[halfKey(reqs[0].key, 0)] && keys[halfKey(reqs[0].key, 1)])
		w.once(9)
		assert.Equal(t, uint64(1), l.Stats().TooLarge)
		require.NoError(t, l.Close(t.Context()))
		assert.Equal(t, map[string]float64{"e/v too_large": 1}, w.reports())
	})
}

// Full is full, by events and by bytes: the newest is dropped, counted and reported.
func TestQueueFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, nil)
		w.now(reply{err: errCut})
		var told []error // by the goroutine that sends; read after it has ended
		l := start(t, w, func(o *Options) {
			o.QueueEvents, o.QueueBytes = 1000, 200_000
			o.OnError = func(err error) { told = append(told, err) }
		})
		expose(l, 0, 1200)
		l.Event(Event{Name: "paid", UnitID: "x"})
		l.Exposure(Exposure{Experiment: "e", Variant: "w", UnitID: "x"})
		s := l.Stats()
		assert.Equal(t, []uint64{1202, 202}, []uint64{s.Logged, s.QueueFull})
		assert.Equal(t, 1000, s.Waiting)
		pass(time.Minute)
		w.now(reply{})
		require.NoError(t, l.Flush(t.Context()))
		l.Exposure(Exposure{Experiment: "e", Variant: "v", UnitID: "u1000", Attributes: long(50_000, 3)})
		l.Exposure(Exposure{Experiment: "e", Variant: "v", UnitID: "u1001", Attributes: long(60_000, 1)})
		l.Exposure(Exposure{Experiment: "e", Variant: "v", UnitID: "u1001", Attributes: long(60_000, 16)})
		assert.Equal(t, uint64(203), l.Stats().QueueFull)
		assert.Equal(t, uint64(1), l.Stats().TooLarge)
		require.NoError(t, l.Close(t.Context()))
		assert.True(t, slices.ContainsFunc(told, func(err error) bool { return strings.Contains(err.Error(), "queue is full") }))
		assert.Equal(t, map[string]float64{"e/v queue_full": 201, "e/w queue_full": 1, "paid/ queue_full": 1, "e/v too_large": 1}, w.reports())
	})
}

// long are n attributes of size bytes.
func long(size, n int) map[string]any {
	out := map[string]any{}
	for i := range n {
		out[fmt.Sprint(i)] = strings.Repeat("x", size)
	}
	return out
}

// Reports whose batch is dropped are put back; names are bounded.
func TestReportsArePutBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, nil)
		w.now(reply{err: errCut})
		l := start(t, w, func(o *Options) { o.QueueEvents = 10 })
		expose(l, 0, 10)
		for i := range 150 {
			l.Exposure(Exposure{Experiment: fmt.Sprintf("exp-%d", i), Variant: "v", UnitID: "u"})
		}
		w.now(reply{status: 400})
		pass(5 * time.Second)
		assert.Equal(t, uint64(10), l.Stats().Refused)
		expose(l, 0, 5)
		pass(5 * time.Second)
		assert.Equal(t, uint64(15), l.Stats().Refused, "with the reports in the same batch, which are no events")
		w.now(reply{})
		expose(l, 0, 1)
		require.NoError(t, l.Close(t.Context()))
		got := w.reports()
		assert.Equal(t, 1.0, got["exp-7/v queue_full"])
		sum := 0.0
		for _, n := range got {
			sum += n
		}
		assert.Equal(t, 165.0, sum)
		assert.Positive(t, got["*/* queue_full"])
		assert.LessOrEqual(t, len(got), mostDropKeys+2)
		w.once(1)
	})
}

func TestExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := time.Now().Add(25 * time.Hour)
		w := newWire(t, func(request) reply {
			if time.Now().Before(up) {
				return reply{status: 503}
			}
			return reply{}
		})
		l := start(t, w, func(o *Options) { o.MaxAge = 24 * time.Hour })
		expose(l, 0, 3)
		pass(2 * time.Hour)
		expose(l, 3, 5)
		pass(24 * time.Hour)
		require.NoError(t, l.Close(t.Context()))
		assert.Equal(t, map[string]int{"u3": 1, "u4": 1}, w.units())
		assert.Equal(t, uint64(3), l.Stats().Expired)
		assert.Equal(t, map[string]float64{"e/v expired": 3}, w.reports())
	})
}

func TestFlushEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, func(request) reply { return reply{status: 503} })
		l := start(t, w)
		require.NoError(t, l.Flush(t.Context()), "nothing to do")
		expose(l, 0, 150)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := l.Flush(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorContains(t, err, "2 batches")
		assert.Equal(t, 150, l.Stats().Waiting, "nothing is given up")
		assert.ErrorContains(t, l.Close(ctx), "150 events")
		assert.ErrorContains(t, l.Close(t.Context()), "150 events", "again: the same")
		expose(l, 0, 1)
		l.Event(Event{Name: "n", UnitID: "u"})
		require.NoError(t, l.Flush(t.Context()))
		s := l.Stats()
		assert.Equal(t, []uint64{150, 2}, []uint64{s.Unsent, s.AfterClose})
	})
}

// Close breaks off what hangs.
func TestCloseWhileARequestHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, func(request) reply { return reply{hang: make(chan struct{})} })
		l := start(t, w, func(o *Options) { o.RequestTimeout = time.Hour })
		expose(l, 0, 150)
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.Error(t, l.Close(ctx))
		assert.Equal(t, time.Second, time.Since(begun))
	})
}

func TestInvalid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		w := newWire(t, nil)
		l := start(t, w, func(o *Options) { o.OnError = func(err error) { told = append(told, err.Error()) } })
		l.Exposure(Exposure{Variant: "v", UnitID: "u"})
		l.Exposure(Exposure{Experiment: "e", UnitID: "u"})
		l.Exposure(Exposure{Experiment: "e", Variant: "v"})
		l.Event(Event{UnitID: "u"})
		l.Event(Event{Name: "n"})
		l.Event(Event{Name: droppedName, UnitID: "u"})
		synctest.Wait()
		require.NoError(t, l.Close(t.Context()))
		s := l.Stats()
		assert.Equal(t, []uint64{6, 0, 0}, []uint64{s.Invalid, s.Logged, s.Dropped()})
		assert.Len(t, told, 6)
		assert.Empty(t, w.seen())
	})
}

func TestOptions(t *testing.T) {
	good := []string{"http://a.test"}
	for want, o := range map[string]Options{
		"Endpoints has 0":  {},
		"does not begin":   {Endpoints: []string{"a.test"}},
		"has no host":      {Endpoints: []string{"http://"}},
		"only scheme":      {Endpoints: []string{"http://a.test/?x=1"}},
		"xxxxx@":           {Endpoints: []string{"http://u:secret@a.test"}},
		"Key":              {Endpoints: good, Key: "a b"},
		"BatchEvents":      {Endpoints: good, BatchEvents: 5001},
		"QueueEvents":      {Endpoints: good, QueueEvents: -1},
		"FlushInterval":    {Endpoints: good, FlushInterval: -1},
		"MaxAge":           {Endpoints: good, MaxAge: 29 * 24 * time.Hour},
		"DirMaxBytes":      {Endpoints: good, DirMaxBytes: -1},
		"Endpoints has 17": {Endpoints: slices.Repeat(good, 17)},
	} {
		_, err := New(o)
		require.ErrorContains(t, err, want)
		assert.NotContains(t, err.Error(), "secret")
	}
}

// Many goroutines log, flush and look at once.
func TestConcurrentUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, func(r request) reply {
			if r.n%4 == 1 {
				return reply{err: errCut, stored: r.n%8 == 1}
			}
			return reply{}
		})
		l := start(t, w, func(o *Options) { o.Endpoints = append(o.Endpoints, "http://b.test") })
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 500 {
					expose(l, g*500+i, g*500+i+1)
					if i%100 == 0 {
						assert.NoError(t, l.Flush(t.Context()))
						_ = l.Stats()
					}
				}
			})
		}
		wg.Wait()
		require.NoError(t, l.Close(t.Context()))
		w.once(4000)
		assert.Equal(t, uint64(4000), l.Stats().Acknowledged)
	})
}
