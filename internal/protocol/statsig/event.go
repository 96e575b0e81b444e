package statsig

import (
	"unsafe"

	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// What SDKs call their own events: everything with this prefix.
const internalPrefix = "statsig::"

const (
	gateExposure   = internalPrefix + "gate_exposure"
	configExposure = internalPrefix + "config_exposure"
	layerExposure  = internalPrefix + "layer_exposure"
)

// noise reports whether an event is about the SDK itself: no person did or saw
// anything. Such events are counted and dropped. The other internal ones (there
// is statsig::identify, and later versions may bring more) are kept like a
// customer's own, unless they have no unit: see finish.
func noise(name string) bool {
	switch name {
	case internalPrefix + "diagnostics",
		internalPrefix + "log_line",
		internalPrefix + "non_exposed_checks",
		internalPrefix + "default_value_type_mismatch",
		internalPrefix + "session_recording": // of a screen, in megabyte slices; for a player
		return true
	}
	return false
}

// stableIDType is the unit type of a device's own id: the name it has among
// user.customIDs, where SDKs put it that are told to.
const stableIDType = "stableID"

// Attributes that do not come from the metadata under their own name.
const (
	attrLayer     = "layer"
	attrParameter = "parameter"
	attrSecondary = "secondary_exposures"
	attrValue     = "value" // of a custom event, where it is no number
)

// Fields of an event of which each may come once.
const (
	seenName = 1 << iota
	seenUser
	seenTime
	seenValue
	seenMetadata
	seenSecondary
	seenStatsigMetadata
	seenUserID
	seenCustomIDs
)

// draft is one event while it is read: members come in any order, and only the
// name says what the metadata mean. Its attributes gather in decoder.attrs.
type draft struct {
	seen      uint16
	name      string
	userID    string
	customKey string // of user.customIDs, the first by name
	customID  string
	hasTime   bool
	time      int64
	value     string // as text
	number    bool   // value came as a number
	secondary string // JSON text

	// Why the event is rejected; the first reason counts.
	code           schema.Code
	field, message string
}

func (e *draft) bad(code schema.Code, field, message string) {
	if e.code == "" {
		e.code, e.field, e.message = code, field, message
	}
}

// once notes a field, and rejects the event at its second time.
func (e *draft) once(bit uint16, field string) {
	if e.seen&bit != 0 {
		e.bad(schema.CodeDuplicateField, field, field+" comes twice")
	}
	e.seen |= bit
}

// event reads one element of the event list.
func (d *decoder) event() {
	r := &d.r
	if r.Kind() != jsonscan.Object {
		if raw := r.Skip(); r.Err() == nil {
			d.b.Append()
			d.b.Reject(schema.CodeInvalidType, "", "an event must be an object", raw)
		}
		return
	}
	start := r.Offset() // Kind has gone to it
	r.ClearFault()
	d.attrs, d.nested, d.tooMany = d.attrs[:0], d.nested[:0], false
	var e draft
	r.Object()
	for r.More() {
		field := ""
		switch r.Key() {
		case "eventName":
			field = "name"
			e.once(seenName, field)
			if !r.Null() {
				e.name = r.Text()
			}
		case "time":
			field = "time"
			e.once(seenTime, field)
			d.readTime(&e)
		case "user":
			field = "user"
			e.once(seenUser, field)
			d.readUser(&e)
		case "metadata":
			field = "metadata"
			e.once(seenMetadata, field)
			d.flat("", true)
		case "value":
			field = "value"
			e.once(seenValue, field)
			d.readValue(&e)
		case "secondaryExposures":
			field = "secondaryExposures"
			e.once(seenSecondary, field)
			d.readSecondary(&e)
		case "statsigMetadata":
			field = "statsigMetadata"
			e.once(seenStatsigMetadata, field)
			d.flat("statsigMetadata.", false)
		default:
			d.skip()
		}
		d.faultOf(&e, field)
	}
	if r.Err() == nil {
		d.finish(&e, r.Since(start))
	}
}

// faultOf turns a fault in what was just read into a reason to reject the event.
func (d *decoder) faultOf(e *draft, field string) {
	f := d.r.Fault()
	if f == jsonscan.NoFault {
		return
	}
	d.r.ClearFault()
	switch f {
	case jsonscan.WrongType:
		e.bad(schema.CodeInvalidType, field, field+" has the wrong type")
	case jsonscan.NotFinite, jsonscan.OutOfRange:
		e.bad(schema.CodeInvalidNumber, field, field+" has "+f.String())
	default:
		e.bad(schema.CodeInvalidString, field, "a string with "+f.String())
	}
}

// skip reads past a value nobody wants. What is wrong inside does not matter.
func (d *decoder) skip() {
	had := d.r.Fault()
	d.r.Skip()
	if had == jsonscan.NoFault {
		d.r.ClearFault()
	}
}

// readTime reads milliseconds since the epoch, as a number or as text.
func (d *decoder) readTime(e *draft) {
	k, s := d.r.Scalar()
	if k != jsonscan.Number && k != jsonscan.String || s == "" {
		if k == jsonscan.Bool {
			e.bad(schema.CodeInvalidType, "time", "time has the wrong type")
		}
		return // null, "", or a fault, which is noted
	}
	us, ok := parseMillis(s)
	if !ok {
		e.bad(schema.CodeInvalidTime, "time", "time must be milliseconds since the Unix epoch")
		return
	}
	e.hasTime, e.time = true, us
}

// readUser reads who it was and, as attributes, what may be told about them. An
// e-mail address, an IP address, the user agent and private attributes are never
// read.
func (d *decoder) readUser(e *draft) {
	r := &d.r
	if !d.object() {
		return
	}
	for r.More() {
		switch r.Key() {
		case "userID":
			e.once(seenUserID, "unit_id")
			e.userID = d.id(e)
		case "customIDs":
			e.once(seenCustomIDs, "unit_id")
			d.readCustomIDs(e)
		case "country":
			d.flatValue("user.country", false)
		case "locale":
			d.flatValue("user.locale", false)
		case "appVersion":
			d.flatValue("user.appVersion", false)
		case "custom":
			d.flat("user.custom.", false)
		case "analyticsOnlyMetadata":
			d.flat("user.analyticsOnlyMetadata.", false)
		case "statsigEnvironment":
			d.flat("user.statsigEnvironment.", false)
		default:
			d.skip()
		}
	}
}

// id reads an id: text, or a number as its text; null is as good as "".
func (d *decoder) id(e *draft) string {
	k, s := d.r.Scalar()
	if f := d.r.Fault(); f == jsonscan.WrongType || k == jsonscan.Bool {
		e.bad(schema.CodeInvalidType, "unit_id", "an id must be a string or a number")
		return ""
	}
	d.faultOf(e, "unit_id")
	return s
}

// readCustomIDs keeps every id as an attribute, and remembers the first by name
// in case it has to be the unit.
func (d *decoder) readCustomIDs(e *draft) {
	r := &d.r
	if !d.object() {
		return
	}
	for r.More() {
		name := r.Key()
		id := d.id(e)
		if id == "" || name == "" { // without a name it would pass for a user's
			continue
		}
		if e.customID == "" || name < e.customKey {
			e.customKey, e.customID = name, id
		}
		d.attr(d.path("user.customIDs.", name), id)
	}
}

// readValue reads the value of an event as text.
func (d *decoder) readValue(e *draft) {
	switch d.r.Kind() {
	case jsonscan.Array, jsonscan.Object:
		e.value = text(d.r.Skip())
	default:
		var k jsonscan.Kind
		k, e.value = d.r.Scalar()
		e.number = k == jsonscan.Number
	}
}

// readSecondary keeps the gates that were evaluated on the way, if there are any.
func (d *decoder) readSecondary(e *draft) {
	r := &d.r
	if r.Null() {
		return
	}
	m := r.Mark()
	if !r.Array() || !r.More() {
		return
	}
	r.Rewind(m)
	// One so long that it could not be kept must not cost the exposure.
	if raw := r.Skip(); len(raw) <= schema.MaxAttributeValue {
		e.secondary = text(raw)
	}
}

// object enters an object. Null, and the empty array that PHP writes for a map
// without members, are empty objects.
func (d *decoder) object() bool {
	r := &d.r
	switch r.Kind() {
	case jsonscan.Null:
		r.Null()
		return false
	case jsonscan.Array:
		m := r.Mark()
		if r.Array() && !r.More() {
			return false
		}
		r.Rewind(m)
	}
	return r.Object()
}

// flat reads an object (or null) and keeps its members as attributes, under
// prefix and their name. Of the metadata, which are the customer's own (metadata
// is set), members that are no scalars go to decoder.nested as JSON text; in what
// SDKs put together, those say nothing, nor does an empty string.
func (d *decoder) flat(prefix string, metadata bool) {
	if !d.object() {
		return
	}
	for d.r.More() {
		d.flatValue(d.path(prefix, d.r.Key()), metadata)
	}
}

// flatValue reads a value and keeps it as an attribute. A null says nothing.
func (d *decoder) flatValue(name string, metadata bool) {
	switch d.r.Kind() {
	case jsonscan.Null:
		d.r.Null()
	case jsonscan.Array, jsonscan.Object:
		if metadata {
			d.put(&d.nested, name, text(d.r.Skip()))
		} else {
			d.skip()
		}
	default:
		if _, s := d.r.Scalar(); s != "" || metadata {
			d.attr(name, s)
		}
	}
}

func (d *decoder) attr(name, value string) { d.put(&d.attrs, name, value) }

// maxMembers is how many attributes of one event are looked at: as many as it may
// have, and room for those that come twice or are not kept.
const maxMembers = 2 * schema.MaxAttributes

// put adds to a list of attributes, unless the event has far too many anyway: its
// memory must not grow with what is going to be rejected.
func (d *decoder) put(list *[]schema.Attribute, name, value string) {
	if len(d.attrs)+len(d.nested) >= maxMembers {
		d.tooMany = true
		return
	}
	*list = append(*list, schema.Attribute{Key: name, Value: value})
}

// maxPaths bounds the memory of path; a body with more names pays for each anew.
const maxPaths = 256

// path is prefix + name. Events of one body have much the same names, so they
// share the text.
func (d *decoder) path(prefix, name string) string {
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

// parseMillis reads milliseconds since the epoch as microseconds.
func parseMillis(s string) (int64, bool) {
	if s == "" {
		return 0, false
	}
	return schema.ParseEpochMillis(s)
}

// text is b as a string that shares its memory, as strings of a batch may.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
