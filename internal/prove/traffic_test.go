package prove

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func newTestTraffic(t testing.TB, seed uint64, events int) *traffic {
	t.Helper()
	tr, err := newTraffic(seed, events)
	require.NoError(t, err)
	return tr
}

func TestIDsTellTheirPlace(t *testing.T) {
	tr := newTestTraffic(t, 1, 10)
	seen := map[eventID]bool{}
	for _, batch := range []uint64{0, 1, 2, 1 << 40} {
		for _, index := range []int{0, 1, 9, 999} {
			id := tr.mint.id(batch, index)
			assert.False(t, seen[id])
			seen[id] = true
			parsed, err := parseID(id.String())
			require.NoError(t, err)
			b, i, ok := tr.mint.place(parsed)
			assert.True(t, ok)
			assert.Equal(t, batch, b)
			assert.Equal(t, index, i)
		}
	}
	other := newTestTraffic(t, 2, 10)
	_, _, ok := other.mint.place(tr.mint.id(3, 3))
	assert.False(t, ok, "another seed's")
	_, _, ok = tr.mint.place(eventID{1, 2, 3})
	assert.False(t, ok, "nobody's")
}

func TestParseID(t *testing.T) {
	for _, bad := range []string{"", "x", "00000000-0000-0000-0000-00000000000", "0000000000000-0000-0000-000000000000", "g0000000-0000-0000-0000-000000000000", "00000000000000000000000000000000"} {
		_, err := parseID(bad)
		assert.Error(t, err, bad)
	}
}

func TestTrafficIsTheSeeds(t *testing.T) {
	a, b, c := newTestTraffic(t, 7, 10), newTestTraffic(t, 7, 10), newTestTraffic(t, 8, 10)
	for _, n := range []uint64{0, 7, 19, 1234} {
		assert.Equal(t, string(a.body(n)), string(b.body(n)))
		assert.NotEqual(t, string(a.body(n)), string(c.body(n)))
		assert.NotEqual(t, a.key(n), a.key(n+1))
	}
}

func TestBodyHoldsWhatTheCheckerExpects(t *testing.T) {
	for _, events := range []int{1, 3, 10, 65} {
		tr := newTestTraffic(t, 7, events)
		for n := range uint64(60) {
			var list []map[string]any
			require.NoError(t, json.Unmarshal(tr.body(n), &list))
			require.Len(t, list, events)
			bads := 0
			for i, e := range list {
				assert.Equal(t, tr.mint.id(n, i).String(), e["event_id"])
				switch tr.kindOf(n, i) {
				case exposure:
					assert.Equal(t, experimentOf(n), e["experiment"])
					assert.Equal(t, variantOf(n, i), e["variant"])
					assert.Equal(t, unitOf(n, i), e["unit_id"])
				case custom:
					assert.Equal(t, "event", e["kind"])
					assert.Equal(t, unitOf(n, i), e["unit_id"])
				case bad:
					bads++
					assert.NotContains(t, e, "unit_id")
				}
			}
			assert.Equal(t, tr.bads(n), bads)
		}
	}
}

func BenchmarkBody(b *testing.B) {
	tr := newTestTraffic(b, 1, 10)
	b.ReportAllocs()
	for n := uint64(0); b.Loop(); n++ {
		_ = tr.body(n)
	}
}
