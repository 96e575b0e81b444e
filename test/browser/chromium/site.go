package chromium

import (
	"crypto/rand"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Site is a server of pages on an origin of its own, with storage and cookies that
// no other site sees. Its name is below localhost, while collectors are at
// 127.0.0.1: pages send across origins and across sites, as they do for people.
type Site struct {
	URL string // http://<name>.localhost:port
	mux *http.ServeMux
}

// NewSite starts an empty site that ends with the test. Paths it does not know are
// answered 404.
func NewSite(t testing.TB) *Site {
	t.Helper()
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(func() {
		// Browsers keep connections, and nobody needs their answers any more.
		server.CloseClientConnections()
		server.Close()
	})
	s := &Site{URL: strings.Replace(server.URL, "127.0.0.1", strings.ToLower(rand.Text()[:8])+".localhost", 1), mux: mux}
	s.mux.HandleFunc("/favicon.ico", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	return s
}

// Page serves HTML at exactly that path. A page is not kept by the browser's caches.
func (s *Site) Page(path, html string) {
	if path == "/" {
		path = "/{$}"
	}
	s.Handle(path, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = io.WriteString(w, html)
	})
}

// File serves a file of the machine at a path.
func (s *Site) File(path, file string) {
	s.Handle(path, func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })
}

// Script serves JavaScript at a path.
func (s *Site) Script(path, js string) {
	s.Handle(path, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
		_, _ = io.WriteString(w, js)
	})
}

// Handle serves a path (and, if it ends with a slash, all below it) as net/http's
// ServeMux does.
func (s *Site) Handle(path string, h http.HandlerFunc) { s.mux.HandleFunc(path, h) }
