package prove

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// Wire is a connection between two parts of the pipeline that can be cut, slowed
// and torn: a TCP proxy on an address of its own. Safe for concurrent use.
type Wire struct {
	Name             string
	listen, upstream string
	patience         time.Duration

	mu    sync.Mutex
	proxy *toxiproxy.Proxy
	stuck int // proxies that had to be left behind
	// broken is set while the wire is not what it was.
	broken bool
}

// NewWire starts a proxy from listen, host:port, to upstream. Nobody has to listen
// there yet.
func NewWire(name, listen, upstream string) (*Wire, error) {
	w := &Wire{Name: name, listen: listen, upstream: upstream, patience: patient}
	if err := w.open(); err != nil {
		return nil, err
	}
	return w, nil
}

// Addr is the host:port the wire listens on.
func (w *Wire) Addr() string { return w.listen }

func (w *Wire) open() error {
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.New(io.Discard).Level(zerolog.Disabled))
	w.proxy = toxiproxy.NewProxy(server, w.Name, w.listen, w.upstream)
	if err := w.proxy.Start(); err != nil {
		return fmt.Errorf("listen on %s for the wire %s: %w", w.listen, w.Name, err)
	}
	return nil
}

// Close ends the proxy and its connections.
func (w *Wire) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.within(func() error { w.proxy.Stop(); return nil })
}

// patient is how long the proxy may take for what it does at once, unless it is
// stuck for good.
const patient = 5 * time.Second

var errStuck = errors.New("the proxy does not answer")

// within calls something of the proxy and does not wait for it for ever: the
// library waits for whoever reads a connection to take what it holds while it adds
// a toxic, and that may be a process that is paused, or nobody any more.
func (w *Wire) within(do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	timer := time.NewTimer(w.patience)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		w.stuck++
		return errStuck
	}
}

// toxic is one of the library's toxics, as its JSON has it.
type toxic struct {
	Type       string           `json:"type"`
	Name       string           `json:"name"`
	Stream     string           `json:"stream"` // upstream or downstream
	Toxicity   float32          `json:"toxicity"`
	Attributes map[string]int64 `json:"attributes"`
}

// add puts toxics on the wire, also on the connections that it has. On an error
// none is left.
func (w *Wire) add(toxics ...toxic) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = true
	for _, t := range toxics {
		text, err := json.Marshal(t)
		if err != nil {
			return fmt.Errorf("%s on the wire %s: %w", t.Type, w.Name, err)
		}
		p := w.proxy
		err = w.within(func() error {
			_, err := p.Toxics.AddToxicJson(bytes.NewReader(text))
			return err
		})
		if err != nil {
			return errors.Join(fmt.Errorf("%s on the wire %s: %w", t.Type, w.Name, err), w.renew())
		}
	}
	return nil
}

// cut closes the wire's connections and refuses new ones.
func (w *Wire) cut() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = true
	p := w.proxy
	if err := w.within(func() error { p.Stop(); return nil }); err != nil {
		return fmt.Errorf("cut the wire %s: %w", w.Name, err)
	}
	return nil
}

// heal makes the wire what it was, by a new proxy on the same address: connections
// that toxics were on are closed. A wire that is whole stays as it is. Taking a
// toxic away from a living connection is no way: the library gives up what it holds
// after 5 s and goes on with what comes next, which TCP never does.
func (w *Wire) heal() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.broken {
		return nil
	}
	return w.renew()
}

// renew waits for the old proxy's listener to be gone. Where that one is stuck its
// connections are left to their ends.
func (w *Wire) renew() error {
	p := w.proxy
	_ = w.within(func() error { p.Stop(); return nil }) // its listener is closed first
	var err error
	for range 100 {
		if err = w.open(); err == nil {
			w.broken = false
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}
