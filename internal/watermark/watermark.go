// Package watermark finds up to when everything that was acknowledged is in
// ClickHouse, and writes it down.
//
// A Copier reads the ledger topic, in which every collector says again and again
// how far it is, and copies it into ClickHouse. Once the sinks have stored
// whatever a record refers to, the record is passed, and what it says is true:
// every batch its collector received before a certain time is stored. The
// watermark is the earliest of those times over all collectors that may still
// have something. docs/adr/0012 says why it may be trusted:
//
//   - What a passed record says of its collector stays true, so the greatest such
//     time counts, and a copier that wakes up late cannot take anything back.
//   - A collector's first record, its opening one, is in the ledger before the
//     collector acknowledges anything under a new id, and its receive times are
//     not before the broker's time of that record. No record stands for a time
//     after the broker appended it. So a collector that is not known yet cannot
//     have received anything before the watermark.
//   - Records that compaction has removed are made up for by later ones; until
//     those have been read, nothing is concluded.
//
// What it rests on: the brokers' clock does not go back between records of the
// ledger by more than collectors' clocks are ahead of it, and nobody deletes the
// ledger topic while a collector is cut off from Kafka that it has never named.
package watermark

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// Entry is one record of the ledger topic.
type Entry struct {
	Offset int64
	At     time.Time // when the broker appended it
	Key    string
	Value  []byte // empty: the key was deleted
}

// Ledger reads the ledger topic, which has one partition and is compacted.
type Ledger interface {
	// ID is that of the topic as it is now: another one after it was deleted and
	// made again. A broker is asked every time.
	ID(ctx context.Context) (string, error)
	// Bounds are the first offset the topic has and the one its next record gets.
	Bounds(ctx context.Context) (batch.Bounds, error)
	// Read returns records from an offset on, in order, a bounded number of them,
	// and the offset to go on from. Nothing within maxWait is an empty slice. Offsets
	// may be missing in between (compaction).
	Read(ctx context.Context, from int64, maxWait time.Duration) (entries []Entry, next int64, err error)
}

// The entries of the table ledger.
const (
	EntryNewest     = "newest"     // the newest record of an epoch
	EntryOpen       = "open"       // the opening record of an epoch
	EntryRetire     = "retire"     // an operator has given a collector up
	EntryUnreadable = "unreadable" // a record of a collector that cannot be read
)

// Row is one row of the table ledger. Of the rows of one (collector, epoch,
// entry, log of the offsets) the one with the highest Version stays, in whatever
// order they are written.
type Row struct {
	Entry   string
	Version uint64
	Ledger  string // the topic's id
	Topic   string // its name
	Offset  int64
	At      time.Time
	Record  batch.LedgerRecord
}

// Standing is one row of the table completeness: where a collector stands, or all
// collectors of a ledger (Collector is zero), or of all ledgers (Ledger is empty
// too). Of the rows of one (Ledger, Collector) the one with the latest
// CompleteUntil stays, of two with the same the one written last.
type Standing struct {
	Ledger        string
	Topic         string
	Collector     batch.ID
	CompleteUntil time.Time // zero: nothing is known
	State         string
	HeldBy        batch.ID
	Why           string
	Collectors    uint32 // that count
	Epoch         uint64
	Number        uint64
	Pending       uint64
	PendingBytes  int64
	Lost          uint64
	HeardAt       time.Time // when the broker appended its newest record
	JudgedAt      time.Time
}

// The states of a Standing.
const (
	StateOpen       = "open"       // it may have batches that are not stored
	StateClosed     = "closed"     // it ended in order, and all it had is stored
	StateRetired    = "retired"    // an operator has given it up
	StateUnreadable = "unreadable" // it has written something nobody can read
)

// Store is ClickHouse as the copier needs it. Whatever it writes is durable when
// the call returns nil, is one block (all of it or nothing), and may be there
// after an error as well; writing it again changes nothing.
type Store interface {
	// CopiedTo is the highest offset of a ledger that has a row, -1 for none.
	CopiedTo(ctx context.Context, ledger string) (int64, error)
	// LedgerRows calls row with what is kept of the topic, in the order in which
	// it was appended, what came from the ledger given last. Voids may be left out.
	LedgerRows(ctx context.Context, ledger, topic string, row func(Row)) error
	InsertLedger(ctx context.Context, rows []Row) error
	// CompletenessRows calls row with every Standing, or only those without a
	// collector.
	CompletenessRows(ctx context.Context, ledgersOnly bool, row func(Standing)) error
	InsertCompleteness(ctx context.Context, rows []Standing) error
	// AllProgress calls found with how far the partitions of each log are stored.
	AllProgress(ctx context.Context, found func(log string, partition int, through int64)) error
}

// Config are a copier's settings.
type Config struct {
	Topic    string        // the ledger topic's name
	Interval time.Duration // between two looks; default 1 s
}

const (
	readWait = time.Second
	// A round reads no more than this before it looks at the progress.
	roundEntries = 10_000
	roundBytes   = 16 << 20
	// heartbeat is how often the watermark is written although it is the same.
	heartbeat = 10 * time.Second
	// forgotten is when a ledger that another sink should copy is said to be left
	// alone. The view says the same after as long.
	forgotten = time.Minute
)

// Copier copies one ledger topic. Any number of them may run at once: they write
// the same.
type Copier struct {
	cfg     Config
	ledger  Ledger
	store   Store
	log     *slog.Logger
	metrics *Metrics
	now     func() time.Time

	turn chan struct{} // held by the Run that works
	s    *state        // nil: nothing is known; owned by that Run
}

// New returns a copier that does nothing until Run.
func New(cfg Config, ledger Ledger, store Store, log *slog.Logger, m *Metrics) *Copier {
	if cfg.Interval <= 0 {
		cfg.Interval = time.Second
	}
	return &Copier{cfg: cfg, ledger: ledger, store: store, log: log, metrics: m, now: time.Now, turn: make(chan struct{}, 1)}
}

// Run copies until ctx ends. It waits out every error: the ledger topic keeps what
// is not copied, and the watermark stands still meanwhile. It may be called again
// and again, also before an earlier call has returned, which it then waits for.
func (c *Copier) Run(ctx context.Context) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return
	}
	defer c.metrics.stop()
	c.s = nil // another copier may have written since
	wait := retry.Policy{Min: 200 * time.Millisecond, Max: 5 * time.Second}
	failures := 0
	for ctx.Err() == nil {
		more, err := c.round(ctx)
		pause := c.cfg.Interval
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			// Told once, and then every minute or so.
			if failures%16 == 0 {
				c.log.Warn("the watermark stands still", "error", err)
			}
			pause = wait.Wait(failures, err)
			failures++
		case failures > 0:
			c.log.Info("the watermark goes on")
			failures = 0
		case more:
			pause = 0
		}
		if pause > 0 && !retry.Sleep(ctx, pause) {
			return
		}
	}
}

// round copies what is new, looks at what has been stored, and writes down what
// follows. It reports whether there is more to copy.
func (c *Copier) round(ctx context.Context) (more bool, err error) {
	more, err = c.copyNew(ctx)
	if c.s == nil {
		return false, err
	}
	// Also where Kafka is away: sinks may still be storing, and what follows from the
	// records that were copied stays true.
	if jerr := c.judge(ctx); err == nil {
		err = jerr
	}
	return more, err
}

// copyNew copies records, up to the bounds of a round.
func (c *Copier) copyNew(ctx context.Context) (more bool, err error) {
	bounds, err := c.ledger.Bounds(ctx)
	if err != nil {
		return false, err
	}
	// Asked after the bounds: they are this topic's.
	id, err := c.ledger.ID(ctx)
	if err != nil {
		return false, err
	}
	if c.s == nil || c.s.ledger != id {
		if c.s, err = c.load(ctx, id); err != nil {
			c.s = nil
			return false, err
		}
	}
	s := c.s
	switch {
	case s.next > bounds.End:
		c.log.Error("the ledger has lost its newest records; going on at its end", "copied_to", s.next-1, "end", bounds.End)
		s.next, s.hole = bounds.End, true
	case s.next < bounds.Start:
		s.next, s.hole = bounds.Start, true
	}
	if s.hole {
		// What was missing has later records in the topic, of which the last lies
		// before this end: when everything up to it is read, every collector is known.
		s.reach, s.hole = max(s.reach, bounds.End), false
	}
	entries, size := 0, 0
	for s.next < bounds.End {
		if entries >= roundEntries || size >= roundBytes {
			return true, nil
		}
		list, next, err := c.ledger.Read(ctx, s.next, readWait)
		if err != nil {
			return false, err
		}
		if next <= s.next {
			return false, nil
		}
		now, err := c.ledger.ID(ctx)
		if err != nil {
			return false, err
		}
		if now != s.ledger {
			c.s = nil
			return false, fmt.Errorf("the ledger topic %s was made again: it was %s, it is %s", c.cfg.Topic, s.ledger, now)
		}
		if err := c.take(ctx, s, list, next); err != nil {
			return false, err
		}
		entries += len(list)
		for i := range list {
			size += len(list[i].Value)
		}
	}
	return false, nil
}

// take writes records into ClickHouse and then takes note of them.
func (c *Copier) take(ctx context.Context, s *state, list []Entry, next int64) error {
	var all, rows []Row
	at := map[rowKey]int{} // of an epoch's records in here the newest is enough
	expected, hole := s.next, false
	for i := range list {
		e := &list[i]
		if e.Offset < expected {
			continue
		}
		hole = hole || e.Offset != expected
		expected = e.Offset + 1
		for _, r := range c.rowsOf(s, e) {
			all = append(all, r)
			k := rowKey{r.Record.Collector, r.Record.Epoch, r.Record.Log}
			if j, ok := at[k]; ok && r.Entry == EntryNewest {
				if rows[j].Version <= r.Version {
					rows[j] = r
				}
				continue
			}
			if r.Entry == EntryNewest {
				at[k] = len(rows)
			}
			rows = append(rows, r)
		}
	}
	if err := c.store.InsertLedger(ctx, rows); err != nil {
		return err
	}
	// A crash before this: the next copier reads on after the highest offset that
	// has a row, so it knows these. Only now may anything be concluded from them.
	for i := range all {
		s.apply(&all[i])
	}
	c.metrics.copied.Add(float64(len(list)))
	s.hole = s.hole || hole || next > expected
	s.next = next
	return nil
}

type rowKey struct {
	collector batch.ID
	epoch     uint64
	log       string
}

// rowsOf are the rows a record becomes, in the order in which they are applied.
func (c *Copier) rowsOf(s *state, e *Entry) []Row {
	if len(e.Value) == 0 {
		return nil // a tombstone
	}
	row := Row{Ledger: s.ledger, Topic: c.cfg.Topic, Offset: e.Offset, At: e.At, Version: micros(e.At)}
	r, err := batch.DecodeLedgerRecord(e.Value)
	if err != nil {
		c.metrics.unreadable.Inc()
		id, rest, _ := strings.Cut(e.Key, "/")
		collector, bad := batch.ParseID(id)
		c.log.Warn("a record of the ledger cannot be read", "offset", e.Offset, "collector", id[:min(len(id), 36)], "error", err)
		if bad != nil || collector.IsZero() {
			return nil // nobody's
		}
		row.Entry = EntryUnreadable
		row.Record = batch.LedgerRecord{Collector: collector}
		if _, err := fmt.Sscanf(rest, "%x", &row.Record.Epoch); err != nil {
			row.Record.Epoch = 0
		}
		return []Row{row}
	}
	row.Record = r
	if r.Kind == batch.LedgerRetire {
		row.Entry = EntryRetire
		return []Row{row}
	}
	newest := row
	newest.Entry, newest.Version = EntryNewest, r.Number
	if r.Kind != batch.LedgerOpen {
		return []Row{newest}
	}
	row.Entry, row.Version = EntryOpen, ^micros(e.At)
	return []Row{row, newest}
}

func micros(t time.Time) uint64 { return uint64(max(t.UnixMicro(), 0)) }

// load learns from ClickHouse what earlier copiers have written.
func (c *Copier) load(ctx context.Context, id string) (*state, error) {
	s := newState(id, c.cfg.Topic)
	// First how far it is copied, then what: rows that are added in between are read
	// again, which changes nothing.
	copied, err := c.store.CopiedTo(ctx, id)
	if err != nil {
		return nil, err
	}
	s.next = copied + 1
	if err := c.store.LedgerRows(ctx, id, c.cfg.Topic, func(r Row) { s.apply(&r) }); err != nil {
		return nil, err
	}
	err = c.store.CompletenessRows(ctx, false, func(r Standing) { s.restore(&r) })
	if err != nil {
		return nil, err
	}
	c.log.Info("copying the ledger", "ledger", id, "from", s.next, "collectors", len(s.collectors))
	return s, nil
}

// judge passes the records whose batches are stored and writes down what follows.
func (c *Copier) judge(ctx context.Context) error {
	s := c.s
	stored := progress{}
	err := c.store.AllProgress(ctx, func(log string, partition int, through int64) {
		if stored[log] == nil {
			stored[log] = map[int]int64{}
		}
		stored[log][partition] = through
	})
	if err != nil {
		return err
	}
	s.pass(stored)
	var others []Standing
	if err := c.store.CompletenessRows(ctx, true, func(r Standing) {
		s.restore(&r) // what another copier has found holds here too
		others = append(others, r)
	}); err != nil {
		return err
	}
	rows := s.conclude(c.now(), stored, others)
	if len(rows) > 0 {
		// A crash before this: the next copier comes to the same, or to more.
		if err := c.store.InsertCompleteness(ctx, rows); err != nil {
			return err
		}
		s.wrote(rows)
	}
	c.metrics.set(s.total, c.now)
	return nil
}
