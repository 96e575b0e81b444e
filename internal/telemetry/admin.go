package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// longest bounds an answer, and with it a profile: pprof refuses to begin one
	// that would take longer.
	longest = 2 * time.Minute
	// goodbye bounds how long the end of the process waits for answers: longer
	// than a scrape takes, shorter than a profile.
	goodbye = 5 * time.Second
)

// Admin is what the admin server tells about a process. Ready and Status are
// called concurrently and must not block. All fields but Log are required.
type Admin struct {
	// Ready returns nil while the process can do its work, or why it cannot.
	Ready func() error
	// Status returns what /status shows, as JSON; it must not hold secrets.
	Status func() any
	// Metrics are those at /metrics.
	Metrics prometheus.Gatherer
	Log     *slog.Logger // nil: none
}

// Handler serves, on a mux of its own:
//
//	/healthz       200 while the process serves requests at all
//	/readyz        200, or 503 with the reason
//	/metrics       Prometheus
//	/status        JSON for people and sluice doctor
//	/debug/pprof/  Go's profiles
//
// It asks for no key: it belongs on an address that the public cannot reach.
func (a Admin) Handler() http.Handler {
	a.Log = orDiscard(a.Log)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := a.Ready(); err != nil {
			text(w, http.StatusServiceUnavailable, "not ready: "+err.Error())
			return
		}
		text(w, http.StatusOK, "ok")
	})
	mux.HandleFunc("GET /status", a.status)
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.Metrics, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(a.Log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
		Timeout:             10 * time.Second,
	}))
	// The package also registers itself with http.DefaultServeMux, which nothing
	// here serves.
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

func orDiscard(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}

func (a Admin) status(w http.ResponseWriter, _ *http.Request) {
	// Encoded first: half a document must not go out as a whole one.
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	if err := enc.Encode(a.Status()); err != nil {
		a.Log.Warn("status cannot be shown", "error", err)
		text(w, http.StatusInternalServerError, "the status cannot be written as JSON")
		return
	}
	plain(w, "application/json")
	// The client may be gone; nobody else wants the answer.
	_, _ = w.Write(b.Bytes())
}

func plain(w http.ResponseWriter, contentType string) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
}

func text(w http.ResponseWriter, status int, s string) {
	plain(w, "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, s+"\n")
}

// Serve answers on ln, which it closes, until ctx ends; then it lets answers in
// progress finish for a few seconds and returns nil. It returns an error only if
// ln fails before that.
func (a Admin) Serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler:           a.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      longest,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(orDiscard(a.Log).Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve admin requests on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
	defer cancel()
	if err := srv.Shutdown(bound); err != nil {
		// Somebody's profile is still running: cut it off.
		_ = srv.Close()
	}
	<-failed // http.ErrServerClosed, once the accept loop has ended
	return nil
}

// ErrUnhealthy is returned by Healthcheck for a process that answers, and says
// that it cannot do its work.
var ErrUnhealthy = errors.New("unhealthy")

// Healthcheck asks the process whose admin server listens on addr (as it was
// told to listen: the host may be empty or 0.0.0.0) for path, /readyz or
// /healthz. It returns nil for 200, ErrUnhealthy with the reason for any other
// answer, and another error where there is none within 3 seconds.
func Healthcheck(ctx context.Context, addr, path string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("ask %s%s: %w", addr, path, err)
	}
	switch host {
	case "", "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	url := "http://" + net.JoinHostPort(host, port) + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	// Not by way of a proxy, and leaving no connection behind.
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	defer resp.Body.Close()
	reason, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: %s answered %d: %s", ErrUnhealthy, url, resp.StatusCode, strings.TrimSpace(string(reason)))
	}
	return nil
}
