package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// DeadFilter chooses dead letters. An empty field chooses all.
type DeadFilter struct {
	Reasons, Stages, Projects []string
	Since, Until              time.Time // of the events' receipt; Until is not included
	IDs                       []batch.ID
}

func (f *DeadFilter) where() (string, []any) {
	conditions := []string{"1"}
	var args []any
	add := func(condition string, value any) {
		conditions = append(conditions, condition)
		args = append(args, value)
	}
	for _, c := range []struct {
		column string
		values []string
	}{{"project", f.Projects}, {"stage", f.Stages}, {"reason", f.Reasons}} {
		if len(c.values) > 0 {
			add(c.column+" IN ?", c.values)
		}
	}
	if len(f.IDs) > 0 {
		ids := make([]uuid.UUID, len(f.IDs))
		for i, id := range f.IDs {
			ids[i] = uuid.UUID(id)
		}
		add("id IN ?", ids)
	}
	if !f.Since.IsZero() {
		add("received_at >= fromUnixTimestamp64Micro(?)", f.Since.UnixMicro())
	}
	if !f.Until.IsZero() {
		add("received_at < fromUnixTimestamp64Micro(?)", f.Until.UnixMicro())
	}
	return strings.Join(conditions, " AND "), args
}

// errEnough ends a query whose further rows are not wanted.
var errEnough = errors.New("enough")

// DeadLetters returns the dead letters that follow after, in the order of the
// table's key: at most limit, and about maxBytes of them, but one if there is any.
// The zero letter is before all.
func (c *Client) DeadLetters(ctx context.Context, f DeadFilter, after schema.DeadLetter, limit int, maxBytes int64) ([]schema.DeadLetter, error) {
	where, args := f.where()
	if !after.ID.IsZero() {
		where += " AND (project, stage, reason, id) > (?, ?, ?, ?)"
		args = append(args, after.Project, after.Stage, after.Reason, uuid.UUID(after.ID))
	}
	var (
		out         []schema.DeadLetter
		total       int64
		id, batchID uuid.UUID
		size        uint64
		bytes       string
		received    int64
		offset      uint64
	)
	err := c.lookup(ctx, "read dead letters", `
SELECT project, stage, reason, field, error, bytes, size, id, batch_id, batch_index, source, toUnixTimestamp64Micro(received_at), offset
FROM dead_letters FINAL WHERE `+where+fmt.Sprintf(" ORDER BY project, stage, reason, id LIMIT %d SETTINGS max_block_size = 64", limit), args,
		func(scan func(...any) error) error {
			var l schema.DeadLetter
			if err := scan(&l.Project, &l.Stage, &l.Reason, &l.Field, &l.Error, &bytes, &size, &id, &batchID, &l.Index, &l.Source, &received, &offset); err != nil {
				return err
			}
			if total > 0 && total+int64(len(bytes)) > maxBytes {
				return errEnough
			}
			total += int64(len(bytes)) + 1
			l.Bytes, l.Size, l.ID, l.BatchID, l.ReceivedAt, l.Offset = []byte(bytes), int(size), batch.ID(id), batch.ID(batchID), received, int64(offset)
			out = append(out, l)
			return nil
		})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	return out, nil
}

// CountDead is how many dead letters a filter chooses.
func (c *Client) CountDead(ctx context.Context, f DeadFilter) (int64, error) {
	where, args := f.where()
	var n uint64
	err := c.lookup(ctx, "count dead letters", "SELECT count() FROM dead_letters FINAL WHERE "+where, args,
		func(scan func(...any) error) error { return scan(&n) })
	return int64(n), err
}

// Replayed calls found for those of the batches that are events sent again from
// dead_letters: no collector has accepted them.
func (c *Client) Replayed(ctx context.Context, ids []batch.ID, found func(batch.ID)) error {
	if len(ids) == 0 {
		return nil
	}
	ctx, err := withIDs(ctx, ids)
	if err != nil {
		return err
	}
	var id uuid.UUID
	return c.lookup(ctx, "look for events that were sent again",
		"SELECT DISTINCT batch_id FROM batches WHERE batch_id IN wanted AND collector = ?", []any{uuid.UUID{}},
		func(scan func(...any) error) error {
			if err := scan(&id); err != nil {
				return err
			}
			found(batch.ID(id))
			return nil
		})
}

// Outcomes calls found for each record of the given offsets, first to last inclusive,
// that is of one of the batches and known to the table batches. It reads by batch,
// which the table is ordered by. A row stored twice is reported twice.
func (c *Client) Outcomes(ctx context.Context, ids []batch.ID, at schema.Position, first, last int64, found func(offset int64, id batch.ID, outcome schema.Outcome)) error {
	if len(ids) == 0 {
		return nil
	}
	ctx, err := withIDs(ctx, ids)
	if err != nil {
		return err
	}
	var (
		id      uuid.UUID
		offset  uint64
		outcome string
	)
	return c.lookup(ctx, "look up what became of records",
		"SELECT offset, batch_id, toString(outcome) FROM batches WHERE batch_id IN wanted AND log = ? AND topic = ? AND partition = ? AND offset BETWEEN ? AND ?",
		[]any{at.Log, at.Topic, uint32(at.Partition), uint64(first), uint64(last)},
		func(scan func(...any) error) error {
			if err := scan(&offset, &id, &outcome); err != nil {
				return err
			}
			found(int64(offset), batch.ID(id), schema.Outcome(outcome))
			return nil
		})
}

// Holders calls found for each record that rows of the batches' events came from,
// with the lowest and the highest index of them and without a digest: what the data
// itself says of a batch that the table batches does not know.
func (c *Client) Holders(ctx context.Context, ids []batch.ID, found func(schema.Copy)) error {
	if len(ids) == 0 {
		return nil
	}
	with, err := withIDs(ctx, ids)
	if err != nil {
		return err
	}
	for _, t := range []schema.Table{schema.Exposures, schema.Events} {
		var (
			id        uuid.UUID
			cp        schema.Copy
			partition uint32
			offset    uint64
		)
		err := c.lookup(with, "look for the records that events came from",
			fmt.Sprintf("SELECT batch_id, log, partition, offset, min(batch_index), max(batch_index) FROM %s WHERE batch_id IN wanted GROUP BY batch_id, log, topic, partition, offset", t), nil,
			func(scan func(...any) error) error {
				if err := scan(&id, &cp.Log, &partition, &offset, &cp.First, &cp.Last); err != nil {
					return err
				}
				cp.BatchID, cp.Partition, cp.Offset = batch.ID(id), int(partition), int64(offset)
				found(cp)
				return nil
			})
		if err != nil {
			return err
		}
	}
	return nil
}

// RowsOf calls have for each row of exposures, events, dead_letters, or a table like
// those, that came from the given offsets, first to last, and was received from from
// to until, all inclusive. The times spare reading the months in which there are
// none. A row stored twice is reported twice.
func (c *Client) RowsOf(ctx context.Context, t schema.Table, at schema.Position, first, last int64, from, until time.Time, have func(offset int64, index uint32, id batch.ID)) error {
	return c.rowsOf(ctx, t, "", at, first, last, from, until, have)
}

// Refused calls found for each event of such records that ClickHouse did not take.
func (c *Client) Refused(ctx context.Context, at schema.Position, first, last int64, from, until time.Time, found func(offset int64, index uint32, id batch.ID)) error {
	return c.rowsOf(ctx, schema.DeadLetters, " AND stage = 'sink' AND reason = 'refused'", at, first, last, from, until, found)
}

func (c *Client) rowsOf(ctx context.Context, t schema.Table, more string, at schema.Position, first, last int64, from, until time.Time, have func(offset int64, index uint32, id batch.ID)) error {
	var (
		offset uint64
		index  uint32
		id     uuid.UUID
	)
	return c.lookup(ctx, "look up rows of "+string(t),
		fmt.Sprintf("SELECT offset, batch_index, batch_id FROM `%s` WHERE log = ? AND topic = ? AND partition = ? AND offset BETWEEN ? AND ? AND received_at BETWEEN fromUnixTimestamp64Micro(?) AND fromUnixTimestamp64Micro(?)%s", t, more),
		[]any{at.Log, at.Topic, uint32(at.Partition), uint64(first), uint64(last), from.UnixMicro(), until.UnixMicro()},
		func(scan func(...any) error) error {
			if err := scan(&offset, &index, &id); err != nil {
				return err
			}
			have(int64(offset), index, batch.ID(id))
			return nil
		})
}

// Merged calls found with the index of each of the events, or else of the dead
// letters, that a table has from any offset: see MergedEvents. The table is like
// another one.
func (c *Client) Merged(ctx context.Context, t, like schema.Table, rows *schema.Rows, found func(row int)) error {
	switch {
	case like == schema.DeadLetters:
		return c.MergedDead(ctx, rows.Dead, found)
	case t == like:
		return c.MergedEvents(ctx, t, rows.Events, found)
	}
	name := "experiment"
	if like == schema.Events {
		name = "name"
	}
	return c.merged(ctx, t, [4]string{"project", name, "unit_id", "event_id"}, len(rows.Events), func(i int) sortingKey {
		r := &rows.Events[i]
		k := sortingKey{r.Batch.Project, r.Event.Experiment, r.Event.UnitID, uuid.UUID(r.Event.ID)}
		if like == schema.Events {
			k.second = r.Event.Name
		}
		return k
	}, found)
}

// Fill inserts rows as one block into a table that is like one of the sinks'. Unlike
// OpenInsert it has a query id of its own and cancels nobody: it is for rows that no
// sink is about to insert. token is the insert's deduplication token. The rows are
// durable when it returns nil; after an error they may be stored.
func (c *Client) Fill(ctx context.Context, t, like schema.Table, at schema.Position, token string, rows *schema.Rows) error {
	settings, err := c.insertSettings(ctx, token, c.cfg.InsertTimeout)
	if err != nil {
		return err
	}
	own, cancel := context.WithCancel(ctx)
	query := fmt.Sprintf("INSERT INTO `%s` (`%s`) VALUES", t, strings.Join(columns(like), "`, `"))
	b, err := c.conn.PrepareBatch(ch.Context(own, ch.WithSettings(settings)), query)
	if err != nil {
		cancel()
		return c.classify(fmt.Errorf("open insert into %s: %w", t, err))
	}
	in := &Insert{c: c, table: like, at: at, batch: b, cancel: cancel, opened: time.Now(), silence: c.cfg.InsertTimeout}
	return in.Send(rows)
}

// MakeLike makes a table like exposures or events, if it is not there. It returns a
// Permanent error for a name that is not letters, digits and _, is that of the
// pipeline's own table, or belongs to something with other columns.
func (c *Client) MakeLike(ctx context.Context, name, like schema.Table) error {
	if !identifier.MatchString(string(name)) || name == schema.Exposures || name == schema.Events {
		return retry.Mark(fmt.Errorf("table %q: want a name of letters, digits and _, and not one of the pipeline's own tables", name), retry.Permanent)
	}
	if err := c.Exec(ctx, fmt.Sprintf("CREATE TABLE IF NOT EXISTS `%s` %s AS `%s`", name, onCluster(c.cfg.Cluster), like)); err != nil {
		return fmt.Errorf("create table %s: %w", name, err)
	}
	var shapes [2][]string
	for i, t := range []schema.Table{like, name} {
		var text string
		err := c.lookup(ctx, "read the columns of "+string(t),
			"SELECT concat(name, ' ', type) FROM system.columns WHERE database = ? AND table = ? UNION ALL SELECT concat(engine, ' ', sorting_key) FROM system.tables WHERE database = ? AND name = ?",
			[]any{c.database, string(t), c.database, string(t)},
			func(scan func(...any) error) error {
				if err := scan(&text); err != nil {
					return err
				}
				shapes[i] = append(shapes[i], text)
				return nil
			})
		if err != nil {
			return err
		}
		slices.Sort(shapes[i])
	}
	if !slices.Equal(shapes[0], shapes[1]) {
		return retry.Mark(fmt.Errorf("table %s is there and is not like %s: choose another name", name, like), retry.Permanent)
	}
	return nil
}

// CountsBy counts the rows of a table from the given offsets, first to last
// inclusive, each event once: by experiment and variant, custom events by name. The
// table is like another one.
func (c *Client) CountsBy(ctx context.Context, t, like schema.Table, at schema.Position, first, last int64, found func(experiment, variant string, rows int64)) error {
	if last < first {
		return nil
	}
	by, none := "experiment, variant", ""
	if like == schema.Events {
		by, none = "name", ", ''"
	}
	var (
		experiment, variant string
		n                   uint64
	)
	return c.lookup(ctx, "count rows of "+string(t),
		fmt.Sprintf("SELECT %s%s, count() FROM `%s` FINAL WHERE log = ? AND topic = ? AND partition = ? AND offset BETWEEN ? AND ? GROUP BY %s", by, none, t, by),
		[]any{at.Log, at.Topic, uint32(at.Partition), uint64(first), uint64(last)},
		func(scan func(...any) error) error {
			if err := scan(&experiment, &variant, &n); err != nil {
				return err
			}
			found(experiment, variant, int64(n))
			return nil
		})
}
