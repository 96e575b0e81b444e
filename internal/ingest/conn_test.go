package ingest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
)

// exchange sends a request over a connection that stays open, and reads the
// answer.
func exchange(t *testing.T, c net.Conn, r *bufio.Reader, request string) answer {
	t.Helper()
	_, err := io.WriteString(c, request)
	require.NoError(t, err)
	res, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	if res.Close {
		res.Header.Set("Connection", "close")
	}
	return answer{res.StatusCode, res.Header, body}
}

// closed checks that the other side has closed the connection.
func closed(t *testing.T, r io.Reader) {
	t.Helper()
	_, err := r.Read(make([]byte, 1))
	require.Error(t, err)
	assert.False(t, tooSlow(err), "the connection is still open")
}

// TestEveryRequestOfAConnection: what is looked at is the present request's head,
// not an earlier one's, nor a body that looks like one.
func TestEveryRequestOfAConnection(t *testing.T) {
	e := start(t)
	c := e.dial()
	r := bufio.NewReader(c)
	chunked := fmt.Sprintf("%x\r\n[%s]\r\n0\r\n\r\n", len(good)+2, good)
	keep := rawHead("POST", "/v1/exposures", "Transfer-Encoding: chunked") + chunked
	require.Equal(t, 202, exchange(t, c, r, keep).status)
	require.Equal(t, 202, exchange(t, c, r, rawPost("["+good+"]")).status)
	require.Equal(t, 202, exchange(t, c, r, "\r\n"+keep).status, "an empty line after a POST is tolerated")
	body := good + strings.Repeat(" ", 5000) + "\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"
	require.Equal(t, 202, exchange(t, c, r, rawPost(body, "Content-Type: application/x-ndjson")).status)
	require.Equal(t, 202, exchange(t, c, r, keep).status)
	a := exchange(t, c, r, "\r\n"+rawHead("POST", "/v1/exposures", "Transfer-Encoding: chunked", "Content-Length: 5")+chunked)
	assert.Equal(t, 400, a.status)
	assert.Equal(t, protocol.CodeBadRequest, a.code())
	assert.Equal(t, "close", a.header.Get("Connection"))
	_, err := io.Copy(io.Discard, r)
	assert.NoError(t, err, "the connection is closed")
	assert.Len(t, e.pub.records(), 5)
}

// TestNoRequestInABody: net/http takes a chunked body in HTTP/1.0 for the next
// request; what is in it must not be served.
func TestNoRequestInABody(t *testing.T) {
	e := start(t)
	for _, path := range []string{"/v1/exposures", "/healthz", "/none"} {
		c := e.dial()
		inside := rawPost("[" + good + "]")
		_, err := io.WriteString(c, "POST "+path+" HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"+inside)
		require.NoError(t, err)
		all, _ := io.ReadAll(c)
		assert.Equal(t, 1, strings.Count(string(all), "Content-Length:"), "one answer, and the connection is closed: %s", all)
		assert.Contains(t, string(all), " 400 Bad Request")
	}
	assert.Empty(t, e.pub.records())
}

func TestHead(t *testing.T) {
	for name, tt := range map[string]struct {
		pieces []string
		want   head
	}{
		"both":           {[]string{"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nContent"}, head{done: true, contentLength: true, transferEncoding: true, lines: 4}},
		"bare LF":        {[]string{"POST / HTTP/1.1\ncontent-LENGTH:1\n\n"}, head{done: true, contentLength: true, lines: 3}},
		"byte by byte":   {strings.Split("POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n", ""), head{done: true, contentLength: true, lines: 3}},
		"other names":    {[]string{"POST / HTTP/1.1\r\nX-Content-Length: 1\r\nContent-Lengths: 1\r\n Content-Length: 1\r\n\r\n"}, head{done: true, lines: 5}},
		"in the URL":     {[]string{"Content-Length: / HTTP/1.1\r\n\r\n"}, head{done: true, contentLength: true, lines: 2}},
		"not finished":   {[]string{"POST / HTTP/1.1\r\nContent-Length"}, head{lines: 1}},
		"empty at first": {[]string{"\r\n\nPOST / HTTP/1.1\r\n\r\n"}, head{done: true, lines: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			var h head
			for _, p := range tt.pieces {
				h.read([]byte(p))
			}
			h.start, h.length = [20]byte{}, 0
			assert.Equal(t, tt.want, h)
		})
	}
}

// TestIdleFlood: connections that say nothing make room for those that do.
func TestIdleFlood(t *testing.T) {
	e := start(t, func(o *Options) { o.Limits.MaxConns = 10 })
	var idle []net.Conn
	for range 40 {
		c := e.dial()
		idle = append(idle, c)
		// Slow headers count as idle.
		_, err := io.WriteString(c, "POST /v1/exposures HTTP/1.1\r\nX-Slow: ")
		if err != nil {
			continue // cut already
		}
	}
	e.alive()
	for _, c := range idle[:20] {
		closed(t, c)
	}
	require.Eventually(t, func() bool { return value(t, e.reg, "sluice_connections") <= 10 }, 10*time.Second, time.Millisecond)
	assert.GreaterOrEqual(t, value(t, e.reg, "sluice_connections_cut_total", "reason", "idle"), 20.0)
}

// TestBusyConnections: with a request on every connection, a new one is closed,
// and none of the others is.
func TestBusyConnections(t *testing.T) {
	e := start(t, func(o *Options) {
		o.Limits.MaxConns = 4
		o.Keys = keyring{"a": {ID: "a", Project: "p"}, "b": {ID: "b", Project: "p"}}
	})
	b := newBlocker(e.pub)
	var answers []<-chan answer
	for i := range 4 {
		key := "ab"[i%2 : i%2+1]
		answers = append(answers, e.later([]byte("["+good+"]"), "Authorization", "Bearer "+key))
		<-b.entered
	}
	closed(t, e.dial())
	assert.Equal(t, 1.0, value(t, e.reg, "sluice_connections_cut_total", "reason", "full"))
	for range answers {
		b.release <- nil
	}
	for _, a := range answers {
		assert.Equal(t, 202, (<-a).status)
	}
	e.pub.set(nil)
	a := e.post("/v1/exposures", []byte("["+good+"]"), "Authorization", "Bearer a")
	assert.Equal(t, 202, a.status)
}

// pipe is a listener in memory, whose connections a synctest bubble can follow.
type pipe struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipe) Close() error   { close(p.closed); return nil }
func (p *pipe) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// inBubble serves a collector inside a synctest bubble, and returns what opens a
// connection to it.
func inBubble(t *testing.T, c *Collector) func() net.Conn {
	s := NewServer(c, nil)
	l := &pipe{conns: make(chan net.Conn), closed: make(chan struct{})}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.NoError(t, <-served)
		<-time.After(time.Second) // net/http lingers half of that over unread bodies
	})
	return func() net.Conn {
		client, server := net.Pipe()
		l.conns <- server
		return client
	}
}

// TestSlowHeaders: headers have five seconds, an idle connection a minute.
func TestSlowHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _, _, _ := testOptions()
		c, err := New(o)
		require.NoError(t, err)
		dial := inBubble(t, c)
		for name, tt := range map[string]struct {
			send []string
			wait time.Duration
		}{
			"nothing":       {nil, 5 * time.Second},
			"half a head":   {[]string{"POST /v1/exposures HTTP/1.1\r\nX-"}, 5 * time.Second},
			"a whole GET":   {[]string{"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"}, time.Minute},
			"a GET and one": {[]string{"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "GET /h"}, 5 * time.Second},
		} {
			client := dial()
			r := bufio.NewReader(client)
			for i, part := range tt.send {
				_, err := io.WriteString(client, part)
				require.NoError(t, err)
				if strings.HasPrefix(part, "GET /healthz") {
					res, err := http.ReadResponse(r, nil)
					require.NoError(t, err, i)
					_, err = io.Copy(io.Discard, res.Body)
					require.NoError(t, err)
				}
			}
			begun := time.Now()
			_, err := io.Copy(io.Discard, r)
			assert.NoError(t, err, name)
			assert.Equal(t, tt.wait, time.Since(begun), name)
			_ = client.Close()
		}
	})
}

// TestSlowBody: a body has to come at two kibibytes a second, five seconds aside,
// and in fifteen seconds as a whole.
func TestSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, pub, _, _ := testOptions()
		c, err := New(o)
		require.NoError(t, err)
		dial := inBubble(t, c)
		for _, tt := range []struct {
			name          string
			every         time.Duration
			bytes, pieces int
			cut           time.Duration // 0: it gets through
		}{
			{"a byte a second", time.Second, 1, 100, 5*time.Second + 5*time.Second/2048},
			{"1 KB a second", time.Second, 1000, 100, 5*time.Second + 8000*time.Second/2048},
			{"3 KiB a second", time.Second, 3 << 10, 12, 0},
			{"all at once, after a while", 4 * time.Second, 20 << 10, 1, 0},
			{"in bursts", 6 * time.Second, 100 << 10, 2, 5 * time.Second},
			{"for too long", time.Second, 100 << 10, 90, 15 * time.Second},
		} {
			client := dial()
			total := tt.bytes * tt.pieces
			_, err := io.WriteString(client, rawHead("POST", "/v1/exposures", fmt.Sprint("Content-Length: ", total+len(good)+2)))
			require.NoError(t, err)
			begun := time.Now()
			go func() {
				for range tt.pieces {
					<-time.After(tt.every)
					if _, err := io.WriteString(client, strings.Repeat(" ", tt.bytes)); err != nil {
						return
					}
				}
				_, _ = io.WriteString(client, "["+good+"]")
			}()
			a := readAnswer(client)
			if tt.cut == 0 {
				assert.Equal(t, 202, a.status, tt.name)
				assert.Len(t, pub.records(), 1, tt.name)
			} else {
				assert.Equal(t, 408, a.status, tt.name)
				assert.InDelta(t, tt.cut.Seconds(), time.Since(begun).Seconds(), 0.01, tt.name)
				assert.Empty(t, pub.records(), tt.name)
			}
			_ = client.Close()
		}
	})
}

// TestSlowReader: an answer that is not taken costs its connection, and what the
// request held is given back.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _, _, _ := testOptions()
		c, err := New(o)
		require.NoError(t, err)
		dial := inBubble(t, c)
		client := dial()
		_, err = io.WriteString(client, rawPost("["+strings.Repeat("{},", 9999)+"{}]"))
		require.NoError(t, err)
		synctest.Wait() // the answer waits to be taken
		assert.Greater(t, c.inflight.inUse(), int64(1<<20))
		<-time.After(c.limits.WriteTimeout)
		synctest.Wait()
		assert.Zero(t, c.inflight.inUse())
		_, err = io.Copy(io.Discard, client)
		assert.NoError(t, err, "the connection is closed")
	})
}

// TestShutdown: requests are answered, on connections that then close; new ones
// are not taken.
func TestShutdown(t *testing.T) {
	e := start(t)
	b := newBlocker(e.pub)
	first := e.later([]byte("[" + good + "]"))
	<-b.entered
	e.c.Drain()
	second := e.later([]byte("[" + good + "]"))
	<-b.entered
	assert.ErrorIs(t, e.server.Shutdown(cancelled()), context.Canceled, "they are not done")
	down := make(chan error, 1)
	go func() { down <- e.server.Shutdown(context.WithoutCancel(t.Context())) }()
	for range 2 {
		b.release <- nil
	}
	for _, ch := range []<-chan answer{first, second} {
		a := <-ch
		assert.Equal(t, 202, a.status)
		assert.Equal(t, "close", a.header.Get("Connection"))
	}
	assert.NoError(t, <-down)
	_, err := net.Dial("tcp", e.addr)
	assert.Error(t, err)
	assert.Len(t, e.pub.records(), 2)
}

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// TestDrain: before the collector stops listening, every answer is the last one
// on its connection.
func TestDrain(t *testing.T) {
	e := start(t)
	c := e.dial()
	r := bufio.NewReader(c)
	assert.Empty(t, exchange(t, c, r, rawPost("["+good+"]")).header.Get("Connection"))
	e.c.Drain()
	a := exchange(t, c, r, rawPost("["+good+"]"))
	assert.Equal(t, 202, a.status)
	assert.Equal(t, "close", a.header.Get("Connection"))
	_, err := io.Copy(io.Discard, r)
	assert.NoError(t, err)
	assert.Equal(t, "close", e.raw("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").header.Get("Connection"))
}
