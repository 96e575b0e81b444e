package statsig

import (
	"strings"

	"sluice/internal/protocol/wire"
	"sluice/pkg/schema"
)

// finish makes an event of the draft.
func (d *decoder) finish(e *draft) {
	internal := strings.HasPrefix(e.name, internalPrefix)
	exposure := e.name == gateExposure || e.name == configExposure || e.name == layerExposure
	unitType, unitID := d.unit(e)
	if internal && (noise(e.name) || !exposure && unitID == "" && !d.Failed()) { // the SDK speaking of nobody
		d.Drop()
		return
	}
	if unitID == "" {
		d.Fail(schema.CodeMissingField, "unit_id", "none of user.userID, user.customIDs and statsigMetadata.stableID has an id")
	}
	ev := schema.Event{Kind: schema.KindEvent, UnitType: unitType, UnitID: unitID, HasTime: e.hasTime, Time: e.time}
	if exposure {
		ev.Kind = schema.KindExposure
		d.exposure(e.name, &ev)
	} else {
		ev.Name = e.name
		d.Attrs = append(d.Attrs, d.nested...)
	}
	if v, ok := wire.Numeric(e.value, e.number); ok && !exposure {
		ev.HasValue, ev.Value = true, v
	} else if e.value != "" {
		d.Put(attrValue, e.value)
	}
	if e.secondary != "" {
		d.Put(attrSecondary, e.secondary)
	}
	d.Add(&ev)
}

// unit is who the event is about: the user, else the first of the other ids by
// name, else the device.
func (d *decoder) unit(e *draft) (unitType, id string) {
	switch {
	case e.userID != "":
		return schema.DefaultUnitType, e.userID
	case e.customID != "":
		d.Take(d.Path("user.customIDs.", e.customKey)) // it was turned into something better
		return e.customKey, e.customID
	}
	if id := d.deviceID(); id != "" {
		return stableIDType, id
	}
	return "", ""
}

// exposure fills an exposure from the metadata among the attributes, and takes
// out of them what it used, and the process's own clock readings, which only
// repeat the time of the event. Nested metadata of an exposure is left out: it is
// the SDK's own, and js-client puts the whole user there (bootstrapMetadata),
// private attributes included.
func (d *decoder) exposure(name string, ev *schema.Event) {
	var gate, gateValue, config, allocated, parameter string
	kept := d.Attrs[:0]
	for _, a := range d.Attrs {
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
	d.Attrs = kept
	switch name {
	case gateExposure:
		ev.Experiment, ev.Variant = gate, gateValue
	case configExposure:
		ev.Experiment, ev.Variant = config, ev.Rule
	default:
		ev.Experiment, ev.Variant = wire.First(allocated, config), ev.Rule
		d.Put(attrLayer, config)
		d.Put(attrParameter, parameter)
	}
}
