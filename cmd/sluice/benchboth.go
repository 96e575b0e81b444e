package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sluice/internal/bench"
	"sluice/internal/clickhouse"
)

// both sends through a collector while a sink stores, from the first request to the
// last row.
func (b *bencher) both(ctx context.Context) error {
	if err := errors.Join(b.needKafka(ctx), b.needClickHouse(ctx)); err != nil {
		return err
	}
	for run := range b.verb.Runs {
		b.step("both", run)
		if err := b.bothOnce(ctx); err != nil {
			return fmt.Errorf("both: %w", err)
		}
	}
	return nil
}

func (b *bencher) bothOnce(ctx context.Context) (err error) {
	l, err := b.newLane(ctx, b.verb.Partitions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.remove()) }()
	sinks, stop, err := b.startSinks(ctx, b.verb.Sinks, l)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, s := range sinks {
		if err := s.awaitReady(ctx); err != nil {
			return err
		}
	}
	c, err := b.startCollector(ctx, "collector", l)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	services := append([]*benched{c}, sinks...)
	from, err := b.moment(services...)
	if err != nil {
		return err
	}
	w := b.verb.standard()
	w.Key = b.key
	load, err := bench.StartLoad(ctx, bench.LoadConfig{Addr: c.addr, Connections: b.verb.Connections, Workload: w})
	if err != nil {
		return err
	}
	begin := time.Now()
	err = pause(ctx, load, 4*b.verb.Duration)
	if err := errors.Join(err, load.Stop()); err != nil {
		return err
	}
	n := load.Events()
	accepted := float64(n) / time.Since(begin).Seconds()
	if err := b.stored(ctx, l, n, services); err != nil {
		return err
	}
	s, err := b.since(from, services...)
	if err != nil {
		return err
	}
	last, err := b.store.Count(ctx, "SELECT toUnixTimestamp64Micro(max(stored_at)) FROM "+l.name+".batches")
	if err != nil {
		return err
	}
	b.results.Add("both/rate", "events/s", float64(n)/time.UnixMicro(last).Sub(begin).Seconds())
	b.results.Add("both/accepted", "events/s", accepted)
	for _, process := range []string{"collector", "sink", "kafka", "clickhouse"} {
		if cpu, ok := s.cpu[process]; ok {
			b.results.Add("both/"+process, "CPU-s/M", costOf(cpu, n))
		}
	}
	return b.once(ctx, l, n)
}

// sweep measures how cost grows with one thing at a time.
func (b *bencher) sweep(ctx context.Context) error {
	if err := b.needKafka(ctx); err != nil {
		return err
	}
	v := b.verb
	collector := func(name string, partitions, connections, events int) error {
		l, err := b.newLane(ctx, partitions)
		if err != nil {
			return err
		}
		c, err := b.startCollector(ctx, "collector", l)
		if err != nil {
			return errors.Join(err, l.remove())
		}
		w := v.standard()
		w.Key, w.Events = b.key, events
		out, err := b.under(ctx, c, bench.LoadConfig{Addr: c.addr, Connections: connections, Workload: w}, v.Duration)
		if err == nil {
			b.cost(name, out, "collector")
			b.latency(name, out)
		}
		return errors.Join(err, c.stop(), l.remove())
	}
	for _, n := range []int64{10_000, 1_000_000, 100_000_000} {
		if b.wants("ids") {
			b.step("ids", 0)
			if err := b.amongIDs(ctx, n); err != nil {
				return fmt.Errorf("%d ids: %w", n, err)
			}
		}
	}
	for run := range v.Runs {
		for _, n := range []int{1, 10, 100} {
			if b.wants("events") {
				b.step("events", run)
				if err := collector(fmt.Sprintf("sweep/events-%d", n), v.Partitions, v.Connections, n); err != nil {
					return err
				}
			}
		}
		for _, n := range []int{1, 8, 64} {
			if b.wants("connections") {
				b.step("connections", run)
				if err := collector(fmt.Sprintf("sweep/connections-%d", n), v.Partitions, n, v.Events); err != nil {
					return err
				}
			}
		}
		for _, n := range []int{1, 12, 64} {
			if b.wants("partitions") {
				b.step("partitions", run)
				if err := collector(fmt.Sprintf("sweep/partitions-%d", n), n, v.Connections, v.Events); err != nil {
					return err
				}
				if err := b.needClickHouse(ctx); err != nil {
					return err
				}
				if err := b.catchUp(ctx, fmt.Sprintf("sweep/sink-partitions-%d", n), 1, n, false); err != nil {
					return err
				}
			}
		}
		for _, n := range []int{1, 2} {
			if b.wants("sinks") {
				b.step("sinks", run)
				if err := b.needClickHouse(ctx); err != nil {
					return err
				}
				if err := b.catchUp(ctx, fmt.Sprintf("sweep/sinks-%d", n), n, v.Partitions, false); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// amongIDs has a sink catch up while so many batches are in the dedup window. Once: to
// lay out 10⁸ of them takes minutes.
func (b *bencher) amongIDs(ctx context.Context, n int64) (err error) {
	if err := b.needClickHouse(ctx); err != nil {
		return err
	}
	l, rows, err := b.filled(ctx, b.verb.Partitions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.remove()) }()
	if err := clickhouse.Migrate(ctx, clickhouse.Config{DSN: "clickhouse://" + b.native + "/" + l.name}, 720*time.Hour); err != nil {
		return err
	}
	if err := b.store.FillBatches(ctx, l.name, n); err != nil {
		return err
	}
	return b.drain(ctx, fmt.Sprintf("sweep/ids-%d", n), l, rows, 1)
}
