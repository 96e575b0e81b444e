package growthbook

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/schema"
)

// As @growthbook/growthbook 1.6 writes it.
const logged = `[{"event_name":"Experiment Viewed","properties_json":{"experimentId":"checkout","variationId":"1","hashAttribute":"id","hashValue":"u1"},
"user_id":"u1","device_id":"d1","page_id":"p","session_id":"s","utm_source":"mail","sdk_language":"js","sdk_version":"1.6.5","url":"https://example.com/a",
"context_json":{"country":"DE","email":"a@b.c","premium":true,"list":[1]}},
{"event_name":"Feature Evaluated","properties_json":{"feature":"button","source":"experiment","value":{"a":1},"ruleId":"r","variationId":"0"},
"user_id":null,"device_id":"d1","page_id":null,"session_id":null,"sdk_language":"js","sdk_version":"1.6.5","url":"","context_json":{}}]`

func TestDecode(t *testing.T) {
	b := new(schema.Batch)
	require.NoError(t, decode(&protocol.Request{Body: []byte(logged), MaxEvents: 10}, b))
	require.Len(t, b.Events, 2)
	assert.Equal(t, "growthbook-js/1.6.5", b.SDK)
	assert.Equal(t, schema.Event{Kind: schema.KindExposure, Experiment: "checkout", Variant: "1", UnitType: "user", UnitID: "u1", Attributes: []schema.Attribute{
		{Key: "context.country", Value: "DE"}, {Key: "context.premium", Value: "true"}, {Key: "hashAttribute", Value: "id"}, {Key: "page_id", Value: "p"},
		{Key: "session_id", Value: "s"}, {Key: "url", Value: "https://example.com/a"}, {Key: "utm_source", Value: "mail"},
	}}, b.Events[0])
	assert.Equal(t, schema.Event{Kind: schema.KindEvent, Index: 1, Name: "Feature Evaluated", UnitType: "device", UnitID: "d1", Attributes: []schema.Attribute{
		{Key: "feature", Value: "button"}, {Key: "ruleId", Value: "r"}, {Key: "source", Value: "experiment"}, {Key: "value", Value: `{"a":1}`}, {Key: "variationId", Value: "0"},
	}}, b.Events[1])
	assert.False(t, b.Repeatable(), "neither ids nor times")
}

func TestOdd(t *testing.T) {
	const good = `{"event_name":"Experiment Viewed","properties_json":{"experimentId":"e","variationId":0},"user_id":7}`
	for name, tt := range map[string]struct {
		event string
		code  schema.Code
		field string
	}{
		"numbers":                           {good, "", ""},
		"former name":                       {`{"event_name":"Experiment Viewed","properties":{"experimentId":"e","variationId":"v"},"device_id":"d"}`, "", ""},
		"known by what it is told apart by": {`{"event_name":"Experiment Viewed","properties_json":{"experimentId":"e","variationId":"v","hashAttribute":"company","hashValue":3}}`, "", ""},
		"PHP's empty context":               {`{"event_name":"Experiment Viewed","properties_json":{"experimentId":"e","variationId":"v"},"user_id":"u","context_json":[]}`, "", ""},
		"no unit":                           {`{"event_name":"Experiment Viewed","properties_json":{"experimentId":"e","variationId":"v"},"user_id":null}`, schema.CodeMissingField, "unit_id"},
		"no experiment":                     {`{"event_name":"Experiment Viewed","properties_json":{"variationId":"v"},"user_id":"u"}`, schema.CodeMissingField, "experiment"},
		"no properties":                     {`{"event_name":"Experiment Viewed","properties_json":null,"user_id":"u"}`, schema.CodeMissingField, "experiment"},
		"no name":                           {`{"user_id":"u"}`, schema.CodeMissingField, "name"},
		"properties a list":                 {`{"event_name":"x","properties_json":[1],"user_id":"u"}`, schema.CodeInvalidType, "properties"},
		"id an object":                      {`{"event_name":"x","user_id":{}}`, schema.CodeInvalidType, "unit_id"},
		"user twice":                        {`{"event_name":"x","user_id":"u","user_id":"v"}`, schema.CodeDuplicateField, "unit_id"},
		"no object":                         {`7`, schema.CodeInvalidType, ""},
		"lone surrogate":                    {`{"event_name":"\ud800","user_id":"u"}`, schema.CodeInvalidString, "name"},
	} {
		t.Run(name, func(t *testing.T) {
			b := new(schema.Batch)
			require.NoError(t, decode(&protocol.Request{Body: []byte("[" + good + "," + tt.event + "," + good + "]"), MaxEvents: 3}, b))
			assert.EqualValues(t, 3, b.Count)
			if tt.code == "" {
				assert.Empty(t, b.Rejected)
				return
			}
			require.Len(t, b.Rejected, 1)
			assert.Equal(t, tt.code, b.Rejected[0].Code)
			assert.Equal(t, tt.field, b.Rejected[0].Field)
			assert.Equal(t, tt.event, string(b.Rejected[0].Bytes))
			assert.Len(t, b.Events, 2)
		})
	}
	for body, code := range map[string]string{"": "empty", "[]": "empty", "7": "malformed", "[{}": "malformed", "[{},{},{},{}]": "too_many_events", "{} x": "malformed"} {
		var err *schema.BodyError
		require.ErrorAs(t, decode(&protocol.Request{Body: []byte(body), MaxEvents: 3}, new(schema.Batch)), &err, body)
		assert.Equal(t, code, err.Code, body)
	}
}

func TestKeyAndAnswer(t *testing.T) {
	ep := Endpoints()[0]
	for url, want := range map[string]string{"/track?client_key=sdk-1": "sdk-1", "/track?k=x": "x", "/track": "", "/track?client_key=a&k=b": "a"} {
		assert.Equal(t, want, ep.Key(httptest.NewRequest("POST", url, nil)), url)
	}
	assert.Equal(t, 202, ep.Accept(protocol.Result{}).Status)
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(logged))
	f.Add([]byte(`{"event_name":"x","user_id":1}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		b := new(schema.Batch)
		if err := decode(&protocol.Request{Body: body, MaxEvents: 50}, b); err != nil {
			var e *schema.BodyError
			require.ErrorAs(t, err, &e)
			return
		}
		assert.EqualValues(t, b.Count, len(b.Events)+len(b.Rejected))
		for _, e := range b.Events {
			assert.True(t, schema.ValidText(e.Experiment+e.Variant+e.Name+e.UnitID+e.UnitType))
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	var theirs, ours []string
	for i := range 1000 {
		theirs = append(theirs, fmt.Sprintf(`{"event_name":"Experiment Viewed","properties_json":{"experimentId":"checkout","variationId":"1","hashAttribute":"id","hashValue":"u%d"},"user_id":"u%d","device_id":"d","page_id":"p","session_id":"s","sdk_language":"js","sdk_version":"1.6.5","url":"https://example.com/a","context_json":{"country":"DE"}}`, i, i))
		ours = append(ours, fmt.Sprintf(`{"experiment":"checkout","variant":"1","unit_id":"u%d","unit_type":"user","attributes":{"hashAttribute":"id","page_id":"p","session_id":"s","url":"https://example.com/a","context.country":"DE"}}`, i))
	}
	run := func(name string, body string, decode func([]byte, *schema.Batch) error) {
		b.Run(name, func(b *testing.B) {
			batch := new(schema.Batch)
			b.ReportAllocs()
			for b.Loop() {
				batch.Reset()
				require.NoError(b, decode([]byte(body), batch))
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/event")
		})
	}
	run("growthbook", "["+strings.Join(theirs, ",")+"]", func(body []byte, batch *schema.Batch) error {
		return decode(&protocol.Request{Body: body, MaxEvents: 1000}, batch)
	})
	run("native", "["+strings.Join(ours, ",")+"]", func(body []byte, batch *schema.Batch) error {
		return schema.DecodeJSON(body, schema.KindExposure, 1000, batch)
	})
}
