package schema

import (
	"math"
)

// DecodeProto fills b, which comes empty, from a protobuf sluice.v1.Batch. What
// only a collector sets is ignored. As in protobuf everywhere, the last of
// several values of a field counts, fields that are not known are skipped, and an
// empty string is an absent one. An event that does not pass costs only itself;
// the error is a *BodyError, as for DecodeJSON.
//
// Strings, and the bytes of rejected events, alias body.
func DecodeProto(body []byte, def Kind, maxEvents int, b *Batch) error {
	b.expect(len(body), maxEvents)
	var few [16]Attribute
	attrs := few[:0]
	m := message{rest: body}
	for m.next() {
		switch m.num {
		case batchEvents:
			raw := m.bytes()
			if m.err != nil {
				break
			}
			if int(b.Count) >= maxEvents {
				return tooManyEvents(maxEvents)
			}
			var code Code
			var name, message string
			code, name, message, attrs = b.protoEvent(raw, def, attrs)
			if code != "" {
				b.Reject(code, name, message, raw)
			} else {
				b.Check(raw)
			}
		case batchSDK:
			name, version, err := entry(m.bytes()) // the same shape as a map's entry
			if m.err == nil {
				m.err = err
			}
			if ValidText(name) && ValidText(version) {
				b.SDK = joinSDK(name, version)
			}
		case batchSentAt:
			b.SentAt = max(0, int64(m.varint()))
		}
	}
	if m.err != nil {
		return &BodyError{BodyMalformed, m.err.Error()}
	}
	if b.Count == 0 {
		return &BodyError{BodyEmpty, "there is no event in the body"}
	}
	return nil
}

// protoEvent appends an event and reads raw into it. attrs is memory to work in,
// which is returned.
func (b *Batch) protoEvent(raw []byte, def Kind, attrs []Attribute) (Code, string, string, []Attribute) {
	e := b.Append()
	e.Kind = def
	attrs = attrs[:0]
	m := message{rest: raw}
	for m.next() {
		f := fieldNone
		var text *string
		switch m.num {
		case eventKind:
			f = fieldKind
			switch k := m.varint(); k {
			case uint64(KindUnspecified):
				e.Kind = def
			case uint64(KindExposure), uint64(KindEvent):
				e.Kind = Kind(k)
			default:
				return CodeInvalidKind, fieldNames[f], msgKind, attrs
			}
		case eventExperiment:
			f, text = fieldExperiment, &e.Experiment
		case eventVariant:
			f, text = fieldVariant, &e.Variant
		case eventUnitID:
			f, text = fieldUnitID, &e.UnitID
		case eventUnitType:
			f, text = fieldUnitType, &e.UnitType
		case eventTime:
			f = fieldTime
			e.Time, e.HasTime = int64(m.varint()), true
		case eventRule:
			f, text = fieldRule, &e.Rule
		case eventReason:
			f, text = fieldReason, &e.Reason
		case eventClientID:
			f, text = fieldEventID, &e.ClientID
		case eventName:
			f, text = fieldName, &e.Name
		case eventValue:
			f = fieldValue
			e.Value, e.HasValue = m.double(), true
			if math.IsNaN(e.Value) || math.IsInf(e.Value, 0) {
				return CodeInvalidNumber, fieldNames[f], "value is not finite", attrs
			}
		case eventAttributes:
			f = fieldAttributes
			key, value, err := entry(m.bytes())
			if m.err == nil {
				m.err = err
			}
			if !ValidText(key) || !ValidText(value) {
				return CodeInvalidString, fieldNames[f], msgText, attrs
			}
			if attrs = putAttribute(attrs, key, value, false); len(attrs) > MaxAttributes {
				return CodeTooMany, fieldNames[f], msgTooMany, attrs
			}
		}
		if text != nil {
			if *text = m.string(); !ValidText(*text) {
				return CodeInvalidString, fieldNames[f], msgText, attrs
			}
		}
		if m.err == errWireType {
			return CodeInvalidType, fieldNames[f], m.err.Error(), attrs
		}
	}
	if m.err != nil {
		return CodeMalformed, "", m.err.Error(), attrs
	}
	b.keep(e, attrs)
	return "", "", "", attrs
}
