package launchdarkly

import (
	"encoding/json"
	"strings"

	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// unitFlag is the unit type of the counters of a summary: they are about a flag and
// not about anybody.
const unitFlag = "flag"

// counted is what the counters of one summary share.
type counted struct {
	start, end       string // as sent
	time             int64
	hasTime          bool
	flag             string
	byDefault, kinds []byte         // JSON; nil: not there
	fault            jsonscan.Fault // in one of the two
	contexts         []schema.Attribute
}

// summary reads how often flags were evaluated: for flags whose events are not
// tracked that is all there is. Each counter becomes an event of its own.
func (d *decoder) summary() {
	var s counted
	var features jsonscan.Mark
	found := false
	for d.More() {
		switch d.Key() {
		case "startDate":
			_, _, s.start = d.date("startDate")
		case "endDate":
			d.Once(seenTime, "time")
			s.time, s.hasTime, s.end = d.date("time")
		case "context": // newer browser SDKs count for each context by itself
			d.context()
		case "contextKeys":
			d.contextKeys()
		case "features":
			d.Once(seenFeatures, "features")
			if k := d.Kind(); k != jsonscan.Object && k != jsonscan.Null {
				d.Fail(schema.CodeInvalidType, "features", "features has the wrong type")
			}
			features, found = d.Mark(), true
			d.Ignore()
		default:
			d.Ignore()
		}
	}
	if d.Failed() {
		d.add(&schema.Event{})
		return
	}
	if !found || d.Err() != nil {
		return
	}
	for _, c := range d.contexts {
		s.contexts = append(s.contexts, schema.Attribute{Key: d.Path(attrContexts, c.kind+".key"), Value: c.key})
	}
	end := d.Mark()
	d.Rewind(features)
	if !d.Null() && d.Object() {
		for d.More() {
			d.ClearFault()
			s.flag = d.Key()
			d.flag(&s, d.Fault())
		}
	}
	d.Rewind(end)
}

// maxDate bounds a time as sent, which each counter repeats. No clock needs more.
const maxDate = 32

// date reads a time, and as what JSON it was sent; "" where it was not.
func (d *decoder) date(field string) (us int64, ok bool, sent string) {
	d.Kind()
	from := d.Offset()
	if us, ok = d.Millis(field); ok {
		sent = wire.String(d.Since(from))
	}
	if len(sent) > maxDate {
		sent = ""
	}
	return us, ok, sent
}

// flag reads the counters of one flag.
func (d *decoder) flag(s *counted, key jsonscan.Fault) {
	k := d.Kind()
	from := d.Offset()
	s.byDefault, s.kinds, s.fault = nil, nil, jsonscan.NoFault
	d.ClearFault()
	var counters jsonscan.Mark
	found := jsonscan.None
	if k == jsonscan.Object {
		d.Object()
		for d.More() {
			switch d.Key() {
			case "default":
				s.byDefault = d.Skip()
				s.fault = max(s.fault, d.Fault())
			case "contextKinds":
				s.kinds = d.Skip()
				s.fault = max(s.fault, d.Fault())
			case "counters":
				found, counters = d.Kind(), d.Mark()
				d.Ignore()
			default:
				d.Ignore()
			}
		}
	} else {
		d.Skip()
	}
	if d.Err() != nil {
		return
	}
	end := d.Mark()
	switch {
	case found != jsonscan.Array || key != jsonscan.NoFault:
		if d.full() {
			return
		}
		d.Part()
		if key != jsonscan.NoFault {
			d.Fail(schema.CodeInvalidString, "unit_id", "a string with "+key.String())
		}
		d.Fail(schema.CodeInvalidType, "features", "a flag of a summary must have an array of counters")
		d.AddPart(&schema.Event{})
		d.RawPart(d.Since(from))
	default:
		d.Rewind(counters)
		d.Array()
		for d.More() && !d.full() {
			d.counter(s)
		}
		d.Rewind(end)
	}
}

// counter reads how often one variation was served.
func (d *decoder) counter(s *counted) {
	d.Part()
	ev := schema.Event{Kind: schema.KindEvent, Name: kindSummary, UnitType: unitFlag, UnitID: s.flag, Time: s.time, HasTime: s.hasTime}
	k := d.Kind()
	from := d.Offset()
	if k != jsonscan.Object {
		d.Skip()
		d.Fail(schema.CodeInvalidType, "", "a counter must be an object")
	} else {
		d.Object()
		for d.More() {
			switch name := d.Key(); name {
			case "count":
				ev.Value, _, ev.HasValue = d.Number("value")
			case "value":
				d.value(attrValue)
			default: // variation, version, unknown
				d.Member(name, wire.LeaveOut)
			}
		}
		if !ev.HasValue {
			d.Fail(schema.CodeMissingField, "value", "count is missing or no number")
		}
	}
	raw := d.Since(from)
	if !d.RepeatText(s.flag) {
		d.Fail(schema.CodeTooLong, "unit_id", "the key of the flag is too long for so many counters")
	}
	if s.fault != jsonscan.NoFault {
		d.Fail(schema.CodeInvalidString, "attributes", "default or contextKinds with "+s.fault.String())
	}
	d.shared(s)
	if !d.AddPart(&ev) {
		d.RawPart(d.alone(s, raw))
	}
}

// shared adds the attributes that all counters of a flag have.
func (d *decoder) shared(s *counted) {
	if s.start != "" {
		d.Put("start", strings.Trim(s.start, `"`))
	}
	if s.end != "" {
		d.Put("end", strings.Trim(s.end, `"`))
	}
	for _, c := range s.contexts {
		if d.Repeat(len(c.Key) + len(c.Value) + 32) { // and what lists it
			d.Put(c.Key, c.Value)
		}
	}
	for _, m := range [...]struct {
		name string
		json []byte
	}{{"default", s.byDefault}, {"context_kinds", s.kinds}} {
		if len(m.json) == 0 || len(m.json) > schema.MaxAttributeValue || !d.Repeat(len(m.json)) || string(m.json) == "null" {
			continue
		}
		text := wire.String(m.json)
		if m.json[0] == '"' {
			if err := json.Unmarshal(m.json, &text); err != nil || text == "" {
				continue
			}
		}
		d.Put(m.name, text)
	}
}

// alone makes a summary of a counter that was rejected, so that it can be read
// again by itself.
func (d *decoder) alone(s *counted, counter []byte) []byte {
	const escaped = 6 // bytes for one, at most
	n := escaped*len(s.flag) + len(s.start) + len(s.end) + len(s.byDefault) + len(s.kinds) + len(counter)
	if len(s.flag) > schema.MaxFieldBytes || !d.Repeat(n) {
		return counter
	}
	flag, err := json.Marshal(s.flag)
	if err != nil { // a string cannot fail
		return counter
	}
	out := append([]byte(`{"kind":"summary","features":{`), flag...)
	out = append(out, `:{"counters":[`...)
	out = append(out, counter...)
	out = append(out, ']')
	for _, m := range [...]struct {
		name string
		json []byte
	}{{`,"default":`, s.byDefault}, {`,"contextKinds":`, s.kinds}} {
		if len(m.json) > 0 {
			out = append(append(out, m.name...), m.json...)
		}
	}
	out = append(out, "}}"...)
	if s.start != "" {
		out = append(append(out, `,"startDate":`...), s.start...)
	}
	if s.end != "" {
		out = append(append(out, `,"endDate":`...), s.end...)
	}
	return append(out, '}')
}
