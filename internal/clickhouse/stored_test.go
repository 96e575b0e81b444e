package clickhouse

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// store puts one stored record of each batch into batches, as one part.
func store(t *testing.T, c *Client, token string, ids []batch.ID) {
	t.Helper()
	rows := &schema.Rows{}
	for i, id := range ids {
		rows.Batches = append(rows.Batches, schema.BatchRow{
			Record:  batch.Record{DedupID: id, BatchID: id, Project: "p", ReceivedAt: time.Now()},
			Outcome: schema.Stored, Offset: int64(i)})
	}
	insert(t, c, schema.Batches, token, rows)
}

func many(prefix string, n int) []batch.ID {
	ids := make([]batch.ID, n)
	for i := range ids {
		ids[i] = batch.ForKey(prefix, fmt.Sprint(i))
	}
	return ids
}

// busy makes the client one that has looked many ids up.
func busy(c *Client) *Client {
	c.stored.asked.Store(1 << 40)
	return c
}

// another is a second process's client of the same database.
func another(t *testing.T, c *Client) *Client {
	t.Helper()
	o, err := Open(c.cfg)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, o.Close()) })
	return o
}

func copies(t *testing.T, c *Client, ids []batch.ID) []batch.ID {
	t.Helper()
	var got []batch.ID
	require.NoError(t, c.Copies(t.Context(), slices.Clone(ids), func(cp schema.Copy) { got = append(got, cp.BatchID) }))
	return got
}

// unsure is for how many of ids the table would be asked.
func unsure(t *testing.T, c *Client, ids []batch.ID) int {
	t.Helper()
	left := c.stored.unsure(t.Context(), c, ids)
	return len(left)
}

func TestCopiesOfMany(t *testing.T) {
	c := busy(open(t))
	absent := many("absent", 5000)
	assert.Empty(t, copies(t, c, absent))
	for i := range 4 {
		stored := many(fmt.Sprint("stored", i), 300)
		store(t, c, fmt.Sprint("t", i), stored)
		assert.ElementsMatch(t, stored, copies(t, c, append(slices.Clone(absent), stored...)), "what was stored just now")
		assert.Less(t, unsure(t, c, absent), 50, "most ids that are not there are not asked for")
	}
	added := c.stored.filter.added
	assert.EqualValues(t, 1200, added)
	assert.EqualValues(t, smallestBloom, c.Held())
	require.NoError(t, c.Exec(t.Context(), "OPTIMIZE TABLE batches FINAL"))
	assert.ElementsMatch(t, many("stored2", 300), copies(t, c, append(slices.Clone(absent), many("stored2", 300)...)))
	assert.Equal(t, added, c.stored.filter.added, "a merged part is not read again")

	fresh := busy(another(t, c))
	assert.ElementsMatch(t, many("stored3", 300), copies(t, fresh, append(slices.Clone(absent), many("stored3", 300)...)), "what others stored")
	assert.Less(t, unsure(t, fresh, absent), 50)
}

func TestCopiesAfterTheTableWasMadeAnew(t *testing.T) {
	for _, again := range []string{"TRUNCATE TABLE batches", "CREATE OR REPLACE TABLE batches AS batches"} {
		t.Run(again, func(t *testing.T) {
			c := busy(open(t))
			old, fresh := many("old", 100), many("new", 100)
			store(t, c, "a", old)
			assert.Len(t, copies(t, c, old), 100)
			require.NoError(t, c.Exec(t.Context(), again))
			require.NoError(t, c.Exec(t.Context(), "DETACH TABLE batches"))
			require.NoError(t, c.Exec(t.Context(), "ATTACH TABLE batches")) // block numbers begin anew
			store(t, c, "b", fresh)
			assert.ElementsMatch(t, fresh, copies(t, c, append(slices.Clone(old), fresh...)))
		})
	}
}

func TestFewLookupsReadNoTable(t *testing.T) {
	c := open(t)
	store(t, c, "a", many("stored", 300))
	assert.Len(t, copies(t, c, many("stored", 300)), 300)
	assert.Empty(t, c.stored.read)
	busy(c)
	assert.Len(t, copies(t, c, many("stored", askAnyway-1)), askAnyway-1)
	assert.Empty(t, c.stored.read)
	assert.Len(t, copies(t, c, many("stored", askAnyway)), askAnyway)
	assert.NotEmpty(t, c.stored.read)
}

func TestLargeTableIsReadInPieces(t *testing.T) {
	c := busy(open(t))
	c.stored.piece = 1000
	const rows = 18_500
	store(t, c, "a", many("stored", rows))
	absent := many("absent", 2000)
	calls := 1
	for ; unsure(t, c, absent) == len(absent); calls++ {
		require.Less(t, calls, 10)
	}
	assert.Equal(t, 2, calls, "nineteen pieces, of which one call reads sixteen")
	assert.Less(t, unsure(t, c, absent), 100)
	assert.EqualValues(t, rows, c.stored.filter.added)
	assert.ElementsMatch(t, many("stored", rows), copies(t, c, append(absent, many("stored", rows)...)))
}

// Whatever is stored before a look-up begins it finds, whoever merges or stores
// meanwhile.
func TestCopiesWhileOthersStore(t *testing.T) {
	c := busy(open(t))
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			at := place
			at.Partition = w
			for i := range 12 {
				ids := many(fmt.Sprint(w, " ", i), 40)
				rows := &schema.Rows{}
				for k, id := range ids {
					rows.Batches = append(rows.Batches, schema.BatchRow{
						Record:  batch.Record{DedupID: id, BatchID: id, Project: "p", ReceivedAt: time.Now()},
						Outcome: schema.Stored, Offset: int64(i*40 + k)})
				}
				in, err := c.OpenInsert(t.Context(), schema.Batches, at, fmt.Sprint(w, i))
				if !assert.NoError(t, err) || !assert.NoError(t, in.Send(rows)) {
					return
				}
				n := 0
				err = c.Copies(t.Context(), append(ids, many("absent", 100)...), func(schema.Copy) { n++ })
				assert.NoError(t, err)
				assert.Equal(t, 40, n)
				if i%4 == 3 {
					assert.NoError(t, c.Exec(t.Context(), "OPTIMIZE TABLE batches"))
				}
			}
		})
	}
	wg.Wait()
}

func TestSpans(t *testing.T) {
	for _, tc := range []struct {
		add  [][2]int64
		want spans
	}{
		{[][2]int64{{5, 7}}, spans{{5, 7}}},
		{[][2]int64{{5, 7}, {8, 9}, {1, 2}}, spans{{1, 2}, {5, 9}}},
		{[][2]int64{{1, 2}, {6, 7}, {4, 4}}, spans{{1, 2}, {4, 4}, {6, 7}}},
		{[][2]int64{{1, 2}, {6, 7}, {4, 4}, {1, 7}}, spans{{1, 7}}},
		{[][2]int64{{1, 2}, {4, 5}, {3, 3}}, spans{{1, 5}}},
		{[][2]int64{{9, 9}, {2, 3}, {3, 5}}, spans{{2, 5}, {9, 9}}},
	} {
		var s spans
		for _, r := range tc.add {
			s.add(r[0], r[1])
		}
		assert.Equal(t, tc.want, s, tc.add)
	}
	s := spans{{1, 5}, {7, 9}}
	assert.True(t, s.holds(1, 5))
	assert.True(t, s.holds(8, 8))
	assert.False(t, s.holds(5, 7), "6 is not there")
	assert.False(t, s.holds(9, 10))
}

func TestPartNames(t *testing.T) {
	first, last, err := blocks("all_12_34_2")
	require.NoError(t, err)
	assert.Equal(t, [2]int64{12, 34}, [2]int64{first, last})
	first, last, err = blocks("all_12_34_2_57")
	require.NoError(t, err)
	assert.Equal(t, [2]int64{12, 34}, [2]int64{first, last})
	for _, name := range []string{"", "all_", "all_3", "202611_1_1_0", "all_5_4_0", "all_a_b_c"} {
		_, _, err := blocks(name)
		assert.ErrorIs(t, err, errPartName, name)
	}
}

func TestBloom(t *testing.T) {
	b := newBloom(0)
	const n = smallestBloom
	for i, id := range many("in", n) {
		b.add(key(id))
		if i%1000 == 0 {
			require.False(t, b.full(n))
		}
	}
	for _, id := range many("in", n/16) {
		require.True(t, b.has(key(id)))
	}
	passed := 0
	for _, id := range many("out", 100_000) {
		if b.has(key(id)) {
			passed++
		}
	}
	assert.Less(t, passed, 5_000, "at 8 bits an id")
	b.add(0)
	assert.True(t, b.full(n), "a larger one would be better")
	assert.Len(t, newBloom(100_000_000).words, largestBloom/8)
}

func BenchmarkBloom(b *testing.B) {
	f := newBloom(100_000_000)
	for i := range uint64(1_000_000) {
		f.add(i)
	}
	b.ReportAllocs()
	b.ResetTimer()
	n := 0
	for i := 0; b.Loop(); i++ {
		if f.has(uint64(i)) {
			n++
		}
	}
}

// withoutParts is a connection of a user who may not read system.parts.
type withoutParts struct {
	driver.Conn
	denied int
}

func (c *withoutParts) Query(ctx context.Context, query string, args ...any) (driver.Rows, error) {
	if strings.Contains(query, "system.parts") {
		c.denied++
		return nil, &ch.Exception{Code: 497, Name: "ACCESS_DENIED", Message: "not enough privileges"}
	}
	return c.Conn.Query(ctx, query, args...)
}

// Where the filter cannot be read, the table is asked as before.
func TestCopiesWithoutTheRightToReadParts(t *testing.T) {
	c := busy(open(t))
	denied := &withoutParts{Conn: c.conn}
	c.conn = denied
	there := many("there", 20)
	store(t, c, "a", there)
	for range 5 {
		assert.ElementsMatch(t, there, copies(t, c, append(many("absent", 100), there...)))
	}
	assert.Equal(t, 1, denied.denied)
}
