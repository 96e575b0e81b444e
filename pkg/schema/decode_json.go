package schema

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"sluice/pkg/jsonscan"
)

// DecodeJSON fills b, which comes empty, from a JSON array of events or from an
// object with such an array as "events", and optionally "sent_at" and "sdk";
// what else that object has is ignored. def is the kind of events that name
// none, maxEvents (at least 1) how many there may be.
//
// An event that does not pass costs only itself: it goes to Rejected. The error,
// always a *BodyError, is for what is wrong with the body as a whole: broken
// syntax, nesting deeper than MaxDepth, no event, too many events. b is then in
// no useful state.
//
// Strings without escapes, and the bytes of rejected events, alias body.
func DecodeJSON(body []byte, def Kind, maxEvents int, b *Batch) error {
	d := b.jsonDecoder(def, maxEvents)
	defer d.release()
	r := &d.r
	r.Reset(body, MaxDepth)
	if len(bytes.TrimLeft(body, " \t\r\n")) == 0 {
		return &BodyError{BodyEmpty, "the body is empty"}
	}
	b.expect(len(body), maxEvents)
	var err error
	switch r.Kind() {
	case jsonscan.Array:
		err = d.events()
	case jsonscan.Object:
		err = d.envelope()
	case jsonscan.Null:
		r.Null()
	default:
		r.Skip()
		if r.End() == nil {
			err = &BodyError{BodyMalformed, "want an array of events, or an object with the array `events`"}
		}
	}
	if err != nil {
		return err
	}
	if err := r.End(); err != nil {
		return syntaxError(err)
	}
	if b.Count == 0 {
		return &BodyError{BodyEmpty, "there is no event in the body"}
	}
	return nil
}

// DecodeNDJSON fills b, which comes empty, from one event a line. Blank lines do
// not count. A line that is not JSON costs only itself (CodeMalformed), unless
// there is no line that is: then the body as a whole is malformed. For the rest
// it is like DecodeJSON.
func DecodeNDJSON(body []byte, def Kind, maxEvents int, b *Batch) error {
	d := b.jsonDecoder(def, maxEvents)
	defer d.release()
	b.expect(len(body), maxEvents)
	readable := false
	for len(body) > 0 {
		line := body
		if i := bytes.IndexByte(body, '\n'); i >= 0 {
			line, body = body[:i], body[i+1:]
		} else {
			body = nil
		}
		line = bytes.Trim(line, " \t\r")
		if len(line) == 0 {
			continue
		}
		if int(b.Count) >= maxEvents {
			return tooManyEvents(maxEvents)
		}
		d.r.Reset(line, MaxDepth)
		d.event()
		if err := d.r.End(); err != nil {
			d.code, d.name, d.message = CodeMalformed, "", "not JSON: "+err.Error()
		} else {
			readable = true
		}
		d.finish(line)
	}
	switch {
	case b.Count == 0:
		return &BodyError{BodyEmpty, "there is no event in the body"}
	case !readable:
		return &BodyError{BodyMalformed, "no line is JSON; the first: " + b.Rejected[0].Message}
	}
	return nil
}

// expect makes room for as many events as a body of that size may well hold, in
// about the memory that the body takes.
func (b *Batch) expect(size, maxEvents int) {
	if cap(b.Events) == 0 {
		b.Events = make([]Event, 0, max(1, min(size/200, maxEvents)))
	}
}

func tooManyEvents(most int) *BodyError {
	return &BodyError{BodyTooManyEvents, "more than " + strconv.Itoa(most) + " events"}
}

func syntaxError(err error) *BodyError {
	if e, ok := err.(*jsonscan.Error); ok && e.TooDeep {
		return &BodyError{BodyTooDeep, err.Error()}
	}
	return &BodyError{BodyMalformed, "not JSON: " + err.Error()}
}

type jsonDecoder struct {
	r         jsonscan.Reader
	b         *Batch
	def       Kind
	maxEvents int

	// The first thing wrong with the present event; no code: nothing yet.
	code          Code
	name, message string

	attrs []Attribute // of the present event
	few   [16]Attribute

	names names
}

// jsonDecoder returns the batch's decoder, which it has to itself until release.
func (b *Batch) jsonDecoder(def Kind, maxEvents int) *jsonDecoder {
	d := b.json
	if d == nil {
		d = new(jsonDecoder)
	}
	b.json = nil
	d.b, d.def, d.maxEvents, d.attrs = b, def, maxEvents, d.few[:0]
	return d
}

// release keeps the decoder for the batch's next use, without a reference to anything.
func (d *jsonDecoder) release() {
	b := d.b
	*d = jsonDecoder{}
	b.json = d
}

// envelope reads {"events":[…],"sent_at":…,"sdk":{…}}.
func (d *jsonDecoder) envelope() error {
	r := &d.r
	var seen [3]bool
	twice := func(i int) bool {
		was := seen[i]
		seen[i] = true
		return was
	}
	r.Object()
	for r.More() {
		again := false
		switch r.Key() {
		case "events":
			if again = twice(0); again || r.Null() {
				break
			}
			if k := r.Kind(); k != jsonscan.Array && k != jsonscan.None {
				return &BodyError{BodyMalformed, "events is not an array"}
			}
			if err := d.events(); err != nil {
				return err
			}
			r.ClearFault() // the last event's
		case "sent_at":
			if again = twice(1); !again {
				d.sentAt()
			}
		case "sdk":
			if again = twice(2); !again {
				d.sdk()
			}
		default:
			r.Skip()
		}
		if again {
			return &BodyError{BodyMalformed, "events, sent_at or sdk is there twice"}
		}
		// No event is to blame for these, and a text with them is not JSON.
		if f := r.Fault(); f == jsonscan.InvalidUTF8 || f == jsonscan.NotFinite {
			return &BodyError{BodyMalformed, "not JSON: " + f.String() + " outside the events"}
		}
		r.ClearFault()
	}
	return nil
}

// sentAt reads the client's clock. A wrong one never costs its events.
func (d *jsonDecoder) sentAt() {
	r := &d.r
	us, ok := int64(0), false
	switch r.Kind() {
	case jsonscan.String:
		us, ok = ParseTime(r.Text())
	case jsonscan.Number:
		us, ok = ParseEpochMillis(r.Number())
	default:
		r.Skip()
	}
	if ok && us > 0 {
		d.b.SentAt = us
	}
}

func (d *jsonDecoder) sdk() {
	r := &d.r
	if r.Kind() != jsonscan.Object {
		r.Skip()
		return
	}
	var name, version string
	r.Object()
	for r.More() {
		key := r.Key()
		switch {
		case key == "name" && r.Kind() == jsonscan.String:
			name = r.Text()
		case key == "version" && r.Kind() == jsonscan.String:
			version = r.Text()
		default:
			r.Skip()
		}
	}
	if r.Fault() == jsonscan.NoFault {
		d.b.SDK = joinSDK(name, version)
	}
}

// events reads the array of events.
func (d *jsonDecoder) events() error {
	r := &d.r
	r.Array()
	for r.More() {
		if int(d.b.Count) >= d.maxEvents {
			return tooManyEvents(d.maxEvents)
		}
		raw := d.event()
		if r.Err() != nil {
			return nil // the caller looks
		}
		d.finish(raw)
	}
	return nil
}

// finish lets the event that was read last pass, or lists it as rejected.
func (d *jsonDecoder) finish(raw []byte) {
	if d.code != "" {
		d.b.Reject(d.code, d.name, d.message, raw)
		return
	}
	d.b.Check(raw)
}

// event appends an event and reads the next value into it. It always reads the
// whole value, whose bytes it returns; what is wrong with it is in d.code.
func (d *jsonDecoder) event() []byte {
	r, e := &d.r, d.b.Append()
	d.code = ""
	e.Kind = d.def
	r.ClearFault()
	kind, start := r.Kind(), r.Mark()
	if kind != jsonscan.Object {
		d.wrong(CodeInvalidType, fieldNone, msgNotObject)
		return r.Skip()
	}
	from := r.Offset()
	seen := uint32(0)
	r.Object()
	for i := 0; d.code == "" && r.More(); i++ {
		f := d.field(i)
		if d.code != "" {
			continue
		}
		if f == fieldNone {
			r.Skip()
			d.faults(fieldNone)
			continue
		}
		if seen&(1<<f) != 0 {
			d.wrong(CodeDuplicateField, f, fieldNames[f]+" is there twice")
			continue
		}
		seen |= 1 << f
		k := r.Kind()
		if k == jsonscan.Null { // null is as good as absent
			r.Null()
			continue
		}
		d.member(e, f, k)
		if r.Fault() != jsonscan.NoFault {
			d.faults(f)
		}
	}
	if d.code != "" {
		// What has been read of it does not matter any more, but its end does.
		r.Rewind(start)
		return r.Skip()
	}
	return r.Since(from)
}

// member reads the value of one field, of kind k, into e.
func (d *jsonDecoder) member(e *Event, f field, k jsonscan.Kind) {
	r := &d.r
	switch f {
	case fieldValue:
		if k == jsonscan.Number {
			e.Value, e.HasValue = r.Float(), true
		} else {
			d.wrongType(f, "a number")
		}
		return
	case fieldAttributes:
		if k == jsonscan.Object {
			d.attributes(e)
		} else {
			d.wrongType(f, "an object")
		}
		return
	case fieldTime:
		switch k {
		case jsonscan.String:
			e.Time, e.HasTime = ParseTime(r.Text())
		case jsonscan.Number:
			e.Time, e.HasTime = ParseEpochMillis(r.Number())
		default:
			d.wrongType(f, "a string or a number")
			return
		}
		if !e.HasTime && r.Fault() == jsonscan.NoFault {
			d.wrong(CodeInvalidTime, f, msgTime)
		}
		return
	}
	if k != jsonscan.String {
		d.wrongType(f, "a string")
		return
	}
	s := r.Text()
	switch f {
	case fieldExperiment:
		e.Experiment = s
	case fieldVariant:
		e.Variant = s
	case fieldUnitID:
		e.UnitID = s
	case fieldUnitType:
		e.UnitType = s
	case fieldRule:
		e.Rule = s
	case fieldReason:
		e.Reason = s
	case fieldEventID:
		e.ClientID = s
	case fieldName:
		e.Name = s
	case fieldKind:
		switch s {
		case "exposure":
			e.Kind = KindExposure
		case "event":
			e.Kind = KindEvent
		default:
			if r.Fault() == jsonscan.NoFault {
				d.wrong(CodeInvalidKind, f, msgKind)
			}
		}
	}
}

// attributes reads a flat object. The list is kept in the order of the keys, so
// it can never be longer than it may be.
func (d *jsonDecoder) attributes(e *Event) {
	r := &d.r
	list := d.attrs[:0]
	r.Object()
	for i := 0; r.More(); i++ {
		key := d.attribute(i)
		kind := r.Kind()
		if kind >= jsonscan.Array {
			d.wrong(CodeInvalidType, fieldAttributes, msgNested)
			return
		}
		_, value := r.Scalar()
		if r.Fault() != jsonscan.NoFault {
			return
		}
		if list = putAttribute(list, key, value, kind == jsonscan.Null); len(list) > MaxAttributes {
			d.wrong(CodeTooMany, fieldAttributes, msgTooMany)
			return
		}
	}
	d.attrs = list
	d.b.keep(e, list)
}

// putAttribute adds to a list that is sorted by key. A key that is there already
// is overwritten, or removed.
func putAttribute(list []Attribute, key, value string, remove bool) []Attribute {
	if n := len(list); n == 0 || list[n-1].Key < key { // as most encoders write them
		if !remove {
			list = append(list, Attribute{key, value})
		}
		return list
	}
	i, found := slices.BinarySearchFunc(list, key, func(a Attribute, key string) int { return strings.Compare(a.Key, key) })
	switch {
	case remove && found:
		return slices.Delete(list, i, i+1)
	case remove:
		return list
	case found:
		list[i].Value = value
		return list
	}
	return slices.Insert(list, i, Attribute{key, value})
}

func (d *jsonDecoder) wrong(code Code, f field, message string) {
	if d.code == "" {
		d.code, d.name, d.message = code, fieldNames[f], message
	}
}

func (d *jsonDecoder) wrongType(f field, want string) {
	d.wrong(CodeInvalidType, f, fieldNames[f]+" must be "+want)
}

// faults makes the reader's fault, if there is one, that of the event.
func (d *jsonDecoder) faults(f field) {
	fault := d.r.Fault()
	if fault == jsonscan.NoFault {
		return
	}
	where := fieldNames[f]
	if f == fieldNone {
		where = "a field that is not known"
	}
	switch fault {
	case jsonscan.NotFinite, jsonscan.OutOfRange:
		d.wrong(CodeInvalidNumber, f, where+" has "+fault.String())
	case jsonscan.WrongType:
		d.wrong(CodeInvalidType, f, where+" has "+fault.String())
	default:
		d.wrong(CodeInvalidString, f, where+" has "+fault.String())
	}
}

// joinSDK writes a name and a version as one text, which splitSDK takes apart.
func joinSDK(name, version string) string {
	if version == "" {
		return name
	}
	return name + "/" + version
}

// splitSDK takes apart what joinSDK wrote: names may hold a slash
// ("@statsig/js-client"), versions do not.
func splitSDK(s string) (name, version string) {
	if i := strings.LastIndexByte(s, '/'); i >= 0 && i+1 < len(s) {
		return s[:i], s[i+1:]
	}
	return s, ""
}
