package prove

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestBucketsAreNarrowAndWithoutGaps(t *testing.T) {
	last := -1
	for us := range int64(1 << 14) {
		d := time.Duration(us) * time.Microsecond
		b := bucket(d)
		assert.Contains(t, []int{last, last + 1}, b, "%v", d)
		last = b
		assert.GreaterOrEqual(t, upper(b), d)
		assert.LessOrEqual(t, upper(b)-d, d/perPower, "%v", d)
	}
	for _, d := range []time.Duration{time.Second, time.Minute, 24 * time.Hour, 11 * 24 * time.Hour} {
		assert.GreaterOrEqual(t, upper(bucket(d)), d)
		assert.LessOrEqual(t, upper(bucket(d))-d, d/perPower)
	}
	assert.Zero(t, bucket(-time.Second), "a clock that went back")
	assert.Equal(t, len(histogram{}.counts)-1, bucket(1<<62), "longer than there are buckets")
}

func TestQuantiles(t *testing.T) {
	var h histogram
	assert.Zero(t, h.quantile(0.5))
	random := rand.New(rand.NewPCG(1, 2))
	var all []time.Duration
	for range 10_001 {
		d := time.Duration(random.ExpFloat64() * float64(20*time.Millisecond)).Truncate(time.Microsecond)
		all = append(all, d)
		h.add(d)
	}
	slices.Sort(all)
	for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999, 1} {
		want := all[min(len(all)-1, int(q*float64(len(all))))]
		got := h.quantile(q)
		assert.GreaterOrEqual(t, got, want, "%v", q)
		assert.LessOrEqual(t, got-want, want/perPower+time.Microsecond, "%v", q)
	}
	assert.Equal(t, all[len(all)-1], h.max)
	assert.Equal(t, h.max, h.quantile(1))
	var one histogram
	one.add(777 * time.Microsecond)
	assert.Equal(t, 777*time.Microsecond, one.quantile(0.01))
	assert.Equal(t, 777*time.Microsecond, one.quantile(0.99))
}
