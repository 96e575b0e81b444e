package clickhouse

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/ext"
	"github.com/google/uuid"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// How long a question of the sink may take, on the wire; the client library lets
// the server take 5 s longer. Reading back scans the offsets of every part that
// reaches into the block's range (24 s a billion rows on two cores, measured), so
// where that takes longer than usual the next attempt gets twice the time.
const (
	usualLookup   = 2 * time.Minute
	longestLookup = time.Hour
)

// lookup runs a query of the sink and hands each row to scan.
func (c *Client) lookup(ctx context.Context, what, query string, args []any, scan func(func(...any) error) error) error {
	limit := c.lookups.limit()
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := c.ask(bounded, what, query, args, scan)
	if ctx.Err() == nil && (bounded.Err() != nil || serverCode(err) == codeTooSlow) {
		c.lookups.tooShort(limit)
	}
	return err
}

func (c *Client) ask(ctx context.Context, what, query string, args []any, scan func(func(...any) error) error) error {
	settings := ch.Settings{}
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

// Present calls have for each row of the table that came from the given
// offsets, first to last inclusive: offset, index in the batch (0 in batches) and
// batch. A row stored twice is reported twice. For progress it reports the last
// offset, without a batch, if that is covered.
func (c *Client) Present(ctx context.Context, t schema.Table, at schema.Position, first, last int64, have func(offset int64, index uint32, id batch.ID)) error {
	if t == schema.ProgressTab {
		through, err := c.Through(ctx, at)
		if err == nil && through >= last {
			have(last, 0, batch.ID{})
		}
		return err
	}
	index := "batch_index"
	if t == schema.Batches {
		index = "toUInt32(0)"
	}
	var (
		offset uint64
		i      uint32
		id     uuid.UUID
	)
	return c.lookup(ctx, "read back "+string(t),
		fmt.Sprintf("SELECT offset, %s, batch_id FROM %s WHERE log = ? AND topic = ? AND partition = ? AND offset BETWEEN ? AND ?", index, t),
		[]any{at.Log, at.Topic, uint32(at.Partition), uint64(first), uint64(last)},
		func(scan func(...any) error) error {
			if err := scan(&offset, &i, &id); err != nil {
				return err
			}
			have(int64(offset), i, batch.ID(id))
			return nil
		})
}

// Through returns the offset up to which the partition is stored, -1 where
// nothing of this log is.
func (c *Client) Through(ctx context.Context, at schema.Position) (int64, error) {
	var n, through uint64
	err := c.lookup(ctx, "read the partition's progress",
		"SELECT count(), max(through) FROM progress WHERE log = ? AND topic = ? AND partition = ?",
		[]any{at.Log, at.Topic, uint32(at.Partition)},
		func(scan func(...any) error) error { return scan(&n, &through) })
	if err != nil || n == 0 {
		return -1, err
	}
	return int64(through), nil
}

// Highest returns the highest offset of the partition, from the given one on,
// that any of the tables has a row of; -1 where there is none.
func (c *Client) Highest(ctx context.Context, at schema.Position, from int64) (int64, error) {
	highest := int64(-1)
	for _, t := range []schema.Table{schema.Exposures, schema.Events, schema.DeadLetters, schema.Batches} {
		var n, top uint64
		err := c.lookup(ctx, "look for rows beyond the committed offset",
			fmt.Sprintf("SELECT count(), max(offset) FROM %s WHERE log = ? AND topic = ? AND partition = ? AND offset >= ?", t),
			[]any{at.Log, at.Topic, uint32(at.Partition), uint64(max(from, 0))},
			func(scan func(...any) error) error { return scan(&n, &top) })
		if err != nil {
			return -1, err
		}
		if n > 0 {
			highest = max(highest, int64(top))
		}
	}
	return highest, nil
}

// Copies calls found for every stored record of the batches. Who asks for many ids
// is told of most without a query for them (see stored).
func (c *Client) Copies(ctx context.Context, ids []batch.ID, found func(schema.Copy)) error {
	if ids = c.stored.unsure(ctx, c, ids); len(ids) == 0 {
		return nil
	}
	ctx, err := withIDs(ctx, ids)
	if err != nil {
		return err
	}
	var (
		id          uuid.UUID
		digest      string
		part, log   string
		partition   uint32
		offset      uint64
		first, last uint32
	)
	return c.lookup(ctx, "look up earlier copies",
		"SELECT batch_id, digest, part, log, partition, offset FROM batches PREWHERE batch_id IN wanted WHERE outcome = 'stored'", nil,
		func(scan func(...any) error) error {
			if err := scan(&id, &digest, &part, &log, &partition, &offset); err != nil {
				return err
			}
			first, last = 0, math.MaxUint32
			if part != "" {
				if _, err := fmt.Sscanf(part, "%d-%d", &first, &last); err != nil {
					return fmt.Errorf("part %q of batch %s: %w", part, id, err)
				}
			}
			cp := schema.Copy{BatchID: batch.ID(id), First: first, Last: last, Log: log, Partition: int(partition), Offset: int64(offset)}
			copy(cp.Digest[:], digest)
			found(cp)
			return nil
		})
}

// Held is how many bytes the client keeps in memory to look copies up: up to 96 MiB,
// and while it reads the table as much again as one reading brings.
func (c *Client) Held() int64 {
	held := c.stored.held.Load()
	if held > 0 && !c.stored.whole.Load() {
		held += 2 * 8 * int64(c.stored.piece)
	}
	return held
}

// withIDs sends ids along with a query, as a table named wanted: any number of
// them, where a list in the text would pass max_query_size (256 KiB).
func withIDs(ctx context.Context, ids []batch.ID) (context.Context, error) {
	t, err := ext.NewTable("wanted", ext.Column("id", "UUID"))
	if err != nil {
		return nil, fmt.Errorf("lay out the ids to look up: %w", err)
	}
	for _, id := range ids {
		if err := t.Append(uuid.UUID(id)); err != nil {
			return nil, fmt.Errorf("lay out the ids to look up: %w", err)
		}
	}
	return ch.Context(ctx, ch.WithExternalTable(t)), nil
}

// HasBatch reports whether exposures or events hold one of the batch's events
// first to last that came from another record: the answer for a batch that is
// older than the dedup window, of which batches knows nothing any more.
func (c *Client) HasBatch(ctx context.Context, project string, id batch.ID, first, last uint32, at schema.Position) (bool, error) {
	found := false
	for _, t := range []schema.Table{schema.Exposures, schema.Events} {
		var one uint8
		err := c.lookup(ctx, "look up an old batch",
			fmt.Sprintf("SELECT 1 FROM %s WHERE batch_id = ? AND project = ? AND batch_index BETWEEN ? AND ? AND NOT (log = ? AND topic = ? AND partition = ? AND offset = ?) LIMIT 1", t),
			[]any{uuid.UUID(id), project, first, last, at.Log, at.Topic, uint32(at.Partition), uint64(at.Offset)},
			func(scan func(...any) error) error { found = true; return scan(&one) })
		if err != nil {
			return false, err
		}
	}
	return found, nil
}

// MergedEvents calls found with the index of each of the given rows that the table
// has from any offset. A row that merged with a copy of its event is not missing.
// A copy is what has the same sorting key; the event's id alone does not tell,
// since clients may give one id to several events.
func (c *Client) MergedEvents(ctx context.Context, t schema.Table, rows []schema.EventRow, found func(row int)) error {
	name := "experiment"
	if t == schema.Events {
		name = "name"
	}
	return c.merged(ctx, t, [4]string{"project", name, "unit_id", "event_id"}, len(rows), func(i int) sortingKey {
		r := &rows[i]
		k := sortingKey{r.Batch.Project, r.Event.Experiment, r.Event.UnitID, uuid.UUID(r.Event.ID)}
		if t == schema.Events {
			k.second = r.Event.Name
		}
		return k
	}, found)
}

// MergedDead calls found with the index of each of the given dead letters that the
// table has from any offset.
func (c *Client) MergedDead(ctx context.Context, rows []schema.DeadLetter, found func(row int)) error {
	return c.merged(ctx, schema.DeadLetters, [4]string{"project", "stage", "reason", "id"}, len(rows), func(i int) sortingKey {
		r := &rows[i]
		return sortingKey{r.Project, r.Stage, r.Reason, uuid.UUID(r.ID)}
	}, found)
}

// sortingKey is what tells a table's rows apart once they have merged.
type sortingKey struct {
	first, second, third string
	id                   uuid.UUID
}

// merged looks n sorting keys up, in the table's primary index.
func (c *Client) merged(ctx context.Context, t schema.Table, columns [4]string, n int, key func(int) sortingKey, found func(row int)) error {
	wanted, err := ext.NewTable("wanted", ext.Column("a", "String"), ext.Column("b", "String"), ext.Column("c", "String"), ext.Column("d", "UUID"))
	if err != nil {
		return fmt.Errorf("lay out the keys to look up: %w", err)
	}
	rows := make(map[sortingKey][]int, n)
	for i := range n {
		k := key(i)
		if rows[k] == nil {
			if err := wanted.Append(k.first, k.second, k.third, k.id); err != nil {
				return fmt.Errorf("lay out the keys to look up: %w", err)
			}
		}
		rows[k] = append(rows[k], i)
	}
	list := strings.Join(columns[:], ", ")
	var k sortingKey
	return c.lookup(ch.Context(ctx, ch.WithExternalTable(wanted)), "look for merged copies",
		fmt.Sprintf("SELECT DISTINCT %s FROM %s WHERE (%s) IN wanted", list, t, list), nil,
		func(scan func(...any) error) error {
			if err := scan(&k.first, &k.second, &k.third, &k.id); err != nil {
				return err
			}
			for _, i := range rows[k] {
				found(i)
			}
			return nil
		})
}

// Parts is the number of active parts of exposures: what tells whether
// ClickHouse keeps up with merging.
func (c *Client) Parts(ctx context.Context) (int, error) {
	var n uint64
	err := c.lookup(ctx, "count parts",
		"SELECT count() FROM system.parts WHERE active AND database = ? AND table = 'exposures'", []any{c.database},
		func(scan func(...any) error) error { return scan(&n) })
	return int(n), err
}

// Stop is a partition at which a sink stopped, and what a person decided.
type Stop struct {
	At       schema.Position // Offset is the one the sink wanted
	Reason   string
	Detail   string
	ResumeAt int64 // where going on would continue
	When     time.Time
}

// RecordStop writes down why a partition does not go on. It is the newest word
// about the position: what a person decided about an earlier stop there does not
// count for this one.
func (c *Client) RecordStop(ctx context.Context, at schema.Position, reason, detail string, resumeAt int64) error {
	return c.writeStop(ctx, at, reason, detail, resumeAt, "stopped", "")
}

// Resume writes down that a person looked and lets the partition go on.
func (c *Client) Resume(ctx context.Context, s Stop, by string) error {
	return c.writeStop(ctx, s.At, s.Reason, s.Detail, s.ResumeAt, "resumed", by)
}

// writeStop adds a row that is newer than every other of the position, also where
// the server's clock was set back.
func (c *Client) writeStop(ctx context.Context, at schema.Position, reason, detail string, resumeAt int64, state, by string) error {
	settings := ch.Settings{"async_insert": 0}
	if c.cfg.Cluster != "" {
		settings["select_sequential_consistency"] = 1
		settings["insert_quorum"] = "auto"
		settings["insert_quorum_parallel"] = 0
	}
	err := c.conn.Exec(ch.Context(ctx, ch.WithSettings(settings)), `
INSERT INTO stops (log, topic, partition, offset, reason, detail, resume_at, state, by, at)
SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, greatest(now64(6), max(s.at) + INTERVAL 1 MICROSECOND)
FROM stops AS s WHERE s.log = ? AND s.topic = ? AND s.partition = ? AND s.offset = ?`,
		at.Log, at.Topic, uint32(at.Partition), at.Offset, reason, detail, resumeAt, state, by,
		at.Log, at.Topic, uint32(at.Partition), at.Offset)
	if err != nil {
		return c.classify(fmt.Errorf("record a stop: %w", err))
	}
	return nil
}

// Resumed returns where a person let a stopped partition go on, if one did since
// it stopped.
func (c *Client) Resumed(ctx context.Context, at schema.Position) (resumeAt int64, ok bool, err error) {
	err = c.lookup(ctx, "ask whether a partition was resumed",
		"SELECT argMax(resume_at, at) FROM stops WHERE log = ? AND topic = ? AND partition = ? AND offset = ? HAVING argMax(state, at) = 'resumed'",
		[]any{at.Log, at.Topic, uint32(at.Partition), at.Offset},
		func(scan func(...any) error) error { ok = true; return scan(&resumeAt) })
	return resumeAt, ok, err
}

// Stops lists the partitions that are stopped and not resumed.
func (c *Client) Stops(ctx context.Context, topic string) ([]Stop, error) {
	var out []Stop
	err := c.lookup(ctx, "list stopped partitions", `
SELECT log, partition, offset, argMax(reason, at), argMax(detail, at), argMax(resume_at, at), max(at)
FROM stops WHERE topic = ? GROUP BY log, partition, offset
HAVING argMax(state, at) = 'stopped' ORDER BY log, partition, offset`,
		[]any{topic}, func(scan func(...any) error) error {
			s := Stop{At: schema.Position{Topic: topic}}
			var partition uint32
			if err := scan(&s.At.Log, &partition, &s.At.Offset, &s.Reason, &s.Detail, &s.ResumeAt, &s.When); err != nil {
				return err
			}
			s.At.Partition = int(partition)
			out = append(out, s)
			return nil
		})
	return out, err
}
