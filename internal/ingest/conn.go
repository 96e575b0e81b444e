package ingest

import (
	"bytes"
	"container/list"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"

	"sluice/internal/protocol"
)

// listener bounds the open connections. When there are too many, the one that
// has been idle longest makes room, so that a flood of idle (or very slow)
// connections shuts nobody out; where none is idle, the new one is closed.
type listener struct {
	net.Listener
	max       int
	collector *Collector

	mu   sync.Mutex
	open int
	idle list.List // of *conn without a request, longest first
}

// Accept returns the next connection there is room for.
func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: raw, from: l}
		victim, ok := l.admit(c)
		if victim != nil {
			l.collector.metrics.connectionsCut.WithLabelValues("idle").Inc()
			_ = victim.Close()
		}
		if ok {
			return c, nil
		}
		l.collector.metrics.connectionsCut.WithLabelValues("full").Inc()
		_ = raw.Close()
	}
}

// admit counts the connection in, and returns the one that has to go for it.
func (l *listener) admit(c *conn) (victim *conn, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.max {
		first := l.idle.Front()
		if first == nil {
			return nil, false
		}
		victim = first.Value.(*conn)
		l.forget(victim)
	}
	l.open++
	c.counted = true
	c.idle = l.idle.PushBack(c)
	l.collector.metrics.connections.Set(float64(l.open))
	return victim, true
}

// forget takes a connection out of all accounts. l.mu is held.
func (l *listener) forget(c *conn) {
	if c.idle != nil {
		l.idle.Remove(c.idle)
		c.idle = nil
	}
	if c.counted {
		c.counted = false
		l.open--
		l.collector.metrics.connections.Set(float64(l.open))
	}
}

// track is the http.Server's ConnState hook.
func (l *listener) track(nc net.Conn, s http.ConnState) {
	c, ok := nc.(*conn)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case s == http.StateActive && c.idle != nil:
		l.idle.Remove(c.idle)
		c.idle = nil
	case s == http.StateIdle && c.counted && c.idle == nil:
		c.idle = l.idle.PushBack(c)
	}
}

// conn is a connection of the public address. It reads along with net/http to
// know the two things that net/http keeps to itself: that a request has both a
// Content-Length and a Transfer-Encoding, and which part of a request was too
// long. And it gives the errors that net/http answers by itself the form that
// all others have.
type conn struct {
	net.Conn
	from *listener

	// Guarded by from.mu.
	counted bool
	idle    *list.Element // in from.idle, while there is no request

	mu   sync.Mutex
	head head
}

type connKey struct{}

// withConn is the http.Server's ConnContext hook.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// connOf returns the connection of a request, or nil where it did not come by a
// Server.
func connOf(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.mu.Lock()
		c.head.read(p[:n])
		c.mu.Unlock()
	}
	return n, err
}

// Close closes the connection and makes room for another.
func (c *conn) Close() error {
	c.from.mu.Lock()
	c.from.forget(c)
	c.from.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite lets net/http end its side first, so that the client can read the
// last answer before the connection is reset.
func (c *conn) CloseWrite() error {
	if t, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return t.CloseWrite()
	}
	return nil
}

// ambiguous returns why it is unsure where the body of the present request, r,
// ends; "" where it is sure. What stands in front of the collector may go by
// another rule than net/http, and then takes the rest for a request of its own.
//
// With both headers net/http goes by Transfer-Encoding, as RFC 9112 (section 6.3)
// allows. In HTTP/1.0 it does not look at that header, and takes the body for the
// next request; RFC 9112 (section 6.1) calls such framing faulty.
func (c *conn) ambiguous(r *http.Request) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.head.contentLength && c.head.transferEncoding:
		return "both Content-Length and Transfer-Encoding"
	case c.head.transferEncoding && !r.ProtoAtLeast(1, 1):
		return "Transfer-Encoding in HTTP/1.0"
	}
	return ""
}

// nextRequest says that the present request is done with. (Of a request that was
// sent before the answer to the one before it, some may have been read by now and
// goes unseen; senders of POST requests do not do that, RFC 9112, section 9.3.2.)
func (c *conn) nextRequest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.head = head{}
}

// ownError is how every answer begins, after the status, that net/http writes
// without asking a handler.
const ownError = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"

// Write passes answers on. Those of net/http's own are replaced.
func (c *conn) Write(p []byte) (int, error) {
	if len(p) < 12 || string(p[:9]) != "HTTP/1.1 " || (p[9] != '4' && p[9] != '5') {
		return c.Conn.Write(p)
	}
	line, text, ok := bytes.Cut(p, []byte(ownError))
	if !ok || bytes.IndexByte(line, '\n') >= 0 {
		return c.Conn.Write(p)
	}
	c.mu.Lock()
	inURL := c.head.lines == 0
	c.mu.Unlock()
	problem := ownProblem(string(line[9:12]), string(text), inURL)
	if problem == nil {
		return c.Conn.Write(p)
	}
	c.from.collector.refusedUnread(c.RemoteAddr().String(), problem)
	a := protocol.Refuse(*problem)
	_, err := fmt.Fprintf(c.Conn, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		a.Status, http.StatusText(a.Status), a.ContentType, len(a.Body), a.Body)
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// ownProblem says in our terms what net/http says in its own; nil: nothing of ours.
func ownProblem(status, text string, inURL bool) *protocol.Problem {
	switch code, _ := strconv.Atoi(status); {
	case code == http.StatusBadRequest:
		detail := "the request is not HTTP/1.1"
		if _, more, ok := bytes.Cut([]byte(text), []byte(": ")); ok {
			detail = escape(string(more))
		}
		return protocol.NewProblem(protocol.CodeBadRequest, detail)
	case code == http.StatusRequestHeaderFieldsTooLarge && inURL:
		return protocol.NewProblem(protocol.CodeURLTooLong, "the URL is over 8 KiB")
	case code == http.StatusRequestHeaderFieldsTooLarge:
		return protocol.NewProblem(protocol.CodeHeadersTooLarge, "the headers are over 16 KiB")
	case code == http.StatusNotImplemented:
		return protocol.NewProblem(protocol.CodeUnsupportedTE, "want a Content-Length, or Transfer-Encoding: chunked")
	}
	return nil
}

// head follows the head of one request as it is read.
type head struct {
	done                            bool // all of it was read
	contentLength, transferEncoding bool
	lines                           int      // whole ones
	length                          int      // of the present line
	start                           [20]byte // the first bytes of the present line
}

func (h *head) read(p []byte) {
	for len(p) > 0 && !h.done {
		i := bytes.IndexByte(p, '\n')
		piece := p
		if i >= 0 {
			piece = p[:i]
		}
		if h.length < len(h.start) {
			copy(h.start[h.length:], piece)
		}
		h.length += len(piece)
		if i < 0 {
			return
		}
		p = p[i+1:]
		h.line()
	}
}

// line takes in the line that has just ended.
func (h *head) line() {
	start := h.start[:min(h.length, len(h.start))]
	switch {
	case h.length == 0 || h.length == 1 && start[0] == '\r':
		if h.lines == 0 { // net/http skips what some clients send after a POST
			h.length = 0
			return
		}
		h.done = true
	case hasName(start, "content-length:"):
		h.contentLength = true
	case hasName(start, "transfer-encoding:"):
		h.transferEncoding = true
	}
	h.lines++
	h.length = 0
}

// hasName compares without regard to case. name is in lower case.
func hasName(line []byte, name string) bool {
	return len(line) >= len(name) && bytes.EqualFold(line[:len(name)], []byte(name))
}
