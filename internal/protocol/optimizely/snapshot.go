package optimizely

import (
	"strconv"
	"strings"

	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// activated is what the event of a decision is called.
const activated = "campaign_activated"

// unitVisitor is the unit type of all of them.
const unitVisitor = "visitor"

// draft is what becomes an event when the visitor has been read.
type draft struct {
	kind   draftKind
	ev     schema.Event
	attrs  [2]int // of decoder.pending, from and to
	faulty bool   // it is read again, for the reason
	from   jsonscan.Mark
	raw    []byte // as sent

	campaign     string // of a decision; of an activation, what it is about
	variationKey string // of a decision
	activation   int    // the decision's event; -1: none
	decisions    []byte // of an event: those that were made before, as sent

	used int // of an activation: decisions that took it

	code           schema.Code // of one that is faulty, once it was read again
	field, message string      // the same, and of a snapshot that is none
}

type draftKind uint8

const (
	draftDecision draftKind = iota
	draftActivation
	draftEvent
	draftSnapshot // rejected as a whole
	draftNothing
)

// keep adds a draft. There are at most two for an event: a decision and its own.
func (d *decoder) keep(dr *draft) {
	if len(d.drafts) >= 2*d.most {
		d.tooMany()
		return
	}
	first := len(d.pending)
	d.pending = append(d.pending, d.Attrs...)
	dr.attrs = [2]int{first, len(d.pending)}
	d.drafts = append(d.drafts, *dr)
}

// snapshot reads what happened at one moment: decisions with the event that they
// were made, or other events.
func (d *decoder) snapshot() {
	if d.err != nil {
		d.Skip()
		return
	}
	k := d.Kind()
	from := d.Offset()
	bad := func(field, message string) {
		d.Part()
		d.keep(&draft{kind: draftSnapshot, raw: d.Since(from), field: field, message: message})
	}
	if k != jsonscan.Object {
		d.Skip()
		bad("snapshots", "a snapshot must be an object")
		return
	}
	first := len(d.drafts)
	var decisions []byte
	wrong := ""
	d.Object()
	for d.More() {
		switch name := d.Key(); name {
		case "decisions", "events":
			switch k := d.Kind(); k {
			case jsonscan.Null:
				d.Null()
				continue
			case jsonscan.Array:
			default:
				wrong = name
				d.Skip()
				continue
			}
			from := d.Offset()
			d.Array()
			for d.More() {
				if d.err != nil {
					d.Skip()
				} else if name == "decisions" {
					d.decision()
				} else {
					d.event()
				}
			}
			if name == "decisions" {
				decisions = d.Since(from)
			}
		default:
			d.Ignore()
		}
	}
	if wrong != "" {
		d.drafts = d.drafts[:first]
		bad(wrong, wrong+" has the wrong type")
		return
	}
	d.match(d.drafts[first:], first, decisions)
}

// matched is how many activations of a snapshot are looked through for the one of a
// campaign. SDKs send one.
const matched = 64

// match gives each decision of a snapshot its event: that of its campaign, else the
// first. Without any, and with other events, they are no exposures: former SDKs list
// with a conversion what it is to be counted for, decisions that were made, and
// sent, before.
func (d *decoder) match(drafts []draft, first int, decisions []byte) {
	var found [matched]int
	n, others := 0, 0
	for i := range drafts {
		switch drafts[i].kind {
		case draftActivation:
			if n < matched {
				found[n] = i
				n++
			}
		case draftEvent:
			others++
		}
	}
	for i := range drafts {
		dr := &drafts[i]
		switch {
		case dr.kind == draftEvent && n == 0 && len(decisions) > len("[]") && len(decisions) <= schema.MaxAttributeValue:
			dr.decisions = decisions
		case dr.kind != draftDecision:
		case n == 0 && others > 0:
			dr.kind = draftNothing
		case n == 0:
			dr.activation = -1
		default:
			at := found[0]
			for _, j := range found[:n] {
				if drafts[j].campaign == dr.campaign {
					at = j
					break
				}
			}
			a := &drafts[at]
			dr.activation = first + at
			dr.ev.Time, dr.ev.HasTime, dr.ev.ClientID = a.ev.Time, a.ev.HasTime, a.ev.ClientID
			if a.used > 0 {
				dr.ev.ClientID = d.further(a.ev.ClientID, a.used)
			}
			a.used++
		}
	}
}

// further is the id of another decision with the same event. One that is too long
// stays so, and is not repeated; where there is more than there is to share, the
// event gets an id by its place in the batch.
func (d *decoder) further(id string, n int) string {
	switch {
	case id == "" || len(id) > schema.MaxFieldBytes:
		return id
	case !d.RepeatText(id):
		return ""
	}
	return id + "/" + strconv.Itoa(n)
}

// becomes reports whether the draft makes an event.
func (dr *draft) becomes() bool {
	return dr.kind != draftNothing && (dr.kind != draftActivation || dr.used == 0)
}

// finish makes events of the visitor's drafts, or rejects all of them for what is
// wrong with the visitor.
func (d *decoder) finish(why *schema.Rejected) {
	end := d.Mark()
	for i := range d.drafts {
		dr := &d.drafts[i]
		if !dr.becomes() {
			continue
		}
		if d.full() {
			return
		}
		d.Part()
		if why != nil {
			d.Fail(why.Code, why.Field, why.Message)
		}
		d.again(dr, end)
		if !dr.faulty {
			d.Attrs = append(d.Attrs, d.pending[dr.attrs[0]:dr.attrs[1]]...)
		}
		dr.ev.UnitType, dr.ev.UnitID = unitVisitor, d.id
		if !d.RepeatText(d.id) {
			d.Fail(schema.CodeTooLong, "unit_id", "unit_id is too long for so many events")
		}
		var decision []byte
		event, id := dr.raw, ""
		switch dr.kind {
		case draftSnapshot:
			d.Fail(schema.CodeInvalidType, dr.field, dr.message)
		case draftActivation:
			d.Fail(schema.CodeMissingField, "experiment", "an activation without a decision")
		case draftDecision:
			decision = dr.raw
			event, id = d.exposure(dr, end)
		case draftEvent:
			if dr.decisions != nil && !schema.ValidText(wire.String(dr.decisions)) {
				d.Fail(schema.CodeInvalidString, "decisions", "decisions that are no text")
			} else if dr.decisions != nil && d.Repeat(len(dr.decisions)) {
				d.Put("decisions", wire.String(dr.decisions))
			}
		}
		d.shared()
		if d.AddPart(&dr.ev) {
			continue
		}
		if dr.kind == draftSnapshot {
			d.RawPart(d.alone(dr.raw))
		} else {
			d.RawPart(d.alone(d.piece(decision, event, id)))
		}
	}
}

// again has the Decoder know what was wrong with a draft, if something was. It is
// read again for that, once: many decisions may have one event.
func (d *decoder) again(dr *draft, end jsonscan.Mark) {
	if !dr.faulty {
		return
	}
	if dr.code == "" {
		code, field, message := d.Why()
		d.Part()
		d.Rewind(dr.from)
		if dr.kind == draftDecision {
			d.readDecision(&draft{})
		} else {
			d.readEvent(&draft{})
		}
		d.Rewind(end)
		d.Fail(schema.CodeTooMany, "attributes", "more than 256 attributes")
		dr.code, dr.field, dr.message = d.Why()
		d.Part()
		if code != "" {
			d.Fail(code, field, message)
		}
	}
	d.Fail(dr.code, dr.field, dr.message)
}

// exposure finishes a decision: an exposure, unless no experiment and no variation
// came of it. That is an event like any other then. It returns the decision's event as
// sent, and its own id where that is another than the event's.
func (d *decoder) exposure(dr *draft, end jsonscan.Mark) (event []byte, id string) {
	ev := &dr.ev
	name := activated
	if dr.activation >= 0 {
		a := &d.drafts[dr.activation]
		d.again(a, end)
		name, event = wire.First(a.ev.Name, activated), a.raw
		if !a.faulty && ev.ClientID != a.ev.ClientID {
			id = ev.ClientID
		}
	}
	if ev.Experiment != "" {
		// Newer SDKs leave out an id that is no number: the key is what is left.
		ev.Variant = wire.First(ev.Variant, dr.variationKey)
	} else if ev.Variant == "" && dr.variationKey == "" {
		ev.Kind, ev.Name = schema.KindEvent, name
		if ev.Rule != "" { // events have none
			d.Put("rule_key", ev.Rule)
			ev.Rule = ""
		}
	}
	return event, id
}

// limit is more attributes than an event may have, and as many as Put takes.
const limit = 2 * schema.MaxAttributes

// decision reads one decision.
func (d *decoder) decision() {
	d.Part()
	k := d.Kind()
	from := d.Offset()
	dr := draft{kind: draftDecision, from: d.Mark()}
	if k == jsonscan.None {
		return
	}
	d.readDecision(&dr)
	dr.faulty, dr.raw = d.Failed() || len(d.Attrs) >= limit, d.Since(from)
	d.keep(&dr)
}

func (d *decoder) readDecision(dr *draft) {
	dr.ev.Kind = schema.KindExposure
	if d.Kind() != jsonscan.Object {
		d.Skip()
		d.Fail(schema.CodeInvalidType, "decisions", "a decision must be an object")
		return
	}
	d.Object()
	for d.More() {
		switch name := d.Key(); name {
		case "experiment_id":
			d.Once(seenExperiment, "experiment")
			dr.ev.Experiment = d.ID("experiment")
		case "variation_id":
			d.Once(seenVariation, "variant")
			dr.ev.Variant = d.ID("variant")
		case "campaign_id":
			if dr.campaign = d.ID(name); dr.campaign != "" {
				d.Put(name, dr.campaign)
			}
		case "metadata":
			dr.variationKey = d.metadata(&dr.ev)
		default:
			d.Member(name, wire.LeaveOut)
		}
	}
}

// metadata reads which rule of which flag decided, and returns the name of the
// variation.
func (d *decoder) metadata(ev *schema.Event) (variationKey string) {
	if d.Kind() != jsonscan.Object {
		d.Ignore()
		return ""
	}
	d.Within = "metadata"
	d.Object()
	for d.More() {
		switch name := d.Key(); name {
		case "rule_key":
			ev.Rule = d.Text("rule")
		case "variation_key":
			if variationKey = d.Text(name); variationKey != "" {
				d.Put(name, variationKey)
			}
		default:
			d.Member(name, wire.LeaveOut)
		}
	}
	d.Within = ""
	return variationKey
}

// event reads an event: that of a decision, or a conversion, or whatever else there
// is.
func (d *decoder) event() {
	d.Part()
	k := d.Kind()
	from := d.Offset()
	dr := draft{kind: draftEvent, from: d.Mark()}
	if k == jsonscan.None {
		return
	}
	d.readEvent(&dr)
	dr.faulty, dr.raw = d.Failed() || len(d.Attrs) >= limit, d.Since(from)
	d.keep(&dr)
}

func (d *decoder) readEvent(dr *draft) {
	ev := &dr.ev
	ev.Kind = schema.KindEvent
	if d.Kind() != jsonscan.Object {
		d.Skip()
		d.Fail(schema.CodeInvalidType, "events", "an event must be an object")
		return
	}
	var kind, entity, value, revenue string
	d.Object()
	for d.More() {
		switch name := d.Key(); name {
		case "key":
			ev.Name = d.Text("name")
		case "type":
			kind = d.Loose()
		case "uuid":
			ev.ClientID = d.ID("event_id")
		case "entity_id":
			entity = d.ID(name)
		case "timestamp":
			d.Once(seenTime, "time")
			ev.Time, ev.HasTime = d.Millis("time")
		case "value":
			d.Once(seenValue, "value")
			ev.Value, value, ev.HasValue = d.Number("value")
		case "revenue":
			revenue = d.Text(name)
		case "tags":
			d.Within = "tags"
			d.Properties("")
			d.Within = ""
		default:
			d.Member(name, wire.AsText)
		}
	}
	if ev.Name == activated || kind == activated {
		dr.kind, dr.campaign = draftActivation, entity
		return
	}
	ev.Name = wire.First(ev.Name, kind)
	d.amounts(ev, value, revenue)
	if entity != "" {
		d.Put("entity_id", entity)
	}
}

// amounts makes the value of the event of its `value`, else of what it brought in.
// SDKs send both beside the tags and among them.
func (d *decoder) amounts(ev *schema.Event, value, revenue string) {
	tag := d.Take("value")
	if !ev.HasValue && value == "" {
		if ev.Value, ev.HasValue = wire.Numeric(tag, false); !ev.HasValue {
			value = tag
		}
	}
	if value != "" {
		d.Put("value", value)
	}
	if revenue = wire.First(revenue, d.Take("revenue")); revenue == "" {
		return
	}
	d.Put("revenue", revenue)
	if !ev.HasValue && value == "" {
		ev.Value, ev.HasValue = wire.Numeric(revenue, false)
	}
}

// personal reports whether an attribute is not kept: those with $opt_ are for the
// backend, or the browser's user agent.
func personal(key string) bool {
	return strings.HasPrefix(key, "$opt_") || wire.Contact(key)
}
