package growthbook

import (
	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// The names of an experiment's exposure: of the JavaScript SDK, and of Python's.
const (
	viewed   = "Experiment Viewed"
	viewedPy = "$$experiment_viewed"
)

// Properties that name the parts of an exposure.
const (
	propExperiment    = "experimentId"
	propVariation     = "variationId"
	propHash          = "hashAttribute"
	propHashValue     = "hashValue"
	propExperimentPy  = "experiment_id"
	propVariationPy   = "variation_key" // the index of a variation is its variation_id
	propVariationIDPy = "variation_id"
	propHashPy        = "hash_attribute"
	propHashValuePy   = "hash_value"
)

// decode reads an array of events, or {"events":[…]}.
func decode(req *protocol.Request, b *schema.Batch) error {
	d := decoder{Decoder: wire.New(req.Body, req.MaxEvents, b)}
	if err := d.Document(d.envelope, d.event); err != nil {
		return err
	}
	if d.language != "" || d.version != "" {
		b.SDK = sdk(d.language, d.version)
	}
	return nil
}

// decoder reads one body into one batch.
type decoder struct {
	*wire.Decoder
	language, version string // the first there is
}

func (d *decoder) envelope() error {
	found := false
	for d.More() {
		if d.Key() != "events" {
			d.Ignore()
			continue
		}
		if found {
			return wire.Malformed("`events` is there twice")
		}
		found = true
		if err := d.Each(d.event); err != nil {
			return err
		}
	}
	return nil // a syntax error is found by the caller
}

// Fields of an event of which each may come once.
const (
	seenName = 1 << iota
	seenUser
	seenDevice
	seenProperties
)

// draft is one event while it is read: members come in any order, and only the name
// says what they mean. Properties gather in decoder.Attrs.
type draft struct {
	name, user, device string
	nested             bool // an id of an experiment or variation is an array or object
	value              float64
	hasValue           bool
}

// event reads one event. What the plugin says of the page, the session and the
// person's attributes (context_json) is not read.
func (d *decoder) event() {
	var e draft
	for d.More() {
		switch d.Key() {
		case "event_name":
			d.Once(seenName, "name")
			e.name = d.Text("name")
		case "user_id":
			d.Once(seenUser, "unit_id")
			e.user = d.ID("unit_id")
		case "device_id":
			d.Once(seenDevice, "unit_id")
			e.device = d.ID("unit_id")
		case "properties_json", "properties":
			d.Once(seenProperties, "properties_json")
			d.Within = "properties_json"
			d.properties(&e)
			d.Settle("properties_json")
		case "sdk_language":
			d.language = wire.First(d.language, d.Loose())
		case "sdk_version":
			d.version = wire.First(d.version, d.Loose())
		default:
			d.Ignore()
		}
	}
	d.finish(&e)
}

// properties keeps what the event says as attributes.
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
		k := d.Kind()
		switch name {
		case propExperiment, propVariation, propExperimentPy, propVariationPy, propVariationIDPy:
			e.nested = e.nested || k == jsonscan.Array || k == jsonscan.Object
		case "value":
			if k == jsonscan.Number || k == jsonscan.String {
				_, s := d.Scalar()
				d.Settle(d.Within)
				e.value, e.hasValue = wire.Numeric(s, k == jsonscan.Number)
				d.Put(name, s)
				continue
			}
		}
		d.Property(name)
	}
}

// finish makes an event of the draft.
func (d *decoder) finish(e *draft) {
	ev := schema.Event{Kind: schema.KindEvent, Name: e.name, UnitType: schema.DefaultUnitType, UnitID: wire.First(e.user, e.device)}
	if ev.UnitID == "" { // what the variation was drawn by
		if id := wire.First(d.attribute(propHashValue), d.attribute(propHashValuePy)); id != "" {
			ev.UnitID = id
			ev.UnitType = wire.First(d.attribute(propHash), d.attribute(propHashPy), schema.DefaultUnitType)
		} else {
			d.Fail(schema.CodeMissingField, "unit_id", "neither user_id nor device_id has an id")
		}
	}
	if e.name == viewed || e.name == viewedPy {
		if e.nested {
			d.Fail(schema.CodeInvalidType, "properties_json", "the id of an experiment or variation must be a string or a number")
		}
		ev.Kind, ev.Name = schema.KindExposure, ""
		ev.Experiment = d.takeFirst(propExperiment, propExperimentPy)
		ev.Variant = d.takeFirst(propVariation, propVariationPy, propVariationIDPy)
	} else {
		ev.Value, ev.HasValue = e.value, e.hasValue
	}
	d.Add(&ev)
}

// attribute is the last of the attributes of a name.
func (d *decoder) attribute(name string) (value string) {
	for i := range d.Attrs {
		if d.Attrs[i].Key == name {
			value = d.Attrs[i].Value
		}
	}
	return value
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
