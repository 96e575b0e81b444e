package otlp

import (
	"strings"

	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// Values are kept as text: strings as they are, numbers and truth values as JSON has
// them, bytes in base64, and arrays and lists of keys as JSON.

// value reads a value in JSON. A bare one, without its type, is taken too.
func (d *decoder) value() (v text) {
	if d.Kind() != jsonscan.Object {
		return d.scalar()
	}
	d.Reader.Object()
	for d.More() {
		switch d.Key() {
		case "arrayValue", "array_value":
			v = d.container(false)
		case "kvlistValue", "kvlist_value":
			v = d.container(true)
		case "intValue", "int_value", "doubleValue", "double_value":
			if v = d.scalar(); !v.numeric {
				v.number, v.numeric = wire.Numeric(v.s, true)
			}
		case "stringValue", "string_value", "boolValue", "bool_value", "bytesValue", "bytes_value":
			v = d.scalar()
		default:
			d.Ignore()
		}
	}
	return v
}

func (d *decoder) scalar() (v text) {
	k := d.Kind()
	_, v.s = d.Scalar()
	v.there = k != jsonscan.Null
	if k == jsonscan.Number {
		v.number, v.numeric = wire.Numeric(v.s, true)
	}
	return v
}

// container reads an array, or a list of keys and values. One that is too long to be
// kept is left out.
func (d *decoder) container(keyed bool) text {
	d.buf = d.buf[:0]
	d.list(keyed)
	return d.written()
}

// written is what the buffer holds.
func (d *decoder) written() text {
	if len(d.buf) > schema.MaxAttributeValue {
		return text{}
	}
	return text{s: string(d.buf), there: true}
}

// list writes {"values":[…]}.
func (d *decoder) list(keyed bool) {
	d.write(opening(keyed))
	n := 0
	if d.Kind() == jsonscan.Object {
		d.Reader.Object()
		for d.More() {
			if d.Key() != "values" || d.Kind() != jsonscan.Array {
				d.Ignore()
				continue
			}
			d.Array()
			for ; d.More(); n++ {
				if n > 0 {
					d.write(",")
				}
				if keyed {
					d.member()
				} else {
					d.any()
				}
			}
		}
	} else {
		d.Ignore()
	}
	d.write(closing(keyed))
}

func opening(keyed bool) string {
	if keyed {
		return "{"
	}
	return "["
}

func closing(keyed bool) string {
	if keyed {
		return "}"
	}
	return "]"
}

// member writes {"key":…,"value":…}, whose members come in any order.
func (d *decoder) member() {
	if d.Kind() != jsonscan.Object {
		d.Ignore()
		d.quote("")
		d.write(":null")
		return
	}
	m := d.Mark()
	key := ""
	d.Reader.Object()
	for d.More() {
		if d.Key() == "key" {
			_, key = d.Scalar()
			break
		}
		d.Skip()
	}
	d.Rewind(m)
	d.quote(key)
	d.write(":")
	wrote := false
	d.Reader.Object()
	for d.More() {
		if d.Key() != "value" || wrote {
			d.Ignore()
			continue
		}
		wrote = true
		d.any()
	}
	if !wrote {
		d.write("null")
	}
}

// any writes a value as JSON.
func (d *decoder) any() {
	if d.Kind() != jsonscan.Object {
		k, s := d.Scalar()
		d.writeScalar(s, k != jsonscan.String)
		return
	}
	wrote := false
	d.Reader.Object()
	for d.More() {
		name := d.Key()
		if wrote {
			d.Ignore()
			continue
		}
		wrote = true
		switch name {
		case "arrayValue", "array_value":
			d.list(false)
		case "kvlistValue", "kvlist_value":
			d.list(true)
		case "intValue", "int_value", "doubleValue", "double_value", "boolValue", "bool_value":
			_, s := d.Scalar()
			d.writeScalar(s, true)
		case "stringValue", "string_value", "bytesValue", "bytes_value":
			_, s := d.Scalar()
			d.quote(s)
		default:
			wrote = false
			d.Ignore()
		}
	}
	if !wrote {
		d.write("null")
	}
}

// writeScalar writes a number, truth value or null bare, if it is one.
func (d *decoder) writeScalar(s string, bare bool) {
	switch {
	case !bare:
		d.quote(s)
	case s == "":
		d.write("null")
	case s == "true" || s == "false" || number(s):
		d.write(s)
	default: // NaN, Infinity
		d.quote(s)
	}
}

// number reports whether a text is a number in JSON.
func number(s string) bool {
	if digits := strings.TrimPrefix(s, "-"); len(digits) > 1 && digits[0] == '0' && digits[1] != '.' && digits[1]|0x20 != 'e' {
		return false
	}
	_, ok := wire.Numeric(s, true)
	return ok && strings.Trim(s, "+-.0123456789eE") == "" && s[0] != '+' && s[0] != '.' && s[len(s)-1] != '.'
}

// write adds to the buffer, until there is more than can be kept.
func (d *decoder) write(s string) {
	if len(d.buf) <= schema.MaxAttributeValue {
		d.buf = append(d.buf, s...)
	}
}

func (d *decoder) quote(s string) {
	if len(d.buf) <= schema.MaxAttributeValue {
		d.buf = schema.AppendQuoted(d.buf, s)
	}
}

// bodyValueJSON finds value in a record's body, a list of keys and values.
func bodyValueJSON(body []byte) string {
	var b schema.Batch
	d := decoder{Decoder: wire.New(body, 1, &b)}
	d.Reset(body, maxDepth)
	for _, names := range [...][2]string{{"kvlistValue", "kvlist_value"}, {"values", "values"}} {
		if d.Kind() != jsonscan.Object || !d.Reader.Object() || !d.find(names) {
			return ""
		}
	}
	if d.Kind() != jsonscan.Array || !d.Array() {
		return ""
	}
	for d.More() {
		if d.Kind() != jsonscan.Object {
			return ""
		}
		key, v := "", text{}
		d.Reader.Object()
		for d.More() {
			switch d.Key() {
			case "key":
				key = d.Loose()
			case "value":
				v = d.value()
			default:
				d.Ignore()
			}
		}
		if key == "value" && d.Fault() == jsonscan.NoFault {
			return v.s
		}
		d.ClearFault()
	}
	return ""
}

// find goes to the member of one of the names.
func (d *decoder) find(names [2]string) bool {
	for d.More() {
		if key := d.Key(); key == names[0] || key == names[1] {
			return true
		}
		d.Ignore()
	}
	return false
}
