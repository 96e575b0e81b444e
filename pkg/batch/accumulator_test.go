package batch

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestAccumulator(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		bound Bound
		add   [][2]int // count, bytes; one a second
		due   []bool   // after each
	}{
		"by count":      {Bound{Count: 3}, [][2]int{{1, 100}, {1, 100}, {1, 100}}, []bool{false, false, true}},
		"by bytes":      {Bound{Bytes: 250}, [][2]int{{1, 100}, {1, 100}, {1, 100}}, []bool{false, false, true}},
		"by age":        {Bound{Age: 2 * time.Second}, [][2]int{{1, 1}, {1, 1}, {1, 1}}, []bool{false, false, true}},
		"unbounded":     {Bound{}, [][2]int{{1 << 20, 1 << 30}}, []bool{false}},
		"one too large": {Bound{Count: 10, Bytes: 10}, [][2]int{{1, 5000}}, []bool{true}},
	} {
		t.Run(name, func(t *testing.T) {
			a := NewAccumulator[int](tt.bound)
			assert.False(t, a.Due(start.Add(time.Hour)), "empty is never due")
			assert.Negative(t, a.Remaining(start))
			for i, c := range tt.add {
				now := start.Add(time.Duration(i) * time.Second)
				a.Add(i, c[0], int64(c[1]), now)
				assert.Equal(t, tt.due[i], a.Due(now), "after item %d", i)
			}
			n := a.Len()
			assert.Len(t, a.Take(), n)
			assert.Zero(t, a.Len())
			assert.Zero(t, a.Bytes())
			assert.Zero(t, a.Count())
		})
	}
}

func TestAccumulatorFits(t *testing.T) {
	a := NewAccumulator[string](Bound{Count: 2, Bytes: 10, Age: time.Second})
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	assert.True(t, a.Fits(100, 100), "anything fits into an empty one")
	a.Add("x", 1, 6, now)
	assert.True(t, a.Fits(1, 4))
	assert.False(t, a.Fits(1, 5))
	assert.False(t, a.Fits(2, 1))
	assert.Equal(t, 400*time.Millisecond, a.Remaining(now.Add(600*time.Millisecond)))
	assert.Zero(t, a.Remaining(now.Add(2*time.Second)))
	a.SetAge(5 * time.Second)
	assert.Equal(t, 3*time.Second, a.Remaining(now.Add(2*time.Second)))
}
