package sink

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/pkg/schema"
)

// Metrics of a sink. The partition label is bounded by the topic's partitions.
type Metrics struct {
	rows         *prometheus.CounterVec
	insertTime   prometheus.Histogram
	insertErrors prometheus.Counter
	readBacks    prometheus.Counter
	healed       *prometheus.CounterVec
	duplicates   prometheus.Counter
	conflicts    prometheus.Counter
	dead         *prometheus.CounterVec
	lag          *prometheus.GaugeVec
	stopped      *prometheus.GaugeVec
	alarms       *prometheus.CounterVec
	blockRows    prometheus.Histogram
	breaker      prometheus.Gauge
	pieces       prometheus.Counter
}

// NewMetrics registers the sink's metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_sink_rows_total",
			Help: "Rows stored in ClickHouse, by table."}, []string{"table"}),
		insertTime: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sluice_sink_insert_seconds",
			Help:    "Time to insert one block into all its tables, intent included.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 14)}),
		insertErrors: prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_sink_insert_errors_total",
			Help: "Inserts whose outcome was unsure and was read back."}),
		readBacks: prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_sink_read_backs_total",
			Help: "Blocks that were compared with what ClickHouse has."}),
		healed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_sink_healed_rows_total",
			Help: "Rows that were found missing and inserted again: unsure (an insert that did not arrive) or torn (ClickHouse knew the insert's token but had no rows)."}, []string{"kind"}),
		duplicates: prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_sink_duplicates_total",
			Help: "Records that were copies of an earlier one and were not stored again."}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_sink_conflicts_total",
			Help: "Records whose idempotency key was used before with other events; kept in dead_letters."}),
		dead: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_dead_total",
			Help: "Rows written to dead_letters, by reason."}, []string{"reason"}),
		lag: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_sink_lag_records",
			Help: "Records of a partition that are not stored yet."}, []string{"partition"}),
		stopped: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_sink_stopped",
			Help: "1 while a partition waits for a person (sluice resume)."}, []string{"partition"}),
		alarms: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_sink_alarms_total",
			Help: "Things that should not happen and that a person should look at, by kind."}, []string{"kind"}),
		blockRows: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sluice_sink_block_rows",
			Help: "Rows in a block, all tables.", Buckets: prometheus.ExponentialBuckets(1, 4, 11)}),
		pieces: prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_sink_pieces_total",
			Help: "Inserts of parts of a block, made to find the events in it that ClickHouse refuses."}),
	}
	states := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_breaker_state",
		Help: "Circuit breaker: 0 closed, 1 half-open, 2 open; while it is open nothing is read from Kafka."}, []string{"target"})
	m.breaker = states.WithLabelValues("clickhouse")
	r.MustRegister(states, m.pieces, m.rows, m.insertTime, m.insertErrors, m.readBacks, m.healed, m.duplicates, m.conflicts, m.dead, m.lag, m.stopped, m.alarms, m.blockRows)
	return m
}

// reset drops what a process showed of partitions it may not have any more.
func (m *Metrics) reset() {
	m.lag.Reset()
	m.stopped.Reset()
}

func (m *Metrics) partition(st Status) {
	label := strconv.Itoa(st.Partition)
	m.lag.WithLabelValues(label).Set(float64(st.Lag))
	stopped := 0.0
	if st.State == "stopped" {
		stopped = 1
	}
	m.stopped.WithLabelValues(label).Set(stopped)
}

func (m *Metrics) alarm(kind string) { m.alarms.WithLabelValues(kind).Inc() }

func (m *Metrics) inserted(rows int, took time.Duration) {
	m.insertTime.Observe(took.Seconds())
	m.blockRows.Observe(float64(rows))
}

// deadReason keeps the label bounded: reasons come with the records, and a
// record may come from anywhere.
func deadReason(reason string) string {
	switch schema.Code(reason) {
	case schema.CodeMissingField, schema.CodeInvalidType, schema.CodeInvalidKind, schema.CodeInvalidTime,
		schema.CodeInvalidString, schema.CodeInvalidNumber, schema.CodeDuplicateField, schema.CodeMisspelledField,
		schema.CodeTooLong, schema.CodeTooLarge, schema.CodeTooMany, schema.CodeMalformed, schema.CodeUnmappable,
		reasonUndecodable, reasonRefused, "key_reused":
		return reason
	}
	return "other"
}

func (m *Metrics) delivered(b *block) {
	if n := len(b.refused); n > 0 {
		m.dead.WithLabelValues(reasonRefused).Add(float64(n))
	}
	for i := range b.items {
		it := &b.items[i]
		switch it.outcome {
		case schema.Duplicate:
			m.duplicates.Inc()
		case schema.Conflict:
			m.conflicts.Inc()
			m.dead.WithLabelValues("key_reused").Add(float64(it.head.Events))
		case schema.Dead:
			m.dead.WithLabelValues(reasonUndecodable).Inc()
		case schema.Stored:
			for j := range it.rejected {
				m.dead.WithLabelValues(deadReason(string(it.rejected[j].Code))).Inc()
			}
		}
	}
}
