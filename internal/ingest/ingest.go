// Package ingest is the collector's HTTP side: it admits a request, finds out
// who sent it, reads the body within bounds, has a protocol make a batch of it,
// gives the batch its identity, has it made durable, and only then answers.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// Publisher makes records durable. Publish returns nil only when every record is
// durable, in the place it names; after an error none may be claimed (though
// some may have been kept: copies are recognised by their identity). It must
// return soon after ctx is done, and go by ctx only: ingest's ctx does not end
// with the client's connection. It may keep the records' values after it has
// returned; ingest does not touch them again. From the moment it is called it also
// settles the number that the Ledger gave to each record: it tells the Ledger what
// becomes of it, whatever happens. An error that knows when to come back implements
// RetryAfter() time.Duration. Ready returns nil while something durable is in
// reach. Both are called concurrently.
type Publisher interface {
	Publish(ctx context.Context, records []batch.Record) (batch.Durable, error)
	Ready() error
}

// Ledger stamps a batch before it is published. Accept gives it the receive time,
// which never goes back, and n consecutive sequence numbers; every number it gives
// is then settled, by the Publisher once it was handed the records, and by Withdraw
// for those that never came to it: while one is not settled, nothing received since
// can be said to be complete. Ready returns nil while batches may be accepted; while
// it does not, Accept returns the zero Stamp, of which nothing may be published. All
// are called concurrently.
type Ledger interface {
	Accept(n int) batch.Stamp
	Withdraw(stamp batch.Stamp, n int)
	Ready() error
}

// Keys resolves a write key; the empty key is "none sent". It returns
// ErrUnknownKey for a key that does not exist, and compares in constant time.
// It must not block: it is asked once a request. Called concurrently.
type Keys interface {
	Lookup(key string) (Grant, error)
}

// ErrUnknownKey is returned by Keys for a key that does not exist.
var ErrUnknownKey = errors.New("no such write key")

// Grant is what a write key allows.
type Grant struct {
	ID       string   // names the key in logs and limits; not the key itself; unique
	Project  string   // where its events go
	Scopes   []string // endpoints it may use; empty: all
	Disabled bool
	Rate     float64 // events a second; 0: unlimited
	Burst    int     // events at once; never less than one full batch
}

// Anonymous is the Keys of a collector that lets anybody in: any key, or none,
// writes to the project "default".
type Anonymous struct{}

// Lookup always succeeds.
func (Anonymous) Lookup(string) (Grant, error) {
	return Grant{ID: "anonymous", Project: "default"}, nil
}

// Limits bound what a request, and all requests together, may take. Every zero
// field gets its default.
type Limits struct {
	MaxBody      int64         // bytes of one body, as sent and decompressed; default 10 MiB
	MaxEvents    int           // events of one batch; default 10,000
	RecordMax    int           // bytes of one Kafka record's value; at least 4 KiB; default 900 KiB
	MaxInFlight  int64         // bytes of bodies, batches and records held for all requests; at least 4 × MaxBody and 4 MiB; default 40 MiB or 4 × MaxBody
	MaxConns     int           // open connections; default 1,000
	BodyTimeout  time.Duration // for a whole body to arrive; default 15 s
	WriteTimeout time.Duration // for an answer to be taken; default 10 s
	Publish      time.Duration // for a batch to become durable; default 15 s
	RecentCount  int           // batches remembered for repeats; default 50,000
	RecentBytes  int64         // memory for them; default 12 MiB: a batch takes 224 bytes, and some 150 for each of its rejected events
	RecentAge    time.Duration // how long; default 10 min
	Time         schema.Limits // beyond these, an event's time is clamped; default 720 h back, 1 h ahead
}

func (l *Limits) defaults() error {
	or(&l.MaxBody, 10<<20)
	or(&l.MaxEvents, 10_000)
	or(&l.RecordMax, 900<<10)
	or(&l.MaxInFlight, max(40<<20, 4*l.MaxBody))
	or(&l.MaxConns, 1000)
	or(&l.BodyTimeout, 15*time.Second)
	or(&l.WriteTimeout, 10*time.Second)
	or(&l.Publish, 15*time.Second)
	or(&l.RecentCount, 50_000)
	or(&l.RecentBytes, 12<<20)
	or(&l.RecentAge, 10*time.Minute)
	or(&l.Time.Past, 720*time.Hour)
	or(&l.Time.Future, time.Hour)
	if l.MaxBody < 0 || l.MaxEvents < 0 || l.RecordMax < 0 || l.MaxConns < 0 || l.RecentCount < 0 || l.RecentBytes < 0 ||
		min(l.BodyTimeout, l.WriteTimeout, l.Publish, l.RecentAge, l.Time.Past, l.Time.Future) < 0 {
		return errors.New("limits: none may be negative")
	}
	if l.RecordMax < 4<<10 {
		return fmt.Errorf("record limit of %d bytes: want at least 4 KiB, half of which is for what every record has", l.RecordMax)
	}
	if least := max(4*l.MaxBody, 4<<20); l.MaxInFlight < least {
		// The largest body is held as sent and decompressed, the latter twice while
		// its buffer grows; later decoded and encoded. Of less than this one key's
		// share (7/8) would be too small for it.
		return fmt.Errorf("in-flight limit of %d bytes: want at least %d, four times the body limit", l.MaxInFlight, least)
	}
	return nil
}

func or[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Options are what a Collector is made of. Log and Registerer may be nil.
type Options struct {
	Endpoints  []protocol.Endpoint
	Publisher  Publisher
	Ledger     Ledger
	Keys       Keys
	Limits     Limits
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Collector is the public HTTP handler. Make one with New; it starts no
// goroutines and needs no closing.
type Collector struct {
	publisher Publisher
	ledger    Ledger
	keys      Keys
	limits    Limits
	log       *boundedLog
	metrics   *metrics
	routes    map[string]*route
	wild      map[string]*route // by what comes before the last segment, which may be anything
	inflight  *budget
	rates     *rates
	recent    *recent
	buffers   *buffers
	benches   chan *bench // those that are free
	time      timed
	draining  atomic.Bool
}

// New checks the options and returns a ready Collector. It returns an error for
// a missing part, two endpoints on one path and method, or limits that cannot
// hold together.
func New(o Options) (*Collector, error) {
	if o.Publisher == nil || o.Ledger == nil || o.Keys == nil {
		return nil, errors.New("collector: publisher, ledger and keys are required")
	}
	if err := o.Limits.defaults(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Registerer == nil {
		o.Registerer = prometheus.NewRegistry()
	}
	c := &Collector{
		publisher: o.Publisher,
		ledger:    o.Ledger,
		keys:      o.Keys,
		limits:    o.Limits,
		log:       newBoundedLog(o.Log),
		inflight:  newBudget(o.Limits.MaxInFlight, o.Limits.MaxConns),
		rates:     newRates(o.Limits.MaxEvents),
		recent:    newRecent(o.Limits.RecentCount, o.Limits.RecentBytes, o.Limits.RecentAge),
		buffers:   newBuffers(),
	}
	c.time.time = o.Limits.Publish
	c.setBenches()
	var err error
	if c.routes, err = c.table(o.Endpoints); err != nil {
		return nil, err
	}
	c.wild = map[string]*route{}
	for path, r := range c.routes {
		if prefix, ok := strings.CutSuffix(path, "/*"); ok {
			c.wild[prefix] = r
			delete(c.routes, path)
		}
	}
	if c.metrics, err = newMetrics(o.Registerer, c); err != nil {
		return nil, err
	}
	return c, nil
}

// builtin are the routes that are there whatever the endpoints.
func builtin() map[string]*route {
	return map[string]*route{
		"/healthz":      {name: "healthz", methods: map[string]handler{http.MethodGet: healthz, http.MethodHead: healthz}},
		"/openapi.json": {name: "openapi", methods: map[string]handler{http.MethodGet: openAPI, http.MethodHead: openAPI}},
	}
}

// table lays out the routes: exact paths only, so that no request is ever
// answered with a redirect, which some SDKs take for success.
func (c *Collector) table(endpoints []protocol.Endpoint) (map[string]*route, error) {
	t := builtin()
	for i := range endpoints {
		ep := endpoints[i]
		if ep.Name == "" || ep.Decode == nil || len(ep.Methods) == 0 || !strings.HasPrefix(ep.Path, "/") {
			return nil, fmt.Errorf("endpoint %q at %q: want a name, a method, a path and a decoder", ep.Name, ep.Path)
		}
		if ep.Key == nil {
			ep.Key = protocol.WriteKey
		}
		if ep.Accept == nil {
			ep.Accept = protocol.Accept
		}
		if ep.Refuse == nil {
			ep.Refuse = protocol.Refuse
		}
		r := t[ep.Path]
		if r == nil {
			r = &route{name: ep.Name, methods: map[string]handler{}}
			t[ep.Path] = r
		}
		for _, m := range ep.Methods {
			if by := r.add(m, &ep, c.serve); by != "" {
				return nil, fmt.Errorf("endpoint %q: %s %s is taken by %q", ep.Name, m, ep.Path, by)
			}
		}
		if ep.CORS != nil {
			r.cors = append(r.cors, ep.CORS...)
		}
		if r.refuse == nil || ep.Takes == nil {
			r.name, r.refuse = ep.Name, ep.Refuse
		}
	}
	for path, r := range t {
		for m, eps := range r.endpoints {
			if eps[0].Takes != nil {
				return nil, fmt.Errorf("%s %s: no endpoint takes what %q does not", m, path, eps[0].Name)
			}
		}
	}
	return t, nil
}

// Drain makes every answer from now on the last one on its connection, so that
// clients move elsewhere while the collector still listens.
func (c *Collector) Drain() { c.draining.Store(true) }

// Ready returns nil while batches can be taken: the collector is not draining,
// something durable is in reach, and the ledger may take them down.
func (c *Collector) Ready() error {
	if c.Draining() {
		return errors.New("draining")
	}
	return c.accepting()
}

// accepting returns nil while a batch could be published and taken down.
func (c *Collector) accepting() error {
	if err := c.publisher.Ready(); err != nil {
		return err
	}
	return c.ledger.Ready()
}

// Draining reports whether Drain was called.
func (c *Collector) Draining() bool { return c.draining.Load() }
