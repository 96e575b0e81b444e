package clickhouse

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

// Rows of the ledger may come in any order, and twice: those with the highest
// version stay.
func TestLedgerRowsInAnyOrder(t *testing.T) {
	c := open(t)
	ctx := t.Context()
	at := time.Date(2026, 11, 25, 1, 2, 3, 4000, time.UTC)
	id := batch.Random()
	row := func(entry string, version uint64, offset int64, edit func(*batch.LedgerRecord)) LedgerRow {
		w := LedgerRow{Entry: entry, Version: version, Ledger: "c.one", Topic: "t.ledger", Offset: offset, At: at.Add(time.Duration(offset) * time.Second),
			Record: batch.LedgerRecord{Kind: batch.LedgerInterval, Collector: id, Epoch: 1 << 63, Number: version, At: at, Log: "l"}}
		if edit != nil {
			edit(&w.Record)
		}
		return w
	}
	copied, err := c.CopiedTo(ctx, "c.one")
	require.NoError(t, err)
	assert.EqualValues(t, -1, copied)
	for _, rows := range [][]LedgerRow{
		{row("newest", 3, 7, nil), row("newest", 2, 8, nil)},
		{row("newest", 1, 1, nil), row("open", math.MaxUint64-5, 5, nil)},
		{row("open", math.MaxUint64-1, 1, nil), row("open", math.MaxUint64-9, 9, nil)},
		{row("newest", 9, 12, func(r *batch.LedgerRecord) { r.Log = "m" })},
		{row("retire", 1, 3, func(r *batch.LedgerRecord) { r.Kind, r.By, r.Reason = batch.LedgerRetire, "o", "why" })},
		{row("newest", 3, 7, nil)},
	} {
		require.NoError(t, c.InsertLedger(ctx, rows))
	}
	copied, err = c.CopiedTo(ctx, "c.one")
	require.NoError(t, err)
	assert.EqualValues(t, 12, copied)
	type kept struct {
		entry  string
		number uint64
		offset int64
		log    string
	}
	for range 2 {
		var got []kept
		require.NoError(t, c.LedgerRows(ctx, "c.one", "t.ledger", func(w LedgerRow) {
			got = append(got, kept{w.Entry, w.Record.Number, w.Offset, w.Record.Log})
			assert.Equal(t, []any{id, uint64(1 << 63), at}, []any{w.Record.Collector, w.Record.Epoch, w.Record.At})
		}))
		assert.Equal(t, []kept{{"open", math.MaxUint64 - 1, 1, "l"}, {"retire", 1, 3, "l"}, {"newest", 3, 7, "l"}, {"newest", 9, 12, "m"}}, got)
		var all int
		require.NoError(t, c.LedgerEntries(ctx, func(LedgerRow) { all++ }))
		assert.Equal(t, 4, all)
		require.NoError(t, c.Exec(ctx, "OPTIMIZE TABLE ledger FINAL"))
	}
	// Another cluster's, and another topic's, are not this one's.
	for _, other := range [][2]string{{"d.one", "t.ledger"}, {"c.one", "u.ledger"}} {
		require.NoError(t, c.LedgerRows(ctx, other[0], other[1], func(LedgerRow) { t.Error("not asked for") }))
	}
	// One of the same name that was made again comes after it.
	again := row("newest", 1, 0, func(r *batch.LedgerRecord) { r.Epoch = 2 })
	again.Ledger = "c.two"
	require.NoError(t, c.InsertLedger(ctx, []LedgerRow{again}))
	var ledgers []string
	require.NoError(t, c.LedgerRows(ctx, "c.two", "t.ledger", func(w LedgerRow) { ledgers = append(ledgers, w.Ledger) }))
	assert.Equal(t, []string{"c.one", "c.one", "c.one", "c.one", "c.two"}, ledgers)
}

// Whatever a record says fits into the table.
func TestLedgerTakesAnything(t *testing.T) {
	c := open(t)
	far, before := time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)
	w := LedgerRow{Entry: "newest", Version: math.MaxUint64, Ledger: "c.one", Topic: "t.ledger", Offset: -1, Record: batch.LedgerRecord{
		Kind: batch.LedgerKind("x\x00\xff"), Collector: batch.Random(), Epoch: math.MaxUint64, Number: math.MaxUint64, At: far, CompleteUntil: before,
		Settled: math.MaxUint64, Unproven: math.MaxUint64, Offsets: map[int]int64{-1: math.MinInt64, 0: math.MaxInt64},
		Pending: math.MaxUint64, PendingBytes: math.MinInt64, Oldest: &far, LostFrom: &before, Lost: math.MaxUint64}}
	for range batch.MaxVoids {
		w.Record.Voids = append(w.Record.Voids, batch.SeqRange{First: 1, Last: math.MaxUint64})
	}
	require.NoError(t, c.InsertLedger(t.Context(), []LedgerRow{w}))
	n := 0
	require.NoError(t, c.LedgerEntries(t.Context(), func(r LedgerRow) {
		n++
		assert.Len(t, r.Record.Voids, batch.MaxVoids)
		assert.True(t, r.Record.CompleteUntil.IsZero())
		assert.Equal(t, 2262, r.Record.At.Year())
	}))
	assert.Equal(t, 1, n)
}

func TestCompletenessNeverGoesBack(t *testing.T) {
	c := open(t)
	ctx := t.Context()
	at := func(s int) time.Time { return time.Date(2026, 11, 25, 1, 2, s, 0, time.UTC) }
	whole := func(until, judged int, why string) Completeness {
		return Completeness{CompleteUntil: at(until), JudgedAt: at(judged), Why: why, State: "open"}
	}
	shown := func() (until time.Time, why string) {
		w, err := c.Watermark(ctx)
		require.NoError(t, err)
		return w.CompleteUntil, w.Why
	}
	until, why := shown()
	assert.True(t, until.IsZero())
	assert.Equal(t, "no sink has looked yet", why)
	now := time.Now()
	rows := []Completeness{whole(5, 6, "a"), whole(3, 7, "late"), whole(9, 10, "b"), whole(9, 11, "c")}
	for i := range rows {
		rows[i].JudgedAt = now.Add(time.Duration(i) * time.Second)
		require.NoError(t, c.InsertCompleteness(ctx, rows[i:i+1]))
		want := slices.MaxFunc(rows[:i+1], func(a, b Completeness) int { return a.CompleteUntil.Compare(b.CompleteUntil) })
		until, _ = shown()
		assert.Equal(t, want.CompleteUntil, until)
	}
	_, why = shown()
	assert.Equal(t, "c", why, "of two with one time the one that was judged last")
	require.NoError(t, c.Exec(ctx, "OPTIMIZE TABLE completeness FINAL"))
	until, why = shown()
	assert.Equal(t, []any{at(9), "c"}, []any{until, why})

	// A sink that has not looked for long is named.
	require.NoError(t, c.Exec(ctx, "TRUNCATE TABLE completeness"))
	old := whole(5, 6, "a")
	old.JudgedAt = now.Add(-2 * time.Minute)
	require.NoError(t, c.InsertCompleteness(ctx, []Completeness{old}))
	_, why = shown()
	assert.Contains(t, why, "no sink has looked since")

	// A ledger that is given up says so, until it is looked at again.
	ok, err := c.RetireLedger(ctx, "c.one", "o", "why")
	require.NoError(t, err)
	assert.False(t, ok)
	ok, err = c.RetireLedger(ctx, "", "o", "why")
	require.NoError(t, err)
	assert.False(t, ok)
	own := Completeness{Ledger: "c.one", Topic: "t.ledger", State: "open", CompleteUntil: at(5), JudgedAt: now}
	require.NoError(t, c.InsertCompleteness(ctx, []Completeness{own}))
	ok, err = c.RetireLedger(ctx, "c.one", "o", "why")
	require.NoError(t, err)
	assert.True(t, ok)
	state := func() (s string) {
		require.NoError(t, c.CompletenessRows(ctx, true, func(r Completeness) {
			if r.Ledger != "" {
				s = r.State
			}
		}))
		return s
	}
	assert.Equal(t, "retired", state())
	require.NoError(t, c.InsertCompleteness(ctx, []Completeness{own}))
	assert.Equal(t, "open", state())
}
