package otlp

import (
	"encoding/json"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

func request(mediaType, body string) *protocol.Request {
	return &protocol.Request{Header: http.Header{}, Query: url.Values{}, Path: "/v1/logs", MediaType: mediaType, Body: []byte(body), MaxEvents: 10_000}
}

func decoded(t *testing.T, mediaType, body string) *schema.Batch {
	t.Helper()
	var b schema.Batch
	require.NoError(t, decode(request(mediaType, body), &b))
	assert.Equal(t, int(b.Count), len(b.Events)+len(b.Rejected))
	return &b
}

func identity(b *schema.Batch) batch.ID {
	b.ComputeDigest()
	return batch.ForContent("p", b.Digest)
}

func attributes(kv ...string) (out []schema.Attribute) {
	for i := 0; i < len(kv); i += 2 {
		out = append(out, schema.Attribute{Key: kv[i], Value: kv[i+1]})
	}
	return out
}

// Protobuf by hand: a message is its fields in order.
func field(num protowire.Number, content string) string {
	return string(protowire.AppendString(protowire.AppendTag(nil, num, protowire.BytesType), content))
}

func fixed(num protowire.Number, v uint64) string {
	return string(protowire.AppendFixed64(protowire.AppendTag(nil, num, protowire.Fixed64Type), v))
}

func varint(num protowire.Number, v uint64) string {
	return string(protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), v))
}

func attr(key, value string) string { return field(1, key) + field(2, value) }
func str(s string) string           { return field(valueString, s) }

// logs is a request of one resource and scope with these records.
func logs(records ...string) string {
	scope := field(scopeLogsScope, field(scopeName, "openfeature"))
	for _, r := range records {
		scope += field(scopeLogsRecords, r)
	}
	resource := field(resourceAttributes, attr("service.name", str("shop"))) + field(resourceAttributes, attr("telemetry.sdk.name", str("opentelemetry"))) +
		field(resourceAttributes, attr("telemetry.sdk.version", str("2.1.0")))
	// The resource comes last: nothing says it does not.
	return field(requestResourceLogs, field(resourceLogsScopeLogs, scope)+field(resourceLogsResource, resource))
}

const (
	resourceJSON = `"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}},{"key":"host.name","value":{"stringValue":"h"}},
		{"key":"telemetry.sdk.name","value":{"stringValue":"opentelemetry"}},{"key":"telemetry.sdk.version","value":{"stringValue":"2.1.0"}}],"droppedAttributesCount":0}`
	recordsJSON = `"scopeLogs":[{"scope":{"name":"openfeature"},"logRecords":[
		{"timeUnixNano":"1772600767890123456","observedTimeUnixNano":"1772600768000000000","severityNumber":9,"body":{},"eventName":"feature_flag.evaluation","attributes":[
			{"key":"feature_flag.key","value":{"stringValue":"checkout"}},{"key":"feature_flag.provider.name","value":{"stringValue":"p"}},
			{"key":"feature_flag.result.variant","value":{"stringValue":"blue"}},{"key":"feature_flag.result.reason","value":{"stringValue":"split"}},
			{"key":"feature_flag.context.id","value":{"stringValue":"ada"}},{"key":"feature_flag.set.id","value":{"stringValue":"s"}},
			{"key":"feature_flag.version","value":{"stringValue":"42"}}],"droppedAttributesCount":0,
			"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174"},
		{"observedTimeUnixNano":1772600768000000000,"body":{"stringValue":"checkout took 12 ms"},"severityText":"INFO"},
		{"timeUnixNano":0,"observedTimeUnixNano":"1772600768000000000","attributes":[{"key":"event.name","value":{"stringValue":"purchase"}},{"key":"user.id","value":{"stringValue":"ada"}},
			{"key":"value","value":{"doubleValue":12.5}},{"key":"count","value":{"intValue":"3"}},{"key":"gift","value":{"boolValue":true}},
			{"key":"items","value":{"arrayValue":{"values":[{"stringValue":"a\"b"},{"intValue":"7"},{"kvlistValue":{"values":[{"key":"k","value":{"boolValue":false}},{"value":{},"key":"n"}]}}]}}},
			{"key":"raw","value":{"bytesValue":"AQI="}},{"key":"none","value":{}}]}]}]`
)

func requestProto() string {
	record := fixed(recordTime, 1772600767890123456) + fixed(recordObserved, 1772600768000000000) + varint(2, 9) + field(recordBody, "") +
		field(recordAttributes, attr("feature_flag.key", str("checkout"))) + field(recordAttributes, attr("feature_flag.provider.name", str("p"))) +
		field(recordAttributes, attr("feature_flag.result.variant", str("blue"))) + field(recordAttributes, attr("feature_flag.result.reason", str("split"))) +
		field(recordAttributes, attr("feature_flag.context.id", str("ada"))) + field(recordAttributes, attr("feature_flag.set.id", str("s"))) +
		field(recordAttributes, attr("feature_flag.version", str("42"))) + varint(7, 0) + string(protowire.AppendFixed32(protowire.AppendTag(nil, 8, protowire.Fixed32Type), 1)) +
		field(recordTrace, "\x5b\x8e\xff\xf7\x98\x03\x81\x03\xd2\x69\xb6\x33\x81\x3f\xc6\x0c") + field(recordSpan, "\xee\xe1\x9b\x7e\xc3\xc1\xb1\x74") + field(recordName, evaluation)
	line := fixed(recordObserved, 1772600768000000000) + field(3, "INFO") + field(recordBody, str("checkout took 12 ms"))
	entries := field(values, attr("k", varint(valueBool, 0))) + field(values, field(entryValue, "")+field(entryKey, "n"))
	purchase := fixed(recordObserved, 1772600768000000000) + field(recordAttributes, attr("event.name", str("purchase"))) + field(recordAttributes, attr("user.id", str("ada"))) +
		field(recordAttributes, attr("value", fixed(valueDouble, math.Float64bits(12.5)))) + field(recordAttributes, attr("count", varint(valueInt, 3))) +
		field(recordAttributes, attr("gift", varint(valueBool, 1))) +
		field(recordAttributes, attr("items", field(valueArray, field(values, str(`a"b`))+field(values, varint(valueInt, 7))+field(values, field(valueList, entries))))) +
		field(recordAttributes, attr("raw", field(valueBytes, "\x01\x02"))) + field(recordAttributes, attr("none", ""))
	return logs(record, line, purchase)
}

// A request in the shape of OpenTelemetry's exporters, in both encodings.
func TestRequest(t *testing.T) {
	want := []schema.Event{
		{Kind: schema.KindExposure, HasTime: true, Time: 1_772_600_767_890_123, Experiment: "checkout", Variant: "blue", Reason: "split", UnitType: "user", UnitID: "ada",
			Attributes: attributes("feature_flag.provider.name", "p", "feature_flag.set.id", "s", "feature_flag.version", "42", "service.name", "shop",
				"span_id", "eee19b7ec3c1b174", "trace_id", "5b8efff798038103d269b633813fc60c")},
		{Kind: schema.KindEvent, Index: 1, HasTime: true, Time: 1_772_600_768_000_000, Name: "purchase", UnitType: "user", UnitID: "ada", HasValue: true, Value: 12.5,
			Attributes: attributes("count", "3", "gift", "true", "items", `["a\"b",7,{"k":false,"n":null}]`, "raw", "AQI=", "service.name", "shop", "value", "12.5")},
	}
	first := decoded(t, typeJSON, `{"resourceLogs":[{`+resourceJSON+`,`+recordsJSON+`}]}`)
	for name, c := range map[string][2]string{
		"JSON":            {typeJSON, `{"resourceLogs":[{` + resourceJSON + `,` + recordsJSON + `}]}`},
		"resource last":   {"", `{"resourceLogs":[{"schemaUrl":"u",` + recordsJSON + `,"x":[1],` + resourceJSON + `}]}`},
		"snake case":      {"text/plain", strings.NewReplacer("resourceLogs", "resource_logs", "scopeLogs", "scope_logs", "logRecords", "log_records", "timeUnixNano", "time_unix_nano", "eventName", "event_name", "stringValue", "string_value", "intValue", "int_value", "observedTimeUnixNano", "observed_time_unix_nano", "kvlistValue", "kvlist_value").Replace(`{"resourceLogs":[{` + resourceJSON + `,` + recordsJSON + `}]}`)},
		"protobuf":        {typeProtobuf, requestProto()},
		"by another name": {"application/protobuf", requestProto()},
		"by its look":     {"", requestProto()},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, c[0], c[1])
			require.Empty(t, b.Rejected)
			assert.Equal(t, want, b.Events)
			assert.Equal(t, uint32(1), b.Dropped)
			assert.Equal(t, "opentelemetry/2.1.0", b.SDK)
			assert.True(t, b.Repeatable())
			assert.Equal(t, identity(first), identity(b), "the same events are the same batch")
		})
	}
}

// record puts attributes into a record in JSON: "key=value", or "key:JSON of the value".
func record(name string, attrs ...string) string {
	out := `{"eventName":"` + name + `","timeUnixNano":"1772600767890000000","attributes":[`
	for i, a := range attrs {
		if i > 0 {
			out += ","
		}
		if k, v, ok := strings.Cut(a, "="); ok {
			out += `{"key":"` + k + `","value":{"stringValue":"` + v + `"}}`
		} else {
			k, v, _ := strings.Cut(a, ":")
			out += `{"key":"` + k + `","value":` + v + `}`
		}
	}
	return out + `]}`
}

func TestEvents(t *testing.T) {
	exposure := schema.Event{Kind: schema.KindExposure, HasTime: true, Time: 1_772_600_767_890_000, Experiment: "f", Variant: "v", UnitType: "user", UnitID: "u"}
	custom := schema.Event{Kind: schema.KindEvent, HasTime: true, Time: 1_772_600_767_890_000, Name: "E", UnitType: "user", UnitID: "u"}
	with := func(e schema.Event, change func(*schema.Event)) schema.Event {
		change(&e)
		return e
	}
	const flag, unit = "feature_flag.key=f", "feature_flag.context.id=u"
	for name, c := range map[string]struct {
		record string
		want   schema.Event
	}{
		"plain": {record(evaluation, flag, unit, "feature_flag.result.variant=v"), exposure},
		"old": {record("feature_flag", flag, unit, "feature_flag.variant=v", "feature_flag.provider_name=p"), with(exposure, func(e *schema.Event) {
			e.Attributes = attributes("feature_flag.provider_name", "p")
		})},
		"value":        {record(evaluation, flag, unit, "feature_flag.result.value=v"), exposure},
		"value, truth": {record(evaluation, flag, unit, `feature_flag.result.value:{"boolValue":false}`), with(exposure, func(e *schema.Event) { e.Variant = "false" })},
		"value, list": {record(evaluation, flag, unit, `feature_flag.result.value:{"kvlistValue":{"values":[{"key":"a","value":{"doubleValue":1.5}}]}}`),
			with(exposure, func(e *schema.Event) { e.Variant = `{"a":1.5}` })},
		"variant and value": {record(evaluation, flag, unit, "feature_flag.result.value=x", "feature_flag.result.variant=v"), with(exposure, func(e *schema.Event) {
			e.Attributes = attributes("feature_flag.result.value", "x")
		})},
		"value in the body": {strings.Replace(record(evaluation, flag, unit), `{"eventName"`, `{"body":{"kvlistValue":{"values":[{"key":"x","value":{"stringValue":"y"}},{"key":"value","value":{"stringValue":"v"}}]}},"eventName"`, 1), exposure},
		"kind":              {record(evaluation, flag, unit, "feature_flag.result.variant=v", "feature_flag.context.kind=org"), with(exposure, func(e *schema.Event) { e.UnitType = "org" })},
		"user.id":           {record(evaluation, flag, "user.id=u", "feature_flag.result.variant=v"), exposure},
		"context and user": {record(evaluation, flag, unit, "user.id=x", "feature_flag.result.variant=v"), with(exposure, func(e *schema.Event) {
			e.Attributes = attributes("user.id", "x")
		})},
		"earlier reason": {record(evaluation, flag, unit, "feature_flag.variant=v", "feature_flag.evaluation.reason=targeting_match"), with(exposure, func(e *schema.Event) { e.Reason = "targeting_match" })},
		"last wins":      {record(evaluation, "feature_flag.key=x", flag, unit, "feature_flag.result.variant=v"), exposure},
		"number as unit": {record(evaluation, flag, `feature_flag.context.id:{"intValue":7}`, "feature_flag.result.variant=v"), with(exposure, func(e *schema.Event) { e.UnitID = "7" })},
		"bare values":    {record(evaluation, flag, `feature_flag.context.id:"u"`, `feature_flag.result.variant:"v"`), exposure},
		"personal": {record("E", unit, "user.email=x", "client.address=x", "user_agent.original=x", "user.full_name=x", "plan=pro"), with(custom, func(e *schema.Event) {
			e.Attributes = attributes("plan", "pro")
		})},
		"flag of an event": {record("E", unit, flag), with(custom, func(e *schema.Event) { e.Attributes = attributes("feature_flag.key", "f") })},
		"not a number": {record("E", unit, `value:{"doubleValue":"NaN"}`, `n:{"arrayValue":{"values":[{"doubleValue":"Infinity"},{"doubleValue":2}]}}`), with(custom, func(e *schema.Event) {
			e.Attributes = attributes("n", `["Infinity",2]`, "value", "NaN")
		})},
		"integer": {record("E", unit, `value:{"intValue":"9007199254740993"}`), with(custom, func(e *schema.Event) {
			e.HasValue, e.Value, e.Attributes = true, 9007199254740992, attributes("value", "9007199254740993")
		})},
		"no attributes of a trace": {strings.Replace(record("E", unit), `{"eventName"`, `{"traceId":"00000000000000000000000000000000","spanId":"","eventName"`, 1), custom},
		"no time":                  {strings.Replace(record("E", unit), `"timeUnixNano":"1772600767890000000"`, `"timeUnixNano":""`, 1), with(custom, func(e *schema.Event) { e.HasTime, e.Time = false, 0 })},
		"time through a double":    {strings.Replace(record("E", unit), `"1772600767890000000"`, `1.77260076789e18`, 1), custom},
		"deep": {record("E", unit, "a:"+strings.Repeat(`{"arrayValue":{"values":[`, 12)+`{"stringValue":"x"}`+strings.Repeat(`]}}`, 12)), with(custom, func(e *schema.Event) {
			e.Attributes = attributes("a", strings.Repeat("[", 12)+`"x"`+strings.Repeat("]", 12))
		})},
		"long": {record("E", unit, `a:{"arrayValue":{"values":[{"stringValue":"`+strings.Repeat("x", 70_000)+`"}]}}`), custom},
		"odd members": {record("E", unit, `a:{"arrayValue":7}`, `b:{"kvlistValue":{"values":[7,{"key":"k"}]}}`, `c:{"arrayValue":{"values":[null,{},3,"s",{"x":1}]}}`), with(custom, func(e *schema.Event) {
			e.Attributes = attributes("a", "[]", "b", `{"":null,"k":null}`, "c", `[null,null,3,"s",null]`)
		})},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, typeJSON, `{"resourceLogs":[{"scopeLogs":[{"logRecords":[`+c.record+`]}]}]}`)
			require.Empty(t, b.Rejected)
			assert.Equal(t, []schema.Event{c.want}, b.Events)
		})
	}
}

func TestRejected(t *testing.T) {
	const flag, unit, variant = "feature_flag.key=f", "feature_flag.context.id=u", "feature_flag.result.variant=v"
	good := record("E", unit)
	for name, c := range map[string]struct {
		record, field string
		code          schema.Code
	}{
		"no flag":          {record(evaluation, unit, variant), "experiment", schema.CodeMissingField},
		"no variant":       {record(evaluation, unit, flag), "variant", schema.CodeMissingField},
		"no unit":          {record(evaluation, flag, variant), "unit_id", schema.CodeMissingField},
		"nothing":          {record(evaluation), "experiment", schema.CodeMissingField},
		"unit of an event": {record("E", flag), "unit_id", schema.CodeUnmappable},
		"bad time":         {`{"eventName":"feature_flag.evaluation","timeUnixNano":"soon"}`, "time", schema.CodeInvalidTime},
		"negative time":    {`{"timeUnixNano":-1,"eventName":"feature_flag.evaluation"}`, "time", schema.CodeInvalidTime},
		"huge time":        {`{"timeUnixNano":1e30,"eventName":"feature_flag.evaluation"}`, "time", schema.CodeInvalidTime},
		"time as object":   {`{"timeUnixNano":{},"eventName":"feature_flag.evaluation"}`, "time", schema.CodeInvalidType},
		"name twice":       {`{"eventName":"feature_flag.evaluation","eventName":"feature_flag.evaluation"}`, "name", schema.CodeDuplicateField},
		"attributes":       {`{"eventName":"feature_flag.evaluation","attributes":{}}`, "attributes", schema.CodeInvalidType},
		"an attribute":     {`{"eventName":"feature_flag.evaluation","attributes":[7]}`, "attributes", schema.CodeInvalidType},
		"a value":          {record(evaluation, flag, unit, `x:{"stringValue":{}}`), "attributes", schema.CodeInvalidType},
		"surrogate":        {record(evaluation, flag, `feature_flag.context.id=\ud800`, variant), "attributes", schema.CodeInvalidString},
		"NUL":              {record(evaluation, flag, `feature_flag.context.id=\u0000`, variant), "attributes", schema.CodeInvalidString},
		"not UTF-8":        {record(evaluation, flag, "feature_flag.context.id=\xff", variant), "attributes", schema.CodeInvalidString},
		"huge number":      {record("E", unit, `a:{"doubleValue":1e999}`), "attributes", schema.CodeInvalidNumber},
		"too long":         {record(strings.Repeat("e", 5000), unit), "name", schema.CodeTooLong},
		"no object":        {`7`, "", schema.CodeInvalidType},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, typeJSON, `{"resourceLogs":[{"scopeLogs":[{"logRecords":[`+good+`,`+c.record+`,`+good+`]}]}]}`)
			assert.Len(t, b.Events, 2, "the neighbours")
			require.Len(t, b.Rejected, 1)
			r := b.Rejected[0]
			assert.Equal(t, []any{c.code, c.field, uint32(1), len(c.record)}, []any{r.Code, r.Field, r.Index, r.Size}, r.Message)
			again := decoded(t, "", `[`+c.record+`]`)
			require.Len(t, again.Rejected, 1, "read again as a dead letter, it is no better")
			assert.Equal(t, c.code, again.Rejected[0].Code)
		})
	}
}

func TestRejectedProtobuf(t *testing.T) {
	good := field(recordName, "E") + field(recordAttributes, attr("user.id", str("u")))
	for name, c := range map[string]struct {
		record, json string
		code         schema.Code
	}{
		"no unit": {fixed(recordTime, 5) + field(recordName, evaluation) + field(recordAttributes, attr("feature_flag.key", str("f"))) + field(recordBody, str("b")) +
			field(recordAttributes, attr("x", field(valueArray, field(values, varint(valueInt, 1))+field(values, field(valueList, field(values, attr("k", fixed(valueDouble, math.Float64bits(math.NaN()))))))))) +
			field(recordTrace, "\x01") + fixed(recordObserved, 6) + field(recordAttributes, attr("y", varint(valueBool, 1))) + field(recordAttributes, attr("z", field(valueBytes, "\x01"))) + field(recordSpan, "\x02"),
			`{"timeUnixNano":"5","eventName":"feature_flag.evaluation","body":{"stringValue":"b"},"traceId":"01","observedTimeUnixNano":"6","spanId":"02","attributes":[{"key":"feature_flag.key","value":{"stringValue":"f"}},
				{"key":"x","value":{"arrayValue":{"values":[{"intValue":"1"},{"kvlistValue":{"values":[{"key":"k","value":{"doubleValue":"NaN"}}]}}]}}},{"key":"y","value":{"boolValue":true}},{"key":"z","value":{"bytesValue":"AQ=="}}]}`,
			schema.CodeMissingField},
		"no text": {field(recordName, evaluation) + field(recordAttributes, attr("feature_flag.key", str("\xff"))),
			`{"eventName":"feature_flag.evaluation","attributes":[{"key":"feature_flag.key","value":{"stringValue":"\u0000"}}]}`, schema.CodeInvalidString},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, typeProtobuf, logs(good, c.record, good))
			assert.Len(t, b.Events, 2, "the neighbours")
			require.Len(t, b.Rejected, 1)
			assert.Equal(t, []any{c.code, uint32(1)}, []any{b.Rejected[0].Code, b.Rejected[0].Index})
			assert.JSONEq(t, c.json, string(b.Rejected[0].Bytes))
			again := decoded(t, "", `[`+string(b.Rejected[0].Bytes)+`]`)
			require.Len(t, again.Rejected, 1)
			assert.Equal(t, c.code, again.Rejected[0].Code)
		})
	}
	for name, broken := range map[string]string{
		"cut short": field(recordName, evaluation)[:5], "wrong type": varint(recordName, 1), "time": varint(recordTime, 1), "tag": "\x00",
		"an attribute": field(recordAttributes, "\x0a\x7f"), "a value": field(recordAttributes, attr("k", "\x0a\x7f")),
		"after no text": field(recordAttributes, attr("k", str("\xff"))) + "\x00",
	} {
		b := decoded(t, typeProtobuf, logs(good, broken, good))
		assert.Len(t, b.Events, 2, name)
		require.Len(t, b.Rejected, 1, name)
		assert.Equal(t, []any{schema.CodeMalformed, broken}, []any{b.Rejected[0].Code, string(b.Rejected[0].Bytes)}, name)
	}
	// Deeper than anybody reads.
	deep := str("x")
	for range 100 {
		deep = field(valueArray, field(values, deep))
	}
	b := decoded(t, typeProtobuf, logs(good+field(recordAttributes, attr("deep", deep))))
	require.Len(t, b.Events, 1)
	assert.Equal(t, attributes("service.name", "shop"), b.Events[0].Attributes)
}

func TestNoise(t *testing.T) {
	b := decoded(t, typeJSON, `{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"\ud800"}},{},{"eventName":""},{"attributes":7},`+
		record("exception", "exception.type=x", "session.id=s")+`,{"body":{"kvlistValue":{"values":[]}},"attributes":[{"key":"user.id","value":{"stringValue":"u"}}]}]}]}]}`)
	assert.Equal(t, []uint32{0, 6}, []uint32{b.Count, b.Dropped})
	b = decoded(t, typeProtobuf, logs("", field(recordBody, str("line")), field(recordName, "exception")))
	assert.Equal(t, []uint32{0, 3}, []uint32{b.Count, b.Dropped})
}

func TestBodies(t *testing.T) {
	for name, c := range map[string]struct{ mediaType, body, code string }{
		"nothing":            {typeJSON, ``, "empty"},
		"null":               {typeJSON, `null`, "empty"},
		"empty array":        {typeJSON, `[]`, "empty"},
		"something else":     {typeJSON, `{"events":[{"experiment":"e"}]}`, "empty"},
		"number":             {typeJSON, `7`, "malformed"},
		"object":             {typeJSON, `{"resourceLogs":{}}`, "malformed"},
		"array of numbers":   {typeJSON, `{"resourceLogs":[7]}`, "malformed"},
		"scopes":             {typeJSON, `{"resourceLogs":[{"scopeLogs":7}]}`, "malformed"},
		"records":            {typeJSON, `{"resourceLogs":[{"scopeLogs":[{"logRecords":{}}]}]}`, "malformed"},
		"cut short":          {typeJSON, `{"resourceLogs":[{"scopeLogs":[{"logRecords":[{}`, "malformed"},
		"resource cut short": {typeJSON, `{"resourceLogs":[{"scopeLogs":[],"resource":{`, "malformed"},
		"garbage":            {typeJSON, `{"resourceLogs":[]} x`, "malformed"},
		"deep":               {typeJSON, strings.Repeat("[", 99), "too_deep"},
		"many":               {typeJSON, `[{},` + strings.Repeat(`{"eventName":"feature_flag.evaluation"},`, 3) + `7,{"eventName":"feature_flag"}]`, "too_many_events"},
		"protobuf":           {typeProtobuf, "\x0a\x7f", "malformed"},
		"JSON as protobuf":   {typeProtobuf, `{"resourceLogs":[]}`, "malformed"},
		"another message":    {typeProtobuf, field(1, varint(1, 1)), "malformed"},
		"many in protobuf":   {typeProtobuf, logs("", field(recordName, evaluation), "\x00", "\x00", field(recordName, evaluation)), "too_many_events"},
	} {
		req := request(c.mediaType, c.body)
		req.MaxEvents = 3
		var err *schema.BodyError
		require.ErrorAs(t, decode(req, new(schema.Batch)), &err, name)
		assert.Equal(t, c.code, err.Code, name)
	}
	// A request without a record is a success.
	for mediaType, bodies := range map[string][]string{
		typeJSON:     {`{}`, `{"resourceLogs":[]}`, `{"resourceLogs":null}`, `{"resourceLogs":[{"scopeLogs":[{"logRecords":[]},null]},null,{}]}`},
		typeProtobuf: {"", logs()},
	} {
		for _, body := range bodies {
			assert.Zero(t, decoded(t, mediaType, body).Count, body)
		}
	}
}

func TestSDK(t *testing.T) {
	body := `{"resourceLogs":[{"scopeLogs":[{"scope":{"name":"openfeature","version":"1"},"logRecords":[{}]}]}]}`
	req := request(typeJSON, body)
	var b schema.Batch
	require.NoError(t, decode(req, &b))
	assert.Equal(t, "openfeature/1", b.SDK)
	req.Header.Set("User-Agent", "OTel-OTLP-Exporter-Python/1.45.2 extra")
	require.NoError(t, decode(req, &b))
	assert.Equal(t, "OTel-OTLP-Exporter-Python/1.45.2", b.SDK)
	req.Header.Set("User-Agent", "Mozilla/5.0 (X11)")
	require.NoError(t, decode(req, &b))
	assert.Equal(t, "openfeature/1", b.SDK)
}

func TestKeys(t *testing.T) {
	for name, c := range map[string]struct{ header, value, want string }{
		"bearer": {"Authorization", "Bearer k", "k"}, "bare": {"Authorization", " k ", "k"}, "another scheme": {"Authorization", "Basic k", ""},
		"header": {"X-API-Key", "k", "k"}, "none": {"X-Other", "k", ""},
	} {
		r := httptest.NewRequest(http.MethodPost, "/v1/logs", nil)
		r.Header.Set(c.header, c.value)
		assert.Equal(t, c.want, key(r), name)
	}
}

func TestAnswers(t *testing.T) {
	some := []schema.Rejected{{Code: schema.CodeMissingField, Field: "unit_id", Message: "it is missing"}, {}}
	a := accept(protocol.Result{Reply: []byte{repliesJSON}})
	assert.Equal(t, []any{200, typeJSON, "{}"}, []any{a.Status, a.ContentType, string(a.Body)})
	a = accept(protocol.Result{Reply: []byte{repliesJSON}, Rejected: some})
	assert.JSONEq(t, `{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"rejected and kept as dead letters; the first one: missing_field unit_id: it is missing"}}`, string(a.Body))
	a = accept(protocol.Result{Reply: []byte{repliesProtobuf}})
	assert.Equal(t, []any{200, typeProtobuf, ""}, []any{a.Status, a.ContentType, string(a.Body)})
	a = accept(protocol.Result{Reply: []byte{repliesProtobuf}, Rejected: some})
	assert.Equal(t, field(1, varint(1, 2)+field(2, "rejected and kept as dead letters; the first one: missing_field unit_id: it is missing")), string(a.Body))

	for _, c := range protocol.Codes() {
		a := refuse(protocol.Problem{Status: c.Status, Code: c.Code, Detail: "d"})
		again := a.Status == http.StatusTooManyRequests || a.Status == http.StatusServiceUnavailable
		assert.Equal(t, c.Retry, again, c.Code)
		if again {
			assert.Equal(t, "1", a.Header["Retry-After"], c.Code)
		}
		var status struct {
			Code    int
			Message string
		}
		require.NoError(t, json.Unmarshal(a.Body, &status))
		assert.Positive(t, status.Code)
		assert.Equal(t, c.Code+": d", status.Message)
	}
	a = refuse(*protocol.NewProblem(protocol.CodeRateLimited, "").After(3 * time.Second))
	assert.Equal(t, []any{http.StatusTooManyRequests, "3"}, []any{a.Status, a.Header["Retry-After"]})
}

func checked(t *testing.T, mediaType, body string) {
	req := request(mediaType, body)
	req.MaxEvents = 50
	var b, again schema.Batch
	if err := decode(req, &b); err != nil {
		var be *schema.BodyError
		require.ErrorAs(t, err, &be)
		return
	}
	require.Equal(t, body, string(req.Body), "the body was changed")
	require.Equal(t, int(b.Count), len(b.Events)+len(b.Rejected))
	require.LessOrEqual(t, int(b.Count), 50)
	require.True(t, schema.ValidText(b.SDK))
	for _, e := range b.Events {
		require.NotEmpty(t, e.UnitID)
		for _, s := range []string{e.Experiment, e.Variant, e.Name, e.UnitID, e.UnitType, e.Reason} {
			require.True(t, schema.ValidText(s), "%q", s)
		}
		for _, a := range e.Attributes {
			require.True(t, schema.ValidText(a.Key) && schema.ValidText(a.Value), "%q", a)
		}
	}
	require.NoError(t, decode(req, &again))
	require.Equal(t, identity(&b), identity(&again))
	if mediaType != typeProtobuf {
		return
	}
	for _, r := range b.Rejected { // what is rewritten as JSON is JSON
		if r.Code != schema.CodeMalformed && r.Size == len(r.Bytes) {
			require.True(t, json.Valid(r.Bytes), "%q", r.Bytes)
		}
	}
}

func FuzzDecodeJSON(f *testing.F) {
	f.Add(`{"resourceLogs":[{` + resourceJSON + `,` + recordsJSON + `}]}`)
	f.Add(`{"resource_logs":[{"scope_logs":[{"log_records":[{"body":{"kvlistValue":{"values":[{"key":"value","value":{"stringValue":"v"}}]}},"eventName":"feature_flag.evaluation","attributes":[]}]}]}]}`)
	f.Add(`[{"eventName":"\ud800","timeUnixNano":1e18},7]`)
	f.Add(record("E", "user.id=u", `a:{"arrayValue":{"values":[{"kvlistValue":{"values":[{"key":"k"}]}}]}}`))
	f.Fuzz(func(t *testing.T, body string) { checked(t, typeJSON, body) })
}

func FuzzDecodeProtobuf(f *testing.F) {
	f.Add(requestProto())
	f.Add(logs(field(recordName, evaluation)+field(recordBody, field(valueList, field(values, attr("value", str("v"))))), "\x00"))
	f.Fuzz(func(t *testing.T, body string) { checked(t, typeProtobuf, body) })
}

// A request of 1,000 exposures as OpenTelemetry's exporters write them, in both
// encodings, and beside it the same in the native format.
func BenchmarkDecode(b *testing.B) {
	const n = 1000
	const one = `{"timeUnixNano":"1795487204326000000","observedTimeUnixNano":"1795487204326000000","severityNumber":9,"body":{},"eventName":"feature_flag.evaluation","attributes":[` +
		`{"key":"feature_flag.key","value":{"stringValue":"exp_flag"}},{"key":"feature_flag.provider.name","value":{"stringValue":"cap"}},{"key":"feature_flag.result.variant","value":{"stringValue":"test"}},` +
		`{"key":"feature_flag.result.reason","value":{"stringValue":"split"}},{"key":"feature_flag.context.id","value":{"stringValue":"r-otlp-node-json-u0"}},{"key":"feature_flag.set.id","value":{"stringValue":"proj"}},` +
		`{"key":"feature_flag.version","value":{"stringValue":"42"}}],"droppedAttributesCount":0}`
	const native = `{"experiment":"exp_flag","variant":"test","unit_id":"r-otlp-node-json-u0","time":1795487204326,"reason":"split","attributes":{"feature_flag.provider.name":"cap","feature_flag.set.id":"proj","feature_flag.version":"42","service.name":"shop"}}`
	record := fixed(recordTime, 1795487204326000000) + fixed(recordObserved, 1795487204326000000) + varint(2, 9) + field(recordBody, "")
	for _, kv := range [][2]string{{"feature_flag.key", "exp_flag"}, {"feature_flag.provider.name", "cap"}, {"feature_flag.result.variant", "test"}, {"feature_flag.result.reason", "split"},
		{"feature_flag.context.id", "r-otlp-node-json-u0"}, {"feature_flag.set.id", "proj"}, {"feature_flag.version", "42"}} {
		record += field(recordAttributes, attr(kv[0], str(kv[1])))
	}
	record += field(recordName, evaluation)
	records := make([]string, n)
	for i := range records {
		records[i] = record
	}
	var batch schema.Batch
	run := func(mediaType, body string, decode func(*protocol.Request) error) func(b *testing.B) {
		return func(b *testing.B) {
			req := request(mediaType, body)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				batch.Reset()
				if err := decode(req); err != nil || len(batch.Events) != n {
					b.Fatal(err, len(batch.Events))
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/event")
		}
	}
	ours := func(req *protocol.Request) error { return decode(req, &batch) }
	b.Run("json", run(typeJSON, `{"resourceLogs":[{`+resourceJSON+`,"scopeLogs":[{"logRecords":[`+strings.Repeat(one+",", n-1)+one+`]}]}]}`, ours))
	b.Run("protobuf", run(typeProtobuf, logs(records...), ours))
	b.Run("native", run(typeJSON, `{"events":[`+strings.Repeat(native+",", n-1)+native+`]}`,
		func(req *protocol.Request) error {
			return schema.DecodeJSON(req.Body, schema.KindExposure, req.MaxEvents, &batch)
		}))
}
