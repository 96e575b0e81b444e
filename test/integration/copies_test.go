package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/test/pipeline"
)

const settle = 60 * time.Second

// exposures is a body of n exposures; pad makes each that much larger.
func exposures(n int, variant string, pad int) []byte {
	var b strings.Builder
	b.WriteByte('[')
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"experiment":"checkout","variant":"%s","unit_id":"u%d","attributes":{"pad":"%s"}}`, variant, i, strings.Repeat("x", pad))
	}
	b.WriteByte(']')
	return []byte(b.String())
}

type accepted struct {
	BatchID   string `json:"batch_id"`
	Accepted  int    `json:"accepted"`
	Durable   string `json:"durable"`
	Duplicate bool   `json:"duplicate"`
}

func send(t *testing.T, c *pipeline.Service, key string, body []byte) (int, accepted) {
	t.Helper()
	a, err := pipeline.Post(t.Context(), c.URL+"/v1/exposures", body, map[string]string{"Idempotency-Key": key})
	if !assert.NoError(t, err) {
		return 0, accepted{}
	}
	var out accepted
	assert.NoError(t, json.Unmarshal(a.Body, &out), string(a.Body))
	return a.Status, out
}

func TestOneBatchManyTimes(t *testing.T) {
	p := pipeline.New(t)
	a, b := p.Collector(), p.Collector()
	p.Sink()
	body := exposures(1000, "green", 0)

	// Two of them at once, one to each collector; then three more.
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids := map[string]bool{}
	attempt := func(c *pipeline.Service) {
		status, answer := send(t, c, "key-1", body)
		assert.Contains(t, []int{http.StatusOK, http.StatusAccepted}, status)
		assert.Equal(t, 1000, answer.Accepted)
		mu.Lock()
		ids[answer.BatchID] = true
		mu.Unlock()
	}
	wg.Go(func() { attempt(a) })
	wg.Go(func() { attempt(b) })
	wg.Wait()
	attempt(a)
	attempt(b)
	attempt(b)
	assert.Len(t, ids, 1, "one identity, whoever was asked")

	p.Eventually(2, "SELECT count() FROM batches", settle) // one record a collector: each remembers its own
	assert.Equal(t, 1000, p.Count("SELECT count() FROM exposures"), "also without FINAL")
	assert.Equal(t, 1000, p.Count("SELECT uniqExact(event_id) FROM exposures"))
	assert.Equal(t, 1, p.Count("SELECT countIf(outcome = 'stored') FROM batches"))
	assert.Equal(t, 1, p.Count("SELECT countIf(outcome = 'duplicate') FROM batches"))

	// The same key with another body, through the other collector, and through the
	// one that remembers.
	other := exposures(10, "red", 0)
	status, _ := send(t, a, "key-1", other)
	assert.Equal(t, http.StatusUnprocessableEntity, status, "this collector remembers the key")
	c := p.Collector() // this one does not
	status, _ = send(t, c, "key-1", other)
	assert.Equal(t, http.StatusAccepted, status)
	p.Eventually(1, "SELECT countIf(outcome = 'conflict') FROM batches", settle)
	assert.Equal(t, 1000, p.Count("SELECT countIf(variant = 'green') FROM exposures FINAL"), "nothing of the first is lost")
	assert.Zero(t, p.Count("SELECT countIf(variant = 'red') FROM exposures"))
	assert.Equal(t, 10, p.Count("SELECT countIf(stage = 'conflict' AND position(bytes, '\"variant\":\"red\"') > 0) FROM dead_letters FINAL"),
		"the other is whole in dead_letters")
}

// A batch over the record limit travels in parts.
func TestSplitBatchTwice(t *testing.T) {
	p := pipeline.New(t)
	small := "SLUICE_RECORD_MAX_BYTES=64KiB"
	a, b := p.Collector(small), p.Collector(small)
	sink := p.Sink()
	body := exposures(2000, "green", 100)
	for _, c := range []*pipeline.Service{a, b} {
		status, answer := send(t, c, "large", body)
		assert.Equal(t, http.StatusAccepted, status)
		assert.Equal(t, 2000, answer.Accepted)
	}
	p.Eventually(2000, "SELECT count() FROM exposures", settle)
	p.Settled(settle)
	parts := p.Count("SELECT countIf(outcome = 'stored') FROM batches")
	assert.Greater(t, parts, 4)
	assert.Equal(t, parts, p.Count("SELECT countIf(outcome = 'duplicate') FROM batches"), "each part of the second is a copy")

	// A collector with another limit cuts the same batch otherwise, and a sink that
	// has just started knows of it only from ClickHouse.
	require.NoError(t, sink.Restart(t.Context()))
	whole, finer := p.Collector(), p.Collector("SLUICE_RECORD_MAX_BYTES=32KiB")
	for _, c := range []*pipeline.Service{whole, finer} {
		status, _ := send(t, c, "large", body)
		assert.Equal(t, http.StatusAccepted, status)
	}
	p.Eventually(0, "SELECT countIf(outcome = 'stored') - "+fmt.Sprint(parts)+" FROM batches", settle)
	p.Settled(settle)
	assert.Greater(t, p.Count("SELECT count() FROM batches"), 3*parts, "all of it was read")
	assert.Equal(t, 2000, p.Count("SELECT count() FROM exposures"), "every event once, also without FINAL")
	assert.Equal(t, 2000, p.Count("SELECT uniqExact(event_id) FROM exposures"))

	// And a body of another size under the same key, which is cut otherwise too.
	status, _ := send(t, whole, "large-2", exposures(2000, "green", 100))
	assert.Equal(t, http.StatusAccepted, status)
	status, _ = send(t, a, "large-2", exposures(1500, "red", 100))
	assert.Equal(t, http.StatusAccepted, status)
	p.Eventually(1500, "SELECT uniqExact(id) FROM dead_letters WHERE stage = 'conflict'", settle)
	assert.Equal(t, 4000, p.Count("SELECT count() FROM exposures FINAL"))
	assert.Zero(t, p.Count("SELECT countIf(variant = 'red') FROM exposures"))
}

func TestRejectedEventsAreKept(t *testing.T) {
	p := pipeline.New(t)
	c := p.Collector()
	p.Sink()
	status, answer := send(t, c, "k", []byte(`[{"experiment":"e","variant":"v","unit_id":"u"},{"experiment":"e","variant":"v"},7]`))
	assert.Equal(t, http.StatusAccepted, status)
	assert.Equal(t, 1, answer.Accepted)
	status, _ = send(t, c, "all", []byte(`[{"variant":"v"}]`))
	assert.Equal(t, http.StatusUnprocessableEntity, status)
	p.Eventually(3, "SELECT count() FROM dead_letters", settle)
	assert.Equal(t, 1, p.Count("SELECT count() FROM exposures"))
	assert.Equal(t, 1, p.Count(`SELECT count() FROM dead_letters WHERE stage = 'collector' AND reason = 'missing_field' AND field = 'unit_id' AND bytes = '{"experiment":"e","variant":"v"}'`))
	assert.Equal(t, 1, p.Count(`SELECT count() FROM dead_letters WHERE reason = 'invalid_type' AND bytes = '7'`))
}
