package ingest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/internal/protocol/native"
	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

func TestAccept(t *testing.T) {
	e := start(t)
	body := exposures(100, "a")
	trace := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for name, tt := range map[string]struct {
		body    []byte
		headers []string
	}{
		"plain":       {body, nil},
		"gzip":        {gzipOf(body), []string{"Content-Encoding", "gzip"}},
		"x-gzip":      {gzipOf(body), []string{"Content-Encoding", "X-GZIP"}},
		"zstd":        {zstdOf(body), []string{"Content-Encoding", "zstd"}},
		"zstd-stream": {zstdStreamOf(body), []string{"Content-Encoding", "zstd"}},
		"br":          {brotliOf(body), []string{"Content-Encoding", "br"}},
		"zlib":        {zlibOf(body), []string{"Content-Encoding", "deflate"}},
		"deflate":     {deflateOf(body), []string{"Content-Encoding", "deflate"}},
		"identity":    {body, []string{"Content-Encoding", "identity"}},
	} {
		t.Run(name, func(t *testing.T) {
			a := e.post("/v1/exposures", tt.body, append(tt.headers, "Idempotency-Key", name, "Traceparent", trace, "Content-Type", "application/json")...)
			require.Equal(t, 202, a.status, "%s", a.body)
			got := a.accepted(t)
			assert.Equal(t, 100, got.Accepted)
			assert.Equal(t, "kafka", got.Durable)
			assert.False(t, got.Duplicate)
			assert.Equal(t, batch.ForKey("shop", name), got.BatchID)
			assert.Equal(t, []string{"application/json"}, a.header["Content-Type"])

			records := e.pub.records()
			require.Len(t, records, 1)
			r := records[0]
			assert.Equal(t, "shop", r.Project)
			assert.Equal(t, e.ledger.id, r.Collector)
			assert.Equal(t, uint64(7), r.Epoch)
			assert.Equal(t, trace, r.Traceparent)
			assert.Equal(t, batch.Direct, r.Path)
			assert.Equal(t, 100, r.Events)
			b := batches(t, records)[0]
			require.Len(t, b.Events, 100)
			assert.Equal(t, "native", b.Source)
			assert.Equal(t, "test/1.0", b.SDK)
			assert.Equal(t, "user-a-99", b.Events[99].UnitID)
			assert.Equal(t, batch.EventID(got.BatchID, 99), b.Events[99].ID)
			assert.Equal(t, r.Digest, b.Digest)
		})
	}
}

// TestBuffersAreNotShared sends different batches at once and looks for traces of
// one in another: every buffer is used again.
func TestBuffersAreNotShared(t *testing.T) {
	e := start(t)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 30 {
				seed := fmt.Sprintf("w%d-%d", w, i)
				b, headers := exposures(5+10*i, seed), []string(nil)
				switch i % 3 {
				case 1:
					b, headers = gzipOf(b), []string{"Content-Encoding", "gzip"}
				case 2:
					b, headers = zstdOf(b), []string{"Content-Encoding", "zstd"}
				}
				a, err := e.try("POST", "/v1/exposures", bytes.NewReader(b), append(headers, "Idempotency-Key", seed)...)
				if assert.NoError(t, err) {
					assert.Equal(t, 202, a.status, "%s", a.body)
				}
			}
		})
	}
	wg.Wait()
	got := batches(t, e.pub.records())
	require.Len(t, got, 8*30)
	for _, b := range got {
		_, rest, _ := strings.Cut(b.Events[0].UnitID, "user-")
		seed := rest[:strings.LastIndexByte(rest, '-')]
		for i := range b.Events {
			require.Equal(t, fmt.Sprintf("user-%s-%d", seed, b.Events[i].Index), b.Events[i].UnitID)
		}
	}
	e.idle()
}

func TestSplitBatch(t *testing.T) {
	e := start(t, func(o *Options) { o.Limits.RecordMax = 8 << 10 })
	a := e.post("/v1/exposures", exposures(100, "s"), "Idempotency-Key", "split")
	require.Equal(t, 202, a.status)
	records := e.pub.records()
	require.Greater(t, len(records), 1)
	next, events := uint32(0), 0
	for i, r := range records {
		assert.LessOrEqual(t, len(r.Value), 8<<10)
		assert.Equal(t, batch.ForKey("shop", "split"), r.BatchID)
		assert.Equal(t, records[0].Seq+uint64(i), r.Seq)
		b := batches(t, records[i:i+1])[0]
		assert.True(t, b.Part)
		assert.Equal(t, next, b.First)
		assert.Equal(t, batch.PartID(r.BatchID, b.First, b.Last), r.DedupID)
		assert.Equal(t, len(b.Events), r.Events)
		next, events = b.Last+1, events+len(b.Events)
	}
	assert.Equal(t, 100, events)
}

func TestIdentity(t *testing.T) {
	e := start(t)
	id := func(body string, headers ...string) batch.ID {
		t.Helper()
		a := e.post("/v1/exposures", []byte(body), headers...)
		require.Contains(t, []int{200, 202}, a.status, "%s", a.body)
		return a.accepted(t).BatchID
	}
	timed := `[{"experiment":"e","variant":"v","unit_id":"u","time":1767225600000}]`
	assert.Equal(t, id(timed), id(` [ {"time":1767225600000,"unit_id":"u","variant":"v","experiment":"e"}]`), "the same events, written otherwise")
	assert.NotEqual(t, id(timed), id(strings.Replace(timed, "000}", "001}", 1)))
	assert.NotEqual(t, id("["+good+"]"), id("["+good+"]"), "nothing tells a repeat from new data")
	assert.Equal(t, batch.ForKey("shop", "k"), id(timed, "Idempotency-Key", "k"))
	assert.Equal(t, batch.ForKey("blog", "k"), id(timed, "Idempotency-Key", "k", "Authorization", "Bearer "+otherKey), "a key in two projects is two batches")
	assert.Len(t, e.pub.records(), 6)
}

func TestDuplicate(t *testing.T) {
	e := start(t)
	e.pub.set(func(context.Context, []batch.Record) (batch.Durable, error) { return batch.InSpool, nil })
	body := []byte("[" + good + `,{"experiment":"e"}]`)
	first := e.post("/v1/exposures", body, "Idempotency-Key", "d")
	require.Equal(t, 202, first.status)
	again := e.post("/v1/exposures", body, "Idempotency-Key", "d")
	require.Equal(t, 200, again.status)
	want := first.accepted(t)
	assert.Equal(t, "spool", want.Durable)
	want.Duplicate = true
	assert.Equal(t, want, again.accepted(t))
	assert.Len(t, e.pub.records(), 1)

	// Keys belong to the project, across endpoints.
	a := e.post("/v1/events", []byte(`[{"kind":"exposure","experiment":"button","variant":"green","unit_id":"u1"},{"kind":"exposure","experiment":"e"}]`), "Idempotency-Key", "d")
	assert.Equal(t, 422, a.status, "rejected events are told apart by their bytes")
	assert.Equal(t, protocol.CodeKeyReused, a.code())

	a = e.post("/v1/exposures", []byte("["+good+"]"), "Idempotency-Key", "d")
	assert.Equal(t, 422, a.status)
	assert.Equal(t, protocol.CodeKeyReused, a.code())
	assert.Empty(t, e.pub.records())

	// A batch of which every event was rejected is remembered too.
	bad := []byte(`[{"experiment":"e"}]`)
	first = e.post("/v1/exposures", bad, "Idempotency-Key", "r")
	require.Equal(t, 422, first.status)
	again = e.post("/v1/exposures", bad, "Idempotency-Key", "r")
	assert.Equal(t, 422, again.status)
	assert.Equal(t, string(first.body), string(again.body))
	assert.Len(t, e.pub.records(), 1)
}

// blocker holds publishers back until it is told what to answer.
type blocker struct {
	entered chan []batch.Record
	release chan error
}

func (b *blocker) hook(_ context.Context, records []batch.Record) (batch.Durable, error) {
	b.entered <- records
	return batch.InKafka, <-b.release
}

func newBlocker(p *publisher) *blocker {
	b := &blocker{entered: make(chan []batch.Record), release: make(chan error)}
	p.set(b.hook)
	return b
}

// later posts in the background.
func (e *env) later(body []byte, headers ...string) <-chan answer {
	out := make(chan answer, 1)
	go func() {
		a, err := e.try("POST", "/v1/exposures", bytes.NewReader(body), headers...)
		assert.NoError(e.t, err)
		out <- a
	}()
	return out
}

// waiting waits until n requests are being worked on.
func (e *env) waiting(n float64) {
	e.t.Helper()
	require.Eventually(e.t, func() bool { return value(e.t, e.reg, "sluice_requests_in_flight") == n }, 20*time.Second, time.Millisecond)
}

func TestInFlightCopySharesTheOutcome(t *testing.T) {
	for name, tt := range map[string]struct {
		err           error
		status, other int // of the copy, and of a copy with other events
	}{
		"published":     {nil, 200, 422},
		"not published": {retry.MarkAfter(errDown, retry.Throttled, 7*time.Second), 503, 503},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			b := newBlocker(e.pub)
			body := exposures(3, "f")
			first := e.later(body, "Idempotency-Key", "f")
			<-b.entered
			second := e.later(body, "Idempotency-Key", "f")
			third := e.later(exposures(3, "other"), "Idempotency-Key", "f")
			e.waiting(3)
			b.release <- tt.err

			a1, a2, a3 := <-first, <-second, <-third
			assert.Equal(t, tt.status, a2.status)
			assert.Equal(t, tt.other, a3.status)
			if tt.err == nil {
				require.Equal(t, 202, a1.status)
				want := a1.accepted(t)
				want.Duplicate = true
				assert.Equal(t, want, a2.accepted(t))
				assert.Equal(t, protocol.CodeKeyReused, a3.code())
				assert.Len(t, e.pub.records(), 1)
			} else {
				require.Equal(t, 503, a1.status)
				for _, a := range []answer{a1, a2, a3} {
					assert.Equal(t, protocol.CodeNotDurable, a.code())
					assert.NotEmpty(t, a.header.Get("Retry-After"))
				}
				assert.Contains(t, []string{"8", "9", "10", "11", "12"}, a1.header.Get("Retry-After"), "what the publisher says, and jitter")
				// What failed is forgotten: the next copy is the first one again.
				e.pub.set(nil)
				a := e.post("/v1/exposures", body, "Idempotency-Key", "f")
				assert.Equal(t, 202, a.status)
			}
			e.idle()
		})
	}
}

// TestFailureIsNotAnothers: what was wrong with one batch is not what another one
// under the same key is refused for.
func TestFailureIsNotAnothers(t *testing.T) {
	e := start(t)
	b := newBlocker(e.pub)
	first := e.later([]byte(`[{"experiment":"x"}]`), "Idempotency-Key", "f")
	<-b.entered
	second := e.later(exposures(3, "good"), "Idempotency-Key", "f")
	e.waiting(2)
	b.release <- errDown
	assert.Equal(t, protocol.CodeAllRejected, (<-first).code())
	a := <-second
	assert.Equal(t, 503, a.status, "%s", a.body)
	assert.NotEmpty(t, a.header.Get("Retry-After"))
	e.pub.set(nil)
	assert.Equal(t, 202, e.post("/v1/exposures", exposures(3, "good"), "Idempotency-Key", "f").status)
	e.idle()
}

// TestClientGone: when the first client hangs up, publishing goes on, and a copy
// gets its outcome.
func TestClientGone(t *testing.T) {
	e := start(t)
	entered, release := make(chan context.Context), make(chan struct{})
	e.pub.set(func(ctx context.Context, _ []batch.Record) (batch.Durable, error) {
		entered <- ctx
		<-release
		return batch.InKafka, ctx.Err()
	})
	c := e.dial()
	body := string(exposures(3, "g"))
	_, err := io.WriteString(c, rawPost(body, "Idempotency-Key: g"))
	require.NoError(t, err)
	ctx := <-entered
	deadline, ok := ctx.Deadline()
	assert.True(t, ok, "publishing is bounded")
	assert.LessOrEqual(t, time.Until(deadline), e.c.limits.Publish)
	require.NoError(t, c.Close())
	second := e.later([]byte(body), "Idempotency-Key", "g")
	e.waiting(2)
	close(release)
	a := <-second
	require.Equal(t, 200, a.status, "%s", a.body)
	assert.True(t, a.accepted(t).Duplicate)
	assert.Len(t, e.pub.records(), 1)
	e.idle()
}

// TestPublisherGetsTime: a publisher that goes by its context has Limits.Publish,
// and the copies that wait are told when it gives up.
func TestPublisherGetsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, pub, _, _ := testOptions()
		pub.set(func(ctx context.Context, _ []batch.Record) (batch.Durable, error) {
			<-ctx.Done()
			return "", ctx.Err()
		})
		c, err := New(o)
		require.NoError(t, err)
		begun := time.Now()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				w := call(c, exposures(2, "t"), "Idempotency-Key", "t")
				assert.Equal(t, 503, w.Code)
				assert.Equal(t, 15*time.Second, time.Since(begun))
			})
		}
		wg.Wait()
		assert.Zero(t, c.recent.size())
	})
}

// call is a request without a connection.
func call(h http.Handler, body []byte, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", "/v1/exposures", bytes.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+goodKey)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// TestPublisherThatNeverReturns breaks its contract; copies do not wait for ever.
func TestPublisherThatNeverReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, pub, _, _ := testOptions()
		release := make(chan struct{})
		pub.set(func(context.Context, []batch.Record) (batch.Durable, error) {
			<-release
			return batch.InKafka, nil
		})
		c, err := New(o)
		require.NoError(t, err)
		var wg sync.WaitGroup
		wg.Go(func() { assert.Equal(t, 202, call(c, exposures(2, "n")).Code) })
		synctest.Wait()
		wg.Go(func() {
			assert.Equal(t, 503, call(c, exposures(2, "n")).Code)
			close(release)
		})
		wg.Wait()
	})
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, pub, _, _ := testOptions()
		o.Limits.MaxEvents = 10
		o.Keys = keyring{goodKey: {ID: "good", Project: "shop", Rate: 10, Burst: 20}}
		c, err := New(o)
		require.NoError(t, err)
		send := func(n int) *httptest.ResponseRecorder {
			return call(c, []byte("["+strings.Repeat(good+",", n-1)+good+"]"))
		}
		assert.Equal(t, 202, send(10).Code)
		assert.Equal(t, 202, send(8).Code)
		w := send(10)
		require.Equal(t, 429, w.Code, "8 events too many")
		assert.Contains(t, []string{"1", "2"}, w.Header().Get("Retry-After"))
		assert.Equal(t, 202, send(2).Code, "what is left is not taken by who was refused")
		w = send(1)
		require.Equal(t, 429, w.Code)
		<-time.After(time.Second)
		assert.Equal(t, 202, send(10).Code)
		<-time.After(time.Hour)
		assert.Equal(t, 202, send(10).Code)
		assert.Equal(t, 202, send(10).Code)
		assert.Equal(t, 429, send(10).Code, "no more than the burst is saved up")
		assert.Len(t, pub.records(), 6)
	})
}

// TestRateBeforeTheBody: a key with nothing left is refused before its body.
func TestRateBeforeTheBody(t *testing.T) {
	e := start(t, func(o *Options) {
		o.Limits.MaxEvents = 1
		o.Keys = keyring{goodKey: {ID: "good", Project: "shop", Rate: 0.001, Burst: 1}}
	})
	require.Equal(t, 202, e.post("/v1/exposures", []byte("["+good+"]")).status)
	a := e.raw(rawHead("POST", "/v1/exposures", "Content-Length: 1000"))
	assert.Equal(t, 429, a.status)
	assert.Equal(t, "close", a.header.Get("Connection"))
	assert.Regexp(t, `^(9|10)\d\d$`, a.header.Get("Retry-After"))
}

// TestNoise: a batch that the protocol dropped as a whole is acknowledged, and
// nothing is published.
func TestNoise(t *testing.T) {
	var got protocol.Result
	e := start(t, withEndpoints(protocol.Endpoint{
		Name: "noisy", Path: "/noise", Methods: []string{"POST"},
		Decode: func(_ *protocol.Request, b *schema.Batch) error { b.Dropped = 3; return nil },
		Accept: func(r protocol.Result) protocol.Answer {
			got = r
			return protocol.Answer{Status: 202, ContentType: "application/json", Body: []byte(`{"success":true}`)}
		},
	}))
	a := e.post("/noise", []byte("{}"))
	assert.Equal(t, 202, a.status)
	assert.Equal(t, protocol.Result{BodyBytes: 2}, got)
	assert.Empty(t, e.pub.records())
	assert.Equal(t, 3.0, value(t, e.reg, "sluice_events_total", "outcome", "dropped"))
}

// TestMagicGzip: only endpoints that ask for it look into the body.
func TestMagicGzip(t *testing.T) {
	ep := native.Endpoints()[0]
	ep.Name, ep.Path, ep.MagicGzip, ep.MediaTypes = "magic", "/magic", true, nil
	e := start(t, withEndpoints(ep))
	assert.Equal(t, 202, e.post("/magic", gzipOf([]byte("["+good+"]")), "Content-Type", "whatever/it-is").status)
	assert.Equal(t, 202, e.post("/magic", []byte("["+good+"]")).status)
	assert.Equal(t, 400, e.post("/magic", []byte{0x1f, 0x8b, 8, 0}).status)
}

// TestPanic: a fault is answered, logged and counted; whoever waits is told; the
// next request finds everything in order.
func TestPanic(t *testing.T) {
	var log bytes.Buffer
	ep := native.Endpoints()[0]
	ep.Name, ep.Path = "broken", "/broken"
	decode := ep.Decode
	ep.Decode = func(req *protocol.Request, b *schema.Batch) error {
		if req.Header.Get("X-Panic") == "decode" {
			panic("in decode\n\x1b[31m")
		}
		return decode(req, b)
	}
	e := start(t, withEndpoints(ep), func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	schemas := documented(t)
	for range 2 * cap(e.c.benches) {
		a := e.post("/broken", []byte("["+good+"]"), "X-Panic", "decode")
		require.Equal(t, 500, a.status)
		schemas.problem(t, a)
	}
	e.pub.set(func(context.Context, []batch.Record) (batch.Durable, error) { panic("in publish") })
	a := e.post("/v1/exposures", exposures(1, "p"))
	assert.Equal(t, 500, a.status)
	e.pub.set(nil)
	assert.Equal(t, 202, e.post("/v1/exposures", exposures(1, "p")).status, "the failed attempt is forgotten")
	e.pub.records()
	e.alive()
	e.idle()
	assert.Contains(t, log.String(), `in decode\\n\\x1b[31m`)
	assert.NotContains(t, log.String(), "\x1b")
	assert.Contains(t, log.String(), "serve_test.go", "the stack says where")
	assert.Equal(t, float64(2*cap(e.c.benches)), value(t, e.reg, "sluice_requests_refused_total", "endpoint", "broken", "code", "internal"))
}

// TestLedgerNotReady: a request is refused at admission, its body unread, while the
// ledger may not take it down, and one that was admitted before is refused when it
// gets to its number. Neither is published, and both may come again.
func TestLedgerNotReady(t *testing.T) {
	e := start(t)
	e.ledger.set(func() { e.ledger.ready = errDown })
	a := e.raw("POST /v1/exposures HTTP/1.1\r\nHost: sluice\r\nAuthorization: Bearer " + goodKey + "\r\nContent-Length: 100\r\n\r\n")
	assert.Equal(t, 503, a.status)
	assert.Equal(t, "not_durable", a.code())
	assert.NotEmpty(t, a.header.Get("Retry-After"))

	e.ledger.set(func() { e.ledger.ready, e.ledger.shut = nil, true })
	for range 2 {
		a = e.post("/v1/exposures", exposures(3, "l"), "Idempotency-Key", "l")
		assert.Equal(t, 503, a.status)
		assert.Equal(t, "not_durable", a.code())
		assert.NotEmpty(t, a.header.Get("Retry-After"))
	}
	assert.Empty(t, e.pub.records())
	e.ledger.set(func() { e.ledger.shut = false })
	assert.Equal(t, 202, e.post("/v1/exposures", exposures(3, "l"), "Idempotency-Key", "l").status, "the failed attempts are forgotten")
	e.idle()
}

// TestNumbersAreWithdrawn: numbers that were given to a batch which then could not
// be encoded do not stay in flight.
func TestNumbersAreWithdrawn(t *testing.T) {
	var decoded *schema.Batch
	ep := native.Endpoints()[0]
	ep.Name, ep.Path = "broken", "/broken"
	decode := ep.Decode
	ep.Decode = func(req *protocol.Request, b *schema.Batch) error {
		decoded = b
		return decode(req, b)
	}
	e := start(t, withEndpoints(ep), func(o *Options) { o.Limits.RecordMax = 8 << 10 })
	e.ledger.set(func() {
		e.ledger.hook = func() {
			// Text of five bytes at no address: whoever reads it panics.
			decoded.Events[len(decoded.Events)-1].UnitID = *(*string)(unsafe.Pointer(&[2]uintptr{0, 5}))
		}
	})
	a := e.post("/broken", exposures(100, "w"), "Idempotency-Key", "w")
	assert.Equal(t, 500, a.status)
	e.idle()
	e.ledger.set(func() {
		assert.Empty(t, e.ledger.open)
		assert.Greater(t, e.ledger.withdrawn, 1, "one a record")
		e.ledger.hook = nil
	})
	assert.Empty(t, e.pub.records())
	assert.Equal(t, 202, e.post("/broken", exposures(100, "w"), "Idempotency-Key", "w").status)
}
