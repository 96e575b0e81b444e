package client

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/schema"
)

// wire is the other side: it reads every request as a collector does, answers what
// the test says, and keeps what it acknowledged. It holds the Logger to the promise
// that a key always comes with the same events.
type wire struct {
	t testing.TB

	mu       sync.Mutex
	answer   func(request) reply
	requests []request
	events   map[string]string         // by key, as they came first
	stored   map[string][]schema.Event // acknowledged batches by key
}

// request is one as it came.
type request struct {
	at      time.Time
	n       int // from 0
	host    string
	path    string
	key     string
	header  http.Header
	size    int    // of the body, as sent
	sentAt  int64  // epoch ms
	sdk     string // name/version
	decoded []schema.Event
}

// reply is what is answered. The zero value is 202.
type reply struct {
	status int
	body   string
	after  string        // Retry-After
	err    error         // instead of an answer
	stored bool          // with err: it was stored, the answer is lost
	hang   chan struct{} // answer only when it is closed
}

func newWire(t testing.TB, answer func(request) reply) *wire {
	if answer == nil {
		answer = func(request) reply { return reply{} }
	}
	return &wire{t: t, answer: answer, events: map[string]string{}, stored: map[string][]schema.Event{}}
}

// now answers everything with a from here on.
func (w *wire) now(a reply) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = func(request) reply { return a }
}

func (w *wire) client() *http.Client { return &http.Client{Transport: w} }

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	req := w.read(r, body)
	w.mu.Lock()
	answer := w.answer
	w.mu.Unlock()
	a := answer(req)
	if a.hang != nil {
		select {
		case <-a.hang:
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	if a.status == 0 {
		a.status = http.StatusAccepted
	}
	if a.stored || a.err == nil && a.status < 300 {
		w.store(req)
	}
	if a.err != nil {
		return nil, a.err
	}
	if a.body == "" && a.status < 300 {
		a.body = fmt.Sprintf(`{"batch_id":"b","accepted":%d,"rejected":[],"durable":"kafka","duplicate":false}`, len(req.decoded))
	}
	h := http.Header{}
	if a.after != "" {
		h.Set("Retry-After", a.after)
	}
	return &http.Response{StatusCode: a.status, Header: h, Body: io.NopCloser(strings.NewReader(a.body)), Request: r}, nil
}

func (w *wire) read(r *http.Request, body []byte) request {
	size := len(body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(bytes.NewReader(body))
		if assert.NoError(w.t, err) {
			body, err = io.ReadAll(z)
			assert.NoError(w.t, err)
		}
	}
	var outer struct {
		Events json.RawMessage `json:"events"`
		SentAt int64           `json:"sent_at"`
		SDK    struct{ Name, Version string }
	}
	assert.NoError(w.t, json.Unmarshal(body, &outer))
	b := new(schema.Batch)
	assert.NoError(w.t, schema.DecodeJSON(body, schema.KindExposure, 10_000, b))
	assert.Zero(w.t, len(b.Rejected), "a collector would reject events")
	key := r.Header.Get("Idempotency-Key")
	assert.True(w.t, validKey(key), "%q", key)

	w.mu.Lock()
	defer w.mu.Unlock()
	if first, known := w.events[key]; known {
		assert.Equal(w.t, first, string(outer.Events), "a key always comes with the same events")
	}
	w.events[key] = string(outer.Events)
	req := request{
		at: time.Now(), n: len(w.requests), host: r.URL.Host, path: r.URL.Path, key: key, header: r.Header, size: size,
		sentAt: outer.SentAt, sdk: outer.SDK.Name + "/" + outer.SDK.Version, decoded: b.Events,
	}
	w.requests = append(w.requests, req)
	return req
}

func (w *wire) store(r request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stored[r.key] = r.decoded
}

func (w *wire) seen() []request {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]request(nil), w.requests...)
}

// units are the unit ids stored, counted once a batch key: what the pipeline keeps.
// Reports are left out.
func (w *wire) units() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]int{}
	for _, events := range w.stored {
		for _, e := range events {
			if e.Name != droppedName {
				out[e.UnitID]++
			}
		}
	}
	return out
}

// reports are the drop reports stored, by experiment/variant or event, and reason.
func (w *wire) reports() map[string]float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]float64{}
	for _, events := range w.stored {
		for _, e := range events {
			if e.Name != droppedName {
				continue
			}
			assert.Equal(w.t, clientUnit, e.UnitType)
			a := map[string]string{}
			for _, at := range e.Attributes {
				a[at.Key] = at.Value
			}
			out[a["experiment"]+a["event"]+"/"+a["variant"]+" "+a["reason"]] += e.Value
		}
	}
	return out
}

// once requires that the units u0 to u<n-1> are stored, each once.
func (w *wire) once(n int) {
	w.t.Helper()
	units := w.units()
	assert.Len(w.t, units, n)
	for u, times := range units {
		assert.Equal(w.t, 1, times, u)
	}
}

var errCut = errors.New("connection reset")

// start makes a Logger on the wire, closed at the end of the test.
func start(t testing.TB, w *wire, change ...func(*Options)) *Logger {
	t.Helper()
	o := Options{Endpoints: []string{"http://a.test"}, Key: "slk_test", HTTP: w.client()}
	for _, c := range change {
		c(&o)
	}
	l, err := New(o)
	require.NoError(t, err)
	return l
}

// expose logs exposures for the units u<from> to u<to-1>.
func expose(l *Logger, from, to int) {
	for i := from; i < to; i++ {
		l.Exposure(Exposure{Experiment: "e", Variant: "v", UnitID: fmt.Sprintf("u%d", i)})
	}
}

// pass lets the bubble's clock go on by d.
func pass(d time.Duration) { <-time.After(d) }
