package bench

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMedian(t *testing.T) {
	assert.Zero(t, Median(nil))
	assert.Equal(t, 2.0, Median([]float64{3, 1, 2}))
	assert.Equal(t, 2.5, Median([]float64{4, 1, 3, 2}))
}

func TestResults(t *testing.T) {
	var r Results
	for i, v := range []float64{1.23456, 3, 2} {
		r.Add("a", "CPU-s/M", v)
		r.Add("b", "CPU-s/M", float64(i+1))
		r.Add("c", "CPU-s/M", 1)
		r.Ratio("a/of-b-and-c", "a", "b", "c")
		r.Ratio("never", "a", "missing")
	}
	list := r.List()
	require.Len(t, list, 4)
	assert.Equal(t, Result{"a", 2, "CPU-s/M", []float64{1.235, 3, 2}}, list[0])
	assert.Equal(t, Result{"a/of-b-and-c", 0.6173, "ratio", []float64{0.6173, 1, 0.5}}, list[3])

	path := filepath.Join(t.TempDir(), "new", "results.json")
	require.NoError(t, WriteFile(path, list))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var back []Result
	require.NoError(t, json.Unmarshal(text, &back))
	assert.Equal(t, list, back)
	assert.Contains(t, string(text), `"runs": [`)
	require.ErrorContains(t, WriteFile(filepath.Join(path, "below"), list), "write the results to")

	var b strings.Builder
	require.NoError(t, WriteGoBench(&b, list[3:]))
	assert.Equal(t, "BenchmarkA_of-b-and-c 1 0.6173 ratio\nBenchmarkA_of-b-and-c 1 1 ratio\nBenchmarkA_of-b-and-c 1 0.5 ratio\n", b.String())
}

func TestCosts(t *testing.T) {
	assert.Zero(t, Ceiling{}.Cost())
	assert.InDelta(t, 0.5, Ceiling{Events: 2_000_000, CPU: 1}.Cost(), 1e-9)
	assert.Equal(t, 1234.0, round(1234.4))
	assert.True(t, math.IsInf(round(math.Inf(1)), 1))
}

func TestLimits(t *testing.T) {
	l, ok := LimitOf("collector/statsig/of-native")
	require.True(t, ok)
	assert.Equal(t, "≤ 3", l.String())
	assert.True(t, l.Met(3))
	assert.False(t, l.Met(3.01))
	l, ok = LimitOf("both/rate")
	require.True(t, ok)
	assert.True(t, l.Met(250_000))
	assert.False(t, l.Met(249_999))
	_, ok = LimitOf("collector/statsig")
	assert.False(t, ok)
}
