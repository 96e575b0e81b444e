// Package schema is what flows through the pipeline: batches of exposures and
// custom events, how they are read from JSON and protobuf, what makes one
// acceptable, and the record they travel in. It does no I/O.
package schema

import (
	"time"

	"sluice/pkg/batch"
)

// Kind tells an exposure from a custom event. The values are those of
// sluice.v1.Kind.
type Kind uint8

// The kinds of event. The zero Kind takes the endpoint's default.
const (
	KindUnspecified Kind = 0
	KindExposure    Kind = 1
	KindEvent       Kind = 2
)

func (k Kind) String() string {
	switch k {
	case KindExposure:
		return "exposure"
	case KindEvent:
		return "event"
	}
	return "unspecified"
}

// Attribute is one property of an event. Numbers and truth values are kept as
// their JSON text.
type Attribute struct{ Key, Value string }

// Event is one exposure or one custom event. A decoder fills the first part
// with what was sent; Batch.Resolve fills the second.
//
// The strings may alias the request body or the Kafka record they were decoded
// from: they live as long as that buffer is neither reused nor changed.
type Event struct {
	Kind       Kind
	HasTime    bool
	HasValue   bool
	Index      uint32  // place in the batch as sent, from 0
	Time       int64   // microseconds since the Unix epoch
	Value      float64 // custom events
	Experiment string
	Variant    string
	Name       string // custom events
	UnitType   string
	UnitID     string
	Rule       string
	Reason     string
	ClientID   string      // event_id as sent; empty: none
	Attributes []Attribute // sorted by key, each key once

	ID           batch.ID // event_id
	TimeAdjusted bool
}

// Rejected is an event that did not pass: why, and what it was.
type Rejected struct {
	Index   uint32
	Code    Code
	Field   string // empty where the event as a whole is at fault
	Message string // for a person; never contains the sender's bytes unescaped
	Bytes   []byte // as it came, cut to MaxRejectedBytes
	Size    int    // before the cut
}

// Batch is a batch on its way: first as a protocol decoded it, then with its
// identity, at last as the sink reads it from a record.
type Batch struct {
	Events   []Event
	Rejected []Rejected
	Count    uint32 // events as sent, rejected ones included
	Dropped  uint32 // noise the protocol counts and keeps nothing of (not in Count)

	SDK        string // name/version, as far as known
	Source     string // protocol
	SentAt     int64  // the client's clock, microseconds since the Unix epoch; 0: unknown
	Project    string
	ID         batch.ID
	DedupID    batch.ID
	Digest     batch.Digest
	ReceivedAt int64 // microseconds since the Unix epoch
	Part       bool  // one part of a split batch: indices First to Last
	First      uint32
	Last       uint32

	slab     []Attribute // memory of the events' attributes
	digested bool        // Digest was fixed before RejectOversized changed the events

	json   *jsonDecoder // kept from one use to the next; nil: none yet
	digest *digestState
}

// Limits bound an event's time: older than Past or further ahead than Future,
// both counted from the receive time, is moved to the limit.
type Limits struct{ Past, Future time.Duration }

// BodyError is why a body was refused as a whole.
type BodyError struct {
	Code   string // malformed, too_deep, empty, too_many_events
	Detail string // for a person; never contains the sender's bytes unescaped
}

func (e *BodyError) Error() string { return e.Code + ": " + e.Detail }

// The codes of a BodyError.
const (
	BodyMalformed     = "malformed"
	BodyTooDeep       = "too_deep"
	BodyEmpty         = "empty"
	BodyTooManyEvents = "too_many_events"
)

// Range is a piece of a batch: original indices, both inclusive.
type Range struct{ First, Last uint32 }

// Code is a stable reason for a rejection: part of the public contract.
type Code string

// The reasons an event is rejected for.
const (
	CodeMissingField    Code = "missing_field"    // a required field is absent, null or empty
	CodeInvalidType     Code = "invalid_type"     // a field, or the event, has the wrong JSON type
	CodeInvalidKind     Code = "invalid_kind"     // kind is neither "exposure" nor "event"
	CodeInvalidTime     Code = "invalid_time"     // time is neither RFC 3339 nor epoch milliseconds
	CodeInvalidString   Code = "invalid_string"   // invalid UTF-8, a lone surrogate, or NUL
	CodeInvalidNumber   Code = "invalid_number"   // not finite as a double, or an integer outside 64 bits
	CodeDuplicateField  Code = "duplicate_field"  // a field twice in one event
	CodeMisspelledField Code = "misspelled_field" // a known field in another case ("Experiment")
	CodeTooLong         Code = "too_long"         // a field over its limit
	CodeTooLarge        Code = "too_large"        // the event is over the record limit
	CodeTooMany         Code = "too_many_attributes"
	CodeMalformed       Code = "malformed"  // an NDJSON line or protobuf message that cannot be parsed
	CodeUnmappable      Code = "unmappable" // a protocol's event that cannot be made an exposure or event
)

// Limits of one event, in bytes of UTF-8 unless stated otherwise.
const (
	MaxFieldBytes     = 4 << 10  // experiment, variant, name, unit_type, unit_id, rule, reason, event_id
	MaxAttributes     = 256      // attributes of one event
	MaxAttributeKey   = 1 << 10  // an attribute's key
	MaxAttributeValue = 64 << 10 // an attribute's value
	MaxRejectedBytes  = 64 << 10 // what is kept of one rejected event
	MaxDepth          = 32       // nesting of a JSON body
)
