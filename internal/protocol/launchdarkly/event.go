package launchdarkly

import (
	"strings"

	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// Kinds of event that are not kept under a name of their own.
const (
	kindFeature  = "feature"
	kindCustom   = "custom"
	kindClick    = "click"
	kindPageview = "pageview"
	kindIdentify = "identify"
	kindAlias    = "alias"
	kindSummary  = "summary"
	kindIndex    = "index"
	kindDebug    = "debug"

	diagnosticPrefix = "diagnostic" // diagnostic, diagnostic-init, diagnostic-combined
)

// Fields of an event of which each may come once.
const (
	seenKey = 1 << iota
	seenTime
	seenContext
	seenValue
	seenVariation
	seenMetric
	seenData
	seenFeatures
)

// Attributes that are not named after a member of the event.
const (
	attrValue    = "value"
	attrData     = "data"
	attrMetric   = "metricValue"
	attrContexts = "context."
)

// event reads one element of the array. Its kind, which may come last, says what
// its other members mean.
func (d *decoder) event() {
	d.contexts = d.contexts[:0]
	kind := d.Find("kind")
	switch {
	case kind == kindFeature:
		d.feature()
	case kind == kindSummary:
		d.summary()
	case kind == kindIndex, kind == kindDebug, strings.HasPrefix(kind, diagnosticPrefix):
		// An index event repeats the context of the event after it, a debug event the
		// feature event beside it.
		for d.More() {
			d.Key()
			d.Skip()
		}
		d.Drop()
	default:
		d.other(kind)
	}
}

// feature reads the evaluation of a flag: an exposure.
func (d *decoder) feature() {
	ev := schema.Event{Kind: schema.KindExposure}
	var variation, value string
	for d.More() {
		switch name := d.Key(); name {
		case "key":
			d.Once(seenKey, "experiment")
			ev.Experiment = d.Text("experiment")
		case "variation":
			d.Once(seenVariation, "variation")
			variation = d.Text("variation")
		case "value":
			d.Once(seenValue, "value")
			value = d.value(attrValue)
		case "default":
			d.value("default")
		case "version", "prereqOf":
			d.Member(name, wire.LeaveOut)
		case "reason":
			d.reason(&ev)
		default:
			d.common(name, &ev)
		}
	}
	// An index is one also where all numbers are written with a fraction.
	if ev.Variant = strings.TrimSuffix(variation, ".0"); ev.Variant == "" {
		ev.Variant = value
	}
	d.unit(&ev)
	d.add(&ev)
}

// value keeps a value as an attribute, an array or object as JSON text, and returns
// its JSON text. One so long that it could not be kept must not cost the event.
func (d *decoder) value(name string) string {
	k := d.Kind()
	from := d.Offset()
	var text string
	switch k {
	case jsonscan.String:
		text = d.Reader.Text()
	default:
		text = wire.String(d.Skip())
	}
	d.Settle(name)
	if k != jsonscan.Null && text != "" && len(text) <= schema.MaxAttributeValue {
		d.Put(name, text)
	}
	return wire.String(d.Since(from))
}

// reason reads why the flag had that value.
func (d *decoder) reason(ev *schema.Event) {
	if d.Kind() != jsonscan.Object {
		d.Ignore()
		return
	}
	d.Within = "reason"
	d.Reader.Object()
	for d.More() {
		switch name := d.Key(); name {
		case "kind":
			ev.Reason = d.Text("reason")
		case "ruleId":
			ev.Rule = d.Text("rule")
		default:
			d.Member(d.Path("reason.", name), wire.LeaveOut)
		}
	}
	d.Within = ""
}

// other reads an event of any other kind: a custom event. What is beside the
// members that mean something is kept as attributes.
func (d *decoder) other(kind string) {
	ev := schema.Event{Kind: schema.KindEvent, Name: kind}
	var key string
	for d.More() {
		switch name := d.Key(); name {
		case "key":
			d.Once(seenKey, "key")
			key = d.Text("key")
		case "metricValue":
			d.Once(seenMetric, "value")
			v, rest, ok := d.Number("value")
			if ev.Value, ev.HasValue = v, ok; rest != "" {
				d.Put(attrMetric, rest)
			}
		case "data":
			d.Once(seenData, "data")
			d.Within = "data"
			if d.Kind() == jsonscan.Object {
				d.Properties("")
			} else {
				d.Member(attrData, wire.AsText)
			}
			d.Within = ""
		case "kind", "samplingRatio", "indexSamplingRatio", "excludeFromSummaries", "trackEvents", "debugEventsUntilDate":
			d.Ignore()
		default:
			if !d.common(name, &ev) {
				d.Member(name, wire.AsText)
			}
		}
	}
	d.unit(&ev)
	switch kind {
	case kindCustom:
		ev.Name = key
	case kindClick, kindPageview:
		ev.Name = wire.First(key, kind)
	case kindIdentify, kindAlias: // the key is the user's, in events from before there were contexts
		if ev.UnitID == "" && key != "" {
			ev.UnitType, ev.UnitID = schema.DefaultUnitType, key
		}
	default:
		if key != "" {
			d.Put("key", key)
		}
		if kind == "" || ev.UnitID == "" {
			d.Fail(schema.CodeUnmappable, "kind", "neither a kind of event that is known nor one with a context")
		}
	}
	d.add(&ev)
}

// common reads a member that events of all kinds have, and ignores it if it is none
// of those. For what may be kept it reports false instead.
func (d *decoder) common(name string, ev *schema.Event) bool {
	switch name {
	case "creationDate":
		d.Once(seenTime, "time")
		ev.Time, ev.HasTime = d.Millis("time")
	case "context":
		d.Once(seenContext, "context")
		d.context()
	case "contextKeys":
		d.contextKeys()
	case "user":
		d.user()
	case "userKey":
		d.meet(schema.DefaultUnitType, d.ID("unit_id"))
	case "contextKind":
		if d.Loose() == "anonymousUser" {
			d.Put("context.user.anonymous", "true")
		}
	default:
		if ev.Kind == schema.KindEvent {
			return false
		}
		d.Ignore()
	}
	return true
}
