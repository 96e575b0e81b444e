package clickhouse

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"

	"sluice/pkg/batch"
)

// LedgerRow is one row of `ledger`; migrations/00003 says what the entries are
// and which row of a key stays.
type LedgerRow struct {
	Entry   string // newest, open, retire, unreadable
	Version uint64
	Ledger  string // the id of the ledger topic
	Topic   string
	Offset  int64
	At      time.Time // when the broker appended it
	Record  batch.LedgerRecord
}

// Completeness is one row of `completeness`: up to when everything is stored that
// a collector received, or all of a ledger (no Collector), or all there are (no
// Ledger either).
type Completeness struct {
	Ledger        string
	Topic         string
	Collector     batch.ID
	CompleteUntil time.Time
	State         string
	HeldBy        batch.ID
	Why           string
	Collectors    uint32
	Epoch         uint64
	Number        uint64
	Pending       uint64
	PendingBytes  int64
	Lost          uint64
	HeardAt       time.Time
	JudgedAt      time.Time
}

// InsertLedger writes rows as one block. It is durable when it returns nil; after
// an error the rows may be there, and writing them again changes nothing.
func (c *Client) InsertLedger(ctx context.Context, rows []LedgerRow) error {
	return c.insertRows(ctx, "ledger", "collector epoch entry log version number kind at settled voids unproven complete_until offsets pending pending_bytes oldest spool lost lost_from by reason ledger topic offset appended_at",
		len(rows), func(i int) []any {
			w := &rows[i]
			r := &w.Record
			voids := make([][]any, len(r.Voids))
			for i, v := range r.Voids {
				voids[i] = []any{v.First, v.Last}
			}
			offsets := make(map[uint32]int64, len(r.Offsets))
			for p, o := range r.Offsets {
				offsets[uint32(p)] = o
			}
			return []any{uuid.UUID(r.Collector), r.Epoch, w.Entry, r.Log, w.Version, r.Number, string(r.Kind), storable(r.At), r.Settled,
				voids, r.Unproven, storable(r.CompleteUntil), offsets, r.Pending, r.PendingBytes, optional(r.Oldest), string(r.Spool),
				r.Lost, optional(r.LostFrom), r.By, r.Reason, w.Ledger, w.Topic, uint64(max(w.Offset, 0)), storable(w.At)}
		})
}

// InsertCompleteness writes rows as one block, durably as InsertLedger does. Of two
// rows with one key the later CompleteUntil stays.
func (c *Client) InsertCompleteness(ctx context.Context, rows []Completeness) error {
	return c.insertRows(ctx, "completeness", "ledger collector complete_until topic state held_by why collectors epoch number pending pending_bytes lost heard_at judged_at",
		len(rows), func(i int) []any {
			r := &rows[i]
			return []any{r.Ledger, uuid.UUID(r.Collector), storable(r.CompleteUntil), r.Topic, r.State, uuid.UUID(r.HeldBy), r.Why,
				r.Collectors, r.Epoch, r.Number, r.Pending, r.PendingBytes, r.Lost, storable(r.HeardAt), storable(r.JudgedAt)}
		})
}

// insertRows inserts a few rows whose table tells repeats apart by itself: without
// deduplication, which drops rows that ClickHouse lost together with their part
// when it was killed.
func (c *Client) insertRows(ctx context.Context, table, columns string, n int, row func(i int) []any) error {
	if n == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.InsertTimeout)
	defer cancel()
	known, err := c.knownSettings(ctx)
	if err != nil {
		return err
	}
	s := ch.Settings{"async_insert": 0, "insert_deduplicate": 0, "max_execution_time": int(c.cfg.InsertTimeout / time.Second)}
	if known["deduplicate_insert"] {
		s["deduplicate_insert"] = "disable"
	}
	if c.cfg.Cluster != "" {
		s["insert_quorum"] = "auto"
		s["insert_quorum_parallel"] = 0
	}
	b, err := c.conn.PrepareBatch(ch.Context(ctx, ch.WithSettings(s)),
		fmt.Sprintf("INSERT INTO %s (`%s`) VALUES", table, strings.Join(strings.Fields(columns), "`, `")))
	if err != nil {
		return c.classify(fmt.Errorf("open insert into %s: %w", table, err))
	}
	for i := range n {
		if err := b.Append(row(i)...); err != nil {
			_ = b.Abort() // nothing was sent
			return c.classify(fmt.Errorf("lay out rows of %s: %w", table, err))
		}
	}
	if err := b.Send(); err != nil {
		return c.classify(fmt.Errorf("insert %d rows into %s: %w", n, table, err))
	}
	return nil
}

// lastSecond is the start of the year 2262, about as far as the client library
// counts nanoseconds.
const lastSecond = 9_214_646_400

// storable is t within what the columns can hold.
func storable(t time.Time) time.Time {
	if t.IsZero() || t.Unix() < 0 {
		return time.UnixMicro(0).UTC()
	}
	if t.Unix() >= lastSecond {
		return time.Unix(lastSecond, 0).UTC()
	}
	return time.UnixMicro(t.UnixMicro()).UTC()
}

func optional(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	s := storable(*t)
	return &s
}

// orZero is t, or the zero time for the one that stands for nothing in a column
// without NULL.
func orZero(t time.Time) time.Time {
	if t.Unix() <= 0 {
		return time.Time{}
	}
	return t.UTC()
}

// CopiedTo is the highest offset of a ledger topic that has a row in `ledger`, -1
// where none has.
func (c *Client) CopiedTo(ctx context.Context, ledger string) (int64, error) {
	var n, top uint64
	err := c.lookup(ctx, "ask how far the ledger is copied", "SELECT count(), max(offset) FROM ledger WHERE ledger = ?",
		[]any{ledger}, func(scan func(...any) error) error { return scan(&n, &top) })
	if err != nil || n == 0 {
		return -1, err
	}
	return int64(min(top, math.MaxInt64)), nil
}

// LedgerRows calls row with what `ledger` holds of a topic of a cluster, without
// the voids: first what came from earlier topics of that name, as it was appended,
// then what came from the one given, in its order.
func (c *Client) LedgerRows(ctx context.Context, ledger, topic string, row func(LedgerRow)) error {
	cluster, _, _ := strings.Cut(ledger, ".")
	var (
		w         LedgerRow
		collector uuid.UUID
		kind      string
		spool     string
		offsets   map[uint32]int64
		offset    uint64
	)
	return c.lookup(ctx, "read the ledger", `
SELECT collector, epoch, toString(entry), log, version, number, kind, at, settled, unproven, complete_until, offsets, pending, pending_bytes,
       oldest, spool, lost, lost_from, by, reason, ledger, topic, offset, appended_at
FROM ledger FINAL WHERE topic = ? AND startsWith(ledger, ?)
ORDER BY ledger = ?, if(ledger = ?, toDateTime64(0, 6, 'UTC'), appended_at), offset, entry`,
		[]any{topic, cluster + ".", ledger, ledger}, func(scan func(...any) error) error {
			w, offsets = LedgerRow{}, nil
			r := &w.Record
			if err := scan(&collector, &r.Epoch, &w.Entry, &r.Log, &w.Version, &r.Number, &kind, &r.At, &r.Settled, &r.Unproven, &r.CompleteUntil,
				&offsets, &r.Pending, &r.PendingBytes, &r.Oldest, &spool, &r.Lost, &r.LostFrom, &r.By, &r.Reason,
				&w.Ledger, &w.Topic, &offset, &w.At); err != nil {
				return err
			}
			r.Collector, r.Kind, r.Spool, w.Offset = batch.ID(collector), batch.LedgerKind(kind), batch.SpoolState(spool), int64(offset)
			r.Offsets = make(map[int]int64, len(offsets))
			for p, o := range offsets {
				r.Offsets[int(p)] = o
			}
			r.At, r.CompleteUntil, w.At = orZero(r.At), orZero(r.CompleteUntil), orZero(w.At)
			row(w)
			return nil
		})
}

// CompletenessRows calls row with the rows of `completeness`, one a key: all, or
// only those that are about whole ledgers and about everything.
func (c *Client) CompletenessRows(ctx context.Context, ledgersOnly bool, row func(Completeness)) error {
	var collector, heldBy uuid.UUID
	return c.lookup(ctx, "read how complete the tables are", `
SELECT ledger, collector, complete_until, topic, state, held_by, why, collectors, epoch, number, pending, pending_bytes, lost, heard_at, judged_at
FROM completeness FINAL WHERE NOT ? OR collector = ? ORDER BY ledger, collector`, []any{ledgersOnly, uuid.UUID{}}, func(scan func(...any) error) error {
		var r Completeness
		if err := scan(&r.Ledger, &collector, &r.CompleteUntil, &r.Topic, &r.State, &heldBy, &r.Why, &r.Collectors, &r.Epoch, &r.Number,
			&r.Pending, &r.PendingBytes, &r.Lost, &r.HeardAt, &r.JudgedAt); err != nil {
			return err
		}
		r.Collector, r.HeldBy = batch.ID(collector), batch.ID(heldBy)
		r.CompleteUntil, r.HeardAt, r.JudgedAt = orZero(r.CompleteUntil), orZero(r.HeardAt), orZero(r.JudgedAt)
		row(r)
		return nil
	})
}

// AllProgress calls found with how far each partition of each log is stored.
func (c *Client) AllProgress(ctx context.Context, found func(log string, partition int, through int64)) error {
	var (
		log       string
		partition uint32
		through   uint64
	)
	return c.lookup(ctx, "read the progress of all partitions",
		"SELECT log, partition, max(through) FROM progress GROUP BY log, partition ORDER BY log, partition", nil,
		func(scan func(...any) error) error {
			if err := scan(&log, &partition, &through); err != nil {
				return err
			}
			found(log, int(partition), int64(through))
			return nil
		})
}
