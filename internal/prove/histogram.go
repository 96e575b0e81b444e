package prove

import (
	"math/bits"
	"time"
)

// histogram counts durations in buckets that are 1/32 of their value wide at
// most: in every power of two of microseconds there are 32. It holds up to 2^40 µs
// (12 days). The zero value is ready to use; it is not safe for concurrent use.
type histogram struct {
	counts [36 * perPower]uint64
	n      uint64
	max    time.Duration
}

const perPower = 32

// bucket numbers the buckets from the shortest on.
func bucket(d time.Duration) int {
	us := uint64(max(0, d.Microseconds()))
	if us < perPower {
		return int(us) // exact
	}
	power := bits.Len64(us) - 6 // of the width of us's bucket
	return min((power+1)*perPower+int(us>>power)-perPower, 36*perPower-1)
}

// upper is the longest duration of a bucket.
func upper(b int) time.Duration {
	if b < perPower {
		return time.Duration(b) * time.Microsecond
	}
	power := b/perPower - 1
	us := (uint64(b%perPower)+perPower+1)<<power - 1
	return time.Duration(us) * time.Microsecond
}

func (h *histogram) add(d time.Duration) {
	h.counts[bucket(d)]++
	h.n++
	h.max = max(h.max, d)
}

// quantile is the duration that a share q of all does not pass, rounded up to the
// end of its bucket: at most 1/32 too long. 0 where nothing was counted.
func (h *histogram) quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	rank := uint64(q * float64(h.n))
	if float64(rank) < q*float64(h.n) || rank == 0 {
		rank++
	}
	var seen uint64
	for b, c := range h.counts {
		if seen += c; seen >= rank {
			return min(upper(b), h.max)
		}
	}
	return h.max
}
