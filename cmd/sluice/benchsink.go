package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"sluice/internal/bench"
	"sluice/internal/bench/engine"
	"sluice/internal/clickhouse"
	"sluice/pkg/retry"
)

// sink measures sinks with all their defaults.
func (b *bencher) sink(ctx context.Context) error {
	if err := errors.Join(b.needKafka(ctx), b.needClickHouse(ctx)); err != nil {
		return err
	}
	for run := range b.verb.Runs {
		if b.wants("insert") {
			b.step("insert", run)
			if err := b.insert(ctx); err != nil {
				return fmt.Errorf("insert: %w", err)
			}
		}
		if b.wants("catch-up") || b.wants("kafka-engine") {
			b.step("catch-up", run)
			if err := b.catchUp(ctx, "sink/catch-up", b.verb.Sinks, b.verb.Partitions, run < engineRuns); err != nil {
				return fmt.Errorf("catch-up: %w", err)
			}
		}
	}
	for _, s := range []struct {
		name string
		rate float64
	}{{"steady-100k", 100_000}, {"steady-250k", 250_000}} {
		if b.wants(s.name) {
			if err := b.steady(ctx, s.name, s.rate); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	return nil
}

// engineRuns is in how many rounds the ClickHouse Kafka engine is measured: it takes
// several times as long as the sink.
const engineRuns = 2

// insert is the ceiling: the same rows by ch-go, in blocks of 500,000.
func (b *bencher) insert(ctx context.Context) (err error) {
	l, err := b.newLane(ctx, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.remove()) }()
	if err := clickhouse.Migrate(ctx, clickhouse.Config{DSN: "clickhouse://" + b.native + "/" + l.name}, 720*time.Hour); err != nil {
		return err
	}
	rows := min(500_000, b.verb.Rows)
	from, err := b.moment()
	if err != nil {
		return err
	}
	c, err := b.ceiling(ctx, "insert", "--clickhouse-http="+b.store.HTTP, "--database="+l.name, "--blocks=2", fmt.Sprintf("--rows=%d", rows))
	if err != nil {
		return err
	}
	s, err := b.since(from)
	if err != nil {
		return err
	}
	n, err := b.store.Count(ctx, "SELECT count() FROM "+l.name+".exposures")
	if err != nil {
		return err
	}
	if n <= c.Events {
		return fmt.Errorf("%d rows and a block before them were inserted, and %d are there", c.Events, n)
	}
	b.results.Add("ceiling/insert", "CPU-s/M", c.Cost())
	b.results.Add("ceiling/insert/clickhouse", "CPU-s/M", costOf(s.cpu["clickhouse"], n))
	b.results.Add("ceiling/insert/rate", "rows/s", float64(c.Events)/c.Seconds)
	return nil
}

// filled is a lane whose topic has events that no sink has seen.
func (b *bencher) filled(ctx context.Context, partitions int) (l *lane, n int64, err error) {
	if l, err = b.newLane(ctx, partitions); err != nil {
		return nil, 0, err
	}
	f, err := bench.NewFiller(l.client.NewProducer(l.name+".batches"), b.verb.standard())
	if err == nil {
		n, err = f.Fill(ctx, b.verb.Rows, 0)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, 0, errors.Join(err, l.remove())
	}
	return l, n, nil
}

func (b *bencher) startSinks(ctx context.Context, n int, l *lane, env ...string) (sinks []*benched, stop func() error, err error) {
	stop = func() error {
		var errs []error
		for _, s := range sinks {
			errs = append(errs, s.stop())
		}
		return errors.Join(errs...)
	}
	for range n {
		s, err := b.service(ctx, "sink", "sink", l, env...)
		if err != nil {
			return nil, nil, errors.Join(err, stop())
		}
		sinks = append(sinks, s)
	}
	return sinks, stop, nil
}

// catchUp has sinks that just started drain what is piled up: from the time they
// are ready, and their groups still to form, to the last row.
//
// With yardstick the ClickHouse Kafka engine then reads the same records, if it is asked for.
func (b *bencher) catchUp(ctx context.Context, name string, sinks, partitions int, yardstick bool) (err error) {
	l, n, err := b.filled(ctx, partitions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.remove()) }()
	if err := b.drain(ctx, name, l, n, sinks); err != nil {
		return err
	}
	if yardstick && b.wants("kafka-engine") {
		if err := b.engine(ctx, l, n); err != nil {
			return fmt.Errorf("kafka-engine: %w", err)
		}
		b.results.Ratio("kafka-engine/of-sink", "kafka-engine", name+"/with-clickhouse")
	}
	return nil
}

// drain starts the sinks, and ends them when everything is stored.
func (b *bencher) drain(ctx context.Context, name string, l *lane, n int64, sinks int) (err error) {
	from, err := b.moment() // without the sinks: they have taken nothing yet
	if err != nil {
		return err
	}
	running, stop, err := b.startSinks(ctx, sinks, l)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, s := range running {
		if err := s.awaitReady(ctx); err != nil {
			return err
		}
	}
	begin := time.Now()
	if err := b.stored(ctx, l, n, running); err != nil {
		return err
	}
	s, err := b.since(from, running...)
	if err != nil {
		return err
	}
	last, err := b.store.Count(ctx, "SELECT toUnixTimestamp64Micro(max(stored_at)) FROM "+l.name+".batches")
	if err != nil {
		return err
	}
	b.results.Add(name, "CPU-s/M", costOf(s.cpu["sink"], n))
	if _, ok := s.cpu["clickhouse"]; ok {
		b.results.Add(name+"/clickhouse", "CPU-s/M", costOf(s.cpu["clickhouse"], n))
		b.results.Add(name+"/with-clickhouse", "CPU-s/M", costOf(s.cpu["sink"]+s.cpu["clickhouse"], n))
	}
	if _, ok := s.cpu["kafka"]; ok {
		b.results.Add(name+"/kafka", "CPU-s/M", costOf(s.cpu["kafka"], n))
	}
	b.results.Add(name+"/rate", "rows/s", float64(n)/time.UnixMicro(last).Sub(begin).Seconds())
	if err := b.blocks(ctx, name, n, running); err != nil {
		return err
	}
	peak := int64(0)
	for _, s := range running {
		p, err := bench.PeakMemory(s.PID())
		if err != nil {
			return err
		}
		peak = max(peak, p)
	}
	b.results.Add(name+"/memory", "MiB", float64(peak)/(1<<20))
	b.results.Ratio(name+"/of-insert", name, "ceiling/insert")
	return b.once(ctx, l, n)
}

// engine has ClickHouse's own Kafka engine read the same records into a table of the
// same definition, without what makes the sink exact.
func (b *bencher) engine(ctx context.Context, l *lane, n int64) (err error) {
	if _, ok := b.pids["clickhouse"]; !ok {
		return nil
	}
	b.step("kafka-engine", 0)
	// What the sink's blocks have left to merge is not the engine's.
	for _, table := range []string{"exposures", "batches", "progress"} {
		if _, err := b.store.Ask(ctx, "SYSTEM STOP MERGES "+l.name+"."+table); err != nil {
			return err
		}
	}
	e, err := engine.Setup(ctx, engine.Config{HTTP: b.store.HTTP, Broker: b.kafka, Topic: l.name + ".batches", Source: l.name})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Teardown(context.WithoutCancel(ctx))) }()
	from, err := b.moment()
	if err != nil {
		return err
	}
	if err := e.Start(ctx); err != nil {
		return err
	}
	if err := e.Done(ctx, n); err != nil {
		return err
	}
	s, err := b.since(from)
	if err != nil {
		return err
	}
	b.results.Add("kafka-engine", "CPU-s/M", costOf(s.cpu["clickhouse"], n))
	b.results.Add("kafka-engine/rate", "rows/s", float64(n)/s.seconds)
	return nil
}

// blocks adds how many rows went into ClickHouse at a time.
func (b *bencher) blocks(ctx context.Context, name string, n int64, sinks []*benched) error {
	blocks := 0.0
	for _, s := range sinks {
		v, err := s.metric(ctx, "sluice_sink_block_rows_count")
		if err != nil {
			return err
		}
		blocks += v
	}
	if blocks > 0 {
		b.results.Add(name+"/block", "rows", float64(n)/blocks)
	}
	return nil
}

// stored waits until so many rows are there.
func (b *bencher) stored(ctx context.Context, l *lane, n int64, services []*benched) error {
	query := fmt.Sprintf("SELECT toInt64(sum(rows)) FROM system.parts WHERE database = '%s' AND table = 'exposures' AND active", l.name)
	before, grown := int64(-1), time.Now()
	for {
		got, err := b.store.Count(ctx, query)
		switch {
		case err != nil:
			return err
		case got >= n:
			return nil
		case got != before:
			before, grown = got, time.Now()
		case time.Since(grown) > time.Minute:
			return fmt.Errorf("%d of %d rows are stored, and no more for a minute", got, n)
		}
		for _, s := range services {
			if err := s.Err(); err != nil {
				return err
			}
		}
		if !retry.Sleep(ctx, looking) {
			return ctx.Err()
		}
	}
}

// looking is how often ClickHouse is asked how many rows it has: each time costs it
// 2 ms of CPU (measured).
const looking = 250 * time.Millisecond

// once counts: every event is there, and none twice.
func (b *bencher) once(ctx context.Context, l *lane, n int64) error {
	text, err := b.store.Ask(ctx, "SELECT count(), uniqExact(event_id) FROM "+l.name+".exposures FORMAT TSV")
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("%d\t%d", n, n); text != want {
		return fmt.Errorf("the rows and their ids are %s; %s were sent", strings.ReplaceAll(text, "\t", " and "), strings.ReplaceAll(want, "\t", " and "))
	}
	return nil
}

// How long a sink's steady state takes to come about, and how long each look at it
// is: a block gathers for seconds, and a look should have several.
const (
	settling   = 8 * time.Second
	steadyLook = 6 * time.Second
)

// steady has a sink keep up with a rate, and looks at it several times.
func (b *bencher) steady(ctx context.Context, name string, rate float64) (err error) {
	l, err := b.newLane(ctx, b.verb.Partitions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.remove()) }()
	sinks, stop, err := b.startSinks(ctx, 1, l)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if err := sinks[0].awaitReady(ctx); err != nil {
		return err
	}
	f, err := bench.NewFiller(l.client.NewProducer(l.name+".batches"), b.verb.standard())
	if err != nil {
		return err
	}
	look := min(steadyLook, 3*b.verb.Duration)
	whole := min(settling, 3*b.verb.Duration) + time.Duration(b.verb.Runs)*look + time.Second
	fctx, cancel := context.WithCancel(ctx)
	filled := make(chan error, 1)
	go func() {
		_, err := f.Fill(fctx, int64(rate*whole.Seconds()*2), rate)
		filled <- err
	}()
	err = b.looks(ctx, "sink/"+name, sinks, f, look)
	cancel()
	if err := errors.Join(err, <-filled); err != nil {
		return err
	}
	if err := b.stored(ctx, l, f.Events(), sinks); err != nil {
		return err
	}
	peak, err := bench.PeakMemory(sinks[0].PID())
	if err != nil {
		return err
	}
	b.results.Add("sink/"+name+"/memory", "MiB", float64(peak)/(1<<20))
	return b.once(ctx, l, f.Events())
}

func (b *bencher) looks(ctx context.Context, name string, sinks []*benched, f *bench.Filler, look time.Duration) error {
	if !retry.Sleep(ctx, min(settling, 3*b.verb.Duration)) {
		return ctx.Err()
	}
	rows := func() (float64, error) { return sinks[0].metric(ctx, `sluice_sink_rows_total{table="exposures"}`) }
	for run := range b.verb.Runs {
		b.step(strings.TrimPrefix(name, "sink/"), run)
		blocks, err := sinks[0].metric(ctx, "sluice_sink_block_rows_count")
		if err != nil {
			return err
		}
		before, err := rows()
		if err != nil {
			return err
		}
		from, err := b.moment(sinks...)
		if err != nil {
			return err
		}
		sent := f.Events()
		if !retry.Sleep(ctx, look) {
			return ctx.Err()
		}
		s, err := b.since(from, sinks...)
		if err != nil {
			return err
		}
		n := f.Events() - sent
		after, err := rows()
		if err != nil {
			return err
		}
		now, err := sinks[0].metric(ctx, "sluice_sink_block_rows_count")
		if err != nil {
			return err
		}
		b.results.Add(name, "CPU-s/M", costOf(s.cpu["sink"], n))
		if _, ok := s.cpu["clickhouse"]; ok {
			b.results.Add(name+"/with-clickhouse", "CPU-s/M", costOf(s.cpu["sink"]+s.cpu["clickhouse"], n))
		}
		b.results.Add(name+"/rate", "events/s", float64(n)/s.seconds)
		if now > blocks {
			b.results.Add(name+"/block", "rows", (after-before)/(now-blocks))
		}
	}
	return nil
}
