package ledger

import (
	"time"

	"sluice/pkg/batch"
)

// other is a second collector, which has nothing to do: without ours, all would be
// complete as soon as it says so.
var other = batch.ForKey("collector", "other")

// reader is whoever computes the watermark from the ledger, and stores all that is
// in Kafka at once: nobody can be more eager.
type reader struct {
	by map[batch.ID]*account
	// greatest is what there was when nobody was left.
	greatest time.Time
}

type account struct {
	at      time.Time // of the newest record, which is not always the last in the log
	counted bool
	until   time.Time
}

func (rd *reader) read(r written) {
	if rd.by == nil {
		rd.by = map[batch.ID]*account{}
	}
	a := rd.by[r.Collector]
	if a == nil {
		a = &account{}
		rd.by[r.Collector] = a
	}
	if !r.At.After(a.at) {
		return // given up by its writer, and come late
	}
	a.at = r.At
	until := r.CompleteUntil
	if r.appended.Before(until) {
		until = r.appended
	}
	if r.Lost > 0 && r.LostFrom.Before(until) {
		until = *r.LostFrom
	}
	switch r.Kind {
	case batch.LedgerOpen:
		if !a.counted {
			a.counted, a.until = true, r.appended
		}
	case batch.LedgerClose:
		a.counted = false
		if until.After(rd.greatest) {
			rd.greatest = until
		}
	default:
		a.counted, a.until = true, until
	}
}

func (rd *reader) watermark() time.Time {
	var least time.Time
	for _, a := range rd.by {
		if a.counted && (least.IsZero() || a.until.Before(least)) {
			least = a.until
		}
	}
	if least.IsZero() {
		return rd.greatest
	}
	return least
}
