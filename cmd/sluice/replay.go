package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"sluice/internal/clickhouse"
	"sluice/internal/config"
	"sluice/internal/kafka"
	"sluice/internal/protocol"
	"sluice/internal/protocol/amplitude"
	"sluice/internal/protocol/eppo"
	"sluice/internal/protocol/growthbook"
	"sluice/internal/protocol/launchdarkly"
	"sluice/internal/protocol/optimizely"
	"sluice/internal/protocol/otlp"
	"sluice/internal/protocol/posthog"
	"sluice/internal/protocol/segment"
	"sluice/internal/protocol/statsig"
	"sluice/internal/replay"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// replays is the verb replay: it sends dead letters again, or inserts what
// ClickHouse has lost and Kafka still has. Without --yes it only counts.
type replays struct {
	output
	ClickHouse config.ClickHouse `embed:""`
	Kafka      config.Kafka      `embed:""`
	Topics     config.Topics     `embed:""`

	Dead bool   `help:"Send dead letters again: those that are valid now, or with --set."`
	Into string `placeholder:"TABLE" help:"Fill a table of this name from Kafka, like exposures, and compare the two. The table is made if it is not there; what it has already stays."`
	Kind string `enum:"exposure,event" default:"exposure" help:"With --into: what to fill it with, exposure or event."`

	Since      moment   `placeholder:"TIME" help:"From when on: 2026-01-31, 2026-01-31T12:00:00Z, or 2h (ago). With --dead by the events' receipt, else by when Kafka took the records. Required without --dead."`
	Until      moment   `placeholder:"TIME" help:"Until when; default: now."`
	Experiment string   `placeholder:"NAME" help:"Only exposures of this experiment."`
	Partition  *int     `placeholder:"NUMBER" help:"Without --dead: only this partition."`
	Reason     []string `placeholder:"REASON" help:"With --dead: only letters with this reason (missing_field, key_reused, …); several separated by commas."`
	Stage      []string `enum:"collector,sink,conflict" placeholder:"STAGE" help:"With --dead: only letters of this stage: collector, sink, conflict."`
	Project    []string `placeholder:"PROJECT" help:"With --dead: only letters of this project."`
	ID         []string `placeholder:"UUID" help:"With --dead: only the letter with this id; several separated by commas."`
	Set        []string `sep:"none" placeholder:"FIELD=VALUE" help:"With --dead: repair each event: unit_id, experiment, variant, unit_type, time, name, value, event_id, kind, rule, reason, attributes.KEY, or body.PATH in the event as it came. Nothing after = takes it out. May be given several times."`

	Yes    bool `help:"Do it. Without it, only what would be done is counted."`
	DryRun bool `help:"Count only. This is the default."`

	TimePast   time.Duration `name:"time-past-limit" group:"limits" default:"720h" unit:"duration" help:"As the collectors have it: how far before its receipt an event may say it happened." wrong:"Not as the collectors have it: times of replayed events are clamped elsewhere."`
	TimeFuture time.Duration `name:"time-future-limit" group:"limits" default:"1h" unit:"duration" help:"As the collectors have it: how far after its receipt an event may say it happened." wrong:"As above."`
	RecordMax  config.Bytes  `name:"record-max-bytes" group:"durability" default:"900KiB" unit:"bytes" help:"As the collectors have it: largest Kafka record." wrong:"Larger than the topic takes: Kafka refuses a large event."`
}

// moment is a point in time on the command line.
type moment struct{ time.Time }

// UnmarshalText reads RFC 3339, a date, a date and a time (both UTC), or a duration:
// so long ago.
func (m *moment) UnmarshalText(text []byte) error {
	s := string(text)
	for _, layout := range []string{time.RFC3339, time.DateOnly, time.DateTime, "2006-01-02 15:04"} {
		if t, err := time.Parse(layout, s); err == nil {
			m.Time = t
			return nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		m.Time = time.Now().Add(-d)
		return nil
	}
	return errors.New("want a time such as 2026-01-31, 2026-01-31T12:00:00Z or 2h (ago)")
}

// Validate refuses flags that say nothing together, or two things.
func (r *replays) Validate() error {
	for _, f := range []struct {
		name string
		set  bool
	}{{"reason", len(r.Reason) > 0}, {"stage", len(r.Stage) > 0}, {"project", len(r.Project) > 0}, {"id", len(r.ID) > 0}, {"set", len(r.Set) > 0}} {
		if f.set && !r.Dead {
			return fmt.Errorf("--%s: want --dead with it", f.name)
		}
	}
	switch {
	case r.Dead && r.Into != "":
		return errors.New("--dead and --into: want one of them")
	case r.Dead && r.Partition != nil:
		return errors.New("--partition: dead letters are chosen by --reason, --stage, --project and --id")
	case r.Partition != nil && *r.Partition < 0:
		return fmt.Errorf("--partition=%d: want 0 or more", *r.Partition)
	case !r.Dead && r.Since.IsZero():
		return errors.New("want --dead, or --since=TIME to look for what is missing since then")
	case !r.Until.IsZero() && !r.Since.Before(r.Until.Time):
		return errors.New("--until: want a time after --since")
	case r.Yes && r.DryRun:
		return errors.New("--yes and --dry-run: want one of them")
	case r.Into != "" && r.DryRun:
		return errors.New("--dry-run: --into writes to no table but its own, and has none")
	case r.Into == "" && r.Kind != "exposure":
		return errors.New("--kind: want --into with it")
	case r.Kind == "event" && r.Experiment != "":
		return errors.New("--experiment: custom events have none")
	case r.RecordMax < 16<<10 || r.RecordMax > 1000<<10:
		return fmt.Errorf("%s=%v: want 16KiB to 1000KiB", config.Env("record-max-bytes"), r.RecordMax)
	}
	if _, err := r.fixes(); err != nil {
		return err
	}
	_, err := r.ids()
	return err
}

func (r *replays) fixes() ([]replay.Fix, error) {
	out := make([]replay.Fix, len(r.Set))
	for i, s := range r.Set {
		var err error
		if out[i], err = replay.ParseFix(s); err != nil {
			return nil, fmt.Errorf("--set: %w", err)
		}
	}
	return out, nil
}

func (r *replays) ids() ([]batch.ID, error) {
	out := make([]batch.ID, len(r.ID))
	for i, s := range r.ID {
		var err error
		if out[i], err = batch.ParseID(s); err != nil {
			return nil, fmt.Errorf("--id=%q: %w", s, err)
		}
	}
	return out, nil
}

// Run implements the verb.
func (r *replays) Run(t *tool) error {
	store, err := openStore(r.ClickHouse)
	if err != nil {
		return err
	}
	defer store.Close()
	client, err := openKafka(r.Kafka)
	if err != nil {
		return err
	}
	defer client.Close()
	if r.Dead {
		return r.dead(t, store, client)
	}
	return r.repair(t, store, client)
}

// deadResult is what --dead prints as JSON.
type deadResult struct {
	DryRun bool `json:"dry_run"`
	replay.DeadReport
}

func (r *replays) dead(t *tool, store *clickhouse.Client, client *kafka.Client) error {
	fixes, err := r.fixes()
	if err != nil {
		return err
	}
	ids, err := r.ids()
	if err != nil {
		return err
	}
	bar := startBar(t.stderr, "dead letters")
	report, err := replay.Dead(t.ctx, deadLetters{store}, client.NewProducer(r.Topics.Batches()), replay.DeadOptions{
		Filter: replay.DeadFilter{Reasons: r.Reason, Stages: r.Stage, Projects: r.Project,
			Since: r.Since.Time, Until: r.Until.Time, IDs: ids},
		Experiment: r.Experiment,
		Fixes:      fixes,
		Protocols:  protocols(),
		Limits:     schema.Limits{Past: r.TimePast, Future: r.TimeFuture},
		RecordMax:  int(r.RecordMax),
		DryRun:     !r.Yes,
		Progress:   bar.set,
	})
	bar.end()
	if err != nil {
		return fmt.Errorf("%w (%d events were sent; they stay, and running it again sends none of them twice)", err, report.Sent)
	}
	rows := [][]string{}
	for _, c := range report.Counts {
		rows = append(rows, []string{c.Stage, c.Reason, c.Experiment, c.Variant, c.Result, strconv.FormatInt(c.Events, 10)})
	}
	if err := r.print(t.stdout, deadResult{!r.Yes, report}, []string{"STAGE", "REASON", "EXPERIMENT", "VARIANT", "RESULT", "EVENTS"}, rows); err != nil {
		return err
	}
	if r.Output == "json" {
		return nil
	}
	fmt.Fprintf(t.stdout, "\n%d dead letters with %d events; %d can be replayed.\n", report.Letters, report.Events, report.Valid)
	if report.Example != "" {
		fmt.Fprintf(t.stdout, "Why not, for one: %s\n", printable(report.Example))
	}
	switch {
	case r.Yes:
		fmt.Fprintf(t.stdout, "%d were sent to %s. A sink stores them.\n", report.Sent, r.Topics.Batches())
	case report.Valid > 0:
		fmt.Fprintln(t.stdout, "Nothing was sent. If that is right, repeat with --yes.")
	}
	return nil
}

// repairResult is what a repair prints as JSON.
type repairResult struct {
	DryRun bool `json:"dry_run"`
	replay.Report
	Comparison []replay.Comparison `json:"comparison,omitempty"` // with --into
}

func (r *replays) repair(t *tool, store *clickhouse.Client, client *kafka.Client) error {
	like := schema.Exposures
	if r.Kind == "event" {
		like = schema.Events
	}
	into := schema.Table(r.Into)
	if into != "" {
		if err := store.MakeLike(t.ctx, into, like); err != nil {
			return fmt.Errorf("--into: %w", err)
		}
	}
	bar := startBar(t.stderr, "records")
	done, total := int64(0), int64(0)
	repairer := replay.NewRepairer(replay.Options{
		Log:         client.NewSource(r.Topics.Batches()),
		Store:       store,
		Topic:       r.Topics.Batches(),
		DedupWindow: r.ClickHouse.DedupWindow,
		Experiment:  r.Experiment,
		DryRun:      !r.Yes && into == "",
		Into:        into,
		Like:        like,
		Progress:    func(n, _ int64) { bar.set(done+n, total) },
	})
	ranges, err := r.ranges(t.ctx, repairer, client)
	if err != nil {
		return err
	}
	for _, o := range ranges {
		total += o.Last - o.First + 1
	}
	var report replay.Report
	for _, o := range ranges {
		part, err := repairer.Repair(t.ctx, o.Partition, o.First, o.Last)
		report.Add(part)
		if err != nil {
			bar.end()
			return fmt.Errorf("%w (%d rows were inserted; they stay, and running it again goes on from there)", err, report.Inserted)
		}
		done += o.Last - o.First + 1
	}
	bar.end()
	result := repairResult{DryRun: !r.Yes && into == "", Report: report}
	if into != "" {
		if result.Comparison, err = repairer.Compare(t.ctx, store, ranges); err != nil {
			return err
		}
	}
	return r.show(t, result)
}

// ranges finds the offsets of the time asked for.
func (r *replays) ranges(ctx context.Context, repairer *replay.Repairer, client *kafka.Client) ([]replay.Offsets, error) {
	producer := client.NewProducer(r.Topics.Batches())
	if err := producer.Probe(ctx); err != nil {
		return nil, err
	}
	var out []replay.Offsets
	for p := range len(producer.Leaders()) {
		if r.Partition != nil && *r.Partition != p {
			continue
		}
		first, last, err := repairer.Offsets(ctx, p, r.Since.Time, r.Until.Time)
		if err != nil {
			return nil, err
		}
		out = append(out, replay.Offsets{Partition: p, First: first, Last: last})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("topic %s has %d partitions, counted from 0, and no partition %d", r.Topics.Batches(), len(producer.Leaders()), *r.Partition)
	}
	return out, nil
}

func (r *replays) show(t *tool, result repairResult) error {
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	header, rows := []string{"TABLE", "REASON", "EXPERIMENT", "VARIANT", "MISSING"}, [][]string{}
	for _, c := range result.Counts {
		rows = append(rows, []string{string(c.Table), c.Reason, c.Experiment, c.Variant, number(c.Rows)})
	}
	if r.Into != "" {
		header, rows = []string{"EXPERIMENT", "VARIANT", "ORIGINAL", printable(r.Into), "DIFFERENCE"}, nil
		for _, c := range result.Comparison {
			rows = append(rows, []string{c.Experiment, c.Variant, number(c.Original), number(c.Shadow), fmt.Sprintf("%+d", c.Shadow-c.Original)})
		}
	}
	if err := r.print(t.stdout, result, header, rows); err != nil || r.Output == "json" {
		return err
	}
	fmt.Fprintf(t.stdout, "\n%d records from Kafka make %d rows; %d were missing.\n", result.Records, result.Rows, result.Missing)
	for _, note := range []struct {
		n    int64
		text string
	}{
		{result.Gone, "records of that time are not in Kafka any more."},
		{result.Pending, "records are not stored yet: that is the sink's to do."},
		{result.Unreadable, "records cannot be read by this version of sluice: use the sink's."},
		{result.Doubled, "rows are there twice; they count once through FINAL, and are one after a merge."},
	} {
		if note.n > 0 {
			fmt.Fprintf(t.stdout, "%d %s\n", note.n, note.text)
		}
	}
	switch {
	case !result.DryRun:
		fmt.Fprintf(t.stdout, "%d rows were inserted.\n", result.Inserted)
	case result.Missing > 0:
		fmt.Fprintln(t.stdout, "Nothing was inserted. If that is right, repeat with --yes.")
	}
	return nil
}

// protocols are the protocols other than the native one that dead letters may have
// come by. Their endpoints take a bare array of events, so one event is read as an
// array of one.
func protocols() map[string]replay.Protocol {
	out := map[string]replay.Protocol{}
	for _, ep := range slices.Concat(
		statsig.Endpoints(), launchdarkly.Endpoints(), segment.Endpoints(), posthog.Endpoints(), amplitude.Endpoints(),
		optimizely.Endpoints(), otlp.Endpoints(), growthbook.Endpoints(), eppo.Endpoints(),
	) {
		if _, ok := out[ep.Source]; ok || ep.Scope == "" { // without one it takes no events
			continue
		}
		out[ep.Source] = replay.Protocol{Places: ep.Places, Decode: func(raw []byte, b *schema.Batch) error {
			return ep.Decode(&protocol.Request{
				Header: http.Header{}, Query: url.Values{}, Path: ep.Path, MaxEvents: 1,
				Body: slices.Concat([]byte("["), raw, []byte("]")),
			}, b)
		}}
	}
	return out
}

// The adapters say, in the types of the packages that must not know each other, what
// they return.

type deadLetters struct{ *clickhouse.Client }

func (d deadLetters) DeadLetters(ctx context.Context, f replay.DeadFilter, after schema.DeadLetter, limit int, maxBytes int64) ([]schema.DeadLetter, error) {
	return d.Client.DeadLetters(ctx, clickhouse.DeadFilter(f), after, limit, maxBytes)
}

func (d deadLetters) CountDead(ctx context.Context, f replay.DeadFilter) (int64, error) {
	return d.Client.CountDead(ctx, clickhouse.DeadFilter(f))
}
