package clickhouse

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

func TestDeadLettersPageByPage(t *testing.T) {
	c := open(t)
	start := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	rows := &schema.Rows{}
	for i := range 30 {
		id := batch.ForKey("p", fmt.Sprint(i))
		rows.Dead = append(rows.Dead, schema.DeadLetter{ID: batch.DeadLetterID(id, batch.Digest{}, uint32(i), "x"), Project: fmt.Sprint("p", i%2), BatchID: id,
			Index: uint32(i), Stage: []string{schema.StageCollector, schema.StageSink, schema.StageConflict}[i%3], Reason: []string{"missing_field", "key_reused"}[i%2],
			Field: "unit_id", Error: "why", Bytes: []byte(strings.Repeat("\xff\x00", 500)), Size: 1000 + i, Source: "native",
			ReceivedAt: start.Add(time.Duration(i) * time.Minute).UnixMicro(), Offset: int64(i)})
	}
	insert(t, c, schema.DeadLetters, "a", rows)
	insert(t, c, schema.DeadLetters, "b", &schema.Rows{Dead: rows.Dead[:5]}) // filed twice

	read := func(f DeadFilter, limit int, bytes int64) (all []schema.DeadLetter, pages int) {
		for after := (schema.DeadLetter{}); ; pages++ {
			page, err := c.DeadLetters(t.Context(), f, after, limit, bytes)
			require.NoError(t, err)
			if len(page) == 0 {
				return all, pages
			}
			all = append(all, page...)
			after = page[len(page)-1]
		}
	}
	all, pages := read(DeadFilter{}, 4, 1<<20)
	assert.ElementsMatch(t, rows.Dead, all, "each once, as it was")
	assert.Equal(t, 8, pages)
	all, pages = read(DeadFilter{}, 100, 3500)
	assert.Len(t, all, 30)
	assert.Equal(t, 10, pages, "by bytes")
	_, pages = read(DeadFilter{}, 100, 1)
	assert.Equal(t, 30, pages, "one is more than was asked for")

	for name, tt := range map[string]struct {
		f    DeadFilter
		want int
	}{
		"project":            {DeadFilter{Projects: []string{"p1"}}, 15},
		"stages":             {DeadFilter{Stages: []string{"sink", "conflict"}}, 20},
		"reason and project": {DeadFilter{Reasons: []string{"missing_field"}, Projects: []string{"p1"}}, 0},
		"since":              {DeadFilter{Since: start.Add(10 * time.Minute)}, 20},
		"until":              {DeadFilter{Until: start.Add(10 * time.Minute)}, 10},
		"between":            {DeadFilter{Since: start.Add(time.Minute), Until: start.Add(time.Minute + time.Microsecond)}, 1},
		"ids":                {DeadFilter{IDs: []batch.ID{rows.Dead[3].ID, rows.Dead[7].ID, {1}}}, 2},
		"quoted":             {DeadFilter{Projects: []string{`p1' OR '1'='1`}}, 0},
	} {
		all, _ := read(tt.f, 4, 1<<20)
		assert.Len(t, all, tt.want, name)
		n, err := c.CountDead(t.Context(), tt.f)
		require.NoError(t, err)
		assert.Equal(t, int64(tt.want), n, name)
	}
}

func TestWhatBecameOfRecords(t *testing.T) {
	c := open(t)
	record := func(key string, collector batch.ID) batch.Record {
		id := batch.ForKey("p", key)
		return batch.Record{BatchID: id, DedupID: id, Project: "p", Collector: collector, ReceivedAt: time.Now()}
	}
	insert(t, c, schema.Batches, "a", &schema.Rows{Batches: []schema.BatchRow{
		{Record: record("a", batch.ID{1}), Outcome: schema.Stored, Offset: 3},
		{Record: record("a", batch.ID{1}), Outcome: schema.Duplicate, Offset: 5},
		{Record: record("b", batch.ID{}), Outcome: schema.Dead, Offset: 4},
		{Record: record("c", batch.ID{1}), Outcome: schema.Conflict, Offset: 9},
	}})
	ids := []batch.ID{batch.ForKey("p", "a"), batch.ForKey("p", "b"), batch.ForKey("p", "x")}
	got := map[int64]schema.Outcome{}
	require.NoError(t, c.Outcomes(t.Context(), ids, place, 4, 9, func(o int64, id batch.ID, out schema.Outcome) { got[o] = out }))
	assert.Equal(t, map[int64]schema.Outcome{5: schema.Duplicate, 4: schema.Dead}, got)
	elsewhere := place
	elsewhere.Log = "another"
	require.NoError(t, c.Outcomes(t.Context(), ids, elsewhere, 0, 9, func(int64, batch.ID, schema.Outcome) { assert.Fail(t, "of another log") }))
	require.NoError(t, c.Outcomes(t.Context(), nil, place, 0, 9, func(int64, batch.ID, schema.Outcome) { assert.Fail(t, "nothing was asked") }))

	var replayed []batch.ID
	require.NoError(t, c.Replayed(t.Context(), ids, func(id batch.ID) { replayed = append(replayed, id) }))
	assert.Equal(t, []batch.ID{batch.ForKey("p", "b")}, replayed, "no collector has accepted it")
}

func TestRowsOfRecords(t *testing.T) {
	c := open(t)
	rows := exposures(10, 3)
	insert(t, c, schema.Exposures, "a", rows)
	id := rows.Events[2].Batch.ID // at offset 11
	at := time.UnixMicro(rows.Events[2].Batch.ReceivedAt)
	dead := func(index uint32, stage, reason string) schema.DeadLetter {
		return schema.DeadLetter{ID: batch.DeadLetterID(id, batch.Digest{}, index, stage), Project: "p", BatchID: id, Index: index, Stage: stage, Reason: reason, ReceivedAt: at.UnixMicro(), Offset: 11}
	}
	insert(t, c, schema.DeadLetters, "a", &schema.Rows{Dead: []schema.DeadLetter{
		dead(7, schema.StageSink, "refused"), dead(8, schema.StageSink, "undecodable"), dead(9, schema.StageCollector, "refused")}})

	spots := func(into *[]string) func(int64, uint32, batch.ID) {
		return func(o int64, i uint32, id batch.ID) { *into = append(*into, fmt.Sprint(o, "/", i)) }
	}
	day := 24 * time.Hour
	var got []string
	require.NoError(t, c.RowsOf(t.Context(), schema.Exposures, place, 10, 11, at.Add(-day), at.Add(day), spots(&got)))
	assert.ElementsMatch(t, []string{"10/0", "10/1", "11/0", "11/1"}, got)
	got = nil
	require.NoError(t, c.RowsOf(t.Context(), schema.Exposures, place, 11, 11, at, at, spots(&got)))
	assert.ElementsMatch(t, []string{"11/0", "11/1"}, got, "both ends are included")
	got = nil
	require.NoError(t, c.RowsOf(t.Context(), schema.Exposures, place, 10, 12, at.Add(day), at.Add(2*day), spots(&got)))
	assert.Empty(t, got)
	require.NoError(t, c.RowsOf(t.Context(), schema.DeadLetters, place, 11, 11, at, at, spots(&got)))
	assert.Len(t, got, 3)
	got = nil
	require.NoError(t, c.Refused(t.Context(), place, 10, 12, at.Add(-day), at.Add(day), spots(&got)))
	assert.Equal(t, []string{"11/7"}, got)

	var holders []schema.Copy
	require.NoError(t, c.Holders(t.Context(), []batch.ID{id, {1}}, func(h schema.Copy) { holders = append(holders, h) }))
	assert.Equal(t, []schema.Copy{{BatchID: id, First: 0, Last: 1, Log: place.Log, Partition: 3, Offset: 11}}, holders)
}

func TestFillTablesLikeOthers(t *testing.T) {
	c := open(t)
	rows := exposures(10, 3)
	require.NoError(t, c.MakeLike(t.Context(), "shadow", schema.Exposures))
	require.NoError(t, c.MakeLike(t.Context(), "shadow", schema.Exposures), "again")
	for range 2 {
		require.NoError(t, c.Fill(t.Context(), "shadow", schema.Exposures, place, "t", rows))
	}
	assert.Equal(t, 6, count(t, c, "SELECT count() FROM shadow"), "the token counts here too")
	insert(t, c, schema.Exposures, "t", rows)
	assert.Zero(t, count(t, c, "SELECT count() FROM (SELECT * FROM shadow EXCEPT SELECT * FROM exposures)"))

	merged := map[int]bool{}
	more := &schema.Rows{Events: append(exposures(20, 1).Events, rows.Events[4:]...)}
	require.NoError(t, c.Merged(t.Context(), "shadow", schema.Exposures, more, func(i int) { merged[i] = true }))
	assert.Equal(t, map[int]bool{2: true, 3: true}, merged)

	counts := map[string]int64{}
	by := func(e, v string, n int64) { counts[e+"/"+v] = n }
	require.NoError(t, c.CountsBy(t.Context(), "shadow", schema.Exposures, place, 10, 11, by))
	require.NoError(t, c.CountsBy(t.Context(), "shadow", schema.Exposures, place, 10, 9, by))
	assert.Equal(t, map[string]int64{"exp/b": 4}, counts)

	event := &schema.Rows{Events: []schema.EventRow{{Batch: &schema.Batch{Project: "p", ID: batch.ForKey("p", "e"), ReceivedAt: time.Now().UnixMicro()},
		Event: &schema.Event{Kind: schema.KindEvent, Name: "paid", UnitID: "u", Index: 1}, Offset: 10}}}
	require.NoError(t, c.MakeLike(t.Context(), "shadow_events", schema.Events))
	require.NoError(t, c.Fill(t.Context(), "shadow_events", schema.Events, place, "t", event))
	clear(counts)
	clear(merged)
	require.NoError(t, c.CountsBy(t.Context(), "shadow_events", schema.Events, place, 10, 11, by))
	assert.Equal(t, map[string]int64{"paid/": 1}, counts)
	require.NoError(t, c.Merged(t.Context(), "shadow_events", schema.Events, event, func(i int) { merged[i] = true }))
	assert.Equal(t, map[int]bool{0: true}, merged)

	for _, name := range []schema.Table{"exposures", "events", "batches", "first_exposures", "shadow_events", "a-b", "a`b", ""} {
		err := c.MakeLike(t.Context(), name, schema.Exposures)
		assert.Error(t, err, name)
		assert.Equal(t, retry.Permanent, retry.ClassOf(err), name)
	}
}

// A sink's open insert goes on: filling does not come in by its door.
func TestFillCancelsNobody(t *testing.T) {
	c := open(t)
	door, err := c.OpenInsert(t.Context(), schema.Exposures, place, "sink")
	require.NoError(t, err)
	require.NoError(t, c.Fill(t.Context(), schema.Exposures, schema.Exposures, place, "repair", exposures(10, 1)))
	require.NoError(t, door.Send(exposures(20, 1)))
	assert.Equal(t, 4, count(t, c, "SELECT count() FROM exposures"))
}
