package replay

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"

	"sluice/pkg/schema"
)

func fix(t testing.TB, s string) Fix {
	t.Helper()
	f, err := ParseFix(s)
	require.NoError(t, err)
	return f
}

func fixes(t testing.TB, list ...string) (out []Fix) {
	t.Helper()
	for _, s := range list {
		out = append(out, fix(t, s))
	}
	return out
}

func TestParseFixRefuses(t *testing.T) {
	for s, says := range map[string]string{
		"unit_id":             "want field=value",
		"user=x":              "want one of unit_id, experiment",
		"attributes=x":        "want one of",
		"attributes.=x":       "want one of",
		"kind=exposures":      "want exposure or event",
		"time=yesterday":      "want RFC 3339",
		"value=much":          "want a number",
		"value=NaN":           "want a number",
		"value=1e999":         "want a number",
		"body.=x":             "names joined by dots",
		"body.a..b=x":         "names joined by dots",
		"unit_id=\xff":        "want UTF-8",
		"attributes.a\x00b=x": "want UTF-8",
	} {
		_, err := ParseFix(s)
		assert.ErrorContains(t, err, says, s)
	}
}

func TestFixInJSON(t *testing.T) {
	for name, tt := range map[string]struct{ fix, raw, want string }{
		"absent":               {"unit_id=u", `{"a":1}`, `{"a":1,"unit_id":"u"}`},
		"into nothing":         {"unit_id=u", ` { } `, `{"unit_id":"u"}`},
		"another type":         {"unit_id=7", `{"unit_id":7,"b":[1, {"c":2}]}`, `{"b":[1, {"c":2}],"unit_id":"7"}`},
		"twice":                {"unit_id=u", `{"unit_id":"a","x":1,"unit_id":"b"}`, `{"x":1,"unit_id":"u"}`},
		"misspelled":           {"experiment=e", `{"Experiment":"E","x":1}`, `{"x":1,"experiment":"e"}`},
		"taken out":            {"event_id=", `{"event_id":"x","a":1}`, `{"a":1}`},
		"quotes":               {`rule=a"b`, `{}`, `{"rule":"a\"b"}`},
		"a number":             {"value=+16", `{"value":"16"}`, `{"value":16}`},
		"time":                 {"time=2026-01-02T03:04:05Z", `{"time":"x"}`, `{"time":"2026-01-02T03:04:05Z"}`},
		"milliseconds":         {"time=1.5e3", `{}`, `{"time":1500.000}`},
		"negative":             {"time=-1.5", `{}`, `{"time":-1.500}`},
		"attribute":            {"attributes.a.b=1", `{"attributes":{"c":2},"x":1}`, `{"x":1,"attributes":{"c":2,"a.b":"1"}}`},
		"attribute, new":       {"attributes.a=1", `{"x":1}`, `{"x":1,"attributes":{"a":"1"}}`},
		"attribute, no object": {"attributes.a=1", `{"attributes":"x"}`, `{"attributes":{"a":"1"}}`},
		"attribute, out":       {"attributes.a=", `{"attributes":{"a":{"b":1},"c":2}}`, `{"attributes":{"c":2}}`},
		"attribute's case":     {"attributes.a=1", `{"attributes":{"A":2}}`, `{"attributes":{"A":2,"a":"1"}}`},
		"faults stay":          {"unit_id=u", "{\"a\":\"\xff\",\"b\":NaN}", "{\"a\":\"\xff\",\"b\":NaN,\"unit_id\":\"u\"}"},
		"body":                 {"body.user.userID=u", `{"user":{"x":1},"y":2}`, `{"y":2,"user":{"x":1,"userID":"u"}}`},
		"body, JSON":           {"body.a=[1,true]", `{"A":2}`, `{"A":2,"a":[1,true]}`},
		"body, no JSON":        {"body.a=1 2", `{}`, `{"a":"1 2"}`},
		"body, deep":           {"body.a.b.c={}", `{"a":[]}`, `{"a":{"b":{"c":{}}}}`},
	} {
		t.Run(name, func(t *testing.T) {
			f := fix(t, tt.fix)
			got, err := f.inJSON([]byte(tt.raw))
			require.NoError(t, err)
			assert.Equal(t, tt.want, string(got))
		})
	}
	f := fix(t, "unit_id=u")
	for _, raw := range []string{"", "7", "[]", "null", "{", `{"a":1}x`, `{"a"}`, `{"a":1}{"a":1}`} {
		_, err := f.inJSON([]byte(raw))
		assert.Error(t, err, raw)
	}
}

func TestFixOfADecodedEvent(t *testing.T) {
	shared := []schema.Attribute{{Key: "a", Value: "1"}, {Key: "c", Value: "3"}}
	e := schema.Event{Kind: schema.KindExposure, Attributes: shared, HasTime: true, Time: 9, TimeAdjusted: true}
	for _, f := range fixes(t, "unit_id=u", "experiment=e", "variant=v", "unit_type=t", "name=n", "event_id=i", "rule=r", "reason=w",
		"kind=event", "time=2", "value=1.5", "attributes.b=2", "attributes.c=") {
		f.apply(&e)
	}
	assert.Equal(t, schema.Event{Kind: schema.KindEvent, UnitID: "u", Experiment: "e", Variant: "v", UnitType: "t", Name: "n", ClientID: "i", Rule: "r",
		Reason: "w", HasTime: true, Time: 2000, HasValue: true, Value: 1.5, Attributes: []schema.Attribute{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}}}, e)
	assert.Equal(t, []schema.Attribute{{Key: "a", Value: "1"}, {Key: "c", Value: "3"}}, shared, "another event may have the same memory")
	for _, f := range fixes(t, "time=", "value=", "attributes.a=9", "attributes.b=") {
		f.apply(&e)
	}
	assert.False(t, e.HasTime)
	assert.False(t, e.HasValue)
	assert.Equal(t, []schema.Attribute{{Key: "a", Value: "9"}}, e.Attributes)
}

// protoEvent writes fields of an event: number and text.
func protoEvent(fields ...any) (out []byte) {
	for i := 0; i < len(fields); i += 2 {
		out = protowire.AppendTag(out, protowire.Number(fields[i].(int)), protowire.BytesType)
		out = protowire.AppendString(out, fields[i+1].(string))
	}
	return out
}

func TestFixInProto(t *testing.T) {
	raw := protoEvent(2, "e", 3, "v\xff", 3, "w", 10, string(protoEvent(1, "k", 2, "old")), 10, string(protoEvent(1, "l", 2, "stays")))
	raw = protowire.AppendVarint(protowire.AppendTag(raw, 1, protowire.VarintType), 77) // of no known kind
	var err error
	for _, f := range fixes(t, "variant=x", "unit_id=u", "kind=exposure", "attributes.k=new", "time=2", "value=3", "event_id=") {
		raw, err = f.inProto(raw)
		require.NoError(t, err)
	}
	var b schema.Batch
	require.NoError(t, schema.DecodeProto(protoBatch(raw), schema.KindExposure, 1, &b))
	require.Len(t, b.Events, 1, "%+v", b.Rejected)
	e := b.Events[0]
	assert.Equal(t, []string{"e", "x", "u"}, []string{e.Experiment, e.Variant, e.UnitID})
	assert.Equal(t, []schema.Attribute{{Key: "k", Value: "new"}, {Key: "l", Value: "stays"}}, e.Attributes)
	assert.Equal(t, int64(2000), e.Time)
	assert.Equal(t, 3.0, e.Value)

	f := fix(t, "unit_id=u")
	_, err = f.inProto([]byte{0x0a, 0x7f})
	assert.ErrorIs(t, err, errNotProto)
	f = fix(t, "body.a=u")
	_, err = f.inProto(nil)
	assert.Error(t, err)
}

func TestMember(t *testing.T) {
	for raw, want := range map[string]struct {
		text string
		has  bool
	}{
		`{"a":"x"}`: {"x", true}, `{"a":7}`: {"", true}, `{"b":"a"}`: {"", false}, `{"a":"x"`: {"x", false}, `7`: {"", false}, ``: {"", false},
		`{"a":"x","a":"y"}`: {"y", true},
	} {
		text, has := member([]byte(raw), "a")
		assert.Equal(t, want.text, text, raw)
		assert.Equal(t, want.has, has, raw)
	}
}

// What was JSON stays JSON, with the member set.
func FuzzFixInJSON(f *testing.F) {
	for _, s := range []string{`{"a":1}`, `{"attributes":{"k":[1,{"x":"\u0041"}]},"a":NaN}`, `{"unit_id":"x","UNIT_ID":{}}`, `{"a":"\ud800"} `} {
		f.Add([]byte(s), "v")
	}
	f.Fuzz(func(t *testing.T, raw []byte, value string) {
		for _, field := range []string{"unit_id", "attributes.k", "body.a.b"} {
			fx, err := ParseFix(field + "=" + value)
			if err != nil {
				continue
			}
			got, err := fx.inJSON(raw)
			if err != nil {
				continue
			}
			if json.Valid(raw) {
				require.True(t, json.Valid(got), "%s", got)
				var v struct {
					UnitID     *string                    `json:"unit_id"`
					Attributes map[string]json.RawMessage `json:"attributes"`
				}
				if err := json.Unmarshal(got, &v); err == nil && field == "unit_id" {
					require.Equal(t, value != "", v.UnitID != nil)
				}
			}
			again, err := fx.inJSON(got)
			require.NoError(t, err)
			require.Equal(t, len(got), len(again), "the second time changes nothing but the order")
		}
	})
}

func FuzzFixInProto(f *testing.F) {
	f.Add(protoEvent(2, "e", 10, string(protoEvent(1, "k", 2, "v"))), "x")
	f.Fuzz(func(t *testing.T, raw []byte, value string) {
		for _, field := range []string{"unit_id", "attributes.k", "kind"} {
			fx, err := ParseFix(field + "=" + value)
			if err != nil {
				continue
			}
			got, err := fx.inProto(raw)
			if err != nil {
				continue
			}
			again, err := fx.inProto(got)
			require.NoError(t, err)
			require.Equal(t, got, again)
		}
	})
}
