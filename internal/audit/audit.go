// Package audit holds what ClickHouse has against what the collectors say they
// acknowledged, batch by batch and event by event, and names what does not agree.
//
// It rests on three series without gaps. Each epoch of a collector numbers its
// batches, and the ledger says through which number they are in Kafka or in the
// spool, or were refused. Each partition of the log numbers its records, and
// batches has a row for every one. And each record says how many events it brought.
//
// It changes nothing, and may run beside sinks and collectors. What is on its way
// is told from what is lost by the order of its questions: first what the ledger
// says, then how far the sinks are, then what the tables have.
package audit

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// Kind is what a finding or a note is about.
type Kind string

// The findings: something is wrong, and a person should look.
const (
	Lost         Kind = "lost"          // acknowledged, and batches does not have it
	Torn         Kind = "torn"          // batches has it, and events of it are missing
	Doubled      Kind = "doubled"       // an event of it is there in two versions
	DamagedSpool Kind = "damaged_spool" // a collector cannot read acknowledged batches any more
	SilentSpool  Kind = "silent_spool"  // a collector is gone, and did not end in order
)

// The notes: nothing is wrong, as far as can be seen.
const (
	Waiting  Kind = "waiting"  // on its way
	Unproven Kind = "unproven" // nothing can be said
	Held     Kind = "held"     // what holds the watermark
	GivenUp  Kind = "given_up" // an operator retired the collector
	Skipped  Kind = "skipped"  // an operator let a partition pass over it
)

// Line is one finding or note. What it does not concern is zero, the partition and
// the offset -1.
type Line struct {
	Kind      Kind     `json:"kind"`
	Collector string   `json:"collector,omitempty"`
	Epoch     uint64   `json:"epoch,omitempty"`
	FirstSeq  uint64   `json:"first_seq,omitempty"`
	LastSeq   uint64   `json:"last_seq,omitempty"`
	BatchID   string   `json:"batch_id,omitempty"`
	Log       string   `json:"log,omitempty"`
	Partition int      `json:"partition"`
	Offset    int64    `json:"offset"`
	Indices   []uint32 `json:"indices,omitempty"` // of events in the batch, the first few
	Count     uint64   `json:"count"`             // batches; of torn and doubled, events
	Detail    string   `json:"detail"`
}

func line(k Kind) Line { return Line{Kind: k, Partition: -1, Offset: -1} }

// Report is what an audit found. Lists are cut after MaxLines; Counts are not.
type Report struct {
	At       time.Time       `json:"at"`
	Since    *time.Time      `json:"since,omitempty"`
	Checked  Checked         `json:"checked"`
	Findings []Line          `json:"findings"`
	Notes    []Line          `json:"notes"`
	Counts   map[Kind]uint64 `json:"counts"` // of lines
}

// Checked is how much was looked at.
type Checked struct {
	Collectors uint64 `json:"collectors"`
	Epochs     uint64 `json:"epochs"`
	Numbers    uint64 `json:"numbers"` // of batches, in the ledger
	Offsets    uint64 `json:"offsets"` // of records, in batches
	Batches    uint64 `json:"batches"` // held against their events
	Events     uint64 `json:"events"`
	Reread     uint64 `json:"reread"` // records that were read from Kafka again
}

// MaxLines bounds a report's lists: what is printed and kept in memory.
const MaxLines = 1000

// Bad reports whether there is a finding.
func (r *Report) Bad() bool { return len(r.Findings) > 0 }

func (r *Report) find(l Line) {
	r.Counts[l.Kind]++
	if len(r.Findings) < MaxLines {
		r.Findings = append(r.Findings, l)
	}
}

func (r *Report) note(l Line) {
	r.Counts[l.Kind]++
	if len(r.Notes) < MaxLines {
		r.Notes = append(r.Notes, l)
	}
}

// Entry is one record of the ledger topic.
type Entry struct {
	Offset int64
	At     time.Time
	Key    string
	Value  []byte
}

// Ledger reads the ledger topic, for what is not copied into ClickHouse yet.
type Ledger interface {
	ID(ctx context.Context) (string, error)
	Bounds(ctx context.Context) (batch.Bounds, error)
	Read(ctx context.Context, from int64, maxWait time.Duration) (entries []Entry, next int64, err error)
}

// Source reads the batches topic again.
type Source interface {
	// Fetch returns records from offset on, in order; batch.ErrOffsetGone where the
	// log does not hold it.
	Fetch(ctx context.Context, partition int, offset int64, maxBytes int, maxWait time.Duration) ([]batch.Delivery, batch.Bounds, error)
	Bounds(ctx context.Context, partition int) (batch.Bounds, error)
	Log(ctx context.Context) (string, error)
}

// Row is one row of the table ledger.
type Row struct {
	Entry   string
	Version uint64
	Ledger  string
	Topic   string
	Offset  int64
	At      time.Time
	Record  batch.LedgerRecord
}

// Series is what numbers its records without a gap: an epoch of a collector or,
// without a collector, a partition of a log.
type Series struct {
	Collector batch.ID
	Epoch     uint64
	Log       string
	Partition int
}

// ChunkSize is how many consecutive numbers of a series are counted together.
const ChunkSize = 1 << 16

// Chunk is how many different numbers of a series batches has, of those whose
// number divided by ChunkSize is Index. Of the rows from before the time asked about
// LastOld is the highest number, of the others FirstNew the lowest; Old and New are
// how many there are.
type Chunk struct {
	Series
	Index, Count      uint64
	Old, New          uint64
	LastOld, FirstNew uint64
}

// Suspect is a batch whose rows do not agree with batches.
type Suspect struct {
	BatchID batch.ID
	Events  uint64 // that its stored records brought
	Keys    uint64 // rows there are, each counted as after a merge
	Indices uint64 // of how many different events
}

// Record is one row of batches.
type Record struct {
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

// Watermark is what the view delivery_watermark says.
type Watermark struct {
	CompleteUntil time.Time
	HeldBy        batch.ID
	Why           string
	JudgedAt      time.Time
}

// Store is ClickHouse as the audit needs it. Its errors are classified.
type Store interface {
	LedgerEntries(ctx context.Context, row func(Row)) error
	CopiedTo(ctx context.Context, ledger string) (int64, error)
	AllProgress(ctx context.Context, found func(log string, partition int, through int64)) error
	Watermark(ctx context.Context) (Watermark, error)
	// SeqChunks counts the numbers of every epoch that batches has, OffsetChunks the
	// offsets of every partition of a topic's logs, in order.
	SeqChunks(ctx context.Context, since time.Time, found func(Chunk)) error
	OffsetChunks(ctx context.Context, topic string, since time.Time, found func(Chunk)) error
	// Seqs and Offsets list the numbers of chunks, each once, in any order.
	Seqs(ctx context.Context, chunks []Chunk, found func(s Series, number uint64)) error
	Offsets(ctx context.Context, topic string, chunks []Chunk, found func(s Series, number uint64)) error
	// Skipped lists the offsets that an operator let a partition pass over.
	Skipped(ctx context.Context, topic string, found func(s Series, first, last uint64)) error
	// EventsByTime counts what was stored, by receipt, in steps of some minutes.
	EventsByTime(ctx context.Context, since, until time.Time, found func(from time.Time, batches, events uint64)) error
	// Suspects lists the batches received in a time whose rows do not agree.
	Suspects(ctx context.Context, since, until time.Time, found func(Suspect)) error
	RecordsOf(ctx context.Context, ids []batch.ID, found func(Record)) error
	MergedEvents(ctx context.Context, t schema.Table, rows []schema.EventRow, found func(row int)) error
	RefusedEvents(ctx context.Context, ids []batch.ID, found func(id batch.ID, index uint32)) error
}

// Options is what is audited, and how.
type Options struct {
	Store  Store
	Ledger Ledger
	Source Source
	Topic  string // of the batches

	Since       time.Time     // by receipt; zero: all that batches still knows
	DedupWindow time.Duration // how long batches keeps a row
	// Patience is how long the audit waits for what is on its way at its start to be
	// stored. What is not stored by then is noted as waiting. Default 15 s.
	Patience time.Duration
	// SilentAfter is how long a collector may go without a record; default 60 s. One
	// that is silent for longer is given Grace more; default 10 s.
	SilentAfter, Grace time.Duration

	// Progress, if set, is told what is being done, and how much of it.
	Progress func(what string, done, total int64)
}

// expiryMargin is how much before the end of the dedup window rows of batches are
// not relied on any more.
const expiryMargin = time.Hour

// auditor is one audit. Used by one goroutine.
type auditor struct {
	o      Options
	now    func() time.Time
	report *Report
	book   *book
	stored map[string]map[int]int64
	log    string    // the log that the topic is now; empty: Kafka does not answer
	kept   time.Time // rows received or stored from here on are still there
	from   time.Time // from here on is looked at
}

// Run audits. It returns an error where it could not look; Kafka alone may be away:
// then what only Kafka can tell is noted as unproven.
func Run(ctx context.Context, o Options) (*Report, error) {
	o.Patience = cmp.Or(o.Patience, 15*time.Second)
	o.SilentAfter = cmp.Or(o.SilentAfter, time.Minute)
	o.Grace = cmp.Or(o.Grace, 10*time.Second)
	o.DedupWindow = cmp.Or(o.DedupWindow, 720*time.Hour)
	a := &auditor{o: o, now: time.Now, book: newBook(), report: &Report{Counts: map[Kind]uint64{}, Findings: []Line{}, Notes: []Line{}}}
	return a.report, a.run(ctx)
}

func (a *auditor) run(ctx context.Context) error {
	start := a.now()
	a.report.At = start.UTC()
	a.kept = start.Add(expiryMargin - a.o.DedupWindow)
	if a.o.DedupWindow <= 2*expiryMargin {
		a.kept = start.Add(-a.o.DedupWindow / 2)
	}
	a.from = a.kept
	if a.o.Since.After(a.kept) {
		since := a.o.Since.UTC()
		a.from, a.report.Since = since, &since
	}
	// The order of these is what tells late from lost.
	if err := a.readLedger(ctx); err != nil {
		return err
	}
	if err := a.await(ctx); err != nil {
		return err
	}
	gaps, err := a.offsets(ctx)
	if err != nil {
		return err
	}
	missing, err := a.numbers(ctx)
	if err != nil {
		return err
	}
	if err := a.name(ctx, gaps, missing); err != nil {
		return err
	}
	a.settle(missing)
	a.collectors()
	if err := a.events(ctx, start); err != nil {
		return err
	}
	return a.held(ctx)
}

// held notes what the watermark waits for.
func (a *auditor) held(ctx context.Context) error {
	w, err := a.o.Store.Watermark(ctx)
	if err != nil {
		return err
	}
	l := line(Held)
	if !w.HeldBy.IsZero() {
		l.Collector = w.HeldBy.String()
	}
	l.Detail = fmt.Sprintf("complete until %s: %s", stamp(w.CompleteUntil), w.Why)
	a.report.note(l)
	return nil
}

func (a *auditor) progress(what string, done, total int64) {
	if a.o.Progress != nil {
		a.o.Progress(what, done, total)
	}
}

// stamp writes a time for people.
func stamp(t time.Time) string {
	if t.Unix() <= 0 {
		return "an unknown time"
	}
	return t.UTC().Format("2006-01-02 15:04:05.000 UTC")
}
