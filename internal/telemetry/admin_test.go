package telemetry

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func admin(ready func() error, status func() any) Admin {
	return Admin{Ready: ready, Status: status, Metrics: NewRegistry("collector")}
}

func fine() error { return nil }

func TestEndpoints(t *testing.T) {
	notReady := false
	h := admin(func() error {
		if notReady {
			return errors.New("no broker answers")
		}
		return nil
	}, func() any { return map[string]any{"partitions": []int{1, 2}} }).Handler()

	get := func(method, path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w
	}
	for _, tc := range []struct {
		path, contentType, body string
		status                  int
	}{
		{"/healthz", "text/plain; charset=utf-8", "ok\n", 200},
		{"/readyz", "text/plain; charset=utf-8", "ok\n", 200},
		{"/status", "application/json", `"partitions": [`, 200},
		{"/metrics", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores", "sluice_build_info{goversion=", 200},
		{"/metrics", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores", `service="collector"`, 200},
		{"/metrics", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores", "process_open_fds", 200},
		{"/metrics", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores", "go_goroutines", 200},
		{"/debug/pprof/", "text/html; charset=utf-8", "goroutine", 200},
		{"/debug/pprof/heap?debug=1", "text/plain; charset=utf-8", "heap profile", 200},
		{"/debug/pprof/cmdline", "text/plain; charset=utf-8", "test", 200},
		{"/", "text/plain; charset=utf-8", "not found", 404},
	} {
		t.Run(tc.path, func(t *testing.T) {
			w := get("GET", tc.path)
			assert.Equal(t, tc.status, w.Code)
			assert.Equal(t, tc.contentType, w.Header().Get("Content-Type"))
			assert.Contains(t, w.Body.String(), tc.body)
		})
	}
	assert.Equal(t, http.StatusMethodNotAllowed, get("POST", "/status").Code)
	assert.Equal(t, 200, get("HEAD", "/healthz").Code)

	notReady = true
	w := get("GET", "/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, w.Code)
	assert.Equal(t, "not ready: no broker answers\n", w.Body.String())
	assert.Equal(t, 200, get("GET", "/healthz").Code, "alive all the same")
}

func TestStatusThatCannotBeWritten(t *testing.T) {
	w := httptest.NewRecorder()
	admin(fine, func() any { return func() {} }).Handler().ServeHTTP(w, httptest.NewRequest("GET", "/status", nil))
	assert.Equal(t, 500, w.Code)
	assert.NotContains(t, w.Body.String(), "{")
}

func TestServeAndHealthcheck(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var down atomic.Bool
	a := admin(func() error {
		if down.Load() {
			return errors.New("spool is full")
		}
		return nil
	}, func() any { return nil })
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, ln) }()

	_, port, err := net.SplitHostPort(ln.Addr().String())
	require.NoError(t, err)
	for _, addr := range []string{ln.Addr().String(), ":" + port, "0.0.0.0:" + port, "localhost:" + port} {
		assert.NoError(t, Healthcheck(t.Context(), addr, "/readyz"), addr)
	}
	down.Store(true)
	err = Healthcheck(t.Context(), ":"+port, "/readyz")
	require.ErrorIs(t, err, ErrUnhealthy)
	assert.Contains(t, err.Error(), "answered 503: not ready: spool is full")
	assert.NoError(t, Healthcheck(t.Context(), ":"+port, "/healthz"))

	stop()
	require.NoError(t, <-served)
	err = Healthcheck(t.Context(), ":"+port, "/healthz")
	require.Error(t, err)
	assert.NotErrorIs(t, err, ErrUnhealthy, "nobody there is not an unhealthy answer")
	require.Error(t, Healthcheck(t.Context(), "nonsense", "/healthz"))
	require.Error(t, Healthcheck(t.Context(), "[:1", "/healthz"))
}

func TestServeOnAListenerThatFails(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	require.ErrorIs(t, admin(fine, func() any { return nil }).Serve(t.Context(), ln), net.ErrClosed)
}

// pipes is a listener in memory: what waits on it, waits in the test's own time.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (*pipes) Addr() net.Addr { return &net.TCPAddr{} }

// begin sends a request for /status on a new connection and returns what reads
// the answer.
func (p *pipes) begin(t *testing.T) func() (*http.Response, error) {
	client, server := net.Pipe()
	t.Cleanup(func() { _ = client.Close() })
	p.conns <- server
	_, err := io.WriteString(client, "GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
	require.NoError(t, err)
	return func() (*http.Response, error) { return http.ReadResponse(bufio.NewReader(client), nil) }
}

func TestStopWaitsForAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		ln := newPipes()
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		a := admin(fine, func() any { <-release; return "done" })
		go func() { served <- a.Serve(ctx, ln) }()
		answer := ln.begin(t)
		synctest.Wait()
		stop()
		synctest.Wait()
		close(release)
		resp, err := answer()
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		assert.Equal(t, "\"done\"\n", string(body))
		require.NoError(t, <-served)
	})
}

func TestStopCutsOffWhatTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		ln := newPipes()
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		a := admin(fine, func() any { <-release; return nil })
		go func() { served <- a.Serve(ctx, ln) }()
		answer := ln.begin(t)
		synctest.Wait()
		began := time.Now()
		stop()
		require.NoError(t, <-served)
		assert.Equal(t, goodbye, time.Since(began))
		_, err := answer()
		require.Error(t, err)
		close(release)
	})
}
