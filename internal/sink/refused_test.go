package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
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
	"sluice/pkg/schema"
)

func newRig(t *testing.T, seed uint64) *rig {
	dead, log := &memoryDead{}, newMemoryLog(1, seed)
	return &rig{t: t, log: log, source: log, store: newMemoryStore(), dead: dead, cfg: Config{
		Topic: "t.batches", FlushRows: 500_000, FlushBytes: 64 << 20,
		FlushInterval: time.Second, FlushIntervalMax: 10 * time.Second, DedupWindow: 720 * time.Hour, Dead: dead,
	}}
}

// start runs a sink that lives for l (nil: until it is stopped).
func (r *rig) start(l *life) (s *Sink, metrics *prometheus.Registry, stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	if l == nil {
		l = &life{steps: -1}
	}
	l.end = cancel
	cfg := r.cfg
	cfg.Dead = mortalDead{r.dead, l}
	metrics = prometheus.NewPedanticRegistry()
	s = New(cfg, r.source, mortalStore{r.store, l}, slog.New(slog.DiscardHandler), NewMetrics(metrics))
	m := &member{log: r.log}
	var wg sync.WaitGroup
	wg.Go(func() {
		assert.NoError(r.t, s.Run(ctx, mortalGroup{m, l}))
		if m.current != nil {
			m.current.wg.Wait()
		}
	})
	return s, metrics, func() { cancel(); wg.Wait() }
}

func (r *rig) drained() bool {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	c := r.log.committed[0]
	i, err := parseIntent(c.metadata)
	return err == nil && c.offset == int64(len(r.log.records[0])) && i.Token == ""
}

// until waits, on the fake clock, for something to become true.
func (r *rig) until(what string, within time.Duration, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(within); !ok(); {
		require.True(r.t, time.Now().Before(end) && retry.Sleep(r.t.Context(), 10*time.Millisecond), "still not: %s", what)
	}
}

const poison = "poison"

func refusePoison(_ schema.Table, e *schema.Event) bool {
	return e.Variant == poison || e.Name == poison
}

// poisoned is a batch of exposures and custom events of which some are refused.
func poisoned(key string, n int, guilty func(i int) bool) *schema.Batch {
	b := sample(key, n)
	b.Events = b.Events[:n]
	for i := range b.Events {
		e := &b.Events[i]
		if i%4 == 3 {
			*e = schema.Event{Kind: schema.KindEvent, Index: e.Index, Name: "paid", UnitID: e.UnitID}
		}
		if guilty(i) {
			if e.Kind == schema.KindEvent {
				e.Name = poison
			} else {
				e.Variant = poison
			}
		}
	}
	b.ComputeDigest()
	b.Resolve(time.Now(), schema.Limits{Past: 720 * time.Hour, Future: time.Hour})
	return b
}

// assertAside checks every event of the log: the good ones are stored once, the
// guilty ones are one dead letter each, and on the dead topic; and batches counts
// them so.
func (r *rig) assertAside() (refused int) {
	t := r.t
	t.Helper()
	got := r.store.take()
	stored := map[place]int{}
	for _, table := range []schema.Table{schema.Exposures, schema.Events} {
		for _, row := range got[table].Events {
			assert.False(t, refusePoison(table, row.Event))
			stored[placeOf(&row)]++
		}
	}
	letters := map[batch.ID][]schema.DeadLetter{}
	for _, l := range got[schema.DeadLetters].Dead {
		if l.Stage == schema.StageSink {
			letters[l.ID] = append(letters[l.ID], l)
		}
	}
	rows := map[int64][]schema.BatchRow{}
	for _, row := range got[schema.Batches].Batches {
		rows[row.Offset] = append(rows[row.Offset], row)
	}
	good := 0
	for _, d := range r.log.records[0] {
		var b schema.Batch
		require.NoError(t, schema.DecodeRecord(d.Value, &b))
		aside := 0
		for i := range b.Events {
			e := &b.Events[i]
			if !refusePoison("", e) {
				good++
				assert.Equal(t, 1, stored[place{d.Offset, e.Index, b.ID}], "offset %d, event %d", d.Offset, e.Index)
				continue
			}
			aside++
			id := batch.DeadLetterID(b.ID, d.Digest, e.Index, schema.StageSink)
			if !assert.Len(t, letters[id], 1, "offset %d, event %d", d.Offset, e.Index) {
				continue
			}
			l := letters[id][0]
			assert.Equal(t, reasonRefused, l.Reason)
			assert.NotEmpty(t, l.Error)
			assert.Equal(t, string(schema.AppendEventJSON(nil, e)), string(l.Bytes))
			assert.NotEmpty(t, r.dead.letters[id.String()], "on the dead topic")
			for _, w := range r.dead.letters[id.String()] {
				assert.Equal(t, string(l.Bytes), w.value)
				assert.Equal(t, map[string]string{"project": "p", "batch-id": b.ID.String(), "batch-index": fmt.Sprint(e.Index), "reason": reasonRefused,
					"stage": "sink", "log": testLog, "partition": "0", "offset": fmt.Sprint(d.Offset)}, w.headers)
			}
		}
		refused += aside
		if assert.Len(t, rows[d.Offset], 1) {
			row := rows[d.Offset][0]
			assert.Equal(t, schema.Stored, row.Outcome)
			assert.Equal(t, len(b.Events)-aside, row.Events)
			assert.Equal(t, len(b.Rejected)+aside, row.Rejected)
		}
	}
	assert.Len(t, stored, good)
	assert.Len(t, letters, refused)
	assert.Len(t, r.dead.letters, refused)
	return refused
}

// One guilty event in a block of 100,000: one dead letter, every neighbour stored, a
// number of inserts that goes with the logarithm, and parts that halve.
func TestOneRefusedEventCostsNoNeighbour(t *testing.T) {
	for name, at := range map[string][2]int{"first": {0, 0}, "in the middle": {500, 51}, "custom event": {123, 3}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 1)
				r.store.refuses = refusePoison
				r.cfg.FlushInterval, r.cfg.FlushIntervalMax = time.Minute, time.Minute // one block
				for i := range 1000 {
					r.log.append(0, poisoned(fmt.Sprint(i), 100, func(j int) bool { return i == at[0] && j == at[1] }))
				}
				_, metrics, stop := r.start(nil)
				r.until("drained", 10*time.Minute, r.drained)
				stop()
				assert.Equal(t, 1, r.assertAside())
				// Each level costs two; the block itself comes before it, and what was not
				// sent because of it after it.
				assert.LessOrEqual(t, len(r.store.inserts()), 2*17+4)
				assert.GreaterOrEqual(t, r.store.inserts()[0], 25_000)
				assert.Equal(t, 1, r.dead.writes)
				assert.NoError(t, testutil.GatherAndCompare(metrics, strings.NewReader(`
# HELP sluice_dead_total Rows written to dead_letters, by reason.
# TYPE sluice_dead_total counter
sluice_dead_total{reason="missing_field"} 1000
sluice_dead_total{reason="refused"} 1
`), "sluice_dead_total"))
			})
		})
	}
}

func TestHalves(t *testing.T) {
	rows := func(offsets ...int64) (out []schema.EventRow) {
		for i, o := range offsets {
			out = append(out, schema.EventRow{Offset: o, Event: &schema.Event{Index: uint32(i)}})
		}
		return out
	}
	for name, tt := range map[string]struct {
		offsets []int64
		left    int
	}{
		"two of one record":      {[]int64{5, 5}, 1},
		"two records":            {[]int64{5, 6}, 1},
		"one record":             {[]int64{5, 5, 5, 5, 5}, 2},
		"a border in the middle": {[]int64{5, 5, 6, 6}, 2},
		"nearer before":          {[]int64{5, 5, 6, 6, 6, 6, 6}, 2},
		"nearer behind":          {[]int64{5, 5, 5, 5, 6, 6}, 4},
		"a large first":          {[]int64{5, 5, 5, 5, 5, 5, 6}, 6},
		"a large last":           {[]int64{5, 6, 6, 6, 6, 6, 6}, 1},
		"as near on both sides":  {[]int64{5, 6, 6, 7}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			all := rows(tt.offsets...)
			left, right := halves(all)
			assert.Equal(t, all[:tt.left], left)
			assert.Equal(t, all[tt.left:], right)
		})
	}
}

// Random logs with random guilty events, inserts that fail before or after they
// stored their rows, refusals of what was stored all the same, a dead topic with the
// same faults, and owners that are killed at random steps.
func TestRefusedEventsThroughCrashes(t *testing.T) {
	for seed := range uint64(50) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 7))
				r := newRig(t, seed)
				r.cfg.FlushRows = 50 + random.IntN(2000)
				tables := random.IntN(3) // exposures, events, both
				r.store.refuses = refusePoison
				faults := random.Float64() * 0.2
				// Both locks of the store and of the topic are held when it is asked.
				var mu sync.Mutex
				draw := func() float64 { mu.Lock(); defer mu.Unlock(); return random.Float64() }
				fault := func() (before, after error) {
					switch d := draw(); {
					case d < faults/2:
						return errInjected, nil
					case d < faults:
						return nil, errInjected
					}
					return nil, nil
				}
				r.store.fault = func(table schema.Table, rows int) (before, after error) {
					if before, after = fault(); before != nil || after != nil {
						return before, after
					}
					if table == schema.Exposures || table == schema.Events {
						switch d := draw(); {
						case d < faults/2:
							return nil, retry.Mark(memoryContentError{errors.New("stored, but a view refused it")}, retry.Permanent)
						case d < faults && rows > 1:
							return nil, errHalf
						}
					}
					return nil, nil
				}
				r.dead.fault = fault
				r.log.unsureCommit = faults / 2
				rate := 0.03 * random.Float64()
				// As many as a block may have, however it is cut.
				event, last, left, apart := 0, 0, refusedFew, 0
				if random.IntN(2) == 0 {
					left, apart = 1000, refusedShare
				}
				for i := range 40 + random.IntN(100) {
					r.log.append(0, poisoned(fmt.Sprint(i), 1+random.IntN(60), func(j int) bool {
						event++
						if (tables == 2 || tables == 1 == (j%4 == 3)) && left > 0 && event-last > apart && random.Float64() < rate {
							last, left = event, left-1
							return true
						}
						return false
					}))
				}
				for range random.IntN(6) {
					l := &life{steps: random.IntN(60), last: random.IntN(2) == 0}
					_, _, stop := r.start(l)
					r.until("drained or killed", time.Hour, func() bool { return l.over() || r.drained() })
					stop()
				}
				_, _, stop := r.start(nil)
				r.until("drained", time.Hour, r.drained)
				stop()
				r.assertAside()
			})
		})
	}
}

// A new owner finds half of the work done, wherever the first one was killed.
func TestRefusedEventCrashAtEveryStep(t *testing.T) {
	for step := range 80 {
		for _, last := range []bool{false, true} {
			t.Run(fmt.Sprint("step ", step, " happens ", last), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t, 1)
					r.store.refuses = refusePoison
					for i := range 20 {
						r.log.append(0, poisoned(fmt.Sprint(i), 10, func(j int) bool { return i == 7 && j == 2 || i == 12 && j == 3 }))
					}
					l := &life{steps: step, last: last}
					_, _, stop := r.start(l)
					r.until("drained or killed", time.Minute, func() bool { return l.over() || r.drained() })
					stop()
					_, _, stop = r.start(nil)
					r.until("drained", time.Minute, r.drained)
					stop()
					assert.Equal(t, 2, r.assertAside())
				})
			})
		}
	}
}

// Too much that is refused is not the events' fault: the partition waits, with
// nothing put aside, and goes on by itself when it is mended.
func TestTooMuchRefusedStopsThePartition(t *testing.T) {
	for name, tt := range map[string]struct {
		batches, events int
		guilty          func(i, j int) bool
		waits           bool
	}{
		"everything":            {20, 100, func(int, int) bool { return true }, true},
		"more than one percent": {20, 100, func(i, j int) bool { return j%50 == 0 }, true},
		"one batch of many":     {20, 100, func(i, j int) bool { return i == 3 && j < 30 }, true},
		"a percent":             {20, 100, func(i, j int) bool { return j == 0 }, false},
		"a handful of a few":    {1, 20, func(i, j int) bool { return j < 10 }, false},
		"more than a handful":   {1, 20, func(i, j int) bool { return j < 11 }, true},
		"both kinds, together":  {1, 20, func(i, j int) bool { return j < 12 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 1)
				r.cfg.FlushInterval, r.cfg.FlushIntervalMax = 10*time.Second, 10*time.Second // one block
				var mended bool
				r.store.refuses = func(_ schema.Table, e *schema.Event) bool { return !mended && refusePoison("", e) }
				for i := range tt.batches {
					r.log.append(0, poisoned(fmt.Sprint(i), tt.events, func(j int) bool { return tt.guilty(i, j) }))
				}
				s, metrics, stop := r.start(nil)
				defer stop()
				if !tt.waits {
					r.until("drained", time.Minute, r.drained)
					r.assertAside()
					return
				}
				retry.Sleep(t.Context(), 5*time.Minute)
				synctest.Wait()
				assert.False(t, r.drained())
				assert.Empty(t, r.dead.letters)
				assert.Empty(t, r.store.take()[schema.DeadLetters].Dead)
				assert.Equal(t, "waiting", s.Status()[0].State)
				assert.Contains(t, s.Status()[0].Detail, "ClickHouse refuses too much")
				assert.Positive(t, value(t, metrics, "sluice_sink_alarms_total", "refused"))
				r.store.mu.Lock()
				mended = true
				r.store.mu.Unlock()
				r.until("drained", time.Minute, r.drained)
				assert.Empty(t, r.dead.letters)
				got := r.store.take()
				assert.Equal(t, tt.batches*tt.events, len(got[schema.Exposures].Events)+len(got[schema.Events].Events))
				for _, row := range got[schema.Batches].Batches {
					assert.Equal(t, tt.events, row.Events)
				}
			})
		})
	}
}

// Where everything is refused it must not go to dead_letters block by small block.
func TestEverythingRefusedInSmallBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.store.refuses = refusePoison
		s, _, stop := r.start(nil)
		defer stop()
		for i := range 30 {
			r.log.append(0, poisoned(fmt.Sprint(i), 1, func(int) bool { return true }))
			retry.Sleep(t.Context(), 5*time.Second)
		}
		assert.Equal(t, "waiting", s.Status()[0].State)
		assert.Len(t, r.dead.letters, refusedFew)
	})
}

// The same share of guilty events between good ones is theirs, also in small blocks.
func TestFewRefusedInSmallBlocksGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.store.refuses = refusePoison
		_, _, stop := r.start(nil)
		defer stop()
		for i := range 30 {
			r.log.append(0, poisoned(fmt.Sprint(i), 2, func(j int) bool { return j == 0 }))
			retry.Sleep(t.Context(), 5*time.Second)
		}
		r.until("drained", time.Minute, r.drained)
		assert.Equal(t, 30, r.assertAside())
	})
}

// What dead_letters and batches refuse cannot be put aside.
func TestRefusedBooksStopThePartition(t *testing.T) {
	for name, refuse := range map[string]func(*memoryStore, bool){
		"dead_letters": func(s *memoryStore, on bool) { s.noDead = on },
		"batches":      func(s *memoryStore, on bool) { s.noBatch = on },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 1)
				r.store.refuses = refusePoison
				refuse(r.store, true)
				for i := range 20 {
					r.log.append(0, poisoned(fmt.Sprint(i), 10, func(j int) bool { return i == 7 && j == 2 }))
				}
				s, metrics, stop := r.start(nil)
				defer stop()
				retry.Sleep(t.Context(), 5*time.Minute)
				assert.Equal(t, "waiting", s.Status()[0].State)
				assert.Contains(t, s.Status()[0].Detail, name+" takes nothing")
				assert.Positive(t, value(t, metrics, "sluice_sink_alarms_total", "permanent"))
				assert.Empty(t, r.dead.letters)
				r.store.mu.Lock()
				refuse(r.store, false)
				r.store.mu.Unlock()
				r.until("drained", time.Minute, r.drained)
				assert.Equal(t, 1, r.assertAside())
			})
		})
	}
}

// An earlier owner had put the event aside when it was killed, and the table was
// mended since: it stays aside.
func TestRefusedEventStaysAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.store.refuses = refusePoison
		r.dead.fault = func() (error, error) { return errInjected, nil }
		r.log.append(0, poisoned("a", 10, func(j int) bool { return j == 2 }))
		_, _, stop := r.start(nil)
		r.until("put aside", time.Minute, func() bool { return len(r.store.take()[schema.ProgressTab].Progress) > 0 })
		stop()
		r.store.refuses, r.dead.fault = nil, nil
		_, _, stop = r.start(nil)
		r.until("drained", time.Minute, r.drained)
		stop()
		assert.Equal(t, 1, r.assertAside())
	})
}

// The offset is not committed before the dead topic has the letters.
func TestDeadTopicBeforeTheOffset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.dead.fault = func() (error, error) { return errInjected, nil }
		r.log.append(0, sample("a", 3))
		r.log.append(0, sample("b", 3))
		r.log.records[0][1].Value = []byte{0xff, 0xff, 0xff}
		s, _, stop := r.start(nil)
		defer stop()
		retry.Sleep(t.Context(), time.Minute)
		assert.False(t, r.drained())
		assert.Equal(t, "waiting", s.Status()[0].State)
		r.dead.mu.Lock()
		r.dead.fault = func() (error, error) { return nil, nil }
		r.dead.mu.Unlock()
		r.until("drained", time.Minute, r.drained)
		id := r.log.records[0][1].BatchID
		letter := r.dead.letters[batch.DeadLetterID(id, r.log.records[0][1].Digest, 0, schema.StageSink).String()]
		require.Len(t, letter, 1)
		assert.Equal(t, memoryLetter{"\xff\xff\xff", map[string]string{"project": "p", "batch-id": id.String(), "batch-index": "0",
			"reason": "undecodable", "stage": "sink", "log": testLog, "partition": "0", "offset": "1"}}, letter[0])
		assert.Len(t, r.dead.letters, 1, "what the collector rejected is in the table only")
	})
}

// value adds up the samples of a metric that have a label's value.
func value(t *testing.T, r prometheus.Gatherer, name, label string) float64 {
	t.Helper()
	families, err := r.Gather()
	require.NoError(t, err)
	sum := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == name && l.GetValue() == label {
					sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
				}
			}
		}
	}
	return sum
}
