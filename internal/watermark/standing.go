package watermark

import (
	"fmt"
	"time"

	"sluice/pkg/batch"
)

const (
	// silent is after how long without a record a collector is said to be silent: ten
	// intervals of the default.
	silent = 10 * time.Second
	// noticeable is from when on a difference is worth a word.
	noticeable = 3 * time.Second
)

// standing is a collector's row.
func (c *collector) standing(s *state, now time.Time, stored progress) Standing {
	n := &c.newest
	st := Standing{
		Ledger: s.ledger, Topic: s.topic, Collector: c.id, CompleteUntil: c.until, State: StateOpen,
		Epoch: c.epoch, Number: c.number, Pending: n.pending, PendingBytes: n.pendingBytes, Lost: n.lost,
		HeardAt: n.heard, JudgedAt: now,
	}
	switch {
	case c.isRetired():
		st.State = StateRetired
		st.Why = fmt.Sprintf("given up by %s: %s", c.retired.by, c.retired.reason)
	case c.isClosed():
		st.State, st.Why = StateClosed, "ended in order, everything is stored"
	case c.unreadable:
		st.State, st.Why = StateUnreadable, "a record of it in the ledger cannot be read"
	default:
		st.Why = c.why(now, stored)
	}
	return st
}

// why says what keeps the collector's time from moving on, the worst first.
func (c *collector) why(now time.Time, stored progress) string {
	n := &c.newest
	spooled := ""
	if n.pending > 0 {
		spooled = fmt.Sprintf("%d batches wait in its spool", n.pending)
		if !n.oldest.IsZero() {
			spooled += ", the oldest received " + stamp(n.oldest)
		}
	}
	if n.lost > c.retired.lost {
		return fmt.Sprintf("%d acknowledged batches of its spool cannot be read any more, received %s or later (sluice audit)", n.lost, stamp(n.lostFrom))
	}
	if now.Sub(n.heard) > silent {
		switch {
		case n.kind == batch.LedgerClose && spooled == "":
			// It has ended; what it had is being stored.
		case spooled == "":
			return "not heard of since " + stamp(n.heard) + ", and it did not end in order"
		default:
			return "not heard of since " + stamp(n.heard) + "; " + spooled
		}
	}
	if len(c.waiting) > 0 {
		// Is it the sinks, or the collector itself?
		last := c.waiting[len(c.waiting)-1].until
		if p, missing := c.waiting[0].missing(stored); missing && (last.Sub(c.until) > n.heard.Sub(last) || c.until.IsZero()) {
			m := &c.waiting[0]
			through, ok := stored[m.log][p.partition]
			switch {
			case m.log != c.waiting[len(c.waiting)-1].log:
				return fmt.Sprintf("log %s is gone and was not stored through offset %d of partition %d (sluice audit)", m.log, p.offset, p.partition)
			case !ok:
				return fmt.Sprintf("partition %d is to be stored through offset %d; nothing is yet", p.partition, p.offset)
			}
			return fmt.Sprintf("partition %d is to be stored through offset %d; it is through %d", p.partition, p.offset, through)
		}
	}
	switch {
	case spooled != "":
		return spooled
	case n.at.Sub(n.until) > noticeable:
		return "a batch received " + stamp(n.until) + " is on its way into Kafka"
	case n.heard.Sub(n.at) > noticeable:
		return fmt.Sprintf("its receive times are %s behind the broker's clock", n.heard.Sub(n.at).Round(time.Second))
	}
	return "in step"
}

// stamp writes a time for people.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "at an unknown time"
	}
	return t.UTC().Format("2006-01-02 15:04:05.000 UTC")
}
