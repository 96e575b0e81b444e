package pipeline

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// Load sends batches of exposures, each until it is acknowledged, as an SDK does:
// the same key and the same body at every attempt. The events' ids are the
// load's own, so that what is stored is counted without asking the pipeline.
type Load struct {
	t      testing.TB
	urls   []string
	events int // in a batch

	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	acked map[uuid.UUID]bool // events of acknowledged batches
	sent  map[uuid.UUID]bool // events of batches of which nobody said what became of them
	n     int                // batches begun
}

// StartLoad keeps senders busy until Stop, each with a pause between batches.
func StartLoad(t testing.TB, urls []string, senders, events int, pause time.Duration) *Load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &Load{t: t, urls: urls, events: events, cancel: cancel, acked: map[uuid.UUID]bool{}, sent: map[uuid.UUID]bool{}}
	for sender := range senders {
		l.wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				l.batch(ctx, fmt.Sprintf("load-%d-%d", sender, i))
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		})
	}
	t.Cleanup(l.Stop)
	return l
}

// batch sends one batch until it is acknowledged or ctx ends.
func (l *Load) batch(ctx context.Context, key string) {
	l.mu.Lock()
	n := l.n
	l.n++
	l.mu.Unlock()
	ids := make([]uuid.UUID, l.events)
	var body strings.Builder
	body.WriteByte('[')
	for i := range ids {
		ids[i] = uuid.New()
		if i > 0 {
			body.WriteByte(',')
		}
		fmt.Fprintf(&body, `{"experiment":"exp-%d","variant":"v%d","unit_id":"unit-%d","event_id":"%s","attributes":{"country":"DE","n":%d}}`,
			n%7, i%3, i, ids[i], n)
	}
	body.WriteByte(']')
	for attempt := 0; ctx.Err() == nil; attempt++ {
		answer, err := Post(ctx, l.urls[(n+attempt)%len(l.urls)]+"/v1/exposures", []byte(body.String()), map[string]string{"Idempotency-Key": key})
		if err == nil && (answer.Status == http.StatusOK || answer.Status == http.StatusAccepted) {
			l.note(ids, true)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	l.note(ids, false)
}

func (l *Load) note(ids []uuid.UUID, acked bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		if acked {
			l.acked[id] = true
		} else {
			l.sent[id] = true
		}
	}
}

// Acked is how many events were acknowledged so far.
func (l *Load) Acked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// Stop ends the sending. What is on its way then has no answer.
func (l *Load) Stop() {
	l.cancel()
	l.wg.Wait()
}

// Verdict is what became of the events.
type Verdict struct{ Acked, Stored, Lost, Doubled, Unknown int }

// KeepEveryRow stops the merges of the tables, for good and across restarts of
// ClickHouse: a merge would collapse rows that were stored twice, and with them
// the proof. Call it when a sink has made the tables.
func (p *Pipeline) KeepEveryRow() {
	p.t.Helper()
	for _, table := range []string{"exposures", "events", "dead_letters", "batches"} {
		require.NoError(p.t, p.Store.Exec(p.t.Context(), "ALTER TABLE "+table+" MODIFY SETTING "+
			"max_bytes_to_merge_at_max_space_in_pool = 1, max_bytes_to_merge_at_min_space_in_pool = 1, "+
			"parts_to_delay_insert = 1000000, parts_to_throw_insert = 1000000, max_parts_in_total = 1000000"))
	}
}

// Judge compares what was acknowledged with the rows of exposures, without FINAL:
// a row too many counts, also one that a merge would remove (see KeepEveryRow).
func (l *Load) Judge(p *Pipeline) (Verdict, error) {
	rows, err := p.Store.Query(context.Background(), "SELECT event_id, count() FROM exposures GROUP BY event_id")
	if err != nil {
		return Verdict{}, err
	}
	defer rows.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	v := Verdict{Acked: len(l.acked)}
	found := 0
	for rows.Next() {
		var id uuid.UUID
		var n uint64
		if err := rows.Scan(&id, &n); err != nil {
			return v, err
		}
		v.Stored++
		if n > 1 {
			v.Doubled++
		}
		if l.acked[id] {
			found++
		} else if !l.sent[id] {
			v.Unknown++
		}
	}
	v.Lost = len(l.acked) - found
	return v, rows.Err()
}

// AllOnce waits until every acknowledged event is stored, and requires that none
// is stored twice.
func (l *Load) AllOnce(p *Pipeline, within time.Duration) Verdict {
	l.t.Helper()
	var v Verdict
	var err error
	require.Eventually(l.t, func() bool {
		v, err = l.Judge(p)
		return err == nil && v.Lost == 0
	}, within, 300*time.Millisecond, "acknowledged events are not stored: %+v", &v)
	// One more look after the sinks have gone on for a while: what comes late
	// would be a copy.
	p.Settled(within)
	v, err = l.Judge(p)
	require.NoError(l.t, err)
	l.t.Logf("%+v", v)
	require.Zero(l.t, v.Lost, "lost")
	require.Zero(l.t, v.Doubled, "stored twice")
	require.Zero(l.t, v.Unknown, "never sent")
	return v
}

// Settled waits until the number of records read from Kafka stands still for two
// seconds.
func (p *Pipeline) Settled(within time.Duration) {
	p.t.Helper()
	last, since := -1, time.Now()
	require.Eventually(p.t, func() bool {
		n, err := p.count("SELECT count() FROM batches")
		if err != nil || n != last {
			last, since = n, time.Now()
			return false
		}
		return time.Since(since) > 2*time.Second
	}, within, 200*time.Millisecond)
}
