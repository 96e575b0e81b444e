package eppo

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/schema"
)

// What an assignment logger is given, as an event of the SDK's.
const logged = `{"eppo_events":[
{"uuid":"0198c5a2-7d1e-7c3b-9a50-3f2d1c0b9a87","type":"assignment","timestamp":1795487185226,"payload":{"allocation":"alloc-1","experiment":"button-alloc-1",
"featureFlag":"button","format":"VARIANT","variation":"green","subject":"u1","timestamp":"2026-11-24T02:26:25.225Z",
"subjectAttributes":{"country":"DE","email":"a@b.c","age":20},"metaData":{"sdkLanguage":"javascript","sdkLibVersion":"4.15.1","obfuscated":false},
"evaluationDetails":{"a":[1]},"entityId":3,"holdoutKey":null}},
{"uuid":"0198c5a2-7d1e-7c3b-9a50-3f2d1c0b9a88","type":"purchase","timestamp":1795487185226,"payload":{"subject":"u1","sku":"x","lines":[1]}}],
"context":{"device":"d"}}`

func TestDecode(t *testing.T) {
	b := new(schema.Batch)
	require.NoError(t, decode(&protocol.Request{Body: []byte(logged), MaxEvents: 10}, b))
	require.Len(t, b.Events, 2)
	assert.Equal(t, schema.Event{Kind: schema.KindExposure, Experiment: "button-alloc-1", Variant: "green", Rule: "alloc-1", UnitType: "user", UnitID: "u1",
		HasTime: true, Time: time.Date(2026, 11, 24, 2, 26, 25, 225e6, time.UTC).UnixMicro(), ClientID: "0198c5a2-7d1e-7c3b-9a50-3f2d1c0b9a87",
		Attributes: []schema.Attribute{{Key: "entityId", Value: "3"}, {Key: "featureFlag", Value: "button"}, {Key: "format", Value: "VARIANT"},
			{Key: "metaData.obfuscated", Value: "false"}, {Key: "metaData.sdkLanguage", Value: "javascript"}, {Key: "metaData.sdkLibVersion", Value: "4.15.1"},
			{Key: "subject.age", Value: "20"}, {Key: "subject.country", Value: "DE"}},
	}, b.Events[0])
	assert.Equal(t, schema.Event{Kind: schema.KindEvent, Index: 1, Name: "purchase", UnitType: "user", UnitID: "u1", HasTime: true, Time: 1795487185226000,
		ClientID: "0198c5a2-7d1e-7c3b-9a50-3f2d1c0b9a88", Attributes: []schema.Attribute{{Key: "lines", Value: "[1]"}, {Key: "sku", Value: "x"}},
	}, b.Events[1])
	assert.True(t, b.Repeatable())
}

func TestOdd(t *testing.T) {
	const good = `{"uuid":"x","payload":{"featureFlag":"f","variant":"v","subject":7}}`
	for name, tt := range map[string]struct {
		event string
		code  schema.Code
		field string
	}{
		"flag only, variant":   {good, "", ""},
		"without a payload":    {`{"experiment":"e","variation":"v","subject":"u","timestamp":"2026-11-24T02:26:25Z"}`, "", ""},
		"times as text":        {`{"experiment":"e","variation":"v","subject":"u","timestamp":"1795487185226"}`, "", ""},
		"no variation":         {`{"payload":{"featureFlag":"f","variation":null,"subject":"u"}}`, schema.CodeMissingField, "variant"},
		"no subject":           {`{"payload":{"featureFlag":"f","variation":"v"}}`, schema.CodeMissingField, "unit_id"},
		"event of nobody":      {`{"type":"clicked","payload":{"a":1}}`, schema.CodeMissingField, "unit_id"},
		"event without a type": {`{"payload":{"subject":"u"}}`, schema.CodeMissingField, "name"},
		"nothing":              {`{}`, schema.CodeMissingField, "name"},
		"payload a list":       {`{"type":"x","payload":[1]}`, schema.CodeInvalidType, "payload"},
		"subject twice":        {`{"subject":"u","payload":{"subject":"v"},"type":"x"}`, schema.CodeDuplicateField, "unit_id"},
		"bad time":             {`{"type":"x","timestamp":"soon","subject":"u"}`, schema.CodeInvalidTime, "time"},
		"no object":            {`"x"`, schema.CodeInvalidType, ""},
		"NUL":                  {`{"type":"x","subject":"\u0000"}`, schema.CodeInvalidString, "unit_id"},
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
	for body, code := range map[string]string{
		"": "empty", "[]": "empty", `{"eppo_events":[]}`: "empty", `{"eppo_events":7}`: "malformed", "7": "malformed", "[{}": "malformed", "[{},{},{},{}]": "too_many_events",
	} {
		var err *schema.BodyError
		require.ErrorAs(t, decode(&protocol.Request{Body: []byte(body), MaxEvents: 3}, new(schema.Batch)), &err, body)
		assert.Equal(t, code, err.Code, body)
	}
}

func TestKeyAndAnswer(t *testing.T) {
	ep := Endpoints()[0]
	r := httptest.NewRequest("POST", "/v0/i?k=q", nil)
	assert.Equal(t, "q", ep.Key(r))
	r.Header.Set("x-eppo-token", "t")
	assert.Equal(t, "t", ep.Key(r))
	a := ep.Accept(protocol.Result{Rejected: []schema.Rejected{{}}})
	assert.Equal(t, 200, a.Status)
	assert.JSONEq(t, `{"failed_events":[]}`, string(a.Body))
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(logged))
	f.Add([]byte(`[{"type":"x","subject":1}]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		b, again := new(schema.Batch), new(schema.Batch)
		if err := decode(&protocol.Request{Body: body, MaxEvents: 50}, b); err != nil {
			var e *schema.BodyError
			require.ErrorAs(t, err, &e)
			return
		}
		assert.EqualValues(t, b.Count, len(b.Events)+len(b.Rejected))
		for _, e := range b.Events {
			assert.True(t, schema.ValidText(e.Experiment+e.Variant+e.Name+e.UnitID+e.UnitType+e.ClientID))
		}
		require.NoError(t, decode(&protocol.Request{Body: body, MaxEvents: 50}, again))
		b.ComputeDigest()
		again.ComputeDigest()
		assert.Equal(t, b.Digest, again.Digest)
	})
}

func BenchmarkDecode(b *testing.B) {
	var theirs, ours []string
	for i := range 1000 {
		theirs = append(theirs, fmt.Sprintf(`{"uuid":"0198c5a2-7d1e-7c3b-9a50-%012d","type":"assignment","timestamp":1795487185226,"payload":{"allocation":"alloc-1","experiment":"button-alloc-1","featureFlag":"button","format":"VARIANT","variation":"green","subject":"u%d","timestamp":"2026-11-24T02:26:25.225Z","subjectAttributes":{"country":"DE"},"metaData":{"sdkLanguage":"javascript"}}}`, i, i))
		ours = append(ours, fmt.Sprintf(`{"event_id":"0198c5a2-7d1e-7c3b-9a50-%012d","experiment":"button-alloc-1","variant":"green","rule":"alloc-1","unit_id":"u%d","unit_type":"user","time":"2026-11-24T02:26:25.225Z","attributes":{"featureFlag":"button","format":"VARIANT","subject.country":"DE","metaData.sdkLanguage":"javascript"}}`, i, i))
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
	run("eppo", `{"eppo_events":[`+strings.Join(theirs, ",")+"]}", func(body []byte, batch *schema.Batch) error {
		return decode(&protocol.Request{Body: body, MaxEvents: 1000}, batch)
	})
	run("native", "["+strings.Join(ours, ",")+"]", func(body []byte, batch *schema.Batch) error {
		return schema.DecodeJSON(body, schema.KindExposure, 1000, batch)
	})
}
