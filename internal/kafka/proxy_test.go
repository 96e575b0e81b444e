package kafka

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// The ways a connection may be ill.
const (
	healthy int32 = iota
	muted         // requests arrive, answers do not: done, but nobody hears of it
	hung          // nothing arrives, as with a process that is stopped
)

// proxy stands between a client and its brokers, whatever addresses they give.
type proxy struct {
	mode atomic.Int32
	ln   net.Listener
	wg   sync.WaitGroup
	mu   sync.Mutex
	open []net.Conn
	to   chan string // where the connection that is being dialled goes
}

func newProxy(t testing.TB) *proxy {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{ln: ln, to: make(chan string, 100)}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		ln.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

// throughProxy is a client whose connections all go by way of a proxy.
func throughProxy(t testing.TB) (*Client, *proxy) {
	p := newProxy(t)
	c := testClient(t)
	c.conns.dialer = p.dial
	return c, p
}

func (p *proxy) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, p.ln.Addr().String())
	if err == nil {
		p.to <- address
	}
	return conn, err
}

func (p *proxy) accept() {
	for {
		client, err := p.ln.Accept()
		if err != nil {
			return
		}
		broker, err := net.Dial("tcp", <-p.to)
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		p.open = append(p.open, client, broker)
		p.mu.Unlock()
		p.wg.Go(func() { p.copy(broker, client, hung) })
		p.wg.Go(func() { p.copy(client, broker, muted) })
	}
}

// copy forwards until the proxy is at least as ill as given, and swallows from
// then on.
func (p *proxy) copy(dst, src net.Conn, ill int32) {
	defer dst.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if p.mode.Load() < ill {
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// cut breaks the connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.open {
		c.Close()
	}
	p.open = nil
}
