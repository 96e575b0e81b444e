package clickhouse

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What the server does about merges is its setting of the tables: it is set once,
// taken back, and an operator's is left alone.
func TestPutMergesOff(t *testing.T) {
	ctx := t.Context()
	c := open(t)
	with := func(parts string) int {
		return count(t, c, "SELECT count() FROM system.tables WHERE database = currentDatabase() AND engine_full LIKE '%min_parts_to_merge_at_once = "+parts+"%'")
	}
	require.NoError(t, c.PutMergesOff(ctx, false))
	assert.Zero(t, with(""))
	for range 2 {
		require.NoError(t, c.PutMergesOff(ctx, true))
		assert.Equal(t, 2, with("64"))
	}
	require.NoError(t, c.PutMergesOff(ctx, false))
	assert.Zero(t, with(""))

	require.NoError(t, c.Exec(ctx, "ALTER TABLE events MODIFY SETTING min_parts_to_merge_at_once = 7"))
	require.NoError(t, c.PutMergesOff(ctx, true))
	assert.Equal(t, 1, with("64"))
	assert.Equal(t, 1, with("7"))
	require.NoError(t, c.PutMergesOff(ctx, false))
	assert.Zero(t, with("64"))
	assert.Equal(t, 1, with("7"))
}
