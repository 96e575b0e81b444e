package watermark

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func second(n int) time.Time { return noon.Add(time.Duration(n) * time.Second) }

// stage is a copier with a clock that stands at the time of the last record.
type stage struct {
	t      *testing.T
	topic  *topic
	tables *tables
	copier *Copier
	now    time.Time
	number map[batch.ID]uint64
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, topic: &topic{id: "c.one"}, tables: newTables(), now: noon, number: map[batch.ID]uint64{}}
	s.restart()
	return s
}

func (s *stage) restart() {
	s.copier = newCopier(s.topic, s.tables)
	s.copier.now = func() time.Time { return s.now }
}

// write appends a record of the first epoch, received through `at`, unless edit
// says otherwise.
func (s *stage) write(kind batch.LedgerKind, id batch.ID, at int, edit func(*batch.LedgerRecord)) {
	s.number[id]++
	s.now = second(at)
	r := batch.LedgerRecord{Kind: kind, Collector: id, Epoch: 1, Number: s.number[id], At: second(at), CompleteUntil: second(at),
		Log: "c.log", Spool: batch.SpoolIntact}
	if kind == batch.LedgerOpen && s.number[id] == 1 {
		r.Spool = batch.SpoolAbsent
	}
	if edit != nil {
		edit(&r)
	}
	s.topic.write(r, s.now)
}

func (s *stage) stored(log string, through ...int64) {
	s.tables.stored[log] = map[int]int64{}
	for p, o := range through {
		if o >= 0 {
			s.tables.stored[log][p] = o
		}
	}
}

// round runs until everything is copied and returns the watermark.
func (s *stage) round() Standing {
	s.t.Helper()
	for range 5 {
		_, err := s.copier.round(s.t.Context())
		require.NoError(s.t, err)
	}
	return s.tables.whole()
}

func (s *stage) standing(id batch.ID) Standing {
	return s.tables.completeness[s.topic.id+"|"+id.String()]
}

func at(offsets ...int64) func(*batch.LedgerRecord) {
	return func(r *batch.LedgerRecord) {
		r.Offsets = map[int]int64{}
		for p, o := range offsets {
			r.Offsets[p] = o
		}
	}
}

func and(edits ...func(*batch.LedgerRecord)) func(*batch.LedgerRecord) {
	return func(r *batch.LedgerRecord) {
		for _, e := range edits {
			e(r)
		}
	}
}

func spooled(n uint64, since int) func(*batch.LedgerRecord) {
	return func(r *batch.LedgerRecord) {
		from := second(since)
		r.Pending, r.Oldest, r.CompleteUntil = n, &from, from
	}
}

func TestNobodyYet(t *testing.T) {
	s := newStage(t)
	w := s.round()
	assert.True(t, w.CompleteUntil.IsZero())
	assert.Zero(t, w.Collectors)
	assert.Equal(t, "no collector has been heard of", w.Why)
}

func TestOneCollector(t *testing.T) {
	s := newStage(t)
	a := batch.ForKey("c", "a")
	s.write(batch.LedgerOpen, a, 1, at(-1, 4))
	w := s.round()
	assert.Equal(t, second(1), w.CompleteUntil, "a new one has received nothing before it opened")
	s.write(batch.LedgerInterval, a, 10, at(3, 9))
	w = s.round()
	assert.Equal(t, second(1), w.CompleteUntil)
	assert.Equal(t, a, w.HeldBy)
	assert.Equal(t, "partition 1 is to be stored through offset 4; nothing is yet", w.Why)

	s.stored("c.log", 3, 8)
	w = s.round()
	assert.Equal(t, second(1), w.CompleteUntil)
	assert.Equal(t, "partition 1 is to be stored through offset 9; it is through 8", w.Why)
	s.stored("c.log", 3, 9)
	w = s.round()
	assert.Equal(t, second(10), w.CompleteUntil)
	assert.EqualValues(t, 1, w.Collectors)
	assert.Equal(t, "in step", w.Why)

	// Its spool holds it, and then the collector itself, by name.
	s.write(batch.LedgerInterval, a, 20, and(at(3, 9), spooled(7, 12)))
	w = s.round()
	assert.Equal(t, second(12), w.CompleteUntil)
	assert.Equal(t, "7 batches wait in its spool, the oldest received 2026-11-25 12:00:12.000 UTC", w.Why)
	s.now = second(60)
	w = s.round()
	assert.Equal(t, second(12), w.CompleteUntil)
	assert.Equal(t, "not heard of since 2026-11-25 12:00:20.000 UTC; 7 batches wait in its spool, the oldest received 2026-11-25 12:00:12.000 UTC", w.Why)
	assert.Equal(t, StateOpen, s.standing(a).State)

	s.write(batch.LedgerClose, a, 70, at(3, 12))
	s.stored("c.log", 3, 12)
	w = s.round()
	assert.Equal(t, second(70), w.CompleteUntil)
	assert.Equal(t, "no collector is open", w.Why)
	assert.Zero(t, w.Collectors)
	assert.Equal(t, StateClosed, s.standing(a).State)
}

func TestClockAheadOfTheBroker(t *testing.T) {
	s := newStage(t)
	a := batch.ForKey("c", "a")
	s.write(batch.LedgerOpen, a, 1, nil)
	s.write(batch.LedgerInterval, a, 5, func(r *batch.LedgerRecord) { r.At, r.CompleteUntil = second(3600), second(3600) })
	assert.Equal(t, second(5), s.round().CompleteUntil, "a collector that is not known yet may receive from now on")
}

func TestClockBehindTheBroker(t *testing.T) {
	s := newStage(t)
	a := batch.ForKey("c", "a")
	s.write(batch.LedgerOpen, a, 1, nil)
	s.write(batch.LedgerInterval, a, 3600, func(r *batch.LedgerRecord) { r.At, r.CompleteUntil = second(2), second(2) })
	w := s.round()
	assert.Equal(t, second(2), w.CompleteUntil)
	assert.Equal(t, "its receive times are 59m58s behind the broker's clock", w.Why)
}

func TestTheSlowestHolds(t *testing.T) {
	s := newStage(t)
	a, b := batch.ForKey("c", "a"), batch.ForKey("c", "b")
	s.write(batch.LedgerOpen, a, 1, nil)
	s.write(batch.LedgerOpen, b, 2, nil)
	s.write(batch.LedgerInterval, a, 30, nil)
	w := s.round()
	assert.Equal(t, second(2), w.CompleteUntil)
	assert.Equal(t, b, w.HeldBy)
	assert.EqualValues(t, 2, w.Collectors)
	s.write(batch.LedgerClose, b, 31, spooled(1, 20))
	assert.Equal(t, second(20), s.round().CompleteUntil, "closed, but something is left on its disk")
	s.restart()
	assert.Equal(t, second(20), s.round().CompleteUntil)
}

func TestWhatASpoolBringsBackTakesNothingBack(t *testing.T) {
	s := newStage(t)
	a := batch.ForKey("c", "a")
	s.write(batch.LedgerOpen, a, 1, nil)
	s.write(batch.LedgerInterval, a, 30, nil)
	require.Equal(t, second(30), s.round().CompleteUntil)
	// A crash brings back what had been drained.
	s.write(batch.LedgerOpen, a, 40, and(spooled(3, 10), func(r *batch.LedgerRecord) { r.Epoch, r.Number = 2, 1 }))
	assert.Equal(t, second(30), s.round().CompleteUntil)
	assert.Equal(t, second(30), s.standing(a).CompleteUntil)
	s.restart()
	assert.Equal(t, second(30), s.round().CompleteUntil)
}

func TestLostBatchesHoldUntilTheyAreGivenUp(t *testing.T) {
	s := newStage(t)
	a := batch.ForKey("c", "a")
	from := second(5)
	lost := func(n uint64) func(*batch.LedgerRecord) {
		return func(r *batch.LedgerRecord) { r.Lost, r.LostFrom = n, &from }
	}
	s.write(batch.LedgerOpen, a, 1, nil)
	s.write(batch.LedgerInterval, a, 30, lost(2))
	w := s.round()
	assert.Equal(t, second(5), w.CompleteUntil)
	assert.Equal(t, "2 acknowledged batches of its spool cannot be read any more, received 2026-11-25 12:00:05.000 UTC or later (sluice audit)", w.Why)
	retire := func(number, lost uint64) {
		s.topic.write(batch.LedgerRecord{Kind: batch.LedgerRetire, Collector: a, Epoch: 1, Number: number, Lost: lost, Log: "c.log", By: "o", Reason: "disk"}, s.now)
	}
	s.write(batch.LedgerInterval, a, 31, lost(2))
	retire(3, 2)
	assert.Equal(t, StateRetired, func() string { s.round(); return s.standing(a).State }())
	assert.Equal(t, "given up by o: disk", s.standing(a).Why)
	// It goes on, and counts; what was given up does not.
	for range 2 {
		s.write(batch.LedgerInterval, a, 40, lost(2))
		w = s.round()
		assert.Equal(t, second(40), w.CompleteUntil)
		assert.Equal(t, StateOpen, s.standing(a).State)
		s.restart()
	}
	s.write(batch.LedgerInterval, a, 50, lost(3))
	assert.Equal(t, second(40), s.round().CompleteUntil, "another one is lost")
	s.write(batch.LedgerClose, a, 60, lost(3))
	assert.Equal(t, second(40), s.round().CompleteUntil, "ended in order, but not with everything")
	assert.Equal(t, StateOpen, s.standing(a).State)
}

func TestRetired(t *testing.T) {
	s := newStage(t)
	a, b := batch.ForKey("c", "a"), batch.ForKey("c", "b")
	s.write(batch.LedgerOpen, a, 1, nil)
	s.write(batch.LedgerOpen, b, 1, nil)
	s.write(batch.LedgerInterval, a, 10, and(at(5), spooled(3, 5)))
	s.write(batch.LedgerInterval, b, 100, nil)
	require.Equal(t, second(1), s.round().CompleteUntil)
	s.topic.write(batch.LedgerRecord{Kind: batch.LedgerRetire, Collector: a, Epoch: 1, Number: 2, By: "o", Reason: "gone",
		Log: "c.log", Offsets: map[int]int64{0: 9}}, s.now)
	require.Equal(t, second(1), s.round().CompleteUntil, "what it brought into Kafka is not given up")
	s.stored("c.log", 8)
	require.Equal(t, second(5), s.round().CompleteUntil)
	s.restart()
	require.Equal(t, second(5), s.round().CompleteUntil)
	s.stored("c.log", 9)
	assert.Equal(t, second(100), s.round().CompleteUntil)
	// It returns, with what it had.
	s.write(batch.LedgerOpen, a, 110, and(at(5), spooled(3, 5), func(r *batch.LedgerRecord) { r.Epoch, r.Number = 2, 1 }))
	s.write(batch.LedgerInterval, b, 120, nil)
	w := s.round()
	assert.Equal(t, second(100), w.CompleteUntil, "it stands, and does not go back")
	assert.Equal(t, a, w.HeldBy)
}

// The batches topic is deleted and made again: what was not stored of the old one
// is not passed over.
func TestBatchesTopicMadeAgain(t *testing.T) {
	s := newStage(t)
	a := batch.ForKey("c", "a")
	s.write(batch.LedgerOpen, a, 1, nil)
	s.write(batch.LedgerInterval, a, 10, at(5))
	again := func(r *batch.LedgerRecord) { r.Log = "c.again" }
	s.write(batch.LedgerInterval, a, 20, and(at(2), again))
	s.stored("c.log", 4)
	s.stored("c.again", 50)
	for range 2 {
		w := s.round()
		assert.Equal(t, second(1), w.CompleteUntil)
		assert.Equal(t, "log c.log is gone and was not stored through offset 5 of partition 0 (sluice audit)", w.Why)
		s.restart()
	}
	s.topic.write(batch.LedgerRecord{Kind: batch.LedgerRetire, Collector: a, Epoch: 1, Number: 3, By: "o", Reason: "gone", Log: "c.again"}, s.now)
	assert.Equal(t, second(20), s.round().CompleteUntil)
	s.write(batch.LedgerInterval, a, 30, and(at(2), again))
	assert.Equal(t, second(30), s.round().CompleteUntil)
	s.restart()
	assert.Equal(t, second(30), s.round().CompleteUntil)
}

// The ledger topic is deleted and made again: collectors that were known still hold.
func TestLedgerTopicMadeAgain(t *testing.T) {
	s := newStage(t)
	a, b := batch.ForKey("c", "a"), batch.ForKey("c", "b")
	s.write(batch.LedgerOpen, a, 1, nil)
	s.write(batch.LedgerOpen, b, 1, nil)
	s.write(batch.LedgerInterval, a, 10, nil)
	s.write(batch.LedgerInterval, b, 11, spooled(1, 9))
	require.Equal(t, second(9), s.round().CompleteUntil)
	s.topic = &topic{id: "c.two"}
	s.copier.ledger = s.topic
	s.write(batch.LedgerInterval, a, 20, nil)
	w := s.round()
	assert.Equal(t, second(9), w.CompleteUntil)
	assert.Equal(t, b, w.HeldBy)
	s.write(batch.LedgerInterval, b, 30, nil)
	assert.Equal(t, second(20), s.round().CompleteUntil)
	assert.Equal(t, second(30), s.standing(b).CompleteUntil)
}

func TestLedgerLosesItsEnd(t *testing.T) {
	s := newStage(t)
	a := batch.ForKey("c", "a")
	s.write(batch.LedgerOpen, a, 1, nil)
	s.write(batch.LedgerInterval, a, 10, nil)
	s.write(batch.LedgerInterval, a, 11, nil)
	require.Equal(t, second(11), s.round().CompleteUntil)
	s.topic.entries, s.topic.end = s.topic.entries[:1], 1
	s.write(batch.LedgerInterval, a, 20, nil)
	assert.Equal(t, second(20), func() time.Time { s.round(); s.write(batch.LedgerInterval, a, 20, nil); return s.round().CompleteUntil }())
}

// Other regions, or topics of another prefix, write into the same database.
func TestSeveralLedgers(t *testing.T) {
	s := newStage(t)
	a, b := batch.ForKey("c", "a"), batch.ForKey("c", "b")
	s.write(batch.LedgerOpen, a, 1, nil)
	s.write(batch.LedgerInterval, a, 10, nil)
	require.Equal(t, second(10), s.round().CompleteUntil)
	here, topicHere := s.copier, s.topic
	s.topic = &topic{id: "d.one"}
	s.restart()
	there := s.copier
	s.round()
	s.copier, s.topic = here, topicHere
	s.write(batch.LedgerInterval, a, 20, nil)
	w := s.round()
	assert.Equal(t, second(10), w.CompleteUntil, "what is received there is not known yet")
	assert.Equal(t, "ledger d.one (t.ledger): no collector has been heard of", w.Why)
	s.now = second(100)
	assert.Equal(t, "ledger d.one (t.ledger): no sink has looked since 2026-11-25 12:00:10.000 UTC; if it is gone for good: sluice audit --retire d.one",
		s.round().Why)

	s.copier, s.topic = there, there.ledger.(*topic)
	s.write(batch.LedgerOpen, b, 15, nil)
	w = s.round()
	assert.Equal(t, second(15), w.CompleteUntil)
	assert.Equal(t, b, w.HeldBy)
	assert.EqualValues(t, 2, w.Collectors)
	s.write(batch.LedgerInterval, b, 25, nil)
	w = s.round()
	assert.Equal(t, second(20), w.CompleteUntil)
	assert.Equal(t, a, w.HeldBy)

	// Given up, until it is heard of again.
	gone := s.tables.completeness["d.one|"+batch.ID{}.String()]
	gone.State = StateRetired
	require.NoError(t, s.tables.InsertCompleteness(t.Context(), []Standing{gone}))
	s.copier, s.topic = here, topicHere
	s.write(batch.LedgerInterval, a, 50, nil)
	assert.Equal(t, second(50), s.round().CompleteUntil)
}

func TestUnreadableRecordHolds(t *testing.T) {
	s := newStage(t)
	a := batch.ForKey("c", "a")
	s.write(batch.LedgerOpen, a, 1, nil)
	s.write(batch.LedgerClose, a, 10, nil)
	require.Equal(t, StateClosed, func() string { s.round(); return s.standing(a).State }())
	s.topic.append(a.String()+"/00000000000000ff", []byte(`{"kind":"paused","collector":"`+a.String()+`"}`), second(20))
	s.topic.append("somebody", []byte("{"), second(21))
	s.topic.append(a.String()+"/0000000000000001", nil, second(22))
	for range 2 {
		w := s.round()
		assert.Equal(t, second(10), w.CompleteUntil)
		assert.Equal(t, a, w.HeldBy)
		assert.Equal(t, StateUnreadable, s.standing(a).State)
		s.restart()
	}
	s.write(batch.LedgerInterval, a, 30, nil)
	assert.Equal(t, second(30), s.round().CompleteUntil)
}

// Records that wait are bounded, and the watermark goes on in steps.
func TestRecordsThatWaitAreBounded(t *testing.T) {
	s := newStage(t)
	a := batch.ForKey("c", "a")
	s.write(batch.LedgerOpen, a, 1, at(0))
	const n = 20_000
	for i := 1; i <= n; i++ {
		s.write(batch.LedgerInterval, a, 1+i, at(int64(i)))
	}
	s.round()
	assert.LessOrEqual(t, len(s.copier.s.collectors[a].waiting), maxWaiting)
	last := s.tables.whole().CompleteUntil
	for i := int64(0); i <= n; i += n / 50 {
		s.stored("c.log", i)
		now := s.round().CompleteUntil
		assert.False(t, now.Before(last))
		assert.WithinDuration(t, second(1+int(i)), now, n/200*time.Second)
		last = now
	}
	assert.Equal(t, second(1+n), last)
}

// shared is a topic that is written and read at once.
type shared struct {
	mu sync.Mutex
	topic
}

func (s *shared) ID(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.topic.ID(ctx)
}

func (s *shared) Bounds(ctx context.Context) (batch.Bounds, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.topic.Bounds(ctx)
}

func (s *shared) Read(ctx context.Context, from int64, maxWait time.Duration) ([]Entry, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.topic.Read(ctx, from, maxWait)
}

func (s *shared) write(r batch.LedgerRecord, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.topic.write(r, at)
}

func (s *shared) setAway(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tb := &shared{topic: topic{id: "c.one"}}, newTables()
		reg := prometheus.NewRegistry()
		c := New(Config{Topic: "t.ledger"}, l, tb, slog.New(slog.DiscardHandler), NewMetrics(reg))
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		// Generations of the group may overlap for a moment: they take turns.
		for range 2 {
			done.Go(func() { c.Run(ctx) })
		}
		age := func() float64 {
			families, err := reg.Gather()
			require.NoError(t, err)
			for _, f := range families {
				if f.GetName() == "sluice_watermark_seconds" {
					return f.GetMetric()[0].GetGauge().GetValue()
				}
			}
			return -1
		}
		synctest.Wait()
		assert.Equal(t, -1.0, age(), "nothing is known")
		a := batch.Random()
		l.write(batch.LedgerRecord{Kind: batch.LedgerOpen, Collector: a, Epoch: 1, Number: 1, At: time.Now(), CompleteUntil: time.Now(),
			Log: "c.log", Spool: batch.SpoolAbsent}, time.Now())
		retry.Sleep(ctx, 10*time.Second)
		synctest.Wait()
		assert.Equal(t, 10.0, age())
		l.setAway(true)
		retry.Sleep(ctx, time.Minute)
		synctest.Wait()
		assert.Equal(t, 70.0, age(), "it grows while nothing can be read")
		l.setAway(false)
		l.write(batch.LedgerRecord{Kind: batch.LedgerInterval, Collector: a, Epoch: 1, Number: 2, At: time.Now(), CompleteUntil: time.Now(), Log: "c.log"}, time.Now())
		retry.Sleep(ctx, 10*time.Second)
		synctest.Wait()
		assert.Equal(t, 10.0, age())
		cancel()
		done.Wait()
		assert.Equal(t, -1.0, age(), "another sink shows it now")
		assert.Equal(t, 2, testutil.CollectAndCount(reg))
	})
}
