package schema

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"sluice/pkg/batch"
)

// minItem is less than any event or rejected event takes in a record: an
// exposure has an experiment, a variant and a unit, a rejected event its code. It
// bounds what a damaged record can make a reader allocate, to some 30 times its
// size.
const minItem = 8

// DecodeRecord fills b, which comes empty, from what AppendRecord wrote: the
// value of a Kafka record. Fields it does not know are skipped. It returns an
// error for what no collector writes, and leaves b in no useful state then.
//
// Strings and bytes alias value.
func DecodeRecord(value []byte, b *Batch) error {
	if err := decodeRecord(value, b); err != nil {
		return fmt.Errorf("record of %d bytes: %w", len(value), err)
	}
	return nil
}

func decodeRecord(value []byte, b *Batch) error {
	events, rejected := 0, 0
	var first, last, id, dedup, digest bool
	m := message{rest: value}
	for m.next() {
		switch m.num {
		case batchEvents:
			events++
		case batchRejected:
			rejected++
		case batchCount:
			b.Count = m.uint32()
		case batchID: // these two come after the events, which need them
			b.ID, id = m.id(), true
		case batchReceivedAt:
			b.ReceivedAt = int64(m.varint())
		}
	}
	switch {
	case m.err != nil:
		return m.err
	case uint64(events)+uint64(rejected) > uint64(b.Count):
		return fmt.Errorf("%d events and %d rejected ones, where the batch had %d", events, rejected, b.Count)
	case (events+rejected)*minItem > len(value):
		return errors.New("events without content")
	}
	if cap(b.Events) < events {
		b.Events = make([]Event, 0, events)
	}
	if cap(b.Rejected) < rejected {
		b.Rejected = make([]Rejected, 0, rejected)
	}

	var few [16]Attribute
	attrs := few[:0]
	m = message{rest: value}
	for m.next() {
		var err error
		switch m.num {
		case batchEvents:
			attrs, err = b.recordEvent(m.bytes(), attrs)
		case batchSDK:
			var name, version string
			name, version, err = entry(m.bytes()) // the same shape as a map's entry
			b.SDK = joinSDK(name, version)
		case batchSentAt:
			b.SentAt = int64(m.varint())
		case batchDedupID:
			b.DedupID, dedup = m.id(), true
		case batchDigest:
			b.Digest, digest = m.id(), true
		case batchProject:
			b.Project = m.string()
		case batchSource:
			b.Source = m.string()
		case batchFirst:
			b.First, first = m.uint32(), true
		case batchLast:
			b.Last, last = m.uint32(), true
		case batchRejected:
			err = b.recordRejected(m.bytes())
		}
		if m.err == nil {
			m.err = err
		}
		if m.err != nil {
			return fmt.Errorf("field %d: %w", m.num, m.err)
		}
	}
	if !id || !dedup || !digest {
		return errors.New("batch_id, dedup_id or digest is missing")
	}
	r := Range{0, b.Count} // a batch of 0 holds nothing anyway
	if b.Part = first || last; b.Part {
		if !first || !last || b.First > b.Last || b.Last >= b.Count {
			return fmt.Errorf("a part of indices %d to %d of %d", b.First, b.Last, b.Count)
		}
		r = Range{b.First, b.Last}
	}
	for i := range b.Events {
		if e := &b.Events[i]; !r.holds(e.Index) || e.Index >= b.Count {
			return fmt.Errorf("an event with index %d does not belong here", e.Index)
		}
	}
	for i := range b.Rejected {
		if x := &b.Rejected[i]; !r.holds(x.Index) || x.Index >= b.Count {
			return fmt.Errorf("a rejected event with index %d does not belong here", x.Index)
		}
	}
	return nil
}

// recordEvent appends an event and reads raw into it. attrs is memory to work
// in, which is returned.
func (b *Batch) recordEvent(raw []byte, attrs []Attribute) ([]Attribute, error) {
	b.Events = append(b.Events, Event{})
	e := &b.Events[len(b.Events)-1]
	attrs = attrs[:0]
	hasID := false
	m := message{rest: raw}
	for m.next() {
		switch m.num {
		case eventKind:
			e.Kind = Kind(min(m.varint(), 255))
		case eventExperiment:
			e.Experiment = m.string()
		case eventVariant:
			e.Variant = m.string()
		case eventUnitID:
			e.UnitID = m.string()
		case eventUnitType:
			e.UnitType = m.string()
		case eventTime:
			e.Time, e.HasTime = int64(m.varint()), true
		case eventRule:
			e.Rule = m.string()
		case eventReason:
			e.Reason = m.string()
		case eventClientID:
			e.ClientID = m.string()
		case eventName:
			e.Name = m.string()
		case eventValue:
			e.Value, e.HasValue = m.double(), true
		case eventAttributes:
			key, value, err := entry(m.bytes())
			if m.err == nil {
				m.err = err
			}
			if attrs = putAttribute(attrs, key, value, false); len(attrs) > MaxAttributes {
				m.err = errors.New(msgTooMany)
			}
		case eventIndex:
			e.Index = m.uint32()
		case eventID:
			e.ID, hasID = m.id(), true
		case eventTimeAdjusted:
			e.TimeAdjusted = protowire.DecodeBool(m.varint())
		}
	}
	if m.err == nil && e.Kind != KindExposure && e.Kind != KindEvent {
		m.err = errors.New("an event of no known kind")
	}
	if e.UnitType == "" {
		e.UnitType = DefaultUnitType
	}
	if !e.HasTime {
		e.Time = b.ReceivedAt
	}
	if !hasID {
		e.ID = batch.EventID(b.ID, e.Index)
	}
	b.keep(e, attrs)
	return attrs, m.err
}

func (b *Batch) recordRejected(raw []byte) error {
	b.Rejected = append(b.Rejected, Rejected{})
	x := &b.Rejected[len(b.Rejected)-1]
	m := message{rest: raw}
	for m.next() {
		switch m.num {
		case rejectedIndex:
			x.Index = m.uint32()
		case rejectedCode:
			x.Code = Code(m.string())
		case rejectedField:
			x.Field = m.string()
		case rejectedMessage:
			x.Message = m.string()
		case rejectedBytes:
			x.Bytes = m.bytes()
		case rejectedSize:
			size := m.varint()
			if x.Size = int(size); x.Size < 0 || uint64(x.Size) != size {
				m.err = errRange
			}
		}
	}
	return m.err
}
