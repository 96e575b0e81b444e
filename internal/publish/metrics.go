package publish

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/pkg/retry"
)

type metrics struct {
	seconds  prometheus.Histogram
	records  prometheus.Histogram
	errors   *prometheus.CounterVec
	rejected *prometheus.CounterVec

	spooled      *prometheus.CounterVec
	late         prometheus.Counter
	drained      prometheus.Counter
	drainedBytes prometheus.Counter
	drainErrors  *prometheus.CounterVec
	aside        prometheus.Counter
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
			Help: "Batches and groups that were not sent to Kafka, by reason: queue_full, slow, breaker_open, no_leader, no_topic, closed."}, []string{"reason"}),

		spooled: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_publish_spooled_total",
			Help: "Records that went to the spool, by reason: timeout, slow, failed, breaker_open, no_leader, no_topic, queue_full, closed."}, []string{"reason"}),
		late: prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_publish_late_total",
			Help: "Records that Kafka acknowledged after nobody waited any more; their copies in the spool are not sent."}),
		drained: prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_drain_records_total",
			Help: "Records that were brought from the spool to Kafka."}),
		drainedBytes: prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_drain_bytes_total",
			Help: "Bytes of records that were brought from the spool to Kafka."}),
		drainErrors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_drain_errors_total",
			Help: "Attempts to bring records from the spool to Kafka that failed, by class: transient, throttled, permanent, shutdown, or read where it was the spool."}, []string{"class"}),
		aside: prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_drain_set_aside_total",
			Help: "Spooled records that Kafka refuses for good; they are kept apart."}),
	}
	queued := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_publish_queued_bytes",
		Help: "Bytes of records that wait for Kafka or are on their way to it."},
		func() float64 { return float64(p.queued.Load()) })
	held := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_drain_held_records",
		Help: "Spooled records that are not sent now: a request that has them may still succeed, or they wait to be set aside."},
		func() float64 { return float64(p.drain.held.len()) })
	r.MustRegister(m.seconds, m.records, m.errors, m.rejected, queued, p.breakers,
		m.spooled, m.late, m.drained, m.drainedBytes, m.drainErrors, m.aside, held)
	return m
}

func (m *metrics) request(records int, took time.Duration, err error) {
	m.seconds.Observe(took.Seconds())
	m.records.Observe(float64(records))
	if err == nil {
		return
	}
	class := retry.ClassOf(err).String()
	if isRefusal(err) {
		class = "refused"
	}
	m.errors.WithLabelValues(class).Inc()
}
