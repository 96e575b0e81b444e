package prove

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// judged is what the checker says of 40 batches, of which the last one is open and
// not stored, after change was at the rows.
func judged(t *testing.T, events int, change func(f *fakeClickHouse, tr *traffic)) Verdict {
	t.Helper()
	f, r := startFakeClickHouse(t)
	tr := newTestTraffic(t, 5, events)
	b := newBook(time.Now)
	for range 40 {
		n := b.begin()
		if n < 39 {
			b.ack(n)
			f.store(tr, n)
		}
	}
	change(f, tr)
	v, err := (&checker{tr, b, r}).judge(t.Context())
	require.NoError(t, err)
	return v
}

func TestVerdict(t *testing.T) {
	const sent, acked = 400, 390
	whole := Verdict{Sent: sent, Acknowledged: acked, Open: 10, Stored: acked, DeadLetters: 2}
	remove := func(f *fakeClickHouse, id eventID) {
		kept := f.rows[:0]
		for _, r := range f.rows {
			if r.id != id.String() {
				kept = append(kept, r)
			}
		}
		f.rows = kept
	}
	for name, tc := range map[string]struct {
		change func(f *fakeClickHouse, tr *traffic)
		want   func(v *Verdict)
		says   string
	}{
		"all is well": {func(*fakeClickHouse, *traffic) {}, func(*Verdict) {}, ""},
		"an exposure is lost": {func(f *fakeClickHouse, tr *traffic) { remove(f, tr.mint.id(3, 0)) },
			func(v *Verdict) { v.Lost, v.Stored = 1, acked-1 }, "lost: event "},
		"a custom event is lost": {func(f *fakeClickHouse, tr *traffic) { remove(f, tr.mint.id(3, 4)) },
			func(v *Verdict) { v.Lost, v.Stored = 1, acked-1 }, "(batch 3, index 4, key prove-0000000000000005-3)"},
		"a dead letter is lost": {func(f *fakeClickHouse, tr *traffic) { remove(f, tr.mint.id(7, 0)) },
			func(v *Verdict) { v.Lost, v.Stored, v.DeadLetters = 1, acked-1, 1 }, "(batch 7, index 0"},
		"an open batch is stored": {func(f *fakeClickHouse, tr *traffic) { f.store(tr, 39) },
			func(v *Verdict) { v.Stored, v.OpenStored = sent, 10 }, ""},
		"a block is there twice": {func(f *fakeClickHouse, tr *traffic) { f.store(tr, 5) },
			func(v *Verdict) { v.Twice = 10 }, "twice: the row of exposures at log = 'log-1' AND partition = 0, offset 5"},
		"a copy with another sorting key": {func(f *fakeClickHouse, tr *traffic) {
			r := stored(tr, 5, 1)
			r.unit, r.offset = "somebody", 1000
			f.rows = append(f.rows, r)
		}, func(v *Verdict) { v.Doubled, v.Altered = 1, 1 }, "doubled: event "},
		"a row of a dead letter": {func(f *fakeClickHouse, tr *traffic) {
			r := stored(tr, 5, 1)
			r.table, r.stage, r.offset = "dead_letters", "conflict", 1000
			f.rows = append(f.rows, r)
		}, func(v *Verdict) { v.Doubled, v.Altered, v.DeadLetters = 1, 1, 3 }, "again in dead_letters"},
		"a row that nobody sent": {func(f *fakeClickHouse, tr *traffic) {
			r := stored(tr, 5, 1)
			r.id, r.offset = "00000000-0000-4000-8000-000000000001", 1000
			f.rows = append(f.rows, r)
		}, func(v *Verdict) { v.Phantom = 1 }, "never sent: event 00000000"},
		"a batch that was not begun": {func(f *fakeClickHouse, tr *traffic) { f.store(tr, 40) },
			func(v *Verdict) { v.Phantom = 10 }, "never sent"},
		"an experiment that nobody sent": {func(f *fakeClickHouse, tr *traffic) { f.rows[0].experiment = "other" },
			func(v *Verdict) { v.Altered = 1 }, "altered: event "},
		"another value": {func(f *fakeClickHouse, tr *traffic) {
			for i := range f.rows {
				if f.rows[i].table == "events" {
					f.rows[i].variant = "-1"
					return
				}
			}
		}, func(v *Verdict) { v.Altered = 1 }, "in events"},
		"a dead letter without an id": {func(f *fakeClickHouse, tr *traffic) {
			f.rows = append(f.rows, fakeRow{table: "dead_letters", stage: "sink", offset: 1000})
		}, func(v *Verdict) { v.Phantom = 1 }, "of stage sink without an event_id"},
	} {
		t.Run(name, func(t *testing.T) {
			want := whole
			tc.want(&want)
			got := judged(t, 10, tc.change)
			examples := strings.Join(got.Examples, "\n")
			assert.Equal(t, tc.says == "", examples == "", examples)
			assert.Contains(t, examples, tc.says)
			got.Examples = nil
			assert.Equal(t, want, got)
			assert.Equal(t, tc.says != "", got.Bad())
		})
	}
}

// A batch of more events than a word has bits.
func TestVerdictOfLargeBatches(t *testing.T) {
	v := judged(t, 130, func(f *fakeClickHouse, tr *traffic) { f.rows = f.rows[:len(f.rows)-2] })
	assert.EqualValues(t, 2, v.Lost)
	assert.EqualValues(t, 39*130-2, v.Stored)
	assert.Zero(t, v.Doubled)
}

func TestExamplesAreFew(t *testing.T) {
	v := judged(t, 10, func(f *fakeClickHouse, tr *traffic) { f.rows = nil })
	assert.EqualValues(t, 390, v.Lost)
	assert.Len(t, v.Examples, mostExamples)
}

func TestCheckerNeedsAnAnswer(t *testing.T) {
	f, r := startFakeClickHouse(t)
	f.away = true
	c := &checker{newTestTraffic(t, 1, 10), newBook(time.Now), r}
	_, err := c.judge(t.Context())
	assert.ErrorContains(t, err, "503")
	_, err = c.level(t.Context())
	assert.Error(t, err)
	f.set(func() { f.away = false })
	err = r.each(t.Context(), "SELECT broken", 2, func([]string) error { return nil })
	assert.ErrorContains(t, err, "Timeout", "an answer that ends in an error")
}
