package wire

import (
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// Some protocols put several events into one element: counters of a summary,
// decisions of a visitor. Each is read between Part and AddPart, and one that does
// not pass costs only itself.

// Part begins another event of the element being read. What was wrong with the one
// before is forgotten, and its attributes.
func (d *Decoder) Part() {
	d.ClearFault()
	d.Attrs, d.tooMany = d.Attrs[:0], false
	d.seen, d.Within = 0, ""
	d.code, d.field, d.message = "", "", ""
}

// Why is what the event being read is going to be rejected for; "" where nothing is.
func (d *Decoder) Why() (code schema.Code, field, message string) {
	return d.code, d.field, d.message
}

// AddPart adds what was read since Part, with Attrs, as Add does. Where that is
// rejected it returns false, and RawPart has to follow.
func (d *Decoder) AddPart(e *schema.Event) bool {
	if d.Err() != nil {
		return true
	}
	n := len(d.Batch.Rejected)
	ev := d.Batch.Append()
	if d.tooMany {
		d.Fail(schema.CodeTooMany, "attributes", "more than 256 attributes")
	}
	if d.code != "" {
		d.Batch.Reject(d.code, d.field, d.message, nil)
		return false
	}
	index := ev.Index
	*ev = *e
	ev.Index = index
	d.Batch.SetAttributes(ev, d.Attrs)
	d.Batch.Check(nil)
	return len(d.Batch.Rejected) == n
}

// RawPart gives the bytes of the event that was rejected last: an element of its
// own, so that it can be read again by itself.
func (d *Decoder) RawPart(raw []byte) {
	n := min(len(raw), schema.MaxRejectedBytes)
	r := &d.Batch.Rejected[len(d.Batch.Rejected)-1]
	r.Bytes, r.Size = raw[:n:n], len(raw)
}

// Repeat reports whether n bytes that are in the body once may be kept once more.
// What many events of one element share would else make of a small body whatever
// the sender wants. The answer depends on the body alone.
func (d *Decoder) Repeat(n int) bool {
	if n > 4*len(d.body)+1<<20-d.repeated {
		return false
	}
	d.repeated += n
	return true
}

// RepeatText is Repeat for a text that an event would be poorer without, or nothing:
// one of an ordinary length may always be kept once more.
func (d *Decoder) RepeatText(s string) bool {
	const ordinary = 256 // bytes
	return len(s) <= ordinary || d.Repeat(len(s))
}

// Find reads members of the object that was entered until it comes to one by that
// name, a string, and returns it; then it goes back. For members that say how to
// read the others.
func (d *Decoder) Find(name string) (value string) {
	fault := d.Fault()
	m := d.Mark()
	for d.More() {
		if d.Key() == name && d.Kind() == jsonscan.String {
			d.ClearFault()
			if value = d.Reader.Text(); d.Fault() != jsonscan.NoFault {
				value = ""
			}
			break
		}
		d.Skip()
	}
	if d.Err() == nil {
		d.Rewind(m)
	}
	if fault == jsonscan.NoFault {
		d.ClearFault()
	}
	return value
}
