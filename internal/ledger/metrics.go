package ledger

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	written, failed prometheus.Counter
}

func newMetrics(r prometheus.Registerer, l *Ledger) (*metrics, error) {
	records := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_ledger_reports_total",
		Help: "Ledger records, by outcome: written, failed (the next one says more)."}, []string{"outcome"})
	m := &metrics{written: records.WithLabelValues("written"), failed: records.WithLabelValues("failed")}
	locked := func(read func() float64) func() float64 {
		return func() float64 {
			l.mu.Lock()
			defer l.mu.Unlock()
			return read()
		}
	}
	for _, one := range []prometheus.Collector{records,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_ledger_in_flight",
			Help: "Records that were given a number and are not in Kafka, in the spool or refused yet."},
			locked(func() float64 { return float64(l.window.open) })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_ledger_void_ranges",
			Help: "Ranges of numbers given to batches that were answered with an error; above 4096 neighbours are joined, and what lies between them is unproven."},
			locked(func() float64 { return float64(len(l.window.voids)) })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_ledger_age_seconds",
			Help: "Since the last ledger record was written, or since the start where none was. delivery_watermark waits for the next one."},
			locked(func() float64 { return time.Since(l.written).Seconds() })),
	} {
		if err := r.Register(one); err != nil {
			return nil, fmt.Errorf("register the ledger's metrics: %w", err)
		}
	}
	return m, nil
}
