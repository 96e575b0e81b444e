package schema

import (
	"strings"

	"sluice/pkg/jsonscan"
)

// names are those of the members that the events before had, in their order: nearly
// always the next event has the same ones.
type names struct {
	fields, keys int // so many are known
	ofFields     [16]known
	ofKeys       [16]known // of attributes
}

// known is the name of a member as an event before had it in the same place.
type known struct {
	raw   []byte // with all that stands around it, up to its value
	field field
	key   string // of an attribute
}

// field reads the name of the event's i-th member and says which field it is: none,
// one that is not known. One in another case makes the event wrong.
func (d *jsonDecoder) field(i int) field {
	r := &d.r
	if i < d.names.fields && r.Again(d.names.ofFields[i].raw) {
		return d.names.ofFields[i].field
	}
	start := r.Offset()
	key := r.Key()
	f := fieldOf(key)
	if f == fieldNone {
		if f = inOtherCase(key); f != fieldNone {
			d.wrong(CodeMisspelledField, f, "field names are lower case: "+fieldNames[f])
			return f
		}
	}
	if raw := r.Since(start); raw != nil && r.Fault() == jsonscan.NoFault {
		remember(d.names.ofFields[:], &d.names.fields, i, known{raw: raw, field: f})
	}
	return f
}

// attribute reads the name of the i-th attribute.
func (d *jsonDecoder) attribute(i int) string {
	r := &d.r
	if i < d.names.keys && r.Again(d.names.ofKeys[i].raw) {
		return d.names.ofKeys[i].key
	}
	start := r.Offset()
	key := r.Key()
	if raw := r.Since(start); raw != nil && r.Fault() == jsonscan.NoFault {
		remember(d.names.ofKeys[:], &d.names.keys, i, known{raw: raw, key: key})
	}
	return key
}

// remember keeps the i-th name of n that are known, where there is room for it.
func remember(list []known, n *int, i int, k known) {
	if i > *n || i >= len(list) {
		return
	}
	list[i] = k
	*n = max(*n, i+1)
}

func fieldOf(key string) field {
	switch key {
	case "experiment":
		return fieldExperiment
	case "variant":
		return fieldVariant
	case "unit_id":
		return fieldUnitID
	case "unit_type":
		return fieldUnitType
	case "time":
		return fieldTime
	case "rule":
		return fieldRule
	case "reason":
		return fieldReason
	case "event_id":
		return fieldEventID
	case "attributes":
		return fieldAttributes
	case "name":
		return fieldName
	case "value":
		return fieldValue
	case "kind":
		return fieldKind
	}
	return fieldNone
}

// inOtherCase finds the field whose name differs from key only in case.
func inOtherCase(key string) field {
	for f := fieldNone + 1; f < fieldCount; f++ {
		if len(key) == len(fieldNames[f]) && strings.EqualFold(key, fieldNames[f]) {
			return f
		}
	}
	return fieldNone
}
