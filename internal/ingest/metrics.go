package ingest

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
)

// The values of the outcome label of sluice_events_total.
const (
	eventsAccepted   = "accepted"    // durable
	eventsRejected   = "rejected"    // did not pass; durable beside the accepted ones
	eventsDropped    = "dropped"     // noise of an SDK, of which nothing is kept
	eventsDuplicate  = "duplicate"   // in a copy of a batch that was accepted before
	eventsConflict   = "conflict"    // under a key that was used before with other events
	eventsNotDurable = "not_durable" // nowhere to put them; their sender was told so
)

// metrics of a collector's HTTP side. Labels take values from tables only: the
// endpoints, the statuses, the codes.
type metrics struct {
	requests         *prometheus.CounterVec
	refused          *prometheus.CounterVec
	requestsInFlight prometheus.Gauge
	ack              *prometheus.HistogramVec
	events           *prometheus.CounterVec
	connections      prometheus.Gauge
	connectionsCut   *prometheus.CounterVec

	codes map[string]bool
	// Of what nearly every request is: looked up once, not each time.
	byOutcome     map[string]prometheus.Counter
	kafka, spool  prometheus.Observer
	acceptedByEnd map[string]prometheus.Counter // requests answered 202, by endpoint
}

func newMetrics(reg prometheus.Registerer, c *Collector) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_requests_total",
			Help: "HTTP requests answered, by endpoint and status."}, []string{"endpoint", "code"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_requests_refused_total",
			Help: "HTTP requests refused, by endpoint and problem code (docs/errors.md)."}, []string{"endpoint", "code"}),
		requestsInFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_requests_in_flight",
			Help: "HTTP requests being worked on."}),
		ack: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "sluice_ack_seconds",
			Help:    "From a request's headers to its batch being durable, by where it is durable (kafka, spool).",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}, []string{"durable"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_events_total",
			Help: "Events received, by outcome: accepted, rejected, dropped (noise), duplicate, conflict, not_durable."}, []string{"outcome"}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_connections",
			Help: "Open connections to the public address."}),
		connectionsCut: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_connections_cut_total",
			Help: "Connections closed because there were too many: idle ones to make room, or new ones where none was idle."}, []string{"reason"}),
		codes: map[string]bool{}, byOutcome: map[string]prometheus.Counter{}, acceptedByEnd: map[string]prometheus.Counter{},
	}
	for _, info := range protocol.Codes() {
		m.codes[info.Code] = true
	}
	all := []prometheus.Collector{m.requests, m.refused, m.requestsInFlight, m.ack, m.events, m.connections, m.connectionsCut,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_in_flight_bytes",
			Help: "Bytes of bodies, decoded batches and records held for all requests."},
			func() float64 { return float64(c.inflight.inUse()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_in_flight_limit_bytes",
			Help: "The most that sluice_in_flight_bytes may be; beyond it requests are answered 503."},
			func() float64 { return float64(c.inflight.limit) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_recent_batches",
			Help: "Batches remembered, or in flight, so that copies of them are recognised at once."},
			func() float64 { return float64(c.recent.size()) }),
	}
	for _, one := range all {
		if err := reg.Register(one); err != nil {
			return nil, fmt.Errorf("register the collector's metrics: %w", err)
		}
	}
	// So that rates are right from the first event on.
	for _, o := range []string{eventsAccepted, eventsRejected, eventsDropped, eventsDuplicate, eventsConflict, eventsNotDurable} {
		m.byOutcome[o] = m.events.WithLabelValues(o)
	}
	for _, table := range []map[string]*route{c.routes, c.wild} {
		for _, r := range table {
			for _, eps := range r.endpoints {
				for _, ep := range eps {
					m.acceptedByEnd[ep.Name] = m.requests.WithLabelValues(ep.Name, codeAccepted)
				}
			}
		}
	}
	m.kafka, m.spool = m.ack.WithLabelValues(string(batch.InKafka)), m.ack.WithLabelValues(string(batch.InSpool))
	return m, nil
}

// refuse counts a refused request. A protocol may make problems of its own; a
// code that is in no table counts as "other".
func (m *metrics) refuse(endpoint, code string) {
	if !m.codes[code] {
		code = "other"
	}
	m.refused.WithLabelValues(endpoint, code).Inc()
}

func (m *metrics) count(outcome string, n int) {
	if n > 0 {
		m.byOutcome[outcome].Add(float64(n))
	}
}

// codeAccepted is the code label of nearly every answer.
const codeAccepted = "202"

// answered counts a request.
func (m *metrics) answered(endpoint, code string) {
	if c := m.acceptedByEnd[endpoint]; c != nil && code == codeAccepted {
		c.Inc()
		return
	}
	m.requests.WithLabelValues(endpoint, code).Inc()
}

// acknowledged takes down how long a batch took to become durable, and where. The
// label is bounded, whatever a publisher says.
func (m *metrics) acknowledged(d batch.Durable, took time.Duration) {
	switch d {
	case batch.InKafka:
		m.kafka.Observe(took.Seconds())
	case batch.InSpool:
		m.spool.Observe(took.Seconds())
	default:
		m.ack.WithLabelValues("other").Observe(took.Seconds())
	}
}
