package otlp

import (
	"encoding/base64"
	"encoding/hex"
	"math"
	"strconv"

	"sluice/pkg/schema"
)

// recordJSON writes a log record in protobuf as OTLP/JSON, in which a person can
// read it among the dead letters, and it can be mended and replayed. Fields that are
// not known are left out, and so are values nested too deeply.
func recordJSON(raw []byte) []byte {
	broken := false
	j := jsonWriter{dst: []byte("{"), broken: &broken}
	attributes := j // written apart: they are spread over the record
	attributes.dst = nil
	for m := (message{rest: raw, broken: &broken}); m.next(); {
		switch m.num {
		case recordTime:
			j.field("timeUnixNano")
			j.quote(strconv.FormatUint(m.fixed64(), 10))
		case recordObserved:
			j.field("observedTimeUnixNano")
			j.quote(strconv.FormatUint(m.fixed64(), 10))
		case recordName:
			j.field("eventName")
			j.quote(m.text())
		case recordTrace:
			j.field("traceId")
			j.quote(hex.EncodeToString(m.bytes()))
		case recordSpan:
			j.field("spanId")
			j.quote(hex.EncodeToString(m.bytes()))
		case recordBody:
			j.field("body")
			j.value(m.bytes(), maxNested)
		case recordAttributes:
			if len(attributes.dst) > 0 {
				attributes.raw(",")
			}
			attributes.entry(m.bytes(), maxNested)
		}
	}
	if len(attributes.dst) > 0 {
		j.field("attributes")
		j.raw("[")
		j.dst = append(j.dst, attributes.dst...)
		j.raw("]")
	}
	j.raw("}")
	return j.dst
}

// jsonWriter writes OTLP/JSON of protobuf.
type jsonWriter struct {
	dst    []byte
	broken *bool
}

func (j *jsonWriter) raw(s string) { j.dst = append(j.dst, s...) }

// quote writes a string. One that is no text stays none, so that the record is
// rejected for it again.
func (j *jsonWriter) quote(s string) {
	if !schema.ValidText(s) {
		j.raw(`"\u0000"`)
		return
	}
	j.dst = schema.AppendQuoted(j.dst, s)
}

// field begins a member of the object that was opened last.
func (j *jsonWriter) field(name string) {
	if j.dst[len(j.dst)-1] != '{' {
		j.raw(",")
	}
	j.quote(name)
	j.raw(":")
}

// entry writes a key and its value.
func (j *jsonWriter) entry(b []byte, levels int) {
	j.raw("{")
	for m := (message{rest: b, broken: j.broken}); m.next(); {
		switch m.num {
		case entryKey:
			j.field("key")
			j.quote(m.text())
		case entryValue:
			j.field("value")
			j.value(m.bytes(), levels)
		}
	}
	j.raw("}")
}

// value writes a value with its type.
func (j *jsonWriter) value(b []byte, levels int) {
	j.raw("{")
	for m := (message{rest: b, broken: j.broken}); m.next(); {
		switch m.num {
		case valueString:
			j.field("stringValue")
			j.quote(m.text())
		case valueBool:
			j.field("boolValue")
			j.raw(strconv.FormatBool(m.varint() != 0))
		case valueInt:
			j.field("intValue")
			j.quote(strconv.FormatInt(int64(m.varint()), 10))
		case valueDouble:
			f := math.Float64frombits(m.fixed64())
			j.field("doubleValue")
			if math.IsNaN(f) || math.IsInf(f, 0) {
				j.quote(string(appendFloat(nil, f)))
			} else {
				j.dst = appendFloat(j.dst, f)
			}
		case valueBytes:
			j.field("bytesValue")
			j.quote(base64.StdEncoding.EncodeToString(m.bytes()))
		case valueArray, valueList:
			if levels == 0 {
				continue
			}
			name := "arrayValue"
			if m.num == valueList {
				name = "kvlistValue"
			}
			j.field(name)
			j.raw(`{"values":[`)
			n := 0
			for l := (message{rest: m.bytes(), broken: j.broken}); l.next(); {
				if l.num != values {
					continue
				}
				if n++; n > 1 {
					j.raw(",")
				}
				if m.num == valueList {
					j.entry(l.bytes(), levels-1)
				} else {
					j.value(l.bytes(), levels-1)
				}
			}
			j.raw("]}")
		}
	}
	j.raw("}")
}
