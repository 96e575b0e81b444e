package clickhouse

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What experiment_health says of given exposures. The p-values are those of a
// table of the chi-squared distribution.
func TestExperimentHealth(t *testing.T) {
	c := open(t)
	ctx := t.Context()
	fill := func(experiment, variant string, units, from int) {
		require.NoError(t, c.conn.Exec(ctx, `INSERT INTO exposures (project, experiment, variant, unit_type, unit_id, time, received_at, event_id)
			SELECT 'p', ?, ?, 'user', concat('u', toString(number)), toDateTime64('2026-11-25 00:00:00', 6, 'UTC') + number, toDateTime64('2026-11-25 00:10:00', 6, 'UTC') + number, generateUUIDv4()
			FROM numbers(?, ?)`, experiment, variant, from, units))
	}
	lose := func(experiment, variant string, n int) {
		require.NoError(t, c.conn.Exec(ctx, `INSERT INTO events (project, name, value, unit_type, unit_id, time, received_at, event_id, attributes)
			VALUES ('p', 'sluice.dropped', ?, 'client', 'c', now64(6), now64(6), generateUUIDv4(), map('experiment', ?, 'variant', ?, 'reason', 'queue_full'))`,
			float64(n), experiment, variant))
	}
	fill("two", "a", 4821, 0)
	fill("two", "b", 5179, 10_000)
	fill("three", "a", 300, 0)
	fill("three", "b", 350, 1000)
	fill("three", "c", 350, 2000)
	for i, n := range []int{100, 120, 90, 90} {
		fill("four", string(rune('a'+i)), n, 1000*i)
	}
	fill("one", "a", 10, 0)
	fill("crossed", "a", 100, 0)
	fill("crossed", "b", 100, 90) // ten of them have seen a
	fill("lossy", "a", 900, 0)
	fill("lossy", "b", 1000, 1000)
	lose("lossy", "a", 60)
	lose("lossy", "a", 40)
	lose("never seen", "a", 5)
	fill("evenly", "a", 950, 0)
	fill("evenly", "b", 950, 1000)
	lose("evenly", "a", 50)
	lose("evenly", "b", 50)

	type health struct {
		Units, Exposures                uint64
		Variants, Lost                  map[string]uint64
		SRM, Crossover, Late, LostShare float64
		LostP                           float64
	}
	got := map[string]health{}
	rows, err := c.Query(ctx, `SELECT experiment, units, exposures, variants, srm_p_value, crossover_share, late_share, lost, lost_share, lost_p_value
		FROM experiment_health WHERE project = 'p'`)
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var name string
		var h health
		require.NoError(t, rows.Scan(&name, &h.Units, &h.Exposures, &h.Variants, &h.SRM, &h.Crossover, &h.Late, &h.Lost, &h.LostShare, &h.LostP))
		got[name] = h
	}
	require.NoError(t, rows.Err())
	require.Len(t, got, 8)

	assert.Equal(t, map[string]uint64{"a": 4821, "b": 5179}, got["two"].Variants)
	assert.InDelta(t, 0.000343695, got["two"].SRM, 1e-6, "chi-squared 12.8164, 1 degree of freedom")
	assert.InDelta(t, 0.0820850, got["three"].SRM, 1e-6, "5, 2")
	assert.InDelta(t, 0.1116102, got["four"].SRM, 1e-6, "6, 3")
	assert.InDelta(t, 1, got["one"].SRM, 0)
	assert.EqualValues(t, 190, got["crossed"].Units)
	assert.EqualValues(t, 200, got["crossed"].Exposures)
	assert.InDelta(t, 10./190, got["crossed"].Crossover, 1e-12)
	assert.Zero(t, got["crossed"].Late, "ten minutes are not late")
	assert.Equal(t, map[string]uint64{"a": 100}, got["lossy"].Lost)
	assert.InDelta(t, 0.05, got["lossy"].LostShare, 1e-12)
	assert.Less(t, got["lossy"].LostP, 1e-20, "all of it in one variant")
	assert.InDelta(t, 1, got["evenly"].LostP, 1e-9)
	assert.InDelta(t, 0.05, got["evenly"].LostShare, 1e-12)
	assert.Zero(t, got["never seen"].Units)
	assert.InDelta(t, 1, got["never seen"].LostShare, 0)
	assert.InDelta(t, 1, got["never seen"].LostP, 0)
}
