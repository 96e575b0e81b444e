package ledger

import (
	"cmp"
	"math"
	"slices"

	"sluice/pkg/batch"
)

// window knows what became of every number that was given, as far back as the
// oldest that is still in flight. What lies before it is settled, and only the
// voids of that are remembered. Numbers are given with times that never go back,
// so the time of the first is the oldest.
type window struct {
	slots  []int64 // number n is at n modulo their count, a power of two: its receive time, or a mark
	first  uint64  // the oldest in flight; next, where there is none
	next   uint64  // the number that will be given next
	open   int     // how many are in flight
	voids  []batch.SeqRange
	joined uint64 // numbers between voids that were joined
}

// A number that is not in flight any more. Receive times are never negative.
const (
	markKept int64 = math.MinInt64 + iota // in Kafka or in the spool
	markVoid
)

const (
	// maxWindow bounds the numbers from the oldest in flight on: 32 MiB, and at
	// 10,000 batches a second seven minutes, far more than a request may take.
	maxWindow = 1 << 22
	// roomySlots is from where on the slots of an empty window are given back.
	roomySlots = 1 << 16
	fewSlots   = 1 << 10
)

func newWindow() window { return window{first: 1, next: 1} }

// fits reports whether n more numbers may be given.
func (w *window) fits(n int) bool { return w.next-w.first+uint64(n) <= maxWindow }

// give puts n numbers in flight and returns the first.
func (w *window) give(n int, at int64) uint64 {
	if need := w.next - w.first + uint64(n); need > uint64(len(w.slots)) {
		w.grow(need)
	}
	first, mask := w.next, uint64(len(w.slots)-1)
	for range n {
		w.slots[w.next&mask] = at
		w.next++
	}
	w.open += n
	return first
}

func (w *window) grow(need uint64) {
	size := uint64(max(len(w.slots), fewSlots))
	for size < need {
		size *= 2
	}
	slots := make([]int64, size)
	for n := w.first; n < w.next; n++ {
		slots[n&(size-1)] = w.slots[n&uint64(len(w.slots)-1)]
	}
	w.slots = slots
}

// settle takes a number out of flight. One that is not in flight, because it was
// settled before or never given, stays what it is.
func (w *window) settle(n uint64, mark int64) {
	if n < w.first || n >= w.next {
		return
	}
	mask := uint64(len(w.slots) - 1)
	if w.slots[n&mask] < 0 {
		return
	}
	w.slots[n&mask] = mark
	w.open--
	for w.first < w.next && w.slots[w.first&mask] < 0 {
		if w.slots[w.first&mask] == markVoid {
			w.addVoid(w.first)
		}
		w.first++
	}
	if w.first == w.next && len(w.slots) > roomySlots {
		w.slots = nil
	}
}

// settled is the number up to which every one is settled.
func (w *window) settled() uint64 { return w.first - 1 }

// oldest is the receive time of the oldest number in flight.
func (w *window) oldest() (at int64, ok bool) {
	if w.first == w.next {
		return 0, false
	}
	return w.slots[w.first&uint64(len(w.slots)-1)], true
}

// addVoid appends to the voids: numbers come in order, with the settled ones.
// Twice what a record may list is kept, so that joining is seldom.
func (w *window) addVoid(n uint64) {
	if last := len(w.voids) - 1; last >= 0 && w.voids[last].Last+1 == n {
		w.voids[last].Last = n
		return
	}
	if len(w.voids) == 2*batch.MaxVoids {
		var between uint64
		w.voids, between = joinVoids(w.voids, batch.MaxVoids)
		w.joined += between
	}
	w.voids = append(w.voids, batch.SeqRange{First: n, Last: n})
}

// joinVoids joins the closest neighbours until at most so many ranges are left,
// and counts the numbers that were between them. It works in place.
func joinVoids(voids []batch.SeqRange, most int) (_ []batch.SeqRange, between uint64) {
	excess := len(voids) - most
	if excess <= 0 {
		return voids, 0
	}
	gap := func(i int) uint64 { return voids[i].First - voids[i-1].Last - 1 }
	order := make([]int, 0, len(voids)-1)
	for i := 1; i < len(voids); i++ {
		order = append(order, i)
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Or(cmp.Compare(gap(a), gap(b)), cmp.Compare(a, b)) })
	join := make([]bool, len(voids))
	for _, i := range order[:excess] {
		join[i] = true
		between += gap(i)
	}
	kept := voids[:0]
	for i, v := range voids {
		if join[i] {
			kept[len(kept)-1].Last = v.Last
			continue
		}
		kept = append(kept, v)
	}
	return kept, between
}
