package ingest

import (
	"context"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"sluice/internal/protocol"
)

// Of each kind of line, logBurst are written in logEvery; the next one says how
// many were left out. An attack, or a customer's broken release, then costs no
// disk and buries nothing.
const (
	logBurst = 5
	logEvery = 10 * time.Second
	// maxKinds bounds the kinds told apart. There are some thirty codes.
	maxKinds = 64
	// maxLogged bounds what is written of one value from outside, in bytes.
	maxLogged = 256
)

// boundedLog writes what went wrong, at a bounded rate. Values that come from
// outside are escaped, whatever the handler behind it does.
type boundedLog struct {
	log *slog.Logger

	mu    sync.Mutex
	kinds map[string]*logWindow
}

type logWindow struct {
	since      time.Time
	written    int
	suppressed int
}

func newBoundedLog(l *slog.Logger) *boundedLog {
	return &boundedLog{log: l, kinds: map[string]*logWindow{}}
}

// allow reports whether a line of this kind may be written now, and how many
// were not since the last one that was.
func (l *boundedLog) allow(kind string) (suppressed int, ok bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.kinds[kind]
	if w == nil {
		if len(l.kinds) >= maxKinds {
			kind = "other"
		}
		if w = l.kinds[kind]; w == nil {
			w = &logWindow{since: now}
			l.kinds[kind] = w
		}
	}
	if now.Sub(w.since) >= logEvery {
		w.since, w.written = now, 0
	}
	if w.written >= logBurst {
		w.suppressed++
		return 0, false
	}
	w.written++
	suppressed, w.suppressed = w.suppressed, 0
	return suppressed, true
}

// refused logs a refused request.
func (l *boundedLog) refused(endpoint, remote, userAgent string, p *protocol.Problem) {
	level := slog.LevelInfo
	if p.Status >= http.StatusInternalServerError {
		level = slog.LevelWarn
	}
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	suppressed, ok := l.allow(p.Code)
	if !ok {
		return
	}
	attrs := []slog.Attr{
		slog.String("code", escape(p.Code)), slog.Int("status", p.Status), slog.String("endpoint", endpoint),
		slog.String("detail", escape(p.Detail)), slog.String("remote", escape(remote)),
		slog.String("user_agent", escape(userAgent)),
	}
	if p.Err != nil {
		attrs = append(attrs, slog.String("error", escape(p.Err.Error())))
	}
	l.write(level, "request refused", suppressed, attrs)
}

// fault logs what should not happen, with where it did.
func (l *boundedLog) fault(endpoint, what string) {
	if suppressed, ok := l.allow("fault " + endpoint); ok {
		l.write(slog.LevelError, "request failed", suppressed, []slog.Attr{
			slog.String("endpoint", endpoint), slog.String("panic", escape(what)),
			slog.String("stack", string(debug.Stack())),
		})
	}
}

// Write takes the lines of net/http's own error log.
func (l *boundedLog) Write(line []byte) (int, error) {
	if suppressed, ok := l.allow("server"); ok {
		l.write(slog.LevelWarn, "http server", suppressed, []slog.Attr{
			slog.String("error", escape(strings.TrimSpace(string(line)))),
		})
	}
	return len(line), nil
}

func (l *boundedLog) write(level slog.Level, msg string, suppressed int, attrs []slog.Attr) {
	if suppressed > 0 {
		attrs = append(attrs, slog.Int("suppressed", suppressed))
	}
	l.log.LogAttrs(context.Background(), level, msg, attrs...)
}

// escape makes text from outside safe to print: ASCII without control
// characters, and short.
func escape(s string) string {
	cut := len(s) > maxLogged
	if cut {
		s = s[:maxLogged]
	}
	q := strconv.QuoteToASCII(s)
	q = q[1 : len(q)-1]
	if cut {
		q += "..."
	}
	return strings.ReplaceAll(q, `\"`, `"`)
}
