package protocol

import "sluice/pkg/schema"

// EventCodeInfo documents one reason for which a single event is rejected.
type EventCodeInfo struct {
	Code schema.Code
	// Meaning and Do are what docs/errors.md says.
	Meaning, Do string
}

// EventCodes lists every code an event can be rejected with, in the order of the
// documentation.
func EventCodes() []EventCodeInfo {
	return []EventCodeInfo{
		{schema.CodeMissingField, "A required field is absent, null or empty.", "Send `experiment`, `variant` and `unit_id` with an exposure, `name` and `unit_id` with a custom event."},
		{schema.CodeInvalidType, "A field, or the event itself, has the wrong JSON type.", "Send text as a string, `value` as a number, `attributes` as a flat object."},
		{schema.CodeInvalidKind, "`kind` is neither `exposure` nor `event`.", "Send one of the two, or leave `kind` out for the endpoint's own."},
		{schema.CodeInvalidTime, "`time` is neither RFC 3339 nor milliseconds since the Unix epoch.", "Send one of the two, or leave `time` out for the time of receipt."},
		{schema.CodeInvalidString, "A string is not UTF-8, or has a lone surrogate or a NUL in it.", "Send valid Unicode without NUL."},
		{schema.CodeInvalidNumber, "A number is not finite as a double, or an integer outside 64 bits.", "Send a number in range, or text."},
		{schema.CodeDuplicateField, "A field comes twice in one event.", "Send each field once. (Inside `attributes` the last one counts.)"},
		{schema.CodeMisspelledField, "A known field is written in another case, such as `Experiment`.", "Write the fields' names in lower case."},
		{schema.CodeTooLong, "A field is over its limit: 4 KiB, an attribute's key 1 KiB, its value 64 KiB.", "Shorten it."},
		{schema.CodeTooLarge, "The event does not fit into one record (900 KiB unless configured otherwise).", "Send less with the event."},
		{schema.CodeTooMany, "The event has more than 256 attributes.", "Send fewer attributes."},
		{schema.CodeMalformed, "A line of NDJSON, or a protobuf message, cannot be read.", "Correct the sender."},
		{schema.CodeUnmappable, "An event of an SDK's own protocol that is neither an exposure nor a custom event as Sluice knows them.", "See the page of that protocol."},
	}
}
