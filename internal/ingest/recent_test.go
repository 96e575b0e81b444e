package ingest

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

func id(n int) batch.ID { return batch.ForKey("p", fmt.Sprint(n)) }

// remember begins and finishes an attempt.
func remember(t *testing.T, r *recent, n int, o outcome) {
	t.Helper()
	a, _, first := r.begin(id(n), batch.Digest{})
	require.True(t, first)
	r.finish(a, o)
}

func knows(r *recent, n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byID[id(n)] != nil
}

func TestRecentIsBounded(t *testing.T) {
	one := outcome{result: protocol.Result{Accepted: 1}}
	long := outcome{result: protocol.Result{Rejected: []schema.Rejected{{Message: strings.Repeat("x", 2000)}}}}
	t.Run("by count", func(t *testing.T) {
		r := newRecent(10, 1<<20, time.Hour)
		for i := range 25 {
			remember(t, r, i, one)
		}
		assert.Equal(t, 10, r.size())
		assert.False(t, knows(r, 14))
		assert.True(t, knows(r, 15))
	})
	t.Run("by bytes", func(t *testing.T) {
		r := newRecent(1000, 10*long.cost(), time.Hour)
		for i := range 25 {
			remember(t, r, i, long)
		}
		assert.Equal(t, 10, r.size())
	})
	t.Run("one that would take it all", func(t *testing.T) {
		r := newRecent(1000, 4*long.cost(), time.Hour)
		remember(t, r, 1, one)
		remember(t, r, 2, long)
		assert.True(t, knows(r, 1))
		assert.False(t, knows(r, 2))
	})
	t.Run("by age", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRecent(1000, 1<<20, time.Minute)
			remember(t, r, 1, one)
			<-time.After(40 * time.Second)
			remember(t, r, 2, one)
			<-time.After(20 * time.Second)
			remember(t, r, 3, one)
			assert.False(t, knows(r, 1))
			assert.True(t, knows(r, 2))
			<-time.After(time.Hour)
			_, _, first := r.begin(id(3), batch.Digest{})
			assert.True(t, first, "an old one is not answered from memory, even if nothing has come since")
			assert.Equal(t, 1, r.size())
		})
	})
	t.Run("what is in flight stays", func(t *testing.T) {
		r := newRecent(1, 1<<20, time.Hour)
		a, _, first := r.begin(id(0), batch.Digest{})
		require.True(t, first)
		for i := range 5 {
			remember(t, r, i+1, one)
		}
		_, done, first := r.begin(id(0), batch.Digest{})
		assert.False(t, first)
		assert.NotNil(t, done)
		r.finish(a, outcome{failed: true})
		<-done
		assert.False(t, knows(r, 0), "a failed one is forgotten")
	})
}

// TestRecentCost: what is counted for a remembered batch is what it takes up.
func TestRecentCost(t *testing.T) {
	const n = 20_000
	r := newRecent(n, 1<<40, time.Hour)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range n {
		rs := []schema.Rejected{{Code: schema.CodeMissingField, Field: "unit_id", Message: strings.Clone("unit_id is missing")}}
		remember(t, r, i, outcome{result: protocol.Result{Accepted: 1, Rejected: rs}})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	assert.Equal(t, n, r.size())
	takes, counted := int64(after.HeapAlloc)-int64(before.HeapAlloc), r.bytes
	t.Logf("%d bytes a batch, counted as %d", takes/n, counted/n)
	assert.Less(t, takes, counted*5/4)
	runtime.KeepAlive(r)
}
