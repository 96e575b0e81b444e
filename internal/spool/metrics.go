package spool

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	appended, removed prometheus.Counter
	refused           *prometheus.CounterVec
	commit            prometheus.Histogram
	syncErrors        prometheus.Counter
	writeErrors       prometheus.Counter
	damage            *prometheus.CounterVec
	setAside          *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, s *Spool) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	vector := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	m := &metrics{
		appended: counter("sluice_spool_appended_total", "Records made durable in the spool."),
		removed:  counter("sluice_spool_removed_total", "Records that left the spool because Kafka has them."),
		refused: vector("sluice_spool_refused_total",
			"Appends that were refused, by reason: full (SLUICE_SPOOL_MAX_BYTES), disk (SLUICE_SPOOL_MIN_FREE_BYTES), error (a write or an fsync failed).", "reason"),
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sluice_spool_commit_seconds",
			Help: "Time to write and fsync one group of appends.", Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16)}),
		syncErrors:  counter("sluice_spool_fsync_errors_total", "Fsyncs that failed. The file is not written to again."),
		writeErrors: counter("sluice_spool_write_errors_total", "Files that could not be created or written, other than by a failed fsync."),
		damage: vector("sluice_spool_damage_total",
			"Damage found, by kind: record, segment, missing, manifest, progress.", "kind"),
		setAside: vector("sluice_spool_set_aside_total",
			"Records set aside, by reason: damaged (cannot be read), refused (Kafka does not take them).", "reason"),
	}
	r.MustRegister(m.appended, m.removed, m.refused, m.commit, m.syncErrors, m.writeErrors, m.damage, m.setAside,
		gauge("sluice_spool_bytes", "Bytes of the spool's files on disk; at most SLUICE_SPOOL_MAX_BYTES.", func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return float64(s.disk)
		}),
		gauge("sluice_spool_batches", "Records in the spool that Kafka does not have yet.", func() float64 {
			return float64(s.Backlog().Records)
		}),
		gauge("sluice_spool_pending_bytes", "Bytes on disk of the records that Kafka does not have yet.", func() float64 {
			return float64(s.Backlog().Bytes)
		}),
		gauge("sluice_spool_oldest_seconds", "Time since the oldest record in the spool was received; 0 when it is empty.", func() float64 {
			b := s.Backlog()
			if b.Records == 0 {
				return 0
			}
			return max(0, s.o.Now().Sub(b.Oldest).Seconds())
		}),
		gauge("sluice_spool_lost_records", "Acknowledged records that cannot be read or sent any more, since the spool was made.", func() float64 {
			return float64(s.Backlog().Lost)
		}),
		gauge("sluice_spool_max_bytes", "SLUICE_SPOOL_MAX_BYTES.", func() float64 { return float64(s.o.MaxBytes) }),
		gauge("sluice_spool_free_bytes", "Bytes that may still be written on the spool's disk; -1 where that is not known.", func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.free == math.MaxInt64 {
				return -1
			}
			return float64(s.free)
		}))
	for _, reason := range []string{"full", "disk", "error"} {
		m.refused.WithLabelValues(reason)
	}
	for _, kind := range []Kind{BadRecord, BadSegment, MissingSegment, BadManifest, BadProgress} {
		m.damage.WithLabelValues(string(kind))
	}
	for _, reason := range []string{"damaged", "refused"} {
		m.setAside.WithLabelValues(reason)
	}
	return m
}
