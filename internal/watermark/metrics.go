package watermark

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of a copier. The watermark is shown only by the process whose copier
// runs: one sink of the group.
type Metrics struct {
	copied     prometheus.Counter
	unreadable prometheus.Counter
	age        *age
}

// NewMetrics registers the copier's metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		copied: prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_ledger_records_total",
			Help: "Records of the ledger topic that were copied into ClickHouse."}),
		unreadable: prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_ledger_unreadable_total",
			Help: "Records of the ledger topic that could not be read. The collector they name holds the watermark until it writes another."}),
		age: &age{desc: prometheus.NewDesc("sluice_watermark_seconds",
			"Now less the time up to which everything acknowledged is queryable (delivery_watermark). Only the sink that copies the ledger has it.", nil, nil)},
	}
	r.MustRegister(m.copied, m.unreadable, m.age)
	return m
}

func (m *Metrics) set(until time.Time, now func() time.Time) { m.age.set(until, now) }
func (m *Metrics) stop()                                     { m.age.set(time.Time{}, nil) }

// age is computed when it is asked for, so that it grows while the copier cannot
// go on.
type age struct {
	desc *prometheus.Desc

	mu    sync.Mutex
	until time.Time // zero: nothing to show
	now   func() time.Time
}

func (a *age) set(until time.Time, now func() time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.until, a.now = until, now
}

// Describe implements prometheus.Collector.
func (a *age) Describe(ch chan<- *prometheus.Desc) { ch <- a.desc }

// Collect implements prometheus.Collector.
func (a *age) Collect(ch chan<- prometheus.Metric) {
	a.mu.Lock()
	until, now := a.until, a.now
	a.mu.Unlock()
	if until.IsZero() {
		return
	}
	ch <- prometheus.MustNewConstMetric(a.desc, prometheus.GaugeValue, max(0, now().Sub(until).Seconds()))
}
