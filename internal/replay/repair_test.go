package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

const someEvents = `[{"experiment":"e","variant":"v","unit_id":"u"},{"experiment":"f","variant":"w","unit_id":"u"},{"kind":"event","name":"n","unit_id":"u"},{"variant":"v"}]`

// mixture is a log with a bit of everything, and how many rows it makes.
func mixture(t testing.TB) (*fakeLog, int) {
	log := &fakeLog{}
	at := time.Now().Add(-time.Minute).Truncate(time.Microsecond)
	whole := schema.Range{First: 0, Last: 3}
	a := body(t, "a", someEvents, at)
	log.append(a, whole)                                                                                       // 0: stored: 2 + 1 + 1 + 1 rows
	log.append(a, whole)                                                                                       // 1: duplicate: 1
	log.append(body(t, "a", `[{"experiment":"x","variant":"y","unit_id":"z"},{}]`, at), schema.Range{Last: 1}) // 2: conflict: 2 + 1
	b := body(t, "b", someEvents, at)
	log.append(b, schema.Range{First: 0, Last: 1})                    // 3: a part: 2 + 1
	log.append(b, whole)                                              // 4: the whole of it: 1 + 1 + 1
	log.append(b, schema.Range{First: 2, Last: 3})                    // 5: a duplicate: 1
	log.append(body(t, "c", someEvents, at), whole).Value = []byte{7} // 6: dead: 1 + 1
	return log, 5 + 1 + 3 + 3 + 3 + 1 + 2
}

func repairOptions(log *fakeLog, tables *fakeTables) Options {
	return Options{Log: log, Store: tables, Topic: "t", DedupWindow: time.Hour}
}

func TestRepairFromNothing(t *testing.T) {
	for _, size := range []int{0, 1, 4} {
		t.Run(fmt.Sprint("blocks of ", size), func(t *testing.T) {
			log, total := mixture(t)
			tables := newTables()
			o := repairOptions(log, tables)
			o.BlockRows, o.DryRun = size, true
			dry, err := NewRepairer(o).Repair(t.Context(), 0, 0, 6)
			require.NoError(t, err)
			assert.Zero(t, tables.total())

			o.DryRun = false
			var done []int64
			o.Progress = func(n, of int64) { done = append(done, n); assert.Equal(t, int64(7), of) }
			got, err := NewRepairer(o).Repair(t.Context(), 0, 0, 6)
			require.NoError(t, err)
			assert.Equal(t, map[int64]schema.Outcome{0: schema.Stored, 1: schema.Duplicate, 2: schema.Conflict, 3: schema.Stored,
				4: schema.Stored, 5: schema.Duplicate, 6: schema.Dead}, tables.outcomes())
			assert.Equal(t, total, tables.total())
			assert.Equal(t, int64(total), got.Missing)
			assert.Equal(t, got.Missing, got.Inserted)
			assert.Equal(t, int64(7), got.Records)
			assert.Equal(t, int64(7), done[len(done)-1])
			// Decided for one block only, the copies in another look like more.
			assert.GreaterOrEqual(t, dry.Missing, got.Missing)

			again, err := NewRepairer(o).Repair(t.Context(), 0, 0, 6)
			require.NoError(t, err)
			assert.Zero(t, again.Missing)
			assert.Equal(t, total, tables.total())
		})
	}
}

// Whatever single row is missing comes back, where it was and no other.
func TestRepairEachRow(t *testing.T) {
	log, total := mixture(t)
	whole := newTables()
	_, err := NewRepairer(repairOptions(log, whole)).Repair(t.Context(), 0, 0, 6)
	require.NoError(t, err)
	for _, table := range repaired() {
		for i := range whole.of(table).Len() {
			tables := newTables()
			for t, r := range whole.rows {
				*tables.of(t) = schema.Rows{Events: slices.Clone(r.Events), Dead: slices.Clone(r.Dead), Batches: slices.Clone(r.Batches)}
			}
			var gone any
			switch r := tables.of(table); table {
			case schema.Batches:
				gone = r.Batches[i]
				r.Batches = slices.Delete(r.Batches, i, i+1)
			case schema.DeadLetters:
				gone = r.Dead[i]
				r.Dead = slices.Delete(r.Dead, i, i+1)
			default:
				gone = r.Events[i]
				r.Events = slices.Delete(r.Events, i, i+1)
			}
			got, err := NewRepairer(repairOptions(log, tables)).Repair(t.Context(), 0, 0, 6)
			require.NoError(t, err)
			require.Len(t, got.Counts, 1, "%s %d", table, i)
			assert.Equal(t, table, got.Counts[0].Table)
			assert.Equal(t, int64(1), got.Inserted)
			assert.Equal(t, total, tables.total())
			switch r := tables.of(table); table {
			case schema.Batches:
				assert.Equal(t, gone, r.Batches[len(r.Batches)-1])
			case schema.DeadLetters:
				assert.Equal(t, gone, r.Dead[len(r.Dead)-1])
			default:
				want, row := gone.(schema.EventRow), r.Events[len(r.Events)-1]
				assert.Equal(t, *want.Event, *row.Event)
				// Of the copies of a batch that was cut in two ways either may bring it.
				assert.Equal(t, want.Batch.ID, row.Batch.ID)
			}
		}
	}
}

func TestRepairBounds(t *testing.T) {
	for name, tt := range map[string]struct {
		start, through       int64
		hole                 int64 // -1: none
		first, last          int64
		records              int64
		gone, pending, cover int64
	}{
		"everything":            {0, 6, -1, 0, 6, 7, 0, 0, 7},
		"a part":                {0, 6, -1, 2, 3, 2, 0, 0, 2},
		"not stored yet":        {0, 3, -1, 2, 6, 2, 0, 3, 2},
		"nothing stored":        {0, -1, -1, 0, 6, 0, 0, 7, 0},
		"deleted":               {2, 6, -1, 0, 6, 5, 2, 0, 5},
		"deleted and not there": {3, 1, -1, 0, 6, 0, 3, 4, 0},
		"beyond the end":        {0, 100, -1, 5, 9, 2, 3, 0, 2},
		"all beyond":            {0, 100, -1, 8, 9, 0, 2, 0, 0},
		"all deleted":           {5, 100, -1, 0, 2, 0, 3, 0, 0},
		"a hole":                {0, 6, 2, 0, 6, 6, 1, 0, 7},
		"a hole at the end":     {0, 6, 3, 0, 3, 3, 1, 0, 4},
		"empty":                 {0, 6, -1, 3, 2, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			log, _ := mixture(t)
			log.start = tt.start
			if tt.hole >= 0 {
				log.records[tt.hole] = nil
			}
			tables := newTables()
			tables.through = tt.through
			o := repairOptions(log, tables)
			covered := int64(0)
			o.Progress = func(n, _ int64) { covered = n }
			got, err := NewRepairer(o).Repair(t.Context(), 0, tt.first, tt.last)
			require.NoError(t, err)
			assert.Equal(t, []int64{tt.records, tt.gone, tt.pending, tt.cover}, []int64{got.Records, got.Gone, got.Pending, covered})
			for offset := range tables.outcomes() {
				assert.LessOrEqual(t, offset, tt.through, "what a sink has yet to store is not touched")
			}
		})
	}
}

// Retention may catch up while it reads.
func TestRepairOfALogThatIsDeletedMeanwhile(t *testing.T) {
	log, _ := mixture(t)
	log.onFetch = func(n int) {
		if n == 2 {
			log.start = 5
		}
	}
	tables := newTables()
	got, err := NewRepairer(repairOptions(log, tables)).Repair(t.Context(), 0, 0, 6)
	require.NoError(t, err)
	assert.Equal(t, []int64{5, 2}, []int64{got.Records, got.Gone})
}

// Inserts that fail, that were stored and fail, and that were not and succeed.
func TestRepairUnsure(t *testing.T) {
	for name, fail := range map[string]func(n int) error{
		"errored but stored": func(n int) error {
			if n%2 == 1 {
				return errUnsure
			}
			return nil
		},
		"errored": func(n int) error {
			if n%2 == 1 {
				return errors.New("connection lost")
			}
			return nil
		},
		"torn": func(n int) error {
			if n%2 == 1 {
				return errSwallow
			}
			return nil
		},
		"all of it": func(n int) error { return []error{nil, errSwallow, errUnsure, errors.New("x"), nil}[n%5] },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, total := mixture(t)
				log.fail = 3
				tables := newTables()
				tables.onFill = func(n int, _ schema.Table) error { return fail(n) }
				o := repairOptions(log, tables)
				o.BlockRows = 3
				got, err := NewRepairer(o).Repair(t.Context(), 0, 0, 6)
				require.NoError(t, err)
				assert.Equal(t, int64(total), got.Inserted)
				assert.Equal(t, total, tables.total(), "each row once")
			})
		})
	}
	// Every question in turn fails, after it was answered in part.
	synctest.Test(t, func(t *testing.T) {
		log, total := mixture(t)
		for fails := 1; ; fails++ {
			tables := newTables()
			tables.onAsk = func(n int) error {
				if n == fails {
					return errors.New("no answer")
				}
				return nil
			}
			o := repairOptions(log, tables)
			o.BlockRows = 6
			got, err := NewRepairer(o).Repair(t.Context(), 0, 0, 6)
			require.NoError(t, err)
			assert.Equal(t, int64(total), got.Inserted, fails)
			assert.Equal(t, int64(total+2), got.Rows, "%d: two of them a copy brings too", fails)
			assert.Equal(t, total, tables.total(), fails)
			if tables.asked < fails {
				break
			}
		}
	})
	t.Run("torn for ever", func(t *testing.T) {
		log, _ := mixture(t)
		tables := newTables()
		tables.onFill = func(int, schema.Table) error { return errSwallow }
		_, err := NewRepairer(repairOptions(log, tables)).Repair(t.Context(), 0, 0, 6)
		assert.ErrorIs(t, err, errTorn)
		assert.Equal(t, retry.Permanent, retry.ClassOf(err))
	})
}

// Rows that are deleted again after they were repaired come back again: ClickHouse
// still knows the token of the first time.
func TestRepairTheSameAgain(t *testing.T) {
	log, total := mixture(t)
	tables := newTables()
	for range 10 {
		_, err := NewRepairer(repairOptions(log, tables)).Repair(t.Context(), 0, 0, 6)
		require.NoError(t, err)
		assert.Equal(t, total, tables.total())
		clear(tables.rows)
	}
}

func TestRepairInterrupted(t *testing.T) {
	for stop := range 20 {
		log, total := mixture(t)
		tables := newTables()
		o := repairOptions(log, tables)
		o.BlockRows = 3
		ctx, cancel := context.WithCancel(t.Context())
		tables.onFill = func(n int, _ schema.Table) error {
			if n > stop {
				cancel()
				return retry.Mark(context.Canceled, retry.Shutdown)
			}
			return nil
		}
		_, err := NewRepairer(o).Repair(ctx, 0, 0, 6)
		if cancel(); err != nil {
			assert.ErrorIs(t, err, context.Canceled)
		}
		tables.onFill = nil
		_, err = NewRepairer(o).Repair(t.Context(), 0, 0, 6)
		require.NoError(t, err)
		assert.Equal(t, total, tables.total(), "interrupted at insert %d", stop)
	}
}

// batches forgets records when the window is over, and that is no loss.
func TestRepairBeyondTheWindow(t *testing.T) {
	log, _ := mixture(t)
	tables := newTables()
	_, err := NewRepairer(repairOptions(log, tables)).Repair(t.Context(), 0, 0, 6)
	require.NoError(t, err)
	total := tables.total()
	n := tables.of(schema.Batches).Len()
	clear(tables.of(schema.Batches).Batches)
	tables.rows[schema.Batches] = nil
	o := repairOptions(log, tables)
	o.DedupWindow = time.Second
	got, err := NewRepairer(o).Repair(t.Context(), 0, 0, 6)
	require.NoError(t, err)
	// The conflict's row has gone too: the data tells that its batch was stored, and
	// not that it was another.
	assert.Zero(t, got.Missing, "%+v", got.Counts)
	assert.Equal(t, total-n, tables.total())
}

func TestRepairOfOneExperiment(t *testing.T) {
	log, _ := mixture(t)
	tables := newTables()
	o := repairOptions(log, tables)
	o.Experiment = "f"
	got, err := NewRepairer(o).Repair(t.Context(), 0, 0, 6)
	require.NoError(t, err)
	assert.Equal(t, []Count{{Table: schema.Exposures, Experiment: "f", Variant: "w", Rows: 2}}, got.Counts)
	assert.Equal(t, 2, tables.total())
}

// What ClickHouse refused is among the dead letters and not missing from the events.
func TestRepairLeavesWhatWasRefused(t *testing.T) {
	log, total := mixture(t)
	tables := newTables()
	tables.refused = []spot{{0, 1, batch.ForKey("p", "a")}, {0, 2, batch.ForKey("p", "a")}}
	got, err := NewRepairer(repairOptions(log, tables)).Repair(t.Context(), 0, 0, 6)
	require.NoError(t, err)
	assert.Equal(t, int64(total-2), got.Inserted)
	row := tables.of(schema.Batches).Batches[0]
	assert.Equal(t, []int{1, 3}, []int{row.Events, row.Rejected}, "as the sink counts them")
}

// A record that was stored, and that this program cannot read: it is older.
func TestRepairUnreadable(t *testing.T) {
	log, _ := mixture(t)
	tables := newTables()
	_, err := NewRepairer(repairOptions(log, tables)).Repair(t.Context(), 0, 0, 6)
	require.NoError(t, err)
	total := tables.total()
	log.records[0].Value = []byte{7}
	got, err := NewRepairer(repairOptions(log, tables)).Repair(t.Context(), 0, 0, 6)
	require.NoError(t, err)
	assert.Equal(t, []int64{1, 0}, []int64{got.Unreadable, got.Missing})
	assert.Equal(t, total, tables.total())
}

func TestFillShadow(t *testing.T) {
	log, _ := mixture(t)
	tables := newTables()
	for like, n := range map[schema.Table]int{schema.Exposures: 4, schema.Events: 2} {
		o := repairOptions(log, tables)
		o.Into, o.Like = "shadow_"+like, like
		for range 2 {
			_, err := NewRepairer(o).Repair(t.Context(), 0, 0, 6)
			require.NoError(t, err)
			assert.Equal(t, n, tables.of(o.Into).Len())
		}
		delete(tables.rows, o.Into)
	}
	assert.Zero(t, tables.total(), "nothing else is written")
}

func TestReportsAddUp(t *testing.T) {
	var sum Report
	sum.Add(Report{Records: 1, Rows: 2, Missing: 3, Inserted: 4, Gone: 5, Pending: 6, Unreadable: 7, Doubled: 8, Counts: []Count{{Table: "a", Rows: 1}, {Table: "b", Rows: 5}}})
	sum.Add(Report{Records: 1, Counts: []Count{{Table: "a", Rows: 9}}})
	assert.Equal(t, []Count{{Table: "a", Rows: 10}, {Table: "b", Rows: 5}}, sum.Counts)
	assert.Equal(t, []int64{2, 2, 3, 4, 5, 6, 7, 8}, []int64{sum.Records, sum.Rows, sum.Missing, sum.Inserted, sum.Gone, sum.Pending, sum.Unreadable, sum.Doubled})
}
