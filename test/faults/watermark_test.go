package faults

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/test/pipeline"
)

// oracle knows every acknowledgement, by this process's clock, and holds the
// watermark against what is in ClickHouse at that moment.
type oracle struct {
	p *pipeline.Pipeline

	mu      sync.Mutex
	waiting map[uuid.UUID]ack // acknowledged, and not yet seen in ClickHouse
	all     int
	newest  time.Time
}

// ack is when an event was acknowledged, and of which batch it is.
type ack struct {
	at    time.Time
	batch string
}

func (o *oracle) acked(ids []uuid.UUID, batch string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.newest = time.Now()
	for _, id := range ids {
		o.waiting[id] = ack{o.newest, batch}
		o.all++
	}
}

// send keeps one collector busy until ctx ends, each batch until it is taken.
func (o *oracle) send(ctx context.Context, url, name string) {
	for n := 0; ctx.Err() == nil; n++ {
		ids := []uuid.UUID{uuid.New(), uuid.New(), uuid.New()}
		var body strings.Builder
		for i, id := range ids {
			fmt.Fprintf(&body, `,{"experiment":"e","variant":"v","unit_id":"u%d","event_id":"%s"}`, i, id)
		}
		for ctx.Err() == nil {
			a, err := pipeline.Post(ctx, url+"/v1/exposures", []byte("["+body.String()[1:]+"]"), map[string]string{"Idempotency-Key": fmt.Sprintf("%s-%d", name, n)})
			if err == nil && (a.Status == http.StatusAccepted || a.Status == http.StatusOK) {
				o.acked(ids, fmt.Sprintf("%s-%d", name, n))
				break
			}
			wait(ctx, 50*time.Millisecond)
		}
		wait(ctx, 20*time.Millisecond)
	}
}

// watch asks for the watermark every 100 ms until ctx ends: it never goes back,
// and whatever was acknowledged before it is there.
func (o *oracle) watch(ctx context.Context, t *testing.T) (asked int, last time.Time) {
	for ; ctx.Err() == nil; wait(ctx, 100*time.Millisecond) {
		until, err := o.watermark(ctx)
		if err != nil {
			continue // ClickHouse is away
		}
		asked++
		if !assert.False(t, until.Before(last), "complete_until went back from %s to %s", last, until) {
			return asked, last
		}
		last = until
		var due []uuid.UUID
		o.mu.Lock()
		for id, a := range o.waiting {
			if a.at.Before(until) {
				due = append(due, id)
			}
		}
		o.mu.Unlock()
		missing, err := o.missing(ctx, due)
		if err == nil && len(missing) > 0 {
			o.mu.Lock()
			defer o.mu.Unlock()
			assert.Fail(t, "the watermark is ahead of the truth", "%d of %d events that were acknowledged before %s are not there, as one of batch %s, at %s",
				len(missing), len(due), until, o.waiting[missing[0]].batch, o.waiting[missing[0]].at)
			return asked, last
		}
	}
	return asked, last
}

func (o *oracle) watermark(ctx context.Context) (until time.Time, err error) {
	rows, err := o.p.Store.Query(ctx, "SELECT complete_until FROM delivery_watermark")
	if err != nil {
		return until, err
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(&until); err != nil {
			return until, err
		}
	}
	return until, rows.Err()
}

// missing are those of the events that ClickHouse does not have; the others are
// struck off.
func (o *oracle) missing(ctx context.Context, ids []uuid.UUID) (all []uuid.UUID, err error) {
	for part := range slices.Chunk(ids, 2000) { // what fits into a query
		missing, err := o.look(ctx, part)
		if err != nil {
			return nil, err
		}
		all = append(all, missing...)
	}
	return all, nil
}

func (o *oracle) look(ctx context.Context, ids []uuid.UUID) ([]uuid.UUID, error) {
	rows, err := o.p.Store.Query(ctx, "SELECT event_id FROM exposures WHERE event_id IN (?)", ids)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	there := map[uuid.UUID]bool{}
	for rows.Next() {
		var id uuid.UUID
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		there[id] = true
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	var missing []uuid.UUID
	for _, id := range ids {
		if there[id] {
			delete(o.waiting, id)
		} else {
			missing = append(missing, id)
		}
	}
	return missing, nil
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// The watermark is never ahead of the truth and never goes back: with a clock that
// is set back and one that is ahead, through outages with kills of collectors that
// have spooled, with a new collector that cannot reach Kafka, and while partitions
// are added.
func TestWatermarkThroughFaults(t *testing.T) {
	s := startServers(t)
	p := s.pipeline(t)
	clocks := t.TempDir()
	set := func(name, off string) {
		require.NoError(t, os.WriteFile(filepath.Join(clocks, name), []byte(off), 0o644))
	}
	slow := p.Collector("SLUICE_TEST_CLOCK="+filepath.Join(clocks, "slow"), "SLUICE_LEDGER_INTERVAL=200ms")
	fast := p.Collector("SLUICE_TEST_CLOCK="+filepath.Join(clocks, "fast"), "SLUICE_LEDGER_INTERVAL=200ms")
	p.Sink(session, "SLUICE_SINK_FLUSH_INTERVAL=100ms", "SLUICE_SINK_FLUSH_INTERVAL_MAX=500ms")
	p.Sink(session, "SLUICE_SINK_FLUSH_INTERVAL=100ms", "SLUICE_SINK_FLUSH_INTERVAL_MAX=500ms")

	o := &oracle{p: p, waiting: map[uuid.UUID]ack{}}
	sending, stop := context.WithCancel(t.Context())
	defer stop()
	var senders sync.WaitGroup
	send := func(c *pipeline.Service, name string) {
		for i := range 3 {
			senders.Go(func() { o.send(sending, c.URL, fmt.Sprintf("%s-%d", name, i)) })
		}
	}
	send(slow, "slow")
	send(fast, "fast")
	watching, end := context.WithCancel(t.Context())
	var watcher sync.WaitGroup
	var asked int
	watcher.Go(func() { asked, _ = o.watch(watching, t) })
	defer watcher.Wait()
	defer end()
	passes := func(what string) {
		t.Helper()
		o.mu.Lock()
		to := o.newest
		o.mu.Unlock()
		require.Eventually(t, func() bool {
			until, err := o.watermark(t.Context())
			return err == nil && until.After(to)
		}, settle, 100*time.Millisecond, "%s: the watermark goes on", what)
	}
	passes("at first")

	set("slow", "-20s")
	set("fast", "15s")
	pause(t, 3*time.Second)
	// Nobody reaches Kafka: what is acknowledged is spooled, a collector is killed
	// with it, and one that Kafka has never heard of takes nothing.
	require.NoError(t, s.kafka.Pause())
	pause(t, 2*time.Second)
	fresh := p.StartCollector("SLUICE_LEDGER_INTERVAL=200ms")
	a, err := pipeline.Post(t.Context(), fresh.URL+"/v1/exposures", []byte(`[{"experiment":"e","variant":"v","unit_id":"u"}]`), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, a.Status, "a new collector acknowledges nothing before Kafka knows of it")
	send(fresh, "fresh")
	require.NoError(t, slow.Kill())
	pause(t, 2*time.Second)
	require.NoError(t, s.kafka.Resume())
	pause(t, 3*time.Second)
	before, err := o.watermark(t.Context())
	require.NoError(t, err)
	pause(t, 2*time.Second)
	after, err := o.watermark(t.Context())
	require.NoError(t, err)
	assert.Less(t, after.Sub(before), 100*time.Millisecond, "a collector with a spool is away: the watermark waits for it")
	require.NoError(t, slow.Restart(t.Context()))
	set("slow", "0s")
	passes("after the outage") // once the slow clock is where it was

	admin := &kafkago.Client{Addr: kafkago.TCP(p.Kafka)}
	added, err := admin.CreatePartitions(t.Context(), &kafkago.CreatePartitionsRequest{
		Topics: []kafkago.TopicPartitionsConfig{{Name: p.Prefix + ".batches", Count: 7}}})
	require.NoError(t, err)
	for _, err := range added.Errors {
		require.NoError(t, err)
	}
	pause(t, 3*time.Second)
	require.NoError(t, s.clickhouse.Kill())
	require.NoError(t, s.clickhouse.Restart(t.Context()))
	passes("with more partitions")

	stop()
	senders.Wait()
	set("fast", "0s")
	passes("in the end")
	end()
	watcher.Wait()
	t.Logf("%d events acknowledged, the watermark asked %d times", o.all, asked)
	assert.Greater(t, asked, 100)
	left, err := o.missing(t.Context(), slices.Collect(maps.Keys(o.waiting)))
	require.NoError(t, err)
	assert.Empty(t, left, "acknowledged and not there")
	assert.Equal(t, p.Count("SELECT uniqExact(event_id) FROM exposures"), p.Count("SELECT count() FROM exposures FINAL"), "stored once")

	audit := exec.CommandContext(t.Context(), filepath.Join(p.Bin, "sluice"), "audit", "--wait", "20s", "--output", "json",
		"--clickhouse-dsn", p.DSN, "--kafka-brokers", p.Kafka, "--topic-prefix", p.Prefix)
	out, err := audit.Output()
	assert.NoError(t, err, "%s", out)
}
