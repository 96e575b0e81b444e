package batch

import "time"

// Path tells how a record reached Kafka.
type Path string

// The two ways into Kafka: at once, or by way of the collector's disk.
const (
	Direct Path = "direct"
	Spool  Path = "spool"
)

// Durable names where a batch was safe when it was acknowledged: the values of
// the answer's "durable" field.
type Durable string

// The places that may be acknowledged.
const (
	InKafka Durable = "kafka"
	InSpool Durable = "spool"
)

// Record is one Kafka record: a whole batch, or one part of a batch that passed
// the record size limit. Everything that tells copies apart travels with it, so
// that any of the writes on its way may be repeated.
type Record struct {
	BatchID ID     // the Kafka key: copies of a batch meet in one partition
	DedupID ID     // of the records that share it, the lowest offset counts
	Digest  Digest // of the whole batch as sent
	Project string

	Collector ID     // who accepted it
	Epoch     uint64 // random, one a collector start
	Seq       uint64 // counts from 1 within an epoch

	Path        Path
	Traceparent string // W3C trace context of the request, or empty
	Value       []byte // protobuf sluice.v1.Batch
	Events      int    // how many events the value holds, for metrics
	ReceivedAt  time.Time
}

// Size is what a Record takes up in memory and, within a few per cent, on the
// wire.
func (r *Record) Size() int { return len(r.Value) + len(r.Project) + len(r.Traceparent) + 256 }

// Stamp is what a collector's ledger gives a batch before it is published.
type Stamp struct {
	ReceivedAt time.Time // never before an earlier stamp of the same collector
	Collector  ID
	Epoch      uint64
	FirstSeq   uint64 // of consecutive numbers, one a record
}

// Delivery is a record as it was read back from the log.
type Delivery struct {
	Record
	Partition int
	Offset    int64
	AppendAt  time.Time // the broker's clock
	// Bad says why the record's key or headers could not be read; its Value is
	// then kept as it came and nothing else is set.
	Bad error
}

// Spooled is a record that waits on a collector's disk. Numbers count up in the
// order the records were put there, and are never given twice.
type Spooled struct {
	Number uint64
	Record Record
}

// Backlog is what a spool holds.
type Backlog struct {
	Records uint64
	Bytes   int64 // on disk, of what is still to be sent
	// Oldest is a receive time that no record of the backlog is older than, and
	// soon that of the oldest itself; zero where there is no record.
	Oldest time.Time
	// Lost counts records that were acknowledged and cannot be read any more (at
	// least 1 for damage of unknown extent), since the spool was made; LostFrom is a
	// time that none of them was received before.
	Lost     uint64
	LostFrom time.Time
}

// Bounds are the first offset a partition still has and the one its next record
// will get.
type Bounds struct{ Start, End int64 }
