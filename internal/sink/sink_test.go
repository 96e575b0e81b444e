package sink

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/clickhouse"
	"sluice/internal/embedded/teststack"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

const settle = 60 * time.Second

// bench is a log in memory, a database of its own in a real ClickHouse, and
// what is expected to be in it.
type bench struct {
	t     *testing.T
	log   *memoryLog
	store *clickhouse.Client
	cfg   Config
}

type storeAdapter struct{ *clickhouse.Client }

func (s storeAdapter) OpenInsert(ctx context.Context, t schema.Table, at schema.Position, token string) (Insert, error) {
	in, err := s.Client.OpenInsert(ctx, t, at, token)
	if err != nil {
		return nil, err
	}
	return in, nil
}

func newBench(t *testing.T, partitions int) *bench {
	return newBenchOn(t, teststack.DSN(t), partitions)
}

func newBenchOn(t *testing.T, dsn string, partitions int) *bench {
	cfg := clickhouse.Config{DSN: dsn, InsertTimeout: 20 * time.Second}
	require.NoError(t, clickhouse.Migrate(t.Context(), cfg, 720*time.Hour))
	store, err := clickhouse.Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, store.Close())
	})
	return &bench{t: t, log: newMemoryLog(partitions, 1), store: store, cfg: Config{
		Topic: "t.batches", FlushRows: 500, FlushBytes: 64 << 20,
		FlushInterval: 50 * time.Millisecond, FlushIntervalMax: 200 * time.Millisecond, DedupWindow: 720 * time.Hour,
	}}
}

// start runs a sink and returns what stops it.
func (b *bench) start(store Store) (s *Sink, stop func()) { return b.startFrom(b.log, store) }

func (b *bench) startFrom(source Source, store Store) (s *Sink, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	s = New(b.cfg, source, store, slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()))
	var wg sync.WaitGroup
	m := &member{log: b.log}
	wg.Go(func() {
		assert.NoError(b.t, s.Run(ctx, m))
		if m.current != nil {
			m.current.wg.Wait()
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	b.t.Cleanup(stop)
	return s, stop
}

func (b *bench) count(query string) int {
	b.t.Helper()
	rows, err := b.store.Query(context.Background(), query)
	require.NoError(b.t, err)
	defer rows.Close()
	var n uint64
	require.True(b.t, rows.Next())
	require.NoError(b.t, rows.Scan(&n))
	return int(n)
}

// drained waits until everything in the log is committed.
func (b *bench) drained() {
	b.t.Helper()
	require.Eventually(b.t, func() bool {
		b.log.mu.Lock()
		defer b.log.mu.Unlock()
		for p, rs := range b.log.records {
			c := b.log.committed[p]
			i, err := parseIntent(c.metadata)
			if len(rs) > 0 && (err != nil || c.offset != b.log.start[p]+int64(len(rs)) || i.Token != "") {
				return false
			}
		}
		return true
	}, settle, 20*time.Millisecond)
}

// sample is a batch of n exposures, a custom event and a rejected one.
func sample(key string, n int) *schema.Batch {
	b := &schema.Batch{Project: "p", Source: "native", SDK: "test/1", ID: batch.ForKey("p", key)}
	for i := range n {
		b.Events = append(b.Events, schema.Event{Kind: schema.KindExposure, Index: uint32(i), Experiment: "exp", Variant: "a",
			UnitID: fmt.Sprintf("%s-%d", key, i), Attributes: []schema.Attribute{{Key: "k", Value: "v"}}})
	}
	b.Events = append(b.Events, schema.Event{Kind: schema.KindEvent, Index: uint32(n), Name: "paid", UnitID: key})
	b.Rejected = []schema.Rejected{{Index: uint32(n) + 1, Code: schema.CodeMissingField, Field: "unit_id", Bytes: []byte(`{"x":1}`), Size: 7}}
	b.Count = uint32(n) + 2
	b.ComputeDigest()
	b.Resolve(time.Now(), schema.Limits{Past: 720 * time.Hour, Future: time.Hour})
	return b
}

// assertOnce checks that batches × perBatch exposures (and one event and one
// dead letter a batch) are stored, each once even without FINAL.
func (b *bench) assertOnce(batches, perBatch int) {
	b.t.Helper()
	assert.Equal(b.t, batches*perBatch, b.count("SELECT count() FROM exposures"), "exposures")
	assert.Equal(b.t, batches*perBatch, b.count("SELECT uniqExact(event_id) FROM exposures"), "event ids")
	assert.Equal(b.t, batches, b.count("SELECT count() FROM events"), "events")
	assert.Equal(b.t, batches, b.count("SELECT count() FROM dead_letters WHERE stage = 'collector'"), "dead letters")
	assert.Equal(b.t, batches, b.count("SELECT countIf(outcome = 'stored') FROM batches"), "stored batches")
}

func TestStoresEachRecordOnce(t *testing.T) {
	b := newBench(t, 3)
	for i := range 60 {
		b.log.append(i%3, sample(fmt.Sprint(i), 20))
	}
	_, stop := b.start(storeAdapter{b.store})
	b.drained()
	stop()
	b.assertOnce(60, 20)
	assert.Equal(t, 3, b.count("SELECT count() FROM progress FINAL WHERE through = 19"))
}

func TestFirstCopyWins(t *testing.T) {
	for name, restart := range map[string]bool{"from memory": false, "from batches": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 1)
			same := sample("k", 5)
			other := sample("k", 6)
			b.log.append(0, same)
			b.log.append(0, same) // in one block
			_, stop := b.start(storeAdapter{b.store})
			b.drained()
			if restart {
				stop()
				_, stop = b.start(storeAdapter{b.store})
			}
			b.log.append(0, same)
			b.log.append(0, other)
			b.log.append(0, sample("next", 5))
			b.drained()
			stop()
			assert.Equal(t, 10, b.count("SELECT count() FROM exposures"))
			assert.Equal(t, 2, b.count("SELECT countIf(outcome = 'stored') FROM batches"))
			assert.Equal(t, 2, b.count("SELECT countIf(outcome = 'duplicate') FROM batches"))
			assert.Equal(t, 1, b.count("SELECT countIf(outcome = 'conflict') FROM batches"))
			assert.Equal(t, 8, b.count("SELECT count() FROM dead_letters WHERE stage = 'conflict'"), "the other copy is kept whole")
		})
	}
}

func TestUndecodableRecordCostsOneDeadLetter(t *testing.T) {
	b := newBench(t, 1)
	b.log.append(0, sample("a", 3))
	b.log.append(0, sample("b", 3))
	b.log.append(0, sample("c", 3))
	b.log.records[0][1].Value = []byte{0xff, 0xff, 0xff}
	_, stop := b.start(storeAdapter{b.store})
	b.drained()
	stop()
	assert.Equal(t, 6, b.count("SELECT count() FROM exposures"))
	assert.Equal(t, 1, b.count("SELECT count() FROM dead_letters WHERE stage = 'sink' AND reason = 'undecodable' AND bytes = unhex('FFFFFF')"))
	assert.Equal(t, 1, b.count("SELECT countIf(outcome = 'dead') FROM batches"))
}

// Every insert may fail before it stored anything or after it stored
// everything, every commit may happen and report an error, and the sink is
// stopped and started again on the way.
// A record whose head is sound and whose events are not is found when its block is
// written. It decides nothing: the sound copy behind it, in the same block, is the first.
func TestRecordBrokenInsideAnEvent(t *testing.T) {
	for name, horizon := range map[string]bool{"written": false, "read back": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 1)
			s := sample("x", 3)
			b.log.append(0, s)
			broken := bytes.Clone(b.log.records[0][0].Value)
			// The kind of the first event becomes one that nobody knows.
			at := bytes.Index(broken, []byte{0x08, 0x01})
			require.Positive(t, at)
			broken[at+1] = 9
			_, err := schema.ReadHead(broken)
			require.NoError(t, err)
			require.Error(t, schema.DecodeRecord(broken, &schema.Batch{}))
			b.log.records[0][0].Value = broken
			b.log.append(0, s)
			if horizon { // as if an earlier owner had died behind its intent
				b.log.committed[0] = commit{0, intent{Log: b.log.id, First: 0, Last: 1, Token: "t"}.String()}
			}
			_, stop := b.start(storeAdapter{b.store})
			b.drained()
			stop()
			b.assertOnce(1, 3)
			assert.Equal(t, 1, b.count("SELECT countIf(outcome = 'dead') FROM batches"))
			assert.Equal(t, 1, b.count("SELECT count() FROM dead_letters WHERE stage = 'sink' AND reason = 'undecodable'"))
		})
	}
}

func TestFaultsAtEveryStep(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			b := newBench(t, 2)
			b.log.unsureCommit = 0.1
			r := rand.New(rand.NewPCG(seed, 1))
			store := &faultyStore{Store: storeAdapter{b.store}, random: rand.New(rand.NewPCG(seed, 2)), before: 0.15, after: 0.15}
			_, stop := b.start(store)
			const batches = 120
			for i := range batches {
				b.log.append(r.IntN(2), sample(fmt.Sprint(i), 10))
				if i%30 == 29 {
					stop()
					_, stop = b.start(store)
				}
			}
			b.log.mu.Lock()
			b.log.unsureCommit = 0.05
			b.log.mu.Unlock()
			b.drained()
			stop()
			b.assertOnce(batches, 10)
		})
	}
}

// A second sink takes over while the first still believes that it owns the
// partition, and inserts the same records.
func TestTakeOverFromALivingOwner(t *testing.T) {
	b := newBench(t, 1)
	for i := range 50 {
		b.log.append(0, sample(fmt.Sprint(i), 10))
	}
	_, stop1 := b.start(storeAdapter{b.store})
	_, stop2 := b.start(storeAdapter{b.store})
	for i := range 50 {
		b.log.append(0, sample(fmt.Sprint(50+i), 10))
	}
	b.drained()
	stop1()
	stop2()
	b.assertOnce(100, 10)
}

// Commits that were rolled back leave more than one block in doubt.
func TestOffsetResetStoresNothingTwice(t *testing.T) {
	b := newBench(t, 1)
	for i := range 90 {
		b.log.append(0, sample(fmt.Sprint(i), 10))
	}
	_, stop := b.start(storeAdapter{b.store})
	b.drained()
	stop()
	b.log.committed[0] = commit{offset: 0}
	require.NoError(t, b.store.Exec(t.Context(), "ALTER TABLE exposures DELETE WHERE offset BETWEEN 5 AND 7 SETTINGS mutations_sync = 2"))
	_, stop = b.start(storeAdapter{b.store})
	b.drained()
	stop()
	b.assertOnce(90, 10)
}

func TestGapStopsThePartitionUntilResumed(t *testing.T) {
	for name, cut := range map[string]func(*memoryLog){
		"deleted":    func(l *memoryLog) { l.start[0], l.records[0] = 15, l.records[0][15:] },
		"other_log":  func(l *memoryLog) { l.committed[0] = commit{4, intent{Log: "cluster/old"}.String()} },
		"beyond_end": func(l *memoryLog) { l.committed[0] = commit{4000, ""} },
		"intent":     func(l *memoryLog) { l.committed[0] = commit{10, `{"v":99}`} },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 1)
			for i := range 10 {
				b.log.append(0, sample(fmt.Sprint(i), 2))
			}
			_, stop := b.start(storeAdapter{b.store})
			b.drained()
			stop()
			for i := range 10 {
				b.log.append(0, sample(fmt.Sprint(10+i), 2))
			}
			cut(b.log)
			s, stop := b.start(storeAdapter{b.store})
			var stops []clickhouse.Stop
			require.Eventually(t, func() bool {
				var err error
				stops, err = b.store.Stops(context.Background(), b.cfg.Topic)
				return err == nil && len(stops) == 1
			}, settle, 50*time.Millisecond)
			assert.Equal(t, name, stops[0].Reason)
			assert.Equal(t, "stopped", s.Status()[0].State)
			assert.Equal(t, 20, b.count("SELECT count() FROM exposures"), "nothing is stored past the gap")
			require.NoError(t, b.store.Resume(t.Context(), stops[0], "test"))
			b.drained()
			stop()
			want := 40
			if name == "deleted" {
				want = 30
			}
			assert.Equal(t, want, b.count("SELECT count() FROM exposures"))
		})
	}
}

func TestBudgetBoundsWhatIsHeld(t *testing.T) {
	b := newBench(t, 4)
	b.cfg.FlushBytes = 1 << 20 // less than one fetch is charged for
	for i := range 400 {
		b.log.append(i%4, sample(fmt.Sprint(i), 20))
	}
	s, stop := b.start(storeAdapter{b.store})
	b.drained()
	stop()
	b.assertOnce(400, 20)
	assert.Zero(t, s.budget.inUse(), "every byte charged is given back")
}

func TestIntentRoundTrip(t *testing.T) {
	in := intent{Log: "c/l", First: 5, Last: 9, Token: "c/l/t/0/5-9"}
	out, err := parseIntent(in.String())
	require.NoError(t, err)
	in.Version = intentVersion
	assert.Equal(t, in, out)
	assert.Less(t, len(in.String()), 1000, "Kafka takes 4,096 bytes of metadata")
	for _, bad := range []string{"x", `{"v":2}`, `{}`} {
		_, err := parseIntent(bad)
		assert.Error(t, err, bad)
	}
	out, err = parseIntent("")
	require.NoError(t, err)
	assert.Zero(t, out)
}
