package doctor

import (
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

const evaluation = "feature_flag.evaluation"

// evaluated are the attributes of an evaluation as OpenTelemetry's conventions for
// feature flags have them.
func evaluated(p Probe) [][2]string {
	return [][2]string{
		{"feature_flag.key", Experiment},
		{"feature_flag.provider.name", "sluice-doctor"},
		{"feature_flag.result.variant", Variant},
		{"feature_flag.result.reason", "static"},
		{"feature_flag.context.id", p.Unit},
	}
}

func otlpHeader(p Probe, contentType string) map[string]string {
	return map[string]string{
		"Content-Type": contentType, "X-API-Key": p.key(), "User-Agent": "OTel-OTLP-Exporter-JavaScript/0.223.1",
	}
}

func otlp(p Probe) call {
	attribute := func(key, value string) object { return object{"key": key, "value": object{"stringValue": value}} }
	attributes := []object{}
	for _, a := range evaluated(p) {
		attributes = append(attributes, attribute(a[0], a[1]))
	}
	at := strconv.FormatInt(p.Time.UnixNano(), 10)
	return call{
		path:   "/v1/logs",
		header: otlpHeader(p, typeJSON),
		body: object{"resourceLogs": []object{{
			"resource": object{"attributes": []object{attribute("service.name", "sluice-doctor")}, "droppedAttributesCount": 0},
			"scopeLogs": []object{{
				"scope": object{"name": "sluice-doctor"},
				"logRecords": []object{{
					"timeUnixNano": at, "observedTimeUnixNano": at, "severityNumber": 9, "body": object{},
					"eventName": evaluation, "attributes": attributes, "droppedAttributesCount": 0,
				}},
			}},
		}}},
		chunked: true,
	}
}

// otlpProtobuf is the same as ExportLogsServiceRequest of opentelemetry-proto 1.x
// (collector/logs/v1, logs/v1, common/v1), which the field numbers are from.
func otlpProtobuf(p Probe) call {
	text := func(b []byte, field protowire.Number, s string) []byte {
		return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
	}
	message := func(b []byte, field protowire.Number, m []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), m)
	}
	attribute := func(key, value string) []byte { // KeyValue: key 1, value 2; AnyValue: string_value 1
		return message(text(nil, 1, key), 2, text(nil, 1, value))
	}
	fixed := func(b []byte, field protowire.Number, v uint64) []byte {
		return protowire.AppendFixed64(protowire.AppendTag(b, field, protowire.Fixed64Type), v)
	}
	at := uint64(p.Time.UnixNano())
	record := fixed(nil, 1, at) // LogRecord: time_unix_nano
	record = protowire.AppendVarint(protowire.AppendTag(record, 2, protowire.VarintType), 9)
	for _, a := range evaluated(p) {
		record = message(record, 6, attribute(a[0], a[1])) // attributes
	}
	record = fixed(record, 11, at)        // observed_time_unix_nano
	record = text(record, 12, evaluation) // event_name

	scope := message(nil, 1, text(nil, 1, "sluice-doctor"))                                                             // ScopeLogs: scope; InstrumentationScope: name
	scope = message(scope, 2, record)                                                                                   // log_records
	resource := message(nil, 1, attribute("service.name", "sluice-doctor"))                                             // Resource: attributes
	resourceLogs := message(message(nil, 1, resource), 2, scope)                                                        // ResourceLogs: resource, scope_logs
	return call{path: "/v1/logs", header: otlpHeader(p, "application/x-protobuf"), body: message(nil, 1, resourceLogs)} // resource_logs
}

// rejectedRecords reports whether an ExportLogsServiceResponse has a partial_success
// (1) with rejected_log_records (1) in it.
func rejectedRecords(response []byte) bool {
	partial, ok := field(response, 1)
	if !ok {
		return false
	}
	message, n := protowire.ConsumeBytes(partial)
	if n < 0 {
		return false
	}
	count, ok := field(message, 1)
	if !ok {
		return false
	}
	rejected, n := protowire.ConsumeVarint(count)
	return n > 0 && rejected > 0
}

// field returns a message from the first field of a number on, without its tag.
func field(message []byte, number protowire.Number) ([]byte, bool) {
	for len(message) > 0 {
		num, typ, n := protowire.ConsumeTag(message)
		if n < 0 {
			return nil, false
		}
		message = message[n:]
		if num == number {
			return message, true
		}
		if n = protowire.ConsumeFieldValue(num, typ, message); n < 0 {
			return nil, false
		}
		message = message[n:]
	}
	return nil, false
}
