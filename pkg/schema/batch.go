package schema

import (
	"cmp"
	"math"
	"slices"
	"time"

	"sluice/pkg/batch"
)

// What a Batch keeps of its memory from one use to the next. A batch of ten
// thousand events is rare, and need not be paid for until the process ends.
const (
	keptEvents     = 4096
	keptAttributes = 32 << 10
)

// Reset empties the batch for another use. It keeps memory, up to a bound, and
// drops every reference into the body or record the batch was decoded from.
func (b *Batch) Reset() {
	clear(b.Events)
	clear(b.Rejected)
	clear(b.slab)
	*b = Batch{Events: b.Events[:0], Rejected: b.Rejected[:0], slab: b.slab[:0], json: b.json, digest: b.digest}
	if cap(b.Events) > keptEvents {
		b.Events = nil
	}
	if cap(b.Rejected) > keptEvents {
		b.Rejected = nil
	}
	if cap(b.slab) > keptAttributes {
		b.slab = nil
	}
}

// Append adds an empty event with the next index, which counts whether it then
// passes or not, and returns it to be filled. The pointer is good until the next
// Append. Finish with Check or Reject.
func (b *Batch) Append() *Event {
	if n := len(b.Events); n < cap(b.Events) {
		b.Events = b.Events[:n+1]
		b.Events[n] = Event{}
	} else {
		b.Events = append(b.Events, Event{})
	}
	e := &b.Events[len(b.Events)-1]
	e.Index = b.Count
	b.Count++
	return e
}

// Check validates the event that was appended last: its kind, that what its kind
// requires is there, and every length. One that does not pass is taken out and
// listed in Rejected, with raw as its bytes. It reports whether the event passed.
//
// Check does not look at the strings' content: they have to be UTF-8 without NUL
// (ValidText), as jsonscan reads them.
func (b *Batch) Check(raw []byte) bool {
	if code, field, message := b.Events[len(b.Events)-1].check(); code != "" {
		b.Reject(code, field, message, raw)
		return false
	}
	return true
}

// Reject takes the event that was appended last out and lists it in Rejected.
// The message must hold nothing of the sender's; raw, the event as it came, is
// kept by reference, cut to MaxRejectedBytes.
func (b *Batch) Reject(code Code, field, message string, raw []byte) {
	e := &b.Events[len(b.Events)-1]
	b.Rejected = append(b.Rejected, Rejected{Index: e.Index, Code: code, Field: field, Message: message,
		Bytes: cut(raw, MaxRejectedBytes), Size: len(raw)})
	*e = Event{}
	b.Events = b.Events[:len(b.Events)-1]
}

// SetAttributes gives e, an event of b, the attributes in list: sorted by key,
// and of those with the same key the last. The list itself is not kept, but it
// is put into order.
func (b *Batch) SetAttributes(e *Event, list []Attribute) {
	slices.SortStableFunc(list, func(x, y Attribute) int { return cmp.Compare(x.Key, y.Key) })
	n := 0
	for i := range list {
		if i+1 < len(list) && list[i].Key == list[i+1].Key {
			continue
		}
		list[n] = list[i]
		n++
	}
	b.keep(e, list[:n])
}

// keep copies attributes, sorted and each key once, into the batch's memory.
func (b *Batch) keep(e *Event, list []Attribute) {
	n := len(list)
	if n == 0 {
		e.Attributes = nil
		return
	}
	if cap(b.slab)-len(b.slab) < n {
		// What is full belongs to the events that lie in it; go on in a larger piece.
		// The first piece is for as many events like this one as there is room for.
		size := 2 * cap(b.slab)
		if size == 0 {
			size = n * cap(b.Events)
		}
		b.slab = make([]Attribute, 0, max(n, min(size, keptAttributes)))
	}
	used := len(b.slab)
	b.slab = append(b.slab, list...)
	e.Attributes = b.slab[used : used+n : used+n]
}

// Repeatable reports whether an exact repeat of the batch may be taken for a
// resend, so that the digest may serve as its identity: each event has an id of
// its own or a time. Rejected events do not stand in the way. Their bytes are in
// the digest, and nothing of them would be stored twice or lost to analysis.
func (b *Batch) Repeatable() bool {
	for i := range b.Events {
		if e := &b.Events[i]; e.ClientID == "" && !e.HasTime {
			return false
		}
	}
	return len(b.Events)+len(b.Rejected) > 0
}

// Skew correction: when the client's clock (SentAt) is off by more than minSkew,
// its events' times are moved by the difference. Below that it may as well be
// the time the request took. Above maxSkew it is no clock that was set wrong (to
// another day or zone) but a sent_at in the wrong unit, and says nothing about
// the events.
const (
	minSkew = 5 * time.Second
	maxSkew = 48 * time.Hour
)

// Resolve fills in what was not sent: now as the receive time, the unit type
// "user", the receive time for events without one, and every event's id, which
// needs Project and ID. Times that were sent are corrected by the client's clock
// skew where that is between 5 seconds and 48 hours, then moved into the limits,
// which sets TimeAdjusted. The result is a function of the batch and the
// arguments. Call it once, after ComputeDigest.
func (b *Batch) Resolve(now time.Time, l Limits) {
	at := now.UnixMicro()
	b.ReceivedAt = at
	shift := int64(0)
	if b.SentAt > 0 {
		if d := add(at, -b.SentAt); (d > minSkew.Microseconds() || d < -minSkew.Microseconds()) &&
			d <= maxSkew.Microseconds() && d >= -maxSkew.Microseconds() {
			shift = d
		}
	}
	earliest, latest := add(at, -l.Past.Microseconds()), add(at, l.Future.Microseconds())
	for i := range b.Events {
		e := &b.Events[i]
		if e.UnitType == "" {
			e.UnitType = DefaultUnitType
		}
		if !e.HasTime {
			e.Time = at
		} else {
			t := add(e.Time, shift)
			e.Time = max(earliest, min(t, latest))
			e.TimeAdjusted = e.Time != t
		}
		if e.ClientID != "" {
			e.ID = batch.ClientEventID(b.Project, e.ClientID)
		} else {
			e.ID = batch.EventID(b.ID, e.Index)
		}
	}
}

// add is a+b, or the nearest int64.
func add(a, b int64) int64 {
	switch s := a + b; {
	case b > 0 && s < a:
		return math.MaxInt64
	case b < 0 && s > a:
		return math.MinInt64
	default:
		return s
	}
}

// cut returns the first n bytes of p, so that nothing can be appended behind them.
func cut(p []byte, n int) []byte {
	n = min(n, len(p))
	return p[:n:n]
}
