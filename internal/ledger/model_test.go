package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// item is one record and all that is true of it.
type item struct {
	rec     batch.Record
	acked   bool // its sender was told that it is safe
	void    bool // its sender was told that it is not
	spooled bool // it waits on the disk
	lost    bool // it did, and cannot be read any more
	places  []place
}

type place struct {
	partition int
	offset    int64
}

// model is a machine with a collector on it, a Kafka, and a reader of the ledger. It
// knows what is true; the collector's ledger must not claim more.
type model struct {
	t       *testing.T
	rng     *rand.Rand
	dir     string
	log     *topic
	skew    atomic.Int64 // of the collector's clock
	history []string

	mu      sync.Mutex // Run's goroutine comes in by its Spool and its Log
	l       *Ledger
	failed  bool
	dead    bool // the process is gone
	dying   int  // steps until it is
	after   bool // the last of which is still taken
	failing int  // steps until one fails, and the process goes on; taken where after says so
	steps   int  // so far
	calm    bool // clocks are right, and nothing happens but what the test wants
	next    []int64
	items   []*item
	flying  []*item // of this process
	backlog batch.Backlog
	removed []*item // lately: a crash may bring them back
	seen    int     // records of the ledger that were checked
	times   map[batch.ID]time.Time
	newest  map[batch.ID]batch.LedgerRecord
	reader  reader
}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 7)), dir: t.TempDir(), log: &topic{id: "log"}, next: []int64{0, 0, 0},
		times: map[batch.ID]time.Time{}, newest: map[batch.ID]batch.LedgerRecord{}}
	m.log.write = m.fate
	m.log.next = slices.Clone(m.next)
	return m
}

func (m *model) say(format string, args ...any) {
	m.history = append(m.history, fmt.Sprintf(format, args...))
}

// want fails the test, and ends the process: it is called on any goroutine, under
// m.mu.
func (m *model) want(ok bool, format string, args ...any) {
	if !ok && !m.failed {
		m.failed, m.dead = true, true
		m.t.Errorf(format, args...)
		for _, line := range m.history[max(0, len(m.history)-60):] {
			m.t.Log(line)
		}
	}
}

func (m *model) chance(percent int) bool { return m.rng.IntN(100) < percent }

// step is one that a crash may come before, or behind.
func (m *model) step(what string, do func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return retry.Mark(errDead, retry.Permanent)
	}
	m.steps++
	if m.failing--; m.failing == 0 {
		m.say("fails: %s, taken: %v", what, m.after)
		if m.after {
			_ = unsynced(what, do)
		}
		return retry.Mark(errors.New("input/output error"), retry.Transient)
	}
	if m.dying--; m.dying == 0 {
		m.dead = true
		m.say("crash at: %s, taken: %v", what, m.after)
		if m.after {
			_ = unsynced(what, do)
		}
		return retry.Mark(errDead, retry.Permanent)
	}
	return unsynced(what, do)
}

// Backlog implements Spool. What the requests do meanwhile they do in it: the
// ledger holds no lock then.
func (m *model) Backlog() batch.Backlog {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.chance(30) {
		m.work()
	}
	b := m.backlog
	for _, it := range m.items {
		if !it.spooled {
			continue
		}
		b.Records++
		if at := it.rec.ReceivedAt; b.Oldest.IsZero() || at.Before(b.Oldest) {
			b.Oldest = at
		}
	}
	if b.Records > 0 && m.chance(20) {
		b.Oldest = b.Oldest.Add(-time.Duration(m.rng.IntN(5000)) * time.Millisecond) // known roughly
	}
	if m.chance(30) {
		m.work()
	}
	return b
}

// State implements Spool.
func (m *model) State() batch.SpoolState { return batch.SpoolIntact }

// Ends and Write implement Log.
func (m *model) Ends(ctx context.Context) (log string, next []int64, err error) {
	err = m.step("ends", func() error {
		m.log.set(func(k *topic) { k.next = slices.Clone(m.next) })
		log, next, err = m.log.Ends(ctx)
		if m.chance(50) {
			m.work() // after the ends were read
		}
		return err
	})
	return log, next, err
}

func (m *model) Write(ctx context.Context, key string, value []byte) (at time.Time, err error) {
	err = m.step("write "+key[len(key)-4:], func() error {
		var r batch.LedgerRecord
		if r, err = batch.DecodeLedgerRecord(value); err != nil {
			return err
		}
		m.checkNumbers(r)
		at, err = m.log.Write(ctx, key, value)
		m.say("%s %d until %s: %v", r.Kind, r.Number, m.short(r.CompleteUntil), err)
		m.check()
		return err
	})
	return at, err
}

// fate is what becomes of a record.
func (m *model) fate(context.Context, int) (take bool, err error) {
	if m.calm {
		return true, nil
	}
	switch n := m.rng.IntN(100); {
	case n < 6:
		return false, errAway
	case n < 12:
		return true, errAway
	}
	return true, nil
}

func (m *model) short(t time.Time) string { return t.Format("05.000000") }

// deliver puts a copy into Kafka.
func (m *model) deliver(it *item) place {
	p := m.rng.IntN(len(m.next))
	at := place{p, m.next[p]}
	m.next[p]++
	it.places = append(it.places, at)
	return at
}

// work is one thing that happens to a batch. m.mu is held.
func (m *model) work() {
	if m.dead {
		return
	}
	switch n := m.rng.IntN(100); {
	case n < 35 && len(m.flying) < 40:
		m.accept()
	case n < 75 && len(m.flying) > 0:
		m.settle(m.rng.IntN(len(m.flying)))
	case n < 95:
		m.drain()
	default:
		m.late()
	}
}

func (m *model) accept() {
	ready, n := m.l.Ready(), 1+m.rng.IntN(3)
	s := m.l.Accept(n)
	m.want((ready == nil) == (s.FirstSeq != 0), "ready: %v, and a stamp of %d", ready, s.FirstSeq)
	if s.FirstSeq == 0 {
		return
	}
	m.want(!s.ReceivedAt.Before(m.times[s.Collector]), "receive times go back")
	m.times[s.Collector] = s.ReceivedAt
	for i := range n {
		it := &item{rec: batch.Record{Collector: s.Collector, Epoch: s.Epoch, Seq: s.FirstSeq + uint64(i), ReceivedAt: s.ReceivedAt}}
		m.items, m.flying = append(m.items, it), append(m.flying, it)
	}
	m.say("accept %d+%d at %s", s.FirstSeq, n, m.short(s.ReceivedAt))
}

// settle is the end of a publish, in one of its ways. The sender may be told before
// the ledger is, or after it.
func (m *model) settle(i int) {
	it := m.flying[i]
	m.flying = slices.Delete(m.flying, i, i+1)
	early := m.chance(50)
	switch n := m.rng.IntN(100); {
	case n < 50: // in Kafka
		at := m.deliver(it)
		it.acked = early
		m.l.InKafka(&it.rec, at.partition, at.offset)
		it.acked = true
	case n < 80: // timed out, so on the disk; perhaps in Kafka too
		if m.chance(30) {
			m.deliver(it)
		}
		it.spooled, it.acked = true, early
		m.l.Spooled(&it.rec)
		it.acked = true
	case n < 95: // refused; perhaps in Kafka all the same
		if m.chance(30) {
			m.deliver(it)
		}
		it.void = true
		m.l.Void(&it.rec)
	default:
		it.void = true
		m.l.Withdraw(batch.Stamp{Collector: it.rec.Collector, Epoch: it.rec.Epoch, FirstSeq: it.rec.Seq}, 1)
	}
	m.say("settled %d: acked %v spooled %v", it.rec.Seq, it.acked, it.spooled)
}

// drain takes something out of the spool.
func (m *model) drain() {
	for _, it := range m.items {
		if it.spooled && m.chance(70) {
			at := m.deliver(it)
			m.l.InKafka(&it.rec, at.partition, at.offset)
			it.spooled = false
			m.removed = append(m.removed, it)
			m.say("drained %d of %s", it.rec.Seq, m.short(it.rec.ReceivedAt))
			return
		}
	}
}

// late is a success that nobody waited for any more.
func (m *model) late() {
	for _, it := range m.items {
		if (it.spooled || it.void) && len(it.places) > 0 && m.chance(30) {
			at := it.places[len(it.places)-1]
			m.l.InKafka(&it.rec, at.partition, at.offset)
			if it.spooled {
				it.spooled = false
				m.removed = append(m.removed, it)
			}
			m.say("late %d", it.rec.Seq)
			return
		}
	}
}

// checkNumbers holds a record against what is true of its numbers.
func (m *model) checkNumbers(r batch.LedgerRecord) {
	void := covered(r.Voids)
	waiting := uint64(0)
	for _, it := range m.items {
		if it.rec.Collector != r.Collector || it.rec.Epoch != r.Epoch || it.rec.Seq > r.Settled {
			continue
		}
		if void[it.rec.Seq] {
			m.want(it.void, "number %d is not void", it.rec.Seq)
			continue
		}
		m.want(!it.void, "number %d is void", it.rec.Seq)
		m.want(len(it.places) > 0 || it.spooled, "number %d is nowhere", it.rec.Seq)
		if len(it.places) == 0 {
			waiting++
		}
	}
	m.want(waiting <= r.Pending, "%d settled and not in Kafka, %d pending: the audit would call them lost", waiting, r.Pending)
	m.want(r.Unproven == 0, "%d unproven", r.Unproven)
}

// check holds the whole ledger topic, and what its reader makes of it, against what
// is true.
func (m *model) check() {
	records := m.log.all()
	for _, r := range records[m.seen:] {
		if r.Collector != other {
			m.checkRecord(r)
		}
		m.reader.read(r)
	}
	m.seen = len(records)
	until := m.reader.watermark()
	for _, it := range m.items {
		m.want(!it.acked || it.lost || len(it.places) > 0 || !it.rec.ReceivedAt.Before(until),
			"the watermark is ahead of the truth: %s, and number %d of %s is not in Kafka", until, it.rec.Seq, it.rec.ReceivedAt)
	}
}

func (m *model) checkRecord(r written) {
	// One that comes late is known by its time.
	if newest := m.newest[r.Collector]; r.At.After(newest.At) {
		m.want(!r.CompleteUntil.Before(newest.CompleteUntil), "%s %d: CompleteUntil goes back from %s to %s", r.Kind, r.Number, newest.CompleteUntil, r.CompleteUntil)
		m.newest[r.Collector] = r.LedgerRecord
	}
	for _, it := range m.items {
		if !it.acked || it.lost || !it.rec.ReceivedAt.Before(r.CompleteUntil) {
			continue
		}
		covers := slices.ContainsFunc(it.places, func(p place) bool {
			o, ok := r.Offsets[p.partition]
			return ok && p.offset <= o
		})
		m.want(covers, "%s %d of epoch %x, until %s: number %d of epoch %x, received at %s, at %v, is not covered by %v",
			r.Kind, r.Number, r.Epoch, r.CompleteUntil, it.rec.Seq, it.rec.Epoch, it.rec.ReceivedAt, it.places, r.Offsets)
	}
}

func (m *model) isDead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

// life is one process, from its start to its end, in order or not.
func (m *model) life(steps int) {
	t := m.t
	m.mu.Lock()
	m.dead, m.flying = false, nil
	if !m.calm && m.chance(25) {
		m.dying, m.after = 1+m.rng.IntN(12), m.chance(50)
	}
	m.mu.Unlock()
	l, err := Open(m.dir, nil, WithClock(func() time.Time { return time.Now().Add(time.Duration(m.skew.Load())) }),
		func(l *Ledger) { l.steps = m.step }, WithPatience(time.Second))
	if m.isDead() {
		if err == nil {
			crash(l)
		}
		return
	}
	if err != nil && m.calm {
		return // a step of it failed; somebody starts it again
	}
	require.NoError(t, err)
	m.mu.Lock()
	m.l = l
	m.say("start %x, ready: %v", l.Epoch(), l.Ready())
	m.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, m, m) }()

	for range steps {
		m.mu.Lock()
		nap := time.Duration(m.rng.IntN(400)) * time.Millisecond
		m.mu.Unlock()
		retry.Sleep(t.Context(), nap)
		synctest.Wait()
		m.mu.Lock()
		for range m.rng.IntN(4) {
			m.work()
			m.check()
		}
		m.weather()
		if !m.calm && m.chance(1) && !m.dead {
			m.dying, m.after = 1+m.rng.IntN(8), m.chance(50)
		}
		m.check()
		dead := m.dead
		m.mu.Unlock()
		if dead {
			break
		}
	}
	m.mu.Lock()
	if !m.calm && !m.dead && m.chance(40) {
		m.dead = true
		m.say("kill")
	}
	if !m.dead { // the publishers end first; not all of them in time
		for len(m.flying) > 0 && (m.calm || m.chance(97)) {
			m.settle(0)
		}
		for i := 0; i < 50 && (m.calm || m.chance(97)); i++ {
			m.drain()
		}
		m.say("end")
	}
	if !m.calm && m.chance(50) {
		m.dying, m.after = 1+m.rng.IntN(12), m.chance(50)
	}
	m.mu.Unlock()
	cancel()
	<-done
	if !m.isDead() {
		err := l.Close()
		require.True(t, err == nil || m.calm || m.isDead(), "%v", err)
	} else {
		crash(l)
	}
	m.mu.Lock()
	m.aftermath()
	m.check()
	m.mu.Unlock()
}

// TestModel lets one collector live through everything, many times over, and never
// finds that it, or who reads its ledger, claims what is not true.
func TestModel(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newModel(t, seed)
				for i := 0; i < 8 && !m.failed; i++ {
					m.life(10 + m.rng.IntN(60))
				}
				m.seen, m.reader = 0, reader{}
				m.newest = map[batch.ID]batch.LedgerRecord{}
				m.check() // all of it again, with what was acknowledged since
			})
		})
	}
}

// TestEveryStep goes through three short lives, the first two of which end in order
// where nothing else ends them, once for every step that touches the disk or Kafka:
// the process dies before it, or behind it, or the step fails, taken or not.
func TestEveryStep(t *testing.T) {
	for name, plan := range map[string]func(m *model, at int){
		"dies before":    func(m *model, at int) { m.dying = at },
		"dies behind":    func(m *model, at int) { m.dying, m.after = at, true },
		"fails":          func(m *model, at int) { m.failing = at },
		"fails, is done": func(m *model, at int) { m.failing, m.after = at, true },
	} {
		t.Run(name, func(t *testing.T) {
			for at, total := 1, 1; at <= total; at++ {
				synctest.Test(t, func(t *testing.T) {
					m := newModel(t, 1)
					m.calm = true
					plan(m, at)
					for i := 0; i < 3 && !m.failed; i++ {
						m.life(8)
					}
					total = max(total, m.steps)
					closes := slices.Contains(m.log.kinds(), batch.LedgerClose)
					require.True(t, closes || m.failed, "nothing ended in order: %v", m.log.kinds())
				})
			}
		})
	}
}

var errDead = errors.New("the process is gone")
