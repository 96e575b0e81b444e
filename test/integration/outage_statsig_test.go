package integration

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/embedded/teststack"
	"sluice/test/pipeline"
)

// The published Statsig Node SDK through an outage of Kafka, with the collector
// restarted in the middle of it. The SDK is not told of anything: each of its
// exposures is there, once.
func TestStatsigNodeThroughAnOutage(t *testing.T) {
	kafka := teststack.StartKafka(t)
	p := pipeline.On(t, kafka.Addr(), teststack.DSN(t))
	p.Sink()
	c := p.Collector("SLUICE_SPOOL_MIN_FREE_BYTES=1MiB")

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dir, err := filepath.Abs("../sdk/statsig-node")
	require.NoError(t, err)
	// About 20 s of users.
	cmd := exec.CommandContext(ctx, "node", filepath.Join(dir, "drive.mjs"), c.URL, "secret-test", "run-2", "100", "200")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() { cancel(); <-ended }()

	p.Eventually(1, "SELECT toUInt64(count() > 20) FROM exposures", settle)
	require.NoError(t, kafka.Kill())
	waitSpooled := func() {
		require.Eventually(t, func() bool { return c.Metric(t, "sluice_spool_batches") > 3 }, settle, 50*time.Millisecond)
	}
	waitSpooled()
	require.NoError(t, c.Stop(t.Context()))
	require.NoError(t, c.Restart(t.Context()), "a collector that Kafka knows starts without Kafka")
	waitSpooled()
	require.NoError(t, kafka.Restart(t.Context()))

	err = <-ended
	ended <- err
	require.NoError(t, err, "%s\n%s", stdout.String(), stderr.String())
	checkExposures(t, p, stdout.Bytes())
	assert.Positive(t, p.Count("SELECT count() FROM batches WHERE path = 'spool'"))
}
