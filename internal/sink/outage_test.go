package sink

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/embedded"
	"sluice/internal/embedded/teststack"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// sizedStore counts the rows of the inserts that are sent.
type sizedStore struct {
	Store
	mu   sync.Mutex
	sent map[schema.Table][]int
}

func (s *sizedStore) OpenInsert(ctx context.Context, t schema.Table, at schema.Position, token string) (Insert, error) {
	in, err := s.Store.OpenInsert(ctx, t, at, token)
	if err != nil {
		return nil, err
	}
	return sizedInsert{in, s, t}, nil
}

type sizedInsert struct {
	Insert
	s     *sizedStore
	table schema.Table
}

func (i sizedInsert) Send(rows *schema.Rows) error {
	i.s.mu.Lock()
	if i.s.sent == nil {
		i.s.sent = map[schema.Table][]int{}
	}
	i.s.sent[i.table] = append(i.s.sent[i.table], rows.Len())
	i.s.mu.Unlock()
	return i.Insert.Send(rows)
}

// A real ClickHouse refuses one of 100,000 events.
func TestClickHouseRefusesOneOfMany(t *testing.T) {
	b := newBench(t, 1)
	dead := &memoryDead{}
	b.cfg.FlushRows, b.cfg.FlushBytes, b.cfg.Dead = 500_000, 1<<30, dead
	b.cfg.FlushInterval, b.cfg.FlushIntervalMax = time.Minute, time.Minute
	require.NoError(t, b.store.Exec(t.Context(), "ALTER TABLE exposures ADD CONSTRAINT c CHECK variant != 'poison'"))
	const batches, perBatch = 1001, 100
	for i := range batches {
		s := sample(fmt.Sprint(i), perBatch)
		if i == 321 {
			s.Events[57].Variant = poison
			s.ComputeDigest()
		}
		b.log.append(0, s)
	}
	// The block ends where an earlier owner's did: at once, and with all of them.
	b.log.committed[0] = commit{0, intent{Log: b.log.id, Last: batches - 1, Token: "t"}.String()}
	store := &sizedStore{Store: storeAdapter{b.store}}
	_, stop := b.start(store)
	b.drained()
	stop()
	assert.Equal(t, batches*perBatch-1, b.count("SELECT count() FROM exposures"))
	assert.Equal(t, batches*perBatch-1, b.count("SELECT uniqExact(event_id) FROM exposures"))
	assert.Equal(t, batches, b.count("SELECT count() FROM events"))
	assert.Equal(t, 1, b.count("SELECT count() FROM dead_letters WHERE stage = 'sink'"))
	assert.Equal(t, 1, b.count("SELECT count() FROM dead_letters WHERE stage = 'sink' AND reason = 'refused' AND batch_index = 57 AND offset = 321"+
		" AND error LIKE '%Constraint%' AND JSONExtractString(bytes, 'unit_id') = '321-57' AND size = length(bytes)"))
	assert.Equal(t, batches, b.count("SELECT countIf(outcome = 'stored') FROM batches"))
	assert.Equal(t, 1, b.count("SELECT count() FROM batches WHERE events = 100 AND rejected = 2"), "100 of 101 events, and one besides the one that the collector had rejected")
	assert.Equal(t, 1, dead.writes)
	sent := store.sent[schema.Exposures]
	assert.LessOrEqual(t, len(sent), 1+2*18)
	assert.Equal(t, batches*perBatch, sent[0])
	assert.InDelta(t, batches*perBatch/2, sent[1], perBatch, "halves")
	assert.InDelta(t, batches*perBatch/2, sent[2], perBatch, "halves")
	t.Logf("%d inserts into exposures: %v", len(sent), sent)
}

// A view that refuses what the table has taken: the error comes for rows that are
// stored, and nothing is put aside.
func TestViewRefusesWhatIsStored(t *testing.T) {
	b := newBench(t, 1)
	dead := &memoryDead{}
	b.cfg.Dead = dead
	require.NoError(t, b.store.Exec(t.Context(), "CREATE TABLE derived (x UInt8) ENGINE = MergeTree ORDER BY x"))
	require.NoError(t, b.store.Exec(t.Context(), "CREATE MATERIALIZED VIEW deriving TO derived AS SELECT throwIf(variant = 'poison') AS x FROM exposures"))
	for i := range 30 {
		s := sample(fmt.Sprint(i), 10)
		if i%10 == 3 {
			s.Events[5].Variant = poison
			s.ComputeDigest()
		}
		b.log.append(0, s)
	}
	_, stop := b.start(storeAdapter{b.store})
	b.drained()
	stop()
	b.assertOnce(30, 10)
	assert.Zero(t, b.count("SELECT count() FROM dead_letters WHERE stage = 'sink'"))
	assert.Empty(t, dead.letters)
}

// A real ClickHouse is killed, and is stopped in its tracks, while records come: the
// sink stays a member, holds no more than it may, and has stored everything once
// soon after.
func TestClickHouseAway(t *testing.T) {
	server := teststack.StartClickHouse(t)
	for name, outage := range map[string]struct {
		begin func() error
		end   func(context.Context) error
	}{
		"killed": {server.Kill, server.Restart},
		"paused": {server.Pause, func(context.Context) error { return server.Resume() }},
	} {
		t.Run(name, func(t *testing.T) { testAway(t, server, outage.begin, outage.end) })
	}
}

func testAway(t *testing.T, server *embedded.ClickHouse, begin func() error, end func(context.Context) error) {
	b := newBenchOn(t, "clickhouse://"+server.Addr()+"/away_"+batch.Random().String()[:8], 3)
	b.cfg.FlushBytes, b.cfg.FlushRows = 8<<20, 500_000
	s, stop := b.start(storeAdapter{b.store})
	const perBatch = 20
	var appended atomic.Int64
	var held atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	load.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				n := appended.Add(1)
				b.log.append(int(n)%3, sample(fmt.Sprint(n), perBatch))
				held.Store(max(held.Load(), s.budget.inUse()))
			case <-ctx.Done():
				return
			}
		}
	})
	seen := func(n int64) func() bool { return func() bool { return appended.Load() > n } }
	require.Eventually(t, seen(300), settle, 10*time.Millisecond)
	require.NoError(t, begin())
	require.Eventually(t, seen(1500), settle, 10*time.Millisecond)
	require.NoError(t, end(t.Context()))
	require.Eventually(t, seen(1800), settle, 10*time.Millisecond)
	cancel()
	load.Wait()
	b.drained()
	stop()
	b.assertOnce(int(appended.Load()), perBatch)
	assert.LessOrEqual(t, held.Load(), b.cfg.FlushBytes+3*fetchBytes*fetchFactor)
	assert.Equal(t, 1, b.log.generations(), "no rebalance")
	assert.Zero(t, s.budget.inUse())
}
