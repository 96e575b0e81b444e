package faults

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/embedded"
	"sluice/test/pipeline"
)

const settle = 3 * time.Minute

// Kills at random moments under a steady load: the sink at least 20 times,
// ClickHouse at least 5 times. SLUICE_TEST_SEED repeats a schedule.
func TestKillsUnderLoad(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("SLUICE_TEST_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("SLUICE_TEST_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 1))

	s := startServers(t)
	p := s.pipeline(t)
	c := p.Collector()
	// Small blocks, so that a kill finds something half done.
	env := []string{session, "SLUICE_SINK_FLUSH_INTERVAL=50ms", "SLUICE_SINK_FLUSH_INTERVAL_MAX=300ms"}
	sinks := []*pipeline.Service{p.Sink(env...), p.Sink(env...)}
	p.KeepEveryRow()
	load := pipeline.StartLoad(t, []string{c.URL}, 4, 50, 20*time.Millisecond)

	const sinkKills, clickHouseKills = 20, 5
	for i := range sinkKills {
		pause(t, time.Duration(300+random.IntN(1500))*time.Millisecond)
		victim := sinks[random.IntN(len(sinks))]
		require.NoError(t, victim.Kill())
		if i%(sinkKills/clickHouseKills) == 0 {
			require.NoError(t, s.clickhouse.Kill())
			pause(t, time.Duration(random.IntN(1000))*time.Millisecond)
			require.NoError(t, s.clickhouse.Restart(t.Context()))
		}
		require.NoError(t, victim.Restart(t.Context()))
	}
	healed, readBacks := 0.0, 0.0
	for _, sink := range sinks {
		healed += sink.Metric(t, "sluice_sink_healed_rows_total")
		readBacks += sink.Metric(t, "sluice_sink_read_backs_total")
	}
	load.Stop()
	v := load.AllOnce(p, settle)
	assert.Greater(t, v.Acked, 10_000, "a load worth the name")
	t.Logf("since the last restarts: %.0f blocks read back, %.0f rows healed", readBacks, healed)
	for _, sink := range sinks {
		assert.Zero(t, sink.Metric(t, "sluice_sink_alarms_total"), "alarms")
	}
}

// pause lets the load and the sinks go on for a while: time passing is what this
// test is about, there is no condition to wait for.
func pause(t *testing.T, d time.Duration) {
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

// Kills that land between ClickHouse writing an insert's token and renaming its
// part: the retry is dropped as a repeat and reports success. The rows are seen to
// be missing and inserted under another token.
func TestKillBetweenTokenAndPart(t *testing.T) {
	s := startServers(t)
	p := s.pipeline(t)
	c := p.Collector()
	sink := p.Sink(session, "SLUICE_SINK_FLUSH_INTERVAL=50ms", "SLUICE_SINK_FLUSH_INTERVAL_MAX=300ms")
	p.KeepEveryRow()
	load := pipeline.StartLoad(t, []string{c.URL}, 4, 50, 20*time.Millisecond)
	p.Eventually(1, "SELECT toUInt64(count() > 1000) FROM exposures", settle)

	// About four of ten kills land there; the others are ordinary ones.
	const attempts = 25
	for i := range attempts {
		killAtToken(t, p, s.clickhouse)
		require.NoError(t, s.clickhouse.Restart(t.Context()))
		// On to the next one only when the sink has healed what this one tore.
		before := load.Acked()
		require.Eventually(t, func() bool {
			v, err := load.Judge(p)
			return err == nil && v.Stored > before
		}, settle, 100*time.Millisecond)
		if torn := sink.Metric(t, "sluice_sink_healed_rows_total", `kind="torn"`); torn > 0 {
			t.Logf("kill %d landed: %.0f rows healed under another token", i+1, torn)
			break
		}
	}
	load.Stop()
	load.AllOnce(p, settle)
	assert.Positive(t, sink.Metric(t, "sluice_sink_healed_rows_total", `kind="torn"`),
		"none of %d kills landed between token and part", attempts)
	assert.Zero(t, sink.Metric(t, "sluice_sink_alarms_total"), "alarms")
}

// killAtToken kills ClickHouse when it has just written a token of an insert into
// exposures.
func killAtToken(t *testing.T, p *pipeline.Pipeline, ch *embedded.ClickHouse) {
	t.Helper()
	var path string
	require.Eventually(t, func() bool {
		rows, err := p.Store.Query(context.Background(), "SELECT data_paths[1] FROM system.tables WHERE database = currentDatabase() AND name = 'exposures'")
		if err != nil {
			return false
		}
		defer rows.Close()
		return rows.Next() && rows.Scan(&path) == nil
	}, settle, 100*time.Millisecond)
	killAtWrite(t, ch.PID(), filepath.Join(path, "deduplication_logs"))
	require.NoError(t, ch.Kill()) // waits until it is gone
}
