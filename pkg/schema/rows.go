package schema

import (
	"sluice/pkg/batch"
)

// Outcome is what became of one record read from Kafka: the `outcome` column of
// `batches`.
type Outcome string

// The outcomes. The first record of a batch decides what the batch is: records
// with other events are conflicts, records that bring nothing new are
// duplicates. A dead record could not be read and decides nothing.
const (
	Stored    Outcome = "stored"
	Duplicate Outcome = "duplicate"
	Conflict  Outcome = "conflict"
	Dead      Outcome = "dead"
)

// The stages at which something is put into dead_letters.
const (
	StageCollector = "collector" // refused by validation
	StageSink      = "sink"      // could not be read or stored
	StageConflict  = "conflict"  // its key was used before with other events
)

// Position is where in Kafka a row comes from. With the index of the event in
// its batch it tells every row of a table apart, which is what lets a sink ask
// which rows of an unsure insert are there.
type Position struct {
	Log       string // the log's id, not the topic's name: a recreated topic has another
	Topic     string
	Partition int
	Offset    int64
}

// EventRow is one row of `exposures` or `events`, by reference.
type EventRow struct {
	Batch  *Batch
	Event  *Event
	Offset int64
}

// BatchRow is one row of `batches`: one record and what became of it.
type BatchRow struct {
	Record   batch.Record
	Part     string // "first-last" of a split batch's original indices, else empty
	Source   string
	Outcome  Outcome
	Events   int // stored by this record, or not, as the outcome says
	Rejected int
	Offset   int64
}

// DeadLetter is one row of `dead_letters`.
type DeadLetter struct {
	ID         batch.ID
	Project    string
	BatchID    batch.ID
	Index      uint32
	Stage      string
	Reason     string
	Field      string
	Error      string
	Bytes      []byte
	Size       int
	Source     string
	ReceivedAt int64 // microseconds since the Unix epoch
	Offset     int64
}

// Progress says that everything of a partition up to and including Through is
// in its tables. It is written last in every block.
type Progress struct{ First, Through int64 }

// Columns are the exposures and events of a block as a store sends them: laid out
// while their records are decoded. Not safe for concurrent use.
type Columns interface {
	// Reset empties them for rows of a partition; they keep their memory.
	Reset(at Position)
	// Append adds the events of the record at an offset. It keeps nothing of b.
	Append(b *Batch, offset int64)
	// Rows is how many rows a table gets: exposures or events.
	Rows(t Table) int
}

// Rows are what one block adds to one table; only the field that belongs to the
// table is set.
type Rows struct {
	Events   []EventRow
	Laid     Columns // in place of Events
	LaidRows int     // the table's rows in Laid
	Dead     []DeadLetter
	Batches  []BatchRow
	Progress []Progress
}

// Len is the number of rows.
func (r *Rows) Len() int {
	return len(r.Events) + r.LaidRows + len(r.Dead) + len(r.Batches) + len(r.Progress)
}

// Table names one of the tables a sink inserts into.
type Table string

// The tables, in the order in which a block is written: `batches` after the
// rows it vouches for, `progress` after everything.
const (
	Exposures   Table = "exposures"
	Events      Table = "events"
	DeadLetters Table = "dead_letters"
	Batches     Table = "batches"
	ProgressTab Table = "progress"
)

// Tables lists the tables in the order of writing.
func Tables() []Table { return []Table{Exposures, Events, DeadLetters, Batches, ProgressTab} }

// Copy is a record that was stored, as `batches` knows it.
type Copy struct {
	BatchID   batch.ID
	Digest    batch.Digest
	First     uint32 // the original indices it brought, inclusive
	Last      uint32
	Log       string
	Partition int
	Offset    int64
}
