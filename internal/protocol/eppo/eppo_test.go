package eppo

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

func request(body string) *protocol.Request {
	return &protocol.Request{Header: http.Header{}, Query: url.Values{}, Path: "/v0/i", Body: []byte(body), MaxEvents: 10_000}
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

const id1 = "5b1f8f8a-6d0c-4c3e-9c39-1f2f6a0c7d11"

// A batch in the shape of @eppo/js-client-sdk-common.
func TestBatch(t *testing.T) {
	const events = `[{"uuid":"` + id1 + `","type":"__eppo_assignment","timestamp":1772600767890,"payload":{"entity_id":1,"experiment":"checkout-all","feature_flag":"checkout","allocation":"all","holdout_variation":null,"holdout":null,"subject":"ada","variation":"blue"}},
		{"uuid":"5b1f8f8a-6d0c-4c3e-9c39-1f2f6a0c7d12","type":"purchase","timestamp":1772600767891,"payload":{"subject":"ada","value":12.5,"sku":"x","email":"a@example.com","items":[1]}}]`
	b := decoded(t, `{"eppo_events":`+events+`,"context":{"sdkName":"node","sdkVersion":"4.9.0"}}`)
	require.Empty(t, b.Rejected)
	assert.Equal(t, []schema.Event{
		{Kind: schema.KindExposure, HasTime: true, Time: 1_772_600_767_890_000, Experiment: "checkout-all", Variant: "blue", Rule: "all", UnitType: "user", UnitID: "ada",
			ClientID: id1, Attributes: attributes("entity_id", "1", "feature_flag", "checkout")},
		{Kind: schema.KindEvent, Index: 1, HasTime: true, Time: 1_772_600_767_891_000, Name: "purchase", UnitType: "user", UnitID: "ada",
			ClientID: "5b1f8f8a-6d0c-4c3e-9c39-1f2f6a0c7d12", HasValue: true, Value: 12.5, Attributes: attributes("items", "[1]", "sku", "x", "value", "12.5")},
	}, b.Events)
	assert.Equal(t, "node/4.9.0", b.SDK)
	for _, body := range []string{`{"context":{"other":1},"eppo_events":` + events + `}`, events} {
		assert.Equal(t, identity(b), identity(decoded(t, body)), "the context is no part of the events")
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
		"flag only": {`{"type":"assignment","payload":{"experiment":null,"featureFlag":"f","variation":"v","subject":"u"}}`, exposure},
		"variant":   {`{"payload":{"experiment":"f","variant":"v","variation":null,"subject":"u"},"type":"__eppo_assignment"}`, exposure},
		"numbers":   {`{"type":"__eppo_assignment","payload":{"experiment":"f","variation":true,"subject":7}}`, with(exposure, func(e *schema.Event) { e.Variant, e.UnitID = "true", "7" })},
		"by itself": {`{"allocation":"a","experiment":"f-a","featureFlag":"f","variation":"v","subject":"u","timestamp":"2026-03-04T05:06:07.890Z","subjectAttributes":{"age":3},"metaData":{"sdkName":"python","sdkVersion":"4.4.1"},"evaluationDetails":{},"format":"string"}`, with(exposure, func(e *schema.Event) {
			e.Experiment, e.Rule, e.HasTime, e.Time, e.Attributes = "f-a", "a", true, 1_772_600_767_890_000, attributes("feature_flag", "f", "format", "string")
		})},
		"inner time":  {`{"type":"assignment","payload":{"featureFlag":"f","variation":"v","subject":"u","timestamp":"2026-03-04T05:06:07.890"}}`, with(exposure, func(e *schema.Event) { e.HasTime, e.Time = true, 1_772_600_767_890_000 })},
		"two times":   {`{"type":"assignment","payload":{"featureFlag":"f","variation":"v","subject":"u","timestamp":5},"timestamp":1}`, with(exposure, func(e *schema.Event) { e.HasTime, e.Time = true, 1000 })},
		"subject key": {`{"type":"E","payload":{"subject_key":"u"}}`, custom},
		"another": {`{"type":"E","payload":{"subject":"u","feature_flag":"f","variation":"v","allocation":"a","value":"x"}}`, with(custom, func(e *schema.Event) {
			e.Attributes = attributes("allocation", "a", "feature_flag", "f", "value", "x", "variation", "v")
		})},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, `{"eppo_events":[`+c.event+`]}`)
			require.Empty(t, b.Rejected)
			assert.Equal(t, []schema.Event{c.want}, b.Events)
		})
	}
}

func TestRejected(t *testing.T) {
	const good = `{"uuid":"` + id1 + `","type":"E","payload":{"subject":"u"}}`
	for name, c := range map[string]struct {
		event, field string
		code         schema.Code
	}{
		"no experiment":     {`{"type":"assignment","payload":{"variation":"v","subject":"u"}}`, "experiment", schema.CodeMissingField},
		"no variation":      {`{"type":"assignment","payload":{"experiment":"e","variation":null,"subject":"u"}}`, "variant", schema.CodeMissingField},
		"no subject":        {`{"type":"assignment","payload":{"experiment":"e","variation":"v","subject":""}}`, "unit_id", schema.CodeMissingField},
		"no payload":        {`{"type":"assignment","payload":null}`, "experiment", schema.CodeMissingField},
		"payload":           {`{"type":"assignment","payload":7}`, "payload", schema.CodeInvalidType},
		"nobody":            {`{"type":"E","payload":{}}`, "type", schema.CodeUnmappable},
		"nothing":           {`{}`, "type", schema.CodeUnmappable},
		"subject as object": {`{"type":"E","payload":{"subject":{}}}`, "unit_id", schema.CodeInvalidType},
		"variation as list": {`{"type":"assignment","payload":{"experiment":"e","variation":[],"subject":"u"}}`, "variant", schema.CodeInvalidType},
		"bad time":          {`{"type":"E","payload":{"subject":"u"},"timestamp":"soon"}`, "time", schema.CodeInvalidTime},
		"type twice":        {`{"type":"E","type":"E","payload":{"subject":"u"}}`, "name", schema.CodeDuplicateField},
		"payload twice":     {`{"type":"E","payload":{"subject":"u"},"payload":{}}`, "payload", schema.CodeDuplicateField},
		"surrogate":         {`{"type":"\ud800","payload":{"subject":"u"}}`, "name", schema.CodeInvalidString},
		"not UTF-8":         {"{\"type\":\"E\",\"payload\":{\"subject\":\"\xff\"}}", "unit_id", schema.CodeInvalidString},
		"huge number":       {`{"type":"E","payload":{"subject":"u","value":1e999}}`, "payload", schema.CodeInvalidNumber},
		"too long":          {`{"type":"` + strings.Repeat("e", 5000) + `","payload":{"subject":"u"}}`, "name", schema.CodeTooLong},
		"no object":         {`7`, "", schema.CodeInvalidType},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, `{"eppo_events":[`+good+`,`+c.event+`,`+good+`]}`)
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
		``: "empty", `null`: "empty", `[]`: "empty", `{}`: "empty", `{"eppo_events":[]}`: "empty", `{"eppo_events":null}`: "empty",
		`7`: "malformed", `{"eppo_events":{}}`: "malformed", `{"eppo_events":[],"eppo_events":[]}`: "malformed", `{"eppo_events":[{}`: "malformed",
		`{"eppo_events":[{}]} x`: "malformed", strings.Repeat("[", 99): "too_deep", `[{},{},{},{}]`: "too_many_events",
	} {
		req := request(body)
		req.MaxEvents = 3
		var err *schema.BodyError
		require.ErrorAs(t, decode(req, new(schema.Batch)), &err, body)
		assert.Equal(t, code, err.Code, body)
	}
}

func TestKeys(t *testing.T) {
	for header, want := range map[string]string{"x-eppo-token": "k", "X-API-Key": "k", "X-Other": ""} {
		r := httptest.NewRequest(http.MethodPost, "/v0/i", nil)
		r.Header.Set(header, "k")
		assert.Equal(t, want, key(r), header)
	}
}

func TestAnswers(t *testing.T) {
	a := accept(protocol.Result{Rejected: []schema.Rejected{{}}})
	assert.Equal(t, http.StatusOK, a.Status)
	assert.JSONEq(t, `{"failed_events":[]}`, string(a.Body))
	for _, c := range protocol.Codes() {
		a := refuse(protocol.Problem{Status: c.Status, Code: c.Code})
		assert.GreaterOrEqual(t, a.Status, 400)
		if c.Retry && c.Code != protocol.CodeInternal {
			assert.Contains(t, []int{http.StatusServiceUnavailable, http.StatusTooManyRequests}, a.Status, c.Code)
			assert.Equal(t, "1", a.Header["Retry-After"], c.Code)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"eppo_events":[{"uuid":"i","timestamp":1,"type":"__eppo_assignment","payload":{"experiment":"e","variation":"v","subject":"u","a":[1]}}],"context":{"sdkName":"x"}}`,
		`[{"experiment":"e","variation":"v","subject":"u","metaData":{"sdkName":"n"},"timestamp":"2026-03-04T05:06:07Z"},7,{"type":"\ud800"}]`, `null`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		req := request(body)
		req.MaxEvents = 50
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
			for _, s := range []string{e.Experiment, e.Variant, e.Name, e.UnitID, e.UnitType, e.ClientID, e.Rule} {
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

// A batch of 1,000 assignments as the SDKs for JavaScript write them, and beside it
// the same in the native format.
func BenchmarkDecode(b *testing.B) {
	const n = 1000
	const event = `{"uuid":"0306c88c-a784-49c5-8b02-e8517f404999","type":"__eppo_assignment","timestamp":1795487192089,"payload":{"entity_id":1,"experiment":"exp_config-all","feature_flag":"exp_config","allocation":"all","holdout_variation":null,"holdout":null,"subject":"r-eppo-node-u0","variation":"test"}}`
	const native = `{"experiment":"exp_config-all","variant":"test","unit_id":"r-eppo-node-u0","rule":"all","time":1795487192089,"event_id":"0306c88c-a784-49c5-8b02-e8517f404999","attributes":{"entity_id":1,"feature_flag":"exp_config"}}`
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
	b.Run("eppo", run(`{"eppo_events":[`+strings.Repeat(event+",", n-1)+event+`],"context":{}}`,
		func(req *protocol.Request) error { return decode(req, &batch) }))
	b.Run("native", run(`{"events":[`+strings.Repeat(native+",", n-1)+native+`]}`,
		func(req *protocol.Request) error {
			return schema.DecodeJSON(req.Body, schema.KindExposure, req.MaxEvents, &batch)
		}))
}
