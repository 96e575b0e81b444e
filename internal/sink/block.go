package sink

import (
	"fmt"
	"slices"
	"strings"
	"time"
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
	// The events of the block that ClickHouse refuses for what is in them, and what
	// it said (empty where that was said to an earlier owner); mostly none.
	refused map[place]string
	hunt    *hunt // for more of them
	events  int   // rows of exposures and events that the block was to have
	written int   // rows of all tables
}

// The reasons of the dead letters that the sink itself writes.
const (
	reasonUndecodable = "undecodable"
	reasonRefused     = "refused"
)

// maxErrorText bounds the error of a dead letter, in bytes.
const maxErrorText = 1000

// item is one record of a block and what is decided about it.
type item struct {
	delivery batch.Delivery
	head     schema.Head
	rejected []schema.Rejected // once the block was read
	batch    *schema.Batch     // with its events, once something needs them one by one
	broken   error             // the value, the key or a header could not be read
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

func (it *item) rowCount() int { return it.head.Events + it.head.Rejected + 1 }

// memory is what a record takes while it waits in a block, without the columns its
// events are laid out in when the block is written.
func (it *item) memory() int64 { return int64(len(it.delivery.Value)) + int64(unsafe.Sizeof(*it)) }

// newItem reads of a record what a block has to know while it grows. Its events are
// read when the block is written.
func newItem(d batch.Delivery) item {
	it := item{delivery: d}
	var err error
	if it.head, err = schema.ReadHead(d.Value); d.Bad != nil {
		err = d.Bad
	}
	if err != nil {
		it.breaks(err)
	}
	return it
}

// breaks marks the record as one that cannot be read.
func (it *item) breaks(err error) {
	it.broken, it.head, it.rejected, it.batch = err, schema.Head{}, nil, &schema.Batch{}
	if it.delivery.DedupID.IsZero() {
		// Unreadable down to its name: the place in the log has to serve.
		it.delivery.DedupID = batch.ForKey("", fmt.Sprintf("unreadable/%d/%d", it.delivery.Partition, it.delivery.Offset))
	}
}

// events decodes the record's events, for what needs them one by one.
func (it *item) events() *schema.Batch {
	if it.batch == nil {
		var b schema.Batch
		if err := schema.DecodeRecord(it.delivery.Value, &b); err != nil {
			b = schema.Batch{} // not after the block was read
		}
		it.batch, it.rejected = &b, b.Rejected
	}
	return it.batch
}

// forget drops the decoded events; what needs them decodes them again.
func (b *block) forget() {
	for i := range b.items {
		if it := &b.items[i]; it.broken == nil {
			it.batch = nil
		}
	}
}

// read decodes every record and, where columns are given, lays out the events of those
// that are stored. It reports false where a record turned out to be one that cannot be
// read: it decides nothing, so the block has to be decided again.
func (b *block) read(columns schema.Columns, scratch *schema.Batch) (whole bool) {
	whole = true
	for i := range b.items {
		it := &b.items[i]
		if it.broken != nil {
			continue
		}
		scratch.Reset()
		if err := schema.DecodeRecord(it.delivery.Value, scratch); err != nil {
			it.breaks(err)
			whole = false
			continue
		}
		if len(scratch.Rejected) > 0 {
			it.rejected = slices.Clone(scratch.Rejected)
		}
		if columns != nil && it.outcome == schema.Stored {
			columns.Append(scratch, it.delivery.Offset)
		}
	}
	scratch.Reset()
	return whole
}

// plain reports whether all events of each record that is stored are: then they need
// not be looked at one by one.
func (b *block) plain() bool {
	if len(b.refused) > 0 {
		return false
	}
	for i := range b.items {
		if b.items[i].outcome == schema.Stored && b.items[i].earlier != nil {
			return false
		}
	}
	return true
}

// build lays out what the block adds to each table. It is a function of the
// records, their outcomes and what is refused of them, so that a repeat expects the
// same rows.
//
// Where columns are given they hold the rows of exposures and events.
func (b *block) build(columns schema.Columns) map[schema.Table]*schema.Rows {
	out := map[schema.Table]*schema.Rows{}
	for _, t := range schema.Tables() {
		out[t] = &schema.Rows{}
	}
	out[schema.Batches].Batches = make([]schema.BatchRow, 0, len(b.items))
	if columns != nil {
		for _, t := range []schema.Table{schema.Exposures, schema.Events} {
			out[t].Laid, out[t].LaidRows = columns, columns.Rows(t)
		}
	}
	for i := range b.items {
		b.items[i].build(out, b.refused, columns != nil)
	}
	out[schema.ProgressTab].Progress = []schema.Progress{{First: b.first, Through: b.last}}
	return out
}

// receivedAt is the collector's time or, where the record has none, the broker's.
func (it *item) receivedAt() time.Time {
	if it.delivery.ReceivedAt.IsZero() {
		return it.delivery.AppendAt
	}
	return it.delivery.ReceivedAt
}

func (it *item) letter(index uint32, stage string) schema.DeadLetter {
	d := &it.delivery
	return schema.DeadLetter{
		ID:      batch.DeadLetterID(d.BatchID, d.Digest, index, stage),
		Project: d.Project, BatchID: d.BatchID, Index: index, Stage: stage,
		Source: it.head.Source, ReceivedAt: it.receivedAt().UnixMicro(), Offset: d.Offset,
	}
}

// refused is the dead letter of an event that ClickHouse refuses: the same one
// whoever finds that out.
func (it *item) refused(e *schema.Event, why string) schema.DeadLetter {
	l := it.letter(e.Index, schema.StageSink)
	l.Reason, l.Error = reasonRefused, bounded(why)
	l.Bytes = schema.AppendEventJSON(nil, e)
	l.Size = len(l.Bytes)
	return l
}

// bounded cuts an error's text to what a dead letter keeps of it.
func bounded(s string) string {
	if len(s) > maxErrorText {
		s = strings.ToValidUTF8(s[:maxErrorText], "")
	}
	return s
}

func (it *item) build(out map[schema.Table]*schema.Rows, refused map[place]string, laid bool) {
	offset := it.delivery.Offset
	dead := out[schema.DeadLetters]
	// A copy that was split otherwise may have brought some of this one's indices.
	stored := func(index uint32) bool {
		return it.outcome == schema.Stored && it.earlier != nil && it.earlier.covers(index)
	}
	rejected := func(stage string) {
		for i := range it.rejected {
			r := &it.rejected[i]
			if stored(r.Index) {
				continue
			}
			l := it.letter(r.Index, stage)
			l.Reason, l.Field, l.Error, l.Bytes, l.Size = string(r.Code), r.Field, r.Message, r.Bytes, r.Size
			dead.Dead = append(dead.Dead, l)
		}
	}
	aside := 0
	switch it.outcome {
	case schema.Stored:
		b := &schema.Batch{} // its events are in the columns
		if !laid {
			b = it.events()
		}
		for i := range b.Events {
			e := &b.Events[i]
			if stored(e.Index) {
				continue
			}
			if why, ok := refused[place{offset, e.Index, b.ID}]; ok {
				aside++
				dead.Dead = append(dead.Dead, it.refused(e, why))
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
		b := it.events()
		for i := range b.Events {
			e := &b.Events[i]
			l := it.letter(e.Index, schema.StageConflict)
			l.Reason = "key_reused"
			l.Error = "the idempotency key was used before with other events; those are stored, these are kept here"
			l.Bytes = schema.AppendEventJSON(nil, e)
			l.Size = len(l.Bytes)
			dead.Dead = append(dead.Dead, l)
		}
		rejected(schema.StageConflict)
	case schema.Dead:
		l := it.letter(0, schema.StageSink)
		l.ID = batch.DeadLetterID(it.delivery.DedupID, it.delivery.Digest, 0, schema.StageSink)
		l.Reason, l.Error = reasonUndecodable, bounded(it.broken.Error())
		l.Bytes, l.Size = it.delivery.Value, len(it.delivery.Value)
		dead.Dead = append(dead.Dead, l)
	}
	// What was refused is not among the events that are to be found in the tables,
	// but among those to be found in dead_letters.
	row := schema.BatchRow{Record: it.delivery.Record, Source: it.head.Source, Outcome: it.outcome,
		Events: it.head.Events - aside, Rejected: it.head.Rejected + aside, Offset: offset}
	row.Record.Value = nil
	row.Record.ReceivedAt = it.receivedAt()
	if it.head.Part {
		row.Part = fmt.Sprintf("%d-%d", it.head.First, it.head.Last)
	}
	out[schema.Batches].Batches = append(out[schema.Batches].Batches, row)
}

// setAside are the dead letters of the block that the sink itself had to write: what
// could not be read, and what ClickHouse refuses.
func (b *block) setAside() []schema.DeadLetter {
	some := map[int64]bool{} // offsets of records that ClickHouse refuses events of
	for at := range b.refused {
		some[at.offset] = true
	}
	out := map[schema.Table]*schema.Rows{}
	for _, t := range schema.Tables() {
		out[t] = &schema.Rows{}
	}
	for i := range b.items {
		// The events of the others stay as they are: decoded they would take several
		// times the memory that the block was given.
		if it := &b.items[i]; it.outcome == schema.Dead || some[it.delivery.Offset] {
			it.build(out, b.refused, false)
		}
	}
	return slices.DeleteFunc(out[schema.DeadLetters].Dead, func(l schema.DeadLetter) bool { return l.Stage != schema.StageSink })
}

// place tells the rows of one partition apart.
type place struct {
	offset int64
	index  uint32
	batch  batch.ID // a log that lost its newest records has others at their offsets
}

func placeOf(r *schema.EventRow) place { return place{r.Offset, r.Event.Index, r.Batch.ID} }
