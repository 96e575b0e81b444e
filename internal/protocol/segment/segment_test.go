package segment

import (
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

func request(path, body string) *protocol.Request {
	return &protocol.Request{Header: http.Header{}, Query: url.Values{}, Path: path, Body: []byte(body), MaxEvents: 10_000}
}

func endpoint(t *testing.T, path string) protocol.Endpoint {
	t.Helper()
	for _, ep := range Endpoints() {
		if ep.Path == path {
			return ep
		}
	}
	require.Fail(t, "no such endpoint", path)
	return protocol.Endpoint{}
}

func decoded(t *testing.T, path, body string) *schema.Batch {
	t.Helper()
	var b schema.Batch
	require.NoError(t, endpoint(t, path).Decode(request(path, body), &b))
	assert.Equal(t, int(b.Count), len(b.Events)+len(b.Rejected))
	return &b
}

func identity(b *schema.Batch) batch.ID {
	b.ComputeDigest()
	return batch.ForContent("p", b.Digest)
}

// A batch in the shape of analytics-node 3.1.0.
func TestBatchOfNode(t *testing.T) {
	const calls = `[{"timestamp":"2026-03-04T05:06:07.890Z","integrations":{},"event":"Experiment Viewed","type":"track",
		"properties":{"experiment_id":"checkout","experiment_name":"Checkout page","variation_id":"blue","plan":"pro","email":"a@example.com"},
		"context":{"library":{"name":"@segment/analytics-node","version":"3.1.0"},"ip":"192.0.2.1","traits":{"email":"a@example.com"}},
		"userId":"ada","messageId":"node-next-1-a","_metadata":{"nodeVersion":"v20.20.2","jsRuntime":"node"}},
		{"timestamp":"2026-03-04T05:06:08.000Z","event":"Order Completed","type":"track","properties":{"revenue":12.5,"items":[{"sku":"x"}],"coupon":null},
		"anonymousId":"visitor","messageId":"node-next-1-b"}]`
	b := decoded(t, "/v1/batch", `{"batch":`+calls+`,"writeKey":"wk","sentAt":"2026-03-04T05:06:09.000Z"}`)
	require.Empty(t, b.Rejected)
	assert.Equal(t, []schema.Event{
		{Kind: schema.KindExposure, HasTime: true, Time: 1_772_600_767_890_000, Experiment: "checkout", Variant: "blue", UnitType: "user", UnitID: "ada",
			ClientID: "node-next-1-a", Attributes: []schema.Attribute{{Key: "experiment_name", Value: "Checkout page"}, {Key: "plan", Value: "pro"}}},
		{Kind: schema.KindEvent, Index: 1, HasTime: true, Time: 1_772_600_768_000_000, Name: "Order Completed", UnitType: "anonymous", UnitID: "visitor",
			ClientID: "node-next-1-b", HasValue: true, Value: 12.5,
			Attributes: []schema.Attribute{{Key: "items", Value: `[{"sku":"x"}]`}, {Key: "revenue", Value: "12.5"}}},
	}, b.Events)
	assert.Equal(t, "@segment/analytics-node/3.1.0", b.SDK)
	assert.Equal(t, int64(1_772_600_769_000_000), b.SentAt)

	// The next attempt has another sentAt, and members may come in another order.
	again := decoded(t, "/v1/batch", `{"sentAt":"2026-03-04T05:07:09.000Z","writeKey":"wk","batch":`+strings.ReplaceAll(calls, `"_metadata":{`, `"_metadata":{"retryCount":2,`)+`}`)
	assert.Equal(t, identity(b), identity(again))
	assert.True(t, b.Repeatable())
	// As a dead letter is read again.
	assert.Equal(t, b.Events, decoded(t, "/v1/batch", calls).Events)
	assert.Equal(t, b.Events, decoded(t, "/v1/import", `{"batch":`+calls+`}`).Events)
}

func TestCalls(t *testing.T) {
	for name, c := range map[string]struct {
		path, body string
		want       schema.Event
		attrs      map[string]string
	}{
		"t": {"/v1/t", `{"timestamp":"2026-03-04T05:06:07Z","type":"track","event":"Clicked","userId":null,"anonymousId":"v","writeKey":"k","properties":{"value":"3"},"messageId":"m"}`,
			schema.Event{Name: "Clicked", UnitType: "anonymous", UnitID: "v", ClientID: "m", HasValue: true, Value: 3}, map[string]string{"value": "3"}},
		"track without a type": {"/v1/track", `{"event":"Clicked","userId":7}`, schema.Event{Name: "Clicked", UnitType: "user", UnitID: "7"}, nil},
		"batch without a type": {"/v1/batch", `{"batch":[{"event":"Clicked","userId":"u"}]}`, schema.Event{Name: "Clicked", UnitType: "user", UnitID: "u"}, nil},
		"page": {"/v1/p", `{"type":"page","name":"Home","category":"Docs","anonymousId":"v","properties":{"name":"Home","path":"/","url":"https://example.com/"}}`,
			schema.Event{Name: "page", UnitType: "anonymous", UnitID: "v"}, map[string]string{"name": "Home", "category": "Docs", "path": "/", "url": "https://example.com/"}},
		"screen": {"/v1/screen", `{"name":"Start","userId":"u"}`, schema.Event{Name: "screen", UnitType: "user", UnitID: "u"}, map[string]string{"name": "Start"}},
		"identify": {"/v1/identify", `{"userId":"u","traits":{"plan":"pro","email":"a@example.com","firstName":"Ada","phone":"1","address":{"city":"x"},"ip":"192.0.2.1","seats":3}}`,
			schema.Event{Name: "identify", UnitType: "user", UnitID: "u"}, map[string]string{"plan": "pro", "seats": "3"}},
		"traits before the type": {"/v1/batch", `{"batch":[{"traits":{"name":"Ada","plan":"pro"},"type":"identify","userId":"u"}]}`,
			schema.Event{Name: "identify", UnitType: "user", UnitID: "u"}, map[string]string{"plan": "pro"}},
		"group": {"/v1/group", `{"userId":"u","groupId":"g","traits":{"name":"Acme","phone":"1"}}`,
			schema.Event{Name: "group", UnitType: "user", UnitID: "u"}, map[string]string{"name": "Acme", "group_id": "g"}},
		"alias":                  {"/v1/a", `{"type":"alias","userId":"new","previousId":"old"}`, schema.Event{Name: "alias", UnitType: "user", UnitID: "new"}, map[string]string{"previous_id": "old"}},
		"traits of a track call": {"/v1/t", `{"event":"Clicked","userId":"u","traits":{"plan":"pro"}}`, schema.Event{Name: "Clicked", UnitType: "user", UnitID: "u"}, nil},
		"a type nobody knows":    {"/v1/b", `{"batch":[{"type":"tap","event":"Tapped","userId":"u"}]}`, schema.Event{Name: "Tapped", UnitType: "user", UnitID: "u"}, nil},
		"camel case": {"/v1/track", `{"event":"Experiment Viewed","userId":"u","properties":{"experimentId":5,"experimentName":"x","variationId":true,"variation_id":""}}`,
			schema.Event{Kind: schema.KindExposure, Experiment: "5", Variant: "true", UnitType: "user", UnitID: "u"}, map[string]string{"experimentName": "x"}},
		"names": {"/v1/track", `{"event":"Experiment Viewed","userId":"u","properties":{"experiment_id":null,"experiment_name":"x","variation_name":"b"}}`,
			schema.Event{Kind: schema.KindExposure, Experiment: "x", Variant: "b", UnitType: "user", UnitID: "u"}, nil},
		"odd where it does not matter": {"/v1/track", `{"event":"E","userId":"u","messageId":{},"context":[1],"properties":[],"integrations":"\ud800","originalTimestamp":"soon","name":{}}`,
			schema.Event{Name: "E", UnitType: "user", UnitID: "u"}, nil},
		"an experiment of another call": {"/v1/track", `{"event":"E","userId":"u","properties":{"experiment_id":{"a":1}}}`,
			schema.Event{Name: "E", UnitType: "user", UnitID: "u"}, map[string]string{"experiment_id": `{"a":1}`}},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, c.path, c.body)
			require.Empty(t, b.Rejected)
			require.Len(t, b.Events, 1)
			got := b.Events[0]
			attrs := map[string]string{}
			for _, a := range got.Attributes {
				attrs[a.Key] = a.Value
			}
			if c.attrs == nil {
				c.attrs = map[string]string{}
			}
			assert.Equal(t, c.attrs, attrs)
			if c.want.Kind == 0 {
				c.want.Kind = schema.KindEvent
			}
			got.Attributes, got.HasTime, got.Time = nil, false, 0
			assert.Equal(t, c.want, got)
		})
	}
}

func TestTimes(t *testing.T) {
	const second = int64(1_000_000)
	for body, want := range map[string]int64{
		`{"event":"E","userId":"u","timestamp":"1970-01-01T00:00:01Z","originalTimestamp":"1970-01-01T00:00:09Z"}`: second,
		`{"event":"E","userId":"u","originalTimestamp":"1970-01-01T00:00:01Z"}`:                                    second,
		`{"event":"E","userId":"u","timestamp":null,"originalTimestamp":"1970-01-01T01:00:01+0100"}`:               second,
		`{"event":"E","userId":"u","timestamp":1000}`:                                                              second,
		`{"event":"E","userId":"u","timestamp":"1970-01-01T00:00:01"}`:                                             second,
		`{"event":"E","userId":"u","sentAt":"1970-01-01T00:00:05Z"}`:                                               0,
	} {
		b := decoded(t, "/v1/t", body)
		require.Len(t, b.Events, 1, body)
		assert.Equal(t, want != 0, b.Events[0].HasTime, body)
		assert.Equal(t, want, b.Events[0].Time, body)
	}
	b := decoded(t, "/v1/t", `{"event":"E","userId":"u","sentAt":"1970-01-01T00:00:05Z","timestamp":"1970-01-01T00:00:01Z"}`)
	assert.Equal(t, 5*second, b.SentAt)
	other := decoded(t, "/v1/t", `{"event":"E","userId":"u","sentAt":"1970-01-01T00:00:50Z","timestamp":"1970-01-01T00:00:01Z"}`)
	assert.Equal(t, identity(b), identity(other), "sentAt is no part of the event")

	// analytics-go writes the body once, and has its library beside the calls too.
	b = decoded(t, "/v1/batch", `{"messageId":"b","sentAt":"2026-03-04T05:06:09Z","context":{"library":{"name":"analytics-go","version":"3.0.0"}},"batch":[{"type":"track","event":"E","userId":"u"}]}`)
	assert.Zero(t, b.SentAt)
	assert.Equal(t, "analytics-go/3.0.0", b.SDK)
	assert.Zero(t, decoded(t, "/v1/t", `{"event":"E","userId":"u","sentAt":{}}`).SentAt)
}

func TestRejected(t *testing.T) {
	const good = `{"type":"track","event":"E","userId":"u","timestamp":"2026-03-04T05:06:07Z"}`
	viewed := func(properties string) string {
		return `{"type":"track","event":"Experiment Viewed","userId":"u","properties":` + properties + `}`
	}
	for name, c := range map[string]struct {
		call, field string
		code        schema.Code
	}{
		"no experiment":     {viewed(`{"variation_id":"b"}`), "experiment", schema.CodeMissingField},
		"no variation":      {viewed(`{"experiment_id":"x","variation_id":null,"variation_name":""}`), "variant", schema.CodeMissingField},
		"no properties":     {viewed(`null`), "experiment", schema.CodeMissingField},
		"properties a text": {viewed(`"x"`), "properties", schema.CodeInvalidType},
		"an object for an id": {viewed(`{"experiment_id":{"a":1},"experiment_name":"x","variation_id":"b"}`), "properties",
			schema.CodeInvalidType},
		"nobody":            {`{"type":"track","event":"E","userId":"","anonymousId":null}`, "unit_id", schema.CodeMissingField},
		"no name":           {`{"type":"track","userId":"u"}`, "name", schema.CodeMissingField},
		"no type":           {`{"userId":"u","traits":{}}`, "type", schema.CodeUnmappable},
		"unknown":           {`{"type":"tap","userId":"u"}`, "type", schema.CodeUnmappable},
		"empty":             {`{}`, "type", schema.CodeUnmappable},
		"type a list":       {`{"type":["track"],"event":"E","userId":"u"}`, "type", schema.CodeInvalidType},
		"id true":           {`{"type":"track","event":"E","userId":true}`, "unit_id", schema.CodeInvalidType},
		"bad time":          {`{"type":"track","event":"E","userId":"u","timestamp":"soon"}`, "time", schema.CodeInvalidTime},
		"event twice":       {`{"type":"track","event":"E","event":"F","userId":"u"}`, "name", schema.CodeDuplicateField},
		"surrogate":         {`{"type":"track","event":"\ud800","userId":"u"}`, "name", schema.CodeInvalidString},
		"not UTF-8":         {"{\"type\":\"track\",\"event\":\"E\",\"userId\":\"\xff\"}", "unit_id", schema.CodeInvalidString},
		"huge number":       {`{"type":"track","event":"E","userId":1e999}`, "unit_id", schema.CodeInvalidNumber},
		"too long":          {`{"type":"track","event":"` + strings.Repeat("e", 5000) + `","userId":"u"}`, "name", schema.CodeTooLong},
		"no object":         {`7`, "", schema.CodeInvalidType},
		"long attribute":    {`{"type":"track","event":"E","userId":"u","properties":{"a":"` + strings.Repeat("a", 70_000) + `"}}`, "attributes", schema.CodeTooLong},
		"surrogate in text": {`{"type":"track","event":"E","userId":"u","properties":{"a":"\ud800"}}`, "properties", schema.CodeInvalidString},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, "/v1/batch", `{"batch":[`+good+`,`+c.call+`,`+good+`]}`)
			assert.Len(t, b.Events, 2, "the neighbours")
			require.Len(t, b.Rejected, 1)
			r := b.Rejected[0]
			assert.Equal(t, []any{c.code, c.field, uint32(1), len(c.call)}, []any{r.Code, r.Field, r.Index, r.Size}, r.Message)
			// Read again as a dead letter, it is no better.
			again := decoded(t, "/v1/batch", `[`+c.call+`]`)
			require.Len(t, again.Rejected, 1)
			assert.Equal(t, c.code, again.Rejected[0].Code)
		})
	}
}

func TestBrokenBodies(t *testing.T) {
	for body, code := range map[string]string{
		``: "empty", ` `: "empty", `null`: "empty", `[]`: "empty", `{"batch":[]}`: "empty", `{"batch":null}`: "empty",
		`7`: "malformed", `{"batch":{}}`: "malformed", `{"batch":[],"batch":[]}`: "malformed", `{"batch":[{"type":"track"}`: "malformed",
		`{"batch":[{}]} x`: "malformed", "\x1f\x8b": "malformed", strings.Repeat("[", 99): "too_deep", `[{},{},{},{}]`: "too_many_events",
	} {
		for _, path := range []string{"/v1/batch", "/v1/track"} {
			req := request(path, body)
			req.MaxEvents = 3
			var err *schema.BodyError
			require.ErrorAs(t, endpoint(t, path).Decode(req, new(schema.Batch)), &err, path+body)
			assert.Equal(t, code, err.Code, path+body)
		}
	}
	var err *schema.BodyError
	require.ErrorAs(t, endpoint(t, "/v1/batch").Decode(request("/v1/batch", `{"writeKey":"k"}`), new(schema.Batch)), &err)
	assert.Equal(t, schema.BodyEmpty, err.Code)
}

func TestKeys(t *testing.T) {
	for name, c := range map[string]struct {
		set        func(*http.Request)
		body, want string
	}{
		"basic":                 {func(r *http.Request) { r.SetBasicAuth("wk", "") }, ``, "wk"},
		"basic with a password": {func(r *http.Request) { r.SetBasicAuth("wk", "x") }, `{"writeKey":"other"}`, "wk"},
		"basic without a user":  {func(r *http.Request) { r.SetBasicAuth("", "") }, `{"writeKey":"wk"}`, "wk"},
		"bearer":                {func(r *http.Request) { r.Header.Set("Authorization", "Bearer wk") }, ``, "wk"},
		"query":                 {func(r *http.Request) { r.URL.RawQuery = "k=wk" }, ``, "wk"},
		"body":                  {nil, `{"batch":[],"writeKey":"wk"}`, "wk"},
		"first event":           {nil, `{"batch":[{"event":"E","writeKey":"wk"},{"writeKey":"other"}]}`, "wk"},
		"bare array":            {nil, `[{"writeKey":"wk"}]`, "wk"},
		"none":                  {nil, `{"batch":[{}]}`, ""},
		"no JSON":               {nil, `x`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/v1/b", nil)
			if c.set != nil {
				c.set(r)
			}
			ep := endpoint(t, "/v1/b")
			got := ep.Key(r)
			if got == "" {
				got = ep.BodyKey(request("/v1/b", c.body))
			}
			assert.Equal(t, c.want, got)
		})
	}
}

func TestAnswers(t *testing.T) {
	ep := endpoint(t, "/v1/batch")
	a := ep.Accept(protocol.Result{Rejected: []schema.Rejected{{}}})
	assert.Equal(t, http.StatusOK, a.Status)
	assert.JSONEq(t, `{"success":true}`, string(a.Body))
	for _, c := range protocol.Codes() {
		a := ep.Refuse(protocol.Problem{Status: c.Status, Code: c.Code})
		again := a.Status >= 500 || a.Status == http.StatusTooManyRequests
		if c.Code != protocol.CodeUnsupportedTE { // a fault of the sender's, and yet 501
			assert.Equal(t, c.Retry, again, c.Code)
		}
		if again && a.Status != http.StatusInternalServerError && c.Code != protocol.CodeUnsupportedTE {
			assert.Equal(t, "1", a.Header["Retry-After"], c.Code)
		}
	}
	a = ep.Refuse(*protocol.NewProblem(protocol.CodeRateLimited, "").After(3 * time.Second))
	assert.Equal(t, []any{http.StatusTooManyRequests, "3"}, []any{a.Status, a.Header["Retry-After"]})
	a = ep.Refuse(*protocol.NewProblem(protocol.CodeUnknownKey, ""))
	assert.Equal(t, http.StatusUnauthorized, a.Status)
}

func TestMetricsAreDropped(t *testing.T) {
	b := decoded(t, "/v1/m", `{"series":[{"type":"Counter","metric":"analytics_js.invoke","value":1}]}`)
	assert.Equal(t, []uint32{0, 1}, []uint32{b.Count, b.Dropped})
}

func TestEndpoints(t *testing.T) {
	seen := map[string]bool{}
	for _, ep := range Endpoints() {
		assert.False(t, seen[ep.Path], ep.Path)
		seen[ep.Path] = true
		assert.Equal(t, ep.Path == "/v1/m", ep.Scope == "", ep.Path)
		assert.NotNil(t, ep.CORS)
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"batch":[{"timestamp":"2026-03-04T05:06:07Z","event":"Experiment Viewed","type":"track","properties":{"experiment_id":"e","variation_id":"v","a":[1]},"userId":"u","messageId":"m","context":{"library":{"name":"n","version":"1"}}}],"sentAt":"2026-03-04T05:06:07Z"}`,
		`{"type":"identify","userId":"u","traits":{"a":1,"email":"x"},"sentAt":"x"}`, `[{"type":"page","name":"n"},7,{"type":"\ud800"}]`,
		`{"batch":[],"writeKey":"k"}`, `null`, `{"event":"E","anonymousId":5,"properties":{"value":"1e3"}}`,
	} {
		f.Add(s, false)
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, body string, one bool) {
		single := ""
		if one {
			single = typeTrack
		}
		req := request("", body)
		req.MaxEvents = 50
		bodyKey(req)
		var b, again schema.Batch
		if err := decode(req, &b, single); err != nil {
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
		require.NoError(t, decode(req, &again, single))
		require.Equal(t, identity(&b), identity(&again))
	})
}

// A batch of 1,000 exposures as analytics-node writes them, and beside it the same
// in the native format.
func BenchmarkDecode(b *testing.B) {
	const n = 1000
	const call = `{"timestamp":"2026-11-24T02:26:27.582Z","integrations":{},"event":"Experiment Viewed","type":"track","properties":{"experiment_id":"exp_config","variation_id":"test"},` +
		`"context":{"library":{"name":"@segment/analytics-node","version":"3.1.0"}},"userId":"r-segment-node-u0","messageId":"node-next-1795487187582-3a0156bf-e945-48cc-8181-129f2e714634",` +
		`"_metadata":{"nodeVersion":"v20.20.2","jsRuntime":"node"}}`
	const native = `{"experiment":"exp_config","variant":"test","unit_id":"r-segment-node-u0","time":"2026-11-24T02:26:27.582Z","event_id":"node-next-1795487187582-3a0156bf-e945-48cc-8181-129f2e714634"}`
	var batch schema.Batch
	run := func(body string, decode func(*protocol.Request) error) func(b *testing.B) {
		return func(b *testing.B) {
			req := request("/v1/batch", body)
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
	b.Run("segment", run(`{"batch":[`+strings.Repeat(call+",", n-1)+call+`],"writeKey":"wk","sentAt":"2026-11-24T02:26:27.585Z"}`,
		func(req *protocol.Request) error { return decode(req, &batch, "") }))
	b.Run("native", run(`{"events":[`+strings.Repeat(native+",", n-1)+native+`]}`,
		func(req *protocol.Request) error {
			return schema.DecodeJSON(req.Body, schema.KindExposure, req.MaxEvents, &batch)
		}))
}
