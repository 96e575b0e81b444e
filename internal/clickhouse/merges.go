package clickhouse

import (
	"context"
	"fmt"
	"strconv"
)

// wideMerge is how many parts a merge of exposures or events takes at least while
// merges are put off. Parts do not pile up without bound if it stays at that: these
// merges go on.
const wideMerge = 64

// PutMergesOff has merges of exposures and events wait until there are 64 parts for
// one, or lets the server merge as it sees fit again. It may be said any number of
// times, by anybody. A table for which somebody has set another number keeps that. On a
// cluster, where the setting is each replica's own, it does nothing. It returns a
// Permanent error where the user may not alter the tables.
func (c *Client) PutMergesOff(ctx context.Context, off bool) error {
	if c.cfg.Cluster != "" {
		return nil
	}
	set, change := "", "MODIFY SETTING min_parts_to_merge_at_once = "+strconv.Itoa(wideMerge)
	if !off {
		set, change = strconv.Itoa(wideMerge), "RESET SETTING min_parts_to_merge_at_once"
	}
	var tables []string
	err := c.lookup(ctx, "read how the tables are merged", `
		SELECT name FROM system.tables WHERE database = ? AND name IN ('exposures', 'events')
		AND extract(engine_full, 'min_parts_to_merge_at_once = ([0-9]+)') = ?`, []any{c.database, set},
		func(scan func(...any) error) error {
			var name string
			err := scan(&name)
			tables = append(tables, name)
			return err
		})
	if err != nil {
		return err
	}
	for _, table := range tables {
		if err := c.Exec(ctx, "ALTER TABLE "+table+" "+change); err != nil {
			return fmt.Errorf("set how many parts of %s are merged at once: %w", table, err)
		}
	}
	return nil
}
