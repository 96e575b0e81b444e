package amplitude

import (
	"math"

	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// The types of event that mean something here.
const (
	exposed       = "$exposure"
	experimentLog = "[Experiment] Exposure"
	identify      = "$identify"
	groupIdentify = "$groupidentify"
)

// Properties that name the parts of an exposure.
const (
	propFlag         = "flag_key"
	propFlagTitle    = "[Experiment] Flag Key"
	propVariant      = "variant"
	propVariantTitle = "[Experiment] Variant"
)

// deviceType is the unit type of events without a user id.
const deviceType = "device"

// Fields of an event of which each may come once.
const (
	seenType = 1 << iota
	seenUser
	seenDevice
	seenInsert
	seenTime
	seenProperties
	seenPerson
	seenGroup
)

// draft is one event while it is read: members come in any order, and only the type
// says what they mean. Properties gather in decoder.Attrs, those of the person or
// group in decoder.person.
type draft struct {
	kind, user, device, insert string
	time                       int64
	hasTime                    bool
	nested                     bool // the flag or variant is an array or object
	revenue, price, quantity   number
	props                      [3]number // $revenue, revenue, value
}

// number is one that may be there.
type number struct {
	v     float64
	there bool
}

// event reads one event.
func (d *decoder) event() {
	d.person = d.person[:0]
	var e draft
	for d.More() {
		switch d.Key() {
		case "event_type":
			d.Once(seenType, "name")
			e.kind = d.Text("name")
		case "user_id":
			d.Once(seenUser, "unit_id")
			e.user = d.ID("unit_id")
		case "device_id":
			d.Once(seenDevice, "unit_id")
			e.device = d.ID("unit_id")
		case "insert_id":
			d.Once(seenInsert, "event_id")
			e.insert = wire.First(d.Loose(), e.insert)
		case "uuid": // the first API's insert_id
			e.insert = wire.First(e.insert, d.Loose())
		case "time":
			d.Once(seenTime, "time")
			e.time, e.hasTime = d.Time("time")
		case "timestamp": // of the first browser library
			if us, ok := wire.ParseTime(d.Loose()); ok && !e.hasTime {
				e.time, e.hasTime = us, true
			}
		case "event_properties":
			d.Once(seenProperties, "event_properties")
			d.Within = "event_properties"
			d.properties(&e)
			d.Settle("event_properties")
		case "user_properties":
			d.Once(seenPerson, "user_properties")
			d.operations()
		case "group_properties":
			d.Once(seenGroup, "group_properties")
			d.operations()
		case "groups":
			d.groups()
		case "revenue":
			e.revenue = d.amount("revenue")
		case "price":
			e.price = d.amount("price")
		case "quantity":
			e.quantity = d.amount("quantity")
		case "currency":
			d.Member("currency", wire.LeaveOut)
		case "productId", "product_id":
			d.Member("productId", wire.LeaveOut)
		case "revenueType", "revenue_type":
			d.Member("revenueType", wire.LeaveOut)
		case "library":
			d.library = wire.First(d.library, d.Loose())
		default:
			d.Ignore()
		}
	}
	d.finish(&e)
}

// properties keeps what the customer said about the event as attributes.
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
			case propFlag, propFlagTitle, propVariant, propVariantTitle:
				e.nested = true
			}
		}
		switch name {
		case "$revenue":
			e.props[0] = d.amount(name)
		case "revenue":
			e.props[1] = d.amount(name)
		case "value":
			e.props[2] = d.amount(name)
		default:
			d.Property(name)
		}
	}
}

// amount reads what may be a number and keeps it as an attribute as well.
func (d *decoder) amount(name string) number {
	switch k := d.Kind(); k {
	case jsonscan.Number, jsonscan.String:
		_, s := d.Scalar()
		d.Settle(wire.First(d.Within, name))
		d.Put(name, s)
		v, ok := wire.Numeric(s, k == jsonscan.Number)
		return number{v, ok}
	}
	d.Property(name)
	return number{}
}

// operations reads the properties of a person or group: those that are set, alone or
// by $set and $setOnce, flat ones only, and none that say who it is. Others change
// what only Amplitude knows. What is odd in there does not matter.
func (d *decoder) operations() {
	if d.Kind() != jsonscan.Object {
		d.Ignore()
		return
	}
	d.Reader.Object()
	for d.More() {
		switch name := d.Key(); {
		case name == "$set" || name == "$setOnce":
			if d.Kind() != jsonscan.Object {
				d.Ignore()
				continue
			}
			d.Reader.Object()
			for d.More() {
				d.trait(d.Key())
			}
		default:
			d.trait(name)
		}
	}
}

func (d *decoder) trait(name string) {
	if name == "" || name[0] == '$' || wire.Identity(name) {
		d.Ignore()
		return
	}
	switch d.Kind() {
	case jsonscan.String, jsonscan.Number, jsonscan.Bool:
		had := d.Fault()
		_, s := d.Scalar()
		// There may be many: what is beyond the limit of attributes is not kept here
		// either, so that memory does not grow with it.
		if s != "" && len(d.person) <= schema.MaxAttributes {
			d.person = append(d.person, schema.Attribute{Key: name, Value: s})
		}
		if had == jsonscan.NoFault && d.Fault() != jsonscan.NoFault {
			d.ClearFault()
		}
	default:
		d.Ignore()
	}
}

// groups keeps which groups the person is in: {"company":"acme"}.
func (d *decoder) groups() {
	if d.Kind() != jsonscan.Object {
		d.Ignore()
		return
	}
	d.Within = "groups"
	d.Reader.Object()
	for d.More() {
		d.Property(d.Path("groups.", d.Key()))
	}
}

// finish makes an event of the draft.
func (d *decoder) finish(e *draft) {
	ev := schema.Event{Kind: schema.KindEvent, Name: e.kind, HasTime: e.hasTime, Time: e.time}
	switch {
	case e.user != "":
		ev.UnitType, ev.UnitID = schema.DefaultUnitType, e.user
	case e.device != "":
		ev.UnitType, ev.UnitID = deviceType, e.device
	default:
		d.Fail(schema.CodeMissingField, "unit_id", "neither user_id nor device_id has an id")
	}
	ev.ClientID = clientID(e)
	switch e.kind {
	case exposed, experimentLog:
		if e.nested {
			d.Fail(schema.CodeInvalidType, "event_properties", "a flag key or variant must be a string or a number")
		}
		ev.Kind, ev.Name = schema.KindExposure, ""
		ev.Experiment = d.takeFirst(propFlag, propFlagTitle)
		ev.Variant = d.takeFirst(propVariant, propVariantTitle)
	case identify, groupIdentify:
		for _, a := range d.person {
			d.Put(a.Key, a.Value)
		}
	default:
		ev.Value, ev.HasValue = e.value()
	}
	d.Add(&ev)
}

// clientID is the event's own id. Amplitude tells events apart by device and
// insert_id: one that is no UUID may be another device's as well.
func clientID(e *draft) string {
	if e.insert == "" {
		return ""
	}
	// Written like a UUID is enough: looking at each digit would cost more than it
	// tells apart.
	if s := e.insert; len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		return s
	}
	return wire.First(e.device, e.user) + "/" + e.insert
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

// value is the number a custom event is about: its revenue, else price times
// quantity, else the property $revenue, revenue or value. What it was made of stays
// an attribute.
func (e *draft) value() (float64, bool) {
	switch {
	case e.revenue.there:
		return e.revenue.v, true
	case e.price.there:
		n := 1.0
		if e.quantity.there {
			n = e.quantity.v
		}
		if v := e.price.v * n; !math.IsInf(v, 0) {
			return v, true
		}
	}
	for _, p := range e.props {
		if p.there {
			return p.v, true
		}
	}
	return 0, false
}
