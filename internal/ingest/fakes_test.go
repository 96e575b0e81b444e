package ingest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/internal/protocol/native"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// publisher keeps what was published. hook, where there is one, decides.
type publisher struct {
	mu    sync.Mutex
	hook  func(ctx context.Context, records []batch.Record) (batch.Durable, error)
	ready error
	kept  []batch.Record

	ledger *clock // told of every record, as the interface wants
}

func (p *publisher) Publish(ctx context.Context, records []batch.Record) (batch.Durable, error) {
	for i := range records {
		p.ledger.settle(records[i].Seq, 1)
	}
	p.mu.Lock()
	hook := p.hook
	p.mu.Unlock()
	durable := batch.InKafka
	if hook != nil {
		var err error
		if durable, err = hook(ctx, records); err != nil {
			return "", err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept = append(p.kept, records...)
	return durable, nil
}

func (p *publisher) Ready() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ready
}

func (p *publisher) set(hook func(context.Context, []batch.Record) (batch.Durable, error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook = hook
}

// records returns what was published since the last call.
func (p *publisher) records() []batch.Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	kept := p.kept
	p.kept = nil
	return kept
}

// batches decodes records.
func batches(t testing.TB, records []batch.Record) []*schema.Batch {
	t.Helper()
	var out []*schema.Batch
	for _, r := range records {
		b := new(schema.Batch)
		require.NoError(t, schema.DecodeRecord(r.Value, b))
		assert.Equal(t, r.BatchID, b.ID)
		assert.Equal(t, r.DedupID, b.DedupID)
		out = append(out, b)
	}
	return out
}

// clock is a ledger. hook, where there is one, runs in each Accept.
type clock struct {
	mu        sync.Mutex
	next      uint64
	now       time.Time
	id        batch.ID
	ready     error
	shut      bool // gives nothing more, whatever ready says
	hook      func()
	open      map[uint64]bool // numbers that were given and not settled
	withdrawn int
}

func newClock() *clock {
	return &clock{next: 1, now: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC), id: batch.Random(), open: map[uint64]bool{}}
}

func (l *clock) Accept(n int) batch.Stamp {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut || l.ready != nil {
		return batch.Stamp{}
	}
	if l.hook != nil {
		l.hook()
	}
	s := batch.Stamp{ReceivedAt: l.now, Collector: l.id, Epoch: 7, FirstSeq: l.next}
	for range n {
		l.open[l.next] = true
		l.next++
	}
	return s
}

func (l *clock) Withdraw(s batch.Stamp, n int) {
	l.settle(s.FirstSeq, n)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.withdrawn += n
}

func (l *clock) settle(first uint64, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range n {
		if !l.open[first+uint64(i)] {
			panic(fmt.Sprintf("number %d is settled twice, or was never given", first+uint64(i)))
		}
		delete(l.open, first+uint64(i))
	}
}

func (l *clock) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ready
}

func (l *clock) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

// keyring is a Keys.
type keyring map[string]Grant

func (k keyring) Lookup(key string) (Grant, error) {
	g, ok := k[key]
	if !ok {
		return Grant{}, fmt.Errorf("key: %w", ErrUnknownKey)
	}
	return g, nil
}

const (
	goodKey  = "wk_good_0123456789"
	otherKey = "wk_other_0123456789"
)

func testKeys() keyring {
	return keyring{
		goodKey:             {ID: "good", Project: "shop"},
		otherKey:            {ID: "other", Project: "blog"},
		"wk_disabled":       {ID: "disabled", Project: "shop", Disabled: true},
		"wk_events_only":    {ID: "events", Project: "shop", Scopes: []string{"events"}},
		"wk_exposures_only": {ID: "exposures", Project: "shop", Scopes: []string{"exposures"}},
		"wk_slow":           {ID: "slow", Project: "shop", Rate: 1, Burst: 1},
	}
}

// env is a collector that listens on loopback.
type env struct {
	t      testing.TB
	c      *Collector
	server *Server
	addr   string
	pub    *publisher
	ledger *clock
	reg    *prometheus.Registry
	client *http.Client
}

func testOptions() (Options, *publisher, *clock, *prometheus.Registry) {
	ledger, reg := newClock(), prometheus.NewPedanticRegistry()
	pub := &publisher{ledger: ledger}
	return Options{Endpoints: native.Endpoints(), Publisher: pub, Ledger: ledger, Keys: testKeys(), Registerer: reg}, pub, ledger, reg
}

func start(t testing.TB, edit ...func(*Options)) *env {
	t.Helper()
	o, pub, ledger, reg := testOptions()
	for _, f := range edit {
		f(&o)
	}
	c, err := New(o)
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	e := &env{t: t, c: c, server: NewServer(c, nil), addr: l.Addr().String(), pub: pub, ledger: ledger, reg: reg,
		client: &http.Client{Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 100},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	served := make(chan error, 1)
	go func() { served <- e.server.Serve(l) }()
	t.Cleanup(func() {
		e.client.CloseIdleConnections()
		assert.NoError(t, e.server.Close())
		assert.NoError(t, <-served)
		if o.Publisher == pub {
			e.idle() // handlers outlive their connections
			ledger.set(func() { assert.Empty(t, ledger.open, "numbers that nobody settled") })
		}
	})
	return e
}

// answer is what came back; status 0: the connection was closed without one.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) code() string {
	var p struct {
		Code string `json:"code"`
	}
	_ = json.Unmarshal(a.body, &p)
	return p.Code
}

func (a answer) accepted(t testing.TB) accepted {
	t.Helper()
	var r accepted
	require.NoError(t, json.Unmarshal(a.body, &r), "%d %s", a.status, a.body)
	return r
}

type accepted struct {
	BatchID  batch.ID `json:"batch_id"`
	Accepted int      `json:"accepted"`
	Rejected []struct {
		Index   int    `json:"index"`
		Code    string `json:"code"`
		Field   string `json:"field"`
		Message string `json:"message"`
	} `json:"rejected"`
	Durable   string `json:"durable"`
	Duplicate bool   `json:"duplicate"`
}

// post sends a batch with the good key. headers are name, value pairs; an empty
// value takes the header away.
func (e *env) post(path string, body []byte, headers ...string) answer {
	e.t.Helper()
	return e.do(http.MethodPost, path, bytes.NewReader(body), headers...)
}

func (e *env) do(method, path string, body io.Reader, headers ...string) answer {
	e.t.Helper()
	a, err := e.try(method, path, body, headers...)
	require.NoError(e.t, err)
	return a
}

func (e *env) try(method, path string, body io.Reader, headers ...string) (answer, error) {
	r, err := http.NewRequest(method, "http://"+e.addr+path, body)
	if err != nil {
		return answer{}, err
	}
	r.Header.Set("Authorization", "Bearer "+goodKey)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Del(headers[i])
		if headers[i+1] != "" {
			r.Header.Add(headers[i], headers[i+1])
		}
	}
	res, err := e.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if res.Close { // net/http takes the header away
		res.Header.Set("Connection", "close")
	}
	return answer{res.StatusCode, res.Header, b}, err
}

// dial opens a connection that nothing is left hanging on for long.
func (e *env) dial() net.Conn {
	e.t.Helper()
	c, err := net.Dial("tcp", e.addr)
	require.NoError(e.t, err)
	require.NoError(e.t, c.SetDeadline(time.Now().Add(30*time.Second)))
	e.t.Cleanup(func() { _ = c.Close() })
	return c
}

// raw sends bytes as they are, as far as they are taken, and reads one answer.
func (e *env) raw(parts ...string) answer {
	e.t.Helper()
	c := e.dial()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for _, p := range parts {
			if _, err := io.WriteString(c, p); err != nil {
				return
			}
		}
	}()
	a := readAnswer(c)
	_ = c.Close()
	<-sent
	return a
}

func readAnswer(c net.Conn) answer {
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return answer{}
	}
	defer func() { _ = res.Body.Close() }()
	body, _ := io.ReadAll(res.Body)
	a := answer{res.StatusCode, res.Header, body}
	if res.Close {
		a.header.Set("Connection", "close")
	}
	return a
}

// head is the beginning of a raw request with the good key.
func rawHead(method, path string, headers ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: sluice\r\nAuthorization: Bearer %s\r\n", method, path, goodKey)
	for _, h := range headers {
		b.WriteString(h + "\r\n")
	}
	b.WriteString("\r\n")
	return b.String()
}

// rawPost is a whole raw request.
func rawPost(body string, headers ...string) string {
	return rawHead("POST", "/v1/exposures", append(headers, fmt.Sprint("Content-Length: ", len(body)))...) + body
}

// good is one event that passes.
const good = `{"experiment":"button","variant":"green","unit_id":"u1"}`

// exposures is a JSON body with n events, each with a time, so that it has an
// identity of its own. Different seeds give different events.
func exposures(n int, seed string) []byte {
	var b bytes.Buffer
	b.WriteString(`{"events":[`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"experiment":"checkout_button_%d","variant":"green","unit_id":"user-%s-%d","unit_type":"user",`+
			`"time":"2026-03-04T05:06:%02d.789Z","rule":"rule-7","reason":"targeting","attributes":{"country":"NZ","age":%d,"member":true,"plan":"family","referrer":"https://example.org/a/b"}}`,
			i%7, seed, i, i%60, 20+i%50)
	}
	b.WriteString(`],"sdk":{"name":"test","version":"1.0"}}`)
	return b.Bytes()
}

// alive checks that the next good request is served, and leaves nothing behind.
func (e *env) alive() {
	e.t.Helper()
	a := e.post("/v1/exposures", []byte("["+good+"]"))
	require.Equal(e.t, http.StatusAccepted, a.status, "the next good request: %s", a.body)
	got := e.pub.records()
	require.NotEmpty(e.t, got)
	assert.Len(e.t, batches(e.t, got[len(got)-1:])[0].Events, 1)
}

// idle waits until no request holds anything.
func (e *env) idle() {
	e.t.Helper()
	require.Eventually(e.t, func() bool {
		e.c.inflight.mu.Lock()
		defer e.c.inflight.mu.Unlock()
		return len(e.c.inflight.byKey) == 0
	}, 20*time.Second, time.Millisecond)
	assert.Zero(e.t, e.c.inflight.inUse())
}

var errDown = errors.New("nothing durable in reach")

func refuseAll(context.Context, []batch.Record) (batch.Durable, error) { return "", errDown }

// quick makes a body's time-out short.
func quick(o *Options) { o.Limits.BodyTimeout = 300 * time.Millisecond }

func withEndpoints(more ...protocol.Endpoint) func(*Options) {
	return func(o *Options) { o.Endpoints = append(o.Endpoints, more...) }
}
