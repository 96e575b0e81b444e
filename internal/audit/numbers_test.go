package audit

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

// compare finds exactly the numbers that are missing, however the chunks lie.
func TestCompare(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 8 {
		s := Series{Collector: batch.Random(), Epoch: 7}
		first := 1 + rnd.Uint64N(3*ChunkSize)
		w := &wanted{span: span{first, first + rnd.Uint64N(3*ChunkSize)}}
		there := map[uint64]bool{}
		missing := []uint64{}
		for n := w.first; n <= w.last; n++ {
			there[n] = true
		}
		excepted := func(n uint64) bool {
			for _, e := range w.except {
				if e.first <= n && n <= e.last {
					return true
				}
			}
			return false
		}
		for range rnd.IntN(5) {
			from := w.first + rnd.Uint64N(w.last-w.first+1)
			w.except = append(w.except, span{from, from + rnd.Uint64N(100)})
		}
		if rnd.IntN(4) == 0 { // a whole chunk that may be missing
			w.except = append(w.except, span{ChunkSize, 2*ChunkSize - 1})
		}
		w.except = normal(w.except)
		take := func(n uint64) {
			if there[n] {
				delete(there, n)
				if !excepted(n) {
					missing = append(missing, n)
				}
			}
		}
		for range rnd.IntN(6) {
			from := w.first + rnd.Uint64N(w.last-w.first+1)
			for n := from; n <= from+rnd.Uint64N(200); n++ {
				take(n)
			}
		}
		take(w.first)
		take(w.last)
		if rnd.IntN(4) == 0 {
			for n := uint64(2 * ChunkSize); n < 3*ChunkSize; n++ {
				take(n)
			}
		}
		chunks := map[Series]map[uint64]uint64{s: {}}
		for n := range there {
			chunks[s][n/ChunkSize]++
		}
		listed := 0
		a := &auditor{}
		got, err := a.compare(t.Context(), "", map[Series]*wanted{s: w}, chunks, func(_ context.Context, ask []Chunk, found func(Series, uint64)) error {
			listed += len(ask)
			for _, k := range ask {
				for n := k.Index * ChunkSize; n < (k.Index+1)*ChunkSize; n++ {
					if there[n] {
						found(k.Series, n)
					}
				}
			}
			return nil
		})
		require.NoError(t, err)
		want := map[uint64]bool{}
		for _, n := range missing {
			want[n] = true
		}
		have := map[uint64]bool{}
		g := got[s]
		require.NotNil(t, g)
		for _, x := range g.spans {
			for n := x.first; n <= x.last; n++ {
				have[n] = true
			}
		}
		require.Equal(t, want, have)
		assert.EqualValues(t, len(want), g.count)
		assert.LessOrEqual(t, listed, 7)
		for n := range want {
			require.True(t, g.take(n))
			require.False(t, g.take(n))
		}
		assert.Zero(t, g.count)
		assert.Empty(t, g.spans)
	}
}

// A whole series that is there is not listed.
func TestCompareListsOnlyWhatIsInDoubt(t *testing.T) {
	s := Series{Log: "l", Partition: 3}
	chunks := map[Series]map[uint64]uint64{s: {}}
	for i := range uint64(1000) {
		chunks[s][i] = ChunkSize
	}
	a := &auditor{}
	got, err := a.compare(t.Context(), "", map[Series]*wanted{s: {span: span{0, 1000*ChunkSize - 1}}}, chunks,
		func(context.Context, []Chunk, func(Series, uint64)) error {
			t.Error("nothing is in doubt")
			return nil
		})
	require.NoError(t, err)
	assert.Empty(t, got)
}

func TestNormal(t *testing.T) {
	assert.Equal(t, []span{{1, 9}, {11, 20}, {22, 22}}, normal([]span{{11, 20}, {3, 9}, {1, 5}, {12, 13}, {22, 22}, {5, 4}}))
}
