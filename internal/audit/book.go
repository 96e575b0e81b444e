package audit

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// book is what the ledger says, as it was when the audit began.
type book struct {
	collectors map[batch.ID]*account
}

// account is one collector.
type account struct {
	id      batch.ID
	epochs  map[uint64]*epoch
	newest  *batch.LedgerRecord // the record with the latest time
	heard   time.Time           // when the broker appended its last
	retired *batch.LedgerRecord // the newest retirement
	again   bool                // heard of after the audit began
}

// epoch is one start of a collector.
type epoch struct {
	record batch.LedgerRecord // its newest
	heard  time.Time
	opened time.Time // zero: not known
}

func newBook() *book { return &book{collectors: map[batch.ID]*account{}} }

func (b *book) account(id batch.ID) *account {
	c := b.collectors[id]
	if c == nil {
		c = &account{id: id, epochs: map[uint64]*epoch{}}
		b.collectors[id] = c
	}
	return c
}

// note takes a record in. Records may come in any order.
func (b *book) note(r *batch.LedgerRecord, at time.Time) {
	c := b.account(r.Collector)
	if r.Kind == batch.LedgerRetire {
		if c.retired == nil || !r.At.Before(c.retired.At) {
			c.retired = r
		}
		return
	}
	e := c.epochs[r.Epoch]
	if e == nil {
		e = &epoch{record: *r, heard: at}
		c.epochs[r.Epoch] = e
	}
	if r.Kind == batch.LedgerOpen && (e.opened.IsZero() || at.Before(e.opened)) {
		e.opened = at
	}
	if r.Number >= e.record.Number {
		e.record, e.heard = *r, at
	}
	if at.After(c.heard) {
		c.heard = at
	}
	if c.newest == nil || !r.At.Before(c.newest.At) {
		c.newest = r
	}
}

// gone reports whether an operator gave the collector up and it was not heard of
// since.
func (c *account) gone() bool {
	return c.retired != nil && c.newest != nil &&
		(c.retired.Epoch == 0 || c.retired.Epoch == c.newest.Epoch && c.newest.Number <= c.retired.Number)
}

// ended reports whether the collector ended in order, with nothing left.
func (c *account) ended() bool {
	return c.newest != nil && c.newest.Kind == batch.LedgerClose && c.newest.Pending == 0
}

// accepted is how many lost records an operator has given up.
func (c *account) accepted() uint64 {
	if c.retired == nil {
		return 0
	}
	return c.retired.Lost
}

// sorted lists the collectors in the order of their ids.
func (b *book) sorted() []*account {
	return slices.SortedFunc(maps.Values(b.collectors), func(x, y *account) int { return slices.Compare(x.id[:], y.id[:]) })
}

// readLedger reads the table, and then from Kafka what is not copied yet.
func (a *auditor) readLedger(ctx context.Context) error {
	err := a.o.Store.LedgerEntries(ctx, func(r Row) {
		if r.Entry == "unreadable" {
			a.book.account(r.Record.Collector)
			return
		}
		record := r.Record
		a.book.note(&record, r.At)
	})
	if err != nil {
		return err
	}
	if err := a.tail(ctx, a.book.note); err != nil {
		a.unproven(fmt.Sprintf("the ledger topic cannot be read, so what the table ledger does not have yet is not known: %v", err))
	}
	if a.log, err = a.o.Source.Log(ctx); err != nil {
		a.log = ""
		a.unproven(fmt.Sprintf("Kafka does not answer, so no record can be read again: %v", err))
	}
	if len(a.book.collectors) == 0 {
		a.unproven("no collector has written to the ledger")
	}
	a.report.Checked.Collectors = uint64(len(a.book.collectors))
	return nil
}

// tail reads the records of the ledger topic that are not copied.
func (a *auditor) tail(ctx context.Context, note func(*batch.LedgerRecord, time.Time)) error {
	bounds, err := a.o.Ledger.Bounds(ctx)
	if err != nil {
		return err
	}
	id, err := a.o.Ledger.ID(ctx)
	if err != nil {
		return err
	}
	copied, err := a.o.Store.CopiedTo(ctx, id)
	if err != nil {
		return err
	}
	for next := max(copied+1, bounds.Start); next < bounds.End; {
		entries, to, err := a.o.Ledger.Read(ctx, next, time.Second)
		if err != nil {
			return err
		}
		if to <= next {
			break
		}
		for i := range entries {
			if r, err := batch.DecodeLedgerRecord(entries[i].Value); err == nil {
				note(&r, entries[i].At)
			}
		}
		next = to
	}
	return nil
}

// await gives what is on its way the time to arrive, and the silent the time to
// speak. It ends as soon as nobody has to be waited for.
func (a *auditor) await(ctx context.Context) error {
	start := a.now()
	silent := func() bool {
		for _, c := range a.book.collectors {
			if !c.again && a.isSilent(c, start) {
				return true
			}
		}
		return false
	}
	for {
		// How far the sinks are is asked last before the tables are looked at.
		if err := a.readProgress(ctx); err != nil {
			return err
		}
		behind := false
		for _, c := range a.book.collectors {
			behind = behind || !a.passed(c)
		}
		waited := a.now().Sub(start)
		mute := silent()
		if (!behind || waited >= a.o.Patience) && (!mute || waited >= a.o.Grace) {
			return nil
		}
		a.progress("waiting for what is on its way", int64(waited/time.Second), int64(max(a.o.Patience, a.o.Grace)/time.Second))
		if !retry.Sleep(ctx, time.Second) {
			return retry.Mark(ctx.Err(), retry.Shutdown)
		}
		if mute {
			// A sink may have copied it by now, or not yet.
			seen := func(r *batch.LedgerRecord, at time.Time) {
				if c := a.book.collectors[r.Collector]; c != nil && r.Kind != batch.LedgerRetire && at.After(c.heard) {
					c.again = true
				}
			}
			if err := a.o.Store.LedgerEntries(ctx, func(r Row) { seen(&r.Record, r.At) }); err != nil {
				return err
			}
			if err := a.tail(ctx, seen); err != nil {
				// Nobody can be blamed for not being heard.
				for _, c := range a.book.collectors {
					c.again = true
				}
			}
		}
	}
}

func (a *auditor) readProgress(ctx context.Context) error {
	a.stored = map[string]map[int]int64{}
	return a.o.Store.AllProgress(ctx, func(log string, partition int, through int64) {
		if a.stored[log] == nil {
			a.stored[log] = map[int]int64{}
		}
		a.stored[log][partition] = through
	})
}

// through is the offset through which a partition is stored, -1 for none.
func (a *auditor) through(log string, partition int) int64 {
	if through, ok := a.stored[log][partition]; ok {
		return through
	}
	return -1
}

// passed reports whether everything that the collector's newest record refers to is
// stored.
func (a *auditor) passed(c *account) bool {
	if c.newest == nil {
		return true
	}
	for p, offset := range c.newest.Offsets {
		if a.through(c.newest.Log, p) < offset {
			return false
		}
	}
	return true
}

// isSilent reports whether a collector that did not end in order was not heard of
// for longer than it should be.
func (a *auditor) isSilent(c *account, now time.Time) bool {
	return c.newest != nil && !c.ended() && !c.gone() && now.Sub(c.heard) > a.o.SilentAfter
}

// collectors finds what the collectors themselves say is wrong, or do not say.
func (a *auditor) collectors() {
	for _, c := range a.book.sorted() {
		if c.newest == nil {
			continue
		}
		n := c.newest
		if n.Lost > c.accepted() {
			l := line(DamagedSpool)
			l.Collector, l.Epoch, l.Count = c.id.String(), n.Epoch, n.Lost-c.accepted()
			from := "at an unknown time"
			if n.LostFrom != nil {
				from = stamp(*n.LostFrom) + " or later"
			}
			l.Detail = fmt.Sprintf("%d acknowledged batches cannot be read from its spool any more; they were received %s. "+
				"sluice spool verify shows what was set aside; to give them up: sluice audit --retire %s", l.Count, from, c.id)
			a.report.find(l)
		}
		if a.isSilent(c, a.report.At) && !c.again {
			l := line(SilentSpool)
			l.Collector, l.Epoch, l.Count = c.id.String(), n.Epoch, n.Pending
			l.Detail = fmt.Sprintf("not heard of since %s, and it did not end in order", stamp(c.heard))
			if n.Pending > 0 {
				l.Detail += fmt.Sprintf("; %d batches waited in its spool", n.Pending)
			} else {
				l.Detail += "; what it acknowledged after that is in its spool, if anything"
			}
			l.Detail += ". Start it again on its spool directory; if that is gone for good: sluice audit --retire " + c.id.String()
			a.report.find(l)
		}
		if c.gone() {
			l := line(GivenUp)
			l.Collector, l.Epoch, l.Count = c.id.String(), n.Epoch, c.retired.Pending+c.retired.Lost
			l.Detail = fmt.Sprintf("by %s: %s", c.retired.By, c.retired.Reason)
			a.report.note(l)
		}
		a.tails(c)
	}
}

// tails notes the epochs that were cut off: nobody says how many batches they
// acknowledged after their last record.
func (a *auditor) tails(c *account) {
	var cut []uint64
	for id, e := range c.epochs {
		if e.record.Kind != batch.LedgerClose && id != c.newest.Epoch && e.heard.After(a.from) {
			cut = append(cut, id)
		}
	}
	slices.Sort(cut)
	for _, id := range cut {
		e := c.epochs[id]
		l := line(Unproven)
		l.Collector, l.Epoch, l.FirstSeq = c.id.String(), id, e.record.Settled+1
		l.Detail = fmt.Sprintf("this start of it was cut off after %s: nothing is said of what it acknowledged after number %d", stamp(e.heard), e.record.Settled)
		a.report.note(l)
	}
}

func (a *auditor) unproven(detail string) {
	l := line(Unproven)
	l.Detail = detail
	a.report.note(l)
}
