package schema

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// DefaultUnitType is the unit type of an event that names none.
const DefaultUnitType = "user"

// ValidText reports whether s is UTF-8 without NUL: what every string of an
// event has to be.
func ValidText(s string) bool {
	return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

// field is a field of an event in the native API.
type field uint8

const (
	fieldNone field = iota
	fieldKind
	fieldExperiment
	fieldVariant
	fieldUnitID
	fieldUnitType
	fieldTime
	fieldRule
	fieldReason
	fieldEventID
	fieldAttributes
	fieldName
	fieldValue
	fieldCount
)

var fieldNames = [fieldCount]string{
	fieldKind: "kind", fieldExperiment: "experiment", fieldVariant: "variant", fieldUnitID: "unit_id",
	fieldUnitType: "unit_type", fieldTime: "time", fieldRule: "rule", fieldReason: "reason",
	fieldEventID: "event_id", fieldAttributes: "attributes", fieldName: "name", fieldValue: "value",
}

// check returns why the event does not pass; no code: it does.
func (e *Event) check() (code Code, name, message string) {
	switch e.Kind {
	case KindExposure:
		if e.Experiment == "" {
			return missing(fieldExperiment)
		}
		if e.Variant == "" {
			return missing(fieldVariant)
		}
	case KindEvent:
		if e.Name == "" {
			return missing(fieldName)
		}
	default:
		return CodeInvalidKind, fieldNames[fieldKind], msgKind
	}
	if e.UnitID == "" {
		return missing(fieldUnitID)
	}
	// All of them together are shorter than one may be in all but odd events.
	if len(e.Experiment)+len(e.Variant)+len(e.UnitID)+len(e.UnitType)+len(e.Rule)+len(e.Reason)+len(e.ClientID)+len(e.Name) > MaxFieldBytes {
		for _, f := range [...]struct {
			f field
			v string
		}{
			{fieldExperiment, e.Experiment}, {fieldVariant, e.Variant}, {fieldUnitID, e.UnitID}, {fieldUnitType, e.UnitType},
			{fieldRule, e.Rule}, {fieldReason, e.Reason}, {fieldEventID, e.ClientID}, {fieldName, e.Name},
		} {
			if len(f.v) > MaxFieldBytes {
				return CodeTooLong, fieldNames[f.f], fieldNames[f.f] + " is over " + strconv.Itoa(MaxFieldBytes) + " bytes"
			}
		}
	}
	if len(e.Attributes) > MaxAttributes {
		return CodeTooMany, fieldNames[fieldAttributes], msgTooMany
	}
	for i := range e.Attributes {
		if len(e.Attributes[i].Key) > MaxAttributeKey {
			return CodeTooLong, fieldNames[fieldAttributes], msgLongKey
		}
		if len(e.Attributes[i].Value) > MaxAttributeValue {
			return CodeTooLong, fieldNames[fieldAttributes], msgLongValue
		}
	}
	return "", "", ""
}

// Messages for a person. They hold nothing of what was sent.
const (
	msgNotObject = "an event must be an object"
	msgKind      = `kind must be "exposure" or "event"`
	msgTime      = "time must be RFC 3339 or milliseconds since the Unix epoch"
	msgTooMany   = "more than 256 attributes"
	msgLongKey   = "an attribute's key is over 1024 bytes"
	msgLongValue = "an attribute's value is over 65536 bytes"
	msgNested    = "an attribute must be a string, a number, true, false or null"
	msgOversized = "the event alone is over the record limit"
	msgText      = "not UTF-8, or with a NUL character"
)

func missing(f field) (Code, string, string) {
	return CodeMissingField, fieldNames[f], fieldNames[f] + " is missing or empty"
}
