package schema

import (
	"math"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"sluice/pkg/batch"
)

// AppendRecord appends the value of the Kafka record that holds r of the batch:
// a protobuf sluice.v1.Batch (proto/sluice/v1/batch.proto), its fields in the
// order of their numbers. The batch has been resolved. The same batch gives the
// same bytes.
//
// The SDK is cut to MaxSDKBytes, and of a rejected event the code, field and
// message to 32, 64 and 256 bytes: that is what lets Split foresee the size.
func AppendRecord(dst []byte, b *Batch, r Range) []byte {
	return AppendRecordAs(dst, b, r, b.DedupFor(r))
}

// AppendRecordAs is AppendRecord with another dedup id, as a replay needs.
func AppendRecordAs(dst []byte, b *Batch, r Range, dedup batch.ID) []byte {
	h := header{b: b, r: r, part: r != b.whole(), dedup: dedup}
	h.name, h.version = splitSDK(tidy(b.SDK, MaxSDKBytes))
	if dst == nil {
		dst = make([]byte, 0, h.size()+b.contentSize(r))
	}
	for i := range b.Events {
		if e := &b.Events[i]; r.holds(e.Index) {
			dst = b.appendEventMessage(dst, e)
		}
	}
	dst = h.append(dst)
	for i := range b.Rejected {
		if x := &b.Rejected[i]; r.holds(x.Index) {
			dst = appendRejected(dst, x)
		}
	}
	return dst
}

func (r Range) holds(index uint32) bool { return r.First <= index && index <= r.Last }

// contentSize is the size of the events and rejected events in r.
func (b *Batch) contentSize(r Range) int {
	n := 0
	for i := range b.Events {
		if e := &b.Events[i]; r.holds(e.Index) {
			n += 1 + protowire.SizeBytes(b.eventSize(e))
		}
	}
	for i := range b.Rejected {
		if x := &b.Rejected[i]; r.holds(x.Index) {
			n += 2 + protowire.SizeBytes(rejectedSizeOf(x))
		}
	}
	return n
}

// header is the record without its events and rejected events.
type header struct {
	b             *Batch
	r             Range
	part          bool
	dedup         batch.ID
	name, version string // of the SDK
}

func (h *header) sdkSize() int { return textSize(1, h.name) + textSize(1, h.version) }

func (h *header) size() int {
	b := h.b
	n := 3*(2+protowire.SizeBytes(16)) + textSize(2, b.Project) + textSize(2, b.Source) +
		varintSize(1, uint64(b.SentAt)) + varintSize(2, uint64(b.ReceivedAt)) + varintSize(2, uint64(b.Count))
	if s := h.sdkSize(); s > 0 {
		n += 1 + protowire.SizeBytes(s)
	}
	if h.part {
		n += 4 + protowire.SizeVarint(uint64(h.r.First)) + protowire.SizeVarint(uint64(h.r.Last))
	}
	return n
}

func (h *header) append(dst []byte) []byte {
	b := h.b
	if s := h.sdkSize(); s > 0 {
		dst = appendMessageTag(dst, batchSDK, s)
		dst = appendText(dst, sdkName, h.name)
		dst = appendText(dst, sdkVersion, h.version)
	}
	dst = appendVarint(dst, batchSentAt, uint64(b.SentAt))
	dst = appendID(dst, batchID, b.ID)
	dst = appendID(dst, batchDedupID, h.dedup)
	dst = appendID(dst, batchDigest, b.Digest)
	dst = appendText(dst, batchProject, b.Project)
	dst = appendText(dst, batchSource, b.Source)
	dst = appendVarint(dst, batchReceivedAt, uint64(b.ReceivedAt))
	dst = appendVarint(dst, batchCount, uint64(b.Count))
	if h.part { // both also when they are 0
		dst = protowire.AppendTag(dst, batchFirst, protowire.VarintType)
		dst = protowire.AppendVarint(dst, uint64(h.r.First))
		dst = protowire.AppendTag(dst, batchLast, protowire.VarintType)
		dst = protowire.AppendVarint(dst, uint64(h.r.Last))
	}
	return dst
}

// A time that is the batch's own need not be written, nor an id that follows
// from the batch's.
func (b *Batch) writesTime(e *Event) bool { return e.HasTime || e.Time != b.ReceivedAt }
func (b *Batch) writesID(e *Event) bool   { return e.ID != batch.EventID(b.ID, e.Index) }

func (b *Batch) eventSize(e *Event) int {
	n := e.textSize() + varintSize(1, uint64(e.Kind)) + varintSize(2, uint64(e.Index))
	if b.writesTime(e) {
		n += 1 + protowire.SizeVarint(uint64(e.Time))
	}
	if e.HasValue {
		n += 1 + 8
	}
	if b.writesID(e) {
		n += 2 + protowire.SizeBytes(16)
	}
	if e.TimeAdjusted {
		n += 2 + 1
	}
	return n
}

// appendEventMessage writes the event's tag, its length, and the event. Nearly every
// event has a length that is two bytes: those are left open, which is quicker than
// to look at every field twice.
func (b *Batch) appendEventMessage(dst []byte, e *Event) []byte {
	const tag = byte(batchEvents)<<3 | byte(protowire.BytesType)
	start := len(dst)
	dst = b.appendEvent(append(dst, tag, 0, 0), e)
	n := len(dst) - start - 3
	if n >= 1<<7 && n < 1<<14 {
		dst[start+1], dst[start+2] = byte(n)|0x80, byte(n>>7)
		return dst
	}
	size := protowire.SizeVarint(uint64(n))
	for range size - 2 {
		dst = append(dst, 0)
	}
	copy(dst[start+1+size:], dst[start+3:start+3+n])
	dst = dst[:start+1+size+n]
	protowire.AppendVarint(dst[:start+1], uint64(n))
	return dst
}

func (b *Batch) appendEvent(dst []byte, e *Event) []byte {
	dst = appendVarint(dst, eventKind, uint64(e.Kind))
	dst = appendText(dst, eventExperiment, e.Experiment)
	dst = appendText(dst, eventVariant, e.Variant)
	dst = appendText(dst, eventUnitID, e.UnitID)
	dst = appendText(dst, eventUnitType, e.UnitType)
	if b.writesTime(e) {
		dst = protowire.AppendTag(dst, eventTime, protowire.VarintType)
		dst = protowire.AppendVarint(dst, uint64(e.Time))
	}
	dst = appendText(dst, eventRule, e.Rule)
	dst = appendText(dst, eventReason, e.Reason)
	dst = appendText(dst, eventClientID, e.ClientID)
	for i := range e.Attributes {
		a := &e.Attributes[i]
		dst = appendMessageTag(dst, eventAttributes, a.size())
		dst = appendString(dst, entryKey, a.Key)
		dst = appendString(dst, entryValue, a.Value)
	}
	dst = appendText(dst, eventName, e.Name)
	if e.HasValue {
		dst = protowire.AppendTag(dst, eventValue, protowire.Fixed64Type)
		dst = protowire.AppendFixed64(dst, math.Float64bits(e.Value))
	}
	dst = appendVarint(dst, eventIndex, uint64(e.Index))
	if b.writesID(e) {
		dst = appendID(dst, eventID, e.ID)
	}
	if e.TimeAdjusted {
		dst = appendVarint(dst, eventTimeAdjusted, 1)
	}
	return dst
}

func rejectedSizeOf(x *Rejected) int {
	n := varintSize(1, uint64(x.Index)) + textSize(1, clip(string(x.Code), maxReasonCode)) + textSize(1, clip(x.Field, maxReasonField)) +
		textSize(1, clip(x.Message, maxReasonMessage)) + varintSize(1, uint64(x.Size))
	if len(x.Bytes) > 0 {
		n += 1 + protowire.SizeBytes(len(x.Bytes))
	}
	return n
}

func appendRejected(dst []byte, x *Rejected) []byte {
	dst = appendMessageTag(dst, batchRejected, rejectedSizeOf(x))
	dst = appendVarint(dst, rejectedIndex, uint64(x.Index))
	dst = appendText(dst, rejectedCode, clip(string(x.Code), maxReasonCode))
	dst = appendText(dst, rejectedField, clip(x.Field, maxReasonField))
	dst = appendText(dst, rejectedMessage, clip(x.Message, maxReasonMessage))
	if len(x.Bytes) > 0 {
		dst = protowire.AppendTag(dst, rejectedBytes, protowire.BytesType)
		dst = protowire.AppendBytes(dst, x.Bytes)
	}
	return appendVarint(dst, rejectedSize, uint64(x.Size))
}

// The fields of proto3 without presence: what is zero is not written.

func appendText(dst []byte, num protowire.Number, s string) []byte {
	if s == "" {
		return dst
	}
	return appendString(dst, num, s)
}

// appendString writes also what is empty. Most strings are short, and most field
// numbers low: then tag and length are a byte each.
func appendString(dst []byte, num protowire.Number, s string) []byte {
	if num < 16 && len(s) < 0x80 {
		dst = append(dst, byte(num)<<3|byte(protowire.BytesType), byte(len(s)))
		return append(dst, s...)
	}
	dst = protowire.AppendTag(dst, num, protowire.BytesType)
	return protowire.AppendString(dst, s)
}

func appendVarint(dst []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	dst = protowire.AppendTag(dst, num, protowire.VarintType)
	return protowire.AppendVarint(dst, v)
}

func varintSize(tag int, v uint64) int {
	if v == 0 {
		return 0
	}
	return tag + protowire.SizeVarint(v)
}

func appendID(dst []byte, num protowire.Number, id [16]byte) []byte {
	dst = protowire.AppendTag(dst, num, protowire.BytesType)
	return protowire.AppendBytes(dst, id[:])
}

func appendMessageTag(dst []byte, num protowire.Number, size int) []byte {
	dst = protowire.AppendTag(dst, num, protowire.BytesType)
	return protowire.AppendVarint(dst, uint64(size))
}

// clip cuts s to n bytes, between two characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// tidy makes of a text from anywhere (a request's header) one that protobuf
// takes as a string.
func tidy(s string, n int) string {
	if !ValidText(s) {
		s = strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd")
	}
	return clip(s, n)
}
