package replay

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// Fix is one repair of a dead letter.
type Fix struct {
	field string   // of the native API; empty: a place in the event as it came
	key   string   // of an attribute
	path  []string // of the place
	value string   // empty: take it out
}

// fixable are the fields of an event that a Fix can set, beside attributes.
func fixable() []string {
	return []string{"unit_id", "experiment", "variant", "unit_type", "time", "name", "value", "event_id", "kind", "rule", "reason"}
}

const (
	attributesField = "attributes"
	bodyPrefix      = "body."
)

// ParseFix reads field=value, where field is one of an event in the native API
// (unit_id, experiment, variant, unit_type, time, name, value, event_id, kind, rule,
// reason), attributes.KEY, or body.PATH: a place, its names joined by dots, in the
// event as its sender wrote it, for protocols that have other names. An empty value
// takes the field out. A body value that is JSON is put in as it is (true, 7,
// {"a":1}), any other as a string.
func ParseFix(s string) (Fix, error) {
	field, value, ok := strings.Cut(s, "=")
	if !ok {
		return Fix{}, fmt.Errorf("%q: want field=value", s)
	}
	if !schema.ValidText(value) || !schema.ValidText(field) {
		return Fix{}, fmt.Errorf("%q: want UTF-8 without NUL", s)
	}
	f := Fix{field: field, value: value}
	if key, ok := strings.CutPrefix(field, attributesField+"."); ok && key != "" {
		f.field, f.key = attributesField, key
		return f, nil
	}
	if path, ok := strings.CutPrefix(field, bodyPrefix); ok {
		f.field, f.path = "", strings.Split(path, ".")
		if slices.Contains(f.path, "") || len(f.path) > schema.MaxDepth {
			return Fix{}, fmt.Errorf("%q: want body. and names joined by dots", s)
		}
		return f, nil
	}
	if !slices.Contains(fixable(), field) {
		return Fix{}, fmt.Errorf("%q: want one of %s, attributes.KEY or body.PATH", field, strings.Join(fixable(), ", "))
	}
	if value == "" {
		return f, nil
	}
	switch field {
	case "kind":
		if kindOf(value) == schema.KindUnspecified {
			return Fix{}, fmt.Errorf("kind=%q: want exposure or event", value)
		}
	case "time":
		us, ok := timeOf(value)
		if !ok {
			return Fix{}, fmt.Errorf("time=%q: want RFC 3339 or milliseconds since the Unix epoch", value)
		}
		if _, text := schema.ParseTime(value); !text {
			f.value = millis(us)
		}
	case "value":
		v, err := strconv.ParseFloat(value, 64)
		if err != nil || math.IsInf(v, 0) || math.IsNaN(v) {
			return Fix{}, fmt.Errorf("value=%q: want a number", value)
		}
		f.value = strconv.FormatFloat(v, 'g', -1, 64) // Go reads numbers that JSON does not have
	}
	return f, nil
}

func kindOf(s string) schema.Kind {
	switch s {
	case schema.KindExposure.String():
		return schema.KindExposure
	case schema.KindEvent.String():
		return schema.KindEvent
	}
	return schema.KindUnspecified
}

// millis writes microseconds as milliseconds, a number that JSON has.
func millis(us int64) string {
	sign, abs := "", uint64(us)
	if us < 0 {
		sign, abs = "-", -abs
	}
	return fmt.Sprintf("%s%d.%03d", sign, abs/1000, abs%1000)
}

func timeOf(s string) (us int64, ok bool) {
	if us, ok = schema.ParseTime(s); !ok {
		us, ok = schema.ParseEpochMillis(s)
	}
	return us, ok
}

// apply repairs a decoded event. An attribute is set in the order of the keys.
func (f *Fix) apply(e *schema.Event) {
	switch f.field {
	case "unit_id":
		e.UnitID = f.value
	case "experiment":
		e.Experiment = f.value
	case "variant":
		e.Variant = f.value
	case "unit_type":
		e.UnitType = f.value
	case "name":
		e.Name = f.value
	case "event_id":
		e.ClientID = f.value
	case "rule":
		e.Rule = f.value
	case "reason":
		e.Reason = f.value
	case "kind":
		if f.value != "" {
			e.Kind = kindOf(f.value)
		}
	case "time":
		e.Time, e.HasTime = timeOf(f.value)
		e.TimeAdjusted = false
	case "value":
		v, err := strconv.ParseFloat(f.value, 64)
		e.Value, e.HasValue = v, err == nil
	case attributesField:
		i, found := slices.BinarySearchFunc(e.Attributes, f.key, func(a schema.Attribute, key string) int { return strings.Compare(a.Key, key) })
		own := slices.Clone(e.Attributes) // they may share memory with another event's
		switch {
		case found && f.value == "":
			own = slices.Delete(own, i, i+1)
		case found:
			own[i].Value = f.value
		case f.value != "":
			own = slices.Insert(own, i, schema.Attribute{Key: f.key, Value: f.value})
		}
		e.Attributes = own
	}
}

// inJSON repairs an event of the native API before it is read: most of what an
// event is refused for cannot be told once it was.
func (f *Fix) inJSON(raw []byte) ([]byte, error) {
	if f.field == "" {
		return f.inBody(raw)
	}
	path := []string{f.field}
	if f.field == attributesField {
		path = append(path, f.key)
	}
	var value []byte
	switch {
	case f.value == "":
	case f.field == "value":
		value = []byte(f.value)
	case f.field == "time":
		if _, ok := schema.ParseTime(f.value); !ok {
			value = []byte(f.value)
			break
		}
		fallthrough
	default:
		value = schema.AppendQuoted(nil, f.value)
	}
	return setMember(raw, path, value, true)
}

// inBody repairs an event as its sender wrote it.
func (f *Fix) inBody(raw []byte) ([]byte, error) {
	var value []byte
	if f.value != "" {
		r := jsonscan.NewReader([]byte(f.value), schema.MaxDepth)
		if value = r.Skip(); r.End() != nil {
			value = schema.AppendQuoted(nil, f.value)
		}
	}
	return setMember(raw, f.path, value, false)
}

var (
	errNotJSON   = errors.New("it is not JSON")
	errNotObject = errors.New("it is not a JSON object")
)

// setMember sets one member of a JSON object, at a path, or takes it out where
// value is nil. Every other member stays as it was written, faults included. All
// members of that name go, since a field that comes twice is refused; with fold also
// those that differ in case only, which are refused as misspelled. What is on the
// path and no object becomes one.
func setMember(raw []byte, path []string, value []byte, fold bool) ([]byte, error) {
	r := jsonscan.NewReader(raw, schema.MaxDepth)
	switch r.Kind() {
	case jsonscan.None:
		return nil, errNotJSON
	case jsonscan.Object:
	default:
		return nil, errNotObject
	}
	out := append(make([]byte, 0, len(raw)+len(value)+64), '{')
	var old []byte
	r.Object()
	for r.More() {
		from := r.Offset()
		key := r.Key()
		v := r.Skip()
		member := r.Since(from)
		if key == path[0] || fold && strings.EqualFold(key, path[0]) {
			if key == path[0] {
				old = v
			}
			continue
		}
		out = append(comma(out), member...)
	}
	if r.End() != nil {
		return nil, errNotJSON
	}
	if len(path) > 1 {
		inner, err := setMember(old, path[1:], value, false)
		if err != nil { // absent, or of another type
			if inner, err = setMember([]byte("{}"), path[1:], value, false); err != nil {
				return nil, err
			}
		}
		value = inner
	}
	if value != nil {
		out = append(schema.AppendQuoted(comma(out), path[0]), ':')
		out = append(out, value...)
	}
	return append(out, '}'), nil
}

func comma(out []byte) []byte {
	if len(out) > 1 {
		out = append(out, ',')
	}
	return out
}

// member returns the text of an object's member, if it is a string without faults,
// and whether the object has such a member at all.
func member(raw []byte, name string) (text string, has bool) {
	r := jsonscan.NewReader(raw, schema.MaxDepth)
	if r.Kind() != jsonscan.Object {
		return "", false
	}
	r.Object()
	for r.More() {
		if r.Key() != name {
			r.Skip()
			continue
		}
		has = true
		if r.Kind() == jsonscan.String {
			text = r.Text()
		} else {
			r.Skip()
		}
	}
	return text, has && r.Err() == nil
}
