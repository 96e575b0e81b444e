package prove

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func allTargets() Targets {
	return Targets{
		OnCollector: {"collector-1", "collector-2"}, OnSink: {"sink-1", "sink-2"},
		OnBroker: {"broker"}, OnClickHouse: {"clickhouse"},
		OnClient:         {"client>collector-1", "client>collector-2"},
		OnCollectorKafka: {"collector-1>kafka", "collector-2>kafka"},
		OnSinkKafka:      {"sink-1>kafka", "sink-2>kafka"},
		OnSinkClickHouse: {"sink-1>clickhouse", "sink-2>clickhouse"},
		OnSpool:          {"collector-1", "collector-2"}, OnInsert: {"insert"},
	}
}

func kindNamed(t *testing.T, name string) faultKind {
	t.Helper()
	i := slices.IndexFunc(kinds(), func(k faultKind) bool { return k.name == name })
	require.GreaterOrEqual(t, i, 0, name)
	return kinds()[i]
}

func TestPlanIsTheSeeds(t *testing.T) {
	a := Plan(42, 10*time.Minute, Kinds(), allTargets(), 0)
	assert.Equal(t, a, Plan(42, 10*time.Minute, Kinds(), allTargets(), 0))
	assert.NotEqual(t, a, Plan(43, 10*time.Minute, Kinds(), allTargets(), 0))
}

func TestPlanKeepsItsPromises(t *testing.T) {
	for seed := range uint64(20) {
		const duration = 10 * time.Minute
		plan := Plan(seed, duration, Kinds(), allTargets(), 0)
		assert.GreaterOrEqual(t, len(plan), 110, "at least 100, and some that cannot be done")
		assert.GreaterOrEqual(t, plan[0].At, 30*time.Second, "quiet at first")
		times, overlaps := map[string]int{}, 0
		for i, f := range plan {
			k := kindNamed(t, f.Kind)
			times[f.Kind]++
			assert.Contains(t, allTargets()[k.class], f.Target)
			assert.LessOrEqual(t, f.At+f.For, duration)
			if k.long {
				assert.GreaterOrEqual(t, f.For, 30*time.Second)
				assert.LessOrEqual(t, f.For, time.Minute)
			} else {
				assert.GreaterOrEqual(t, f.For, k.from)
				assert.LessOrEqual(t, f.For, k.to)
			}
			if len(k.modes) > 0 {
				assert.Contains(t, k.modes, f.Mode)
			}
			running := 0
			for _, g := range plan[:i] {
				require.LessOrEqual(t, g.At, f.At, "in order")
				if g.At+g.For <= f.At {
					continue
				}
				running++
				overlaps++
				assert.NotEqual(t, resource(kindNamed(t, g.Kind), g.Target), resource(k, f.Target), "%v and %v", g, f)
			}
			assert.Less(t, running, mostAtOnce)
		}
		assert.Len(t, times, len(kinds()), "every kind")
		assert.Greater(t, overlaps, 50)
		assert.LessOrEqual(t, times["outage-broker"], 3)
	}
}

func TestPlanOfAFewKinds(t *testing.T) {
	plan := Plan(1, 7*time.Minute, []string{"outage-broker"}, allTargets(), 5*time.Minute)
	require.Len(t, plan, 1)
	assert.Equal(t, 5*time.Minute, plan[0].For)
	assert.Equal(t, 30*time.Second, plan[0].At, "after a quiet time to compare with")

	assert.Empty(t, Plan(1, time.Minute, Kinds(), Targets{}, 0), "nothing to befall")
	assert.Empty(t, Plan(1, time.Minute, nil, allTargets(), 0))
	assert.Empty(t, Plan(1, time.Minute, []string{"outage-broker"}, allTargets(), 5*time.Minute), "it would not be over")

	for _, f := range Plan(1, 3*time.Minute, []string{"kill-sink"}, allTargets(), 0) {
		assert.Equal(t, "kill-sink", f.Kind)
	}
	short := Plan(3, 3*time.Minute, Kinds(), allTargets(), 0)
	assert.Greater(t, len(short), 30)
	for _, f := range short {
		assert.LessOrEqual(t, f.For, 30*time.Second)
	}
}

func TestSelect(t *testing.T) {
	all, err := Select("all")
	require.NoError(t, err)
	assert.Equal(t, Kinds(), all)
	some, err := Select("pause-sink, kill-*,kill-sink")
	require.NoError(t, err)
	assert.Equal(t, []string{"kill-broker", "kill-clickhouse", "kill-collector", "kill-sink", "pause-sink"}, some)
	for _, bad := range []string{"", "kill", "all,kill-sink", "kill-sink,", "burn-*"} {
		_, err := Select(bad)
		assert.ErrorContains(t, err, "kill-sink, ", bad)
	}
}
