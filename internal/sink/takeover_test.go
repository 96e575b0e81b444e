package sink

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/clickhouse"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// stopped waits until a partition is stopped and returns the stops on record.
func (b *bench) stopped() []clickhouse.Stop {
	b.t.Helper()
	var stops []clickhouse.Stop
	require.Eventually(b.t, func() bool {
		var err error
		stops, err = b.store.Stops(context.Background(), b.cfg.Topic)
		return err == nil && len(stops) > 0
	}, settle, 50*time.Millisecond)
	return stops
}

// A topic that is deleted and made again while a sink drains it answers under its
// name, with other records at the same offsets.
func TestTopicMadeAgainWhileRunning(t *testing.T) {
	for name, committed := range map[string]func(*memoryLog){
		"the commit goes with it": func(l *memoryLog) { l.committed[0] = commit{offset: -1} },
		"the commit stays":        func(*memoryLog) {},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 1)
			for i := range 10 {
				b.log.append(0, sample(fmt.Sprint("old", i), 2))
			}
			_, stop := b.start(storeAdapter{b.store})
			b.drained()
			b.log.mu.Lock()
			b.log.id, b.log.records[0] = "cluster/log2", nil
			for i := range 15 { // beyond where the old log ended
				b.log.put(0, sample(fmt.Sprint("new", i), 2))
			}
			committed(b.log)
			b.log.mu.Unlock()
			if name == "the commit stays" {
				stops := b.stopped()
				require.Equal(t, "other_log", stops[0].Reason)
				require.NoError(t, b.store.Resume(t.Context(), stops[0], "test"))
			}
			b.drained()
			stop()
			b.assertOnce(25, 2)
		})
	}
}

// A log that loses its newest records under a running sink is read again from its
// start: what is stored already must not be stored again.
func TestTruncatedLogWhileRunning(t *testing.T) {
	b := newBench(t, 1)
	for i := range 10 {
		b.log.append(0, sample(fmt.Sprint(i), 2))
	}
	_, stop := b.start(storeAdapter{b.store})
	b.drained()
	b.log.mu.Lock()
	b.log.records[0] = b.log.records[0][:5]
	b.log.mu.Unlock()
	stops := b.stopped()
	require.Equal(t, "beyond_end", stops[0].Reason)
	for i := range 20 {
		b.log.append(0, sample(fmt.Sprint("new", i), 2))
	}
	require.NoError(t, b.store.Resume(t.Context(), stops[0], "test"))
	b.drained()
	stop()
	b.assertOnce(30, 2)
}

// A person's decision is about one stop, not about every later one at that place.
func TestResumedStopStopsAgain(t *testing.T) {
	b := newBench(t, 1)
	for i := range 10 {
		b.log.append(0, sample(fmt.Sprint(i), 2))
	}
	for _, offset := range []int64{100, 200, 100} {
		b.log.mu.Lock()
		b.log.committed[0] = commit{offset, intent{Log: b.log.id}.String()}
		b.log.mu.Unlock()
		s, stop := b.start(storeAdapter{b.store})
		stops := b.stopped()
		require.Len(t, stops, 1)
		assert.Equal(t, offset, stops[0].At.Offset)
		assert.Equal(t, "stopped", s.Status()[0].State)
		require.NoError(t, b.store.Resume(t.Context(), stops[0], "test"))
		b.drained()
		stop()
	}
	assert.Equal(t, 20, b.count("SELECT count() FROM exposures"))
}

// brokenSource cannot tell one partition's bounds.
type brokenSource struct {
	Source
	partition int
	asked     atomic.Int64
}

func (s *brokenSource) Bounds(ctx context.Context, partition int) (batch.Bounds, error) {
	if partition == s.partition {
		s.asked.Add(1)
		return batch.Bounds{}, errors.New("no leader")
	}
	return s.Source.Bounds(ctx, partition)
}

// A partition that cannot be taken over waits by itself: were it to end the
// generation, the others would begin again and again.
func TestPartitionInTroubleHoldsUpNoOther(t *testing.T) {
	b := newBench(t, 3)
	b.log.committed[1] = commit{0, `{"v":99}`} // of a newer sink
	for i := range 30 {
		b.log.append(i%3, sample(fmt.Sprint(i), 2))
	}
	source := &brokenSource{Source: b.log, partition: 0}
	s, stop := b.startFrom(source, storeAdapter{b.store})
	require.Eventually(t, func() bool {
		b.log.mu.Lock()
		defer b.log.mu.Unlock()
		return b.log.committed[2].offset == 10 && source.asked.Load() > 3
	}, settle, 20*time.Millisecond)
	assert.Equal(t, "waiting", s.Status()[0].State)
	assert.Equal(t, "stopped", s.Status()[1].State)
	stop()
	b.log.mu.Lock()
	defer b.log.mu.Unlock()
	assert.Equal(t, 1, b.log.generation)
	assert.Equal(t, commit{0, `{"v":99}`}, b.log.committed[1], "an intent nobody understands is left alone")
	assert.Equal(t, 20, b.count("SELECT count() FROM exposures"))
}

// Clients may give one id to several events. Where they differ in what the tables
// are ordered by they are several rows, also when reading back.
func TestReadBackTellsEventsWithOneIDApart(t *testing.T) {
	b := newBench(t, 1)
	for i := range 2 {
		s := sample(fmt.Sprint(i), 0)
		s.Events = append(s.Events[:0], schema.Event{Kind: schema.KindExposure, Experiment: "exp", Variant: "a", UnitID: fmt.Sprint("unit", i), ClientID: "1"})
		s.Rejected = nil
		s.Count = 1
		s.ComputeDigest()
		s.Resolve(time.Now(), schema.Limits{Past: 720 * time.Hour, Future: time.Hour})
		b.log.append(0, s)
		if i == 0 {
			_, stop := b.start(storeAdapter{b.store})
			b.drained()
			stop()
		}
	}
	// The owner died between its intent and its insert.
	b.log.committed[0] = commit{1, intent{Log: b.log.id, First: 1, Last: 1, Token: "t"}.String()}
	_, stop := b.start(storeAdapter{b.store})
	b.drained()
	stop()
	assert.Equal(t, 2, b.count("SELECT count() FROM exposures"))
	assert.Equal(t, 1, b.count("SELECT uniqExact(event_id) FROM exposures"))
}

// Rows that somebody deleted in order to store them again: the blocks are the same
// as the first time, and ClickHouse still knows the tokens of then.
func TestStoresAgainWhatWasDeleted(t *testing.T) {
	b := newBench(t, 1)
	b.cfg.FlushRows, b.cfg.FlushInterval, b.cfg.FlushIntervalMax = 100, time.Minute, time.Minute // cut by rows alone
	for i := range 50 {
		b.log.append(0, sample(fmt.Sprint(i), 7)) // ten rows each
	}
	for range 2 {
		b.log.committed[0] = commit{0, ""}
		_, stop := b.start(storeAdapter{b.store})
		b.drained()
		stop()
		b.assertOnce(50, 7)
		for _, table := range schema.Tables() {
			require.NoError(t, b.store.Exec(t.Context(), fmt.Sprintf("ALTER TABLE %s DELETE WHERE true SETTINGS mutations_sync = 2", table)))
		}
	}
}

// An earlier owner's token may be known without its rows: ClickHouse was killed
// between the two.
func TestHealsBeyondATokenThatIsClaimed(t *testing.T) {
	b := newBench(t, 1)
	for i := range 10 {
		b.log.append(0, sample(fmt.Sprint(i), 3))
	}
	i := intent{Log: b.log.id, Last: 9, Token: "claimed"}
	other := schema.Position{Log: b.log.id, Topic: b.cfg.Topic, Partition: 7}
	for _, table := range []schema.Table{schema.Exposures, schema.Batches} {
		in, err := b.store.OpenInsert(t.Context(), table, other, i.Token)
		require.NoError(t, err)
		s := sample("other", 1)
		rows := &schema.Rows{Events: []schema.EventRow{{Batch: s, Event: &s.Events[0]}}}
		if table == schema.Batches {
			rows = &schema.Rows{Batches: []schema.BatchRow{{Record: batch.Record{BatchID: s.ID, ReceivedAt: time.Now()}, Outcome: schema.Dead}}}
		}
		require.NoError(t, in.Send(rows))
	}
	b.log.committed[0] = commit{0, i.String()}
	_, stop := b.start(storeAdapter{b.store})
	b.drained()
	stop()
	assert.Equal(t, 30, b.count("SELECT count() FROM exposures WHERE partition = 0"))
	assert.Equal(t, 10, b.count("SELECT count() FROM events"))
	assert.Equal(t, 10, b.count("SELECT countIf(outcome = 'stored') FROM batches WHERE partition = 0"))
}

// doorStore counts the inserts that are open.
type doorStore struct {
	Store
	open  atomic.Int64
	reads atomic.Int64
	held  atomic.Int64 // reads while an insert was open
}

type countedInsert struct {
	Insert
	s    *doorStore
	shut bool
}

func (s *doorStore) OpenInsert(ctx context.Context, t schema.Table, at schema.Position, token string) (Insert, error) {
	in, err := s.Store.OpenInsert(ctx, t, at, token)
	if err != nil {
		return nil, err
	}
	s.open.Add(1)
	return &countedInsert{Insert: in, s: s}, nil
}

func (i *countedInsert) end() {
	if !i.shut {
		i.s.open.Add(-1)
	}
	i.shut = true
}

func (i *countedInsert) Send(rows *schema.Rows) error { defer i.end(); return i.Insert.Send(rows) }
func (i *countedInsert) Close()                       { i.end(); i.Insert.Close() }

func (s *doorStore) Present(ctx context.Context, t schema.Table, at schema.Position, first, last int64, have func(int64, uint32, batch.ID)) error {
	s.reads.Add(1)
	if s.open.Load() > 0 {
		s.held.Add(1)
	}
	return s.Store.Present(ctx, t, at, first, last, have)
}

// The server ends an insert whose client is silent. Reading back may take longer
// than that: with an insert open meanwhile a large table would never be healed.
func TestReadsBackWithNoInsertOpen(t *testing.T) {
	b := newBench(t, 1)
	for i := range 20 {
		b.log.append(0, sample(fmt.Sprint(i), 3))
	}
	b.log.committed[0] = commit{0, intent{Log: b.log.id, Last: 9, Token: "t"}.String()}
	store := &doorStore{Store: storeAdapter{b.store}}
	_, stop := b.start(store)
	b.drained()
	stop()
	b.assertOnce(20, 3)
	assert.Positive(t, store.reads.Load())
	assert.Zero(t, store.held.Load())
	assert.Zero(t, store.open.Load(), "every insert that was opened has ended")
}

// waitingSource counts the fetches in flight.
type waitingSource struct {
	Source
	now, most atomic.Int64
}

func (s *waitingSource) Fetch(ctx context.Context, partition int, offset int64, maxBytes int, maxWait time.Duration) ([]batch.Delivery, batch.Bounds, error) {
	n := s.now.Add(1)
	defer s.now.Add(-1)
	for most := s.most.Load(); n > most && !s.most.CompareAndSwap(most, n); most = s.most.Load() {
	}
	return s.Source.Fetch(ctx, partition, offset, maxBytes, maxWait)
}

// Partitions with nothing to read wait for records. They must not wait at the
// expense of those that have something to read.
func TestIdlePartitionsLeaveTheBudgetAlone(t *testing.T) {
	const partitions = 30
	b := newBench(t, partitions)
	b.cfg.FlushBytes = 16 << 20
	source := &waitingSource{Source: b.log}
	s, stop := b.startFrom(source, storeAdapter{b.store})
	require.Eventually(t, func() bool { return source.most.Load() == partitions }, settle, 20*time.Millisecond)
	stop()
	assert.Zero(t, s.budget.inUse())
}
