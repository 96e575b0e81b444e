package segment

import (
	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// viewed is the track call that is an exposure, as Segment's own specification of
// A/B tests has it.
const viewed = "Experiment Viewed"

// anonymousType is the unit type of visitors without a user id.
const anonymousType = "anonymous"

// Fields of a call of which each may come once.
const (
	seenType = 1 << iota
	seenEvent
	seenUser
	seenAnonymous
	seenMessage
	seenTime
	seenProperties
	seenTraits
)

// draft is one call while it is read: members come in any order, and only the type
// says what they mean. Properties gather in decoder.Attrs, traits in decoder.traits.
type draft struct {
	kind, event      string
	name, category   string // of a page or screen
	user, anonymous  string
	message          string
	group, previous  string
	time, original   int64
	hasTime, hasOrig bool
	nested           bool // an id of an experiment or variation is an array or object
}

// event reads one call.
func (d *decoder) event() {
	d.traits = d.traits[:0]
	var e draft
	for d.More() {
		switch d.Key() {
		case "type":
			d.Once(seenType, "type")
			e.kind = d.Text("type")
		case "event":
			d.Once(seenEvent, "name")
			e.event = d.Text("name")
		case "name":
			e.name = d.Loose()
		case "category":
			e.category = d.Loose()
		case "userId":
			d.Once(seenUser, "unit_id")
			e.user = d.ID("unit_id")
		case "anonymousId":
			d.Once(seenAnonymous, "unit_id")
			e.anonymous = d.ID("unit_id")
		case "messageId":
			d.Once(seenMessage, "event_id")
			e.message = d.Loose()
		case "timestamp":
			d.Once(seenTime, "time")
			e.time, e.hasTime = d.ISOTime("time")
		case "originalTimestamp":
			e.original, e.hasOrig = wire.ParseISO(d.Loose())
		case "properties":
			d.Once(seenProperties, "properties")
			d.Within = "properties"
			d.properties(&e)
			d.Settle("properties")
		case "traits":
			d.Once(seenTraits, "traits")
			d.Within = "traits"
			d.readTraits()
			d.Settle("traits")
		case "groupId":
			e.group = d.Loose()
		case "previousId":
			e.previous = d.Loose()
		case "context":
			d.context()
		case "sentAt":
			d.sentAt = wire.First(d.sentAt, d.Loose())
		default:
			d.Ignore()
		}
	}
	d.finish(&e)
}

// properties keeps the customer's own properties as attributes.
func (d *decoder) properties(e *draft) {
	if !d.Object() {
		return
	}
	for d.More() {
		name := d.Key()
		if wire.Contact(name) {
			d.Ignore()
			continue
		}
		if k := d.Kind(); k == jsonscan.Array || k == jsonscan.Object {
			switch name {
			case "experiment_id", "experimentId", "variation_id", "variationId":
				e.nested = true
			}
		}
		d.Property(name)
	}
}

// readTraits keeps the traits of a person or group, without those that say who it
// is. Nested ones, such as an address, are left out.
func (d *decoder) readTraits() {
	if !d.Object() {
		return
	}
	properties := d.Attrs
	d.Attrs = d.traits
	for d.More() {
		name := d.Key()
		if wire.Contact(name) {
			d.Ignore()
			continue
		}
		d.Member(name, wire.LeaveOut)
	}
	d.traits, d.Attrs = d.Attrs, properties
}

// finish makes an event of the draft.
func (d *decoder) finish(e *draft) {
	ev := schema.Event{Kind: schema.KindEvent, ClientID: e.message, HasTime: e.hasTime, Time: e.time}
	if !e.hasTime {
		ev.HasTime, ev.Time = e.hasOrig, e.original
	}
	switch {
	case e.user != "":
		ev.UnitType, ev.UnitID = schema.DefaultUnitType, e.user
	case e.anonymous != "":
		ev.UnitType, ev.UnitID = anonymousType, e.anonymous
	}
	kind := wire.First(e.kind, d.single)
	if kind == "" && e.event != "" { // nothing but a track call has an event
		kind = typeTrack
	}
	ev.Name = kind
	switch kind {
	case typeTrack:
		ev.Name = e.event
		if e.event == viewed {
			d.exposure(e, &ev)
		} else {
			d.value(&ev)
		}
	case typePage, typeScreen:
		d.putSome("name", e.name)
		d.putSome("category", e.category)
	case typeIdentify:
		for _, a := range d.traits {
			if !wire.Identity(a.Key) {
				d.Put(a.Key, a.Value)
			}
		}
	case typeGroup:
		for _, a := range d.traits {
			d.Put(a.Key, a.Value)
		}
		d.putSome("group_id", e.group)
	case typeAlias:
		d.putSome("previous_id", e.previous)
	default:
		if ev.Name = e.event; ev.Name == "" || ev.UnitID == "" {
			d.Fail(schema.CodeUnmappable, "type", "neither track, identify, page, screen, group nor alias")
		}
	}
	if ev.UnitID == "" {
		d.Fail(schema.CodeMissingField, "unit_id", "neither userId nor anonymousId has an id")
	}
	d.Add(&ev)
}

func (d *decoder) putSome(name, value string) {
	if value != "" {
		d.Put(name, value)
	}
}

// exposure fills an exposure from the properties, and takes out of them what it
// used. What names the experiment besides its id stays an attribute.
func (d *decoder) exposure(e *draft, ev *schema.Event) {
	if e.nested {
		d.Fail(schema.CodeInvalidType, "properties", "the id of an experiment or variation must be a string or a number")
	}
	ev.Kind, ev.Name = schema.KindExposure, ""
	ev.Experiment = d.takeFirst("experiment_id", "experimentId", "experiment_name", "experimentName")
	ev.Variant = d.takeFirst("variation_id", "variationId", "variation_name", "variationName")
}

// takeFirst takes the first of the attributes that says something.
func (d *decoder) takeFirst(names ...string) string {
	for _, name := range names {
		if v := d.Take(name); v != "" {
			return v
		}
	}
	return ""
}

// value is the number a custom event is about: its property value, else revenue,
// which Segment's specification of orders has. Both stay attributes.
func (d *decoder) value(ev *schema.Event) {
	for i := range d.Attrs {
		a := &d.Attrs[i]
		if a.Key != "value" && (a.Key != "revenue" || ev.HasValue) {
			continue
		}
		if v, ok := wire.Numeric(a.Value, false); ok {
			ev.Value, ev.HasValue = v, true
		}
	}
}
