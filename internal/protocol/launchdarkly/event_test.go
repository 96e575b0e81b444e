package launchdarkly

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/schema"
)

func attrs(kv ...string) []schema.Attribute {
	var out []schema.Attribute
	for i := 0; i < len(kv); i += 2 {
		out = append(out, schema.Attribute{Key: kv[i], Value: kv[i+1]})
	}
	return out
}

const at = 1_795_487_187_065 * 1000 // the time of most events below, in microseconds

func exposure(e schema.Event) schema.Event {
	e.Kind, e.HasTime, e.Time = schema.KindExposure, true, at
	return e
}

func custom(e schema.Event) schema.Event {
	e.Kind, e.HasTime, e.Time = schema.KindEvent, true, at
	return e
}

func TestMapping(t *testing.T) {
	for name, c := range map[string]struct {
		event string
		want  []schema.Event
	}{
		"feature, node": {
			`{"kind":"feature","creationDate":1795487187065,"context":{"_meta":{"redactedAttributes":["email"]},"key":"u","kind":"user"},
			"key":"f","value":true,"default":false,"variation":1,"version":42,"reason":{"kind":"RULE_MATCH","ruleIndex":0,"ruleId":"r","inExperiment":true}}`,
			[]schema.Event{exposure(schema.Event{Experiment: "f", Variant: "1", Rule: "r", Reason: "RULE_MATCH", UnitType: "user", UnitID: "u",
				Attributes: attrs("default", "false", "reason.inExperiment", "true", "reason.ruleIndex", "0", "value", "true", "version", "42")})},
		},
		"feature, kind last, a number with a fraction": {
			`{"creationDate":1.795487187065e12,"contextKeys":{"user":"u"},"key":"f","value":"blue","variation":0.0,"version":null,"reason":null,"kind":"feature"}`,
			[]schema.Event{exposure(schema.Event{Experiment: "f", Variant: "0", UnitType: "user", UnitID: "u", Attributes: attrs("value", "blue")})},
		},
		"feature, nothing but the default": {
			`{"kind":"feature","creationDate":1795487187065,"contextKeys":{"org":"o"},"key":"f","value":"blue","default":"blue",
			"reason":{"kind":"ERROR","errorKind":"FLAG_NOT_FOUND"}}`,
			[]schema.Event{exposure(schema.Event{Experiment: "f", Variant: `"blue"`, Reason: "ERROR", UnitType: "org", UnitID: "o",
				Attributes: attrs("default", "blue", "reason.errorKind", "FLAG_NOT_FOUND", "value", "blue")})},
		},
		"feature, an object": {
			`{"kind":"feature","creationDate":"1795487187065","contextKeys":{"user":"u"},"key":"f","value":{"a": [1]},"variation":null,"default":null}`,
			[]schema.Event{exposure(schema.Event{Experiment: "f", Variant: `{"a": [1]}`, UnitType: "user", UnitID: "u", Attributes: attrs("value", `{"a": [1]}`)})},
		},
		"feature, null": {
			`{"kind":"feature","creationDate":1795487187065,"contextKeys":{"user":"u"},"key":"f","value":null}`,
			[]schema.Event{exposure(schema.Event{Experiment: "f", Variant: `null`, UnitType: "user", UnitID: "u"})},
		},
		"feature, of another flag's rules, sampled": {
			`{"kind":"feature","creationDate":1795487187065,"contextKeys":{"user":"u"},"key":"f","value":1,"variation":"2","prereqOf":"g",
			"samplingRatio":10,"excludeFromSummaries":true}`,
			[]schema.Event{exposure(schema.Event{Experiment: "f", Variant: `2`, UnitType: "user", UnitID: "u", Attributes: attrs("prereqOf", "g", "value", "1")})},
		},
		"feature, several contexts": {
			`{"kind":"feature","creationDate":1795487187065,"context":{"org":{"key":"o","tier":"gold","_meta":{"redactedAttributes":["/seats","a/b","/c~1d"]},
			"seats":5,"a/b":1,"c/d":2,"nested":{"x":1}},"kind":"multi","user":{"key":"u","anonymous":true,"email":"a@b.c","name":"A","ip":"10.0.0.1","country":"DE","n":null}},
			"key":"f","value":1,"variation":2}`,
			[]schema.Event{exposure(schema.Event{Experiment: "f", Variant: `2`, UnitType: "user", UnitID: "u", Attributes: attrs("context.org.key", "o",
				"context.org.tier", "gold", "context.user.anonymous", "true", "context.user.country", "DE", "value", "1")})},
		},
		"feature, several contexts and no user": {
			`{"kind":"feature","creationDate":1795487187065,"contextKeys":{"org":"o","device":7},"key":"f","value":1,"variation":2}`,
			[]schema.Event{exposure(schema.Event{Experiment: "f", Variant: `2`, UnitType: "device", UnitID: "7", Attributes: attrs("context.org.key", "o", "value", "1")})},
		},
		"feature, both ways": {
			`{"kind":"feature","creationDate":1795487187065,"contextKeys":{"user":"u"},"context":{"kind":"user","key":"u"},"key":"f","value":1,"variation":2}`,
			[]schema.Event{exposure(schema.Event{Experiment: "f", Variant: `2`, UnitType: "user", UnitID: "u", Attributes: attrs("value", "1")})},
		},
		"feature, schema 3": {
			`{"kind":"feature","creationDate":1795487187065,"key":"f","version":3,"contextKind":"anonymousUser","userKey":"u","variation":1,"value":"x","default":null}`,
			[]schema.Event{exposure(schema.Event{Experiment: "f", Variant: `1`, UnitType: "user", UnitID: "u", Attributes: attrs("context.user.anonymous", "true",
				"value", "x", "version", "3")})},
		},
		"feature, schema 3, inline user": {
			`{"kind":"feature","creationDate":1795487187065,"key":"f","user":{"key":"u","secondary":"s","email":"a@b.c","firstName":"A","country":"DE",
			"custom":{"plan":"pro","groups":["a"],"salary":1},"privateAttrs":["salary"]},"variation":1,"value":"x"}`,
			[]schema.Event{exposure(schema.Event{Experiment: "f", Variant: `1`, UnitType: "user", UnitID: "u", Attributes: attrs("context.user.country", "DE",
				"context.user.plan", "pro", "value", "x")})},
		},
		"a context without a kind": {
			`{"kind":"feature","creationDate":1795487187065,"context":{"key":"u"},"key":"f","value":1,"variation":2}`,
			[]schema.Event{exposure(schema.Event{Experiment: "f", Variant: `2`, UnitType: "user", UnitID: "u", Attributes: attrs("value", "1")})},
		},
		"custom": {
			`{"kind":"custom","creationDate":1795487187065,"key":"purchase","context":{"key":"u","kind":"user"},"data":{"sku":"x","n":2,"cart":{"i": [1]},"no":null},"metricValue":9.99}`,
			[]schema.Event{custom(schema.Event{Name: "purchase", UnitType: "user", UnitID: "u", HasValue: true, Value: 9.99,
				Attributes: attrs("cart", `{"i": [1]}`, "n", "2", "sku", "x")})},
		},
		"custom, scalar data, text for a metric": {
			`{"kind":"custom","creationDate":1795487187065,"key":"k","contextKeys":{"user":"u"},"data":"x","metricValue":"007","url":"https://example.com/"}`,
			[]schema.Event{custom(schema.Event{Name: "k", UnitType: "user", UnitID: "u",
				Attributes: attrs("data", "x", "metricValue", "007", "url", "https://example.com/")})},
		},
		"custom, a list for data": {
			`{"kind":"custom","creationDate":1795487187065,"key":"k","userKey":"u","data":[1, 2],"metricValue":null}`,
			[]schema.Event{custom(schema.Event{Name: "k", UnitType: "user", UnitID: "u", Attributes: attrs("data", "[1, 2]")})},
		},
		"identify": {
			`{"kind":"identify","creationDate":1795487187065,"context":{"kind":"org","key":"o","plan":"pro"},"samplingRatio":1}`,
			[]schema.Event{custom(schema.Event{Name: "identify", UnitType: "org", UnitID: "o", Attributes: attrs("context.org.plan", "pro")})},
		},
		"identify, schema 3": {
			`{"kind":"identify","creationDate":1795487187065,"key":"u"}`,
			[]schema.Event{custom(schema.Event{Name: "identify", UnitType: "user", UnitID: "u"})},
		},
		"alias": {
			`{"kind":"alias","creationDate":1795487187065,"key":"u","contextKind":"user","previousKey":"a","previousContextKind":"anonymousUser"}`,
			[]schema.Event{custom(schema.Event{Name: "alias", UnitType: "user", UnitID: "u", Attributes: attrs("previousContextKind", "anonymousUser", "previousKey", "a")})},
		},
		"click and pageview": {
			`{"kind":"click","creationDate":1795487187065,"key":"goal","data":null,"url":"https://example.com/","selector":".b","contextKeys":{"user":"u"}},
			{"kind":"pageview","creationDate":1795487187065,"url":"https://example.com/","contextKeys":{"user":"u"}}`,
			[]schema.Event{
				custom(schema.Event{Name: "goal", UnitType: "user", UnitID: "u", Attributes: attrs("selector", ".b", "url", "https://example.com/")}),
				custom(schema.Event{Index: 1, Name: "pageview", UnitType: "user", UnitID: "u", Attributes: attrs("url", "https://example.com/")}),
			},
		},
		"a kind that is not known": {
			`{"kind":"migration_op","creationDate":1795487187065,"operation":"read","contextKeys":{"user":"u"},"evaluation":{"key":"f","value":"live"},"measurements":[]}`,
			[]schema.Event{custom(schema.Event{Name: "migration_op", UnitType: "user", UnitID: "u",
				Attributes: attrs("evaluation", `{"key":"f","value":"live"}`, "measurements", "[]", "operation", "read")})},
		},
		"summary": {
			`{"startDate":1795487187000,"endDate":1795487187065,"features":{"f":{"default":false,"contextKinds":["user"],"counters":[
			{"value":true,"count":2,"variation":1,"version":42},{"value":"x","count":1,"unknown":true}]},
			"g":{"counters":[{"count":"3","value":{"a":1},"variation":0}],"default":"d"},"h":{"counters":[]}},"kind":"summary"}`,
			[]schema.Event{
				custom(schema.Event{Name: "summary", UnitType: "flag", UnitID: "f", HasValue: true, Value: 2, Attributes: attrs("context_kinds", `["user"]`, "default", "false",
					"end", "1795487187065", "start", "1795487187000", "value", "true", "variation", "1", "version", "42")}),
				custom(schema.Event{Index: 1, Name: "summary", UnitType: "flag", UnitID: "f", HasValue: true, Value: 1, Attributes: attrs("context_kinds", `["user"]`, "default", "false",
					"end", "1795487187065", "start", "1795487187000", "unknown", "true", "value", "x")}),
				custom(schema.Event{Index: 2, Name: "summary", UnitType: "flag", UnitID: "g", HasValue: true, Value: 3, Attributes: attrs("default", "d",
					"end", "1795487187065", "start", "1795487187000", "value", `{"a":1}`, "variation", "0")}),
			},
		},
		"summary of a context": {
			`{"kind":"summary","endDate":"1795487187065","startDate":null,"context":{"kind":"user","key":"u","plan":"pro"},"features":{"f":{"default":null,"counters":[{"count":1}]}}}`,
			[]schema.Event{custom(schema.Event{Name: "summary", UnitType: "flag", UnitID: "f", HasValue: true, Value: 1, Attributes: attrs("context.user.key", "u", "end", "1795487187065")})},
		},
		"noise": {
			`{"kind":"index","creationDate":1,"context":{"key":"\ud800"}},{"kind":"debug","key":"f","contextKeys":{"user":"u"},"value":1},
			{"kind":"diagnostic-combined"},{"kind":"summary","features":{}},{"kind":"summary"},{"kind":"summary","features":null}`,
			nil,
		},
		"what is not read may be anything": {
			`{"kind":"feature","creationDate":1795487187065,"contextKeys":{"user":"u"},"key":"f","value":1,"variation":2,"other":"\ud800"}`,
			[]schema.Event{exposure(schema.Event{Experiment: "f", Variant: `2`, UnitType: "user", UnitID: "u", Attributes: attrs("value", "1")})},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, request(`[`+c.event+`]`))
			require.Empty(t, b.Rejected)
			if c.want == nil {
				assert.Empty(t, b.Events)
				assert.NotZero(t, b.Dropped)
				return
			}
			assert.Equal(t, c.want, b.Events)
		})
	}
}

func TestLongValues(t *testing.T) {
	long := strings.Repeat("x", schema.MaxAttributeValue+1)
	b := decoded(t, request(`[{"kind":"feature","creationDate":1,"contextKeys":{"user":"u"},"key":"f","value":"`+long+`","default":"`+long+`","variation":2},
		{"kind":"summary","features":{"f":{"default":"`+long+`","counters":[{"count":1,"value":"`+long+`"}]}}}]`))
	require.Len(t, b.Events, 2)
	assert.Empty(t, b.Events[0].Attributes)
	assert.Empty(t, b.Events[1].Attributes)
}

func TestRejections(t *testing.T) {
	const good = `{"kind":"feature","creationDate":1795487187065,"contextKeys":{"user":"u"},"key":"f","value":1,"variation":0}`
	const head = `{"kind":"feature","creationDate":1,"contextKeys":{"user":"u"},`
	for name, c := range map[string]struct {
		event string
		code  schema.Code
		field string
	}{
		"no object":             {`7`, schema.CodeInvalidType, ""},
		"no flag":               {head + `"value":1,"variation":0}`, schema.CodeMissingField, "experiment"},
		"no variant":            {head + `"key":"f"}`, schema.CodeMissingField, "variant"},
		"no context":            {`{"kind":"feature","creationDate":1,"key":"f","value":1,"variation":0}`, schema.CodeMissingField, "unit_id"},
		"an empty context":      {`{"kind":"feature","creationDate":1,"key":"f","value":1,"context":{"kind":"user"}}`, schema.CodeMissingField, "unit_id"},
		"an empty key":          {`{"kind":"feature","creationDate":1,"key":"f","value":1,"userKey":""}`, schema.CodeMissingField, "unit_id"},
		"a context of text":     {`{"kind":"feature","creationDate":1,"key":"f","value":1,"context":"u"}`, schema.CodeInvalidType, "context"},
		"a kind of text":        {`{"kind":"feature","creationDate":1,"key":"f","value":1,"context":{"kind":"multi","user":"u"}}`, schema.CodeInvalidType, "context"},
		"a key that is true":    {`{"kind":"feature","creationDate":1,"key":"f","value":1,"userKey":true}`, schema.CodeInvalidType, "unit_id"},
		"a flag that is a list": {head + `"key":[],"value":1}`, schema.CodeInvalidType, "experiment"},
		"a flag twice":          {head + `"key":"f","key":"g","value":1}`, schema.CodeDuplicateField, "experiment"},
		"a bad time":            {`{"kind":"feature","creationDate":"soon","key":"f","value":1,"userKey":"u"}`, schema.CodeInvalidTime, "time"},
		"a bad string":          {head + `"key":"\ud800","value":1}`, schema.CodeInvalidString, "experiment"},
		"NUL in a value":        {head + `"key":"f","value":"\u0000"}`, schema.CodeInvalidString, "value"},
		"a huge number":         {head + `"key":"f","value":NaN}`, schema.CodeInvalidNumber, "value"},
		"a long variant":        {head + `"key":"f","value":"` + strings.Repeat("x", 5000) + `"}`, schema.CodeTooLong, "variant"},
		"custom without a name": {`{"kind":"custom","creationDate":1,"userKey":"u"}`, schema.CodeMissingField, "name"},
		"identify of nobody":    {`{"kind":"identify","creationDate":1}`, schema.CodeMissingField, "unit_id"},
		"no kind":               {`{"key":"f","userKey":"u"}`, schema.CodeUnmappable, "kind"},
		"a kind of nobody":      {`{"kind":"surprise","key":"f"}`, schema.CodeUnmappable, "kind"},
		"an empty object":       {`{}`, schema.CodeUnmappable, "kind"},
		"summary, bad time":     {`{"kind":"summary","endDate":"x","features":{"f":{"counters":[{"count":1}]}}}`, schema.CodeInvalidTime, "time"},
		"summary, a list":       {`{"kind":"summary","endDate":1,"features":[1]}`, schema.CodeInvalidType, "features"},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, request(`[`+good+`,`+c.event+`,`+good+`]`))
			require.Len(t, b.Rejected, 1)
			r := b.Rejected[0]
			assert.Equal(t, c.code, r.Code, r.Message)
			assert.Equal(t, c.field, r.Field)
			assert.Equal(t, c.event, string(r.Bytes))
			assert.Equal(t, uint32(1), r.Index)
			assert.Len(t, b.Events, 2, "neighbours are kept")
		})
	}
}

// A counter that does not pass costs only itself, and what is kept of it can be
// read again by itself.
func TestRejectedCounters(t *testing.T) {
	b := decoded(t, request(`[{"kind":"summary","startDate":1,"endDate":2,"features":{
		"f":{"default":"d","counters":[{"count":1},{"count":"many"},7,{"variation":{},"count":1},{"value":"\ud800","count":1}],"contextKinds":["user"]},
		"g":7,"h":{"counters":{}},"":{"counters":[{"count":1}]},"i\ud800":{"counters":[]},
		"j":{"default":"\u0000","counters":[{"count":1}]},"k":{"counters":[{"count":4}]}}}]`))
	require.Len(t, b.Events, 3)
	assert.Equal(t, []string{"f", "f", "k"}, []string{b.Events[0].UnitID, b.Events[1].UnitID, b.Events[2].UnitID})
	var codes []schema.Code
	for _, r := range b.Rejected {
		codes = append(codes, r.Code)
	}
	assert.Equal(t, []schema.Code{schema.CodeMissingField, schema.CodeInvalidType, schema.CodeInvalidString,
		schema.CodeInvalidType, schema.CodeInvalidType, schema.CodeMissingField, schema.CodeInvalidString, schema.CodeInvalidString}, codes)
	assert.Equal(t, `{"kind":"summary","features":{"f":{"counters":[{"count":"many"}],"default":"d","contextKinds":["user"]}},"startDate":1,"endDate":2}`,
		string(b.Rejected[0].Bytes))
	again := decoded(t, request(`[`+strings.Replace(string(b.Rejected[0].Bytes), `"many"`, "5", 1)+`]`))
	require.Len(t, again.Events, 1)
	assert.Equal(t, schema.Event{Kind: schema.KindEvent, Name: "summary", UnitType: "flag", UnitID: "f", HasTime: true, Time: 2000, HasValue: true, Value: 5,
		Attributes: attrs("context_kinds", `["user"]`, "default", "d", "end", "2", "start", "1")}, again.Events[0])
}
