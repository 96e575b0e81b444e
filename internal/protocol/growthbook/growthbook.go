// Package growthbook takes what GrowthBook's tracking plugin logs, so that one
// whose ingestor host is set to a collector works unchanged. docs/sdk/growthbook.md
// has the mapping.
package growthbook

import (
	"net/http"

	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

const source = "growthbook"

// Endpoints returns the route of the protocol.
func Endpoints() []protocol.Endpoint {
	return []protocol.Endpoint{{
		Name:    "growthbook_track",
		Source:  source,
		Methods: []string{http.MethodPost},
		Path:    "/track",
		Scope:   "exposures",
		// No MediaTypes: text/plain with a fetch, and whatever a browser makes of a beacon.
		CORS:           []string{"accept", "authorization", "content-encoding", "content-type"},
		Key:            key,
		AcceptRejected: true, // the plugin never sends again
		Decode:         decode,
		Places:         map[string]string{"name": "event_name", "unit_id": "user_id", "experiment": "properties_json.experimentId", "variant": "properties_json.variationId"},
		Accept:         accept,
	}}
}

// key is the client key, which the plugin has in the query.
func key(r *http.Request) string {
	if r.URL.RawQuery != "" {
		if v := r.URL.Query().Get("client_key"); v != "" {
			return v
		}
	}
	return protocol.WriteKey(r)
}

// accept: nobody reads the answer.
func accept(protocol.Result) protocol.Answer {
	return protocol.Answer{Status: http.StatusAccepted, ContentType: "application/json", Body: []byte("{}\n")}
}

// What GrowthBook calls its own events. The first is an exposure.
const (
	viewed  = "Experiment Viewed"
	deviced = "device" // the unit type of visitors who are known by their device only
)

// decode reads an array of events, or one.
func decode(req *protocol.Request, b *schema.Batch) error {
	d := decoder{Decoder: wire.New(req.Body, req.MaxEvents, b)}
	if d.Kind() == jsonscan.Object {
		return d.Whole(d.event)
	}
	return d.Document(nil, d.event)
}

type decoder struct{ *wire.Decoder }

// Fields of an event of which each may come once.
const (
	seenName = 1 << iota
	seenUser
	seenProperties
)

// properties are what an event of GrowthBook's own says.
type properties struct{ experiment, variation, hashAttribute, hashValue string }

func (d *decoder) event() {
	var name, user, device, language, version string
	var p properties
	for d.More() {
		switch field := d.Key(); field {
		case "event_name":
			d.Once(seenName, "name")
			name = d.Text("name")
		case "user_id":
			d.Once(seenUser, "unit_id")
			user = d.ID("unit_id")
		case "device_id":
			device = d.ID("unit_id")
		case "properties_json", "properties":
			d.Once(seenProperties, "properties")
			d.properties(&p)
		case "context_json":
			d.context()
		case "sdk_language":
			language = d.Text("sdk")
		case "sdk_version":
			version = d.Text("sdk")
		default: // page_id, session_id, page_title, url, utm_…
			d.Member(field, wire.LeaveOut)
		}
	}
	if d.Batch.SDK == "" && language != "" {
		d.Batch.SDK = wire.SDK("growthbook-"+language, version)
	}
	e := schema.Event{Kind: schema.KindEvent, Name: name}
	switch {
	case user != "":
		e.UnitType, e.UnitID = schema.DefaultUnitType, user
	case device != "":
		e.UnitType, e.UnitID = deviced, device
	default: // an experiment says by what it told its visitors apart
		e.UnitType, e.UnitID = p.hashAttribute, p.hashValue
	}
	if name == viewed {
		e.Kind, e.Name, e.Experiment, e.Variant = schema.KindExposure, "", p.experiment, p.variation
	} else {
		put := func(name, value string) {
			if value != "" {
				d.Put(name, value)
			}
		}
		put("experimentId", p.experiment)
		put("variationId", p.variation)
	}
	if p.hashAttribute != "" {
		d.Put("hashAttribute", p.hashAttribute)
	}
	d.Add(&e)
}

func (d *decoder) properties(p *properties) {
	d.Within = "properties"
	defer func() { d.Within = "" }()
	if !d.Object() {
		d.Settle("properties")
		return
	}
	for d.More() {
		switch name := d.Key(); name {
		case "experimentId":
			p.experiment = d.Text("experiment")
		case "variationId":
			p.variation = d.Text("variant")
		case "hashAttribute":
			p.hashAttribute = d.Text("unit_type")
		case "hashValue":
			p.hashValue = d.ID("unit_id")
		default:
			d.Property(name)
		}
	}
}

// context keeps what is flat of the visitor's attributes and says nothing of who
// they are.
func (d *decoder) context() {
	d.Within = "context_json"
	defer func() { d.Within = "" }()
	if !d.Object() {
		d.Settle("context_json")
		return
	}
	for d.More() {
		name := d.Key()
		if wire.Identity(name) {
			d.Ignore()
			continue
		}
		d.Member(d.Path("context.", name), wire.LeaveOut)
	}
}
