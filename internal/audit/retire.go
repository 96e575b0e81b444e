package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sluice/pkg/batch"
)

// ErrRefused is why a collector cannot be retired.
var ErrRefused = errors.New("not retired")

// Retirement makes the record that gives a collector up, as it is now, and says
// what that means. ends is the log of the batches and the next offset of each of its
// partitions: what the collector brought there is not given up.
//
// A collector that is heard of is refused, unless it has lost batches: then those
// are given up, and it goes on. So is one that has ended in order, and one that
// nobody knows. The errors are ErrRefused.
func Retirement(ctx context.Context, o Options, id batch.ID, by, reason, log string, next []int64) (r batch.LedgerRecord, means string, err error) {
	a := &auditor{o: o, now: time.Now, book: newBook(), report: &Report{Counts: map[Kind]uint64{}}}
	if err := a.o.Store.LedgerEntries(ctx, func(row Row) {
		if row.Entry != "unreadable" {
			record := row.Record
			a.book.note(&record, row.At)
		}
	}); err != nil {
		return r, "", err
	}
	if err := a.tail(ctx, a.book.note); err != nil {
		return r, "", err
	}
	c := a.book.collectors[id]
	if c == nil || c.newest == nil {
		return r, "", fmt.Errorf("%w: no collector %s is in the ledger", ErrRefused, id)
	}
	n := c.newest
	now := a.now()
	alive := now.Sub(c.heard) < aliveWithin
	lost := n.Lost - min(n.Lost, c.accepted())
	switch {
	case c.gone() && lost == 0:
		return r, "", fmt.Errorf("%w: %s gave collector %s up already: %s", ErrRefused, c.retired.By, id, c.retired.Reason)
	case c.ended() && lost == 0:
		return r, "", fmt.Errorf("%w: collector %s ended in order, and holds nothing", ErrRefused, id)
	case alive && lost == 0:
		return r, "", fmt.Errorf("%w: collector %s was heard of %s ago; stop it first", ErrRefused, id, now.Sub(c.heard).Round(time.Second))
	}
	r = batch.LedgerRecord{Kind: batch.LedgerRetire, Collector: id, Epoch: n.Epoch, Number: n.Number, At: now.UTC(),
		Settled: n.Settled, CompleteUntil: n.CompleteUntil, Log: log, Offsets: map[int]int64{},
		Pending: n.Pending, PendingBytes: n.PendingBytes, Oldest: n.Oldest, Lost: n.Lost, LostFrom: n.LostFrom, By: by, Reason: reason}
	for p, o := range next {
		r.Offsets[p] = o - 1
	}
	if alive {
		r.Pending, r.PendingBytes, r.Oldest = 0, 0, nil
		return r, fmt.Sprintf("%d batches that were acknowledged and cannot be read any more are given up. The collector goes on.", lost), nil
	}
	means = fmt.Sprintf("The watermark does not wait for collector %s any more, which was last heard of %s. ", id, stamp(c.heard))
	if n.Pending+lost > 0 {
		means += fmt.Sprintf("%d acknowledged batches are given up with it, as far as it has told; it may have acknowledged more after that. ", n.Pending+lost)
	} else {
		means += "It has told of none that it still held, but may have acknowledged some after that. "
	}
	means += "Should it come back with its spool, it delivers them all the same: they are then received before delivery_watermark and stored after it."
	return r, means, nil
}

// aliveWithin is since when a collector must not have been heard of to be retired:
// ten intervals of the default.
const aliveWithin = 10 * time.Second
