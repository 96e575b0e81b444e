package replay

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// item is one record of the log and what is known of it. What follows from it are
// the rows that a sink makes of it (internal/sink, block.go): the two must agree,
// which the integration tests hold them to.
type item struct {
	delivery batch.Delivery
	batch    schema.Batch
	broken   error          // the value, the key or a header could not be read
	outcome  schema.Outcome // empty: batches has no row of the record
}

func newItem(d batch.Delivery) item {
	it := item{delivery: d, broken: d.Bad}
	if it.broken == nil {
		it.broken = schema.DecodeRecord(d.Value, &it.batch)
	}
	if it.broken != nil {
		it.batch = schema.Batch{}
		if it.delivery.DedupID.IsZero() {
			it.delivery.DedupID = batch.ForKey("", fmt.Sprintf("unreadable/%d/%d", d.Partition, d.Offset))
		}
	}
	return it
}

func (it *item) receivedAt() time.Time {
	if it.delivery.ReceivedAt.IsZero() {
		return it.delivery.AppendAt
	}
	return it.delivery.ReceivedAt
}

// span is the original indices that the record has.
func (it *item) span() (first, last uint32) {
	if it.batch.Part {
		return it.batch.First, it.batch.Last
	}
	return 0, math.MaxUint32
}

// spot is where a row comes from.
type spot struct {
	offset int64
	index  uint32
	batch  batch.ID // a log that lost its newest records has others at their offsets
}

// rows are the rows of some tables.
type rows map[schema.Table]*schema.Rows

func newRows() rows {
	out := rows{}
	for _, t := range repaired() {
		out[t] = &schema.Rows{}
	}
	return out
}

func (r rows) len() (n int64) {
	for _, m := range r {
		n += int64(m.Len())
	}
	return n
}

// repaired are the tables in the order in which they are filled: batches after the
// rows it vouches for. progress is the sink's alone.
func repaired() []schema.Table {
	return []schema.Table{schema.Exposures, schema.Events, schema.DeadLetters, schema.Batches}
}

// maxErrorText bounds the error of a dead letter, in bytes.
const maxErrorText = 1000

// build adds the rows of the record. refused are the events that ClickHouse did not
// take, which are among the dead letters instead. An event that an earlier record
// of its batch has brought is built too: it is found by its sorting key.
func (it *item) build(out rows, refused map[spot]bool) {
	b, offset := &it.batch, it.delivery.Offset
	letter := func(index uint32, stage string) schema.DeadLetter {
		return schema.DeadLetter{
			ID:      batch.DeadLetterID(it.delivery.BatchID, it.delivery.Digest, index, stage),
			Project: it.delivery.Project, BatchID: it.delivery.BatchID, Index: index, Stage: stage,
			Source: b.Source, ReceivedAt: it.receivedAt().UnixMicro(), Offset: offset,
		}
	}
	dead := out[schema.DeadLetters]
	rejected := func(stage string) {
		for i := range b.Rejected {
			r := &b.Rejected[i]
			l := letter(r.Index, stage)
			l.Reason, l.Field, l.Error, l.Bytes, l.Size = string(r.Code), r.Field, r.Message, r.Bytes, r.Size
			dead.Dead = append(dead.Dead, l)
		}
	}
	aside := 0
	switch it.outcome {
	case schema.Stored:
		for i := range b.Events {
			e := &b.Events[i]
			if refused[spot{offset, e.Index, b.ID}] {
				aside++
				continue // its dead letter is there
			}
			t := schema.Exposures
			if e.Kind == schema.KindEvent {
				t = schema.Events
			}
			out[t].Events = append(out[t].Events, schema.EventRow{Batch: b, Event: e, Offset: offset})
		}
		rejected(schema.StageCollector)
	case schema.Conflict:
		for i := range b.Events {
			e := &b.Events[i]
			l := letter(e.Index, schema.StageConflict)
			l.Reason = reasonKeyReused
			l.Error = "the idempotency key was used before with other events; those are stored, these are kept here"
			l.Bytes = schema.AppendEventJSON(nil, e)
			l.Size = len(l.Bytes)
			dead.Dead = append(dead.Dead, l)
		}
		rejected(schema.StageConflict)
	case schema.Dead:
		l := letter(0, schema.StageSink)
		l.ID = batch.DeadLetterID(it.delivery.DedupID, it.delivery.Digest, 0, schema.StageSink)
		l.Reason, l.Error = reasonUndecodable, "it could not be read when it came"
		if it.broken != nil {
			if l.Error = it.broken.Error(); len(l.Error) > maxErrorText {
				l.Error = strings.ToValidUTF8(l.Error[:maxErrorText], "")
			}
		}
		l.Bytes, l.Size = it.delivery.Value, len(it.delivery.Value)
		dead.Dead = append(dead.Dead, l)
	}
	row := schema.BatchRow{Record: it.delivery.Record, Source: b.Source, Outcome: it.outcome,
		Events: len(b.Events) - aside, Rejected: len(b.Rejected) + aside, Offset: offset}
	row.Record.Value = nil
	row.Record.ReceivedAt = it.receivedAt()
	if b.Part {
		row.Part = fmt.Sprintf("%d-%d", b.First, b.Last)
	}
	out[schema.Batches].Batches = append(out[schema.Batches].Batches, row)
}

// decide settles what each record is that batches does not know, as a sink would
// (docs/adr/0006): of the records of a batch the one with the lowest offset counts,
// and one from another partition or log was earlier than all of this one.
//
// Where batches has lost the row of a batch's first record too, the rows of its
// events tell that there was one, and not what else was in it: a record whose
// indices another one has brought is a duplicate then.
func (r *Repairer) decide(ctx context.Context, at schema.Position, items []item) error {
	var ids []batch.ID
	for i := range items {
		it := &items[i]
		switch {
		case it.outcome != "":
		case it.broken != nil:
			it.outcome = schema.Dead
		default:
			ids = append(ids, it.delivery.BatchID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	ids = unique(ids)
	stored, holders := map[batch.ID][]schema.Copy{}, map[batch.ID][]schema.Copy{}
	if err := r.o.Store.Copies(ctx, ids, func(c schema.Copy) { stored[c.BatchID] = append(stored[c.BatchID], c) }); err != nil {
		return err
	}
	if err := r.o.Store.Holders(ctx, ids, func(c schema.Copy) { holders[c.BatchID] = append(holders[c.BatchID], c) }); err != nil {
		return err
	}
	for i := range items {
		it := &items[i]
		if it.outcome != "" {
			continue
		}
		id := it.delivery.BatchID
		first, last := it.span()
		earlier := before(stored[id], at, it.delivery.Offset)
		earlier = append(earlier, before(r.decided[id], at, it.delivery.Offset)...)
		switch {
		case len(earlier) == 0 && slices.ContainsFunc(before(holders[id], at, it.delivery.Offset), func(c schema.Copy) bool {
			return c.First <= last && first <= c.Last
		}):
			it.outcome = schema.Duplicate
			continue
		case len(earlier) > 0 && lowest(earlier, at).Digest != it.delivery.Digest:
			it.outcome = schema.Conflict
			continue
		case covered(earlier, first, last):
			it.outcome = schema.Duplicate
			continue
		}
		it.outcome = schema.Stored
		if len(r.decided) >= mostDecided {
			clear(r.decided)
		}
		r.decided[id] = append(r.decided[id], schema.Copy{BatchID: id, Digest: it.delivery.Digest, First: first, Last: last,
			Log: at.Log, Partition: at.Partition, Offset: it.delivery.Offset})
	}
	return nil
}

// mostDecided bounds what a run remembers of its own decisions. They are needed
// where they are not written down: in a dry run, whose counts would be too high
// otherwise, and within a block.
const mostDecided = 100_000

func before(copies []schema.Copy, at schema.Position, offset int64) (out []schema.Copy) {
	for _, c := range copies {
		if c.Log != at.Log || c.Partition != at.Partition || c.Offset < offset {
			out = append(out, c)
		}
	}
	return out
}

func lowest(copies []schema.Copy, at schema.Position) schema.Copy {
	place := func(c schema.Copy) int64 {
		if c.Log != at.Log || c.Partition != at.Partition {
			return -1
		}
		return c.Offset
	}
	return slices.MinFunc(copies, func(a, b schema.Copy) int { return int(min(1, max(-1, place(a)-place(b)))) })
}

// covered reports whether the copies have every index from first to last.
func covered(copies []schema.Copy, first, last uint32) bool {
	at := uint64(first)
	for at <= uint64(last) {
		end := at
		for _, c := range copies {
			if uint64(c.First) <= at && at <= uint64(c.Last) {
				end = max(end, uint64(c.Last)+1)
			}
		}
		if end == at {
			return false
		}
		at = end
	}
	return true
}
