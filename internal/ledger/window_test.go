package ledger

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

func TestWindow(t *testing.T) {
	w := newWindow()
	_, ok := w.oldest()
	assert.False(t, ok)
	assert.Zero(t, w.settled())

	assert.Equal(t, uint64(1), w.give(2, 100))
	assert.Equal(t, uint64(3), w.give(3, 200))
	at, ok := w.oldest()
	assert.True(t, ok)
	assert.Equal(t, int64(100), at)

	w.settle(3, markKept)
	w.settle(2, markVoid)
	assert.Zero(t, w.settled(), "1 is still in flight")
	assert.Empty(t, w.voids, "and nothing behind it counts yet")
	assert.Equal(t, 3, w.open)
	w.settle(1, markKept)
	assert.Equal(t, uint64(3), w.settled())
	assert.Equal(t, []batch.SeqRange{{First: 2, Last: 2}}, w.voids)
	at, _ = w.oldest()
	assert.Equal(t, int64(200), at)

	for _, n := range []uint64{0, 2, 3, 6, 1 << 63} { // settled before, or never given
		w.settle(n, markVoid)
	}
	assert.Equal(t, 2, w.open)
	w.settle(4, markVoid)
	w.settle(4, markKept)
	w.settle(5, markVoid)
	assert.Equal(t, uint64(5), w.settled())
	assert.Equal(t, []batch.SeqRange{{First: 2, Last: 2}, {First: 4, Last: 5}}, w.voids, "what is settled stays what it is")
	assert.Zero(t, w.open)
	_, ok = w.oldest()
	assert.False(t, ok)
}

// Against a map that knows everything, with the window going round and growing.
func TestWindowModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	w := newWindow()
	type number struct {
		at         int64
		open, void bool
	}
	all := map[uint64]*number{}
	var open []uint64
	clock, most := int64(0), 2000
	for step := range 40_000 {
		if step == 20_000 {
			most = 10_000 // grows past its first size while it is in the middle
		}
		if len(open) == 0 || len(open) < most && rng.IntN(100) < 51 {
			n := 1 + rng.IntN(5)
			clock += rng.Int64N(3)
			first := w.give(n, clock)
			require.Equal(t, uint64(len(all)+1), first)
			for i := range n {
				all[first+uint64(i)] = &number{at: clock, open: true}
				open = append(open, first+uint64(i))
			}
		} else {
			i := rng.IntN(min(len(open), 50)) // some stay long
			n := all[open[i]]
			n.open, n.void = false, rng.IntN(3) == 0
			mark := markKept
			if n.void {
				mark = markVoid
			}
			w.settle(open[i], mark)
			open = append(open[:i], open[i+1:]...)
		}
		require.Equal(t, len(open), w.open)
		if step%2000 != 0 {
			continue
		}
		settled := uint64(0)
		for n := uint64(1); all[n] != nil && !all[n].open; n++ {
			settled = n
		}
		require.Equal(t, settled, w.settled())
		at, ok := w.oldest()
		require.Equal(t, len(open) > 0, ok)
		if ok {
			require.Equal(t, all[settled+1].at, at)
		}
		claimed := covered(w.voids)
		unproven := w.joined
		for n := uint64(1); n <= settled; n++ {
			if claimed[n] && !all[n].void {
				unproven--
			}
			require.False(t, all[n].void && !claimed[n], "%d is void", n)
		}
		require.Zero(t, unproven, "every number between voids that is not one is counted")
	}
}

func covered(voids []batch.SeqRange) map[uint64]bool {
	out := map[uint64]bool{}
	for _, v := range voids {
		for n := v.First; n <= v.Last; n++ {
			out[n] = true
		}
	}
	return out
}

func TestWindowGivesMemoryBack(t *testing.T) {
	w := newWindow()
	w.give(roomySlots+1, 1)
	for n := uint64(1); n <= roomySlots+1; n++ {
		w.settle(n, markKept)
	}
	assert.Empty(t, w.slots)
	assert.Equal(t, uint64(roomySlots+2), w.give(1, 1))
	w.settle(roomySlots+2, markVoid)
	assert.Equal(t, uint64(roomySlots+2), w.settled())
}

func TestJoinVoids(t *testing.T) {
	r := func(first, last uint64) batch.SeqRange { return batch.SeqRange{First: first, Last: last} }
	for name, tt := range map[string]struct {
		voids   []batch.SeqRange
		most    int
		want    []batch.SeqRange
		between uint64
	}{
		"none":          {nil, 1, nil, 0},
		"few":           {[]batch.SeqRange{r(1, 1), r(3, 3)}, 2, []batch.SeqRange{r(1, 1), r(3, 3)}, 0},
		"the closest":   {[]batch.SeqRange{r(1, 1), r(5, 6), r(8, 8), r(20, 20)}, 3, []batch.SeqRange{r(1, 1), r(5, 8), r(20, 20)}, 1},
		"and the next":  {[]batch.SeqRange{r(1, 1), r(5, 6), r(8, 8), r(20, 20)}, 2, []batch.SeqRange{r(1, 8), r(20, 20)}, 4},
		"all":           {[]batch.SeqRange{r(1, 1), r(5, 6), r(8, 8), r(20, 20)}, 1, []batch.SeqRange{r(1, 20)}, 15},
		"first of ties": {[]batch.SeqRange{r(1, 1), r(3, 3), r(5, 5)}, 2, []batch.SeqRange{r(1, 3), r(5, 5)}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			got, between := joinVoids(append([]batch.SeqRange(nil), tt.voids...), tt.most)
			assert.Equal(t, tt.want, got)
			assert.Equal(t, tt.between, between)
		})
	}
}

func TestVoidsAreBounded(t *testing.T) {
	l, err := Open("", nil)
	require.NoError(t, err)
	begin(t, l)
	unproven := uint64(0)
	for i := range 3*batch.MaxVoids + 100 {
		l.Void(numbered(l.Accept(1)))
		for range 1 + i%3 {
			l.Spooled(numbered(l.Accept(1)))
		}
		if i%1000 != 0 && i < 3*batch.MaxVoids {
			continue
		}
		r := l.snapshot(&disk{})
		require.Equal(t, l.window.next-1, r.Settled)
		require.Len(t, r.Voids, min(i+1, batch.MaxVoids))
		require.GreaterOrEqual(t, r.Unproven, unproven, "says what the ones before it said")
		unproven = r.Unproven
		void := uint64(0)
		for _, v := range r.Voids {
			void += v.Last - v.First + 1
		}
		require.Equal(t, void, uint64(i+1)+r.Unproven)
		value, err := r.Encode()
		require.NoError(t, err)
		require.Less(t, len(value), 400<<10, "fits a Kafka record")
	}
}

// A number nobody settles does not fill the memory: at some point nothing more is
// given, and Ready says why.
func TestWindowIsBounded(t *testing.T) {
	l, err := Open("", nil)
	require.NoError(t, err)
	begin(t, l)
	s := l.Accept(maxWindow)
	require.Equal(t, uint64(1), s.FirstSeq)
	assert.ErrorIs(t, l.Ready(), errUnsettled)
	assert.Zero(t, l.Accept(1))
	l.Spooled(numbered(s))
	assert.NoError(t, l.Ready())
	assert.Zero(t, l.Accept(2))
	assert.Equal(t, uint64(maxWindow+1), l.Accept(1).FirstSeq)
}
