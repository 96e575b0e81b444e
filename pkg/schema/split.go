package schema

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"sluice/pkg/batch"
)

// Upper bounds of what a record takes beside the strings that were sent: so that
// a batch is split the same way whoever does it and whenever, its size must not
// depend on what a collector adds (times, ids, its words for a reason). Changing a
// bound changes where batches are cut: copies that then come from collectors of
// both versions collapse by event_id only.
const (
	// headerBound is for everything but events and rejected events: three ids (60
	// bytes), times and counts (60), the SDK (MaxSDKBytes), and what is left for
	// the names of project and source, which the collector's operator chooses.
	headerBound = 2 << 10
	// eventBound: tag and length (6), kind (2), time (11), value (9), index (7), id
	// (19), time_adjusted (3).
	eventBound = 64
	// rejectedBound: tags and lengths (25), index and size (16), and the texts,
	// which AppendRecord cuts.
	rejectedBound = 64 + maxReasonCode + maxReasonField + maxReasonMessage

	maxReasonCode    = 32
	maxReasonField   = 64
	maxReasonMessage = 256
)

// MaxSDKBytes is what a record keeps of the SDK's name and version.
const MaxSDKBytes = 256

// bound is the most that e can take in a record. It is the same before and after
// Resolve.
func (e *Event) bound() int {
	n := eventBound + e.textSize()
	if e.UnitType == "" {
		n += textSize(1, DefaultUnitType)
	}
	return n
}

// roomy is bound, or more, and takes less time: five bytes for each length.
func (e *Event) roomy() int {
	const number = 1 + 5
	n := eventBound + 8*number + len(DefaultUnitType) +
		len(e.Experiment) + len(e.Variant) + len(e.UnitID) + len(e.UnitType) + len(e.Rule) + len(e.Reason) + len(e.ClientID) + len(e.Name)
	for i := range e.Attributes {
		n += 3*number + len(e.Attributes[i].Key) + len(e.Attributes[i].Value)
	}
	return n
}

// small reports whether the batch certainly fits a record with that much room. It may
// say no to one that does.
func (b *Batch) small(room int) bool {
	n := 0
	for i := range b.Events {
		n += b.Events[i].roomy()
	}
	for i := range b.Rejected {
		n += b.Rejected[i].bound()
	}
	return n <= room
}

func (r *Rejected) bound() int { return rejectedBound + len(r.Bytes) }

// textSize is what the strings of e take in a record.
func (e *Event) textSize() int {
	n := textSize(1, e.Experiment) + textSize(1, e.Variant) + textSize(1, e.UnitID) + textSize(1, e.UnitType) +
		textSize(1, e.Rule) + textSize(1, e.Reason) + textSize(1, e.ClientID) + textSize(1, e.Name)
	for i := range e.Attributes {
		n += 1 + protowire.SizeBytes(e.Attributes[i].size())
	}
	return n
}

// size is that of the attribute as an entry of a map.
func (a *Attribute) size() int {
	return 2 + protowire.SizeBytes(len(a.Key)) + protowire.SizeBytes(len(a.Value))
}

// textSize is the size of a string field with a tag of so many bytes.
func textSize(tag int, s string) int {
	if s == "" {
		return 0
	}
	return tag + protowire.SizeBytes(len(s))
}

// RejectOversized moves every event that does not fit a record of maxBytes on
// its own to Rejected, with CodeTooLarge, so that what is left can be Split. As
// its bytes it keeps the event in the native API's JSON, cut to
// MaxRejectedBytes, as its Size the bytes it would take in a record. Call it
// after decoding and before Resolve.
//
// The limit is the collector's, but the digest must not be: before RejectOversized
// changes anything it fixes the digest of the batch as it was sent.
func (b *Batch) RejectOversized(maxBytes int) {
	room := maxBytes - headerBound
	if b.small(room) || !b.oversized(room) {
		return
	}
	b.ComputeDigest()
	b.digested = true

	kept := b.Events[:0]
	for i := range b.Events {
		e := &b.Events[i]
		n := e.bound()
		if n <= room {
			kept = append(kept, *e)
			continue
		}
		raw := appendEventJSON(nil, e, MaxRejectedBytes)
		b.Rejected = append(b.Rejected, Rejected{Index: e.Index, Code: CodeTooLarge, Message: msgOversized,
			Bytes: cut(raw, MaxRejectedBytes), Size: n})
	}
	clear(b.Events[len(kept):])
	b.Events = kept
	slices.SortStableFunc(b.Rejected, func(x, y Rejected) int { return cmp.Compare(x.Index, y.Index) })
	for i := range b.Rejected {
		r := &b.Rejected[i]
		r.Bytes = cut(r.Bytes, max(0, room-rejectedBound))
	}
}

func (b *Batch) oversized(room int) bool {
	for i := range b.Events {
		if b.Events[i].bound() > room {
			return true
		}
	}
	for i := range b.Rejected {
		if b.Rejected[i].bound() > room {
			return true
		}
	}
	return false
}

// Split says which records the batch needs so that none is over maxBytes: one
// for all of it, or else the halves of its indices, and the halves of those,
// until each fits. An index that does not fit alone is a range of its own:
// RejectOversized leaves no such event.
//
// The ranges depend on nothing but the batch as it was sent and maxBytes, so
// every copy of it has the same parts, whose dedup ids meet. Ranges of different
// limits are nested or disjoint. A batch without events (Count 0) has none.
func (b *Batch) Split(maxBytes int) []Range {
	if b.Count == 0 {
		return nil
	}
	room := maxBytes - headerBound
	if b.small(room) {
		return []Range{b.whole()}
	}
	total := 0
	for i := range b.Events {
		total += b.Events[i].bound()
	}
	for i := range b.Rejected {
		total += b.Rejected[i].bound()
	}
	if total <= room || b.Count == 1 {
		return []Range{b.whole()}
	}
	before := make([]int, b.Count+1) // before[i]: what the indices below i take
	for i := range b.Events {
		e := &b.Events[i]
		before[min(e.Index, b.Count-1)+1] += e.bound()
	}
	for i := range b.Rejected {
		r := &b.Rejected[i]
		before[min(r.Index, b.Count-1)+1] += r.bound()
	}
	for i := 1; i < len(before); i++ {
		before[i] += before[i-1]
	}
	return halve(nil, before, b.whole(), room)
}

func halve(dst []Range, before []int, r Range, room int) []Range {
	if r.First == r.Last || before[r.Last+1]-before[r.First] <= room {
		return append(dst, r)
	}
	middle := r.First + (r.Last-r.First)/2
	dst = halve(dst, before, Range{r.First, middle}, room)
	return halve(dst, before, Range{middle + 1, r.Last}, room)
}

func (b *Batch) whole() Range { return Range{0, b.Count - 1} }

// DedupFor is the dedup id of the record that holds r: the batch's id if that is
// all of it, else the part's.
func (b *Batch) DedupFor(r Range) batch.ID {
	if r == b.whole() {
		return b.ID
	}
	return batch.PartID(b.ID, r.First, r.Last)
}
