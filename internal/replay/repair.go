package replay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// Store is ClickHouse as a repair needs it. Its errors are classified.
type Store interface {
	// Through is the offset up to which the partition's log is stored, -1 for none.
	Through(ctx context.Context, at schema.Position) (int64, error)
	// Outcomes reports what became of the records of offsets first to last that are
	// of the batches given, where batches knows it.
	Outcomes(ctx context.Context, ids []batch.ID, at schema.Position, first, last int64, found func(offset int64, id batch.ID, outcome schema.Outcome)) error
	// Refused reports the events of offsets first to last, received from from to
	// until (inclusive), that ClickHouse did not take: their dead letters are there.
	Refused(ctx context.Context, at schema.Position, first, last int64, from, until time.Time, found func(offset int64, index uint32, id batch.ID)) error
	// Copies reports the stored records of the batches.
	Copies(ctx context.Context, ids []batch.ID, found func(schema.Copy)) error
	// Holders reports the records that rows of the batches' events came from, with
	// the lowest and the highest index of those rows, and no digest.
	Holders(ctx context.Context, ids []batch.ID, found func(schema.Copy)) error
	// RowsOf reports the rows of such records that a table has: exposures, events,
	// dead_letters, or one that is like those.
	RowsOf(ctx context.Context, t schema.Table, at schema.Position, first, last int64, from, until time.Time, have func(offset int64, index uint32, id batch.ID)) error
	// Merged reports, by index, which of the events or dead letters a table has at
	// any offset: rows that a merge would make one of. The table is like another.
	Merged(ctx context.Context, t, like schema.Table, rows *schema.Rows, found func(row int)) error
	// Fill inserts rows into a table that is like another, as one block. The rows
	// are durable when it returns nil; after an error they may be stored. It takes
	// no part in the sinks' exclusion of each other, and cancels no insert.
	Fill(ctx context.Context, t, like schema.Table, at schema.Position, token string, rows *schema.Rows) error
}

// Options is how rows are repaired.
type Options struct {
	Log         Log
	Store       Store
	Topic       string
	DedupWindow time.Duration // how long batches keeps a record
	Experiment  string        // only exposures of it; empty: everything
	DryRun      bool          // count only

	// Into and Like make it fill a table for comparison: Into, which is like
	// exposures or events. Nothing else is written then.
	Into, Like schema.Table

	BlockRows  int   // rows compared at once; default 100,000
	BlockBytes int64 // bytes of records held at once; default 32 MiB

	// Progress, if set, is told after every block how many of how many offsets of
	// the partition were looked at.
	Progress func(done, total int64)
	Logger   *slog.Logger
}

// Repairer brings back rows that ClickHouse has lost and Kafka still has. It may
// run beside sinks, and beside itself: it looks at no offset that is not stored
// according to progress, and what a sink is about to insert lies above that.
//
// It opens none of the sinks' doors, which would cancel their inserts. Its own
// inserts have a token that follows from the rows in them, so that the same repair
// twice at once is one for ClickHouse. Where two repairs, or a repair and a sink
// that verifies what it stored long ago (after an operator reset its offsets), find
// the same row missing in different company, both insert it: the two are one after
// a merge, and count once through FINAL.
//
// A Repairer is for one goroutine.
type Repairer struct {
	o       Options
	policy  retry.Policy
	now     func() time.Time
	run     string // in the tokens of this run's further attempts
	decided map[batch.ID][]schema.Copy
}

// NewRepairer makes a Repairer.
func NewRepairer(o Options) *Repairer {
	o.BlockRows = cmp.Or(o.BlockRows, 100_000)
	o.BlockBytes = cmp.Or(o.BlockBytes, 32<<20)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Repairer{o: o, policy: patience(), now: time.Now, run: batch.Random().String(), decided: map[batch.ID][]schema.Copy{}}
}

// Count is how many rows of a kind are missing. Experiment and Variant are set for
// exposures (of a custom event Experiment is its name), Reason for the others:
// stage and reason of a dead letter, the outcome of a record.
type Count struct {
	Table      schema.Table `json:"table"`
	Reason     string       `json:"reason,omitempty"`
	Experiment string       `json:"experiment,omitempty"`
	Variant    string       `json:"variant,omitempty"`
	Rows       int64        `json:"rows"`
}

// Report is what a repair found and did. Reports of several ranges add up.
type Report struct {
	Records  int64   `json:"records"`  // read from Kafka
	Rows     int64   `json:"rows"`     // that they make, in the tables looked at
	Missing  int64   `json:"missing"`  // of those
	Inserted int64   `json:"inserted"` // of those
	Counts   []Count `json:"counts"`   // of the missing ones
	// Offsets asked for that could not be looked at: Gone are not in Kafka any more,
	// Pending are not stored yet, which is the sink's to do. Unreadable records were
	// stored once and cannot be decoded by this program, which is older, it seems.
	Gone       int64 `json:"gone"`
	Pending    int64 `json:"pending"`
	Unreadable int64 `json:"unreadable"`
	// Doubled rows are in a table twice until its parts are merged; they count once
	// through FINAL.
	Doubled int64 `json:"doubled"`

	counts *tally[Count]
}

// Add adds another report to this one.
func (r *Report) Add(o Report) {
	r.Records += o.Records
	r.Rows += o.Rows
	r.Missing += o.Missing
	r.Inserted += o.Inserted
	r.Gone += o.Gone
	r.Pending += o.Pending
	r.Unreadable += o.Unreadable
	r.Doubled += o.Doubled
	for _, c := range o.Counts {
		n := c.Rows
		c.Rows = 0
		r.tally().add(c, n)
	}
	r.finish()
}

func (r *Report) tally() *tally[Count] {
	if r.counts == nil {
		r.counts = newTally(func(c Count) Count { c.Experiment, c.Variant = others, others; return c })
		for _, c := range r.Counts {
			n := c.Rows
			c.Rows = 0
			r.counts.add(c, n)
		}
	}
	return r.counts
}

func (r *Report) finish() {
	r.Counts = list(r.tally(), func(c Count, n int64) Count { c.Rows = n; return c }, func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Reason, b.Reason),
			cmp.Compare(a.Experiment, b.Experiment), cmp.Compare(a.Variant, b.Variant))
	})
}

// errTorn is for an operator to look at: five inserts that succeeded left nothing.
var errTorn = errors.New("rows are still missing after every attempt to insert them")

// Repair compares the records of a partition, offsets first to last inclusive, with
// the tables, and inserts the rows that are missing. What a record's outcome was is
// taken from batches; where that row is missing too, it is decided as a sink would.
// A row that merged with a copy of itself is not missing.
//
// After an error the report says what was done until then, and what was inserted
// stays: repeating the call goes on from there.
func (r *Repairer) Repair(ctx context.Context, partition int, first, last int64) (Report, error) {
	var report Report
	err := r.repair(ctx, partition, first, last, &report)
	report.finish()
	return report, err
}

func (r *Repairer) repair(ctx context.Context, partition int, first, last int64, report *Report) error {
	at := schema.Position{Topic: r.o.Topic, Partition: partition}
	var bounds batch.Bounds
	through := int64(-1)
	err := r.policy.Do(ctx, func(ctx context.Context) (err error) {
		if at.Log, err = r.o.Log.Log(ctx); err != nil {
			return err
		}
		if bounds, err = r.o.Log.Bounds(ctx, partition); err != nil {
			return err
		}
		through, err = r.o.Store.Through(ctx, at)
		return err
	})
	if err != nil {
		return err
	}
	next := max(first, bounds.Start)
	report.Gone += max(0, min(next-1, last)-first+1)
	if last > through {
		report.Pending += last - max(through, next-1)
		last = through
	}
	if last >= bounds.End {
		report.Gone += last - max(bounds.End, next) + 1
		last = bounds.End - 1
	}
	total := last - next + 1
	for next <= last {
		begin := next
		var items []item
		if items, next, err = r.read(ctx, partition, next, last, report); err != nil {
			return fmt.Errorf("partition %d, from offset %d on: %w", partition, begin, err)
		}
		if len(items) > 0 {
			if err := r.block(ctx, at, items, report); err != nil {
				return fmt.Errorf("partition %d, offsets %d to %d: %w", partition, begin, next-1, err)
			}
		}
		if r.o.Progress != nil {
			r.o.Progress(total-(last-next+1), total)
		}
	}
	return nil
}

const (
	fetchBytes = 2 << 20
	fetchWait  = 2 * time.Second
)

var errNothing = errors.New("no records come, where the log says there are some")

// fetch returns records from an offset on, or how many offsets from there on the
// log does not have any more.
func (r *Repairer) fetch(ctx context.Context, partition int, offset, last int64) (got []batch.Delivery, gone int64, err error) {
	err = r.policy.Do(ctx, func(ctx context.Context) error {
		var bounds batch.Bounds
		var err error
		got, bounds, err = r.o.Log.Fetch(ctx, partition, offset, fetchBytes, fetchWait)
		if errors.Is(err, batch.ErrOffsetGone) {
			if bounds, err = r.o.Log.Bounds(ctx, partition); err != nil {
				return err
			}
			switch {
			case offset < bounds.Start: // retention has caught up
				gone = min(bounds.Start, last+1) - offset
			case offset >= bounds.End: // the log has lost its end
				gone = last + 1 - offset
			}
		}
		if err == nil && len(got) == 0 && gone == 0 {
			err = errNothing
		}
		return err
	})
	return got, gone, err
}

// read reads records from an offset on, as many as are compared at once, and
// returns where to go on.
func (r *Repairer) read(ctx context.Context, partition int, offset, last int64, report *Report) (items []item, next int64, err error) {
	rows, size := 0, int64(0)
	for offset <= last && rows < r.o.BlockRows && size < r.o.BlockBytes {
		got, gone, err := r.fetch(ctx, partition, offset, last)
		if err != nil {
			return nil, offset, err
		}
		report.Gone += gone
		offset += gone
		for _, d := range got {
			// Offsets without a record, which is not how a log of batches should be.
			report.Gone += min(d.Offset, last+1) - offset
			if d.Offset > last {
				offset = last + 1
				break
			}
			it := newItem(d)
			items = append(items, it)
			offset = d.Offset + 1
			rows += len(it.batch.Events) + len(it.batch.Rejected) + 1
			if size += int64(len(d.Value)); rows >= r.o.BlockRows || size >= r.o.BlockBytes {
				break
			}
		}
	}
	report.Records += int64(len(items))
	return items, offset, nil
}

// block compares the rows of some records with the tables, counts what is missing,
// and inserts it.
func (r *Repairer) block(ctx context.Context, at schema.Position, items []item, report *Report) error {
	b := newBlock(at, items)
	var missing rows
	err := r.policy.Do(ctx, func(ctx context.Context) error {
		want, unreadable, err := r.want(ctx, b)
		if err != nil {
			return err
		}
		doubled := int64(0)
		if missing, doubled, err = r.missing(ctx, b, want); err != nil {
			return err
		}
		report.Unreadable += unreadable
		report.Doubled += doubled
		report.Rows += want.len()
		return nil
	})
	if err != nil {
		return err
	}
	n := r.count(missing, report)
	if n == 0 || r.o.DryRun {
		return nil
	}
	if err := r.fill(ctx, b, missing); err != nil {
		return err
	}
	clear(r.decided) // batches has it now
	report.Inserted += n
	r.o.Logger.Debug("rows were missing and were inserted", "partition", at.Partition, "first", b.first, "last", b.last, "rows", n)
	return nil
}
