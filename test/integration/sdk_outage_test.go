package integration

import (
	"context"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/embedded/teststack"
	"sluice/test/pipeline"
)

// The LaunchDarkly and Segment SDKs through an outage of Kafka, with the collector
// restarted in the middle of it. LaunchDarkly's sends again once only, a second
// later: while the collector is away the front lets its requests wait, as a balancer
// with a second collector would pass them on.
func TestSDKsThroughAnOutage(t *testing.T) {
	kafka := teststack.StartKafka(t)
	p := pipeline.On(t, kafka.Addr(), teststack.DSN(t))
	p.Sink()
	var some []published
	for _, s := range sdks() {
		if s.name == "launchdarkly-node" || s.name == "segment-node" {
			s.resends = 1
			some = append(some, s)
		}
	}
	c := p.Collector(append(withKeys(keysFile(t, some)), "SLUICE_SPOOL_MIN_FREE_BYTES=1MiB")...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	runs := make([]*driven, len(some))
	fronts := make([]*front, len(some))
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	for i, s := range some {
		fronts[i] = newFront(s)
		fronts[i].collector = c
		server := httptest.NewServer(fronts[i])
		defer server.Close()
		// About 20 s of users.
		wg.Go(func() { runs[i] = s.drive(ctx, server.URL, 100, 200) })
	}

	p.Eventually(len(some), "SELECT uniqExact(project) FROM exposures", settle)
	require.NoError(t, kafka.Kill())
	waitSpooled := func(batches float64) {
		t.Helper()
		require.Eventually(t, func() bool { return c.Metric(t, "sluice_spool_batches") >= batches }, settle, 50*time.Millisecond)
	}
	waitSpooled(6)
	for _, f := range fronts {
		f.leave()
	}
	require.NoError(t, c.Stop(t.Context()))
	require.NoError(t, c.Restart(t.Context()), "a collector that Kafka knows starts without Kafka")
	for _, f := range fronts {
		f.comeBack()
	}
	waitSpooled(12)
	require.NoError(t, kafka.Restart(t.Context()))

	wg.Wait()
	for _, s := range some {
		p.Eventually(100, "SELECT count() FROM exposures WHERE project = '"+s.name+"'", settle)
	}
	p.Settled(settle)
	for i, s := range some {
		t.Run(s.name, func(t *testing.T) {
			checkDelivered(t, p, s, runs[i])
		})
	}
	assert.Positive(t, p.Count("SELECT count() FROM batches WHERE path = 'spool'"))
}

// leave has requests wait, or be refused as long as the SDK bears it, until
// comeBack.
func (f *front) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = make(chan struct{})
}

func (f *front) comeBack() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.down)
	f.down = nil
}
