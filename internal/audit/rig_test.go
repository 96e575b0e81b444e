package audit

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/clickhouse"
	"sluice/internal/embedded/teststack"
	"sluice/internal/kafka"
	"sluice/internal/replay"
	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// The adapters are those of cmd/sluice.

type real struct{ *clickhouse.Client }

func (s real) LedgerEntries(ctx context.Context, row func(Row)) error {
	return s.Client.LedgerEntries(ctx, func(r clickhouse.LedgerRow) { row(Row(r)) })
}

func (s real) Watermark(ctx context.Context) (Watermark, error) {
	w, err := s.Client.Watermark(ctx)
	return Watermark(w), err
}

func (s real) SeqChunks(ctx context.Context, since time.Time, found func(Chunk)) error {
	return s.Client.SeqChunks(ctx, since, func(k clickhouse.Chunk) { found(fromChunk(k)) })
}

func (s real) OffsetChunks(ctx context.Context, topic string, since time.Time, found func(Chunk)) error {
	return s.Client.OffsetChunks(ctx, topic, since, func(k clickhouse.Chunk) { found(fromChunk(k)) })
}

func fromChunk(k clickhouse.Chunk) Chunk {
	return Chunk{Series: Series(k.Series), Index: k.Index, Count: k.Count, Old: k.Old, New: k.New, LastOld: k.LastOld, FirstNew: k.FirstNew}
}

func toChunks(list []Chunk) []clickhouse.Chunk {
	out := make([]clickhouse.Chunk, len(list))
	for i, k := range list {
		out[i] = clickhouse.Chunk{Series: clickhouse.Series(k.Series), Index: k.Index}
	}
	return out
}

func (s real) Seqs(ctx context.Context, chunks []Chunk, found func(Series, uint64)) error {
	return s.Client.Seqs(ctx, toChunks(chunks), func(x clickhouse.Series, n uint64) { found(Series(x), n) })
}

func (s real) Offsets(ctx context.Context, topic string, chunks []Chunk, found func(Series, uint64)) error {
	return s.Client.Offsets(ctx, topic, toChunks(chunks), func(x clickhouse.Series, n uint64) { found(Series(x), n) })
}

func (s real) Skipped(ctx context.Context, topic string, found func(x Series, first, last uint64)) error {
	return s.Client.Skipped(ctx, topic, func(x clickhouse.Series, first, last uint64) { found(Series(x), first, last) })
}

func (s real) Suspects(ctx context.Context, since, until time.Time, found func(Suspect)) error {
	return s.Client.Suspects(ctx, since, until, func(x clickhouse.Suspect) { found(Suspect(x)) })
}

func (s real) RecordsOf(ctx context.Context, ids []batch.ID, found func(Record)) error {
	return s.Client.RecordsOf(ctx, ids, func(r clickhouse.StoredRecord) { found(Record(r)) })
}

type realLedger struct {
	*kafka.LedgerTopic
	source *kafka.Source
}

func (l realLedger) Bounds(ctx context.Context) (batch.Bounds, error) { return l.source.Bounds(ctx, 0) }

func (l realLedger) Read(ctx context.Context, from int64, maxWait time.Duration) ([]Entry, int64, error) {
	list, next, err := l.LedgerTopic.Read(ctx, from, maxWait)
	var out []Entry
	for _, e := range list {
		out = append(out, Entry(e))
	}
	return out, next, err
}

type realRepairer struct{ *replay.Repairer }

func (r realRepairer) Repair(ctx context.Context, partition int, first, last int64) (int64, error) {
	report, err := r.Repairer.Repair(ctx, partition, first, last)
	return report.Inserted, err
}

// rig is topics and tables, and a sink and collectors that do as they are told.
type rig struct {
	t        *testing.T
	store    *clickhouse.Client
	client   *kafka.Client
	producer *kafka.Producer
	source   *kafka.Source
	ledger   realLedger
	topic    string
	log      string
	blocks   int
	ends     map[int]int64
}

func newRig(t *testing.T) *rig {
	t.Helper()
	ctx := t.Context()
	cfg := clickhouse.Config{DSN: teststack.DSN(t)}
	require.NoError(t, clickhouse.Migrate(ctx, cfg, 720*time.Hour))
	store, err := clickhouse.Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, store.Close()) })
	client, err := kafka.Open(kafka.Config{Brokers: []string{teststack.Kafka(t)}})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	prefix := teststack.Prefix(t)
	require.NoError(t, retry.Policy{Attempts: 20}.Do(ctx, func(ctx context.Context) error { return client.EnsureTopics(ctx, prefix, 2, 1) }))
	names := kafka.Topics(prefix)
	r := &rig{t: t, store: store, client: client, topic: names.Batches, producer: client.NewProducer(names.Batches), source: client.NewSource(names.Batches),
		ledger: realLedger{client.NewLedger(prefix), client.NewSource(names.Ledger)}, ends: map[int]int64{}}
	r.log, err = r.source.Log(ctx)
	require.NoError(t, err)
	return r
}

// collector is one start of a collector.
type collector struct {
	r       *rig
	id      batch.ID
	epoch   uint64
	number  uint64
	seq     uint64
	offsets map[int]int64
	voids   []batch.SeqRange
}

func (r *rig) collector(name string, epoch uint64) *collector {
	return &collector{r: r, id: batch.ForKey("collector", name), epoch: epoch, offsets: map[int]int64{}}
}

func (c *collector) report(kind batch.LedgerKind, edit func(*batch.LedgerRecord)) {
	c.r.t.Helper()
	c.number++
	now := time.Now()
	l := batch.LedgerRecord{Kind: kind, Collector: c.id, Epoch: c.epoch, Number: c.number, At: now, CompleteUntil: now, Settled: c.seq,
		Voids: c.voids, Log: c.r.log, Offsets: maps.Clone(c.offsets), Spool: batch.SpoolIntact}
	if edit != nil {
		edit(&l)
	}
	c.r.write(&l)
}

func (r *rig) write(l *batch.LedgerRecord) {
	r.t.Helper()
	value, err := l.Encode()
	require.NoError(r.t, err)
	require.NoError(r.t, retry.Policy{Attempts: 10}.Do(r.t.Context(), func(ctx context.Context) error {
		_, err := r.ledger.Write(ctx, l.Key(), value)
		return err
	}))
}

// copyLedger does what the sink's copier does, without judging.
func (r *rig) copyLedger() {
	r.t.Helper()
	ctx := r.t.Context()
	id, err := r.ledger.ID(ctx)
	require.NoError(r.t, err)
	bounds, err := r.ledger.Bounds(ctx)
	require.NoError(r.t, err)
	for next := int64(0); next < bounds.End; {
		var list []Entry
		list, next, err = r.ledger.Read(ctx, next, time.Second)
		require.NoError(r.t, err)
		for _, e := range list {
			l, err := batch.DecodeLedgerRecord(e.Value)
			require.NoError(r.t, err)
			row := clickhouse.LedgerRow{Entry: "newest", Version: l.Number, Ledger: id, Topic: r.topic, Offset: e.Offset, At: e.At, Record: l}
			rows := []clickhouse.LedgerRow{row}
			switch l.Kind {
			case batch.LedgerRetire:
				rows[0].Entry, rows[0].Version = "retire", uint64(e.At.UnixMicro())
			case batch.LedgerOpen:
				row.Entry, row.Version = "open", ^uint64(e.At.UnixMicro())
				rows = append(rows, row)
			}
			require.NoError(r.t, r.store.InsertLedger(ctx, rows))
		}
	}
}

// record is one record in Kafka, and the batch in it.
type record struct {
	batch     schema.Batch
	record    batch.Record
	partition int
	offset    int64
}

// events makes a batch of n exposures and one custom event.
func events(key string, n int) *schema.Batch {
	b := &schema.Batch{Project: "p", Source: "native", SDK: "go/1", ID: batch.ForKey("p", key)}
	for i := range n {
		e := b.Append()
		*e = schema.Event{Index: e.Index, Kind: schema.KindExposure, Experiment: "exp", Variant: "a", UnitID: fmt.Sprintf("%s-u%d", key, i)}
	}
	e := b.Append()
	*e = schema.Event{Index: e.Index, Kind: schema.KindEvent, Name: "paid", UnitID: key + "-u"}
	b.Digest = batch.Digest(batch.ForKey("digest", key))
	return b
}

// accept stamps a batch and returns its records, in parts of at most so many
// events (0: whole).
func (c *collector) accept(b *schema.Batch, at time.Time, part uint32) []*record {
	b.Resolve(at, schema.Limits{Past: 720 * time.Hour, Future: time.Hour})
	ranges := []schema.Range{{First: 0, Last: b.Count - 1}}
	if part > 0 {
		ranges = nil
		for first := uint32(0); first < b.Count; first += part {
			ranges = append(ranges, schema.Range{First: first, Last: min(first+part, b.Count) - 1})
		}
	}
	var out []*record
	for _, g := range ranges {
		c.seq++
		x := &record{offset: -1, record: batch.Record{BatchID: b.ID, DedupID: b.DedupFor(g), Digest: b.Digest, Project: b.Project,
			Collector: c.id, Epoch: c.epoch, Seq: c.seq, Path: batch.Direct, Value: schema.AppendRecord(nil, b, g), ReceivedAt: at.Truncate(time.Microsecond)}}
		require.NoError(c.r.t, schema.DecodeRecord(x.record.Value, &x.batch))
		out = append(out, x)
	}
	return out
}

// send brings records into Kafka.
func (c *collector) send(list ...*record) []*record {
	c.r.t.Helper()
	for _, x := range list {
		c.r.produce(x)
		c.offsets[x.partition] = x.offset
	}
	return list
}

func (r *rig) produce(x *record) {
	r.t.Helper()
	require.NoError(r.t, retry.Policy{Attempts: 10}.Do(r.t.Context(), func(ctx context.Context) (err error) {
		if x.partition, err = r.producer.Partition(ctx, x.record.BatchID); err != nil {
			return err
		}
		x.offset, _, err = r.producer.Produce(ctx, x.partition, []batch.Record{x.record})
		return err
	}))
	r.ends[x.partition] = x.offset
}

// insert writes rows of one table at a place, as a sink does.
func (r *rig) insert(table schema.Table, partition int, rows *schema.Rows) {
	r.t.Helper()
	r.blocks++
	in, err := r.store.OpenInsert(r.t.Context(), table, schema.Position{Log: r.log, Topic: r.topic, Partition: partition}, fmt.Sprintf("%s-%d", table, r.blocks))
	require.NoError(r.t, err)
	require.NoError(r.t, in.Send(rows))
}

// drain stores records with an outcome, but for the progress.
func (r *rig) drain(outcome schema.Outcome, list ...*record) {
	r.t.Helper()
	for _, x := range list {
		rows := map[schema.Table]*schema.Rows{schema.Exposures: {}, schema.Events: {}, schema.DeadLetters: {}}
		for i := range x.batch.Events {
			e := &x.batch.Events[i]
			switch {
			case outcome == schema.Conflict:
				rows[schema.DeadLetters].Dead = append(rows[schema.DeadLetters].Dead, schema.DeadLetter{ID: batch.Random(), Project: "p", BatchID: x.record.BatchID,
					Index: e.Index, Stage: schema.StageConflict, Reason: "key_reused", ReceivedAt: x.record.ReceivedAt.UnixMicro(), Offset: x.offset})
			case outcome != schema.Stored:
			case e.Kind == schema.KindEvent:
				rows[schema.Events].Events = append(rows[schema.Events].Events, schema.EventRow{Batch: &x.batch, Event: e, Offset: x.offset})
			default:
				rows[schema.Exposures].Events = append(rows[schema.Exposures].Events, schema.EventRow{Batch: &x.batch, Event: e, Offset: x.offset})
			}
		}
		for i := range x.batch.Rejected {
			if outcome != schema.Stored {
				break
			}
			j := &x.batch.Rejected[i]
			rows[schema.DeadLetters].Dead = append(rows[schema.DeadLetters].Dead, schema.DeadLetter{ID: batch.Random(), Project: "p", BatchID: x.record.BatchID,
				Index: j.Index, Stage: schema.StageCollector, Reason: string(j.Code), Error: j.Message, ReceivedAt: x.record.ReceivedAt.UnixMicro(), Offset: x.offset})
		}
		for table, w := range rows {
			if w.Len() > 0 {
				r.insert(table, x.partition, w)
			}
		}
		r.row(outcome, x, len(x.batch.Events), len(x.batch.Rejected))
	}
}

// row writes the row of batches.
func (r *rig) row(outcome schema.Outcome, x *record, events, rejected int) {
	r.t.Helper()
	w := schema.BatchRow{Record: x.record, Source: "native", Outcome: outcome, Events: events, Rejected: rejected, Offset: x.offset}
	if x.batch.Part {
		w.Part = fmt.Sprintf("%d-%d", x.batch.First, x.batch.Last)
	}
	r.insert(schema.Batches, x.partition, &schema.Rows{Batches: []schema.BatchRow{w}})
}

// progress says that everything in Kafka is stored.
func (r *rig) progress() {
	r.t.Helper()
	for p, through := range r.ends {
		r.insert(schema.ProgressTab, p, &schema.Rows{Progress: []schema.Progress{{Through: through}}})
	}
}

func (r *rig) exec(query string, args ...any) {
	r.t.Helper()
	require.NoError(r.t, r.store.Exec(r.t.Context(), query, args...))
}

func (r *rig) options() Options {
	return Options{Store: real{r.store}, Ledger: r.ledger, Source: r.source, Topic: r.topic, Patience: time.Millisecond}
}

func (r *rig) audit(edit func(*Options)) *Report {
	r.t.Helper()
	o := r.options()
	if edit != nil {
		edit(&o)
	}
	report, err := Run(r.t.Context(), o)
	require.NoError(r.t, err)
	return report
}

// kinds counts lines by kind, and by what they count.
func kinds(lines []Line) map[Kind]uint64 {
	out := map[Kind]uint64{}
	for _, l := range lines {
		out[l.Kind] += max(1, l.Count)
	}
	return out
}
