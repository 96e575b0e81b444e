package faults

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/test/pipeline"
)

// Two sinks: one is stopped and started, then the other is paused for longer than
// its session and goes on, believing that it still owns its partitions.
func TestStoppedSinkAndZombie(t *testing.T) {
	s := startServers(t)
	p := s.pipeline(t)
	c := p.Collector()
	env := []string{session, "SLUICE_SINK_FLUSH_INTERVAL=50ms", "SLUICE_SINK_FLUSH_INTERVAL_MAX=300ms"}
	a, b := p.Sink(env...), p.Sink(env...)
	p.KeepEveryRow()
	load := pipeline.StartLoad(t, []string{c.URL}, 4, 50, 10*time.Millisecond)
	p.Eventually(1, "SELECT toUInt64(count() > 1000) FROM exposures", settle)

	ctx, cancel := context.WithTimeout(t.Context(), settle)
	defer cancel()
	require.NoError(t, a.Stop(ctx))
	pause(t, 2*time.Second)
	require.NoError(t, a.Restart(ctx))
	pause(t, 3*time.Second)

	for _, zombie := range []*pipeline.Service{b, a} {
		stored := p.Count("SELECT count() FROM exposures")
		require.NoError(t, zombie.Pause())
		pause(t, 10*time.Second)
		assert.Greater(t, p.Count("SELECT count() FROM exposures"), stored, "the other sink has taken over")
		require.NoError(t, zombie.Resume())
		pause(t, 5*time.Second)
	}
	load.Stop()
	load.AllOnce(p, settle)
	for _, sink := range []*pipeline.Service{a, b} {
		assert.Zero(t, sink.Metric(t, "sluice_sink_alarms_total"), "alarms")
	}
}
