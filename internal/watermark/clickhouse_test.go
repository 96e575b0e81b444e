package watermark

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/clickhouse"
	"sluice/internal/embedded/teststack"
	"sluice/internal/kafka"
	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// real is ClickHouse behind the copier's interface, as cmd/sink wires it.
type real struct{ *clickhouse.Client }

func (r real) LedgerRows(ctx context.Context, ledger, topic string, row func(Row)) error {
	return r.Client.LedgerRows(ctx, ledger, topic, func(w clickhouse.LedgerRow) { row(Row(w)) })
}

func (r real) InsertLedger(ctx context.Context, rows []Row) error {
	out := make([]clickhouse.LedgerRow, len(rows))
	for i := range rows {
		out[i] = clickhouse.LedgerRow(rows[i])
	}
	return r.Client.InsertLedger(ctx, out)
}

func (r real) CompletenessRows(ctx context.Context, ledgersOnly bool, row func(Standing)) error {
	return r.Client.CompletenessRows(ctx, ledgersOnly, func(s clickhouse.Completeness) { row(Standing(s)) })
}

func (r real) InsertCompleteness(ctx context.Context, rows []Standing) error {
	out := make([]clickhouse.Completeness, len(rows))
	for i := range rows {
		out[i] = clickhouse.Completeness(rows[i])
	}
	return r.Client.InsertCompleteness(ctx, out)
}

func database(t *testing.T) *clickhouse.Client {
	t.Helper()
	cfg := clickhouse.Config{DSN: teststack.DSN(t)}
	require.NoError(t, clickhouse.Migrate(t.Context(), cfg, 720*time.Hour))
	c, err := clickhouse.Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	return c
}

type view struct {
	until   time.Time
	heldBy  string
	why     string
	counted uint32
	behind  float64
}

func watermarkOf(t *testing.T, c *clickhouse.Client) (v view) {
	t.Helper()
	rows, err := c.Query(t.Context(), "SELECT complete_until, toString(held_by), held_why, collectors, behind_seconds FROM delivery_watermark")
	require.NoError(t, err)
	defer rows.Close()
	require.True(t, rows.Next(), "always a row")
	require.NoError(t, rows.Scan(&v.until, &v.heldBy, &v.why, &v.counted, &v.behind))
	require.False(t, rows.Next(), "and only one")
	require.NoError(t, rows.Err())
	return v
}

// faulty fails inserts before or after they are stored.
type faulty struct {
	real
	fault func() (bool, error)
}

func (f faulty) InsertLedger(ctx context.Context, rows []Row) error {
	stored, err := f.fault()
	if stored {
		if err := f.real.InsertLedger(ctx, rows); err != nil {
			return err
		}
	}
	return err
}

func (f faulty) InsertCompleteness(ctx context.Context, rows []Standing) error {
	stored, err := f.fault()
	if stored {
		if err := f.real.InsertCompleteness(ctx, rows); err != nil {
			return err
		}
	}
	return err
}

// progressOf keeps the table progress in step with the model's.
func (w *world) writeProgress(t *testing.T, c *clickhouse.Client, written map[int]int64) {
	for p, through := range w.tables.stored[w.log] {
		if was, ok := written[p]; ok && was == through {
			continue
		}
		in, err := c.OpenInsert(t.Context(), schema.ProgressTab, schema.Position{Log: w.log, Topic: "t.batches", Partition: p}, batch.Random().String())
		require.NoError(t, err)
		require.NoError(t, in.Send(&schema.Rows{Progress: []schema.Progress{{Through: through}}}))
		written[p] = through
	}
}

// The model again, with the tables and the view that analysts use.
func TestNeverAheadNeverBackInClickHouse(t *testing.T) {
	for seed := range uint64(2) {
		c := database(t)
		v := watermarkOf(t, c)
		assert.Equal(t, time.Unix(0, 0).UTC(), v.until.UTC())
		assert.Equal(t, "no sink has looked yet", v.why)
		w := newWorld(t, 1000+seed)
		store := faulty{real{c}, w.tables.fault}
		written := map[int]int64{}
		restore := func() {
			for _, cp := range w.copiers {
				cp.store = store
			}
		}
		for range 500 {
			w.step()
			restore()
			w.writeProgress(t, c, written)
			v := watermarkOf(t, c)
			// The oracle looks at the view instead of the model's own table.
			w.tables.completeness = map[string]Standing{"|" + batch.ID{}.String(): {CompleteUntil: orZero(v.until)}}
			require.NoError(t, w.check(), "seed %d", seed)
		}
		assert.True(t, w.shown.After(time.Unix(0, 0)), "it moved")
	}
}

func orZero(t time.Time) time.Time {
	if t.Unix() <= 0 {
		return time.Time{}
	}
	return t.UTC()
}

// topicOf is the ledger topic behind the copier's interface, as cmd/sink wires it.
type topicOf struct {
	*kafka.LedgerTopic
	source *kafka.Source
}

func (l topicOf) Bounds(ctx context.Context) (batch.Bounds, error) { return l.source.Bounds(ctx, 0) }

func (l topicOf) Read(ctx context.Context, from int64, maxWait time.Duration) ([]Entry, int64, error) {
	list, next, err := l.LedgerTopic.Read(ctx, from, maxWait)
	out := make([]Entry, len(list))
	for i := range list {
		out[i] = Entry(list[i])
	}
	return out, next, err
}

// A copier on a real ledger topic and real tables: what comes out is what went in.
func TestCopierOnKafkaAndClickHouse(t *testing.T) {
	ctx := t.Context()
	store := database(t)
	client, err := kafka.Open(kafka.Config{Brokers: []string{teststack.Kafka(t)}})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	prefix := teststack.Prefix(t)
	require.NoError(t, retry.Policy{Attempts: 20}.Do(ctx, func(ctx context.Context) error { return client.EnsureTopics(ctx, prefix, 2, 1) }))
	names := kafka.Topics(prefix)
	ledger := topicOf{client.NewLedger(prefix), client.NewSource(names.Ledger)}
	log, next, err := ledger.Ends(ctx)
	require.NoError(t, err)
	require.Equal(t, []int64{0, 0}, next)

	c := newCopier(ledger, real{store})
	c.cfg.Topic = names.Ledger
	id := batch.Random()
	now := time.Now()
	write := func(r batch.LedgerRecord) time.Time {
		r.Collector, r.Log = id, log
		value, err := r.Encode()
		require.NoError(t, err)
		at, err := ledger.Write(ctx, r.Key(), value)
		require.NoError(t, err)
		return at.UTC()
	}
	round := func() view {
		_, err := c.round(ctx)
		require.NoError(t, err)
		return watermarkOf(t, store)
	}
	opened := write(batch.LedgerRecord{Kind: batch.LedgerOpen, Epoch: 1 << 62, Number: 1, At: now, CompleteUntil: now.Add(time.Hour), Spool: batch.SpoolAbsent})
	v := round()
	assert.Equal(t, opened, v.until.UTC())
	assert.Equal(t, id.String(), v.heldBy)
	assert.EqualValues(t, 1, v.counted)

	oldest, lostFrom := now.Add(time.Minute), now.Add(2*time.Minute)
	full := batch.LedgerRecord{Kind: batch.LedgerInterval, Epoch: 1 << 62, Number: 2, At: now.Add(3 * time.Minute), Settled: 9,
		Voids: []batch.SeqRange{{First: 2, Last: 2}, {First: 5, Last: 7}}, Unproven: 1, CompleteUntil: oldest,
		Offsets: map[int]int64{0: 4, 1: 0}, Pending: 3, PendingBytes: 333, Oldest: &oldest, Spool: batch.SpoolDamaged, Lost: 1, LostFrom: &lostFrom}
	write(full)
	v = round()
	assert.Equal(t, opened, v.until.UTC())
	rows, err := store.Query(ctx, `SELECT toString(entry), kind, number, settled, toString(voids), unproven, offsets[0], offsets[1], pending, pending_bytes, oldest, spool, lost, lost_from, at, complete_until, offset
FROM ledger FINAL WHERE collector = ? ORDER BY entry`, id.String())
	require.NoError(t, err)
	defer rows.Close()
	require.True(t, rows.Next())
	var (
		entry, kind, voids, spool                        string
		number, settled, unproven, pending, lost, offset uint64
		zero, one, bytes                                 int64
		gotOldest, gotLostFrom                           *time.Time
		at, until                                        time.Time
	)
	require.NoError(t, rows.Scan(&entry, &kind, &number, &settled, &voids, &unproven, &zero, &one, &pending, &bytes, &gotOldest, &spool, &lost, &gotLostFrom, &at, &until, &offset))
	assert.Equal(t, []any{"newest", "interval", uint64(2), uint64(9), "[(2,2),(5,7)]", uint64(1), int64(4), int64(0), uint64(3), int64(333), "damaged", uint64(1), uint64(1)},
		[]any{entry, kind, number, settled, voids, unproven, zero, one, pending, bytes, spool, lost, offset})
	for _, same := range [][2]time.Time{{oldest, *gotOldest}, {lostFrom, *gotLostFrom}, {full.At, at}, {full.CompleteUntil, until}} {
		assert.WithinDuration(t, same[0], same[1], time.Microsecond)
	}
	require.True(t, rows.Next())
	require.NoError(t, rows.Scan(&entry, &kind, &number, &settled, &voids, &unproven, &zero, &one, &pending, &bytes, &gotOldest, &spool, &lost, &gotLostFrom, &at, &until, &offset))
	assert.Equal(t, "open", entry)
	assert.False(t, rows.Next())

	// Another copier goes on where this one was.
	c = newCopier(ledger, real{store})
	c.cfg.Topic = names.Ledger
	v = round()
	assert.Equal(t, opened, v.until.UTC())
	assert.EqualValues(t, 2, c.s.next)
	assert.Contains(t, v.why, "1 acknowledged batches of its spool cannot be read any more")
	assert.Zero(t, c.s.collectors[id].epoch-1<<62)
}
