package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"sluice/internal/bench"
)

// benchVerb measures the pipeline, or a part of it, and the ceilings beside it.
type benchVerb struct {
	output
	Scenario    string        `arg:"" optional:"" enum:"all,quick,collector,sink,both,sweep,load" default:"all" help:"all: the standard set, in 10 minutes; quick: each of it once, in 2; collector, sink, both: a part of it; sweep: how cost grows with events a request, connections, partitions, sinks and batch ids in the dedup window; load: one load, as the flags say."`
	Only        string        `placeholder:"NAMES" help:"Of a scenario only these measurements, with commas between them; * is any text, as in native,read*. A wrong one lists them."`
	Runs        int           `default:"5" help:"How often each measurement is made, in rounds, 1 to 50. The table has the medians."`
	Duration    time.Duration `default:"2s" help:"How long a measurement of the collector looks, 100ms to 1h; what needs less takes a part of it."`
	Rows        int64         `default:"6000000" help:"Rows that a sink catches up with, in each run."`
	Connections int           `default:"64" help:"Connections of a load, 1 to 1000."`
	Events      int           `default:"100" help:"Events a request, 1 to 10000."`
	EventBytes  int           `default:"295" help:"Bytes of a native event, 287 to 4096."`
	Partitions  int           `default:"12" help:"Partitions of the topics, 1 to 1000."`
	Sinks       int           `default:"1" help:"Sinks that catch up together, 1 to 8."`
	Experiments int           `default:"200" help:"Experiments that are drawn from, by zipf."`
	Units       int           `default:"10000000" help:"Units that are drawn from, by zipf."`
	Rate        float64       `help:"load: events a second that become due, whatever is answered (an open loop). 0: each connection sends when it has its answer (a closed loop)."`
	Encoding    string        `enum:"none,gzip,zstd" default:"none" help:"load: none, gzip or zstd."`
	Protocol    string        `default:"native" help:"load: native, or whose SDK is played. A wrong one lists them."`
	Duplicates  float64       `help:"load: share of requests that repeat the one before, 0 to 0.9."`
	URL         string        `placeholder:"URL" help:"load: a running collector to measure instead of one of its own, as http://127.0.0.1:8080. Its process is found by who listens there."`
	Key         string        `placeholder:"KEY" help:"load: a write key of that collector."`
	PID         int           `placeholder:"PID" help:"load: the collector's process, where it is not found."`
	Kafka       string        `placeholder:"HOST:PORT" help:"A running Kafka to use instead of one of its own. It is not stopped; the topics of the run are deleted."`
	ClickHouse  string        `name:"clickhouse" placeholder:"HOST:PORT" help:"A running ClickHouse, native protocol, to use instead of one of its own. The databases of the run are dropped."`
	OverHTTP    string        `name:"clickhouse-http" placeholder:"HOST:PORT" help:"The same ClickHouse over HTTP, which the rows are counted by."`
	Programs    string        `placeholder:"DIR" help:"Where the collector and the sink are. Default: beside this program."`
	Dir         string        `help:"Directory for data and logs. Default: a temporary one, which is removed."`
	Out         string        `default:"bench/results.json" placeholder:"FILE" help:"Write the figures to FILE as JSON. Empty: to none."`
	GoBench     string        `name:"go-bench" placeholder:"FILE" help:"Write every run to FILE, too, in the format that benchstat compares."`
}

// Help is shown under the flags.
func (*benchVerb) Help() string {
	return `Costs are in CPU-seconds per million events (CPU-s/M) of the process measured, as the kernel counts them. Ceilings are the same bytes through the bare libraries, each in a process of its own, in the same round; ratios are of one round.

Examples:
  sluice bench                                  the standard set
  sluice bench quick                            each of it once
  sluice bench collector --only native,read,one --runs 3
  sluice bench sink --only catch-up --rows 5000000
  sluice bench load --protocol statsig --encoding gzip --duration 10s
  sluice bench load --rate 100000 --connections 256
  sluice bench load --url http://127.0.0.1:8080 --key KEY`
}

// Validate names what cannot be right.
func (v *benchVerb) Validate() error {
	switch {
	case v.Runs < 1 || v.Runs > 50:
		return fmt.Errorf("--runs=%d: want 1 to 50", v.Runs)
	case v.Duration < 100*time.Millisecond || v.Duration > time.Hour:
		return fmt.Errorf("--duration=%v: want 100ms to 1h", v.Duration)
	case v.Rows < 1000 || v.Rows > 1_000_000_000:
		return fmt.Errorf("--rows=%d: want 1000 to 1000000000", v.Rows)
	case v.Connections < 1 || v.Connections > 1000:
		return fmt.Errorf("--connections=%d: want 1 to 1000", v.Connections)
	case v.Partitions < 1 || v.Partitions > 1000:
		return fmt.Errorf("--partitions=%d: want 1 to 1000", v.Partitions)
	case v.Sinks < 1 || v.Sinks > 8:
		return fmt.Errorf("--sinks=%d: want 1 to 8", v.Sinks)
	case v.Rate < 0 || v.Rate > 100_000_000:
		return fmt.Errorf("--rate=%v: want 0 to 100000000", v.Rate)
	case (v.ClickHouse == "") != (v.OverHTTP == ""):
		return errors.New("--clickhouse and --clickhouse-http: want both or none")
	case v.URL != "" && v.Scenario != "load":
		return errors.New("--url: want the scenario load with it: the others measure a collector of their own")
	case v.URL != "" && v.collectorAddr() == "":
		return fmt.Errorf("--url=%q: want http://host:port", v.URL)
	}
	if err := v.workload().Check(); err != nil {
		return err
	}
	if _, err := v.selected(); err != nil {
		return err
	}
	return cmp.Or(hostPort("kafka", v.Kafka), hostPort("clickhouse", v.ClickHouse), hostPort("clickhouse-http", v.OverHTTP))
}

func (v *benchVerb) collectorAddr() string {
	addr, ok := strings.CutPrefix(strings.TrimSuffix(v.URL, "/"), "http://")
	if !ok || hostPort("url", addr) != nil {
		return ""
	}
	return addr
}

// workload is what the flags say is sent.
func (v *benchVerb) workload() bench.Workload {
	return bench.Workload{Protocol: v.Protocol, Events: v.Events, EventBytes: v.EventBytes, Encoding: v.Encoding,
		Duplicates: v.Duplicates, Experiments: v.Experiments, Units: v.Units, Key: v.Key}
}

// standard is what the standard set measures, which takes no flag from a load.
func (v *benchVerb) standard() bench.Workload {
	return bench.Workload{Events: v.Events, EventBytes: v.EventBytes, Experiments: v.Experiments, Units: v.Units}
}

// measurements of each scenario, in the order they are made in within a round.
func measurements(scenario string) []string {
	collector := slices.Concat([]string{"read", "read-gzip", "read-one", "scan", "produce", "fsync", "native", "gzip", "one", "spool"},
		bench.Others(), []string{"open-100k", "stall"})
	sink := []string{"insert", "catch-up", "kafka-engine", "steady-100k", "steady-250k"}
	switch scenario {
	case "collector":
		return collector
	case "sink":
		return sink
	case "both":
		return []string{"both"}
	case "sweep":
		return []string{"events", "connections", "partitions", "sinks", "ids"}
	case "load":
		return []string{"load"}
	}
	return slices.Concat(collector, sink, []string{"both"})
}

// selected are the measurements that are asked for.
func (v *benchVerb) selected() (map[string]bool, error) {
	all := measurements(v.Scenario)
	chosen := map[string]bool{}
	if v.Only == "" {
		for _, m := range all {
			chosen[m] = true
		}
		return chosen, nil
	}
	for pattern := range strings.SplitSeq(v.Only, ",") {
		found := false
		for _, m := range all {
			if ok, err := path.Match(strings.TrimSpace(pattern), m); err == nil && ok {
				chosen[m], found = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("--only: %q is no measurement of %s: want some of %s", pattern, v.Scenario, strings.Join(all, ", "))
		}
	}
	return chosen, nil
}

// Run implements the verb.
func (v *benchVerb) Run(t *tool) (err error) {
	if runtime.GOOS != "linux" {
		return errors.New("sluice bench reads the CPU time of processes from /proc: run it on Linux")
	}
	if v.Scenario == "quick" {
		v.Runs, v.Duration, v.Rows = 1, min(v.Duration, 2*time.Second), min(v.Rows, 2_000_000)
	}
	b := &bencher{verb: v, tool: t, results: &bench.Results{}}
	if b.only, err = v.selected(); err != nil {
		return err
	}
	dir, remove, err := workplace(v.Dir, "sluice-bench-")
	if err != nil {
		return err
	}
	b.dir = dir
	defer func() { err = errors.Join(err, remove()) }()
	defer func() { err = errors.Join(err, b.close()) }()
	begin := time.Now()
	b.planned = len(b.only) * v.Runs
	b.bar = startBar(t.stderr, "measurements")
	for _, part := range []struct {
		name string
		do   func(context.Context) error
	}{{"collector", b.collector}, {"sink", b.sink}, {"both", b.both}, {"sweep", b.sweep}, {"load", b.load}} {
		if !slices.ContainsFunc(measurements(part.name), func(m string) bool { return b.only[m] && slices.Contains(measurements(v.Scenario), m) }) {
			continue
		}
		if err := part.do(t.ctx); err != nil {
			b.bar.end()
			b.withLogs()
			// What was measured until then is shown, and not written anywhere.
			v.Out, v.GoBench = "", ""
			return errors.Join(err, b.report())
		}
	}
	b.bar.end()
	fmt.Fprintf(t.stderr, "%d s on %d cores\n", int(time.Since(begin).Seconds()), runtime.NumCPU())
	return b.report()
}

func workplace(dir, prefix string) (string, func() error, error) {
	if dir != "" {
		dir, err := filepath.Abs(dir)
		return dir, func() error { return nil }, err
	}
	dir, err := os.MkdirTemp("", prefix)
	return dir, func() error { return os.RemoveAll(dir) }, err
}

// report prints the figures and writes the files.
func (b *bencher) report() error {
	list := b.results.List()
	if len(list) == 0 {
		return nil
	}
	var rows [][]string
	for _, r := range list {
		limit, met := "", ""
		if l, ok := bench.LimitOf(r.Name); ok {
			limit, met = l.String(), "no"
			if l.Met(r.Value) {
				met = "yes"
			}
		}
		rows = append(rows, []string{r.Name, number(r.Value), r.Unit, number(slices.Min(r.Runs)) + " – " + number(slices.Max(r.Runs)), strconv.Itoa(len(r.Runs)), limit, met})
	}
	if err := b.verb.print(b.tool.stdout, list, []string{"NAME", "MEDIAN", "UNIT", "FROM – TO", "RUNS", "LIMIT", "MET"}, rows); err != nil {
		return err
	}
	if b.verb.Out != "" {
		if err := bench.WriteFile(b.verb.Out, list); err != nil {
			return err
		}
	}
	if b.verb.GoBench == "" {
		return nil
	}
	f, err := os.Create(b.verb.GoBench)
	if err != nil {
		return fmt.Errorf("--go-bench: %w", err)
	}
	return errors.Join(bench.WriteGoBench(f, list), f.Close())
}

// number is a value as people read it.
func number(v float64) string {
	if v >= 1000 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}

// benchCeiling is one of the ceilings, in a process of its own: sluice bench starts it.
type benchCeiling struct {
	Kind       string        `arg:"" enum:"read,scan,produce,fsync,insert"`
	Listen     string        ``
	Duration   time.Duration `default:"1s"`
	Kafka      string        ``
	Topic      string        ``
	Partitions int           `default:"12"`
	Callers    int           `default:"64"`
	OverHTTP   string        `name:"clickhouse-http"`
	Database   string        ``
	Blocks     int           `default:"2"`
	Rows       int           `default:"500000"`
	Dir        string        ``
	Events     int           `default:"100"`
	EventBytes int           `default:"295"`
}

// Run implements the verb.
func (c *benchCeiling) Run(t *tool) error {
	w := bench.Workload{Events: c.Events, EventBytes: c.EventBytes}
	var out bench.Ceiling
	var err error
	switch c.Kind {
	case "read":
		return bench.ServeReading(t.ctx, c.Listen)
	case "scan":
		out, err = bench.Scan(c.Duration, w)
	case "produce":
		out, err = bench.Produce(t.ctx, c.Duration, c.Kafka, c.Topic, c.Partitions, c.Callers, w)
	case "fsync":
		const batchBytes = 35_000 // of 100 events as they are spooled
		out, err = bench.Sync(c.Duration, c.Dir, c.Callers, batchBytes)
	case "insert":
		out, err = bench.Insert(t.ctx, bench.ClickHouse{HTTP: c.OverHTTP, Database: c.Database}, c.Blocks, c.Rows, w)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(t.stdout).Encode(out)
}
