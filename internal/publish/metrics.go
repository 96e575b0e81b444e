package publish

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/pkg/retry"
)

type metrics struct {
	seconds  prometheus.Histogram
	records  prometheus.Histogram
	errors   *prometheus.CounterVec
	rejected *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, p *Publisher) *metrics {
	m := &metrics{
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sluice_produce_seconds",
			Help: "Time for Kafka to answer one produce request.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}),
		records: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sluice_produce_records",
			Help: "Records in one produce request.", Buckets: prometheus.ExponentialBuckets(1, 2, 11)}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_produce_errors_total",
			Help: "Produce requests that failed, by class: transient, throttled, permanent, shutdown, or refused for the records themselves."}, []string{"class"}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_publish_rejected_total",
			Help: "Batches and groups that were not sent to Kafka, by reason: queue_full, breaker_open, no_leader, no_topic, closed."}, []string{"reason"}),
	}
	queued := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_publish_queued_bytes",
		Help: "Bytes of records that wait for Kafka or are on their way to it."},
		func() float64 { return float64(p.queued.Load()) })
	r.MustRegister(m.seconds, m.records, m.errors, m.rejected, queued, p.breakers)
	return m
}

func (m *metrics) request(records int, took time.Duration, err error) {
	m.seconds.Observe(took.Seconds())
	m.records.Observe(float64(records))
	if err == nil {
		return
	}
	class := retry.ClassOf(err).String()
	var refused refusal
	if errors.As(err, &refused) {
		class = "refused"
	}
	m.errors.WithLabelValues(class).Inc()
}
