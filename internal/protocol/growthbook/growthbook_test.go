package growthbook

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
	return &protocol.Request{Header: http.Header{}, Query: url.Values{}, Path: "/track", Body: []byte(body), MaxEvents: 10_000}
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

// A body in the shape of @growthbook/growthbook 1.8.0.
func TestBatchOfJavaScript(t *testing.T) {
	b := decoded(t, `[{"event_name":"Experiment Viewed","properties_json":{"experimentId":"checkout","variationId":"1","hashAttribute":"id","hashValue":"ada"},"user_id":null,"device_id":"ada","page_id":null,"session_id":"s","utm_source":"x","sdk_language":"js","sdk_version":"1.8.0","url":"https://shop/?q=1","context_json":{"email":"a@example.com","country":"NL"}},
		{"event_name":"Feature Evaluated","properties_json":{"feature":"f","source":"experiment","value":"true","ruleId":"","variationId":"1"},"user_id":"ada","device_id":"d","sdk_language":"js","sdk_version":"1.8.0","url":"","context_json":{}},
		{"event_name":"Order","properties_json":{"value":12.5,"ip":"192.0.2.1","items":[1]},"user_id":"ada"}]`)
	require.Empty(t, b.Rejected)
	assert.Equal(t, []schema.Event{
		{Kind: schema.KindExposure, Experiment: "checkout", Variant: "1", UnitType: "user", UnitID: "ada", Attributes: attributes("hashAttribute", "id", "hashValue", "ada")},
		{Kind: schema.KindEvent, Index: 1, Name: "Feature Evaluated", UnitType: "user", UnitID: "ada",
			Attributes: attributes("feature", "f", "ruleId", "", "source", "experiment", "value", "true", "variationId", "1")},
		{Kind: schema.KindEvent, Index: 2, Name: "Order", UnitType: "user", UnitID: "ada", HasValue: true, Value: 12.5, Attributes: attributes("items", "[1]", "value", "12.5")},
	}, b.Events)
	assert.Equal(t, "growthbook-js/1.8.0", b.SDK)
	assert.False(t, b.Repeatable(), "there is nothing to tell a copy by")
}

// A body in the shape of growthbook (Python) 4.0.0.
func TestBatchOfPython(t *testing.T) {
	b := decoded(t, `[{"event_name":"$$experiment_viewed","properties_json":{"experiment_id":"checkout","variation_id":1,"variation_key":"blue","in_experiment":true,"hash_used":true,"hash_attribute":"id","hash_value":"ada"},"sdk_language":"python","sdk_version":"4.0.0","url":"","context_json":{},"user_id":"ada","device_id":"d","page_id":null,"session_id":null},
		{"event_name":"$$feature_evaluated","properties_json":{"feature_key":"f","feature_value":true,"source":"experiment"},"user_id":"ada"}]`)
	require.Empty(t, b.Rejected)
	require.Len(t, b.Events, 2)
	assert.Equal(t, schema.Event{Kind: schema.KindExposure, Experiment: "checkout", Variant: "blue", UnitType: "user", UnitID: "ada",
		Attributes: attributes("hash_attribute", "id", "hash_used", "true", "hash_value", "ada", "in_experiment", "true", "variation_id", "1")}, b.Events[0])
	assert.Equal(t, "$$feature_evaluated", b.Events[1].Name)
	assert.Equal(t, "growthbook-python/4.0.0", b.SDK)
}

func TestUnits(t *testing.T) {
	for name, c := range map[string]struct{ event, unitType, unit string }{
		"user":    {`{"event_name":"E","user_id":"u","device_id":"d"}`, "user", "u"},
		"device":  {`{"event_name":"E","user_id":"","device_id":"d"}`, "user", "d"},
		"number":  {`{"event_name":"E","user_id":7}`, "user", "7"},
		"hash":    {`{"event_name":"Experiment Viewed","properties":{"experimentId":"e","variationId":0,"hashAttribute":"company","hashValue":"acme"}}`, "company", "acme"},
		"hash py": {`{"event_name":"$$experiment_viewed","properties_json":{"experiment_id":"e","variation_id":0,"hash_value":"acme"}}`, "user", "acme"},
	} {
		b := decoded(t, `[`+c.event+`]`)
		require.Empty(t, b.Rejected, name)
		assert.Equal(t, []string{c.unitType, c.unit}, []string{b.Events[0].UnitType, b.Events[0].UnitID}, name)
	}
}

func TestRejected(t *testing.T) {
	const good = `{"event_name":"E","user_id":"u"}`
	for name, c := range map[string]struct {
		event, field string
		code         schema.Code
	}{
		"no unit":          {`{"event_name":"E"}`, "unit_id", schema.CodeMissingField},
		"no name":          {`{"user_id":"u"}`, "name", schema.CodeMissingField},
		"no experiment":    {`{"event_name":"Experiment Viewed","user_id":"u","properties_json":{"variationId":1}}`, "experiment", schema.CodeMissingField},
		"no variation":     {`{"event_name":"Experiment Viewed","user_id":"u","properties_json":{"experimentId":"e","variationId":null}}`, "variant", schema.CodeMissingField},
		"nested variation": {`{"event_name":"Experiment Viewed","user_id":"u","properties_json":{"experimentId":"e","variationId":{}}}`, "properties_json", schema.CodeInvalidType},
		"properties":       {`{"event_name":"E","user_id":"u","properties_json":7}`, "properties_json", schema.CodeInvalidType},
		"user as object":   {`{"event_name":"E","user_id":{}}`, "unit_id", schema.CodeInvalidType},
		"name twice":       {`{"event_name":"E","event_name":"E","user_id":"u"}`, "name", schema.CodeDuplicateField},
		"surrogate":        {`{"event_name":"\ud800","user_id":"u"}`, "name", schema.CodeInvalidString},
		"not UTF-8":        {"{\"event_name\":\"E\",\"user_id\":\"\xff\"}", "unit_id", schema.CodeInvalidString},
		"huge number":      {`{"event_name":"E","user_id":"u","properties_json":{"value":1e999}}`, "properties_json", schema.CodeInvalidNumber},
		"too long":         {`{"event_name":"` + strings.Repeat("e", 5000) + `","user_id":"u"}`, "name", schema.CodeTooLong},
		"no object":        {`7`, "", schema.CodeInvalidType},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, `[`+good+`,`+c.event+`,`+good+`]`)
			assert.Len(t, b.Events, 2, "the neighbours")
			require.Len(t, b.Rejected, 1)
			r := b.Rejected[0]
			assert.Equal(t, []any{c.code, c.field, uint32(1), len(c.event)}, []any{r.Code, r.Field, r.Index, r.Size}, r.Message)
		})
	}
}

func TestBrokenBodies(t *testing.T) {
	for body, code := range map[string]string{
		``: "empty", `null`: "empty", `[]`: "empty", `{}`: "empty", `{"events":[]}`: "empty",
		`7`: "malformed", `{"events":{}}`: "malformed", `{"events":[],"events":[]}`: "malformed", `[{}`: "malformed",
		`[{}] x`: "malformed", strings.Repeat("[", 99): "too_deep", `[{},{},{},{}]`: "too_many_events",
	} {
		req := request(body)
		req.MaxEvents = 3
		var err *schema.BodyError
		require.ErrorAs(t, decode(req, new(schema.Batch)), &err, body)
		assert.Equal(t, code, err.Code, body)
	}
}

func TestKeys(t *testing.T) {
	for target, want := range map[string]string{"/track?client_key=k": "k", "/track?k=k": "k", "/track?client_key=": "", "/track": ""} {
		assert.Equal(t, want, key(httptest.NewRequest(http.MethodPost, target, nil)), target)
	}
}

func TestAnswers(t *testing.T) {
	a := accept(protocol.Result{})
	assert.Equal(t, http.StatusOK, a.Status)
	assert.JSONEq(t, `{"success":true}`, string(a.Body))
	for _, c := range protocol.Codes() {
		a := refuse(protocol.Problem{Status: c.Status, Code: c.Code})
		if c.Retry && c.Code != protocol.CodeInternal {
			assert.Equal(t, "1", a.Header["Retry-After"], c.Code)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`[{"event_name":"Experiment Viewed","properties_json":{"experimentId":"e","variationId":"v","a":[1]},"user_id":"u","sdk_language":"js","sdk_version":"1"}]`,
		`{"events":[{"event_name":"\ud800","device_id":5},7]}`, `null`, `[{"event_name":"$$experiment_viewed","properties":{"hash_attribute":"a","hash_value":"b","value":"1"}}]`,
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

// A body of 1,000 exposures as the plugin for JavaScript writes them, and beside it the
// same in the native format.
func BenchmarkDecode(b *testing.B) {
	const n = 1000
	const event = `{"event_name":"Experiment Viewed","properties_json":{"experimentId":"exp_config","variationId":"1","hashAttribute":"id","hashValue":"r-growthbook-u0"},"user_id":"r-growthbook-u0","device_id":null,"page_id":null,"session_id":null,"sdk_language":"js","sdk_version":"1.8.0","url":"https://shop.example.com/cart","context_json":{"country":"NL"}}`
	const native = `{"experiment":"exp_config","variant":"1","unit_id":"r-growthbook-u0","attributes":{"hashAttribute":"id","hashValue":"r-growthbook-u0"}}`
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
	b.Run("growthbook", run(`[`+strings.Repeat(event+",", n-1)+event+`]`,
		func(req *protocol.Request) error { return decode(req, &batch) }))
	b.Run("native", run(`{"events":[`+strings.Repeat(native+",", n-1)+native+`]}`,
		func(req *protocol.Request) error {
			return schema.DecodeJSON(req.Body, schema.KindExposure, req.MaxEvents, &batch)
		}))
}
