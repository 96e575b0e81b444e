package clickhouse

import (
	"context"
	"fmt"
	"math"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/ext"
	"github.com/google/uuid"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// ChunkSize is how many consecutive numbers, or offsets, the audit counts together.
const ChunkSize = 1 << 16

// Series is what numbers its records without a gap: an epoch of a collector, or,
// without a collector, a partition of a log.
type Series struct {
	Collector batch.ID
	Epoch     uint64
	Log       string
	Partition int
}

// Chunk is how many different numbers of a series `batches` has, of those whose
// number divided by ChunkSize is Index.
type Chunk struct {
	Series
	Index uint64
	Count uint64
	// Of the rows from before the time asked about the highest number, of the others
	// the lowest; Old and New are how many there are.
	Old, New          uint64
	LastOld, FirstNew uint64
}

// survey runs a query of the audit over whole tables. It may take up to an hour, and
// stays within bounds on the server: what does not fit in memory is sorted out on
// disk.
func (c *Client) survey(ctx context.Context, what, query string, args []any, scan func(func(...any) error) error) error {
	ctx, cancel := context.WithTimeout(ctx, longestLookup)
	defer cancel()
	settings := ch.Settings{
		"max_bytes_before_external_group_by": 1 << 30,
		"max_bytes_before_external_sort":     1 << 30,
		"max_execution_time":                 int(longestLookup / time.Second),
	}
	if c.cfg.Cluster != "" {
		settings["select_sequential_consistency"] = 1
	}
	rows, err := c.conn.Query(ch.Context(ctx, ch.WithSettings(settings)), query, args...)
	if err != nil {
		return c.classify(fmt.Errorf("%s: %w", what, err))
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows.Scan); err != nil {
			return c.classify(fmt.Errorf("%s: %w", what, err))
		}
	}
	if err := rows.Err(); err != nil {
		return c.classify(fmt.Errorf("%s: %w", what, err))
	}
	return nil
}

// LedgerEntries calls row with every row of `ledger`, voids included.
func (c *Client) LedgerEntries(ctx context.Context, row func(LedgerRow)) error {
	var (
		collector   uuid.UUID
		kind, spool string
		voids       [][]any
		offsets     map[uint32]int64
		offset      uint64
	)
	return c.survey(ctx, "read the ledger", `
SELECT collector, epoch, toString(entry), log, version, number, kind, at, settled, voids, unproven, complete_until, offsets, pending, pending_bytes,
       oldest, spool, lost, lost_from, by, reason, ledger, topic, offset, appended_at
FROM ledger FINAL ORDER BY appended_at, ledger, offset, entry`, nil, func(scan func(...any) error) error {
		w := LedgerRow{}
		voids, offsets = nil, nil
		r := &w.Record
		if err := scan(&collector, &r.Epoch, &w.Entry, &r.Log, &w.Version, &r.Number, &kind, &r.At, &r.Settled, &voids, &r.Unproven, &r.CompleteUntil,
			&offsets, &r.Pending, &r.PendingBytes, &r.Oldest, &spool, &r.Lost, &r.LostFrom, &r.By, &r.Reason,
			&w.Ledger, &w.Topic, &offset, &w.At); err != nil {
			return err
		}
		r.Collector, r.Kind, r.Spool, w.Offset = batch.ID(collector), batch.LedgerKind(kind), batch.SpoolState(spool), int64(offset)
		for _, v := range voids {
			first, ok := v[0].(uint64)
			last, also := v[1].(uint64)
			if !ok || !also {
				return fmt.Errorf("voids of type %T", v[0])
			}
			r.Voids = append(r.Voids, batch.SeqRange{First: first, Last: last})
		}
		r.Offsets = make(map[int]int64, len(offsets))
		for p, o := range offsets {
			r.Offsets[int(p)] = o
		}
		r.At, r.CompleteUntil, w.At = orZero(r.At), orZero(r.CompleteUntil), orZero(w.At)
		row(w)
		return nil
	})
}

// SeqChunks counts, for each epoch of each collector, which of its numbers
// `batches` has, whatever became of them. since parts rows by receipt.
func (c *Client) SeqChunks(ctx context.Context, since time.Time, found func(Chunk)) error {
	var (
		k         Chunk
		collector uuid.UUID
	)
	t := storable(since)
	return c.survey(ctx, "count the batches of each collector", `
SELECT collector, epoch, intDiv(seq, 65536), groupBitmap(seq), countIf(received_at < ?), countIf(received_at >= ?), maxIf(seq, received_at < ?), minIf(seq, received_at >= ?)
FROM batches GROUP BY 1, 2, 3 ORDER BY 1, 2, 3`, []any{micros(t), micros(t), micros(t), micros(t)}, func(scan func(...any) error) error {
		k = Chunk{}
		if err := scan(&collector, &k.Epoch, &k.Index, &k.Count, &k.Old, &k.New, &k.LastOld, &k.FirstNew); err != nil {
			return err
		}
		k.Collector = batch.ID(collector)
		found(k)
		return nil
	})
}

// OffsetChunks counts, for each partition of each log of a topic, which offsets
// `batches` has a row of. since parts rows by when they were stored.
func (c *Client) OffsetChunks(ctx context.Context, topic string, since time.Time, found func(Chunk)) error {
	var (
		k         Chunk
		partition uint32
	)
	t := storable(since)
	return c.survey(ctx, "count the records of each partition", `
SELECT log, partition, intDiv(offset, 65536), groupBitmap(offset), countIf(stored_at < ?), countIf(stored_at >= ?), maxIf(offset, stored_at < ?), minIf(offset, stored_at >= ?)
FROM batches WHERE topic = ? GROUP BY 1, 2, 3 ORDER BY 1, 2, 3`, []any{micros(t), micros(t), micros(t), micros(t), topic}, func(scan func(...any) error) error {
		k = Chunk{}
		if err := scan(&k.Log, &partition, &k.Index, &k.Count, &k.Old, &k.New, &k.LastOld, &k.FirstNew); err != nil {
			return err
		}
		k.Partition = int(partition)
		found(k)
		return nil
	})
}

// micros writes a time as the server compares it with a column of microseconds:
// bound as a time it would lose what is below a second.
func micros(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000000") }

// Seqs calls found with each number that `batches` has of the chunks, which are of
// epochs.
func (c *Client) Seqs(ctx context.Context, chunks []Chunk, found func(s Series, number uint64)) error {
	wanted, err := ext.NewTable("wanted", ext.Column("c", "UUID"), ext.Column("e", "UInt64"), ext.Column("i", "UInt64"))
	for i := range chunks {
		if err == nil {
			err = wanted.Append(uuid.UUID(chunks[i].Collector), chunks[i].Epoch, chunks[i].Index)
		}
	}
	if err != nil {
		return fmt.Errorf("lay out the chunks to look up: %w", err)
	}
	var (
		collector uuid.UUID
		s         Series
		number    uint64
	)
	return c.survey(ch.Context(ctx, ch.WithExternalTable(wanted)), "list batches by number",
		"SELECT DISTINCT collector, epoch, seq FROM batches WHERE (collector, epoch, intDiv(seq, 65536)) IN wanted", nil,
		func(scan func(...any) error) error {
			if err := scan(&collector, &s.Epoch, &number); err != nil {
				return err
			}
			s.Collector = batch.ID(collector)
			found(s, number)
			return nil
		})
}

// Offsets calls found with each offset that `batches` has of the chunks, which are
// of partitions of a topic's logs.
func (c *Client) Offsets(ctx context.Context, topic string, chunks []Chunk, found func(s Series, number uint64)) error {
	wanted, err := ext.NewTable("wanted", ext.Column("l", "String"), ext.Column("p", "UInt32"), ext.Column("i", "UInt64"))
	for i := range chunks {
		if err == nil {
			err = wanted.Append(chunks[i].Log, uint32(chunks[i].Partition), chunks[i].Index)
		}
	}
	if err != nil {
		return fmt.Errorf("lay out the chunks to look up: %w", err)
	}
	var (
		s         Series
		partition uint32
		number    uint64
	)
	return c.survey(ch.Context(ctx, ch.WithExternalTable(wanted)), "list records by offset",
		"SELECT DISTINCT log, partition, offset FROM batches WHERE topic = ? AND (log, partition, intDiv(offset, 65536)) IN wanted", []any{topic},
		func(scan func(...any) error) error {
			if err := scan(&s.Log, &partition, &number); err != nil {
				return err
			}
			s.Partition = int(partition)
			found(s, number)
			return nil
		})
}

// Skipped calls found with the offsets, first to last inclusive, that an operator
// has let a partition pass over.
func (c *Client) Skipped(ctx context.Context, topic string, found func(s Series, first, last uint64)) error {
	var (
		s            Series
		partition    uint32
		at, resumeAt int64
	)
	return c.lookup(ctx, "list what was passed over", `
SELECT log, partition, offset, argMax(resume_at, at) FROM stops WHERE topic = ? GROUP BY log, partition, offset
HAVING argMax(state, at) = 'resumed' ORDER BY log, partition, offset`, []any{topic}, func(scan func(...any) error) error {
		if err := scan(&s.Log, &partition, &at, &resumeAt); err != nil {
			return err
		}
		s.Partition = int(partition)
		if at >= 0 && resumeAt > at {
			found(s, uint64(at), uint64(resumeAt-1))
		}
		return nil
	})
}

// EventsByTime calls found with how many batches, and events, were stored of those
// received from since to until, in steps of five minutes.
func (c *Client) EventsByTime(ctx context.Context, since, until time.Time, found func(from time.Time, batches, events uint64)) error {
	var (
		from            time.Time
		batches, events uint64
	)
	return c.survey(ctx, "count the stored events", `
SELECT toStartOfFiveMinutes(received_at), count(), sum(events) FROM batches
WHERE outcome = 'stored' AND received_at >= ? AND received_at < ? GROUP BY 1 ORDER BY 1`, []any{micros(since), micros(until)},
		func(scan func(...any) error) error {
			if err := scan(&from, &batches, &events); err != nil {
				return err
			}
			found(from.UTC(), batches, events)
			return nil
		})
}

// Suspect is a batch whose rows do not agree with what `batches` says of it.
type Suspect struct {
	BatchID batch.ID
	Events  uint64 // that its stored records brought
	Keys    uint64 // that exposures and events have of it: rows that a merge keeps apart
	Indices uint64 // of how many different events those are
}

// Suspects calls found with the batches received from since to until of which
// exposures and events have fewer rows than their records brought, or several for
// one event.
func (c *Client) Suspects(ctx context.Context, since, until time.Time, found func(Suspect)) error {
	const rows = `SELECT batch_id, uniqExact(%s, unit_id, event_id) AS keys, uniqExact(batch_index) AS indices
FROM %s WHERE received_at >= ? AND received_at < ? GROUP BY batch_id`
	query := fmt.Sprintf(`
SELECT b.batch_id, b.events, r.keys, r.indices
FROM (SELECT batch_id, sum(events) AS events FROM (
        SELECT DISTINCT batch_id, log, partition, offset, events FROM batches
        WHERE outcome = 'stored' AND received_at >= ? AND received_at < ?) GROUP BY batch_id) AS b
LEFT JOIN (SELECT batch_id, sum(keys) AS keys, sum(indices) AS indices FROM (%s UNION ALL %s) GROUP BY batch_id) AS r ON b.batch_id = r.batch_id
WHERE r.keys < b.events OR r.keys > r.indices ORDER BY b.batch_id`,
		fmt.Sprintf(rows, "experiment", "exposures"), fmt.Sprintf(rows, "name", "events"))
	from, to := micros(since), micros(until)
	var (
		s  Suspect
		id uuid.UUID
	)
	return c.survey(ctx, "hold the events against the batches", query, []any{from, to, from, to, from, to}, func(scan func(...any) error) error {
		if err := scan(&id, &s.Events, &s.Keys, &s.Indices); err != nil {
			return err
		}
		s.BatchID = batch.ID(id)
		found(s)
		return nil
	})
}

// StoredRecord is one row of `batches`.
type StoredRecord struct {
	BatchID    batch.ID
	Project    string
	Outcome    schema.Outcome
	Path       batch.Path
	Part       string
	Collector  batch.ID
	Epoch      uint64
	Seq        uint64
	Events     uint32
	Rejected   uint32
	ReceivedAt time.Time
	StoredAt   time.Time
	Log        string
	Topic      string
	Partition  int
	Offset     int64
}

// RecordsOf calls found with every record of the batches that was read from Kafka,
// in the order of their offsets.
func (c *Client) RecordsOf(ctx context.Context, ids []batch.ID, found func(StoredRecord)) error {
	ctx, err := withIDs(ctx, ids)
	if err != nil {
		return err
	}
	var (
		id, collector uuid.UUID
		outcome, path string
		partition     uint32
		offset        uint64
	)
	return c.lookup(ctx, "look up batches", `
SELECT batch_id, project, toString(outcome), toString(path), part, collector, epoch, seq, events, rejected, received_at, stored_at, log, topic, partition, offset
FROM batches FINAL WHERE batch_id IN wanted ORDER BY log, partition, offset`, nil, func(scan func(...any) error) error {
		r := StoredRecord{}
		if err := scan(&id, &r.Project, &outcome, &path, &r.Part, &collector, &r.Epoch, &r.Seq, &r.Events, &r.Rejected, &r.ReceivedAt, &r.StoredAt,
			&r.Log, &r.Topic, &partition, &offset); err != nil {
			return err
		}
		r.BatchID, r.Collector, r.Outcome, r.Path = batch.ID(id), batch.ID(collector), schema.Outcome(outcome), batch.Path(path)
		r.Partition, r.Offset = int(partition), int64(min(offset, math.MaxInt64))
		r.ReceivedAt, r.StoredAt = r.ReceivedAt.UTC(), r.StoredAt.UTC()
		found(r)
		return nil
	})
}

// RefusedEvents calls found with the events of the batches that ClickHouse did not
// take: they are in dead_letters.
func (c *Client) RefusedEvents(ctx context.Context, ids []batch.ID, found func(id batch.ID, index uint32)) error {
	ctx, err := withIDs(ctx, ids)
	if err != nil {
		return err
	}
	var (
		id    uuid.UUID
		index uint32
	)
	return c.lookup(ctx, "look up refused events",
		"SELECT DISTINCT batch_id, batch_index FROM dead_letters WHERE stage = 'sink' AND batch_id IN wanted", nil,
		func(scan func(...any) error) error {
			if err := scan(&id, &index); err != nil {
				return err
			}
			found(batch.ID(id), index)
			return nil
		})
}

// RowsOfBatch is how many rows exposures and events have of a batch, each counted
// as after a merge.
func (c *Client) RowsOfBatch(ctx context.Context, id batch.ID) (rows uint64, err error) {
	for _, q := range []string{
		"SELECT uniqExact(experiment, unit_id, event_id) FROM exposures WHERE batch_id = ?",
		"SELECT uniqExact(name, unit_id, event_id) FROM events WHERE batch_id = ?",
	} {
		var n uint64
		if err := c.lookup(ctx, "count the rows of a batch", q, []any{uuid.UUID(id)}, func(scan func(...any) error) error { return scan(&n) }); err != nil {
			return 0, err
		}
		rows += n
	}
	return rows, nil
}

// DeadOf calls found with the dead letters of a batch, at most limit of them.
func (c *Client) DeadOf(ctx context.Context, id batch.ID, limit int, found func(schema.DeadLetter)) error {
	return c.lookup(ctx, "look up the dead letters of a batch", `
SELECT stage, reason, field, error, batch_index, size FROM dead_letters FINAL WHERE batch_id = ? ORDER BY batch_index, stage LIMIT ?`,
		[]any{uuid.UUID(id), uint32(limit)}, func(scan func(...any) error) error {
			l := schema.DeadLetter{BatchID: id}
			var size uint64
			if err := scan(&l.Stage, &l.Reason, &l.Field, &l.Error, &l.Index, &size); err != nil {
				return err
			}
			l.Size = int(min(size, math.MaxInt))
			found(l)
			return nil
		})
}

// Watermark is what the view delivery_watermark says.
type Watermark struct {
	CompleteUntil time.Time
	HeldBy        batch.ID
	Why           string
	JudgedAt      time.Time
}

// Watermark asks the view delivery_watermark.
func (c *Client) Watermark(ctx context.Context) (w Watermark, err error) {
	var heldBy uuid.UUID
	err = c.lookup(ctx, "ask for the watermark", "SELECT complete_until, held_by, held_why, judged_at FROM delivery_watermark", nil,
		func(scan func(...any) error) error { return scan(&w.CompleteUntil, &heldBy, &w.Why, &w.JudgedAt) })
	w.HeldBy, w.CompleteUntil, w.JudgedAt = batch.ID(heldBy), orZero(w.CompleteUntil), orZero(w.JudgedAt)
	return w, err
}

// RetireLedger gives a whole ledger up: the watermark does not wait for its
// collectors any more, until a sink copies it again. It reports false where no
// ledger has that id.
func (c *Client) RetireLedger(ctx context.Context, ledger, by, reason string) (bool, error) {
	var row *Completeness
	err := c.CompletenessRows(ctx, true, func(r Completeness) {
		if r.Ledger == ledger && ledger != "" {
			row = &r
		}
	})
	if err != nil || row == nil {
		return false, err
	}
	// Of two rows with the same time the one written last stays.
	row.State, row.Why, row.JudgedAt = "retired", fmt.Sprintf("given up by %s: %s", by, reason), time.Now()
	return true, c.InsertCompleteness(ctx, []Completeness{*row})
}
