package prove

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Five batches are acknowledged, at 1000, 2000 and so on, in µs since 1970; the
// first three are stored.
func newTestWatermark(t *testing.T, answers ...int64) (*watermark, *fakeClickHouse, *traffic) {
	f, r := startFakeClickHouse(t)
	f.watermark = answers
	tr := newTestTraffic(t, 5, 10)
	var now int64
	b := newBook(func() time.Time { return time.UnixMicro(now) })
	for n := range uint64(5) {
		now += 1000
		b.begin()
		b.ack(n)
		if n < 3 {
			f.store(tr, n)
		}
	}
	w := newWatermark(r, b, tr)
	w.now = func() time.Time { return time.UnixMicro(10_000) }
	return w, f, tr
}

func TestWatermarkThatIsTrue(t *testing.T) {
	w, f, tr := newTestWatermark(t, 0, 500, 1000, 1001, 3500, 3500, 6000)
	for range 3 {
		require.NoError(t, w.ask(t.Context()))
	}
	assert.Zero(t, w.report.Batches, "nothing was acknowledged before 1000")
	assert.EqualValues(t, 2, w.report.Asked, "1970 is no answer")
	require.NoError(t, w.ask(t.Context()))
	assert.EqualValues(t, 1, w.report.Batches)
	require.NoError(t, w.ask(t.Context()))
	require.NoError(t, w.ask(t.Context()))
	assert.EqualValues(t, 3, w.report.Batches)
	assert.False(t, w.report.CaughtUp)
	f.store(tr, 3)
	f.store(tr, 4)
	require.NoError(t, w.ask(t.Context()))
	assert.EqualValues(t, 5, w.report.Batches)
	assert.True(t, w.report.CaughtUp)
	assert.True(t, w.passed.Load())
	assert.False(t, w.report.Bad(), w.report.Examples)
	assert.Equal(t, 9500*time.Microsecond, w.report.Longest)
	assert.Equal(t, "collector-x", w.report.HeldBy)
}

func TestWatermarkThatLies(t *testing.T) {
	w, f, tr := newTestWatermark(t, 3000, 4500, 4500, 4000)
	require.NoError(t, w.ask(t.Context()))
	assert.Zero(t, w.report.Ahead)
	require.NoError(t, w.ask(t.Context()))
	assert.EqualValues(t, 1, w.report.Ahead, "the fourth batch is not there")
	f.store(tr, 3)
	require.NoError(t, w.ask(t.Context()))
	assert.EqualValues(t, 1, w.report.Ahead, "that it came later changes nothing, and it counts once")
	assert.Zero(t, w.report.Back)
	require.NoError(t, w.ask(t.Context()))
	assert.EqualValues(t, 1, w.report.Back)
	assert.True(t, w.report.Bad())
	assert.Len(t, w.report.Examples, 2)
	assert.Contains(t, w.report.Examples[0], "batch 3 (key prove-0000000000000005-3)")
}

// Half of a batch is not a batch.
func TestWatermarkWantsEveryTable(t *testing.T) {
	for _, table := range []string{"exposures", "events"} {
		w, f, _ := newTestWatermark(t, 1500)
		kept := f.rows[:0]
		for _, r := range f.rows {
			if r.table != table {
				kept = append(kept, r)
			}
		}
		f.rows = kept
		require.NoError(t, w.ask(t.Context()))
		assert.EqualValues(t, 1, w.report.Ahead, table)
	}
}

// ClickHouse goes between the watermark and the rows: the same batches are looked
// for when it is back.
func TestWatermarkOverAnOutage(t *testing.T) {
	w, f, _ := newTestWatermark(t, 2500)
	f.set(func() { f.away = true })
	require.Error(t, w.ask(t.Context()))
	assert.Zero(t, w.report.Asked)
	w.last = 2500
	require.Error(t, w.check(t.Context()))
	assert.Zero(t, w.report.Batches)
	f.set(func() { f.away = false })
	require.NoError(t, w.ask(t.Context()))
	assert.EqualValues(t, 2, w.report.Batches)
	assert.False(t, w.report.Bad())
}

func TestNoWatermark(t *testing.T) {
	w, f, _ := newTestWatermark(t)
	f.noView = true
	w.run(t.Context()) // ends by itself
	assert.True(t, w.report.Missing)
	assert.True(t, w.passed.Load(), "there is nothing to wait for")
	assert.False(t, w.report.Bad())
}
