package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

const (
	// sliceEvents are held against their batches with one query: some 100 MB on the
	// server.
	sliceEvents = 2_000_000
	// suspectsAtOnce are looked at together.
	suspectsAtOnce = 500
	// maxIndices are named of one batch.
	maxIndices = 20
)

// events holds the rows of exposures and events against batches. What is stored
// while it looks comes too late to be looked at.
func (a *auditor) events(ctx context.Context, until time.Time) error {
	// Collectors' clocks may be ahead.
	until = until.Add(24 * time.Hour)
	type slice struct {
		from            time.Time
		batches, events uint64
	}
	var slices []slice
	err := a.o.Store.EventsByTime(ctx, a.from, until, func(from time.Time, batches, events uint64) {
		a.report.Checked.Batches += batches
		a.report.Checked.Events += events
		if n := len(slices); n > 0 && slices[n-1].events+events <= sliceEvents {
			slices[n-1].batches += batches
			slices[n-1].events += events
			return
		}
		slices = append(slices, slice{from, batches, events})
	})
	if err != nil {
		return err
	}
	for i, s := range slices {
		a.progress("holding events against batches", int64(i), int64(len(slices)))
		from, to := s.from, until
		if i == 0 {
			from = a.from
		}
		if i+1 < len(slices) {
			to = slices[i+1].from
		}
		if err := a.slice(ctx, from, to); err != nil {
			return err
		}
	}
	return nil
}

// slice looks at the batches received within a time.
func (a *auditor) slice(ctx context.Context, from, to time.Time) error {
	var some []Suspect
	var failed error
	look := func() {
		if failed == nil && len(some) > 0 {
			failed = a.suspects(ctx, some)
		}
		some = some[:0]
	}
	err := a.o.Store.Suspects(ctx, from, to, func(s Suspect) {
		if some = append(some, s); len(some) == suspectsAtOnce {
			look()
		}
	})
	look()
	return errors.Join(err, failed)
}

// suspects looks at batches whose rows do not agree with what batches says: copies
// that merged are there, and so are those that ClickHouse refused, elsewhere.
func (a *auditor) suspects(ctx context.Context, some []Suspect) error {
	var short []batch.ID
	for _, s := range some {
		if s.Keys > s.Indices {
			l := line(Doubled)
			l.BatchID, l.Count = s.BatchID.String(), s.Keys-s.Indices
			l.Detail = fmt.Sprintf("%d rows for %d different events: two records brought one event in different versions", s.Keys, s.Indices)
			a.report.find(l)
		}
		if s.Keys < s.Events {
			short = append(short, s.BatchID)
		}
	}
	if len(short) == 0 {
		return nil
	}
	records := map[batch.ID][]Record{}
	err := a.o.Store.RecordsOf(ctx, short, func(r Record) {
		if r.Outcome == schema.Stored {
			records[r.BatchID] = append(records[r.BatchID], r)
		}
	})
	if err != nil {
		return err
	}
	refused := map[refusedEvent]bool{}
	err = a.o.Store.RefusedEvents(ctx, short, func(id batch.ID, index uint32) { refused[refusedEvent{id, index}] = true })
	if err != nil {
		return err
	}
	var all []Record
	for _, id := range short {
		all = append(all, records[id]...)
	}
	slices.SortFunc(all, func(x, y Record) int {
		return cmp.Or(cmp.Compare(x.Log, y.Log), cmp.Compare(x.Partition, y.Partition), cmp.Compare(x.Offset, y.Offset))
	})
	for i := range all {
		if err := a.reread(ctx, &all[i], refused); err != nil {
			return err
		}
	}
	return nil
}

type refusedEvent struct {
	batch batch.ID
	index uint32
}

// reread reads a record from Kafka again and looks for each of its events.
func (a *auditor) reread(ctx context.Context, r *Record, refused map[refusedEvent]bool) error {
	l := line(Torn)
	l.Collector, l.Epoch, l.FirstSeq, l.LastSeq = r.Collector.String(), r.Epoch, r.Seq, r.Seq
	l.BatchID, l.Log, l.Partition, l.Offset = r.BatchID.String(), r.Log, r.Partition, r.Offset
	d, err := a.fetch(ctx, Series{Log: r.Log, Partition: r.Partition}, r.Offset)
	if err == nil && d.BatchID != r.BatchID {
		err = errNotThere // the log lost its end and has another record here
	}
	var b schema.Batch
	if err == nil {
		err = schema.DecodeRecord(d.Value, &b)
	}
	if err != nil {
		if retry.ClassOf(err) == retry.Shutdown {
			return err
		}
		l.Kind, l.Count = Unproven, 1
		l.Detail = fmt.Sprintf("fewer rows than events; they may have merged with copies of theirs, which only the record could tell: %v", err)
		a.report.note(l)
		return nil
	}
	rows := map[schema.Table][]schema.EventRow{}
	for i := range b.Events {
		e := &b.Events[i]
		if refused[refusedEvent{r.BatchID, e.Index}] {
			continue
		}
		t := schema.Exposures
		if e.Kind == schema.KindEvent {
			t = schema.Events
		}
		rows[t] = append(rows[t], schema.EventRow{Batch: &b, Event: e, Offset: r.Offset})
	}
	for _, t := range []schema.Table{schema.Exposures, schema.Events} {
		if len(rows[t]) == 0 {
			continue
		}
		there := make([]bool, len(rows[t]))
		if err := a.o.Store.MergedEvents(ctx, t, rows[t], func(row int) { there[row] = true }); err != nil {
			return err
		}
		for i, ok := range there {
			if ok {
				continue
			}
			l.Count++
			if len(l.Indices) < maxIndices {
				l.Indices = append(l.Indices, rows[t][i].Event.Index)
			}
		}
	}
	if l.Count > 0 {
		l.Detail = fmt.Sprintf("%d of %d events are missing; Kafka still has them", l.Count, len(b.Events))
		a.report.find(l)
	}
	return nil
}
