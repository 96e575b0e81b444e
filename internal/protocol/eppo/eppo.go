// Package eppo takes the events of Eppo's SDKs, and assignments that a logger hands
// on as they are. docs/sdk/eppo.md has the mapping.
package eppo

import (
	"net/http"

	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

const source = "eppo"

// Endpoints returns the route of the protocol.
func Endpoints() []protocol.Endpoint {
	return []protocol.Endpoint{{
		Name:           "eppo_events",
		Source:         source,
		Methods:        []string{http.MethodPost},
		Path:           "/v0/i",
		Scope:          "exposures",
		CORS:           []string{"authorization", "content-encoding", "content-type", "x-eppo-token"},
		Key:            key,
		AcceptRejected: true, // an error has all of them sent three times more
		Decode:         decode,
		Places:         map[string]string{"name": "type", "unit_id": "payload.subject", "experiment": "payload.experiment", "variant": "payload.variation", "time": "payload.timestamp"},
		Accept:         accept,
	}}
}

func key(r *http.Request) string {
	if v := r.Header.Get("X-Eppo-Token"); v != "" {
		return v
	}
	return protocol.WriteKey(r)
}

// accept names no failed events: what was rejected is kept, and would be rejected
// again.
func accept(protocol.Result) protocol.Answer {
	return protocol.Answer{Status: http.StatusOK, ContentType: "application/json", Body: []byte("{\"failed_events\":[]}\n")}
}

type decoder struct{ *wire.Decoder }

// decode reads {"eppo_events":[…],"context":…}, an array of events, or one.
func decode(req *protocol.Request, b *schema.Batch) error {
	d := decoder{wire.New(req.Body, req.MaxEvents, b)}
	b.SDK = wire.SDK("eppo", "")
	if d.Kind() == jsonscan.Object && !wire.Has(req.Body, "eppo_events") {
		return d.Whole(d.event)
	}
	return d.Document(func() error {
		for d.More() {
			if d.Key() != "eppo_events" {
				d.Ignore() // the context is the device's
				continue
			}
			if err := d.Each(d.event); err != nil {
				return err
			}
		}
		return nil
	}, d.event)
}

// assignment is what an event says, in its payload or beside it.
type assignment struct {
	kind, uuid                                       string
	experiment, flag, variation, variant, rule, unit string
	assigned                                         bool // has a member only assignments have
	time, logged                                     int64
	hasTime, hasLogged                               bool
}

// Fields of an event of which each may come once.
const (
	seenUUID = 1 << iota
	seenType
	seenPayload
	seenUnit
)

func (d *decoder) event() {
	var a assignment
	for d.More() {
		switch name := d.Key(); name {
		case "uuid":
			d.Once(seenUUID, "event_id")
			a.uuid = d.ID("event_id")
		case "type":
			d.Once(seenType, "name")
			a.kind = d.Text("name")
		case "payload":
			d.Once(seenPayload, "payload")
			d.payload(&a)
		case "timestamp":
			a.logged, a.hasLogged = d.Time("time")
		default:
			d.member(name, &a)
		}
	}
	e := schema.Event{Kind: schema.KindEvent, Name: a.kind, UnitID: a.unit, ClientID: a.uuid, Rule: a.rule, HasTime: a.hasTime || a.hasLogged, Time: a.time}
	if !a.hasTime {
		e.Time = a.logged
	}
	if a.unit != "" {
		e.UnitType = schema.DefaultUnitType
	}
	if a.assigned || a.kind == "assignment" {
		e.Kind, e.Name = schema.KindExposure, ""
		e.Experiment, e.Variant = wire.First(a.experiment, a.flag), wire.First(a.variation, a.variant)
		if a.experiment != "" && a.flag != "" {
			d.Put("featureFlag", a.flag)
		}
	}
	d.Add(&e)
}

// payload reads what a customer logged: an object, whose members count as those of
// the event.
func (d *decoder) payload(a *assignment) {
	d.Within = "payload"
	defer func() { d.Within = "" }()
	if !d.Object() {
		d.Settle("payload")
		return
	}
	for d.More() {
		if name := d.Key(); name == "timestamp" {
			a.time, a.hasTime = d.Time("time")
		} else {
			d.member(name, a)
		}
	}
}

func (d *decoder) member(name string, a *assignment) {
	switch name {
	case "experiment":
		a.experiment, a.assigned = d.Text("experiment"), true
	case "featureFlag":
		a.flag, a.assigned = d.Text("experiment"), true
	case "variation":
		a.variation, a.assigned = d.Text("variant"), true
	case "variant":
		a.variant = d.Text("variant")
	case "allocation":
		a.rule = d.Text("rule")
	case "subject":
		d.Once(seenUnit, "unit_id")
		a.unit = d.ID("unit_id")
	case "subjectAttributes":
		d.attributes("subject.")
	case "metaData", "metadata":
		d.attributes("metaData.")
	case "evaluationDetails": // how the SDK came to it, rule by rule
		d.Ignore()
	default:
		if wire.Contact(name) {
			d.Ignore()
			return
		}
		d.Property(name)
	}
}

// attributes keeps what is flat and says nothing of who somebody is.
func (d *decoder) attributes(prefix string) {
	if !d.Object() {
		d.Settle("attributes")
		return
	}
	for d.More() {
		name := d.Key()
		if wire.Identity(name) {
			d.Ignore()
			continue
		}
		d.Member(d.Path(prefix, name), wire.LeaveOut)
	}
}
