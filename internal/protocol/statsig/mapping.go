package statsig

import (
	"math"
	"strconv"
	"strings"

	"sluice/pkg/schema"
)

// finish makes an event of the draft. raw is the event as it came.
func (d *decoder) finish(e *draft, raw []byte) {
	internal := strings.HasPrefix(e.name, internalPrefix)
	if internal && noise(e.name) {
		d.b.Dropped++
		return
	}
	if d.tooMany {
		e.bad(schema.CodeTooMany, "attributes", "more than "+strconv.Itoa(schema.MaxAttributes)+" attributes")
	}
	exposure := e.name == gateExposure || e.name == configExposure || e.name == layerExposure
	unitType, unitID := d.unit(e)
	if internal && !exposure && unitID == "" && e.code == "" {
		d.b.Dropped++ // the SDK speaking of nobody
		return
	}
	ev := d.b.Append()
	if e.code != "" {
		d.b.Reject(e.code, e.field, e.message, raw)
		return
	}
	if unitID == "" {
		d.b.Reject(schema.CodeMissingField, "unit_id",
			"none of user.userID, user.customIDs and statsigMetadata.stableID has an id", raw)
		return
	}
	ev.UnitType, ev.UnitID = unitType, unitID
	ev.HasTime, ev.Time = e.hasTime, e.time
	ev.Kind = schema.KindEvent
	if exposure {
		ev.Kind = schema.KindExposure
		d.exposure(e.name, ev)
	} else {
		ev.Name = e.name
		d.attrs = append(d.attrs, d.nested...)
	}
	if v, ok := e.numeric(); ok && ev.Kind == schema.KindEvent {
		ev.HasValue, ev.Value = true, v
	} else if e.value != "" {
		d.attrs = append(d.attrs, schema.Attribute{Key: attrValue, Value: e.value})
	}
	if e.secondary != "" {
		d.attrs = append(d.attrs, schema.Attribute{Key: attrSecondary, Value: e.secondary})
	}
	d.b.SetAttributes(ev, d.attrs)
	d.b.Check(raw)
}

// unit is who the event is about: the user, else the first of the other ids by
// name, else the device.
func (d *decoder) unit(e *draft) (unitType, id string) {
	switch {
	case e.userID != "":
		return schema.DefaultUnitType, e.userID
	case e.customID != "":
		d.dropAttr("user.customIDs.", e.customKey)
		return e.customKey, e.customID
	}
	if id := d.deviceID(); id != "" {
		return stableIDType, id
	}
	return "", ""
}

// dropAttr forgets an attribute that was turned into something better.
func (d *decoder) dropAttr(prefix, name string) {
	kept := d.attrs[:0]
	for _, a := range d.attrs {
		if rest, ok := strings.CutPrefix(a.Key, prefix); !ok || rest != name {
			kept = append(kept, a)
		}
	}
	d.attrs = kept
}

// exposure fills an exposure from the metadata among the attributes, and takes
// out of them what it used, and the process's own clock readings, which only
// repeat the time of the event. Nested metadata of an exposure is left out: it is
// the SDK's own, and js-client puts the whole user there (bootstrapMetadata),
// private attributes included.
func (d *decoder) exposure(name string, ev *schema.Event) {
	var gate, gateValue, config, allocated, parameter string
	kept := d.attrs[:0]
	for _, a := range d.attrs {
		switch a.Key {
		case "gate":
			gate = a.Value
		case "gateValue":
			gateValue = a.Value
		case "config":
			config = a.Value
		case "ruleID":
			ev.Rule = a.Value
		case "reason":
			ev.Reason = a.Value
		case "allocatedExperiment":
			allocated = a.Value
		case "parameterName":
			parameter = a.Value
		case "serverTime", "initTime", "receivedAt":
		default:
			kept = append(kept, a)
		}
	}
	d.attrs = kept
	switch name {
	case gateExposure:
		ev.Experiment, ev.Variant = gate, gateValue
	case configExposure:
		ev.Experiment, ev.Variant = config, ev.Rule
	default:
		ev.Experiment, ev.Variant = first(allocated, config), ev.Rule
		d.attrs = append(d.attrs, schema.Attribute{Key: attrLayer, Value: config},
			schema.Attribute{Key: attrParameter, Value: parameter})
	}
}

// numeric returns the value of an event as a number. Text counts as one if it is
// written like a number and says no more than a double holds: codes like "007"
// and long ids stay text.
func (e *draft) numeric() (float64, bool) {
	s := e.value
	if s == "" {
		return 0, false
	}
	if !e.number && !plainNumber(s) {
		return 0, false
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(v, 0) || math.IsNaN(v) {
		return 0, false
	}
	return v, true
}

// plainNumber reports whether s is a JSON number of at most 15 digits, which is
// what every double can hold, before an exponent.
func plainNumber(s string) bool {
	s = strings.TrimPrefix(s, "-")
	whole, rest := digits(s)
	if whole == 0 || whole > 1 && s[0] == '0' {
		return false
	}
	fraction := 0
	if strings.HasPrefix(rest, ".") {
		if fraction, rest = digits(rest[1:]); fraction == 0 {
			return false
		}
	}
	if whole+fraction > 15 {
		return false
	}
	if rest == "" {
		return true
	}
	if rest[0]|0x20 != 'e' {
		return false
	}
	rest = strings.TrimLeft(rest[1:], "+-")
	exponent, rest := digits(rest)
	return exponent > 0 && exponent <= 3 && rest == ""
}

// digits counts the digits s starts with, and returns what follows them.
func digits(s string) (int, string) {
	n := 0
	for n < len(s) && '0' <= s[n] && s[n] <= '9' {
		n++
	}
	return n, s[n:]
}
