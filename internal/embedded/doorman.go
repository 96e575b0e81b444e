package embedded

import (
	"errors"
	"fmt"
	"io"
	"net"
)

// doorman stands between the clients and the engine's library. The library is
// ClickHouse's command line, whose rule for connections is to end the process when
// one fails with anything but a plain end: a client that is killed with answers
// unread resets its connection, and takes the engine with it. So the library
// listens behind the doorman, who turns every end of a client into a plain one and
// reads to their end the answers nobody waits for.
type doorman struct {
	listener net.Listener
	inner    string // where the library listens
}

// newDoormen listen on the public addresses and pick an inner one for each.
func newDoormen(native, http string) (n, h *doorman, err error) {
	host := hostOf(Endpoint{Addr: native})
	innerNative, innerHTTP := Endpoint{Addr: net.JoinHostPort(host, "0")}, Endpoint{Addr: net.JoinHostPort(host, "0")}
	n, h = &doorman{}, &doorman{}
	if n.listener, err = net.Listen("tcp", native); err != nil {
		return nil, nil, fmt.Errorf("listen for the engine: %w", err)
	}
	if h.listener, err = net.Listen("tcp", http); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("listen for the engine: %w", err), n.listener.Close())
	}
	if err = claim(&innerNative, &innerHTTP); err != nil {
		return nil, nil, errors.Join(err, n.listener.Close(), h.listener.Close())
	}
	n.inner, h.inner = innerNative.Addr, innerHTTP.Addr
	return n, h, nil
}

// port is the inner port.
func (d *doorman) port() string { return portOf(Endpoint{Addr: d.inner}) }

// serve passes connections through until the process ends.
func (d *doorman) serve() {
	for {
		client, err := d.listener.Accept()
		if err != nil {
			return
		}
		go d.pass(client.(*net.TCPConn))
	}
}

func (d *doorman) pass(client *net.TCPConn) {
	defer client.Close()
	conn, err := net.Dial("tcp", d.inner)
	if err != nil {
		return // not serving yet, or not any more
	}
	engine := conn.(*net.TCPConn)
	// Only after the engine has closed its side, so with nothing unread: this
	// close resets nothing.
	defer engine.Close()
	go func() {
		_, _ = io.Copy(engine, client) // however it ends, for the engine it is a plain end
		_ = engine.CloseWrite()
	}()
	_, _ = io.Copy(client, engine)
	_, _ = io.Copy(io.Discard, engine) // where the client does not read any more
}
