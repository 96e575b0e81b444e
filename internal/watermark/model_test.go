package watermark

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

// world is everything around a copier: collectors with clocks of their own, the
// log, sinks, a ledger topic that loses and compacts records, and the truth.
type world struct {
	t   *testing.T
	rnd *rand.Rand
	now time.Time // the brokers' clock

	log     string
	ends    []int64 // of the log's partitions
	ledger  *topic
	tables  *tables
	members []*member
	batches []*sent // everything that was acknowledged
	late    []func()
	copiers []*Copier
	shown   time.Time

	// What collectors may do wrong, to see that it is noticed.
	skipOpening, skipAppendTime bool
}

// sent is one acknowledged batch.
type sent struct {
	received  time.Time
	partition int // -1: in a spool
	offset    int64
	givenUp   bool
}

// member is a collector.
type member struct {
	id        batch.ID
	alive     bool
	connected bool
	skew      time.Duration
	opened    bool // may acknowledge
	closed    bool // its closing record may be in the ledger
	known     bool // some opening record of it is in the ledger

	epoch, number uint64
	last          time.Time
	settled       uint64
	spool         []*sent
	offsets       map[int]int64
	lost          uint64
	lostFrom      time.Time
	announced     bool // this epoch's opening record is in the ledger
	retired       bool // given up, and not heard of since: what it receives now nobody vouches for
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), now: time.UnixMilli(1_800_000_000_000).UTC(), log: "c.log",
		ends: make([]int64, 2), ledger: &topic{id: "c.one"}, tables: newTables()}
	w.ledger.most = 1 + w.rnd.IntN(4)
	w.tables.fault = func() (bool, error) {
		switch w.rnd.IntN(12) {
		case 0:
			return true, errAway // stored, and nobody is told
		case 1:
			return false, errAway // not stored now
		}
		return true, nil
	}
	for range 2 {
		w.copiers = append(w.copiers, w.copier())
	}
	return w
}

func (w *world) copier() *Copier {
	c := newCopier(w.ledger, w.tables)
	c.now = func() time.Time { return w.now }
	return c
}

func (w *world) through(p int) int64 {
	if through, ok := w.tables.stored[w.log][p]; ok {
		return through
	}
	return -1
}

func (w *world) produce(m *member, b *sent) {
	p := w.rnd.IntN(len(w.ends))
	b.partition, b.offset = p, w.ends[p]
	w.ends[p]++
	m.offsets[p] = b.offset
}

func (m *member) stamp(now time.Time) time.Time {
	if at := now.Add(m.skew); at.After(m.last) {
		m.last = at
	}
	return m.last
}

func (w *world) join() {
	m := &member{id: batch.Random(), alive: true, connected: w.rnd.IntN(4) > 0, offsets: map[int]int64{}}
	if w.rnd.IntN(2) == 0 {
		m.skew = time.Duration(w.rnd.IntN(20_000)-10_000) * time.Millisecond
	}
	w.start(m)
	w.members = append(w.members, m)
}

func (w *world) start(m *member) {
	m.alive, m.epoch, m.number, m.settled, m.announced = true, w.rnd.Uint64()|1, 0, 0, false
	m.offsets = map[int]int64{}
	// An id that never opened, or that may have closed, has to be let in first.
	m.opened = m.known && (!m.closed || w.skipOpening)
}

// snapshot is what the collector would write now.
func (m *member) snapshot(w *world, kind batch.LedgerKind) batch.LedgerRecord {
	m.number++
	m.last = m.last.Add(time.Microsecond) // every record's time is later than all before
	at := m.stamp(w.now)
	r := batch.LedgerRecord{Kind: kind, Collector: m.id, Epoch: m.epoch, Number: m.number, At: at, CompleteUntil: at,
		Settled: m.settled, Log: w.log, Offsets: maps.Clone(m.offsets), Pending: uint64(len(m.spool)), Spool: batch.SpoolIntact,
		Lost: m.lost}
	if !m.known {
		r.Spool = batch.SpoolAbsent
	}
	if len(m.spool) > 0 {
		oldest := m.spool[0].received
		for _, b := range m.spool {
			oldest = earliest(oldest, b.received)
		}
		r.CompleteUntil, r.Oldest = earliest(at, oldest), &oldest
	}
	if m.lost > 0 {
		r.LostFrom = &m.lostFrom
	}
	return r
}

// report writes a record, which may fail, arrive although it failed, or arrive late.
func (w *world) report(m *member, kind batch.LedgerKind) {
	if !m.alive || !m.connected {
		return
	}
	if !m.announced {
		if kind == batch.LedgerClose {
			return
		}
		kind = batch.LedgerOpen
		for p, end := range w.ends {
			m.offsets[p] = end - 1
		}
	}
	if kind == batch.LedgerClose {
		// On disk before the record is sent; and nothing is acknowledged once it is.
		m.closed, m.opened = true, false
	}
	r := m.snapshot(w, kind)
	if kind == batch.LedgerClose {
		m.alive = false
	}
	switch w.rnd.IntN(10) {
	case 0: // lost
		return
	case 1: // failed, and arrives later
		w.late = append(w.late, func() { w.ledger.write(r, w.now) })
		return
	}
	w.ledger.write(r, w.now)
	m.retired = false
	if kind == batch.LedgerOpen {
		m.announced, m.opened, m.known, m.closed = true, true, true, false
		if !w.skipAppendTime {
			m.last = latest(m.last, w.now)
		}
	}
}

func (w *world) accept(m *member) {
	if !m.alive || !m.opened {
		return
	}
	b := &sent{received: m.stamp(w.now), partition: -1, givenUp: m.retired}
	m.settled++
	w.batches = append(w.batches, b)
	if m.connected && w.rnd.IntN(4) > 0 {
		w.produce(m, b)
		return
	}
	m.spool = append(m.spool, b)
}

func (w *world) drain(m *member) {
	if !m.alive || !m.connected || !m.announced || len(m.spool) == 0 {
		return
	}
	b := m.spool[0]
	w.produce(m, b)
	if w.rnd.IntN(5) > 0 { // else it is still there after a crash, a copy
		m.spool = m.spool[1:]
	} else {
		again := *b
		again.givenUp = true // the copy is nobody's loss
		m.spool[0] = &again
	}
}

func (w *world) damage(m *member) {
	if m.alive || len(m.spool) == 0 {
		return
	}
	b := m.spool[0]
	m.spool = m.spool[1:]
	m.lost++
	if m.lost == 1 || b.received.Before(m.lostFrom) {
		m.lostFrom = b.received
	}
}

// retire gives a collector up as an operator would, who sees the table.
func (w *world) retire(m *member) {
	var seen *Row
	for _, r := range w.tables.ledger {
		if r.Entry == EntryNewest && r.Record.Collector == m.id && r.Record.Epoch == m.epoch && (seen == nil || seen.Version < r.Version) {
			seen = &r
		}
	}
	if seen == nil || m.alive || w.rnd.IntN(3) > 0 {
		return
	}
	ends := map[int]int64{}
	for p, end := range w.ends {
		ends[p] = end - 1
	}
	w.ledger.write(batch.LedgerRecord{Kind: batch.LedgerRetire, Collector: m.id, Epoch: seen.Record.Epoch, Number: seen.Record.Number,
		Lost: seen.Record.Lost, Log: w.log, Offsets: ends, By: "o", Reason: "r"}, w.now)
	m.retired = true
	for _, b := range w.batches {
		if b.partition < 0 && (slices.Contains(m.spool, b) || !slices.ContainsFunc(w.members, func(o *member) bool { return slices.Contains(o.spool, b) })) {
			b.givenUp = true
		}
	}
}

func (w *world) step() {
	w.now = w.now.Add(time.Duration(w.rnd.IntN(300)) * time.Millisecond)
	if len(w.members) == 0 || w.rnd.IntN(60) == 0 && len(w.members) < 8 {
		w.join()
	}
	m := w.members[w.rnd.IntN(len(w.members))]
	switch n := w.rnd.IntN(100); {
	case n < 25:
		w.accept(m)
	case n < 45:
		w.report(m, batch.LedgerInterval)
	case n < 52:
		w.drain(m)
	case n < 55:
		m.connected = !m.connected
	case n < 57:
		w.report(m, batch.LedgerClose)
	case n < 59:
		m.alive = false // kill -9
	case n < 63:
		if !m.alive {
			w.start(m)
		}
	case n < 64:
		w.damage(m)
	case n < 65:
		w.retire(m)
	case n < 78: // a sink
		p := w.rnd.IntN(len(w.ends))
		if through := w.through(p); through < w.ends[p]-1 {
			if w.tables.stored[w.log] == nil {
				w.tables.stored[w.log] = map[int]int64{}
			}
			w.tables.stored[w.log][p] = through + 1 + w.rnd.Int64N(w.ends[p]-1-through)
		}
	case n < 79:
		if len(w.ends) < 5 {
			w.ends = append(w.ends, 0)
		}
	case n < 81:
		w.ledger.compact(func() bool { return w.rnd.IntN(3) == 0 })
	case n < 83:
		if len(w.late) > 0 {
			i := w.rnd.IntN(len(w.late))
			w.late[i]()
			w.late = slices.Delete(w.late, i, i+1)
		}
	case n < 85: // a paused copier's insert arrives
		if len(w.tables.late) > 0 {
			i := w.rnd.IntN(len(w.tables.late))
			w.tables.late[i]()
			w.tables.late = slices.Delete(w.tables.late, i, i+1)
		}
	case n < 86:
		w.ledger.away = !w.ledger.away
	case n < 89:
		i := w.rnd.IntN(len(w.copiers))
		w.copiers[i] = w.copier()
	default:
		_, _ = w.copiers[w.rnd.IntN(len(w.copiers))].round(context.Background())
	}
	w.ledger.away = w.ledger.away && w.rnd.IntN(10) > 0
}

// check holds what is shown against what is true. It returns what is wrong.
func (w *world) check() error {
	until := w.tables.whole().CompleteUntil
	if until.Before(w.shown) {
		return fmt.Errorf("it went back from %s to %s", w.shown, until)
	}
	w.shown = until
	for _, b := range w.batches {
		if !b.received.Before(until) || b.givenUp {
			continue
		}
		if b.partition < 0 {
			return fmt.Errorf("%s is ahead of a batch received %s, which is in a spool", until, b.received)
		}
		if w.through(b.partition) < b.offset {
			return fmt.Errorf("%s is ahead of a batch received %s, which is at %d/%d", until, b.received, b.partition, b.offset)
		}
	}
	return nil
}

// settle ends every fault and lets everything arrive: then the watermark moves on.
func (w *world) settle() {
	w.ledger.away, w.tables.fault = false, nil
	for _, late := range w.late {
		late()
	}
	w.late = nil
	from := w.now
	for range 20 {
		w.now = w.now.Add(15 * time.Second)
		for _, m := range w.members {
			m.connected, m.skew = true, 0
			if !m.alive {
				w.start(m)
			}
			w.report(m, batch.LedgerInterval)
			for range 200 {
				w.drain(m)
			}
			w.report(m, batch.LedgerInterval)
		}
		w.tables.stored[w.log] = map[int]int64{}
		for p, end := range w.ends {
			w.tables.stored[w.log][p] = end - 1
		}
		for _, m := range w.members {
			if m.lost > 0 {
				w.ledger.write(batch.LedgerRecord{Kind: batch.LedgerRetire, Collector: m.id, Epoch: m.epoch, Number: m.number, Lost: m.lost}, w.now)
				for _, b := range w.batches {
					b.givenUp = b.givenUp || b.partition < 0 && !slices.Contains(m.spool, b)
				}
			}
		}
		for {
			more, err := w.copiers[0].round(context.Background())
			require.NoError(w.t, err)
			if !more && w.copiers[0].s.next == w.ledger.end {
				break
			}
		}
	}
	if len(w.members) > 0 {
		assert.True(w.t, w.tables.whole().CompleteUntil.After(from), "it moves on once everything has arrived: %s is not after %s: %s",
			w.tables.whole().CompleteUntil, from, w.tables.whole().Why)
	}
}

const modelSteps = 1500

func TestNeverAheadNeverBack(t *testing.T) {
	for seed := range uint64(60) {
		w := newWorld(t, seed)
		for range modelSteps {
			w.step()
			require.NoError(t, w.check(), "seed %d", seed)
		}
		w.settle()
		require.NoError(t, w.check(), "seed %d", seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// What the collectors promise is needed: without it the oracle finds the watermark
// ahead of the truth.
func TestOracleNotices(t *testing.T) {
	for name, spoil := range map[string]func(*world){
		"a closed id goes on without opening":                func(w *world) { w.skipOpening = true },
		"receive times begin before the opening was written": func(w *world) { w.skipAppendTime = true },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(2000) {
				w := newWorld(t, seed)
				spoil(w)
				for range modelSteps {
					w.step()
					if w.check() != nil {
						return
					}
				}
			}
			t.Error("nothing was noticed")
		})
	}
}
