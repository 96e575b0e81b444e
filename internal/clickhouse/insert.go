package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	chcolumn "github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// columns of each table, in the order Insert fills them.
func columns(t schema.Table) []string {
	switch t {
	case schema.Exposures:
		return strings.Fields("project experiment variant rule reason unit_type unit_id time received_at attributes time_adjusted event_id batch_id batch_index source sdk log topic partition offset")
	case schema.Events:
		return strings.Fields("project name value unit_type unit_id time received_at attributes time_adjusted event_id batch_id batch_index source sdk log topic partition offset")
	case schema.DeadLetters:
		return strings.Fields("project stage reason field error bytes size id batch_id batch_index source received_at log topic partition offset")
	case schema.Batches:
		return strings.Fields("dedup_id batch_id digest part project source collector epoch seq outcome path events rejected received_at log topic partition offset")
	default:
		return strings.Fields("log topic partition first through")
	}
}

// Insert is an INSERT that is open on the server and has not sent its rows: the
// door of one table, held under the partition's query id. As long as it is
// open no other process can have one open for the same table and partition.
// Not safe for concurrent use.
type Insert struct {
	c       *Client
	table   schema.Table
	at      schema.Position
	wire    *wire           // of exposures and events that have our types; nil: batch
	ctx     context.Context // of the wire's exchanges; ends with cancel
	batch   driver.Batch
	cancel  context.CancelFunc
	opened  time.Time
	over    bool          // the wire was given back
	silence time.Duration // how long the server waits for its rows
}

// OpenInsert opens the door of a table for a partition. Whoever held it before
// (this process, or one that was paused and will wake up) is cancelled by the
// server before OpenInsert returns nil: what that one had sent is then either
// stored or never will be. token is the insert's deduplication token.
//
// Closing the door costs nothing: Close, without Send, stores nothing.
func (c *Client) OpenInsert(ctx context.Context, t schema.Table, at schema.Position, token string) (*Insert, error) {
	silence := c.silence.limit()
	settings, err := c.insertSettings(ctx, token, silence)
	if err != nil {
		return nil, err
	}
	query := fmt.Sprintf("INSERT INTO %s (`%s`) VALUES", t, strings.Join(columns(t), "`, `"))
	id := fmt.Sprintf("sluice/%s/%s/%s/%s/%d", c.database, t, at.Log, at.Topic, at.Partition)
	// The server tries for replace_running_query_max_wait_ms (5 s) to stop the
	// other holder; while that one's client is silent it may take until that
	// one's receive_timeout.
	deadline := time.Now().Add(c.cfg.InsertTimeout + 15*time.Second)
	for {
		own, cancel := context.WithCancel(ctx)
		in := &Insert{c: c, table: t, at: at, ctx: own, cancel: cancel, silence: silence}
		err := in.open(id, query, settings)
		if err == nil {
			in.opened = time.Now()
			return in, nil
		}
		cancel()
		if serverCode(err) != codeQueryRunning || time.Now().After(deadline) {
			return nil, c.classify(fmt.Errorf("open insert into %s: %w", t, err))
		}
		select {
		case <-ctx.Done():
			return nil, c.classify(ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// open sends the query and waits until the server has opened it: on a wire where the
// table is one whose columns are laid out here, and has the types they are for.
func (i *Insert) open(id, query string, settings ch.Settings) (err error) {
	if i.table == schema.Exposures || i.table == schema.Events {
		if i.wire, err = i.c.openWire(i.ctx, i.table, id, query, settings); err != nil || i.wire != nil {
			return err
		}
	}
	i.batch, err = i.c.conn.PrepareBatch(ch.Context(i.ctx, ch.WithQueryID(id), ch.WithSettings(settings)), query)
	return err
}

// usualSilence is the receive_timeout of an open insert that waits for its rows.
// It bounds how long a paused process can keep its successor waiting: ClickHouse
// 26.7 looks every 10 s, so it ends a silent insert after about 12 s (measured;
// with 15 s it took more than 35). A process that is merely slow (it commits the
// intent, writes the other tables and lays the rows out meanwhile) loses the
// insert too, and reads back; its next inserts may be silent for longer.
const usualSilence = 5 * time.Second

// The server ends an insert first; answerGrace later its client stops waiting for
// one that is silent or does not take the rows. closeGrace is how long the end of
// an insert without rows is waited for.
const (
	answerGrace = 10 * time.Second
	closeGrace  = 5 * time.Second
)

func (c *Client) insertSettings(ctx context.Context, token string, silence time.Duration) (ch.Settings, error) {
	known, err := c.knownSettings(ctx)
	if err != nil {
		return nil, err
	}
	seconds := int(c.cfg.InsertTimeout / time.Second)
	s := ch.Settings{
		"async_insert":               0, // on by default in 26.x: it would answer for rows that wait in memory
		"insert_deduplicate":         1,
		"insert_deduplication_token": token,
		"replace_running_query":      1,
		"receive_timeout":            int(silence / time.Second),
		"max_execution_time":         seconds,
		// One block a table is what makes an insert one part; the server must not
		// cut it.
		"max_insert_block_size": 2_000_000,
		// Else the server sorts a block again to make one of rows with one sorting key:
		// 3.9 CPU-seconds a million rows in place of 0.7 (measured, 500,000 rows a
		// block). They become one in a merge, and FINAL counts them once meanwhile, as
		// it does copies in two blocks.
		"optimize_on_insert": 0,
		// Months of receipt come from the records: were there a bound, a block with
		// more of them would be refused for ever.
		"max_partitions_per_insert_block": 0,
	}
	if known["deduplicate_insert"] {
		s["deduplicate_insert"] = "enable"
	}
	if c.cfg.Cluster != "" {
		s["insert_quorum"] = "auto"
		s["insert_quorum_parallel"] = 0
		s["select_sequential_consistency"] = 1
	}
	return s, nil
}

// knownSettings asks once which of the settings this server has that only newer
// ones know: an unknown setting fails the query.
func (c *Client) knownSettings(ctx context.Context) (map[string]bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known != nil {
		return c.known, nil
	}
	rows, err := c.conn.Query(ctx, "SELECT name FROM system.settings WHERE name IN ('deduplicate_insert')")
	if err != nil {
		return nil, c.classify(fmt.Errorf("ask for the server's settings: %w", err))
	}
	defer rows.Close()
	known := map[string]bool{}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, c.classify(err)
		}
		known[name] = true
	}
	if err := rows.Err(); err != nil {
		return nil, c.classify(fmt.Errorf("ask for the server's settings: %w", err))
	}
	c.known = known
	return known, nil
}

// Send sends the rows as one block and waits for the server's word. Whatever
// error it returns, the rows may be stored: a deadline has been seen to be
// reported for rows that were, and so is what a materialized view refuses. An error
// with a method Content() says that the rows are refused for what is in them. The
// Insert is closed either way.
func (i *Insert) Send(rows *schema.Rows) error {
	defer i.cancel()
	send, err := i.layOut(rows)
	if err != nil {
		return err
	}
	laidOut := time.Since(i.opened)
	limit := i.c.cfg.InsertTimeout + answerGrace
	late := time.AfterFunc(limit, i.cancel)
	err = send()
	inTime := late.Stop()
	if err == nil {
		return nil
	}
	if laidOut > i.silence || serverCode(err) == codeReceiveTimeout {
		i.c.silence.tooShort(i.silence)
	}
	err = fmt.Errorf("insert %d rows into %s: %w", rows.Len(), i.table, err)
	if !inTime {
		return retry.Mark(fmt.Errorf("%w (no answer in %s)", err, limit), retry.Transient)
	}
	if refusedContent[serverCode(err)] {
		return content(err)
	}
	return i.c.classify(err)
}

// layOut prepares the rows and returns what sends them. After an error nothing was
// sent.
func (i *Insert) layOut(rows *schema.Rows) (send func() error, err error) {
	if i.wire != nil {
		columns, err := i.columns(rows)
		if err != nil {
			i.Close()
			return nil, err
		}
		i.over = true
		return func() error { return i.c.sendWire(i.ctx, i.wire, columns) }, nil
	}
	if rows.Laid != nil {
		i.Close()
		return nil, retry.Mark(fmt.Errorf("%s was changed meanwhile: %w", i.table, errLaid), retry.Transient)
	}
	if err := i.fill(rows); err != nil {
		_ = i.batch.Abort()
		return nil, layoutError(fmt.Errorf("lay out rows of %s: %w", i.table, err))
	}
	return i.batch.Send, nil
}

// errLaid is for columns that a table does not take as they are: the rows have to be
// sent.
var errLaid = errors.New("rows were laid out for other columns than it has")

// columns are the rows as a wire sends them.
func (i *Insert) columns(rows *schema.Rows) ([]inputColumn, error) {
	if rows.Laid != nil {
		laid, ok := rows.Laid.(*Columns)
		if !ok {
			return nil, retry.Mark(fmt.Errorf("%s: %w", i.table, errLaid), retry.Permanent)
		}
		return laid.table(i.table).columns, nil
	}
	t := newEventTable(i.table)
	for r := range rows.Events {
		t.add(&i.at, rows.Events[r].Batch, rows.Events[r].Event, rows.Events[r].Offset)
	}
	return t.columns, nil
}

// layoutError classifies what the client itself did not take. It knows the columns'
// types: a value that an Enum or a FixedString has no room for it refuses as the
// server would. A column that takes no value of ours at all has another type than
// it should.
func layoutError(err error) error {
	var kind *chcolumn.ColumnConverterError
	if errors.As(err, &kind) || errors.Is(err, ch.ErrBatchAlreadySent) || errors.Is(err, ch.ErrBatchInvalid) {
		return retry.Mark(err, retry.Permanent)
	}
	return content(err)
}

// Close ends the insert without rows. Closing twice, or after Send, is fine.
func (i *Insert) Close() {
	if i.wire != nil {
		if !i.over {
			i.over = true
			i.c.closeWire(i.ctx, i.wire)
		}
	} else if !i.batch.IsSent() {
		late := time.AfterFunc(closeGrace, i.cancel)
		defer late.Stop()
		if err := i.batch.Close(); err != nil {
			// The connection is gone, and with it the insert: no row was sent.
			_ = i.batch.Abort()
		}
	}
	i.cancel()
}

func (i *Insert) fill(rows *schema.Rows) error {
	f := &filler{batch: i.batch}
	n := rows.Len()
	switch i.table {
	case schema.Exposures, schema.Events:
		fillEvents(f, i.table, rows.Events)
	case schema.DeadLetters:
		fillDead(f, rows.Dead)
	case schema.Batches:
		fillBatches(f, rows.Batches)
	default:
		f.add(repeat(i.at.Log, n))
		f.add(repeat(i.at.Topic, n))
		f.add(repeat(uint32(i.at.Partition), n))
		f.add(column(rows.Progress, func(p *schema.Progress) uint64 { return uint64(p.First) }))
		f.add(column(rows.Progress, func(p *schema.Progress) uint64 { return uint64(p.Through) }))
		return f.err
	}
	f.add(repeat(i.at.Log, n))
	f.add(repeat(i.at.Topic, n))
	f.add(repeat(uint32(i.at.Partition), n))
	switch i.table {
	case schema.Exposures, schema.Events:
		f.add(column(rows.Events, func(r *schema.EventRow) uint64 { return uint64(r.Offset) }))
	case schema.DeadLetters:
		f.add(column(rows.Dead, func(r *schema.DeadLetter) uint64 { return uint64(r.Offset) }))
	case schema.Batches:
		f.add(column(rows.Batches, func(r *schema.BatchRow) uint64 { return uint64(r.Offset) }))
	}
	return f.err
}

// filler adds whole columns, one after the other; the first error stays.
type filler struct {
	batch driver.Batch
	next  int
	err   error
}

func (f *filler) add(values any) {
	if f.err == nil {
		f.err = f.batch.Column(f.next).Append(values)
	}
	f.next++
}

func column[R, V any](rows []R, of func(*R) V) []V {
	out := make([]V, len(rows))
	for i := range rows {
		out[i] = of(&rows[i])
	}
	return out
}

func repeat[V any](v V, n int) []V {
	out := make([]V, n)
	for i := range out {
		out[i] = v
	}
	return out
}

func micro(us int64) time.Time { return time.UnixMicro(us).UTC() }

func fillEvents(f *filler, t schema.Table, rows []schema.EventRow) {
	type row = schema.EventRow
	f.add(column(rows, func(r *row) string { return r.Batch.Project }))
	if t == schema.Exposures {
		f.add(column(rows, func(r *row) string { return r.Event.Experiment }))
		f.add(column(rows, func(r *row) string { return r.Event.Variant }))
		f.add(column(rows, func(r *row) string { return r.Event.Rule }))
		f.add(column(rows, func(r *row) string { return r.Event.Reason }))
	} else {
		f.add(column(rows, func(r *row) string { return r.Event.Name }))
		f.add(column(rows, func(r *row) *float64 {
			if !r.Event.HasValue {
				return nil
			}
			return &r.Event.Value
		}))
	}
	f.add(column(rows, func(r *row) string { return r.Event.UnitType }))
	f.add(column(rows, func(r *row) string { return r.Event.UnitID }))
	f.add(column(rows, func(r *row) time.Time { return micro(r.Event.Time) }))
	f.add(column(rows, func(r *row) time.Time { return micro(r.Batch.ReceivedAt) }))
	f.add(column(rows, func(r *row) attributes { return attributes(r.Event.Attributes) }))
	f.add(column(rows, func(r *row) bool { return r.Event.TimeAdjusted }))
	f.add(column(rows, func(r *row) uuid.UUID { return uuid.UUID(r.Event.ID) }))
	f.add(column(rows, func(r *row) uuid.UUID { return uuid.UUID(r.Batch.ID) }))
	f.add(column(rows, func(r *row) uint32 { return r.Event.Index }))
	f.add(column(rows, func(r *row) string { return r.Batch.Source }))
	f.add(column(rows, func(r *row) string { return r.Batch.SDK }))
}

func fillDead(f *filler, rows []schema.DeadLetter) {
	type row = schema.DeadLetter
	f.add(column(rows, func(r *row) string { return r.Project }))
	f.add(column(rows, func(r *row) string { return r.Stage }))
	f.add(column(rows, func(r *row) string { return r.Reason }))
	f.add(column(rows, func(r *row) string { return r.Field }))
	f.add(column(rows, func(r *row) string { return r.Error }))
	f.add(column(rows, func(r *row) string { return string(r.Bytes) }))
	f.add(column(rows, func(r *row) uint64 { return uint64(r.Size) }))
	f.add(column(rows, func(r *row) uuid.UUID { return uuid.UUID(r.ID) }))
	f.add(column(rows, func(r *row) uuid.UUID { return uuid.UUID(r.BatchID) }))
	f.add(column(rows, func(r *row) uint32 { return r.Index }))
	f.add(column(rows, func(r *row) string { return r.Source }))
	f.add(column(rows, func(r *row) time.Time { return micro(r.ReceivedAt) }))
}

func fillBatches(f *filler, rows []schema.BatchRow) {
	type row = schema.BatchRow
	f.add(column(rows, func(r *row) uuid.UUID { return uuid.UUID(r.Record.DedupID) }))
	f.add(column(rows, func(r *row) uuid.UUID { return uuid.UUID(r.Record.BatchID) }))
	f.add(column(rows, func(r *row) string { return string(r.Record.Digest[:]) }))
	f.add(column(rows, func(r *row) string { return r.Part }))
	f.add(column(rows, func(r *row) string { return r.Record.Project }))
	f.add(column(rows, func(r *row) string { return r.Source }))
	f.add(column(rows, func(r *row) uuid.UUID { return uuid.UUID(r.Record.Collector) }))
	f.add(column(rows, func(r *row) uint64 { return r.Record.Epoch }))
	f.add(column(rows, func(r *row) uint64 { return r.Record.Seq }))
	f.add(column(rows, func(r *row) string { return string(r.Outcome) }))
	f.add(column(rows, func(r *row) string {
		if r.Record.Path == batch.Spool {
			return string(batch.Spool)
		}
		return string(batch.Direct)
	}))
	f.add(column(rows, func(r *row) uint32 { return uint32(r.Events) }))
	f.add(column(rows, func(r *row) uint32 { return uint32(r.Rejected) }))
	f.add(column(rows, func(r *row) time.Time { return r.Record.ReceivedAt.UTC() }))
}

// attributes lets the client write a map column straight from a slice: it is
// what the client calls an ordered map.
type attributes []schema.Attribute

// Put is part of the client's interface; it is used for reading only.
func (a attributes) Put(any, any) {}

// Iterator walks the pairs in their order.
func (a attributes) Iterator() chcolumn.MapIterator { return &attributeIterator{pairs: a, at: -1} }

type attributeIterator struct {
	pairs []schema.Attribute
	at    int
}

func (i *attributeIterator) Next() bool { i.at++; return i.at < len(i.pairs) }
func (i *attributeIterator) Key() any   { return i.pairs[i.at].Key }
func (i *attributeIterator) Value() any { return i.pairs[i.at].Value }
