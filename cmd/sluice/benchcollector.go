package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"sluice/internal/bench"
	"sluice/internal/embedded"
)

// warming is what of a load is not looked at: connections, caches and the
// collector's heap find their size.
const warming = 400 * time.Millisecond

// loaded is what a load did while it was looked at.
type loaded struct {
	span
	events    int64
	refused   int64
	latencies bench.Latencies
}

func (l loaded) rate() float64 { return float64(l.events) / l.seconds }

func costOf(cpu float64, events int64) float64 {
	if events == 0 {
		return 0
	}
	return cpu * 1e6 / float64(events)
}

// load sends for a while to a collector, or to the server that only reads, and looks
// at its process. What a collector acknowledged, it must also have accepted, and not
// rejected event by event.
func (b *bencher) load(ctx context.Context) error {
	v := b.verb
	cfg := bench.LoadConfig{Connections: v.Connections, Rate: v.Rate, Workload: v.workload()}
	var s *benched
	if v.URL != "" {
		cfg.Addr = v.collectorAddr()
		pid := v.PID
		if pid == 0 {
			var err error
			if pid, err = bench.Listener(cfg.Addr); err != nil {
				return fmt.Errorf("%w; name it with --pid", err)
			}
		}
		b.pids = map[string]int{"collector": pid}
	} else {
		if err := b.needKafka(ctx); err != nil {
			return err
		}
		l, err := b.newLane(ctx, v.Partitions)
		if err != nil {
			return err
		}
		b.later(l.remove)
		if s, err = b.startCollector(ctx, "collector", l); err != nil {
			return err
		}
		b.later(s.stop)
		cfg.Addr, cfg.Workload.Key = s.addr, b.key
	}
	for run := range v.Runs {
		b.step("load", run)
		out, err := b.under(ctx, s, cfg, v.Duration)
		if err != nil {
			return err
		}
		b.cost("load", out, "collector")
		b.latency("load", out)
		if s != nil {
			if err := b.memory("load", s); err != nil {
				return err
			}
		}
	}
	return nil
}

// under looks at a process under a load for d. s is nil where the collector is not
// ours.
func (b *bencher) under(ctx context.Context, s *benched, cfg bench.LoadConfig, d time.Duration) (out loaded, err error) {
	var services []*benched
	accepted := 0.0
	if s != nil {
		services = append(services, s)
		if s.admin != "" {
			if accepted, err = s.metric(ctx, acceptedMetric); err != nil {
				return out, err
			}
		}
	}
	load, err := bench.StartLoad(ctx, cfg)
	if err != nil {
		return out, err
	}
	defer func() {
		if serr := load.Stop(); err == nil {
			err = serr
		}
		if err == nil && s != nil && s.admin != "" {
			err = s.holds(ctx, accepted, load)
		}
	}()
	if err := pause(ctx, load, min(warming, d)); err != nil {
		return out, err
	}
	load.Latencies()
	from, err := b.moment(services...)
	if err != nil {
		return out, err
	}
	events, refused := load.Handled(), load.Refused()
	if err := pause(ctx, load, d); err != nil {
		return out, err
	}
	if out.span, err = b.since(from, services...); err != nil {
		return out, err
	}
	out.events, out.refused, out.latencies = load.Handled()-events, load.Refused()-refused, load.Latencies()
	return out, nil
}

const acceptedMetric = `sluice_events_total{outcome="accepted"}`

// holds compares what the collector says it accepted with what was acknowledged.
func (s *benched) holds(ctx context.Context, before float64, load *bench.Load) error {
	after, err := s.metric(ctx, acceptedMetric)
	if err != nil {
		return err
	}
	if got, want := int64(after-before), load.Events(); got < want {
		return fmt.Errorf("the %s accepted %d events, and acknowledged requests with %d: it rejects what is sent", s.name, got, want)
	}
	return nil
}

// pause waits, unless the load fails.
func pause(ctx context.Context, load *bench.Load, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-load.Failed():
		return load.Err()
	case <-timer.C:
		return nil
	}
}

// cost adds what a load cost a process, and how fast it went.
func (b *bencher) cost(name string, out loaded, process string) {
	b.results.Add(name, "CPU-s/M", costOf(out.cpu[process], out.events))
	b.results.Add(name+"/rate", "events/s", out.rate())
	if _, ok := out.cpu["kafka"]; ok && process != "read" {
		b.results.Add(name+"/kafka", "CPU-s/M", costOf(out.cpu["kafka"], out.events))
	}
}

func (b *bencher) latency(name string, out loaded) {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.results.Add(name+"/p50", "ms", ms(out.latencies.P50))
	b.results.Add(name+"/p99", "ms", ms(out.latencies.P99))
	b.results.Add(name+"/longest", "ms", ms(out.latencies.Max))
}

func (b *bencher) memory(name string, s *benched) error {
	peak, err := bench.PeakMemory(s.PID())
	b.results.Add(name+"/memory", "MiB", float64(peak)/(1<<20))
	return err
}

// collector measures a collector with all its defaults, and write keys on.
func (b *bencher) collector(ctx context.Context) error {
	if err := b.needKafka(ctx); err != nil {
		return err
	}
	l, err := b.newLane(ctx, b.verb.Partitions)
	if err != nil {
		return err
	}
	b.later(l.remove)
	r := &collectorRounds{bencher: b, lane: l}
	if r.direct, err = b.startCollector(ctx, "collector", l); err != nil {
		return err
	}
	b.later(func() error { return r.direct.stop() })
	if r.reading, err = b.startReading(ctx); err != nil {
		return err
	}
	b.later(r.reading.stop)
	if b.wants("spool") {
		if r.spooling, err = b.startSpooling(ctx, l); err != nil {
			return err
		}
		b.later(r.spooling.stop)
	}
	for run := range b.verb.Runs {
		if err := r.round(ctx, run); err != nil {
			return err
		}
	}
	return b.memory("collector", r.direct)
}

// startSpooling starts a collector and kills it, and then takes Kafka away from it: at
// the second start its address is one that nobody listens on. (One that had ended in
// order, and one that Kafka has never heard of, would wait for Kafka.)
func (b *bencher) startSpooling(ctx context.Context, l *lane) (*benched, error) {
	s, err := b.startCollector(ctx, "spooling", l)
	if err != nil {
		return nil, err
	}
	if err := s.Kill(); err != nil {
		return nil, err
	}
	nobody, err := embedded.FreeAddr()
	if err != nil {
		return nil, err
	}
	s, err = b.service(ctx, "spooling", "collector", l, "SLUICE_KEYS_FILE="+b.keysFile, "SLUICE_KAFKA_BROKERS="+nobody)
	if err != nil {
		return nil, err
	}
	if err := s.awaitReady(ctx); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// collectorRounds measures everything about a collector, once a round.
type collectorRounds struct {
	*bencher
	lane                      *lane
	direct, spooling, reading *benched
}

func (r *collectorRounds) round(ctx context.Context, run int) error {
	half := r.verb.Duration / 2
	standard := r.verb.standard()
	standard.Key = r.key
	vary := func(change func(*bench.Workload)) bench.Workload {
		w := standard
		change(&w)
		return w
	}
	plain := vary(func(*bench.Workload) {})
	gzip := vary(func(w *bench.Workload) { w.Encoding = "gzip" })
	one := vary(func(w *bench.Workload) { w.Events = 1 })
	type step struct {
		name string
		do   func(name string) error
	}
	to := func(s *benched, w bench.Workload, d time.Duration, prefix string) func(string) error {
		return func(name string) error {
			out, err := r.under(ctx, s, bench.LoadConfig{Addr: s.addr, Connections: r.verb.Connections, Workload: w}, d)
			if err == nil {
				r.cost(prefix+name, out, s.name)
			}
			return err
		}
	}
	steps := []step{
		{"read", to(r.reading, plain, half, "ceiling/")},
		{"read-gzip", to(r.reading, gzip, half, "ceiling/")},
		{"read-one", to(r.reading, one, half, "ceiling/")},
		{"scan", r.bare(ctx, "CPU-s/M", "--duration=500ms")},
		{"produce", r.bare(ctx, "CPU-s/M", "--duration="+half.String(), "--kafka="+r.kafka, "--topic="+r.lane.name+".batches",
			fmt.Sprintf("--partitions=%d", r.lane.partitions), fmt.Sprintf("--callers=%d", r.verb.Connections))},
		{"fsync", r.bare(ctx, "s a million appends", "--duration=500ms", "--dir="+r.dir, fmt.Sprintf("--callers=%d", r.verb.Connections))},
		{"native", to(r.direct, plain, r.verb.Duration, "collector/")},
		{"gzip", to(r.direct, gzip, r.verb.Duration, "collector/")},
		{"one", to(r.direct, one, r.verb.Duration, "collector/")},
		{"spool", func(name string) error { return to(r.spooling, plain, r.verb.Duration, "collector/")(name) }},
	}
	for _, vendor := range bench.Others() {
		steps = append(steps, step{vendor, to(r.direct, vary(func(w *bench.Workload) { w.Protocol = vendor }), r.verb.Duration/3, "collector/")})
	}
	steps = append(steps, step{"open-100k", func(name string) error {
		out, err := r.under(ctx, r.direct, bench.LoadConfig{Addr: r.direct.addr, Connections: 256, Rate: 100_000, Workload: plain}, r.verb.Duration)
		if err == nil {
			r.cost("collector/"+name, out, r.direct.name)
			r.latency("collector/"+name, out)
		}
		return err
	}}, step{"stall", func(string) error { return r.stall(ctx, plain) }})
	for _, s := range steps {
		if !r.wants(s.name) {
			continue
		}
		r.step(s.name, run)
		if err := s.do(s.name); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	r.ratios()
	return nil
}

// bare runs a ceiling that is a process of its own.
func (r *collectorRounds) bare(ctx context.Context, unit string, args ...string) func(string) error {
	return func(name string) error {
		c, err := r.ceiling(ctx, append([]string{name}, args...)...)
		if err == nil {
			r.results.Add("ceiling/"+name, unit, c.Cost())
			r.results.Add("ceiling/"+name+"/rate", strings.Replace("events/s", "events", map[bool]string{true: "appends", false: "events"}[name == "fsync"], 1), float64(c.Events)/c.Seconds)
		}
		return err
	}
}

// stallLength is how long Kafka is paused for.
const stallLength = 10 * time.Second

// stall pauses Kafka's process under a steady load, and looks at the longest
// acknowledgement.
func (r *collectorRounds) stall(ctx context.Context, w bench.Workload) (err error) {
	if r.broker == nil {
		return nil // one that was given is not stopped
	}
	length := min(stallLength, 4*r.verb.Duration)
	accepted, err := r.direct.metric(ctx, acceptedMetric)
	if err != nil {
		return err
	}
	load, err := bench.StartLoad(ctx, bench.LoadConfig{Addr: r.direct.addr, Connections: 512, Rate: 100_000, Workload: w, Tolerant: true})
	if err != nil {
		return err
	}
	defer func() {
		if serr := load.Stop(); err == nil {
			err = serr
		}
		if err == nil {
			err = r.direct.holds(ctx, accepted, load)
		}
		if err == nil {
			err = r.drained(ctx)
		}
	}()
	if err := pause(ctx, load, time.Second); err != nil {
		return err
	}
	load.Latencies()
	if err := r.broker.Pause(); err != nil {
		return err
	}
	perr := pause(ctx, load, length)
	if err := errors.Join(perr, r.broker.Resume()); err != nil {
		return err
	}
	if err := pause(ctx, load, time.Second); err != nil {
		return err
	}
	r.latency("collector/stall", loaded{latencies: load.Latencies()})
	r.results.Add("collector/stall/refused", "requests", float64(load.Refused()))
	return nil
}

// drained waits until the collector's spool is empty, so that what follows has Kafka
// and the disk for itself.
func (r *collectorRounds) drained(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		left, err := r.direct.metric(ctx, "sluice_spool_batches")
		if err != nil {
			return fmt.Errorf("wait until the spool is empty: %w", err)
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%v batches are left in the spool", left)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// ratios are those of the round that was made last.
func (r *collectorRounds) ratios() {
	res := r.results
	if r.wants("native") {
		res.Ratio("collector/native/of-read", "collector/native", "ceiling/read")
		res.Ratio("collector/native/of-ceilings", "collector/native", "ceiling/read", "ceiling/scan", "ceiling/produce")
	}
	if r.wants("gzip") {
		if native, ok := res.Last("collector/native"); ok {
			gzip, _ := res.Last("collector/gzip")
			res.Add("collector/gzip/more-than-native", "CPU-s/M", gzip-native)
		}
	}
	if r.wants("one") {
		res.Ratio("collector/one/of-read", "collector/one", "ceiling/read-one")
	}
	if r.wants("spool") {
		res.Ratio("collector/spool/of-native", "collector/spool", "collector/native")
		res.Ratio("collector/spool/rate-of-native", "collector/spool/rate", "collector/native/rate")
	}
	for _, p := range bench.Others() {
		if r.wants(p) {
			res.Ratio("collector/"+p+"/of-native", "collector/"+p, "collector/native")
		}
	}
}
