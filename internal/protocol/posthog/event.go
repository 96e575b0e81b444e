package posthog

import (
	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// The names of events that mean something here.
const (
	flagCalled = "$feature_flag_called"
	identify   = "$identify"
)

// noise reports whether an event tells about the SDK, or is a piece of a film of the
// screen: nobody did anything. Such events are counted and dropped.
func noise(name string) bool {
	switch name {
	case "$snapshot", "$snapshot_items", "$performance_event", "$$heatmap", "$$client_ingestion_warning":
		return true
	}
	return false
}

// Properties that name the parts of an exposure.
const (
	propFlag       = "$feature_flag"
	propResponse   = "$feature_flag_response"
	propReason     = "$feature_flag_reason"
	propReasonCode = "$feature_flag_reason_code"
	propRule       = "$feature_flag_rule_id"
)

// Fields of an event of which each may come once.
const (
	seenName = 1 << iota
	seenUnit
	seenUUID
	seenTime
	seenProperties
)

// part is a property of which an exposure has a column, and other events an
// attribute.
type part struct {
	value  string
	there  bool
	nested bool
}

// draft is one event while it is read: members come in any order, and only the name
// says what the properties mean. They gather in decoder.Attrs.
type draft struct {
	name, uuid, insertID                     string
	unit, propUnit                           string
	time, propTime                           int64
	hasTime, hasPropTime                     bool
	set                                      bool // it sets properties of the person
	flag, response, reason, reasonCode, rule part
}

// event reads one event.
func (d *decoder) event() {
	var e draft
	for d.More() {
		switch d.Key() {
		case "event":
			d.Once(seenName, "name")
			e.name = d.Text("name")
		case "distinct_id":
			d.Once(seenUnit, "unit_id")
			e.unit = d.ID("unit_id")
		case "$distinct_id": // /engage
			e.propUnit = wire.First(e.propUnit, d.Loose())
		case "uuid":
			d.Once(seenUUID, "event_id")
			e.uuid = d.Loose()
		case "timestamp":
			d.Once(seenTime, "time")
			e.time, e.hasTime = d.ISOTime("time")
		case "properties":
			d.Once(seenProperties, "properties")
			d.Within = "properties"
			d.properties(&e)
			d.Settle("properties")
		case "$set", "$set_once":
			e.set = true
			d.Ignore()
		case "session_id":
			d.Member("$session_id", wire.LeaveOut)
		case "window_id":
			d.Member("$window_id", wire.LeaveOut)
		case "options":
			d.options()
		case "library":
			d.lib = wire.First(d.lib, d.Loose())
		case "library_version":
			d.libVersion = wire.First(d.libVersion, d.Loose())
		case "sent_at":
			d.sentAt = wire.First(d.sentAt, d.Loose())
		default:
			d.Ignore()
		}
	}
	d.finish(&e)
}

// options reads what SDKs of the later API say about how to take the event.
func (d *decoder) options() {
	if d.Kind() != jsonscan.Object {
		d.Ignore()
		return
	}
	d.Reader.Object()
	for d.More() {
		if d.Key() == "disable_skew_correction" {
			d.correction()
		} else {
			d.Ignore()
		}
	}
	d.ClearFault()
}

func (d *decoder) correction() {
	if d.Kind() == jsonscan.Bool {
		d.uncorrected = d.Bool() || d.uncorrected
	} else {
		d.Ignore()
	}
}

// properties reads the properties: those that mean something here, and as attributes
// the others, as far as they are the customer's or tell what the person did.
func (d *decoder) properties(e *draft) {
	if !d.Object() {
		return
	}
	for d.More() {
		switch name := d.Key(); name {
		case propFlag:
			d.part(&e.flag)
		case propResponse:
			d.part(&e.response)
		case propReason:
			d.part(&e.reason)
		case propReasonCode:
			d.part(&e.reasonCode)
		case propRule:
			d.part(&e.rule)
		case "distinct_id", "$distinct_id":
			e.propUnit = wire.First(e.propUnit, d.Loose())
		case "$insert_id":
			e.insertID = d.Loose()
		case "$time":
			e.propTime, e.hasPropTime = seconds(d.Loose())
		case "$lib":
			d.lib = wire.First(d.lib, d.Loose())
		case "$lib_version":
			d.libVersion = wire.First(d.libVersion, d.Loose())
		case "$ignore_sent_at":
			d.correction()
		default:
			if leftOut(name) {
				d.Ignore()
			} else {
				d.Property(name)
			}
		}
	}
}

// part reads a property that may become a column.
func (d *decoder) part(p *part) {
	switch d.Kind() {
	case jsonscan.Null:
		d.Null()
		*p = part{}
		return
	case jsonscan.Array, jsonscan.Object:
		p.nested = true
	default:
		p.nested = false
	}
	p.value, p.there = d.JSON("properties"), true
}

// keep makes an attribute of a part that no column takes.
func (d *decoder) keep(name string, p part) {
	if p.there && len(p.value) <= schema.MaxAttributeValue {
		d.Put(name, p.value)
	}
}

// seconds reads $time, the browser's clock at the event in seconds since the epoch.
// SDKs of old have it in milliseconds.
func seconds(s string) (us int64, ok bool) {
	us, ok = schema.ParseEpochMillis(s)
	if !ok || us <= 0 {
		return 0, false
	}
	const millis = 100_000_000_000 * 1000 // as seconds, the year 5138
	if us < millis {
		us *= 1000
	}
	return us, true
}

// finish makes an event of the draft.
func (d *decoder) finish(e *draft) {
	if e.name == "" && e.set { // /engage has no name for it
		e.name = identify
	}
	uuid := e.uuid
	if noise(e.name) {
		d.Drop()
		if d.v1 && d.Err() == nil {
			d.results.ok(uuid)
		}
		return
	}
	ev := schema.Event{Kind: schema.KindEvent, Name: e.name, UnitType: schema.DefaultUnitType, UnitID: wire.First(e.unit, e.propUnit),
		ClientID: wire.First(uuid, e.insertID), HasTime: e.hasTime, Time: e.time}
	if !e.hasTime {
		ev.HasTime, ev.Time = e.hasPropTime, e.propTime
	}
	if ev.UnitID == "" {
		d.Fail(schema.CodeMissingField, "unit_id", "neither distinct_id nor properties.distinct_id has an id")
	}
	if e.name == flagCalled {
		d.exposure(e, &ev)
	} else {
		d.keep(propFlag, e.flag)
		d.keep(propResponse, e.response)
		d.keep(propReason, e.reason)
		d.keep(propReasonCode, e.reasonCode)
		d.keep(propRule, e.rule)
		d.value(&ev)
	}
	rejected := len(d.Batch.Rejected)
	d.Add(&ev)
	if !d.v1 || d.Err() != nil {
		return
	}
	if rs := d.Batch.Rejected; len(rs) > rejected {
		d.results.drop(uuid, &rs[rejected])
	} else {
		d.results.ok(uuid)
	}
}

// exposure fills an exposure from the properties. The flags of the later kind have a
// code for the reason in place of a sentence.
func (d *decoder) exposure(e *draft, ev *schema.Event) {
	if e.flag.nested {
		d.Fail(schema.CodeInvalidType, propFlag, "the flag must be a string or a number")
	}
	ev.Kind, ev.Name = schema.KindExposure, ""
	ev.Experiment, ev.Variant, ev.Rule = e.flag.value, e.response.value, e.rule.value
	if ev.Reason = e.reason.value; ev.Reason == "" {
		ev.Reason = e.reasonCode.value
	} else {
		d.keep(propReasonCode, e.reasonCode)
	}
}

// value is the number a custom event is about: its property value, else revenue.
// Both stay attributes.
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
