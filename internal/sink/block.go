package sink

import (
	"fmt"
	"unsafe"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// block is consecutive records of one partition, inserted together.
type block struct {
	first, last int64
	items       []item
	rows        int   // as many as the block can become at most
	bytes       int64 // what the budget was charged
	// What is known of each batch once this block is stored; set by decide.
	claims map[batch.ID]*claim
}

// item is one record of a block and what is decided about it.
type item struct {
	delivery batch.Delivery
	batch    schema.Batch
	broken   error // the value, the key or a header could not be read
	outcome  schema.Outcome
	earlier  *claim // what was stored of the batch before this record; nil: nothing
}

// newBlock makes a block of consecutive items; there is at least one.
func newBlock(a *batch.Accumulator[item]) *block {
	b := &block{rows: a.Count(), bytes: a.Bytes(), items: a.Take()}
	b.first = b.items[0].delivery.Offset
	b.last = b.items[len(b.items)-1].delivery.Offset
	return b
}

func (it *item) rowCount() int { return len(it.batch.Events) + len(it.batch.Rejected) + 1 }

// memory is what a decoded record takes, without the columns it is copied into
// when the block is written.
func (it *item) memory() int64 {
	n := int64(len(it.delivery.Value)) + int64(unsafe.Sizeof(*it))
	n += int64(cap(it.batch.Events)) * int64(unsafe.Sizeof(schema.Event{}))
	n += int64(cap(it.batch.Rejected)) * int64(unsafe.Sizeof(schema.Rejected{}))
	for i := range it.batch.Events {
		n += int64(len(it.batch.Events[i].Attributes)) * int64(unsafe.Sizeof(schema.Attribute{}))
	}
	return n
}

func newItem(d batch.Delivery) item {
	it := item{delivery: d, broken: d.Bad}
	if it.broken == nil {
		it.broken = schema.DecodeRecord(d.Value, &it.batch)
	}
	if it.broken != nil {
		it.batch = schema.Batch{}
		if it.delivery.DedupID.IsZero() {
			// Unreadable down to its name: the place in the log has to serve.
			it.delivery.DedupID = batch.ForKey("", fmt.Sprintf("unreadable/%d/%d", d.Partition, d.Offset))
		}
	}
	return it
}

// build lays out what the block adds to each table. It is a function of the
// records and their outcomes alone, so that a repeat expects the same rows.
func (b *block) build() map[schema.Table]*schema.Rows {
	out := map[schema.Table]*schema.Rows{}
	for _, t := range schema.Tables() {
		out[t] = &schema.Rows{}
	}
	for i := range b.items {
		b.items[i].build(out)
	}
	out[schema.ProgressTab].Progress = []schema.Progress{{First: b.first, Through: b.last}}
	return out
}

func (it *item) build(out map[schema.Table]*schema.Rows) {
	b, offset := &it.batch, it.delivery.Offset
	row := schema.BatchRow{Record: it.delivery.Record, Source: b.Source, Outcome: it.outcome,
		Events: len(b.Events), Rejected: len(b.Rejected), Offset: offset}
	row.Record.Value = nil
	if b.Part {
		row.Part = fmt.Sprintf("%d-%d", b.First, b.Last)
	}
	if row.Record.ReceivedAt.IsZero() {
		row.Record.ReceivedAt = it.delivery.AppendAt
	}
	out[schema.Batches].Batches = append(out[schema.Batches].Batches, row)

	dead := out[schema.DeadLetters]
	letter := func(index uint32, stage string) schema.DeadLetter {
		return schema.DeadLetter{
			ID:      batch.DeadLetterID(it.delivery.BatchID, it.delivery.Digest, index, stage),
			Project: it.delivery.Project, BatchID: it.delivery.BatchID, Index: index, Stage: stage,
			Source: b.Source, ReceivedAt: row.Record.ReceivedAt.UnixMicro(), Offset: offset,
		}
	}
	// A copy that was split otherwise may have brought some of this one's indices.
	stored := func(index uint32) bool {
		return it.outcome == schema.Stored && it.earlier != nil && it.earlier.covers(index)
	}
	rejected := func(stage string) {
		for i := range b.Rejected {
			r := &b.Rejected[i]
			if stored(r.Index) {
				continue
			}
			l := letter(r.Index, stage)
			l.Reason, l.Field, l.Error, l.Bytes, l.Size = string(r.Code), r.Field, r.Message, r.Bytes, r.Size
			dead.Dead = append(dead.Dead, l)
		}
	}
	switch it.outcome {
	case schema.Stored:
		for i := range b.Events {
			e := &b.Events[i]
			if stored(e.Index) {
				continue
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
			l.Reason = "key_reused"
			l.Error = "the idempotency key was used before with other events; those are stored, these are kept here"
			l.Bytes = schema.AppendEventJSON(nil, e)
			l.Size = len(l.Bytes)
			dead.Dead = append(dead.Dead, l)
		}
		rejected(schema.StageConflict)
	case schema.Dead:
		l := letter(0, schema.StageSink)
		l.ID = batch.DeadLetterID(it.delivery.DedupID, it.delivery.Digest, 0, schema.StageSink)
		l.Reason, l.Error = "undecodable", it.broken.Error()
		l.Bytes, l.Size = it.delivery.Value, len(it.delivery.Value)
		dead.Dead = append(dead.Dead, l)
	}
}
