package otlp

import (
	"encoding/base64"
	"encoding/hex"
	"math"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
	"sluice/pkg/schema"
)

// Numbers of fields, as opentelemetry/proto/logs/v1/logs.proto and common.proto have
// them.
const (
	requestResourceLogs = 1

	resourceLogsResource  = 1
	resourceLogsScopeLogs = 2

	resourceAttributes = 1

	scopeLogsScope   = 1
	scopeLogsRecords = 2

	scopeName    = 1
	scopeVersion = 2

	recordTime       = 1
	recordBody       = 5
	recordAttributes = 6
	recordTrace      = 9
	recordSpan       = 10
	recordObserved   = 11
	recordName       = 12

	entryKey   = 1
	entryValue = 2

	valueString = 1
	valueBool   = 2
	valueInt    = 3
	valueDouble = 4
	valueArray  = 5
	valueList   = 6
	valueBytes  = 7

	values = 1
)

// maxNested is how deep a value may be nested.
const maxNested = 16

// message walks over the fields of one protobuf message:
//
//	for m := (message{rest: b}); m.next(); {
//		switch m.num { … m.bytes() … }
//	}
//
// A field that is not asked for is skipped. What cannot be read sets broken, which
// belongs to everything that is read of the same thing.
type message struct {
	rest   []byte
	num    protowire.Number
	typ    protowire.Type
	val    []byte // what follows the tag
	broken *bool
}

func (m *message) next() bool {
	if len(m.rest) == 0 || *m.broken {
		return false
	}
	n := 0
	if c := m.rest[0]; c >= 8 && c < 0x80 { // fields 1 to 15
		m.num, m.typ, n = protowire.Number(c>>3), protowire.Type(c&7), 1
	} else if m.num, m.typ, n = protowire.ConsumeTag(m.rest); n < 0 {
		*m.broken = true
		return false
	}
	m.val = m.rest[n:]
	if m.typ == protowire.BytesType && len(m.val) > 0 && m.val[0] < 0x80 {
		n = 1 + int(m.val[0])
	} else {
		n = protowire.ConsumeFieldValue(m.num, m.typ, m.val)
	}
	if n < 0 || n > len(m.val) {
		*m.broken = true
		return false
	}
	m.val, m.rest = m.val[:n:n], m.val[n:]
	return true
}

func (m *message) is(t protowire.Type) bool {
	if m.typ != t {
		*m.broken = true
	}
	return m.typ == t
}

// bytes is the field's content: a message, a string or bytes.
func (m *message) bytes() []byte {
	if !m.is(protowire.BytesType) {
		return nil
	}
	if m.val[0] < 0x80 {
		return m.val[1:]
	}
	b, _ := protowire.ConsumeBytes(m.val)
	return b
}

func (m *message) text() string { return wire.String(m.bytes()) }

func (m *message) fixed64() uint64 {
	if !m.is(protowire.Fixed64Type) {
		return 0
	}
	v, _ := protowire.ConsumeFixed64(m.val)
	return v
}

func (m *message) varint() uint64 {
	if !m.is(protowire.VarintType) {
		return 0
	}
	v, _ := protowire.ConsumeVarint(m.val)
	return v
}

// decodeProto reads an ExportLogsServiceRequest. One without a record is a success,
// as OTLP has it.
func decodeProto(req *protocol.Request, b *schema.Batch) error {
	d := decoder{Decoder: wire.New(req.Body, req.MaxEvents, b)}
	d.Most = req.MaxEvents
	broken := false
	for m := (message{rest: req.Body, broken: &broken}); m.next(); {
		if m.num == requestResourceLogs {
			d.protoResourceLogs(m.bytes(), &broken)
		}
		if d.over {
			return d.TooMany()
		}
	}
	if broken {
		return wire.Malformed("not an ExportLogsServiceRequest in protobuf")
	}
	d.finish(req)
	return nil
}

// protoResourceLogs reads the records of one resource, which is looked for first:
// nothing says that it comes before them.
func (d *decoder) protoResourceLogs(b []byte, broken *bool) {
	d.service = ""
	for m := (message{rest: b, broken: broken}); m.next(); {
		if m.num == resourceLogsResource {
			for r := (message{rest: m.bytes(), broken: broken}); r.next(); {
				if r.num == resourceAttributes {
					d.protoAttribute(nil, r.bytes(), broken)
				}
			}
		}
	}
	for m := (message{rest: b, broken: broken}); m.next(); {
		if m.num != resourceLogsScopeLogs {
			continue
		}
		for s := (message{rest: m.bytes(), broken: broken}); s.next(); {
			switch s.num {
			case scopeLogsScope:
				d.protoScope(s.bytes(), broken)
			case scopeLogsRecords:
				if raw := s.bytes(); !*broken {
					d.protoRecord(raw)
				}
				if d.over {
					return
				}
			}
		}
	}
}

func (d *decoder) protoScope(b []byte, broken *bool) {
	if d.scope != "" {
		return
	}
	for m := (message{rest: b, broken: broken}); m.next(); {
		switch m.num {
		case scopeName:
			d.scope = m.text()
		case scopeVersion:
			d.scopeVersion = m.text()
		}
	}
}

// protoRecord reads one log record. One that is broken costs only itself.
func (d *decoder) protoRecord(raw []byte) {
	d.Part()
	var e draft
	var trace, span []byte
	d.broken = false
	for m := (message{rest: raw, broken: &d.broken}); m.next(); {
		switch m.num {
		case recordTime:
			e.nanos = m.fixed64()
		case recordObserved:
			e.observed = m.fixed64()
		case recordName:
			if e.name = m.text(); !schema.ValidText(e.name) {
				d.Fail(schema.CodeInvalidString, "name", "not UTF-8, or with a NUL character")
			}
		case recordAttributes:
			d.protoAttribute(&e, m.bytes(), &d.broken)
		case recordTrace:
			trace = m.bytes()
		case recordSpan:
			span = m.bytes()
		case recordBody:
			e.proto = m.bytes()
		}
	}
	if d.broken && d.full() {
		d.over = true
		return
	}
	if d.broken {
		d.Part() // whatever else was wrong, this comes first
		d.Fail(schema.CodeMalformed, "", "not a log record in protobuf")
		d.AddPart(&schema.Event{})
		d.RawPart(raw)
		return
	}
	if e.name != "" || e.parts[eventName] != "" { // else it is going to be dropped
		e.trace, e.span = hexBytes(trace, 16), hexBytes(span, 8)
	}
	ev, ok := d.event(&e)
	switch {
	case !ok:
		d.Drop()
	case d.full():
		d.over = true
	case !d.AddPart(&ev):
		if again := recordJSON(raw); d.Repeat(len(again)) {
			raw = again
		}
		d.RawPart(raw)
	}
}

// hexBytes is an id of n bytes in hexadecimal; not one of zeros, which stands for
// none.
func hexBytes(b []byte, n int) string {
	if len(b) != n {
		return ""
	}
	for _, c := range b {
		if c != 0 {
			return hex.EncodeToString(b)
		}
	}
	return ""
}

// protoAttribute reads one attribute of a record, or of a resource where e is nil.
func (d *decoder) protoAttribute(e *draft, b []byte, broken *bool) {
	key, v := "", text{}
	for m := (message{rest: b, broken: broken}); m.next(); {
		switch m.num {
		case entryKey:
			key = m.text()
		case entryValue:
			v = d.protoValue(m.bytes(), broken)
		}
	}
	if !schema.ValidText(key) || !schema.ValidText(v.s) {
		if e != nil {
			d.Fail(schema.CodeInvalidString, "attributes", "not UTF-8, or with a NUL character")
		}
		return
	}
	d.put(e, key, v)
}

// protoValue reads a value as text.
func (d *decoder) protoValue(b []byte, broken *bool) (v text) {
	for m := (message{rest: b, broken: broken}); m.next(); {
		had := v
		v = text{there: true}
		switch m.num {
		case valueString:
			v.s = m.text()
		case valueBool:
			v.s = strconv.FormatBool(m.varint() != 0)
		case valueInt:
			n := int64(m.varint())
			v = text{s: strconv.FormatInt(n, 10), number: float64(n), numeric: true, there: true}
		case valueDouble:
			f := math.Float64frombits(m.fixed64())
			v.s, v.number = string(appendFloat(nil, f)), f
			v.numeric = !math.IsNaN(f) && !math.IsInf(f, 0)
		case valueBytes:
			v.s = base64.StdEncoding.EncodeToString(m.bytes())
		case valueArray, valueList:
			d.buf = d.buf[:0]
			if !d.protoList(m.bytes(), m.num == valueList, maxNested, broken) {
				return text{} // too deep to be kept
			}
			v = d.written()
		default:
			v = had
		}
	}
	return v
}

// appendFloat writes a double the way JavaScript does, and encoding/json.
func appendFloat(dst []byte, f float64) []byte {
	switch a := math.Abs(f); {
	case math.IsInf(f, 1):
		return append(dst, "Infinity"...)
	case math.IsInf(f, -1):
		return append(dst, "-Infinity"...)
	case math.IsNaN(f):
		return append(dst, "NaN"...)
	case a != 0 && (a < 1e-6 || a >= 1e21):
		return strconv.AppendFloat(dst, f, 'e', -1, 64)
	}
	return strconv.AppendFloat(dst, f, 'f', -1, 64)
}

// protoList writes an array, or a list of keys and values, as JSON. It reports
// whether all of it was near enough.
func (d *decoder) protoList(b []byte, keyed bool, levels int, broken *bool) bool {
	if levels == 0 {
		return false
	}
	d.write(opening(keyed))
	n := 0
	for m := (message{rest: b, broken: broken}); m.next(); {
		if m.num != values {
			continue
		}
		if n++; n > 1 {
			d.write(",")
		}
		v := m.bytes()
		if keyed {
			key := ""
			entry := v
			v = nil
			for m := (message{rest: entry, broken: broken}); m.next(); {
				switch m.num {
				case entryKey:
					key = m.text()
				case entryValue:
					v = m.bytes()
				}
			}
			d.quote(key)
			d.write(":")
		}
		if !d.protoAny(v, levels-1, broken) {
			return false
		}
	}
	d.write(closing(keyed))
	return true
}

// protoAny writes a value as JSON.
func (d *decoder) protoAny(b []byte, levels int, broken *bool) bool {
	wrote := false
	for m := (message{rest: b, broken: broken}); m.next() && !wrote; {
		wrote = true
		switch m.num {
		case valueString:
			d.quote(m.text())
		case valueBool:
			d.write(strconv.FormatBool(m.varint() != 0))
		case valueInt:
			d.write(strconv.FormatInt(int64(m.varint()), 10))
		case valueDouble:
			d.writeScalar(string(appendFloat(nil, math.Float64frombits(m.fixed64()))), true)
		case valueBytes:
			d.quote(base64.StdEncoding.EncodeToString(m.bytes()))
		case valueArray, valueList:
			if !d.protoList(m.bytes(), m.num == valueList, levels, broken) {
				return false
			}
		default:
			wrote = false
		}
	}
	if !wrote {
		d.write("null")
	}
	return true
}

// bodyValueProto finds value in a record's body, a list of keys and values.
func (d *decoder) bodyValueProto(body []byte) string {
	broken := false
	for m := (message{rest: body, broken: &broken}); m.next(); {
		if m.num != valueList {
			continue
		}
		for l := (message{rest: m.bytes(), broken: &broken}); l.next(); {
			if l.num != values {
				continue
			}
			key, v := "", text{}
			for e := (message{rest: l.bytes(), broken: &broken}); e.next(); {
				switch e.num {
				case entryKey:
					key = e.text()
				case entryValue:
					v = d.protoValue(e.bytes(), &broken)
				}
			}
			if key == "value" && !broken && schema.ValidText(v.s) {
				return v.s
			}
		}
	}
	return ""
}
