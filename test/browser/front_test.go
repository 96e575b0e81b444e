package browser

import (
	"bytes"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/embedded"
)

// request is what a page asked, and what it was answered.
type request struct {
	method string
	url    *url.URL
	header http.Header
	body   []byte
	status int
	answer http.Header
}

// front stands before a collector: it keeps what the pages ask, and its port can be
// closed while the collector goes on.
type front struct {
	t    testing.TB
	URL  string
	addr string

	mu     sync.Mutex
	server *http.Server
	seen   []request
	proxy  http.Handler
}

func newFront(t testing.TB, target string) *front {
	t.Helper()
	to, err := url.Parse(target)
	require.NoError(t, err)
	addr, err := embedded.FreeAddr()
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.ErrorLog = log.New(io.Discard, "", 0) // pages that are left cut off their requests
	f := &front{t: t, URL: "http://" + addr, addr: addr, proxy: proxy}
	f.up()
	t.Cleanup(f.down)
	return f
}

// up opens the port.
func (f *front) up() {
	l, err := net.Listen("tcp", f.addr)
	if !assert.NoError(f.t, err) {
		return
	}
	server := &http.Server{Handler: http.HandlerFunc(f.serve)}
	go func() { _ = server.Serve(l) }()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.server = server
}

// down closes the port: connections are cut and new ones refused.
func (f *front) down() {
	f.mu.Lock()
	server := f.server
	f.server = nil
	f.mu.Unlock()
	if server != nil {
		assert.NoError(f.t, server.Close())
	}
}

func (f *front) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the page is gone, or the port was closed
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	seen := request{method: r.Method, url: r.URL, header: r.Header.Clone(), body: body}
	kept := &keptAnswer{ResponseWriter: w}
	f.proxy.ServeHTTP(kept, r)
	seen.status, seen.answer = kept.status, w.Header().Clone()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, seen)
}

// requests are those of a method so far.
func (f *front) requests(method string) (out []request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.seen {
		if r.method == method {
			out = append(out, r)
		}
	}
	return out
}

type keptAnswer struct {
	http.ResponseWriter
	status int
}

func (k *keptAnswer) WriteHeader(status int) {
	k.status = status
	k.ResponseWriter.WriteHeader(status)
}

// checkPreflights requires that every question of a browser, whether a page may
// send what it wants to, was answered with yes, for a while, and that none was
// asked a second time meanwhile.
func (f *front) checkPreflights() (asked int) {
	f.t.Helper()
	var before []string
	for _, r := range f.requests(http.MethodOptions) {
		assert.Equal(f.t, http.StatusNoContent, r.status, r.url)
		assert.True(f.t, allows(r), r.url)
		assert.NotEmpty(f.t, r.answer.Get("Access-Control-Max-Age"))
		assert.Contains(f.t, r.answer.Get("Access-Control-Allow-Methods"), r.header.Get("Access-Control-Request-Method"))
		allowed := strings.Split(r.answer.Get("Access-Control-Allow-Headers"), ", ")
		for h := range strings.SplitSeq(r.header.Get("Access-Control-Request-Headers"), ",") {
			assert.Contains(f.t, allowed, strings.TrimSpace(h), r.url)
		}
		assert.False(f.t, slices.Contains(before, r.url.String()), "asked twice: %s %v", r.url, r.header)
		before = append(before, r.url.String())
	}
	return len(before)
}

// allows reports whether the answer lets the page see it, credentials or not:
// beacons are sent with them.
func allows(r request) bool {
	return r.answer.Get("Access-Control-Allow-Origin") == r.header.Get("Origin") && r.answer.Get("Access-Control-Allow-Credentials") == "true"
}
