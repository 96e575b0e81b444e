package otlp

import (
	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
	"sluice/pkg/schema"
)

// The names of events that are evaluations of a flag: the present one, and that of
// the conventions before it.
const (
	evaluation    = "feature_flag.evaluation"
	oldEvaluation = "feature_flag"
)

// part is an attribute that says what an event is about, those of earlier
// conventions included.
type part int

const (
	eventName part = iota
	flagKey
	variant
	oldVariant
	value
	oldValue
	reason
	oldReason
	oldestReason
	contextID
	contextKind
	userID
	endUserID
	parts
	noPart = parts
)

// name is how the part is called.
func (p part) name() string {
	switch p {
	case eventName:
		return "event.name"
	case flagKey:
		return "feature_flag.key"
	case variant:
		return "feature_flag.result.variant"
	case oldVariant:
		return "feature_flag.variant"
	case value:
		return "feature_flag.result.value"
	case oldValue:
		return "feature_flag.evaluation.value"
	case reason:
		return "feature_flag.result.reason"
	case oldReason:
		return "feature_flag.evaluation.reason"
	case oldestReason:
		return "feature_flag.reason"
	case contextID:
		return "feature_flag.context.id"
	case contextKind:
		return "feature_flag.context.kind"
	case userID:
		return "user.id"
	case endUserID:
		return "enduser.id"
	}
	return ""
}

// partOf finds the part of a name.
func partOf(name string) part {
	switch name {
	case "event.name":
		return eventName
	case "feature_flag.key":
		return flagKey
	case "feature_flag.result.variant":
		return variant
	case "feature_flag.variant":
		return oldVariant
	case "feature_flag.result.value":
		return value
	case "feature_flag.evaluation.value":
		return oldValue
	case "feature_flag.result.reason":
		return reason
	case "feature_flag.evaluation.reason":
		return oldReason
	case "feature_flag.reason":
		return oldestReason
	case "feature_flag.context.id":
		return contextID
	case "feature_flag.context.kind":
		return contextKind
	case "user.id":
		return userID
	case "enduser.id":
		return endUserID
	}
	return noPart
}

// Other attributes that mean something here.
const (
	prefixFlag  = "feature_flag."
	attrNumber  = "value"
	attrService = "service.name"
	attrTrace   = "trace_id"
	attrSpan    = "span_id"
)

// personal reports whether an attribute is one that the conventions have for what
// must not be kept of a person.
func personal(name string) bool {
	switch name {
	case "client.address", "source.address", "network.peer.address", "user.full_name", "user.name",
		"user_agent.original", "url.full", "url.query":
		return true
	}
	return wire.Contact(name)
}

// text is a value as text.
type text struct {
	s      string
	number float64
	numeric,
	there bool
}

// draft is one log record while it is read: its fields come in any order, and only
// its name says what they mean. Attributes that are no part gather in Attrs.
type draft struct {
	name        string
	nanos       uint64 // 0: none
	observed    uint64
	trace, span string
	parts       [parts]string
	number      float64
	hasNumber   bool
	flag        bool // there is an attribute feature_flag.…
	// The record's body, in the encoding that it came in.
	json, proto []byte
}

// decoder reads one body into one batch.
type decoder struct {
	*wire.Decoder
	service             string // of the resource being read
	sdk, sdkVersion     string // of the first resource that says
	scope, scopeVersion string // the first there is
	buf                 []byte // where a value becomes text
	over                bool   // there are more events than there may be
	broken              bool   // protobuf: the record being read
	entered             bool   // JSON: the envelope is one of log records, or has nothing in it
}

// full reports whether there are as many events as there may be; if so, the request
// is going to be refused. The lines of a log do not count: nothing of them is kept,
// and they must not cost the evaluations among them.
func (d *decoder) full() bool { return int(d.Batch.Count) >= d.Most }

// finish sets what is known of who sent the batch.
func (d *decoder) finish(req *protocol.Request) {
	d.Batch.SDK = wire.First(wire.SDK(d.sdk, d.sdkVersion), wire.SDK(agent(req.Header), ""), wire.SDK(d.scope, d.scopeVersion))
}

// put takes an attribute of a record, or of a resource where e is nil.
func (d *decoder) put(e *draft, name string, v text) {
	switch {
	case name == "" || !v.there:
	case e == nil:
		switch name {
		case attrService:
			d.service = v.s
		case "telemetry.sdk.name":
			d.sdk = wire.First(d.sdk, v.s)
		case "telemetry.sdk.version":
			d.sdkVersion = wire.First(d.sdkVersion, v.s)
		}
	default:
		flag := len(name) > len(prefixFlag) && name[:len(prefixFlag)] == prefixFlag
		e.flag = e.flag || flag
		if p := partOf(name); p != noPart {
			e.parts[p] = v.s
			return
		}
		if name == attrNumber {
			e.number, e.hasNumber = v.number, v.numeric
		}
		if flag || !personal(name) {
			d.Put(name, v.s)
		}
	}
}

// take returns a part, which then is no attribute any more.
func (e *draft) take(p part) string {
	s := e.parts[p]
	e.parts[p] = ""
	return s
}

// takeFirst takes the first of the parts that says something.
func (e *draft) takeFirst(ps ...part) string {
	for _, p := range ps {
		if s := e.take(p); s != "" {
			return s
		}
	}
	return ""
}

// event makes an event of the record, or reports that it is nobody's: a line of a
// log, or an event that has no unit and nothing to do with flags.
func (d *decoder) event(e *draft) (ev schema.Event, ok bool) {
	name := wire.First(e.name, e.parts[eventName])
	e.parts[eventName] = ""
	if name == "" {
		return ev, false
	}
	ev = schema.Event{Kind: schema.KindEvent, Name: name}
	if nanos := e.nanos; nanos != 0 {
		ev.HasTime, ev.Time = true, int64(nanos/1000)
	} else if e.observed != 0 {
		ev.HasTime, ev.Time = true, int64(e.observed/1000)
	}
	if ev.UnitID = e.take(contextID); ev.UnitID != "" {
		ev.UnitType = e.take(contextKind)
	} else {
		ev.UnitID = e.takeFirst(userID, endUserID)
	}
	ev.UnitType = wire.First(ev.UnitType, schema.DefaultUnitType)

	if name == evaluation || name == oldEvaluation {
		ev.Kind, ev.Name = schema.KindExposure, ""
		ev.Experiment = e.take(flagKey)
		if ev.Variant = e.takeFirst(variant, oldVariant); ev.Variant == "" {
			ev.Variant = wire.First(e.takeFirst(value, oldValue), d.bodyValue(e))
		}
		ev.Reason = e.takeFirst(reason, oldReason, oldestReason)
	} else {
		if ev.UnitID == "" {
			if !e.flag {
				return ev, false
			}
			d.Fail(schema.CodeUnmappable, "unit_id", "an event that has none of feature_flag.context.id, user.id and enduser.id")
		}
		ev.Value, ev.HasValue = e.number, e.hasNumber
	}
	for p := range parts {
		if e.parts[p] != "" {
			d.Put(p.name(), e.parts[p])
		}
	}
	if d.service != "" && !d.has(attrService) && d.RepeatText(d.service) {
		d.Put(attrService, d.service)
	}
	if e.trace != "" {
		d.Put(attrTrace, e.trace)
	}
	if e.span != "" {
		d.Put(attrSpan, e.span)
	}
	return ev, true
}

func (d *decoder) has(name string) bool {
	for i := range d.Attrs {
		if d.Attrs[i].Key == name {
			return true
		}
	}
	return false
}

// bodyValue is the value in a body {"value":…}, where earlier conventions had it.
func (d *decoder) bodyValue(e *draft) string {
	switch {
	case e.json != nil:
		return bodyValueJSON(e.json)
	case e.proto != nil:
		return d.bodyValueProto(e.proto)
	}
	return ""
}
