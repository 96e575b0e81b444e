package schema

import (
	"errors"
	"math"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
)

var (
	errTruncated = errors.New("not protobuf: cut short, or an invalid tag or length")
	errWireType  = errors.New("a field has the wrong wire type")
	errRange     = errors.New("a number does not fit its field")
)

// message walks over the fields of one protobuf message.
//
//	m := message{rest: b}
//	for m.next() {
//		switch m.num { … m.bytes() … }
//	}
//	return m.err
//
// A field that is not asked for is skipped. Bytes alias the message.
type message struct {
	rest []byte
	num  protowire.Number
	typ  protowire.Type
	val  []byte // what follows the tag, before the value was asked for
	err  error  // the first error; it ends the walk
}

// next goes to the next field.
func (m *message) next() bool {
	if len(m.rest) == 0 || m.err != nil {
		return false
	}
	var n int
	if c := m.rest[0]; c < 0x80 && c >= 8 { // field numbers up to 15
		m.num, m.typ, n = protowire.Number(c>>3), protowire.Type(c&7), 1
	} else if m.num, m.typ, n = protowire.ConsumeTag(m.rest); n < 0 {
		m.err = errTruncated
		return false
	}
	m.val = m.rest[n:]
	if m.typ == protowire.BytesType && len(m.val) > 0 && m.val[0] < 0x80 {
		n = 1 + int(m.val[0])
	} else {
		n = protowire.ConsumeFieldValue(m.num, m.typ, m.val)
	}
	if n < 0 || n > len(m.val) {
		m.err = errTruncated
		return false
	}
	m.val, m.rest = m.val[:n:n], m.val[n:]
	return true
}

func (m *message) is(t protowire.Type) bool {
	if m.typ != t {
		m.err = errWireType
		return false
	}
	return true
}

func (m *message) bytes() []byte {
	if !m.is(protowire.BytesType) {
		return nil
	}
	if m.val[0] < 0x80 {
		return m.val[1:]
	}
	b, _ := protowire.ConsumeBytes(m.val) // next has checked it
	return b[:len(b):len(b)]
}

func (m *message) string() string {
	b := m.bytes()
	return unsafe.String(unsafe.SliceData(b), len(b))
}

func (m *message) varint() uint64 {
	if !m.is(protowire.VarintType) {
		return 0
	}
	v, _ := protowire.ConsumeVarint(m.val)
	return v
}

func (m *message) uint32() uint32 {
	v := m.varint()
	if v > math.MaxUint32 {
		m.err = errRange
	}
	return uint32(v)
}

func (m *message) double() float64 {
	if !m.is(protowire.Fixed64Type) {
		return 0
	}
	v, _ := protowire.ConsumeFixed64(m.val)
	return math.Float64frombits(v)
}

// id reads an identity or a digest: 16 bytes.
func (m *message) id() (id [16]byte) {
	b := m.bytes()
	if m.err == nil && len(b) != len(id) {
		m.err = errors.New("an id does not have 16 bytes")
	}
	copy(id[:], b)
	return id
}

// entry reads one entry of a map of strings.
func entry(b []byte) (key, value string, err error) {
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case entryKey:
			key = m.string()
		case entryValue:
			value = m.string()
		}
	}
	return key, value, m.err
}
