// Package wire reads what the SDKs of other vendors send: JSON whose fields have
// one type here and another there, an array of events somewhere in it, and flat
// properties that become attributes. A protocol says what its fields mean; what
// is the same for all of them is done here: one bad event costs itself only, what
// cannot be read is kept with a reason, and memory stays bounded.
package wire

import (
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
	"unsafe"

	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// Decoder reads one body into one batch. It is a jsonscan.Reader of the body with
// the event being read beside it. Strings it returns alias the body, as those of a
// batch may. It is not safe for concurrent use.
//
//	d := wire.New(req.Body, req.MaxEvents, b)
//	err := d.Document(func() error {
//		for d.More() {
//			switch d.Key() {
//			case "events":
//				if err := d.Each(event); err != nil {
//					return err
//				}
//			default:
//				d.Ignore()
//			}
//		}
//		return nil
//	}, event)
type Decoder struct {
	jsonscan.Reader
	Batch *schema.Batch

	// Attrs are the attributes of the event being read, in any order; of several
	// with one key the last counts. Each empties them before an event.
	Attrs []schema.Attribute
	// Within is the field that is named where an attribute is at fault; empty:
	// "attributes". Each empties it before an event.
	Within string

	// Most is how many events there may be where elements are noise for the most part,
	// of which New allows more; 0: as many as elements.
	Most int

	body      []byte
	maxEvents int
	sent      int // elements seen by Each, noise included

	start   int    // where the event being read begins
	seen    uint32 // see Once
	tooMany bool   // attributes
	// Why the event is rejected; the first reason counts.
	code           schema.Code
	field, message string

	paths    map[string]string // see Path
	repeated int               // see Repeat
}

// New returns a Decoder of body that fills b. More elements than maxEvents are a
// schema.BodyError.
func New(body []byte, maxEvents int, b *schema.Batch) *Decoder {
	d := &Decoder{Batch: b, body: body, maxEvents: maxEvents}
	d.Reset(body, schema.MaxDepth)
	return d
}

// Document reads the whole body: an object, whose members envelope reads after it
// was entered, or an array of events, each read by event as Each does. A protocol
// without bare arrays has a nil event; one without an envelope a nil envelope. A
// body of anything else, without any event, or with something after it, is a
// *schema.BodyError.
func (d *Decoder) Document(envelope func() error, event func()) error {
	var err error
	switch blank := len(strings.Trim(String(d.body), " \t\r\n")) == 0; {
	case blank:
		return Empty("the body is empty")
	case d.Kind() == jsonscan.Array && event != nil:
		err = d.Each(event)
	case d.Kind() == jsonscan.Object && envelope != nil:
		d.Reader.Object()
		err = envelope()
	case !d.Null():
		d.Skip()
		if d.End() == nil {
			return Malformed("the body is not what this endpoint takes")
		}
	}
	if err != nil {
		return err
	}
	if err := d.End(); err != nil {
		return SyntaxError(err)
	}
	if d.sent == 0 {
		return Empty("there is no event in the body")
	}
	return nil
}

// Each reads the array that comes next, an event for each of its elements: it
// enters the element, which read walks (for d.More()) and turns into a call of Add
// or Drop, once or several times; without one, the element counts as dropped.
// Elements that are no objects are rejected. Null is an empty array; anything else
// is a *schema.BodyError. A syntax error is left to Document.
func (d *Decoder) Each(read func()) error {
	if d.Null() {
		return nil
	}
	if k := d.Kind(); k != jsonscan.Array {
		if k == jsonscan.None {
			return nil
		}
		return Malformed("the events are not an array")
	}
	d.Array()
	for d.More() {
		if err := d.One(read); err != nil {
			return err
		}
	}
	return nil
}

// One reads the next value as one event, as Each does its elements.
func (d *Decoder) One(read func()) error {
	if d.sent++; d.sent > d.maxEvents || d.Most > 0 && int(d.Batch.Count) > d.Most {
		return d.TooMany()
	}
	d.event(read)
	return nil
}

// TooMany is the error of a body with more events than there may be.
func (d *Decoder) TooMany() error {
	most := d.maxEvents
	if d.Most > 0 {
		most = d.Most
	}
	return &schema.BodyError{Code: schema.BodyTooManyEvents, Detail: "more than " + strconv.Itoa(most) + " events"}
}

func (d *Decoder) event(read func()) {
	if d.Kind() != jsonscan.Object {
		d.begin()
		if raw := d.Skip(); d.Err() == nil {
			d.Batch.Append()
			d.Batch.Reject(schema.CodeInvalidType, "", "an event must be an object", raw)
		}
		return
	}
	d.begin()
	had := d.Batch.Count + d.Batch.Dropped
	d.Reader.Object()
	read()
	if d.Err() == nil && d.Batch.Count+d.Batch.Dropped == had {
		d.Batch.Dropped++
	}
}

// Whole reads the body, an object, as one event, for endpoints that take one
// event a request. It is used in place of Document.
func (d *Decoder) Whole(read func()) error {
	switch blank := len(strings.Trim(String(d.body), " \t\r\n")) == 0; {
	case blank:
		return Empty("the body is empty")
	case d.Null():
	case d.Kind() != jsonscan.Object:
		d.Skip()
		if d.End() == nil {
			return Malformed("want one event, an object")
		}
	default:
		if err := d.One(read); err != nil {
			return err
		}
	}
	if err := d.End(); err != nil {
		return SyntaxError(err)
	}
	if d.sent == 0 {
		return Empty("there is no event in the body")
	}
	return nil
}

// begin goes to an event, whose Kind was asked for.
func (d *Decoder) begin() {
	d.start = d.Offset()
	d.ClearFault()
	d.Attrs, d.tooMany = d.Attrs[:0], false
	d.seen, d.Within = 0, ""
	d.code, d.field, d.message = "", "", ""
}

// Add adds the event to the batch, with Attrs, or rejects it where something was
// wrong with it. It is called when the event has been read to its end; called
// again it adds another event of the same bytes. After a syntax error it does
// nothing: the body as a whole is refused.
func (d *Decoder) Add(e *schema.Event) {
	if d.Err() != nil {
		return
	}
	raw := d.Since(d.start)
	ev := d.Batch.Append()
	if d.tooMany {
		d.Fail(schema.CodeTooMany, "attributes", "more than "+strconv.Itoa(schema.MaxAttributes)+" attributes")
	}
	if d.code != "" {
		d.Batch.Reject(d.code, d.field, d.message, raw)
		return
	}
	index := ev.Index
	*ev = *e
	ev.Index = index
	d.Batch.SetAttributes(ev, d.Attrs)
	d.Batch.Check(raw)
}

// Drop counts the event as noise: nothing of it is kept.
func (d *Decoder) Drop() { d.Batch.Dropped++ }

// Fail has the event rejected. The first reason counts. The message holds nothing
// of the sender's.
func (d *Decoder) Fail(code schema.Code, field, message string) {
	if d.code == "" {
		d.code, d.field, d.message = code, field, message
	}
}

// Failed reports whether the event is going to be rejected.
func (d *Decoder) Failed() bool { return d.code != "" }

// Once notes that a field (a bit of the protocol's own) was there, and has the
// event rejected the second time.
func (d *Decoder) Once(bit uint32, field string) {
	if d.seen&bit != 0 {
		d.Fail(schema.CodeDuplicateField, field, field+" comes twice")
	}
	d.seen |= bit
}

// Settle turns a fault in what was just read into a reason to reject the event.
// The readers below do so themselves.
func (d *Decoder) Settle(field string) {
	f := d.Fault()
	if f == jsonscan.NoFault {
		return
	}
	d.ClearFault()
	switch f {
	case jsonscan.WrongType:
		d.Fail(schema.CodeInvalidType, field, field+" has the wrong type")
	case jsonscan.NotFinite, jsonscan.OutOfRange:
		d.Fail(schema.CodeInvalidNumber, field, field+" has "+f.String())
	default:
		d.Fail(schema.CodeInvalidString, field, "a string with "+f.String())
	}
}

// SDK is the name of an SDK and its version as the sdk column has them; empty
// where the name is, or where they are too long or no text.
func SDK(name, version string) string {
	if name == "" {
		return ""
	}
	if version != "" {
		name += "/" + version
	}
	// Beyond that it is not the name of an SDK.
	const most = 256
	if len(name) > most || !schema.ValidText(name) {
		return ""
	}
	return name
}

// First is the first of the texts that is not empty.
func First(ss ...string) string {
	for _, s := range ss {
		if s != "" {
			return s
		}
	}
	return ""
}

// Malformed is the error of a body that cannot be read as a whole.
func Malformed(detail string) error {
	return &schema.BodyError{Code: schema.BodyMalformed, Detail: detail}
}

// Empty is the error of a body without an event.
func Empty(detail string) error {
	return &schema.BodyError{Code: schema.BodyEmpty, Detail: detail}
}

// SyntaxError makes a reader's error one of the body as a whole.
func SyntaxError(err error) error {
	code := schema.BodyMalformed
	if e := (*jsonscan.Error)(nil); errors.As(err, &e) && e.TooDeep {
		code = schema.BodyTooDeep
	}
	return &schema.BodyError{Code: code, Detail: "not JSON: " + err.Error()}
}

// Member finds a string or number in a body that is an object, or an array of
// them, by the names on the way to it: of an array the first element counts. It is
// for keys, which have to be known before the body is read; "" means that there is
// none. It stops at what it looks for, so that what comes after is not looked at.
func Member(body []byte, names ...string) string {
	var r jsonscan.Reader
	r.Reset(body, schema.MaxDepth)
	if !find(&r, names) {
		return ""
	}
	k, s := r.Scalar()
	if r.Fault() != jsonscan.NoFault || r.Err() != nil || k != jsonscan.String && k != jsonscan.Number {
		return ""
	}
	return strings.Clone(s)
}

// Has reports whether there is such a member, of whatever type.
func Has(body []byte, names ...string) bool {
	var r jsonscan.Reader
	r.Reset(body, schema.MaxDepth)
	return find(&r, names) && r.Kind() != jsonscan.None
}

func find(r *jsonscan.Reader, names []string) bool {
	if len(names) == 0 {
		return true
	}
	if r.Kind() == jsonscan.Array && (!r.Array() || !r.More()) {
		return false
	}
	if r.Kind() != jsonscan.Object || !r.Object() {
		return false
	}
	for r.More() {
		if r.Key() == names[0] {
			r.ClearFault()
			return find(r, names[1:])
		}
		r.Skip()
	}
	return false
}

// String is b as a string that shares its memory, as strings of a batch may.
func String(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// Latin1 makes UTF-8 of a text of which each byte is one character: what btoa
// takes in a browser.
func Latin1(b []byte) []byte {
	high := 0
	for _, c := range b {
		if c >= utf8.RuneSelf {
			high++
		}
	}
	if high == 0 {
		return b
	}
	out := make([]byte, 0, len(b)+high)
	for _, c := range b {
		out = utf8.AppendRune(out, rune(c))
	}
	return out
}
