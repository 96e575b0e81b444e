package publish

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/pkg/batch"
)

// Producer is Kafka as this package needs it. Its errors are classified
// (sluice/pkg/retry). Called concurrently.
type Producer interface {
	// Partition is where a batch's records go. It may wait for ctx before the topic
	// was ever seen, and does no I/O after that.
	Partition(ctx context.Context, id batch.ID) (int, error)
	// Leaders are the brokers that lead the partitions, by partition; -1: none.
	// Nil before the topic was ever seen. No I/O. What it returned does not change.
	Leaders() []int
	// Produce writes records to a partition, in order, and returns nil when all
	// in-sync replicas have them. It tries once and returns soon after ctx has
	// ended. After an error they may be written all the same, now or later, unless
	// the error has a method Refused() []int: then none was written, because of the
	// records themselves; the indices at fault are listed where they are known. An
	// error with a method Moved() comes from a broker that is well and does not lead
	// the partition any more. After a rest (Options.OpenFor) it does not fail for a
	// connection that broke before it: one request may be all that finds out whether
	// a broker is back.
	// Once it has returned it does not look at the records again.
	Produce(ctx context.Context, partition int, records []batch.Record) (base int64, at time.Time, err error)
	// Probe asks a broker, not a cache, whether the topic can be written to. What it
	// saw of the leaders is what Leaders returns from then on.
	Probe(ctx context.Context) error
}

// Spool is the collector's disk: where records go that Kafka cannot take now, and
// from where they are sent when it can. Called concurrently.
type Spool interface {
	// Append keeps the records and returns nil when they survive a kill -9 and a
	// power loss: files and directories are fsynced. Their numbers are consecutive,
	// from first on. After an error nothing is claimed. It does not keep the records'
	// memory.
	Append(ctx context.Context, records []batch.Record) (first uint64, err error)
	// Ready returns nil while Append may succeed. No I/O.
	Ready() error
	// Read returns records, oldest first, from a number on, that are neither removed
	// nor set aside and that want says yes to, which sees them without their Value:
	// about maxBytes, at least one where there is any. next is where to go on. No
	// records and no error: there is nothing more now. An error may come with the
	// records that were read before it.
	Read(ctx context.Context, from uint64, maxBytes int, want func(*batch.Record) bool) (records []batch.Spooled, next uint64, err error)
	// Remove forgets records that are in Kafka, and passes over those it has
	// forgotten. A crash may bring some back, which are then sent again: copies do no
	// harm. No I/O.
	Remove(numbers ...uint64)
	// SetAside keeps a record apart, durably, that Kafka refuses for good, and logs
	// it. Read does not return it any more.
	SetAside(number uint64, why error) error
	// Backlog is what is still to be sent. No I/O.
	Backlog() batch.Backlog
	// Appended receives after an Append; several may count as one.
	Appended() <-chan struct{}
}

// Ledger is told what becomes of every record given to Publish: exactly one of
// InKafka, Spooled and Void, before Publish returns. InKafka may follow either of
// the others, when the record gets there after all. Called concurrently, under
// locks of the Publisher's: it does no I/O and does not call the Publisher.
type Ledger interface {
	// InKafka: all in-sync replicas have the record, there. It comes before the
	// spool is told to forget it, also for records of earlier epochs.
	InKafka(r *batch.Record, partition int, offset int64)
	// Spooled: the spool has the record durably.
	Spooled(r *batch.Record)
	// Void: the record's sender is told that it is not kept.
	Void(r *batch.Record)
}

// noLedger is the Ledger of a Publisher that has none.
type noLedger struct{}

func (noLedger) InKafka(*batch.Record, int, int64) {}
func (noLedger) Spooled(*batch.Record)             {}
func (noLedger) Void(*batch.Record)                {}

// Options are what a Publisher is made of. Every zero field but Producer gets
// its default.
type Options struct {
	Producer Producer
	Spool    Spool  // nil: none, what Kafka cannot take is an error
	Ledger   Ledger // nil: none

	AckTimeout          time.Duration // only with a Spool: how long Kafka is waited for before a batch is spooled; default 250 ms
	ProduceTimeout      time.Duration // one request to Kafka; default 10 s
	SlowAfter           time.Duration // a request still unanswered by then counts against its broker, and again each time as much has passed; default 5 s, 1 s with a Spool
	OpenFor             time.Duration // how long a broker is left alone; default 5 s
	GroupRecords        int           // records in a request at most; default 1,000
	GroupBytes          int64         // their bytes, uncompressed; default 900 KiB: what a topic takes (1 MiB) less headers
	InFlight            int           // requests of one partition at once; default 1, which keeps their order (2 and 4 were no faster, and cost 5 and 15 % more CPU)
	QueueBytes          int64         // held for all partitions; default 64 MiB
	LaneBytes           int64         // held for one partition, so that one leader's trouble leaves room; default 16 MiB
	ProbeEvery          time.Duration // how often Kafka is asked, at most, while it is not ready; default 2 s, four to five times that while it is
	DrainBytesPerSecond int64         // from the Spool to Kafka, all brokers together; default 32 MiB

	Log        *slog.Logger
	Registerer prometheus.Registerer

	rescanAfter time.Duration // for tests: longer than anything
}

func (o *Options) defaults() error {
	if o.Producer == nil {
		return errors.New("publish: a producer is required")
	}
	if o.Ledger == nil {
		o.Ledger = noLedger{}
	}
	or(&o.AckTimeout, 250*time.Millisecond)
	or(&o.ProduceTimeout, 10*time.Second)
	if o.Spool != nil {
		or(&o.SlowAfter, time.Second)
	}
	or(&o.SlowAfter, 5*time.Second)
	or(&o.OpenFor, 5*time.Second)
	or(&o.GroupRecords, 1000)
	or(&o.GroupBytes, 900<<10)
	or(&o.InFlight, 1)
	or(&o.QueueBytes, 64<<20)
	or(&o.LaneBytes, 16<<20)
	or(&o.ProbeEvery, 2*time.Second)
	or(&o.DrainBytesPerSecond, 32<<20)
	or(&o.rescanAfter, rescanAfter)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Registerer == nil {
		o.Registerer = prometheus.NewRegistry()
	}
	return nil
}

func or[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}
