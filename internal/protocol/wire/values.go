package wire

import (
	"math"
	"strconv"
	"strings"

	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// Text reads a text: a string as it is, a number or truth value as its JSON text,
// since SDKs differ in the type they send; null is as good as "". An array or
// object, or a string that is none, has the event rejected.
func (d *Decoder) Text(field string) string {
	_, s := d.Scalar()
	d.Settle(field)
	return s
}

// ID reads an id: a string, or a number as its text; null is as good as "". A
// truth value, array or object has the event rejected.
func (d *Decoder) ID(field string) string {
	k, s := d.Scalar()
	if d.Fault() == jsonscan.WrongType || k == jsonscan.Bool {
		d.ClearFault()
		d.Fail(schema.CodeInvalidType, field, "an id must be a string or a number")
		return ""
	}
	d.Settle(field)
	return s
}

// JSON reads a value of any kind as text: what Text does, and an array or object
// as its JSON text.
func (d *Decoder) JSON(field string) string {
	switch d.Kind() {
	case jsonscan.Array, jsonscan.Object:
		s := String(d.Skip())
		d.Settle(field)
		return s
	}
	return d.Text(field)
}

// Loose reads a string or number of the envelope; anything else, or one that is
// faulty, is "": what is odd there must not cost the events.
func (d *Decoder) Loose() string {
	d.ClearFault()
	k, s := d.Scalar()
	if d.Fault() != jsonscan.NoFault || k != jsonscan.String && k != jsonscan.Number {
		d.ClearFault()
		return ""
	}
	return s
}

// Ignore reads past a value nobody wants. What is wrong inside does not matter.
func (d *Decoder) Ignore() {
	had := d.Fault()
	d.Skip()
	if had == jsonscan.NoFault {
		d.ClearFault()
	}
}

// Millis reads a time in milliseconds since the epoch, a number or text, as
// microseconds. Null and "" are no time; what is no time has the event rejected.
func (d *Decoder) Millis(field string) (us int64, ok bool) {
	return d.time(field, "milliseconds since the Unix epoch", schema.ParseEpochMillis)
}

// Time reads a time as text in RFC 3339, or in milliseconds since the epoch, as
// microseconds. Null and "" are no time; what is no time has the event rejected.
func (d *Decoder) Time(field string) (us int64, ok bool) {
	return d.time(field, "RFC 3339 or milliseconds since the Unix epoch", ParseTime)
}

func (d *Decoder) time(field, want string, parse func(string) (int64, bool)) (int64, bool) {
	k, s := d.Scalar()
	d.Settle(field)
	if s == "" || k == jsonscan.None {
		return 0, false
	}
	if k == jsonscan.Bool {
		d.Fail(schema.CodeInvalidType, field, field+" has the wrong type")
		return 0, false
	}
	us, ok := parse(s)
	if !ok {
		d.Fail(schema.CodeInvalidTime, field, field+" must be "+want)
	}
	return us, ok
}

// ParseTime reads RFC 3339 or milliseconds since the epoch as microseconds.
func ParseTime(s string) (us int64, ok bool) {
	if us, ok = schema.ParseTime(s); !ok && s != "" {
		us, ok = schema.ParseEpochMillis(s)
	}
	return us, ok
}

// Number reads a number, also one in text that is written like one (Numeric).
// Null, and text that is no number, are none: text is the rest of it then.
func (d *Decoder) Number(field string) (v float64, text string, ok bool) {
	k, s := d.Scalar()
	d.Settle(field)
	switch k {
	case jsonscan.Number, jsonscan.String:
		if v, ok = Numeric(s, k == jsonscan.Number); ok {
			return v, "", true
		}
	}
	return 0, s, false
}

// Numeric returns s as a number. Text that did not come as a number counts as one
// if it is written like one and says no more than a double holds: codes like "007"
// and long ids stay text.
func Numeric(s string, number bool) (float64, bool) {
	if s == "" || !number && !plainNumber(s) {
		return 0, false
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(v, 0) || math.IsNaN(v) {
		return 0, false
	}
	return v, true
}

// plainNumber reports whether s is a JSON number of at most 15 digits, which is
// what every double can hold, before an exponent.
func plainNumber(s string) bool {
	s = strings.TrimPrefix(s, "-")
	whole, rest := digits(s)
	if whole == 0 || whole > 1 && s[0] == '0' {
		return false
	}
	fraction := 0
	if strings.HasPrefix(rest, ".") {
		if fraction, rest = digits(rest[1:]); fraction == 0 {
			return false
		}
	}
	if whole+fraction > 15 {
		return false
	}
	if rest == "" {
		return true
	}
	if rest[0]|0x20 != 'e' {
		return false
	}
	rest = strings.TrimLeft(rest[1:], "+-")
	exponent, rest := digits(rest)
	return exponent > 0 && exponent <= 3 && rest == ""
}

// digits counts the digits s starts with, and returns what follows them.
func digits(s string) (int, string) {
	n := 0
	for n < len(s) && '0' <= s[n] && s[n] <= '9' {
		n++
	}
	return n, s[n:]
}

// Object enters an object. Null, and the empty array that PHP writes for a map
// without members, are empty objects.
func (d *Decoder) Object() bool {
	switch d.Kind() {
	case jsonscan.Null:
		d.Null()
		return false
	case jsonscan.Array:
		m := d.Mark()
		if d.Array() && !d.More() {
			return false
		}
		d.Rewind(m)
	}
	return d.Reader.Object()
}

// Nested says what becomes of arrays and objects among flat properties.
type Nested bool

// What may become of them.
const (
	LeaveOut Nested = false // they are left out, and so is ""
	AsText   Nested = true  // they are kept as JSON text
)

// Flat reads an object (or null) and keeps its members as attributes, under prefix
// and their name. A null says nothing.
func (d *Decoder) Flat(prefix string, n Nested) {
	if !d.Object() {
		d.Settle(First(d.Within, "attributes"))
		return
	}
	for d.More() {
		d.Member(d.Path(prefix, d.Key()), n)
	}
}

// Member reads a value and keeps it as an attribute.
func (d *Decoder) Member(name string, n Nested) {
	switch d.Kind() {
	case jsonscan.Null:
		d.Null()
	case jsonscan.Array, jsonscan.Object:
		if n == AsText {
			d.Put(name, String(d.Skip()))
		} else {
			d.Ignore()
		}
	default:
		if _, s := d.Scalar(); s != "" || n == AsText {
			d.Put(name, s)
		}
	}
	d.Settle(First(d.Within, "attributes"))
}

// maxMembers is how many attributes of one event are looked at: as many as it may
// have, and room for those that come twice or are not kept.
const maxMembers = 2 * schema.MaxAttributes

// Put adds an attribute, unless the event has far too many anyway: its memory must
// not grow with what is going to be rejected.
func (d *Decoder) Put(name, value string) {
	if len(d.Attrs) >= maxMembers {
		d.tooMany = true
		return
	}
	d.Attrs = append(d.Attrs, schema.Attribute{Key: name, Value: value})
}

// Take removes an attribute and returns its value, the last one where there are
// several; "" where there is none.
func (d *Decoder) Take(name string) (value string) {
	kept := d.Attrs[:0]
	for _, a := range d.Attrs {
		if a.Key == name {
			value = a.Value
		} else {
			kept = append(kept, a)
		}
	}
	d.Attrs = kept
	return value
}

// maxPaths bounds the memory of Path; a body with more names pays for each anew.
const maxPaths = 256

// Path is prefix + name. Events of one body have much the same names, so they
// share the text.
func (d *Decoder) Path(prefix, name string) string {
	if prefix == "" {
		return name
	}
	if p, ok := d.paths[prefix+name]; ok {
		return p
	}
	p := prefix + name
	if d.paths == nil {
		d.paths = make(map[string]string, 8)
	}
	if len(d.paths) < maxPaths {
		d.paths[p] = p
	}
	return p
}
