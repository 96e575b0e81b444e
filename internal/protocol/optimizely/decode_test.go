package optimizely

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/schema"
)

func request(body string) *protocol.Request {
	return &protocol.Request{Header: http.Header{}, Query: url.Values{}, Path: "/v1/events", Body: []byte(body), MaxEvents: 10_000}
}

func decoded(t *testing.T, req *protocol.Request) *schema.Batch {
	t.Helper()
	var b schema.Batch
	require.NoError(t, decode(req, &b))
	assert.Equal(t, int(b.Count), len(b.Events)+len(b.Rejected))
	return &b
}

func attrs(kv ...string) []schema.Attribute {
	var out []schema.Attribute
	for i := 0; i < len(kv); i += 2 {
		out = append(out, schema.Attribute{Key: kv[i], Value: kv[i+1]})
	}
	return out
}

const at = 1_795_487_192_936 * 1000 // the time of most events below, in microseconds

// payload is what a server SDK sends, in its own shape.
const payload = `{"client_name":"node-sdk","client_version":"6.6.1","account_id":"12","project_id":"1","revision":"42","anonymize_ip":true,
	"enrich_decisions":true,"visitors":[{"snapshots":[{"decisions":[{"campaign_id":"300","experiment_id":"200","variation_id":"402","metadata":{"flag_key":"checkout",
	"rule_key":"everyone","rule_type":"feature-test","variation_key":"blue","enabled":true}}],"events":[{"entity_id":"300","timestamp":1795487192936,
	"key":"campaign_activated","uuid":"0895b1ea-4c40-473b-a7d4-4a63d2fa6bd2"}]}],"visitor_id":"u0","attributes":[{"entity_id":"$opt_bot_filtering",
	"key":"$opt_bot_filtering","type":"custom","value":false},{"entity_id":"7","key":"plan","type":"custom","value":"pro"}]},
	{"snapshots":[{"events":[{"entity_id":"9","timestamp":1795487192936,"key":"purchase","uuid":"93482589-f9fd-4a27-bd83-82980e253966",
	"revenue":1999,"value":9.99,"tags":{"revenue":1999,"value":9.99,"sku":"x","cart":{"n": 1}}}]}],"visitor_id":"u1","attributes":[]}]}`

func TestPayload(t *testing.T) {
	b := decoded(t, request(payload))
	assert.Empty(t, b.Rejected)
	assert.Equal(t, "node-sdk/6.6.1", b.SDK)
	assert.True(t, b.Repeatable())
	assert.Equal(t, []schema.Event{
		{Kind: schema.KindExposure, HasTime: true, Time: at, Experiment: "200", Variant: "402", Rule: "everyone", UnitType: "visitor", UnitID: "u0",
			ClientID: "0895b1ea-4c40-473b-a7d4-4a63d2fa6bd2", Attributes: attrs("campaign_id", "300", "enabled", "true", "flag_key", "checkout",
				"rule_type", "feature-test", "variation_key", "blue", "visitor.plan", "pro")},
		{Kind: schema.KindEvent, Index: 1, HasTime: true, Time: at, HasValue: true, Value: 9.99, Name: "purchase", UnitType: "visitor", UnitID: "u1",
			ClientID: "93482589-f9fd-4a27-bd83-82980e253966", Attributes: attrs("cart", `{"n": 1}`, "entity_id", "9", "revenue", "1999", "sku", "x")},
	}, b.Events)

	// What is around the visitors is no part of the events.
	other := strings.Replace(strings.Replace(payload, `"revision":"42"`, `"revision":"43"`, 1), "node-sdk", "other", 1)
	c := decoded(t, request(other))
	b.ComputeDigest()
	c.ComputeDigest()
	assert.Equal(t, b.Digest, c.Digest)
}

// visitor puts a snapshot into what it comes in.
func visitor(snapshot string) string {
	return `{"visitor_id":"u","attributes":[],"snapshots":[` + snapshot + `]}`
}

const act = `{"entity_id":"c","timestamp":1795487192936,"key":"campaign_activated","uuid":"a"}`

func exposure(e schema.Event) schema.Event {
	e.Kind, e.HasTime, e.Time, e.UnitType, e.UnitID = schema.KindExposure, true, at, "visitor", "u"
	return e
}

func custom(e schema.Event) schema.Event {
	e.Kind, e.HasTime, e.Time, e.UnitType, e.UnitID = schema.KindEvent, true, at, "visitor", "u"
	return e
}

func TestMapping(t *testing.T) {
	for name, c := range map[string]struct {
		visitor string
		want    []schema.Event
	}{
		"several decisions, numbers for ids, events first": {
			visitor(`{"events":[` + act + `],"decisions":[{"campaign_id":"c","experiment_id":1,"variation_id":2},{"experiment_id":"3","variation_id":"4","metadata":null},
				{"experiment_id":"5","variation_id":"6","metadata":{"rule_key":"","flag_key":"f"}}]}`),
			[]schema.Event{
				exposure(schema.Event{Experiment: "1", Variant: "2", ClientID: "a", Attributes: attrs("campaign_id", "c")}),
				exposure(schema.Event{Index: 1, Experiment: "3", Variant: "4", ClientID: "a/1"}),
				exposure(schema.Event{Index: 2, Experiment: "5", Variant: "6", ClientID: "a/2", Attributes: attrs("flag_key", "f")}),
			},
		},
		"an event for each campaign": {
			visitor(`{"decisions":[{"campaign_id":"d","experiment_id":"1","variation_id":"2"},{"campaign_id":"c","experiment_id":"3","variation_id":"4"}],
				"events":[` + act + `,{"entity_id":"d","timestamp":"1795487192936","type":"campaign_activated","uuid":"b"}]}`),
			[]schema.Event{
				exposure(schema.Event{Experiment: "1", Variant: "2", ClientID: "b", Attributes: attrs("campaign_id", "d")}),
				exposure(schema.Event{Index: 1, Experiment: "3", Variant: "4", ClientID: "a", Attributes: attrs("campaign_id", "c")}),
			},
		},
		"no number for an id: the key": {
			visitor(`{"decisions":[{"campaign_id":"c","experiment_id":"default-1","variation_id":null,"metadata":{"variation_key":"on","rule_key":"r"}}],"events":[` + act + `]}`),
			[]schema.Event{exposure(schema.Event{Experiment: "default-1", Variant: "on", Rule: "r", ClientID: "a", Attributes: attrs("campaign_id", "c", "variation_key", "on")})},
		},
		"no variation and no experiment": {
			visitor(`{"decisions":[{"campaign_id":null,"experiment_id":"","variation_id":null,"metadata":{"flag_key":"f","rule_key":"r","rule_type":"rollout","variation_key":"","enabled":false}}],
				"events":[` + act + `]}`),
			[]schema.Event{custom(schema.Event{Name: "campaign_activated", ClientID: "a", Attributes: attrs("enabled", "false", "flag_key", "f", "rule_key", "r", "rule_type", "rollout")})},
		},
		"a decision and a conversion": {
			visitor(`{"decisions":[{"experiment_id":"1","variation_id":"2"}],"events":[{"key":"purchase","timestamp":1795487192936,"uuid":"b"},` + act + `]}`),
			[]schema.Event{
				exposure(schema.Event{Experiment: "1", Variant: "2", ClientID: "a"}),
				custom(schema.Event{Index: 1, Name: "purchase", ClientID: "b"}),
			},
		},
		"decisions that a conversion is counted for": {
			visitor(`{"decisions":[{"experiment_id":"1","variation_id":"2"}],"events":[{"key":"purchase","timestamp":1795487192936,"uuid":"b"}]}`),
			[]schema.Event{custom(schema.Event{Name: "purchase", ClientID: "b", Attributes: attrs("decisions", `[{"experiment_id":"1","variation_id":"2"}]`)})},
		},
		"conversion without a number": {
			visitor(`{"decisions":[],"events":[{"type":"purchase","timestamp":1795487192936,"uuid":"b","value":null,"tags":{"value":"much","revenue":"007"}}]}`),
			[]schema.Event{custom(schema.Event{Name: "purchase", ClientID: "b", Attributes: attrs("revenue", "007", "value", "much")})},
		},
		"conversion, revenue only": {
			visitor(`{"decisions":null,"events":[{"key":"purchase","timestamp":1795487192936,"uuid":"b","revenue":1999,"tags":null}]}`),
			[]schema.Event{custom(schema.Event{Name: "purchase", ClientID: "b", HasValue: true, Value: 1999, Attributes: attrs("revenue", "1999")})},
		},
		"conversion, a value among the tags": {
			visitor(`{"events":[{"key":"purchase","timestamp":1795487192936,"uuid":"b","tags":{"value":"2.5","revenue":3},"quantity":4}]}`),
			[]schema.Event{custom(schema.Event{Name: "purchase", ClientID: "b", HasValue: true, Value: 2.5, Attributes: attrs("quantity", "4", "revenue", "3")})},
		},
		"attributes": {
			`{"attributes":[{"key":"plan","value":"pro"},{"entity_id":"7","value":1.5},{"key":"$opt_user_agent","value":"Mozilla"},{"key":"email","value":"a@b.c"},{"key":"n","value":null},
				{"key":"l","value":["a"]},{"value":1}],"snapshots":[{"events":[{"key":"k","timestamp":1795487192936,"uuid":"b"}]}],"visitor_id":"u","session_id":"s"}`,
			[]schema.Event{custom(schema.Event{Name: "k", ClientID: "b", Attributes: attrs("visitor.7", "1.5", "visitor.l", `["a"]`, "visitor.plan", "pro")})},
		},
		"several snapshots": {
			visitor(`{"events":[{"key":"k","timestamp":1795487192936,"uuid":"b"}]},{},{"events":[{"key":"l","timestamp":1795487192936,"uuid":"d"}]}`),
			[]schema.Event{custom(schema.Event{Name: "k", ClientID: "b"}), custom(schema.Event{Index: 1, Name: "l", ClientID: "d"})},
		},
		"what is not read may be anything": {
			`{"visitor_id":"u","x":"\ud800","snapshots":[{"y":"\ud800","events":[{"key":"k","timestamp":1795487192936,"uuid":"b","type":"\ud800"}]}],"attributes":null}`,
			[]schema.Event{custom(schema.Event{Name: "k", ClientID: "b"})},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, request(`{"account_id":"12","visitors":[`+c.visitor+`]}`))
			require.Empty(t, b.Rejected)
			assert.Equal(t, c.want, b.Events)
			assert.Equal(t, b.Events, decoded(t, request(`[`+c.visitor+`]`)).Events, "bare array")
		})
	}
	b := decoded(t, request(`[{"visitor_id":"u"},`+visitor(``)+`,`+visitor(`{}`)+`]`))
	assert.Equal(t, uint32(3), b.Dropped, "visitors who did nothing")
	b = decoded(t, request(`[`+visitor(`{"decisions":[{"experiment_id":"1","variation_id":"2"}]}`)+`]`))
	require.Len(t, b.Events, 1, "a decision without its event")
	assert.False(t, b.Repeatable())
}

func TestRejections(t *testing.T) {
	good := visitor(`{"events":[{"key":"k","timestamp":1,"uuid":"b"}]}`)
	decision := func(d string) string { return visitor(`{"decisions":[` + d + `],"events":[` + act + `]}`) }
	event := func(e string) string { return visitor(`{"events":[` + e + `]}`) }
	for name, c := range map[string]struct {
		visitor string
		code    schema.Code
		field   string
	}{
		"no object":             {`7`, schema.CodeInvalidType, ""},
		"nobody":                {`{"snapshots":[{"events":[{"key":"k"}]}]}`, schema.CodeMissingField, "unit_id"},
		"an empty id":           {`{"visitor_id":"","snapshots":[]}`, schema.CodeMissingField, "unit_id"},
		"an id that is true":    {`{"visitor_id":true}`, schema.CodeInvalidType, "unit_id"},
		"two ids":               {`{"visitor_id":"a","visitor_id":"b"}`, schema.CodeDuplicateField, "unit_id"},
		"attributes of old":     {`{"visitor_id":"u","attributes":{"a":1}}`, schema.CodeInvalidType, "attributes"},
		"attributes of text":    {`{"visitor_id":"u","attributes":["a"]}`, schema.CodeInvalidType, "attributes"},
		"snapshots of text":     {`{"visitor_id":"u","snapshots":"x"}`, schema.CodeInvalidType, "snapshots"},
		"too many attributes":   {`{"visitor_id":"u","attributes":[` + strings.Repeat(`{"key":"k","value":1},`, 256) + `{"key":"k","value":1}]}`, schema.CodeTooMany, "attributes"},
		"a snapshot of text":    {visitor(`"x"`), schema.CodeInvalidType, "snapshots"},
		"decisions of text":     {visitor(`{"decisions":"x","events":[]}`), schema.CodeInvalidType, "decisions"},
		"events of text":        {visitor(`{"events":{}}`), schema.CodeInvalidType, "events"},
		"a decision of text":    {decision(`"x"`), schema.CodeInvalidType, "decisions"},
		"no experiment":         {decision(`{"variation_id":"2"}`), schema.CodeMissingField, "experiment"},
		"no variation":          {decision(`{"experiment_id":"1","variation_id":""}`), schema.CodeMissingField, "variant"},
		"a variation of a list": {decision(`{"experiment_id":"1","variation_id":[]}`), schema.CodeInvalidType, "variant"},
		"a bad string":          {decision(`{"experiment_id":"\ud800","variation_id":"2"}`), schema.CodeInvalidString, "experiment"},
		"a bad rule":            {decision(`{"experiment_id":"1","variation_id":"2","metadata":{"rule_key":{}}}`), schema.CodeInvalidType, "rule"},
		"an id twice":           {decision(`{"experiment_id":"1","experiment_id":"1","variation_id":"2"}`), schema.CodeDuplicateField, "experiment"},
		"a bad time": {visitor(`{"decisions":[{"experiment_id":"1","variation_id":"2"}],"events":[{"key":"campaign_activated","timestamp":"soon","uuid":"a"}]}`),
			schema.CodeInvalidTime, "time"},
		"an activation of nothing": {event(act), schema.CodeMissingField, "experiment"},
		"an event of text":         {event(`7`), schema.CodeInvalidType, "events"},
		"an event without a name":  {event(`{"timestamp":1,"uuid":"b"}`), schema.CodeMissingField, "name"},
		"an event with a bad time": {event(`{"key":"k","timestamp":[],"uuid":"b"}`), schema.CodeInvalidType, "time"},
		"tags of text":             {event(`{"key":"k","tags":"x"}`), schema.CodeInvalidType, "tags"},
		"a bad tag":                {event(`{"key":"k","tags":{"a":"\u0000"}}`), schema.CodeInvalidString, "tags"},
		"an infinite value":        {event(`{"key":"k","value":Infinity}`), schema.CodeInvalidNumber, "value"},
		"bad decisions to count": {visitor("{\"decisions\":[\"\xff\"],\"events\":[{\"key\":\"k\"}]}"),
			schema.CodeInvalidString, "decisions"},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, request(`{"visitors":[`+good+`,`+c.visitor+`,`+good+`]}`))
			require.Len(t, b.Rejected, 1)
			r := b.Rejected[0]
			assert.Equal(t, c.code, r.Code, r.Message)
			assert.Equal(t, c.field, r.Field)
			assert.Equal(t, uint32(1), r.Index)
			assert.Len(t, b.Events, 2, "neighbours are kept")
			if name == "bad decisions to count" { // a bad string of another part
				return
			}
			assert.JSONEq(t, strings.ReplaceAll(c.visitor, `Infinity`, "1"), strings.ReplaceAll(string(r.Bytes), `Infinity`, "1"))
			again := decoded(t, request(`[`+string(r.Bytes)+`]`))
			require.Len(t, again.Rejected, 1)
			assert.Equal(t, c.code, again.Rejected[0].Code, "what is kept says the same by itself")
		})
	}
}

// One bad decision costs only itself. What is kept of it has the id it would have
// had, so that sending it again cannot make it another's copy.
func TestRejectedDecisions(t *testing.T) {
	b := decoded(t, request(`{"visitors":[{"visitor_id":"u","attributes":[{"key":"plan","value":"pro"}],"snapshots":[{"decisions":[{"experiment_id":"1","variation_id":"2"},{"experiment_id":"3"},
		{"experiment_id":"5","variation_id":"6"}],"events":[`+act+`]}]}]}`))
	require.Len(t, b.Events, 2)
	require.Len(t, b.Rejected, 1)
	assert.Equal(t, []string{"a", "a/2"}, []string{b.Events[0].ClientID, b.Events[1].ClientID})
	raw := string(b.Rejected[0].Bytes)
	again := decoded(t, request(`[`+strings.Replace(raw, `{"experiment_id":"3"`, `{"experiment_id":"3","variation_id":"4"`, 1)+`]`))
	assert.Equal(t, []schema.Event{exposure(schema.Event{Experiment: "3", Variant: "4", ClientID: "a/1", Attributes: attrs("visitor.plan", "pro")})}, again.Events, raw)
}

// What is wrong with a visitor costs all that the visitor did, each by itself.
func TestRejectedVisitor(t *testing.T) {
	b := decoded(t, request(`[{"attributes":[{"key":"plan","value":"pro"}],"snapshots":[{"decisions":[{"experiment_id":"1","variation_id":"2"},{"experiment_id":"3","variation_id":"4"}],
		"events":[`+act+`]},{"events":[{"key":"k","uuid":"b"}]}]},`+visitor(`{"events":[{"key":"l"}]}`)+`]`))
	require.Len(t, b.Events, 1)
	assert.Equal(t, uint32(3), b.Events[0].Index)
	require.Len(t, b.Rejected, 3)
	var ids []string
	for i, r := range b.Rejected {
		assert.Equal(t, []any{schema.CodeMissingField, "unit_id", uint32(i)}, []any{r.Code, r.Field, r.Index})
		mended := decoded(t, request(`[{"visitor_id":"u",`+string(r.Bytes[1:])+`]`))
		require.Len(t, mended.Events, 1, string(r.Bytes))
		assert.Equal(t, attrs("visitor.plan", "pro"), mended.Events[0].Attributes)
		ids = append(ids, mended.Events[0].ClientID)
	}
	assert.Equal(t, []string{"a", "a/1", "b"}, ids)
}

func TestBodies(t *testing.T) {
	one := `{"events":[{"key":"k"}]}`
	for body, want := range map[string]string{
		``: "empty", " \n": "empty", `null`: "empty", `{}`: "empty", `[]`: "empty", `{"visitors":[]}`: "empty", `{"visitors":null}`: "empty", `{"events":[{}]}`: "empty",
		`7`: "malformed", `"x"`: "malformed", `{"visitors":{}}`: "malformed", `{"visitors":[],"visitors":[]}`: "malformed", `{"visitors":[{}`: "malformed",
		`{"visitors":[{}]} x`: "malformed", `{"visitors":[` + visitor(`{"events":[{]}`) + `]}`: "malformed", "\x1f\x8b\x08": "malformed",
		strings.Repeat(`[`, 10_000):                      "too_deep",
		`[{},{},{},{}]`:                                  "too_many_events",
		`[` + visitor(one+","+one+","+one+","+one) + `]`: "too_many_events",
		`[` + visitor(`{"events":[`+strings.Repeat(`{"key":"k"},`, 3)+`7]}`) + `]`:                 "too_many_events",
		`[` + visitor(`{"events":[`+strings.Repeat(act+`,`, 3)+act+`]}`) + `]`:                     "too_many_events",
		`[` + visitor(`{"decisions":[`+strings.Repeat(`{},`, 3)+`{}],"events":[`+act+`]}`) + `]`:   "too_many_events",
		`[` + visitor(`{"decisions":[{},{},{}],"events":[`+act+`,{"key":"k"},{"key":"k"}]}`) + `]`: "too_many_events",
	} {
		req := request(body)
		req.MaxEvents = 3
		var b schema.Batch
		err := decode(req, &b)
		var be *schema.BodyError
		if assert.ErrorAs(t, err, &be, "%.60q", body) {
			assert.Equal(t, want, be.Code, "%.60q", body)
		}
		assert.LessOrEqual(t, int(b.Count), 3)
	}
}

// What a small body repeats stays in proportion to it.
func TestAmplification(t *testing.T) {
	long := strings.Repeat("x", 60<<10)
	body := `[{"visitor_id":"u","attributes":[{"key":"a","value":"` + long + `"}],"snapshots":[{"events":[` + strings.Repeat(`{"key":"k"},{"key":{}},`, 500) + `{"key":"` + activated + `","z":"` + long +
		`"}],"decisions":[` + strings.Repeat(`{"experiment_id":"1"},`, 500) + `7]}]}]`
	b := decoded(t, request(body))
	size := 0
	for _, e := range b.Events {
		for _, a := range e.Attributes {
			size += len(a.Value)
		}
	}
	for _, r := range b.Rejected {
		size += len(r.Bytes)
	}
	assert.Equal(t, uint32(1501), b.Count)
	assert.Less(t, size, 6*len(body)+2<<20)
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(payload))
	for _, s := range []string{
		`[` + visitor(`{"events":[`+act+`,{"key":"k","tags":{"value":"1"}}],"decisions":[{"experiment_id":1},7,{}]}`) + `]`,
		`[7,{"visitor_id":true},{"visitor_id":1,"snapshots":[{"decisions":["\ud800"],"events":[{"key":"k"}]}]}]`,
		`{"visitors":[{"visitor_id":"u","attributes":[{"key":"\u0000","value":1}],"snapshots":[[]]}],"client_name":1}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		req := request("")
		req.Body, req.MaxEvents = body, 50
		var b, again schema.Batch
		takes(req)
		Endpoints()[0].BodyKey(req)
		err := decode(req, &b)
		require.Equal(t, before, body, "the body was changed")
		if err != nil {
			var be *schema.BodyError
			require.ErrorAs(t, err, &be)
			return
		}
		require.Equal(t, int(b.Count), len(b.Events)+len(b.Rejected))
		require.LessOrEqual(t, int(b.Count), 50+50)
		require.NotZero(t, b.Count+b.Dropped)
		require.True(t, schema.ValidText(b.SDK))
		for _, e := range b.Events {
			require.NotEmpty(t, e.UnitID)
			require.NotEqual(t, e.Kind == schema.KindEvent, e.Name == "")
			require.NotEqual(t, e.Kind == schema.KindExposure, e.Experiment == "" || e.Variant == "")
			for _, s := range []string{e.Experiment, e.Variant, e.Name, e.UnitID, e.UnitType, e.Rule, e.Reason, e.ClientID} {
				require.True(t, schema.ValidText(s), "%q", s)
			}
			for _, a := range e.Attributes {
				require.True(t, schema.ValidText(a.Key) && schema.ValidText(a.Value), "%q", a)
			}
		}
		for _, r := range b.Rejected {
			require.NotEmpty(t, r.Code)
			require.NotEmpty(t, r.Bytes)
			require.GreaterOrEqual(t, r.Size, len(r.Bytes))
			if r.Size == len(r.Bytes) { // not cut: it can be read by itself
				var alone schema.Batch
				req := request("")
				req.Body = append(append([]byte{'['}, r.Bytes...), ']')
				require.NoError(t, decode(req, &alone), "%s", r.Bytes)
			}
		}
		require.NoError(t, decode(req, &again))
		b.ComputeDigest()
		again.ComputeDigest()
		require.Equal(t, b.Digest, again.Digest)
	})
}

// 1,000 exposures as a server SDK writes them, and the same in the native format.
func BenchmarkDecode(b *testing.B) {
	var mine, native strings.Builder
	for i := range 1000 {
		sep := ","
		if i == 0 {
			sep = "["
		}
		fmt.Fprintf(&mine, `%s{"snapshots":[{"decisions":[{"campaign_id":"9300000002","experiment_id":"9300000001","variation_id":"9300000402","metadata":{"flag_key":"checkout",`+
			`"rule_key":"everyone","rule_type":"feature-test","variation_key":"blue","enabled":true}}],"events":[{"entity_id":"9300000002","timestamp":1795487192%03d,`+
			`"key":"campaign_activated","uuid":"0895b1ea-4c40-473b-a7d4-%012x"}]}],"visitor_id":"user-%06d","attributes":[{"entity_id":"$opt_bot_filtering",`+
			`"key":"$opt_bot_filtering","type":"custom","value":false},{"entity_id":"7","key":"plan","type":"custom","value":"pro"}]}`, sep, i, i, i)
		fmt.Fprintf(&native, `%s{"experiment":"9300000001","variant":"9300000402","unit_id":"user-%06d","unit_type":"visitor","time":1795487192%03d,"rule":"everyone",`+
			`"event_id":"0895b1ea-4c40-473b-a7d4-%012x","attributes":{"campaign_id":"9300000002","flag_key":"checkout","rule_type":"feature-test","variation_key":"blue","enabled":true,"visitor.plan":"pro"}}`, sep, i, i, i)
	}
	bench := func(body string, f func(*protocol.Request, *schema.Batch) error) func(*testing.B) {
		return func(b *testing.B) {
			req := request(body)
			var batch schema.Batch
			b.SetBytes(int64(len(req.Body)))
			b.ReportAllocs()
			for b.Loop() {
				batch.Reset()
				if err := f(req, &batch); err != nil || len(batch.Events) != 1000 {
					b.Fatal(err, len(batch.Events))
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/event")
		}
	}
	b.Run("optimizely", bench(`{"client_name":"node-sdk","account_id":"12","visitors":`+mine.String()+`]}`, decode))
	b.Run("native", bench(native.String()+"]", func(req *protocol.Request, batch *schema.Batch) error {
		return schema.DecodeJSON(req.Body, schema.KindExposure, req.MaxEvents, batch)
	}))
}
