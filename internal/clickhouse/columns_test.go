package clickhouse

import (
	"fmt"
	"math"
	"net"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/embedded/teststack"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// oddBatch is a batch of n events of both kinds whose values are as long, as many and
// as odd as they come.
func oddBatch(n int) *schema.Batch {
	b := &schema.Batch{Project: "π", ID: batch.ForKey("p", fmt.Sprint("odd", n)), Source: "native", SDK: "", ReceivedAt: time.Now().UnixMicro()}
	for i := range n {
		e := schema.Event{Kind: schema.KindExposure, Index: uint32(i), UnitType: "user", UnitID: fmt.Sprint("unit", i), Time: b.ReceivedAt - int64(i)*1e6,
			ID: batch.EventID(b.ID, uint32(i)), TimeAdjusted: i%3 == 0, Experiment: fmt.Sprint("e", i), Variant: fmt.Sprint("v", i%300), Rule: []string{"", "r"}[i%2]}
		switch i % 5 {
		case 1:
			e.Kind, e.Name, e.Experiment, e.Variant = schema.KindEvent, fmt.Sprint("n", i), "", ""
			e.Value, e.HasValue = []float64{0, -1.5, math.MaxFloat64, math.SmallestNonzeroFloat64}[i/5%4], i%2 == 0
		case 2:
			e.Attributes = []schema.Attribute{{Key: fmt.Sprint("k", i), Value: ""}, {Key: "z", Value: "日本"}}
		case 3:
			e.UnitID, e.Reason = strings.Repeat("x", 127+i%3), strings.Repeat("y", 128)
		}
		b.Events = append(b.Events, e)
	}
	return b
}

// What is laid out here is stored as what clickhouse-go lays out, whatever is between
// the two.
func TestColumnsStoreWhatRowsDo(t *testing.T) {
	for name, param := range map[string]string{"lz4": "", "none": "compress=none", "zstd": "compress=zstd", "lz4hc": "compress=lz4hc"} {
		for _, n := range []int{1, 250, 300, 70_000} {
			t.Run(fmt.Sprintf("%s %d", name, n), func(t *testing.T) {
				cfg := Config{DSN: teststack.DSN(t)}
				if param != "" {
					cfg.DSN += "?" + param
				}
				require.NoError(t, Migrate(t.Context(), cfg, 720*time.Hour))
				c, err := Open(cfg)
				require.NoError(t, err)
				t.Cleanup(func() { assert.NoError(t, c.Close()) })
				b := oddBatch(n)
				laid := c.NewColumns()
				for range 2 { // the second time on used memory
					laid.Reset(place)
					laid.Append(b, 7)
				}
				for _, table := range []schema.Table{schema.Exposures, schema.Events} {
					rows := &schema.Rows{Laid: laid, LaidRows: laid.Rows(table)}
					if rows.Len() == 0 {
						continue
					}
					insert(t, c, table, "laid", rows)
					one := &schema.Rows{}
					for i := range b.Events {
						if e := &b.Events[i]; (e.Kind == schema.KindEvent) == (table == schema.Events) {
							one.Events = append(one.Events, schema.EventRow{Batch: b, Event: e, Offset: 7})
						}
					}
					like := table + "_rows"
					require.NoError(t, c.MakeLike(t.Context(), like, table))
					require.NoError(t, c.Fill(t.Context(), like, table, place, "rows", one))
					assert.Equal(t, len(one.Events), count(t, c, fmt.Sprintf("SELECT count() FROM %s", table)))
					assert.Zero(t, count(t, c, fmt.Sprintf("SELECT count() FROM (SELECT * FROM %s EXCEPT SELECT * FROM %s)", table, like)), "%s", table)
				}
			})
		}
	}
}

// Laid out columns are refused by a table that was changed since, and rows then are not.
func TestColumnsOfAChangedTable(t *testing.T) {
	c := open(t)
	laid := c.NewColumns()
	require.NotNil(t, laid)
	laid.Reset(place)
	laid.Append(oddBatch(1), 1)
	require.NoError(t, c.Exec(t.Context(), "ALTER TABLE exposures MODIFY COLUMN rule String"))
	in, err := c.OpenInsert(t.Context(), schema.Exposures, place, "a")
	require.NoError(t, err)
	require.ErrorIs(t, in.Send(&schema.Rows{Laid: laid, LaidRows: 1}), errLaid)
	assert.Nil(t, c.NewColumns())
	insert(t, c, schema.Exposures, "b", exposures(0, 2))
	assert.Equal(t, 4, count(t, c, "SELECT count() FROM exposures"))
}

// One table that somebody has changed is enough: a block has rows for both.
func TestColumnsWhereOneTableWasChanged(t *testing.T) {
	c := open(t)
	require.NoError(t, c.Exec(t.Context(), "ALTER TABLE exposures MODIFY COLUMN rule String"))
	for _, table := range []schema.Table{schema.Exposures, schema.Events} {
		in, err := c.OpenInsert(t.Context(), table, place, "a")
		require.NoError(t, err)
		in.Close()
		assert.Nil(t, c.NewColumns(), table)
	}
}

// countedConn counts what is written to it.
type countedConn struct {
	net.Conn
	n int
}

func (c *countedConn) Write(p []byte) (int, error) { c.n += len(p); return len(p), nil }

// A block may end where a frame ends: then there is no frame after it, which the server
// would take for the next packet.
func TestColumnsThatFillTheirFrames(t *testing.T) {
	c := open(t)
	w, err := dialWire(t.Context(), c.opts)
	require.NoError(t, err)
	version := w.version
	require.NoError(t, w.conn.Close())
	laid := c.NewColumns().(*Columns)
	const ahead = 2 // the packet's code and the name of no table
	lay := func(long int) (size int) {
		b := oddBatch(3000)
		b.Events[0].UnitID = strings.Repeat("x", long)
		laid.Reset(place)
		laid.Append(b, 1)
		counted := &countedConn{}
		require.NoError(t, (&wire{conn: counted, version: version}).send(laid.tables[0].columns))
		return counted.n - ahead
	}
	long := 200 + frameBytes - lay(200)%frameBytes
	long += frameBytes - lay(long)%frameBytes // the length's own length may have grown
	exact := false
	for long -= 3; long < 1<<20 && !exact || lay(long)%frameBytes < 3; long++ {
		exact = exact || lay(long)%frameBytes == 0
		insert(t, c, schema.Exposures, fmt.Sprint("long", long), &schema.Rows{Laid: laid, LaidRows: laid.Rows(schema.Exposures)})
		assert.Equal(t, laid.Rows(schema.Exposures), count(t, c, fmt.Sprintf("SELECT count() FROM exposures WHERE batch_id IN (SELECT batch_id FROM exposures WHERE length(unit_id) = %d)", long)))
		require.NoError(t, c.Exec(t.Context(), "TRUNCATE TABLE exposures"))
	}
	assert.True(t, exact)
}

// The memory of a batch may be used for another once it was added.
func TestColumnsKeepNoMemoryOfABatch(t *testing.T) {
	c := (&Client{}).NewColumns().(*Columns)
	c.Reset(place)
	memory := []byte("aaaa")
	for _, v := range []string{"aaaa", "bbbb", unsafe.String(&memory[0], len(memory)), "bbbb"} {
		c.Append(&schema.Batch{Events: []schema.Event{{Kind: schema.KindExposure, Variant: v}}}, 1)
		if unsafe.StringData(v) == &memory[0] {
			copy(memory, "bbbb")
		}
	}
	assert.Equal(t, []byte{1, 2, 1, 2}, c.tables[0].variant.keys)
}

// plainBatch is 100 exposures as they mostly are.
func plainBatch() *schema.Batch {
	one := &schema.Batch{Project: "shop", ID: batch.ForKey("p", "1"), Source: "native", SDK: "js/1.2.3", ReceivedAt: time.Now().UnixMicro()}
	for i := range uint32(100) {
		one.Events = append(one.Events, schema.Event{Kind: schema.KindExposure, Index: i, Experiment: fmt.Sprint("checkout", i%7), Variant: []string{"control", "treatment"}[i%2],
			UnitType: "user", UnitID: fmt.Sprintf("user-%08d", i*7919), Time: one.ReceivedAt, ID: batch.EventID(one.ID, i), Rule: "rule", Reason: "split",
			Attributes: []schema.Attribute{{Key: "country", Value: "DE"}, {Key: "plan", Value: "pro"}, {Key: "version", Value: "1.2.3"}}})
	}
	return one
}

// A block's words cost an allocation each, and its events none, however many.
func TestColumnsAllocateNothingForAnEvent(t *testing.T) {
	c, one := (&Client{}).NewColumns(), plainBatch()
	lay := func(batches int) float64 {
		block := func() {
			c.Reset(place)
			for i := range batches {
				c.Append(one, int64(i))
			}
		}
		block()
		return testing.AllocsPerRun(5, block)
	}
	few := lay(2)
	assert.LessOrEqual(t, few, 40.0)
	assert.Equal(t, few, lay(200))
}

func BenchmarkColumns(b *testing.B) {
	one := plainBatch()
	c := (&Client{}).NewColumns()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%1000 == 0 {
			c.Reset(place)
		}
		c.Append(one, int64(i))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/event")
}
