package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"sluice/internal/audit"
	"sluice/internal/clickhouse"
	"sluice/internal/config"
	"sluice/internal/kafka"
	"sluice/internal/replay"
	"sluice/pkg/batch"
)

// audits is the verb audit: it holds the tables against what the collectors say
// they acknowledged.
type audits struct {
	output
	ClickHouse config.ClickHouse `embed:""`
	Kafka      config.Kafka      `embed:""`
	Topics     config.Topics     `embed:""`

	Since  moment        `placeholder:"TIME" help:"Look at what was received since then: 2026-01-31, 2026-01-31T12:00:00Z, or 2h (ago). Default: all that the table batches still knows."`
	Wait   time.Duration `default:"15s" help:"How long what is on its way when the audit begins may take before it is noted as waiting."`
	Silent time.Duration `name:"silent-after" default:"60s" help:"How long a collector that did not end in order may go without a word before that is a finding. Longer than SLUICE_LEDGER_INTERVAL."`
	Repair bool          `help:"Insert what is missing and Kafka still has, and audit again."`
	Retire string        `placeholder:"COLLECTOR" help:"Give a collector up that will not come back, or what one has lost: the watermark does not wait for it any more. Also the id of a whole ledger topic that is gone. Wants --reason."`
	Reason string        `placeholder:"TEXT" help:"With --retire: why, for the record."`
}

// Validate refuses flags that say nothing together, or two things.
func (a *audits) Validate() error {
	switch {
	case a.Retire == "" && a.Reason != "":
		return errors.New("--reason: want --retire with it")
	case a.Retire != "" && strings.TrimSpace(a.Reason) == "":
		return errors.New("--retire: want --reason with it: it is kept")
	case a.Retire != "" && (a.Repair || !a.Since.IsZero()):
		return errors.New("--retire: want neither --repair nor --since with it")
	case len(a.Reason) > 1000:
		return errors.New("--reason: want at most 1000 bytes")
	case a.Wait < 0 || a.Wait > time.Hour:
		return fmt.Errorf("--wait=%v: want 0s to 1h", a.Wait)
	case a.Silent < time.Second || a.Silent > 30*24*time.Hour:
		return fmt.Errorf("--silent-after=%v: want 1s to 720h", a.Silent)
	}
	return nil
}

// Run implements the verb.
func (a *audits) Run(t *tool) error {
	store, err := openStore(a.ClickHouse)
	if err != nil {
		return err
	}
	defer store.Close()
	client, err := openKafka(a.Kafka)
	if err != nil {
		return err
	}
	defer client.Close()
	o := audit.Options{
		Store:       auditStore{store},
		Ledger:      auditLedger{client.NewLedger(a.Topics.Prefix), client.NewSource(a.Topics.Ledger())},
		Source:      client.NewSource(a.Topics.Batches()),
		Topic:       a.Topics.Batches(),
		Since:       a.Since.Time,
		DedupWindow: a.ClickHouse.DedupWindow,
		Patience:    max(a.Wait, time.Nanosecond),
		SilentAfter: a.Silent,
	}
	if a.Retire != "" {
		return a.retire(t, store, client, o)
	}
	report, err := a.look(t, o)
	if err != nil {
		return err
	}
	repaired := int64(-1)
	if a.Repair {
		if repaired, err = a.repair(t, store, client, report); err != nil {
			return err
		}
		if repaired > 0 {
			if report, err = a.look(t, o); err != nil {
				return err
			}
		}
	}
	if err := a.show(t, report, repaired); err != nil {
		return err
	}
	if report.Bad() {
		return foundProblem{"the audit has findings: " + countsOf(report)}
	}
	return nil
}

func (a *audits) look(t *tool, o audit.Options) (*audit.Report, error) {
	bar := startBar(t.stderr, "audit")
	defer bar.end()
	o.Progress = func(_ string, done, total int64) { bar.set(done, total) }
	return audit.Run(t.ctx, o)
}

// repair inserts what Kafka still has of the findings and returns how many rows.
func (a *audits) repair(t *tool, store *clickhouse.Client, client *kafka.Client, report *audit.Report) (int64, error) {
	source := client.NewSource(a.Topics.Batches())
	log, err := source.Log(t.ctx)
	if err != nil {
		return 0, err
	}
	repairer := replay.NewRepairer(replay.Options{Log: source, Store: store, Topic: a.Topics.Batches(), DedupWindow: a.ClickHouse.DedupWindow})
	bar := startBar(t.stderr, "repair")
	defer bar.end()
	rows, err := audit.Repair(t.ctx, repairs{repairer}, report, log, bar.set)
	if err != nil {
		return rows, fmt.Errorf("%w (%d rows were inserted; they stay, and running it again goes on from there)", err, rows)
	}
	return rows, nil
}

// audited is what the verb prints as JSON.
type audited struct {
	*audit.Report
	Repaired *int64 `json:"repaired_rows,omitempty"`
}

func (a *audits) show(t *tool, report *audit.Report, repaired int64) error {
	result := audited{Report: report}
	if repaired >= 0 {
		result.Repaired = &repaired
	}
	if a.Output == "json" {
		return a.print(t.stdout, result, nil, nil)
	}
	c := report.Checked
	fmt.Fprintf(t.stdout, "Looked at %d collectors (%d starts, %d numbers), %d offsets, and %d events in %d batches; %d records were read from Kafka again.\n",
		c.Collectors, c.Epochs, c.Numbers, c.Offsets, c.Events, c.Batches, c.Reread)
	if repaired >= 0 {
		fmt.Fprintf(t.stdout, "%d rows were missing and were inserted.\n", repaired)
	}
	for _, part := range []struct {
		title string
		lines []audit.Line
	}{{"Findings", report.Findings}, {"Notes", report.Notes}} {
		if len(part.lines) == 0 {
			continue
		}
		fmt.Fprintf(t.stdout, "\n%s:\n", part.title)
		for _, l := range part.lines {
			fmt.Fprintf(t.stdout, "  %s\n", printable(nameOf(l)))
		}
		if len(part.lines) == audit.MaxLines {
			fmt.Fprintln(t.stdout, "  and more")
		}
	}
	if !report.Bad() {
		fmt.Fprintln(t.stdout, "\nNothing is lost, torn or doubled.")
	}
	return nil
}

// nameOf writes a line of a report: what, who and where, and why.
func nameOf(l audit.Line) string {
	parts := []string{string(l.Kind)}
	add := func(set bool, format string, args ...any) {
		if set {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	add(l.Collector != "", "collector %s", l.Collector)
	add(l.Epoch != 0, "epoch %d", l.Epoch)
	add(l.FirstSeq != 0 && l.FirstSeq == l.LastSeq, "seq %d", l.FirstSeq)
	add(l.FirstSeq != 0 && l.FirstSeq < l.LastSeq, "seq %d to %d", l.FirstSeq, l.LastSeq)
	add(l.BatchID != "", "batch %s", l.BatchID)
	add(l.Partition >= 0, "partition %d offset %d", l.Partition, l.Offset)
	add(len(l.Indices) > 0, "events %s", strings.Trim(strings.Join(strings.Fields(fmt.Sprint(l.Indices)), ","), "[]"))
	return strings.Join(parts, " ") + ": " + l.Detail
}

// countsOf lists how many findings there are of each kind.
func countsOf(r *audit.Report) string {
	var parts []string
	for _, k := range []audit.Kind{audit.Lost, audit.Torn, audit.Doubled, audit.DamagedSpool, audit.SilentSpool} {
		if n := r.Counts[k]; n > 0 {
			parts = append(parts, string(k)+" "+strconv.FormatUint(n, 10))
		}
	}
	return strings.Join(parts, ", ")
}

// retired is what --retire prints as JSON.
type retired struct {
	Collector string `json:"collector,omitempty"`
	Ledger    string `json:"ledger,omitempty"`
	By        string `json:"by"`
	Reason    string `json:"reason"`
	Means     string `json:"means"`
}

func (a *audits) retire(t *tool, store *clickhouse.Client, client *kafka.Client, o audit.Options) error {
	done := retired{By: operator(), Reason: a.Reason}
	id, err := batch.ParseID(a.Retire)
	if err != nil {
		ok, err := store.RetireLedger(t.ctx, a.Retire, done.By, done.Reason)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("--retire=%q: neither a collector's id (a UUID) nor that of a ledger that sinks have copied", a.Retire)
		}
		done.Ledger = a.Retire
		done.Means = "The watermark does not wait for the collectors of that ledger any more, until a sink copies it again."
	} else {
		topic := client.NewLedger(a.Topics.Prefix)
		log, next, err := topic.Ends(t.ctx)
		if err != nil {
			return err
		}
		record, means, err := audit.Retirement(t.ctx, o, id, done.By, done.Reason, log, next)
		if err != nil {
			return err
		}
		value, err := record.Encode()
		if err != nil {
			return err
		}
		// Once it is in the ledger it is on record, and takes effect when a sink has
		// copied it.
		if _, err := topic.Write(t.ctx, record.Key(), value); err != nil {
			return err
		}
		done.Collector, done.Means = id.String(), means
	}
	if a.Output == "json" {
		return a.print(t.stdout, done, nil, nil)
	}
	fmt.Fprintln(t.stdout, done.Means)
	return nil
}

// The adapters say, in the types of the packages that must not know each other, what
// they return.

type auditStore struct{ *clickhouse.Client }

func (s auditStore) LedgerEntries(ctx context.Context, row func(audit.Row)) error {
	return s.Client.LedgerEntries(ctx, func(r clickhouse.LedgerRow) { row(audit.Row(r)) })
}

func (s auditStore) Watermark(ctx context.Context) (audit.Watermark, error) {
	w, err := s.Client.Watermark(ctx)
	return audit.Watermark(w), err
}

func (s auditStore) SeqChunks(ctx context.Context, since time.Time, found func(audit.Chunk)) error {
	return s.Client.SeqChunks(ctx, since, func(k clickhouse.Chunk) { found(chunkOf(k)) })
}

func (s auditStore) OffsetChunks(ctx context.Context, topic string, since time.Time, found func(audit.Chunk)) error {
	return s.Client.OffsetChunks(ctx, topic, since, func(k clickhouse.Chunk) { found(chunkOf(k)) })
}

func chunkOf(k clickhouse.Chunk) audit.Chunk {
	return audit.Chunk{Series: audit.Series(k.Series), Index: k.Index, Count: k.Count, Old: k.Old, New: k.New, LastOld: k.LastOld, FirstNew: k.FirstNew}
}

func chunksFor(list []audit.Chunk) []clickhouse.Chunk {
	out := make([]clickhouse.Chunk, len(list))
	for i, k := range list {
		out[i] = clickhouse.Chunk{Series: clickhouse.Series(k.Series), Index: k.Index}
	}
	return out
}

func (s auditStore) Seqs(ctx context.Context, chunks []audit.Chunk, found func(audit.Series, uint64)) error {
	return s.Client.Seqs(ctx, chunksFor(chunks), func(x clickhouse.Series, n uint64) { found(audit.Series(x), n) })
}

func (s auditStore) Offsets(ctx context.Context, topic string, chunks []audit.Chunk, found func(audit.Series, uint64)) error {
	return s.Client.Offsets(ctx, topic, chunksFor(chunks), func(x clickhouse.Series, n uint64) { found(audit.Series(x), n) })
}

func (s auditStore) Skipped(ctx context.Context, topic string, found func(x audit.Series, first, last uint64)) error {
	return s.Client.Skipped(ctx, topic, func(x clickhouse.Series, first, last uint64) { found(audit.Series(x), first, last) })
}

func (s auditStore) Suspects(ctx context.Context, since, until time.Time, found func(audit.Suspect)) error {
	return s.Client.Suspects(ctx, since, until, func(x clickhouse.Suspect) { found(audit.Suspect(x)) })
}

func (s auditStore) RecordsOf(ctx context.Context, ids []batch.ID, found func(audit.Record)) error {
	return s.Client.RecordsOf(ctx, ids, func(r clickhouse.StoredRecord) { found(audit.Record(r)) })
}

type repairs struct{ *replay.Repairer }

func (r repairs) Repair(ctx context.Context, partition int, first, last int64) (int64, error) {
	report, err := r.Repairer.Repair(ctx, partition, first, last)
	return report.Inserted, err
}

type auditLedger struct {
	*kafka.LedgerTopic
	source *kafka.Source
}

func (l auditLedger) Bounds(ctx context.Context) (batch.Bounds, error) {
	return l.source.Bounds(ctx, 0)
}

func (l auditLedger) Read(ctx context.Context, from int64, maxWait time.Duration) ([]audit.Entry, int64, error) {
	list, next, err := l.LedgerTopic.Read(ctx, from, maxWait)
	out := slices.Grow([]audit.Entry(nil), len(list))
	for _, e := range list {
		out = append(out, audit.Entry(e))
	}
	return out, next, err
}
