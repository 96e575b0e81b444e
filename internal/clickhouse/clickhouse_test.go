package clickhouse

import (
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/embedded/teststack"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// open gives a test a migrated database of its own.
func open(t *testing.T) *Client {
	t.Helper()
	ctx := t.Context()
	cfg := Config{DSN: teststack.DSN(t), InsertTimeout: 20 * time.Second}
	require.NoError(t, Migrate(ctx, cfg, 720*time.Hour))
	c, err := Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, c.Close())
	})
	return c
}

var place = schema.Position{Log: "cluster/abc", Topic: "t.batches", Partition: 3}

// exposures makes n rows at consecutive offsets, two events each.
func exposures(first int64, n int) *schema.Rows {
	rows := &schema.Rows{}
	for i := range n {
		id := batch.ForKey("p", fmt.Sprint(first+int64(i)))
		b := &schema.Batch{Project: "p", ID: id, ReceivedAt: time.Now().UnixMicro(), Source: "native", SDK: "go/1"}
		for j := range uint32(2) {
			rows.Events = append(rows.Events, schema.EventRow{Batch: b, Offset: first + int64(i), Event: &schema.Event{
				Kind: schema.KindExposure, Index: j, Experiment: "exp", Variant: "b", UnitType: "user",
				UnitID: fmt.Sprintf("u%d", j), Time: time.Now().UnixMicro(), ID: batch.EventID(id, j),
				Attributes: []schema.Attribute{{Key: "country", Value: "DE"}, {Key: "n", Value: "1"}},
			}})
		}
	}
	return rows
}

func count(t *testing.T, c *Client, query string) int {
	t.Helper()
	rows, err := c.Query(t.Context(), query)
	require.NoError(t, err)
	defer rows.Close()
	var n uint64
	require.True(t, rows.Next())
	require.NoError(t, rows.Scan(&n))
	return int(n)
}

func insert(t *testing.T, c *Client, table schema.Table, token string, rows *schema.Rows) {
	t.Helper()
	in, err := c.OpenInsert(t.Context(), table, place, token)
	require.NoError(t, err)
	require.NoError(t, in.Send(rows))
}

func TestMigrateSafeWhenSeveralStartAtOnce(t *testing.T) {
	cfg := Config{DSN: teststack.DSN(t)}
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() { errs[i] = Migrate(t.Context(), cfg, time.Duration(700+i)*time.Hour) })
	}
	wg.Wait()
	for _, err := range errs {
		assert.NoError(t, err)
	}
	c, err := Open(cfg)
	require.NoError(t, err)
	defer c.Close()
	assert.Equal(t, 6, count(t, c, "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name IN ('exposures','events','batches','dead_letters','progress','stops')"))
	require.NoError(t, Migrate(t.Context(), cfg, 100*time.Hour))
	assert.Equal(t, 1, count(t, c, "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = 'batches' AND create_table_query LIKE '%toIntervalSecond(360000)%'"))
}

func TestInsertEveryTableAndReadBack(t *testing.T) {
	c := open(t)
	id := batch.ForKey("p", "k")
	rec := batch.Record{BatchID: id, DedupID: id, Digest: batch.Digest{1, 0, 255}, Project: "p", Collector: batch.Random(),
		Epoch: 1 << 62, Seq: 9, Path: batch.Direct, ReceivedAt: time.Now()}
	value := 1.5
	for table, rows := range map[schema.Table]*schema.Rows{
		schema.Exposures: exposures(10, 3),
		schema.Events: {Events: []schema.EventRow{{Batch: &schema.Batch{Project: "p", ID: id, ReceivedAt: 1}, Offset: 11,
			Event: &schema.Event{Kind: schema.KindEvent, Name: "paid", HasValue: true, Value: value, Index: 4}}}},
		schema.DeadLetters: {Dead: []schema.DeadLetter{{ID: id, Project: "p", BatchID: id, Index: 7, Stage: schema.StageCollector,
			Reason: "missing_field", Bytes: []byte{0xff, 0}, Size: 2, Offset: 12}}},
		schema.Batches:     {Batches: []schema.BatchRow{{Record: rec, Outcome: schema.Stored, Offset: 13, Events: 6}}},
		schema.ProgressTab: {Progress: []schema.Progress{{First: 10, Through: 13}}},
	} {
		t.Run(string(table), func(t *testing.T) {
			insert(t, c, table, "token/"+string(table), rows)
			got := map[int64][]uint32{}
			require.NoError(t, c.Present(t.Context(), table, place, 10, 13, func(o int64, i uint32, _ batch.ID) { got[o] = append(got[o], i) }))
			n := 0
			for _, idx := range got {
				n += len(idx)
			}
			assert.Equal(t, rows.Len(), n)
			none := place
			none.Partition++
			require.NoError(t, c.Present(t.Context(), table, none, 10, 13, func(int64, uint32, batch.ID) { assert.Fail(t, "another partition's row") }))
		})
	}
	top, err := c.Highest(t.Context(), place, 0)
	require.NoError(t, err)
	assert.EqualValues(t, 13, top)
	top, err = c.Highest(t.Context(), place, 14)
	require.NoError(t, err)
	assert.EqualValues(t, -1, top)

	var copies []schema.Copy
	require.NoError(t, c.Copies(t.Context(), []batch.ID{id, batch.Random()}, func(cp schema.Copy) { copies = append(copies, cp) }))
	require.Len(t, copies, 1)
	assert.Equal(t, schema.Copy{BatchID: id, Digest: rec.Digest, First: 0, Last: math.MaxUint32, Log: place.Log, Partition: 3, Offset: 13}, copies[0])

	merged := map[int]bool{}
	rows := exposures(11, 1)
	rows.Events = append(rows.Events, exposures(99, 1).Events...)
	namesake := *rows.Events[0].Event // the same id given to another unit's event
	namesake.UnitID = "somebody else"
	rows.Events = append(rows.Events, schema.EventRow{Batch: rows.Events[0].Batch, Event: &namesake, Offset: 98}, rows.Events[1])
	require.NoError(t, c.MergedEvents(t.Context(), schema.Exposures, rows.Events, func(row int) { merged[row] = true }))
	assert.Equal(t, map[int]bool{0: true, 1: true, 5: true}, merged)
	merged = map[int]bool{}
	letters := []schema.DeadLetter{{ID: id, Project: "p", Stage: schema.StageCollector, Reason: "missing_field"},
		{ID: id, Project: "p", Stage: schema.StageConflict, Reason: "missing_field"}}
	require.NoError(t, c.MergedDead(t.Context(), letters, func(row int) { merged[row] = true }))
	assert.Equal(t, map[int]bool{0: true}, merged)

	at := place
	at.Offset = 500
	has, err := c.HasBatch(t.Context(), "p", batch.ForKey("p", "11"), 0, 9, at)
	require.NoError(t, err)
	assert.True(t, has)
	at.Offset = 11
	has, err = c.HasBatch(t.Context(), "p", batch.ForKey("p", "11"), 0, 9, at)
	require.NoError(t, err)
	assert.False(t, has, "the record's own rows are not an earlier copy")
}

func TestSameTokenStoresOnce(t *testing.T) {
	c := open(t)
	for range 3 {
		insert(t, c, schema.Exposures, "same", exposures(0, 5))
	}
	assert.Equal(t, 10, count(t, c, "SELECT count() FROM exposures"))
}

func TestSecondDoorCancelsTheFirst(t *testing.T) {
	c := open(t)
	sleeper, err := c.OpenInsert(t.Context(), schema.Exposures, place, "a")
	require.NoError(t, err)
	owner, err := c.OpenInsert(t.Context(), schema.Exposures, place, "b")
	require.NoError(t, err)
	assert.Error(t, sleeper.Send(exposures(0, 5)), "the sleeper's insert must be dead before the owner's is open")
	require.NoError(t, owner.Send(exposures(5, 5)))
	assert.Equal(t, 10, count(t, c, "SELECT count() FROM exposures"))

	other := place
	other.Partition = 4
	one, err := c.OpenInsert(t.Context(), schema.Exposures, place, "c")
	require.NoError(t, err)
	two, err := c.OpenInsert(t.Context(), schema.Exposures, other, "d")
	require.NoError(t, err)
	two.Close()
	two.Close()
	require.NoError(t, one.Send(exposures(10, 1)), "another partition's door is another door")
}

func TestLargestBlockIsOnePart(t *testing.T) {
	c := open(t)
	rows := exposures(0, 250_000)
	// A machine that is too slow to lay it out in time gets more time from one
	// attempt to the next.
	for attempt := 1; ; attempt++ {
		in, err := c.OpenInsert(t.Context(), schema.Exposures, place, "large")
		require.NoError(t, err)
		if err = in.Send(rows); err == nil {
			break
		}
		require.Less(t, attempt, 4, "%v", err)
	}
	assert.Equal(t, 500_000, count(t, c, "SELECT count() FROM exposures"))
	assert.Equal(t, 1, count(t, c,
		"SELECT count() FROM system.parts WHERE active AND database = currentDatabase() AND table = 'exposures'"))
}

func TestStopAndResume(t *testing.T) {
	c := open(t)
	at := place
	at.Offset = 42
	for range 2 {
		require.NoError(t, c.RecordStop(t.Context(), at, "deleted", "gone", 50))
	}
	stops, err := c.Stops(t.Context(), place.Topic)
	require.NoError(t, err)
	require.Len(t, stops, 1)
	_, ok, err := c.Resumed(t.Context(), at)
	require.NoError(t, err)
	assert.False(t, ok)
	stops[0].ResumeAt = 60
	require.NoError(t, c.Resume(t.Context(), stops[0], "ann"))
	resumeAt, ok, err := c.Resumed(t.Context(), at)
	require.NoError(t, err)
	assert.True(t, ok)
	assert.EqualValues(t, 60, resumeAt)
	stops, err = c.Stops(t.Context(), place.Topic)
	require.NoError(t, err)
	assert.Empty(t, stops)
}

// What a person decided about one stop is not an answer to the next one at the
// same place.
func TestAStopIsResumedOnce(t *testing.T) {
	c := open(t)
	at := place
	at.Offset = 42
	for round := range 3 {
		require.NoError(t, c.RecordStop(t.Context(), at, "deleted", "gone", 50))
		_, ok, err := c.Resumed(t.Context(), at)
		require.NoError(t, err)
		assert.False(t, ok, "round %d", round)
		stops, err := c.Stops(t.Context(), place.Topic)
		require.NoError(t, err)
		require.Len(t, stops, 1)
		stops[0].ResumeAt = int64(60 + round)
		require.NoError(t, c.Resume(t.Context(), stops[0], "ann"))
		resumeAt, ok, err := c.Resumed(t.Context(), at)
		require.NoError(t, err)
		assert.True(t, ok)
		assert.EqualValues(t, 60+round, resumeAt)
	}
}

// A block whose rows were received in very many months is an unlikely block, and
// must not be one that is refused for ever.
func TestManyMonthsInABlock(t *testing.T) {
	c := open(t)
	rows := exposures(0, 150)
	for i := range rows.Events {
		b := *rows.Events[i].Batch
		b.ReceivedAt = time.Date(2000, time.Month(1+i/2), 1, 0, 0, 0, 0, time.UTC).UnixMicro()
		rows.Events[i].Batch = &b
	}
	insert(t, c, schema.Exposures, "months", rows)
	assert.Equal(t, 300, count(t, c, "SELECT count() FROM exposures"))
}

func TestBadDSN(t *testing.T) {
	for _, dsn := range []string{"", "http//x", "clickhouse://h:9000/a`b", "clickhouse://u:secret@:::/x"} {
		_, err := Open(Config{DSN: dsn})
		if assert.ErrorIs(t, err, ErrDSN, dsn) {
			assert.NotContains(t, err.Error(), "secret")
		}
	}
}
