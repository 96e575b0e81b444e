package ledger

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	promtest "github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// desk is a ledger that runs, with all it needs.
type desk struct {
	t     *testing.T
	l     *Ledger
	dir   string
	log   *topic
	spool *disk
	out   bytes.Buffer // what it logs

	cancel context.CancelFunc
	done   chan error
}

// newDesk makes a directory and a topic; start starts a ledger on them.
func newDesk(t *testing.T) *desk {
	return &desk{t: t, dir: t.TempDir(), log: &topic{id: "log-1", next: []int64{10, 0, 7}}, spool: &disk{state: batch.SpoolIntact}}
}

func (d *desk) start(options ...Option) *Ledger {
	d.t.Helper()
	var err error
	fast := func(l *Ledger) { l.steps = unsynced }
	d.l, err = Open(d.dir, textLog(&d.out), append([]Option{fast}, options...)...)
	require.NoError(d.t, err)
	ctx, cancel := context.WithCancel(d.t.Context())
	d.cancel, d.done = cancel, make(chan error, 1)
	go func() { d.done <- d.l.Run(ctx, d.log, d.spool) }()
	synctest.Wait()
	return d.l
}

// stop ends the ledger in order and returns what Run did, and how long it took.
func (d *desk) stop() (took time.Duration, err error) {
	d.t.Helper()
	start := time.Now()
	d.cancel()
	err = <-d.done
	took = time.Since(start)
	require.NoError(d.t, d.l.Close())
	return took, err
}

// kill ends the ledger as kill -9 does.
func (d *desk) kill() {
	d.t.Helper()
	d.l.store.steps = func(string, func() error) error { return errDead }
	d.log.set(func(k *topic) { k.away = retry.Mark(errDead, retry.Permanent) })
	d.cancel()
	assert.Error(d.t, <-d.done)
	d.log.set(func(k *topic) { k.away = nil })
	crash(d.l)
}

func pass(t *testing.T, d time.Duration) {
	t.Helper()
	retry.Sleep(t.Context(), d)
	synctest.Wait()
}

func until(r written) time.Time { return r.CompleteUntil }

// A new id waits for Kafka, and then stamps nothing below what the broker calls now.
func TestNewIDWaitsForKafka(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.log.away = errAway
		d.log.now = func() time.Time { return time.Now().Add(5 * time.Minute) } // this clock is behind
		l := d.start()
		pass(t, 10*time.Minute)
		assert.ErrorIs(t, l.Ready(), errUnopened)
		assert.Zero(t, l.Accept(1), "to have asked before is not enough")
		assert.Equal(t, 1, strings.Count(d.out.String(), "level=WARN"))

		d.log.set(func(k *topic) { k.away = nil })
		pass(t, 5*time.Second)
		require.NoError(t, l.Ready())
		opening := d.log.all()[0]
		assert.Equal(t, batch.LedgerOpen, opening.Kind)
		assert.Equal(t, l.Collector(), opening.Collector)
		assert.Equal(t, l.Epoch(), opening.Epoch)
		assert.Equal(t, "log-1", opening.Log)
		assert.Equal(t, map[int]int64{0: 9, 2: 6}, opening.Offsets, "whatever is there already lies below")
		assert.Equal(t, batch.SpoolIntact, opening.Spool)
		assert.Zero(t, opening.Settled)
		s := l.Accept(2)
		assert.Equal(t, uint64(1), s.FirstSeq)
		assert.False(t, s.ReceivedAt.Before(opening.appended), "%s, %s", s.ReceivedAt, opening.appended)
		assert.Contains(t, d.out.String(), "level=INFO")
		_, err := d.stop()
		require.NoError(t, err)
	})
}

// A known id does not wait, and its opening record still comes before any other.
func TestKnownIDStartsWithoutKafka(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		l := d.start()
		l.InKafka(numbered(l.Accept(1)), 1, 3)
		pass(t, time.Minute)
		d.kill()
		before := len(d.log.all())

		d.log.set(func(k *topic) { k.away, k.next = errAway, []int64{11, 4, 7, 2} })
		d.spool.set(batch.Backlog{Records: 1, Bytes: 5, Oldest: time.Now()}) // of the first epoch
		l = d.start()
		require.NoError(t, l.Ready())
		first, second := l.Accept(1), l.Accept(1)
		l.Spooled(numbered(first))
		pass(t, time.Hour)
		l.InKafka(numbered(first), 2, 100) // drained; what is left is older
		assert.Len(t, d.log.all(), before)

		d.log.set(func(k *topic) { k.away = nil })
		pass(t, 10*time.Second)
		records := d.log.all()[before:]
		opening := records[0]
		assert.Equal(t, batch.LedgerOpen, opening.Kind)
		assert.Equal(t, map[int]int64{0: 10, 1: 3, 2: 100, 3: 1}, opening.Offsets, "the ends, and what is known since")
		assert.Equal(t, uint64(1), opening.Settled)
		assert.Equal(t, uint64(1), opening.Pending)
		assert.Equal(t, int64(5), opening.PendingBytes)
		oldest := d.spool.Backlog().Oldest
		assert.True(t, oldest.Equal(*opening.Oldest))
		assert.False(t, until(opening).After(oldest))
		for _, r := range records[1:] {
			assert.Equal(t, batch.LedgerInterval, r.Kind, "it opens once")
		}

		d.spool.set(batch.Backlog{})
		pass(t, 2*time.Second)
		assert.True(t, until(d.log.last(t)).Equal(second.ReceivedAt.Truncate(time.Microsecond)), "the oldest in flight holds it")
		l.Void(numbered(second))
		pass(t, 2*time.Second)
		r := d.log.last(t)
		assert.Equal(t, r.At, r.CompleteUntil)
		assert.Equal(t, []batch.SeqRange{{First: 2, Last: 2}}, r.Voids)
		_, err := d.stop()
		require.NoError(t, err)
	})
}

func TestIntervalRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		reg := prometheus.NewPedanticRegistry()
		l := d.start(WithInterval(250*time.Millisecond), WithRegisterer(reg))
		pass(t, 10*time.Second-time.Millisecond)
		records := d.log.all()
		assert.Len(t, records, 40)
		for i, r := range records {
			assert.Equal(t, uint64(i+1), r.Number)
			assert.Equal(t, "log-1", r.Log)
			assert.Equal(t, map[int]int64{0: 9, 2: 6}, r.Offsets, "each says what the ones before it said")
			if i > 0 {
				assert.True(t, r.At.After(records[i-1].At))
			}
		}

		// One kept, one spooled, one refused, one whose fate is open, one behind it.
		a, b, c := l.Accept(1), l.Accept(1), l.Accept(3)
		l.InKafka(numbered(a), 0, 12)
		l.Spooled(numbered(b))
		l.Withdraw(batch.Stamp{Collector: c.Collector, Epoch: c.Epoch, FirstSeq: 5}, 1)
		pass(t, time.Second)
		r := d.log.last(t)
		assert.Equal(t, uint64(2), r.Settled)
		assert.Empty(t, r.Voids, "not said before the numbers in front of it are settled")
		assert.True(t, c.ReceivedAt.Equal(until(r)))
		assert.Equal(t, map[int]int64{0: 12, 2: 6}, r.Offsets)
		assert.NoError(t, promtest.GatherAndCompare(reg, strings.NewReader(`
# HELP sluice_ledger_in_flight Records that were given a number and are not in Kafka, in the spool or refused yet.
# TYPE sluice_ledger_in_flight gauge
sluice_ledger_in_flight 2
`), "sluice_ledger_in_flight"))

		l.Void(numbered(c))
		l.InKafka(&batch.Record{Collector: c.Collector, Epoch: c.Epoch, Seq: 4}, 1, 0)
		pass(t, time.Second)
		r = d.log.last(t)
		assert.Equal(t, uint64(5), r.Settled)
		assert.Equal(t, []batch.SeqRange{{First: 3, Last: 3}, {First: 5, Last: 5}}, r.Voids)
		assert.Equal(t, r.At, until(r))

		// Late successes, of refused and spooled ones, copies, and records of others
		// only raise offsets.
		l.InKafka(numbered(c), 0, 20)
		l.InKafka(numbered(b), 0, 19)
		l.InKafka(&batch.Record{Collector: l.Collector(), Epoch: l.Epoch() + 1, Seq: 1}, 4, 8)
		l.InKafka(&batch.Record{Collector: batch.ForKey("c", "2"), Epoch: l.Epoch(), Seq: 1}, 1, 5)
		l.InKafka(numbered(a), -1, 5)
		l.Spooled(numbered(c))
		l.Void(&batch.Record{Collector: batch.ForKey("c", "2"), Epoch: l.Epoch(), Seq: 1})
		l.Withdraw(batch.Stamp{Collector: l.Collector(), Epoch: l.Epoch() + 1, FirstSeq: 1}, 1)
		pass(t, time.Second)
		last := d.log.last(t)
		assert.Equal(t, map[int]int64{0: 20, 1: 5, 2: 6, 4: 8}, last.Offsets)
		assert.Equal(t, r.Voids, last.Voids)
		assert.Equal(t, r.Settled, last.Settled)
		assert.Zero(t, last.Unproven)
		families, err := reg.Gather()
		require.NoError(t, err)
		assert.Len(t, families, 4)
		_, err = d.stop()
		require.NoError(t, err)
	})
}

// Kafka hangs, refuses and loses answers: one attempt at a time, each bounded, and
// the newest record when it is back.
func TestKafkaFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		var writing, most atomic.Int32
		d.log.write = func(ctx context.Context, n int) (bool, error) {
			most.Store(max(most.Load(), writing.Add(1)))
			defer writing.Add(-1)
			switch {
			case n >= 3 && n < 6:
				<-ctx.Done() // hangs
				return false, retry.Mark(ctx.Err(), retry.Transient)
			case n >= 6 && n < 9:
				return false, errAway
			case n == 9:
				return true, errAway // errored but persisted
			}
			return true, nil
		}
		reg := prometheus.NewPedanticRegistry()
		l := d.start(WithRegisterer(reg))
		pass(t, 1500*time.Millisecond)
		s := l.Accept(1)
		pass(t, 2*time.Minute)
		assert.Equal(t, int32(1), most.Load())
		assert.NoError(t, promtest.GatherAndCompare(reg, strings.NewReader(`
# HELP sluice_ledger_reports_total Ledger records, by outcome: written, failed (the next one says more).
# TYPE sluice_ledger_reports_total counter
sluice_ledger_reports_total{outcome="failed"} 7
sluice_ledger_reports_total{outcome="written"} `+count(d.log, -1)+`
`), "sluice_ledger_reports_total"))
		assert.Equal(t, 1, strings.Count(d.out.String(), "level=WARN"), "one warning an outage")
		assert.True(t, s.ReceivedAt.Equal(until(d.log.last(t))))
		l.Spooled(numbered(s))
		records := d.log.all()
		assert.True(t, slices.IsSortedFunc(records, func(a, b written) int { return a.At.Compare(b.At) }))
		_, err := d.stop()
		require.NoError(t, err)

		// A request that was given up may come through in the end, behind all others,
		// the closing record too: it is told by its time.
		for _, r := range d.log.late {
			assert.True(t, r.At.Before(d.log.last(t).At))
		}
		assert.Len(t, d.log.late, 6)
	})
}

// count is how many records the log has, and more, as a metric says it.
func count(k *topic, more int) string {
	return strconv.Itoa(len(k.all()) + more)
}

// Clocks go back: the collector's while it runs and while it is down. Receive times,
// records' times and what is claimed do not.
func TestClocksGoBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		var skew atomic.Int64
		now := func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }
		var newest time.Time
		for round := range 5 {
			l := d.start(WithClock(now))
			for step := range 20 {
				s := l.Accept(1)
				require.False(t, s.ReceivedAt.Before(newest), "round %d", round)
				newest = s.ReceivedAt
				l.InKafka(numbered(s), 0, int64(100*round+step))
				pass(t, 700*time.Millisecond)
				if step%7 == 3 {
					skew.Add(int64(-time.Minute))
				}
			}
			if round%2 == 0 {
				d.kill()
			} else {
				_, err := d.stop()
				require.NoError(t, err)
			}
			skew.Add(int64(-time.Hour))
		}
		records := d.log.all()
		for i := 1; i < len(records); i++ {
			require.True(t, records[i].At.After(records[i-1].At))
			require.False(t, until(records[i]).Before(until(records[i-1])))
		}
	})
}

// A crash brings records back that the spool had removed. They are in Kafka, and
// what was claimed of their time is still true.
func TestClaimsDoNotGoBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		l := d.start()
		s := l.Accept(1)
		d.spool.set(batch.Backlog{Records: 1, Oldest: s.ReceivedAt})
		l.Spooled(numbered(s))
		pass(t, 5*time.Second)
		require.True(t, until(d.log.last(t)).Equal(s.ReceivedAt.Truncate(time.Microsecond)))
		l.InKafka(numbered(s), 0, 50)
		d.spool.set(batch.Backlog{})
		pass(t, 5*time.Second)
		claimed := until(d.log.last(t))
		require.True(t, claimed.After(s.ReceivedAt))
		d.kill()

		before := len(d.log.all())
		d.spool.set(batch.Backlog{Records: 1, Oldest: s.ReceivedAt})
		d.log.set(func(k *topic) { k.next = []int64{51, 0, 7} })
		d.start()
		pass(t, 5*time.Second)
		for _, r := range d.log.all()[before:] {
			assert.False(t, until(r).Before(claimed), "%s before %s", until(r), claimed)
			assert.GreaterOrEqual(t, r.Offsets[0], int64(50))
		}
		_, _ = d.stop()
	})
}

// A spool that knows the time of its oldest record only roughly, or not at all.
func TestClaimsFromARoughSpool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.start()
		pass(t, 5*time.Second)
		claimed := until(d.log.last(t))
		for _, oldest := range []time.Time{{}, time.Unix(0, 0), claimed.Add(-time.Hour)} {
			d.spool.set(batch.Backlog{Records: 1, Oldest: oldest})
			pass(t, 2*time.Second)
			held := until(d.log.last(t))
			assert.False(t, held.Before(claimed))
			assert.False(t, held.After(claimed.Add(2*time.Second)), "and does not go on")
		}
		_, _ = d.stop()
	})
}

// A disk that takes no claims holds them: the next start must not fall behind.
func TestDiskTakesNoClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		var failing atomic.Bool
		l := d.start(func(l *Ledger) {
			l.steps = func(what string, do func() error) error {
				if failing.Load() {
					return errors.New("input/output error")
				}
				return unsynced(what, do)
			}
		})
		pass(t, 5*time.Second)
		claimed := until(d.log.last(t))
		failing.Store(true)
		pass(t, time.Minute)
		assert.Equal(t, claimed, until(d.log.last(t)))
		assert.NoError(t, l.Ready(), "batches are accepted all the same")
		assert.Equal(t, 1, strings.Count(d.out.String(), "delivery_watermark waits"))
		failing.Store(false)
		pass(t, 5*time.Second)
		assert.True(t, until(d.log.last(t)).After(claimed.Add(time.Minute)))

		// And one that cannot be marked as closed is not closed.
		failing.Store(true)
		d.cancel()
		require.Error(t, <-d.done)
		assert.NotEqual(t, batch.LedgerClose, d.log.last(t).Kind)
		failing.Store(false)
		require.NoError(t, l.Close())
	})
}

// The opening record is in Kafka and the disk does not take the mark: the collector
// begins, and is marked with the first claim the disk takes.
func TestOpeningIsNotMarked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		failing := false
		d.log.write = func(context.Context, int) (bool, error) { failing = true; return true, nil }
		l := d.start(func(l *Ledger) {
			l.steps = func(what string, do func() error) error {
				if failing {
					failing = false
					return errors.New("input/output error")
				}
				return unsynced(what, do)
			}
		})
		require.NoError(t, l.Ready())
		assert.Equal(t, fresh, marked(t, d.dir))
		assert.Contains(t, d.out.String(), "may have to wait for Kafka")
		d.log.set(func(k *topic) { k.write = nil })
		pass(t, 2*time.Second)
		assert.Equal(t, opened, marked(t, d.dir))
		_, _ = d.stop()
	})
}

func TestReportsWhatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.spool.state = batch.SpoolDamaged
		from := time.Now().Add(-time.Hour)
		d.spool.set(batch.Backlog{Records: 3, Bytes: 99, Oldest: from.Add(time.Minute), Lost: 2, LostFrom: from})
		d.start()
		pass(t, 3*time.Second)
		r := d.log.last(t)
		assert.Equal(t, batch.SpoolDamaged, r.Spool)
		assert.Equal(t, uint64(2), r.Lost)
		assert.True(t, from.Equal(*r.LostFrom))
		assert.Equal(t, uint64(3), r.Pending)
		assert.Equal(t, int64(99), r.PendingBytes)
		_, _ = d.stop()
	})
}

func TestMetricsOfTwoLedgers(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	l, err := Open("", nil, WithRegisterer(reg))
	require.NoError(t, err)
	defer l.Close()
	_, err = Open("", nil, WithRegisterer(reg))
	assert.Error(t, err, "said, not panicked")
}

// spoolFunc is a Spool in whose Backlog things happen.
type spoolFunc func() batch.Backlog

func (f spoolFunc) Backlog() batch.Backlog { return f() }
func (spoolFunc) State() batch.SpoolState  { return batch.SpoolIntact }

// What happens while a record is put together must not fall between its parts.
func TestSnapshotOrder(t *testing.T) {
	for name, tt := range map[string]struct {
		before bool // what was spooled is counted
		settle func(l *Ledger, r *batch.Record)
	}{
		"spooled after the count":  {false, (*Ledger).Spooled},
		"spooled before the count": {true, (*Ledger).Spooled},
		"in Kafka meanwhile":       {false, func(l *Ledger, r *batch.Record) { l.InKafka(r, 0, 5) }},
		"drained meanwhile": {false, func(l *Ledger, r *batch.Record) {
			l.Spooled(r)
			l.InKafka(r, 0, 5)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := Open("", nil)
			require.NoError(t, err)
			begin(t, l)
			s := l.Accept(1)
			r := l.snapshot(spoolFunc(func() batch.Backlog {
				tt.settle(l, numbered(s))
				l.Accept(1)
				if tt.before {
					return batch.Backlog{Records: 1, Oldest: s.ReceivedAt}
				}
				return batch.Backlog{}
			}))
			assert.False(t, r.CompleteUntil.After(s.ReceivedAt))
			assert.Zero(t, r.Settled, "no more numbers than were counted with the pending ones")
			r = l.snapshot(&disk{})
			assert.Equal(t, uint64(1), r.Settled)
		})
	}
}
