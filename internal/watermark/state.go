package watermark

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"sluice/pkg/batch"
)

// progress is through which offset each partition of each log is stored.
type progress map[string]map[int]int64

// state is what a copier knows of one ledger. Owned by one goroutine.
type state struct {
	ledger, topic string

	next  int64 // offset to read on from
	reach int64 // nothing is concluded before next is here
	hole  bool  // records were missing; reach is not known yet

	collectors map[batch.ID]*collector
	log        string    // that the newest record of all names
	until      time.Time // of this ledger; zero: nothing is known
	total      time.Time // of all ledgers

	written map[batch.ID]Standing // per collector; the zero id: this ledger
	whole   Standing              // what was written about all ledgers
}

func newState(ledger, topic string) *state {
	// Until the end of the topic has been seen there may be collectors in it that
	// nobody has read of.
	return &state{ledger: ledger, topic: topic, hole: true,
		collectors: map[batch.ID]*collector{}, written: map[batch.ID]Standing{}}
}

// collector is what is known of one collector.
type collector struct {
	id    batch.ID
	until time.Time // everything it received before is stored; zero: not known

	point              // of its newest record; epoch 0: there is none
	newest  summary    // what that record says
	passed  point      // the last record that was passed
	waiting []mark     // not passed, oldest first
	stride  uint64     // every so many of them are kept
	ordinal uint64     // of the last one
	retired retirement // zero: it is not
	// unreadable is set from a record that cannot be read to the next that can.
	unreadable bool
}

// point names a record. A collector's records are ordered by their At, which
// always grows, over its epochs too, and those of an epoch by number; not by
// offset: a write that seemed to have failed may reach the topic after a later one.
type point struct{ epoch, number uint64 }

// summary is what is kept of a collector's newest record.
type summary struct {
	kind         batch.LedgerKind
	at, until    time.Time
	heard        time.Time // when the broker appended it
	pending      uint64
	pendingBytes int64
	oldest       time.Time
	lost         uint64
	lostFrom     time.Time
}

// mark is a record that waits for its batches to be stored.
type mark struct {
	point
	log     string
	offsets []place
	until   time.Time // what it stands for
	open    bool
	ordinal uint64
	givenUp bool // an operator gave the collector up as it was then
}

type place struct {
	partition int
	offset    int64
}

type retirement struct {
	point
	is     bool
	ends   mark   // where the log ended then: what the collector had brought there lies below
	stored bool   // through there
	lost   uint64 // how many lost records are accepted
	by     string
	reason string
}

const (
	maxWaiting = 1000    // records of a collector that wait
	maxPlaces  = 100_000 // offsets in them
)

func (s *state) collector(id batch.ID) (c *collector, isNew bool) {
	c = s.collectors[id]
	if c == nil {
		c = &collector{id: id, stride: 1}
		s.collectors[id] = c
	}
	return c, c.epoch == 0
}

// apply takes note of a row of the ledger. Rows come in the order in which the
// broker appended their records; one that comes again changes nothing.
func (s *state) apply(row *Row) {
	r := &row.Record
	c, isNew := s.collector(r.Collector)
	s.log = cmp.Or(r.Log, s.log)
	switch row.Entry {
	case EntryRetire:
		c.retire(r)
		return
	case EntryUnreadable:
		c.unreadable = true
		return
	}
	p := point{r.Epoch, r.Number}
	if !isNew && (p.epoch == c.epoch && p.number <= c.number || r.At.Before(c.newest.at)) {
		return // what it says has been said, and more
	}
	c.point, c.newest, c.unreadable = p, summaryOf(row), false
	m := markOf(r)
	m.until, m.open = c.standsFor(row), row.Entry == EntryOpen
	if isNew && m.open && r.Spool == batch.SpoolAbsent && r.Pending == 0 && r.Lost == 0 {
		// It has never been there before: nothing it receives is older than this.
		c.until = latest(c.until, m.until)
	}
	c.wait(m)
}

func markOf(r *batch.LedgerRecord) mark {
	m := mark{point: point{r.Epoch, r.Number}, log: r.Log}
	for partition, offset := range r.Offsets {
		if offset >= 0 {
			m.offsets = append(m.offsets, place{partition, offset})
		}
	}
	slices.SortFunc(m.offsets, func(a, b place) int { return cmp.Compare(a.partition, b.partition) })
	return m
}

func summaryOf(row *Row) summary {
	r := &row.Record
	n := summary{kind: r.Kind, at: r.At, until: r.CompleteUntil, heard: row.At, pending: r.Pending, pendingBytes: r.PendingBytes, lost: r.Lost}
	if r.Oldest != nil {
		n.oldest = *r.Oldest
	}
	if r.LostFrom != nil {
		n.lostFrom = *r.LostFrom
	}
	return n
}

// standsFor is the time a record stands for once it is passed: every batch that
// the collector received before is stored then. It is not after the broker
// appended the record, so that collectors whose opening records come later, and
// receive nothing before them, need not be known.
func (c *collector) standsFor(row *Row) time.Time {
	until := earliest(row.Record.CompleteUntil, row.At)
	if row.Record.Lost > c.retired.lost && row.Record.LostFrom != nil {
		until = earliest(until, *row.Record.LostFrom)
	} else if row.Record.Lost > c.retired.lost {
		until = time.Time{}
	}
	return until.Truncate(time.Microsecond)
}

// retire takes note of what an operator gave up: the collector as it was at a
// record. It counts again as soon as it is heard of after that.
func (c *collector) retire(r *batch.LedgerRecord) {
	p := point{r.Epoch, r.Number}
	if p.epoch == 0 {
		p = c.point // whatever there was
	}
	c.retired = retirement{point: p, is: true, ends: markOf(r), lost: max(c.retired.lost, r.Lost), by: r.By, reason: r.Reason}
	c.unreadable = false
	covered := false
	for i := len(c.waiting) - 1; i >= 0; i-- {
		w := &c.waiting[i]
		covered = covered || w.epoch == p.epoch && w.number <= p.number
		w.givenUp = w.givenUp || covered
	}
}

// isRetired reports whether nothing was heard of the collector since it was given
// up, and what it had brought into Kafka is stored.
func (c *collector) isRetired() bool {
	return c.retired.is && !c.unreadable && c.epoch == c.retired.epoch && c.number <= c.retired.number && len(c.waiting) == 0 && c.retired.stored
}

// isClosed reports whether the collector ended in order and everything it had is
// stored. It may not acknowledge anything again before a new opening record.
func (c *collector) isClosed() bool {
	return c.newest.kind == batch.LedgerClose && c.passed == c.point && !c.unreadable &&
		c.newest.pending == 0 && c.newest.lost <= c.retired.lost
}

// wait queues a record until its batches are stored. Where too many wait only
// every stride-th stays, and the newest: what a later one says covers what an
// earlier one said, so the collector's time only moves on in larger steps. The
// last record of each log stays, and the opening record of the epoch that goes on.
func (c *collector) wait(m mark) {
	c.ordinal++
	m.ordinal = c.ordinal
	if n := len(c.waiting); n > 0 && c.spare(&c.waiting[n-1], &m) {
		c.waiting = c.waiting[:n-1]
	}
	c.waiting = append(c.waiting, m)
	for c.tooMany() && c.stride < 1<<32 {
		c.stride *= 2
		kept := c.waiting[:0]
		for i := range c.waiting {
			if i+1 == len(c.waiting) || !c.spare(&c.waiting[i], &c.waiting[i+1]) {
				kept = append(kept, c.waiting[i])
			}
		}
		clear(c.waiting[len(kept):])
		c.waiting = kept
	}
}

// spare reports whether a record that waits can be done without, given the next.
func (c *collector) spare(m, next *mark) bool {
	return m.ordinal%c.stride != 0 && m.log == next.log && !(m.open && m.epoch == c.epoch)
}

func (c *collector) tooMany() bool {
	places := 0
	for i := range c.waiting {
		places += len(c.waiting[i].offsets)
		if i >= maxWaiting || places > maxPlaces {
			return true
		}
	}
	return false
}

// missing is the first offset of a record that is not stored yet.
func (m *mark) missing(stored progress) (place, bool) {
	for _, p := range m.offsets {
		if through, ok := stored[m.log][p.partition]; !ok || through < p.offset {
			return p, true
		}
	}
	// A record that names no log says nothing that could come true.
	return place{}, m.log == ""
}

// pass takes out what is stored by now. Records are passed in their order: one
// whose batches were in a log that is gone is not passed over, unless an operator
// gave them up.
func (s *state) pass(stored progress) {
	for _, c := range s.collectors {
		n := 0
		for n < len(c.waiting) {
			m := &c.waiting[n]
			if _, missing := m.missing(stored); !missing {
				c.until = latest(c.until, m.until)
				c.passed = m.point
			} else if !m.givenUp || m.log == s.log {
				break
			}
			n++
		}
		c.waiting = slices.Delete(c.waiting, 0, n)
		if len(c.waiting) < maxWaiting/4 {
			c.stride = max(1, c.stride/2)
		}
		if r := &c.retired; r.is && !r.stored {
			_, missing := r.ends.missing(stored)
			// Nobody waits for a log that is gone.
			r.stored = !missing || r.ends.log != s.log
		}
	}
}

// restore takes over what an earlier copier has found. It was true then, and what
// is true of a time stays true.
func (s *state) restore(r *Standing) {
	switch {
	case !r.Collector.IsZero():
		if c := s.collectors[r.Collector]; c != nil {
			c.until = latest(c.until, r.CompleteUntil)
		}
	case r.Ledger == s.ledger:
		s.until = latest(s.until, r.CompleteUntil)
	case r.Ledger == "":
		s.total = latest(s.total, r.CompleteUntil)
	}
}

// conclude works out the watermark and returns the rows that say something new.
func (s *state) conclude(now time.Time, stored progress, others []Standing) []Standing {
	var rows []Standing
	own := Standing{Ledger: s.ledger, Topic: s.topic, State: StateOpen, JudgedAt: now}
	var holder *Standing
	closed := time.Time{} // the latest of those that do not count
	for _, c := range s.collectors {
		st := c.standing(s, now, stored)
		if st.State == StateClosed || st.State == StateRetired {
			closed = latest(closed, st.CompleteUntil)
		} else {
			own.Collectors++
			if holder == nil || st.CompleteUntil.Before(holder.CompleteUntil) ||
				st.CompleteUntil.Equal(holder.CompleteUntil) && slices.Compare(st.Collector[:], holder.Collector[:]) < 0 {
				holder = &st
			}
		}
		if !s.same(st) {
			rows = append(rows, st)
		}
	}
	own.HeardAt = s.heard()
	found := closed
	switch {
	case s.hole || s.next < s.reach:
		// Not every collector is known yet.
		found = time.Time{}
		own.Why = fmt.Sprintf("the ledger is being read: %d of %d", s.next, s.reach)
	case holder != nil:
		found = holder.CompleteUntil
		own.HeldBy, own.Why = holder.Collector, holder.Why
	case len(s.collectors) == 0:
		own.Why = "no collector has been heard of"
	default:
		own.Why = "no collector is open"
	}
	s.until = latest(s.until, found)
	own.CompleteUntil = s.until
	whole := s.ofAll(own, others, now)
	if !s.same(own) || !sameStanding(s.whole, whole) {
		rows = append(rows, own, whole)
	}
	slices.SortFunc(rows, func(a, b Standing) int {
		return cmp.Or(strings.Compare(a.Ledger, b.Ledger), slices.Compare(a.Collector[:], b.Collector[:]))
	})
	return rows
}

// ofAll is the watermark over all ledgers whose sinks write into this database:
// regions with a Kafka of their own, or topics of another prefix. Of topics that
// were made again under one name the one that was looked at last counts.
func (s *state) ofAll(own Standing, others []Standing, now time.Time) Standing {
	type name struct{ cluster, topic string }
	nameOf := func(r *Standing) name {
		cluster, _, _ := strings.Cut(r.Ledger, ".")
		return name{cluster, r.Topic}
	}
	newest := map[name]*Standing{}
	for i := range others {
		r := &others[i]
		if r.Ledger == "" || !r.Collector.IsZero() || nameOf(r) == nameOf(&own) {
			continue
		}
		if n := newest[nameOf(r)]; n == nil || n.JudgedAt.Before(r.JudgedAt) {
			newest[nameOf(r)] = r
		}
	}
	whole := own
	whole.Ledger, whole.Topic = "", ""
	for _, r := range newest {
		if r.State == StateRetired {
			continue
		}
		whole.Collectors += r.Collectors
		if !r.CompleteUntil.Before(whole.CompleteUntil) {
			continue
		}
		whole.CompleteUntil, whole.HeldBy = r.CompleteUntil, r.HeldBy
		whole.Why = fmt.Sprintf("ledger %s (%s): %s", r.Ledger, r.Topic, r.Why)
		if now.Sub(r.JudgedAt) > forgotten {
			whole.Why = fmt.Sprintf("ledger %s (%s): no sink has looked since %s; if it is gone for good: sluice audit --retire %s",
				r.Ledger, r.Topic, stamp(r.JudgedAt), r.Ledger)
		}
	}
	s.total = latest(s.total, whole.CompleteUntil)
	whole.CompleteUntil = s.total
	return whole
}

// heard is when the broker appended the newest record of all.
func (s *state) heard() (at time.Time) {
	for _, c := range s.collectors {
		at = latest(at, c.newest.heard)
	}
	return at
}

// same reports whether the table has this already, and the watermark's row is not
// due to be written again.
func (s *state) same(st Standing) bool {
	was, ok := s.written[st.Collector]
	return ok && sameStanding(was, st) && (!st.Collector.IsZero() || st.JudgedAt.Sub(was.JudgedAt) < heartbeat)
}

func sameStanding(a, b Standing) bool {
	a.JudgedAt, b.JudgedAt = time.Time{}, time.Time{}
	return a == b
}

// wrote takes note of what the table has now.
func (s *state) wrote(rows []Standing) {
	for _, r := range rows {
		if r.Ledger == "" {
			s.whole = r
		} else {
			s.written[r.Collector] = r
		}
	}
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
