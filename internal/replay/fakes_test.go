package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// fakeLog is one partition in memory. A nil record is an offset without one.
type fakeLog struct {
	start   int64
	records []*batch.Delivery
	fail    int // so many fetches fail first
	fetched int
	onFetch func(n int)
}

func (l *fakeLog) Log(context.Context) (string, error) { return "log", nil }

func (l *fakeLog) Bounds(context.Context, int) (batch.Bounds, error) {
	return batch.Bounds{Start: l.start, End: int64(len(l.records))}, nil
}

func (l *fakeLog) Fetch(ctx context.Context, _ int, offset int64, _ int, _ time.Duration) ([]batch.Delivery, batch.Bounds, error) {
	l.fetched++
	if l.onFetch != nil {
		l.onFetch(l.fetched)
	}
	if ctx.Err() != nil {
		return nil, batch.Bounds{}, ctx.Err()
	}
	if l.fail > 0 {
		l.fail--
		return nil, batch.Bounds{}, errors.New("no answer")
	}
	bounds, _ := l.Bounds(ctx, 0)
	if offset < bounds.Start || offset > bounds.End {
		return nil, bounds, batch.ErrOffsetGone
	}
	var out []batch.Delivery
	for _, d := range l.records[offset:] {
		if d != nil && len(out) < 3 {
			out = append(out, *d)
		}
	}
	return out, bounds, nil
}

// append adds the record of a batch.
func (l *fakeLog) append(b *schema.Batch, r schema.Range) *batch.Delivery {
	at := time.UnixMicro(b.ReceivedAt)
	d := &batch.Delivery{Offset: int64(len(l.records)), AppendAt: at, Record: batch.Record{
		BatchID: b.ID, DedupID: b.DedupFor(r), Digest: b.Digest, Project: b.Project, Collector: batch.ID{1}, Epoch: 7,
		Seq: uint64(len(l.records)), Path: batch.Direct, ReceivedAt: at, Value: schema.AppendRecord(nil, b, r)}}
	l.records = append(l.records, d)
	return d
}

// body makes a resolved batch of a JSON array.
func body(t testing.TB, key, text string, at time.Time) *schema.Batch {
	t.Helper()
	b := &schema.Batch{Project: "p", Source: "native", ID: batch.ForKey("p", key)}
	require.NoError(t, schema.DecodeJSON([]byte(text), schema.KindExposure, 100, b))
	b.ComputeDigest()
	b.Resolve(at, schema.Limits{Past: time.Hour, Future: time.Hour})
	return b
}

// fakeTables is ClickHouse in memory: rows in the order in which they came, each
// with its table.
type fakeTables struct {
	rows    map[schema.Table]*schema.Rows
	through int64
	tokens  map[string]bool
	inserts int
	// onFill is called before each insert; its error is what Fill returns, after the
	// rows were stored if it is errUnsure. errSwallow: reported as done, and not.
	onFill  func(n int, t schema.Table) error
	refused []spot
	asked   int
	onAsk   func(n int) error // called before each question
}

func (f *fakeTables) ask() error {
	f.asked++
	if f.onAsk == nil {
		return nil
	}
	return f.onAsk(f.asked)
}

var errSwallow = errors.New("not stored, though success is reported")

func newTables() *fakeTables {
	return &fakeTables{rows: map[schema.Table]*schema.Rows{}, tokens: map[string]bool{}, through: 1 << 40}
}

func (f *fakeTables) of(t schema.Table) *schema.Rows {
	if f.rows[t] == nil {
		f.rows[t] = &schema.Rows{}
	}
	return f.rows[t]
}

func (f *fakeTables) Through(context.Context, schema.Position) (int64, error) {
	return f.through, f.ask()
}

func (f *fakeTables) Outcomes(_ context.Context, ids []batch.ID, _ schema.Position, first, last int64, found func(int64, batch.ID, schema.Outcome)) error {
	for _, r := range f.of(schema.Batches).Batches {
		if slices.Contains(ids, r.Record.BatchID) && first <= r.Offset && r.Offset <= last {
			found(r.Offset, r.Record.BatchID, r.Outcome)
		}
	}
	return f.ask()
}

func (f *fakeTables) Refused(_ context.Context, _ schema.Position, first, last int64, _, _ time.Time, found func(int64, uint32, batch.ID)) error {
	for _, s := range f.refused {
		found(s.offset, s.index, s.batch)
	}
	return f.ask()
}

func (f *fakeTables) Copies(_ context.Context, ids []batch.ID, found func(schema.Copy)) error {
	for _, r := range f.of(schema.Batches).Batches {
		if r.Outcome == schema.Stored && slices.Contains(ids, r.Record.BatchID) {
			c := schema.Copy{BatchID: r.Record.BatchID, Digest: r.Record.Digest, Last: 1<<32 - 1, Log: "log", Offset: r.Offset}
			if r.Part != "" {
				if _, err := fmt.Sscanf(r.Part, "%d-%d", &c.First, &c.Last); err != nil {
					return err
				}
			}
			found(c)
		}
	}
	return f.ask()
}

func (f *fakeTables) Holders(_ context.Context, ids []batch.ID, found func(schema.Copy)) error {
	for _, t := range []schema.Table{schema.Exposures, schema.Events} {
		for _, r := range f.of(t).Events {
			if slices.Contains(ids, r.Batch.ID) {
				found(schema.Copy{BatchID: r.Batch.ID, First: r.Event.Index, Last: r.Event.Index, Log: "log", Offset: r.Offset})
			}
		}
	}
	return f.ask()
}

func (f *fakeTables) RowsOf(_ context.Context, t schema.Table, _ schema.Position, first, last int64, from, until time.Time, have func(int64, uint32, batch.ID)) error {
	in := func(offset, us int64) bool {
		at := time.UnixMicro(us)
		return first <= offset && offset <= last && !at.Before(from) && !at.After(until)
	}
	for _, r := range f.of(t).Events {
		if in(r.Offset, r.Batch.ReceivedAt) {
			have(r.Offset, r.Event.Index, r.Batch.ID)
		}
	}
	for _, r := range f.of(t).Dead {
		if in(r.Offset, r.ReceivedAt) {
			have(r.Offset, r.Index, r.BatchID)
		}
	}
	return f.ask()
}

func (f *fakeTables) Merged(_ context.Context, t, _ schema.Table, rows *schema.Rows, found func(int)) error {
	for i, want := range rows.Events {
		for _, r := range f.of(t).Events {
			if r.Event.ID == want.Event.ID && r.Event.UnitID == want.Event.UnitID && r.Event.Experiment == want.Event.Experiment && r.Event.Name == want.Event.Name {
				found(i)
			}
		}
	}
	for i, want := range rows.Dead {
		for _, r := range f.of(t).Dead {
			if r.ID == want.ID {
				found(i)
			}
		}
	}
	return f.ask()
}

func (f *fakeTables) Fill(_ context.Context, t, _ schema.Table, _ schema.Position, token string, rows *schema.Rows) error {
	f.inserts++
	var err error
	if f.onFill != nil {
		err = f.onFill(f.inserts, t)
	}
	if err != nil && !errors.Is(err, errUnsure) {
		if errors.Is(err, errSwallow) {
			f.tokens[token] = true
			return nil
		}
		return err
	}
	if f.tokens[token] {
		return err // ClickHouse drops what it thinks it has
	}
	f.tokens[token] = true
	into := f.of(t)
	into.Events = append(into.Events, rows.Events...)
	into.Dead = append(into.Dead, rows.Dead...)
	into.Batches = append(into.Batches, rows.Batches...)
	return err
}

// total is how many rows there are in all tables.
func (f *fakeTables) total() (n int) {
	for _, r := range f.rows {
		n += r.Len()
	}
	return n
}

func (f *fakeTables) outcomes() map[int64]schema.Outcome {
	out := map[int64]schema.Outcome{}
	for _, r := range f.of(schema.Batches).Batches {
		out[r.Offset] = r.Outcome
	}
	return out
}
