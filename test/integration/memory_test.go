package integration

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/test/pipeline"
)

// What the two services may take with their default settings, at full load: every
// sender has the next batch ready, and then a backlog is drained as fast as it
// goes. The binaries are the ones that ship: the race detector's need several
// times as much.
const (
	collectorMemory = 100 << 20
	sinkMemory      = 512 << 20
)

func TestMemoryAtFullLoad(t *testing.T) {
	p := pipeline.New(t)
	p.Bin = t.TempDir()
	require.NoError(t, pipeline.Build(p.Bin, false))
	c := p.Collector("SLUICE_TOPIC_PARTITIONS=12")

	const senders, batches, events = 64, 20_000, 100
	body := func(i int) []byte {
		var b strings.Builder
		b.WriteByte('[')
		for j := range events {
			if j > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `{"experiment":"experiment-%d","variant":"variant-%d","unit_id":"user-%d-%d","rule":"everyone","reason":"split",`+
				`"attributes":{"country":"DE","app_version":"4.2.%d","platform":"ios","session":"%016x","premium":true}}`, j%50, j%3, i, j, j%10, i*events+j)
		}
		b.WriteByte(']')
		return []byte(b.String())
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range senders {
		wg.Go(func() {
			for i := int(next.Add(1)); i <= batches; i = int(next.Add(1)) {
				b := body(i)
				for {
					a, err := pipeline.Post(t.Context(), c.URL+"/v1/exposures", b, map[string]string{"Idempotency-Key": fmt.Sprint(i)})
					if !assert.NoError(t, err) {
						return
					}
					if a.Status == http.StatusAccepted || a.Status == http.StatusOK {
						break
					}
				}
			}
		})
	}
	wg.Wait()
	peak := peakMemory(t, c.PID())
	t.Logf("collector: %d events in %.1f s, peak %d MiB", batches*events, time.Since(start).Seconds(), peak>>20)
	assert.Less(t, peak, collectorMemory)

	start = time.Now()
	sink := p.Sink()
	p.Eventually(batches, "SELECT countIf(outcome = 'stored') FROM batches", 3*time.Minute)
	p.Eventually(batches*events, "SELECT count() FROM exposures FINAL", time.Minute)
	peak = peakMemory(t, sink.PID())
	t.Logf("sink: %d events in %.1f s, peak %d MiB", batches*events, time.Since(start).Seconds(), peak>>20)
	assert.Less(t, peak, sinkMemory)
}

// peakMemory is the most memory a process had resident, in bytes (proc(5), VmHWM).
func peakMemory(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err, "this measurement needs Linux")
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	require.NotNil(t, m)
	kib, err := strconv.Atoi(string(m[1]))
	require.NoError(t, err)
	return kib << 10
}
