package batch

import (
	"encoding/json"
	"fmt"
	"time"
)

// LedgerKind says what a ledger record reports.
type LedgerKind string

// The kinds of ledger record.
const (
	LedgerOpen     LedgerKind = "open"     // a collector has started
	LedgerInterval LedgerKind = "interval" // it goes on
	LedgerClose    LedgerKind = "close"    // it has ended in order; nothing of it is on its way
	LedgerRetire   LedgerKind = "retire"   // an operator has given it up
)

// SpoolState is what a collector found of its spool when it started.
type SpoolState string

// The states of a spool.
const (
	SpoolIntact  SpoolState = "intact"
	SpoolDamaged SpoolState = "damaged" // records that cannot be read are set aside
	SpoolAbsent  SpoolState = "absent"  // there was none
)

// SeqRange is consecutive sequence numbers, both inclusive.
type SeqRange struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// LedgerRecord is the value of one record of the ledger topic: all that a
// collector has to say of one epoch so far. Each record of an epoch says what the
// earlier ones said and more, so that the topic may be compacted to the newest.
// Sinks and the audit read it; it is JSON, evolved by adding fields.
//
// A record is passed when, in the log it names, every partition of Offsets is
// stored through its offset. Then every batch the collector received before
// CompleteUntil is in ClickHouse, whatever epoch it is of, except those counted by
// Lost.
type LedgerRecord struct {
	Kind      LedgerKind `json:"kind"`
	Collector ID         `json:"collector"`
	Epoch     uint64     `json:"epoch"`
	Number    uint64     `json:"number"` // counts from 1 in the epoch
	At        time.Time  `json:"at"`     // by the collector's receive clock, which never goes back

	// Every number up to Settled is in Kafka, in the spool, or one of Voids.
	Settled uint64 `json:"settled"`
	// Voids are the numbers that were given and answered with an error, in order,
	// disjoint. One may be in Kafka all the same: a request that timed out may
	// still succeed. At most MaxVoids: beyond, neighbours are joined, and the
	// numbers between them, of which nothing is claimed then, counted in Unproven.
	Voids    []SeqRange `json:"voids,omitempty"`
	Unproven uint64     `json:"unproven,omitempty"`

	// CompleteUntil is the receive time of the oldest batch, of any epoch, that is
	// neither in Kafka nor void; At, where there is none.
	CompleteUntil time.Time `json:"complete_until"`
	// Log is the id of the log the offsets are in; Offsets the highest offset known
	// to hold a record of this collector, by partition. An opening record has the
	// ends of all partitions: whatever an earlier epoch brought there lies below.
	Log     string        `json:"log"`
	Offsets map[int]int64 `json:"offsets,omitempty"`

	// What waits in the spool, of all epochs; Oldest is its oldest receive time.
	Pending      uint64     `json:"pending,omitempty"`
	PendingBytes int64      `json:"pending_bytes,omitempty"`
	Oldest       *time.Time `json:"oldest,omitempty"`
	// Spool is what was found at the start; Lost how many acknowledged records of
	// it cannot be read any more (an estimate where their number is unknown, at
	// least 1), LostFrom a time that none of them was received before.
	Spool    SpoolState `json:"spool,omitempty"`
	Lost     uint64     `json:"lost,omitempty"`
	LostFrom *time.Time `json:"lost_from,omitempty"`

	// Of a retire record: who gave the collector up, and why.
	By     string `json:"by,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// MaxVoids bounds LedgerRecord.Voids: about 150 KB of JSON.
const MaxVoids = 4096

// Key is the record's key in the ledger topic, which is compacted by it: the
// newest record of each epoch stays, and the newest retirement of a collector.
func (r *LedgerRecord) Key() string {
	if r.Kind == LedgerRetire {
		return r.Collector.String() + "/retire"
	}
	return fmt.Sprintf("%s/%016x", r.Collector, r.Epoch)
}

// Encode writes the record's value.
func (r *LedgerRecord) Encode() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode a ledger record: %w", err)
	}
	return b, nil
}

// DecodeLedgerRecord reads what Encode wrote; fields it does not know are passed
// over. It returns an error for what is not a ledger record: its reader sets it
// aside and goes on.
func DecodeLedgerRecord(value []byte) (LedgerRecord, error) {
	var r LedgerRecord
	if err := json.Unmarshal(value, &r); err != nil {
		return LedgerRecord{}, fmt.Errorf("decode a ledger record of %d bytes: %w", len(value), err)
	}
	if r.Collector.IsZero() {
		return LedgerRecord{}, fmt.Errorf("decode a ledger record of %d bytes: it names no collector", len(value))
	}
	switch r.Kind {
	case LedgerOpen, LedgerInterval, LedgerClose, LedgerRetire:
	default:
		return LedgerRecord{}, fmt.Errorf("decode a ledger record of %d bytes: kind %.32q is not known", len(value), r.Kind)
	}
	return r, nil
}
