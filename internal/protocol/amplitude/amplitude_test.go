package amplitude

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

func request(body string) *protocol.Request {
	return &protocol.Request{Header: http.Header{}, Query: url.Values{}, Path: "/2/httpapi", Body: []byte(body), MaxEvents: 10_000}
}

func decoded(t *testing.T, body string) *schema.Batch {
	t.Helper()
	var b schema.Batch
	require.NoError(t, decode(request(body), &b))
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

const (
	id1 = "5b1f8f8a-6d0c-4c3e-9c39-1f2f6a0c7d11"
	id2 = "5b1f8f8a-6d0c-4c3e-9c39-1f2f6a0c7d12"
)

// A batch in the shape of @amplitude/analytics-node 1.5.73.
func TestBatchOfNode(t *testing.T) {
	const events = `[{"time":1772600767890,"insert_id":"` + id1 + `","event_type":"$exposure","user_id":"ada","event_properties":{"flag_key":"checkout","variant":"blue","experiment_key":"exp-1","metadata":{"default":false}},"event_id":0,"library":"amplitude-node-ts/1.5.73"},
		{"time":1772600767891,"insert_id":"` + id2 + `","event_type":"Order Completed","device_id":"tablet","event_properties":{"sku":"x","gift":true,"email":"a@example.com","note":null},"revenue":12.5,"quantity":2,"currency":"EUR","ip":"192.0.2.1","country":"NL","user_properties":{"plan":"pro"},"event_id":1,"library":"amplitude-node-ts/1.5.73"}]`
	b := decoded(t, `{"api_key":"k","events":`+events+`,"options":{},"client_upload_time":"2026-03-04T05:06:09.090Z"}`)
	require.Empty(t, b.Rejected)
	assert.Equal(t, []schema.Event{
		{Kind: schema.KindExposure, HasTime: true, Time: 1_772_600_767_890_000, Experiment: "checkout", Variant: "blue", UnitType: "user", UnitID: "ada",
			ClientID: id1, Attributes: attributes("experiment_key", "exp-1", "metadata", `{"default":false}`)},
		{Kind: schema.KindEvent, Index: 1, HasTime: true, Time: 1_772_600_767_891_000, Name: "Order Completed", UnitType: "device", UnitID: "tablet",
			ClientID: id2, HasValue: true, Value: 12.5,
			Attributes: attributes("currency", "EUR", "gift", "true", "quantity", "2", "revenue", "12.5", "sku", "x")},
	}, b.Events)
	assert.Equal(t, "amplitude-node-ts/1.5.73", b.SDK)
	assert.Equal(t, int64(1_772_600_769_090_000), b.SentAt)

	// What differs between attempts is no part of the events.
	for _, body := range []string{
		`{"client_upload_time":"2026-03-04T05:07:09.090Z","events":` + events + `,"api_key":"k","request_metadata":{"sdk":{"metrics":{}}}}`,
		`{"events":` + events + `}`, events,
	} {
		assert.Equal(t, identity(b), identity(decoded(t, body)))
	}
}

func TestEvents(t *testing.T) {
	exposure := schema.Event{Kind: schema.KindExposure, Experiment: "f", Variant: "v", UnitType: "user", UnitID: "u"}
	custom := schema.Event{Kind: schema.KindEvent, Name: "E", UnitType: "user", UnitID: "u"}
	with := func(e schema.Event, change func(*schema.Event)) schema.Event {
		change(&e)
		return e
	}
	for name, c := range map[string]struct {
		event string
		want  schema.Event
	}{
		"the other name": {`{"event_type":"[Experiment] Exposure","user_id":"u","event_properties":{"[Experiment] Flag Key":"f","[Experiment] Variant":"v"}}`, exposure},
		"mixed":          {`{"event_properties":{"variant":"v","flag_key":"f"},"user_id":"u","event_type":"[Experiment] Exposure"}`, exposure},
		"numbers":        {`{"event_type":"$exposure","user_id":7,"event_properties":{"flag_key":1,"variant":true}}`, with(exposure, func(e *schema.Event) { e.UnitID, e.Experiment, e.Variant = "7", "1", "true" })},
		"last wins":      {`{"event_type":"$exposure","user_id":"u","event_properties":{"flag_key":"x","flag_key":"f","variant":"v"}}`, exposure},
		"device":         {`{"event_type":"E","user_id":"","device_id":"d"}`, with(custom, func(e *schema.Event) { e.UnitType, e.UnitID = "device", "d" })},
		"null user":      {`{"event_type":"E","user_id":null,"device_id":9}`, with(custom, func(e *schema.Event) { e.UnitType, e.UnitID = "device", "9" })},
		"no properties":  {`{"event_type":"E","user_id":"u","event_properties":null,"time":null,"insert_id":null}`, custom},
		"PHP":            {`{"event_type":"E","user_id":"u","event_properties":[],"user_properties":[],"groups":[]}`, custom},
		"time as text":   {`{"event_type":"E","user_id":"u","time":"1772600767890"}`, with(custom, func(e *schema.Event) { e.HasTime, e.Time = true, 1_772_600_767_890_000 })},
		"RFC 3339":       {`{"event_type":"E","user_id":"u","time":"2026-03-04T05:06:07.890Z"}`, with(custom, func(e *schema.Event) { e.HasTime, e.Time = true, 1_772_600_767_890_000 })},
		"timestamp":      {`{"event_type":"E","user_id":"u","timestamp":1772600767890,"uuid":"` + id1 + `"}`, with(custom, func(e *schema.Event) { e.HasTime, e.Time, e.ClientID = true, 1_772_600_767_890_000, id1 })},
		"id of a device": {`{"event_type":"E","user_id":"u","device_id":"d","insert_id":"1"}`, with(custom, func(e *schema.Event) { e.ClientID = "d/1" })},
		"id of a user":   {`{"event_type":"E","user_id":"u","insert_id":5}`, with(custom, func(e *schema.Event) { e.ClientID = "u/5" })},
		"price": {`{"event_type":"E","user_id":"u","price":2.5,"quantity":3,"productId":"p"}`, with(custom, func(e *schema.Event) {
			e.HasValue, e.Value, e.Attributes = true, 7.5, attributes("price", "2.5", "productId", "p", "quantity", "3")
		})},
		"sum of floats": {`{"event_type":"E","user_id":"u","event_properties":{"value":59.970000000000006}}`, with(custom, func(e *schema.Event) {
			e.HasValue, e.Value, e.Attributes = true, 59.970000000000006, attributes("value", "59.970000000000006")
		})},
		"revenue property": {`{"event_type":"revenue_amount","user_id":"u","event_properties":{"$revenue":"3","value":1}}`, with(custom, func(e *schema.Event) {
			e.Name, e.HasValue, e.Value, e.Attributes = "revenue_amount", true, 3, attributes("$revenue", "3", "value", "1")
		})},
		"a value that is a text": {`{"event_type":"E","user_id":"u","event_properties":{"value":"007"}}`, with(custom, func(e *schema.Event) { e.Attributes = attributes("value", "007") })},
		"too large a price":      {`{"event_type":"E","user_id":"u","price":1e300,"quantity":1e300}`, with(custom, func(e *schema.Event) { e.Attributes = attributes("price", "1e300", "quantity", "1e300") })},
		"groups":                 {`{"event_type":"E","user_id":"u","groups":{"company":"acme","team":["a","b"]}}`, with(custom, func(e *schema.Event) { e.Attributes = attributes("groups.company", "acme", "groups.team", `["a","b"]`) })},
		"identify": {`{"event_type":"$identify","user_id":"u","user_properties":{"$set":{"plan":"pro","first name":"A","e-mail":"x"},"$setOnce":{"since":2020},"$add":{"n":1},"age":3,"deep":{"a":1}}}`, with(custom, func(e *schema.Event) {
			e.Name, e.Attributes = "$identify", attributes("age", "3", "plan", "pro", "since", "2020")
		})},
		"group identify": {`{"event_type":"$groupidentify","device_id":"d","groups":{"org":"a"},"group_properties":{"$set":{"seats":5}}}`, with(custom, func(e *schema.Event) {
			e.Name, e.UnitType, e.UnitID, e.Attributes = "$groupidentify", "device", "d", attributes("groups.org", "a", "seats", "5")
		})},
		"what is odd about the person": {`{"event_type":"E","user_id":"u","user_properties":{"$set":7,"a":"\ud800","b":1e999},"group_properties":7}`, custom},
		"personal":                     {`{"event_type":"E","user_id":"u","event_properties":{"Email":"x","ip_address":"x","user agent":"x"},"ip":"x","user_agent":"x","location_lat":1,"idfa":"x"}`, custom},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, `{"events":[`+c.event+`]}`)
			require.Empty(t, b.Rejected)
			assert.Equal(t, []schema.Event{c.want}, b.Events)
		})
	}
}

func TestRejected(t *testing.T) {
	const good = `{"event_type":"E","user_id":"u","insert_id":"` + id1 + `"}`
	for name, c := range map[string]struct {
		event, field string
		code         schema.Code
	}{
		"no unit":         {`{"event_type":"E"}`, "unit_id", schema.CodeMissingField},
		"no type":         {`{"user_id":"u"}`, "name", schema.CodeMissingField},
		"empty":           {`{}`, "unit_id", schema.CodeMissingField},
		"no flag":         {`{"event_type":"$exposure","user_id":"u","event_properties":{"variant":"v"}}`, "experiment", schema.CodeMissingField},
		"no variant":      {`{"event_type":"$exposure","user_id":"u","event_properties":{"flag_key":"f","variant":null}}`, "variant", schema.CodeMissingField},
		"nested variant":  {`{"event_type":"$exposure","user_id":"u","event_properties":{"flag_key":"f","variant":{}}}`, "event_properties", schema.CodeInvalidType},
		"user as array":   {`{"event_type":"E","user_id":["u"]}`, "unit_id", schema.CodeInvalidType},
		"user as truth":   {`{"event_type":"E","user_id":true}`, "unit_id", schema.CodeInvalidType},
		"type as object":  {`{"event_type":{},"user_id":"u"}`, "name", schema.CodeInvalidType},
		"properties":      {`{"event_type":"E","user_id":"u","event_properties":7}`, "event_properties", schema.CodeInvalidType},
		"bad time":        {`{"event_type":"E","user_id":"u","time":"soon"}`, "time", schema.CodeInvalidTime},
		"type twice":      {`{"event_type":"E","event_type":"F","user_id":"u"}`, "name", schema.CodeDuplicateField},
		"surrogate":       {`{"event_type":"\ud800","user_id":"u"}`, "name", schema.CodeInvalidString},
		"NUL":             {`{"event_type":"E","user_id":"a\u0000"}`, "unit_id", schema.CodeInvalidString},
		"not UTF-8":       {"{\"event_type\":\"E\",\"user_id\":\"\xff\"}", "unit_id", schema.CodeInvalidString},
		"huge number":     {`{"event_type":"E","user_id":1e999}`, "unit_id", schema.CodeInvalidNumber},
		"huge revenue":    {`{"event_type":"E","user_id":"u","revenue":1e999}`, "revenue", schema.CodeInvalidNumber},
		"too long":        {`{"event_type":"` + strings.Repeat("e", 5000) + `","user_id":"u"}`, "name", schema.CodeTooLong},
		"no object":       {`7`, "", schema.CodeInvalidType},
		"text in a value": {`{"event_type":"E","user_id":"u","event_properties":{"a":"\ud800"}}`, "event_properties", schema.CodeInvalidString},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, `{"events":[`+good+`,`+c.event+`,`+good+`]}`)
			assert.Len(t, b.Events, 2, "the neighbours")
			require.Len(t, b.Rejected, 1)
			r := b.Rejected[0]
			assert.Equal(t, []any{c.code, c.field, uint32(1), len(c.event)}, []any{r.Code, r.Field, r.Index, r.Size}, r.Message)
			again := decoded(t, `[`+c.event+`]`)
			require.Len(t, again.Rejected, 1, "read again as a dead letter, it is no better")
			assert.Equal(t, c.code, again.Rejected[0].Code)
		})
	}
}

func TestBrokenBodies(t *testing.T) {
	for body, code := range map[string]string{
		``: "empty", ` `: "empty", `null`: "empty", `[]`: "empty", `{}`: "empty", `{"events":[]}`: "empty", `{"events":null}`: "empty",
		`{"api_key":"k"}`: "empty", `7`: "malformed", `{"events":{}}`: "malformed", `{"events":[],"events":[]}`: "malformed",
		`{"events":[{"event_type":"E"}`: "malformed", `{"events":[{}]} x`: "malformed", "\x1f\x8b": "malformed",
		strings.Repeat("[", 99): "too_deep", `[{},{},{},{}]`: "too_many_events", `api_key=k`: "malformed", `api_key=k&event=x`: "malformed",
	} {
		req := request(body)
		req.MaxEvents = 3
		var err *schema.BodyError
		require.ErrorAs(t, decode(req, new(schema.Batch)), &err, body)
		assert.Equal(t, code, err.Code, body)
	}
}

func TestForm(t *testing.T) {
	q := url.Values{"api_key": {"k"}, "event": {`{"event_type":"E","user_id":"u & v","insert_id":"` + id1 + `"}`}}
	req := request(q.Encode())
	assert.Equal(t, "k", bodyKey(req))
	var b schema.Batch
	require.NoError(t, decode(req, &b))
	require.Len(t, b.Events, 1)
	assert.Equal(t, []string{"E", "u & v"}, []string{b.Events[0].Name, b.Events[0].UnitID})
	a := accept(protocol.Result{Reply: req.Reply})
	assert.Equal(t, []string{"success", "text/plain; charset=utf-8"}, []string{string(a.Body), a.ContentType})

	b = *decoded(t, url.Values{"client": {"k"}, "e": {`[{"event_type":"E","user_id":"u"},{"event_type":"F","user_id":"u"}]`}, "upload_time": {"1772600767890"}}.Encode())
	assert.Len(t, b.Events, 2)
	assert.Equal(t, int64(1_772_600_767_890_000), b.SentAt)
}

func TestKeys(t *testing.T) {
	for body, want := range map[string]string{
		`{"api_key":"k","events":[]}`: "k", `{"events":[{"api_key":"x"}],"api_key":"k"}`: "k", `client=k&e=[]`: "k",
		`{"api_key":7}`: "7", `{"api_key":{}}`: "", `{}`: "", `x`: "", ``: "", `[`: "", `{"api_key":"k"`: "k",
	} {
		assert.Equal(t, want, bodyKey(request(body)), body)
	}
	ep := Endpoints()[0]
	assert.Nil(t, ep.Key, "what any client may send counts first")
	r := httptest.NewRequest(http.MethodPost, "/2/httpapi?k=k", nil)
	assert.Equal(t, "k", protocol.WriteKey(r))
}

func TestAnswers(t *testing.T) {
	a := accept(protocol.Result{Accepted: 7, BodyBytes: 586, Rejected: []schema.Rejected{{}}})
	assert.Equal(t, []any{http.StatusOK, typeJSON}, []any{a.Status, a.ContentType})
	var got map[string]int64
	require.NoError(t, json.Unmarshal(a.Body, &got))
	assert.Equal(t, []int64{200, 7, 586}, []int64{got["code"], got["events_ingested"], got["payload_size_bytes"]})
	assert.Greater(t, got["server_upload_time"], int64(1_700_000_000_000))

	for _, c := range protocol.Codes() {
		a := refuse(protocol.Problem{Status: c.Status, Code: c.Code, Detail: "d"})
		var got refusal
		require.NoError(t, json.Unmarshal(a.Body, &got))
		assert.Equal(t, []any{a.Status, c.Code}, []any{got.Code, got.Reason}, c.Code)
		assert.NotEmpty(t, got.Error, c.Code)
		again := a.Status == http.StatusTooManyRequests || a.Status >= http.StatusInternalServerError
		if c.Code != protocol.CodeUnsupportedTE { // a fault of the sender's, and yet 501
			assert.Equal(t, c.Retry, again, c.Code)
		}
		if !again && a.Status != http.StatusRequestEntityTooLarge {
			// Otherwise the SDKs would send the batch again.
			assert.True(t, got.MissingField != "" || strings.HasPrefix(got.Error, "Invalid API key:"), c.Code)
		}
		if a.Status == http.StatusTooManyRequests || a.Status == http.StatusServiceUnavailable {
			assert.Equal(t, "1", a.Header["Retry-After"], c.Code)
		}
	}
	a = refuse(*protocol.NewProblem(protocol.CodeRateLimited, "slow").After(3 * time.Second))
	assert.Equal(t, "3", a.Header["Retry-After"])
	assert.Contains(t, string(a.Body), `"throttled_events":[0,1,2,`)
	a = refuse(*protocol.NewProblem(protocol.CodeUnknownKey, "no such write key"))
	assert.JSONEq(t, `{"code":401,"error":"Invalid API key: no such write key","reason":"unknown_key"}`, string(a.Body))
}

func TestEndpoints(t *testing.T) {
	for _, ep := range Endpoints() {
		assert.Nil(t, ep.Takes, ep.Path)
		assert.Equal(t, "exposures", ep.Scope)
		assert.NotNil(t, ep.CORS)
		assert.True(t, ep.AcceptRejected)
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"api_key":"k","events":[{"time":1,"insert_id":"i","event_type":"$exposure","user_id":"u","event_properties":{"flag_key":"f","variant":"v","a":[1]},"library":"l/1"}],"client_upload_time":"2026-03-04T05:06:07Z"}`,
		`[{"event_type":"$identify","device_id":"d","user_properties":{"$set":{"a":1}}},7,{"event_type":"\ud800"}]`, `null`,
		`{"events":[{"event_type":"E","user_id":1,"price":"2","quantity":1e308,"groups":{"a":["b"]}}]}`, `api_key=k&event=%7B%22event_type%22%3A%22E%22%2C%22user_id%22%3A%22u%22%7D`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		req := request(body)
		req.MaxEvents = 50
		bodyKey(req)
		var b, again schema.Batch
		if err := decode(req, &b); err != nil {
			var be *schema.BodyError
			require.ErrorAs(t, err, &be)
			return
		}
		require.Equal(t, body, string(req.Body), "the body was changed")
		require.Equal(t, int(b.Count), len(b.Events)+len(b.Rejected))
		require.LessOrEqual(t, int(b.Count+b.Dropped), 50)
		require.True(t, schema.ValidText(b.SDK))
		for _, e := range b.Events {
			require.NotEmpty(t, e.UnitID)
			for _, s := range []string{e.Experiment, e.Variant, e.Name, e.UnitID, e.UnitType, e.ClientID} {
				require.True(t, schema.ValidText(s), "%q", s)
			}
			for _, a := range e.Attributes {
				require.True(t, schema.ValidText(a.Key) && schema.ValidText(a.Value), "%q", a)
			}
		}
		require.NoError(t, decode(req, &again))
		require.Equal(t, identity(&b), identity(&again))
	})
}

// A batch of 1,000 exposures as analytics-node writes them, and beside it the same
// in the native format.
func BenchmarkDecode(b *testing.B) {
	const n = 1000
	const event = `{"time":1795487192089,"insert_id":"0306c88c-a784-49c5-8b02-e8517f404999","event_type":"$exposure","user_id":"r-amplitude-node-u0","event_properties":{"flag_key":"exp_config","variant":"test"},"event_id":0,"library":"amplitude-node-ts/1.5.73"}`
	const native = `{"experiment":"exp_config","variant":"test","unit_id":"r-amplitude-node-u0","time":1795487192089,"event_id":"0306c88c-a784-49c5-8b02-e8517f404999"}`
	var batch schema.Batch
	run := func(body string, decode func(*protocol.Request) error) func(b *testing.B) {
		return func(b *testing.B) {
			req := request(body)
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
	b.Run("amplitude", run(`{"api_key":"k","events":[`+strings.Repeat(event+",", n-1)+event+`],"options":{},"client_upload_time":"2026-11-24T02:26:32.090Z"}`,
		func(req *protocol.Request) error { return decode(req, &batch) }))
	b.Run("native", run(`{"events":[`+strings.Repeat(native+",", n-1)+native+`]}`,
		func(req *protocol.Request) error {
			return schema.DecodeJSON(req.Body, schema.KindExposure, req.MaxEvents, &batch)
		}))
}
