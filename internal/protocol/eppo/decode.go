package eppo

import (
	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// decode reads {"eppo_events":[…],"context":{…}}, a bare array of events or
// assignments, or one of them. The context is the SDK's at the time of the attempt, and no part of
// the events.
func decode(req *protocol.Request, b *schema.Batch) error {
	d := decoder{Decoder: wire.New(req.Body, req.MaxEvents, b)}
	read := func() error { return d.Document(d.envelope, d.event) }
	if d.Kind() == jsonscan.Object && !wire.Has(req.Body, "eppo_events") && (wire.Has(req.Body, "subject") || wire.Has(req.Body, "payload")) {
		read = func() error { return d.Whole(d.event) }
	}
	if err := read(); err != nil {
		return err
	}
	b.SDK = wire.SDK(d.sdk, d.sdkVersion)
	return nil
}

// decoder reads one body into one batch.
type decoder struct {
	*wire.Decoder
	sdk, sdkVersion string // the first there is
}

// envelope reads the members beside the events.
func (d *decoder) envelope() error {
	found := false
	for d.More() {
		switch d.Key() {
		case "eppo_events", "events":
			if found {
				return wire.Malformed("`eppo_events` is there twice")
			}
			found = true
			if err := d.Each(d.event); err != nil {
				return err
			}
		case "context":
			d.about()
		default:
			d.Ignore()
		}
	}
	return nil // a syntax error is found by the caller
}

// about reads which SDK it was, from a context or an assignment's metaData.
func (d *decoder) about() {
	if d.Kind() != jsonscan.Object {
		d.Ignore()
		return
	}
	d.Reader.Object()
	for d.More() {
		switch d.Key() {
		case "sdkName", "sdk_name", "sdkLanguage":
			d.sdk = wire.First(d.sdk, d.Loose())
		case "sdkVersion", "sdk_version", "sdkLibVersion":
			d.sdkVersion = wire.First(d.sdkVersion, d.Loose())
		default:
			d.Ignore()
		}
	}
}

// The types of event that are assignments: the SDKs', and what else they are called.
func assignment(kind string) bool {
	switch kind {
	case "__eppo_assignment", "eppo_assignment", "assignment":
		return true
	}
	return false
}

// Fields of an event of which each may come once.
const (
	seenType = 1 << iota
	seenUUID
	seenTime
	seenPayload
	seenExperiment
	seenFlag
	seenVariation
	seenSubject
	seenAllocation
)

// draft is one event while it is read: members come in any order, and only the type
// says what they mean.
type draft struct {
	kind, uuid                  string
	time, inner                 int64 // inner: of the payload
	hasTime, hasInner           bool
	experiment, flag, variation string
	subject, user, allocation   string
	value                       float64
	hasValue                    bool
}

// event reads one event: {"uuid":…,"timestamp":…,"type":…,"payload":{…}}, or an
// assignment by itself.
func (d *decoder) event() {
	var e draft
	for d.More() {
		switch name := d.Key(); name {
		case "type":
			d.Once(seenType, "name")
			e.kind = d.Text("name")
		case "uuid":
			d.Once(seenUUID, "event_id")
			e.uuid = d.Loose()
		case "timestamp":
			d.Once(seenTime, "time")
			e.time, e.hasTime = d.ISOTime("time")
		case "payload":
			d.Once(seenPayload, "payload")
			d.Within = "payload"
			if d.Object() {
				for d.More() {
					if name := d.Key(); name == "timestamp" {
						e.inner, e.hasInner = d.ISOTime("time")
					} else {
						d.member(&e, name)
					}
				}
			}
			d.Settle("payload")
		default:
			d.member(&e, name)
		}
	}
	d.finish(&e)
}

// member reads a member of the payload, or of an assignment.
func (d *decoder) member(e *draft, name string) {
	switch name {
	case "experiment":
		d.Once(seenExperiment, "experiment")
		e.experiment = d.ID("experiment")
	case "feature_flag", "featureFlag":
		d.Once(seenFlag, "experiment")
		e.flag = d.ID("experiment")
	case "variation":
		d.Once(seenVariation, "variant")
		e.variation = wire.First(d.Text("variant"), e.variation)
	case "variant":
		e.variation = wire.First(e.variation, d.Text("variant"))
	case "subject":
		d.Once(seenSubject, "unit_id")
		e.subject = d.ID("unit_id")
	case "subjectKey", "subject_key", "user_id", "userId":
		e.user = wire.First(e.user, d.ID("unit_id"))
	case "allocation":
		d.Once(seenAllocation, "rule")
		e.allocation = d.Text("rule")
	case "metaData", "metadata":
		d.about()
	case "subjectAttributes", "subject_attributes", "evaluationDetails", "actionAttributes",
		"subjectNumericAttributes", "subjectCategoricalAttributes", "actionNumericAttributes", "actionCategoricalAttributes":
		d.Ignore()
	default:
		if wire.Contact(name) {
			d.Ignore()
			return
		}
		k := d.Kind()
		if name == "value" && (k == jsonscan.Number || k == jsonscan.String) {
			_, s := d.Scalar()
			d.Settle(wire.First(d.Within, "value"))
			e.value, e.hasValue = wire.Numeric(s, k == jsonscan.Number)
			d.Put(name, s)
			return
		}
		d.Property(name)
	}
}

// finish makes an event of the draft.
func (d *decoder) finish(e *draft) {
	ev := schema.Event{Kind: schema.KindEvent, Name: e.kind, HasTime: e.hasTime, Time: e.time, ClientID: e.uuid,
		UnitType: schema.DefaultUnitType, UnitID: wire.First(e.subject, e.user)}
	if !e.hasTime {
		ev.HasTime, ev.Time = e.hasInner, e.inner
	}
	// An assignment by itself has no type.
	if assignment(e.kind) || e.kind == "" && (e.experiment != "" || e.flag != "" || e.variation != "") {
		ev.Kind, ev.Name = schema.KindExposure, ""
		ev.Rule, ev.Variant = e.allocation, e.variation
		if ev.Experiment = e.experiment; ev.Experiment == "" {
			ev.Experiment = e.flag
		} else if e.flag != "" {
			d.Put("feature_flag", e.flag)
		}
		d.Add(&ev)
		return
	}
	if ev.Name == "" || ev.UnitID == "" {
		d.Fail(schema.CodeUnmappable, "type", "neither an assignment nor an event of a subject")
	}
	ev.Value, ev.HasValue = e.value, e.hasValue
	for _, a := range [...]schema.Attribute{
		{Key: "experiment", Value: e.experiment}, {Key: "feature_flag", Value: e.flag},
		{Key: "variation", Value: e.variation}, {Key: "allocation", Value: e.allocation},
	} {
		if a.Value != "" {
			d.Put(a.Key, a.Value)
		}
	}
	d.Add(&ev)
}
