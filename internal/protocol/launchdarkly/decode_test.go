package launchdarkly

import (
	"bytes"
	"encoding/base64"
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
	return &protocol.Request{Header: http.Header{}, Query: url.Values{}, Path: "/bulk", Body: []byte(body), MaxEvents: 10_000}
}

func decoded(t *testing.T, req *protocol.Request) *schema.Batch {
	t.Helper()
	var b schema.Batch
	require.NoError(t, decode(req, &b))
	assert.Equal(t, int(b.Count), len(b.Events)+len(b.Rejected))
	return &b
}

// payload is what a server SDK sends, in its own shape.
const payload = `[{"kind":"index","creationDate":1795487187065,"context":{"_meta":{"redactedAttributes":["email"]},"key":"r-u0","kind":"user"}},
	{"kind":"feature","creationDate":1795487187065,"context":{"_meta":{"redactedAttributes":["email"]},"key":"r-u0","kind":"user"},
	"key":"checkout","value":true,"default":false,"variation":1,"version":42,"reason":{"kind":"FALLTHROUGH"}},
	{"kind":"index","creationDate":1795487187066,"context":{"key":"buyer","kind":"user"}},
	{"kind":"custom","creationDate":1795487187066,"key":"purchase","context":{"key":"buyer","kind":"user"},"data":{"sku":"x"},"metricValue":9.99},
	{"startDate":1795487187065,"endDate":1795487187066,"features":{"checkout":{"default":false,"counters":[{"value":true,"count":1,"variation":1,
	"version":42}],"contextKinds":["user"]},"plain":{"default":"x","counters":[{"value":"a","count":2,"variation":0,"version":7}],"contextKinds":["user"]}},"kind":"summary"}]`

func TestPayload(t *testing.T) {
	req := request(payload)
	req.Header.Set("User-Agent", "NodeJSClient/9.13.7")
	b := decoded(t, req)
	assert.Empty(t, b.Rejected)
	assert.Equal(t, uint32(2), b.Dropped, "index")
	assert.Equal(t, "NodeJSClient/9.13.7", b.SDK)
	assert.Zero(t, b.SentAt)
	names := []string{}
	for _, e := range b.Events {
		names = append(names, e.Experiment+e.Name+" "+e.UnitType+"/"+e.UnitID)
		for _, a := range e.Attributes {
			assert.NotContains(t, a.Key, "_meta")
		}
	}
	assert.Equal(t, []string{"checkout user/r-u0", "purchase user/buyer", "summary flag/checkout", "summary flag/plain"}, names)
	assert.True(t, b.Repeatable(), "also without a payload id")

	// What differs between attempts is no part of the events.
	again := request(payload)
	again.Header.Set("User-Agent", "other/1")
	again.Header.Set("X-Launchdarkly-Payload-Id", "x")
	c := decoded(t, again)
	b.ComputeDigest()
	c.ComputeDigest()
	assert.Equal(t, b.Digest, c.Digest)
}

func TestBodies(t *testing.T) {
	for body, want := range map[string]string{
		``: "empty", " \n": "empty", `null`: "empty", `[]`: "empty", `7`: "malformed", `"x"`: "malformed", `[{}`: "malformed", `[{}] []`: "malformed",
		`{"kind":"diagnostic"`: "malformed", `[{"kind":"feature",}]`: "malformed", "\x1f\x8b\x08": "malformed", `[{"kind":"summary","features":{"f":{"counters":[{]}}}]`: "malformed",
		strings.Repeat(`[`, 10_000):                     "too_deep",
		`[` + strings.Repeat(`{"key":"f"},`, 3) + `{}]`: "too_many_events",
		`[` + strings.Repeat(`7,`, 12) + `7]`:           "too_many_events",
		`[{"kind":"summary","features":{"f":{"counters":[` + strings.Repeat(`{"count":1},`, 3) + `{"count":1}]}}}]`: "too_many_events",
		`[{"kind":"summary","features":{` + strings.Repeat(`"f":7,`, 3) + `"f":7}}]`:                                "too_many_events",
	} {
		req := request(body)
		req.MaxEvents = 3
		var b schema.Batch
		err := decode(req, &b)
		var be *schema.BodyError
		if assert.ErrorAs(t, err, &be, "%.60q", body) {
			assert.Equal(t, want, be.Code, "%.60q", body)
		}
		assert.LessOrEqual(t, int(b.Count), 12)
	}
	// A diagnostic event comes here when its own path failed.
	for _, kind := range []string{"diagnostic", "diagnostic-init", "diagnostic-combined"} {
		b := decoded(t, request(`{"kind":"`+kind+`","creationDate":1}`))
		assert.Zero(t, b.Count)
		assert.Equal(t, uint32(1), b.Dropped)
	}
	// As many index events as others are no reason to refuse a payload.
	req := request(`[` + strings.Repeat(`{"kind":"index"},{"kind":"custom","key":"k","userKey":"u"},`, 3) + `{"kind":"debug"}]`)
	req.MaxEvents = 3
	b := decoded(t, req)
	assert.Len(t, b.Events, 3)
	assert.Equal(t, uint32(4), b.Dropped)
}

func TestPixel(t *testing.T) {
	const events = `[{"kind":"custom","creationDate":1,"key":"é?>","userKey":"u"}]`
	for _, enc := range []*base64.Encoding{base64.URLEncoding, base64.RawURLEncoding} {
		req := request("")
		req.Query.Set("d", enc.EncodeToString([]byte(events)))
		var b schema.Batch
		require.NoError(t, decodePixel(req, &b))
		require.Len(t, b.Events, 1)
		assert.Equal(t, "é?>", b.Events[0].Name)
	}
	for d, code := range map[string]string{"": "empty", "!": "malformed", "e30x": "malformed"} {
		req := request("")
		req.Query.Set("d", d)
		var be *schema.BodyError
		require.ErrorAs(t, decodePixel(req, new(schema.Batch)), &be, d)
		assert.Equal(t, code, be.Code, d)
	}
}

func TestSDK(t *testing.T) {
	for _, c := range [][3]string{
		{"", "PythonClient/9.18.2", "PythonClient/9.18.2"}, {"JSClient/3.9.1", "Mozilla/5.0 (X11)", "JSClient/3.9.1"},
		{"", "Mozilla/5.0 (X11; Linux)", ""}, {"", "Mozilla/5.0", ""}, {"", "", ""}, {"", "x", "x"}, {"", strings.Repeat("x", 300), ""}, {"", "\xff", ""},
	} {
		req := request(`[{"kind":"index"}]`)
		req.Header.Set("X-LaunchDarkly-User-Agent", c[0])
		req.Header.Set("User-Agent", c[1])
		assert.Equal(t, c[2], decoded(t, req).SDK, c)
	}
}

// What a small body repeats stays in proportion to it.
func TestAmplification(t *testing.T) {
	long := strings.Repeat("x", 60<<10)
	b := decoded(t, request(`[{"kind":"summary","features":{"f":{"default":"`+long+`","counters":[`+strings.Repeat(`{"count":1},{"count":"x"},`, 500)+`7]}}}]`))
	size := 0
	for _, e := range b.Events {
		for _, a := range e.Attributes {
			size += len(a.Value)
		}
	}
	for _, r := range b.Rejected {
		size += len(r.Bytes)
	}
	assert.Equal(t, uint32(1001), b.Count)
	assert.Less(t, size, 2<<20)
	hidden := decoded(t, request(`[{"kind":"custom","key":"k","context":{"key":"u","a1":1,"_meta":{"redactedAttributes":["a0"`+strings.Repeat(`,"x"`, 300)+`]}}}]`))
	require.Len(t, hidden.Events, 1)
	assert.Empty(t, hidden.Events[0].Attributes, "too many to compare: nothing is kept")
	many := decoded(t, request(`[{"kind":"custom","key":"k","contextKeys":{`+strings.Repeat(`"a":"b",`, 300)+`"c":"d"}}]`))
	require.Len(t, many.Rejected, 1)
	assert.Equal(t, schema.CodeTooMany, many.Rejected[0].Code)
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(payload))
	for _, s := range []string{
		`{"kind":"diagnostic"}`, `[7,{"kind":"feature","user":{"key":"u","custom":{"a":1},"privateAttrs":["a"]},"key":"f","value":{"a":"\u0000"}}]`,
		`[{"kind":"alias","key":"u","previousKey":"p"},{"kind":"x","contextKeys":{"b":1,"a":"2"},"y":[]}]`,
		`[{"features":{"f\ud800":{"counters":[{"count":1}]},"g":{"default":"\u0000","counters":[{"count":"1"},7]}},"kind":"summary","endDate":"1"}]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		req := request("")
		req.Body, req.MaxEvents = body, 50
		var b, again schema.Batch
		err := decode(req, &b)
		require.Equal(t, before, body, "the body was changed")
		if err != nil {
			var be *schema.BodyError
			require.ErrorAs(t, err, &be)
			return
		}
		require.Equal(t, int(b.Count), len(b.Events)+len(b.Rejected))
		require.LessOrEqual(t, int(b.Count), 200)
		require.NotZero(t, b.Count+b.Dropped)
		for _, e := range b.Events {
			require.NotEmpty(t, e.UnitID)
			require.NotEmpty(t, e.UnitType)
			require.NotEqual(t, e.Kind == schema.KindEvent, e.Name == "")
			require.NotEqual(t, e.Kind == schema.KindExposure, e.Experiment == "" || e.Variant == "")
			for _, s := range []string{e.Experiment, e.Variant, e.Name, e.UnitID, e.UnitType, e.Rule, e.Reason} {
				require.True(t, schema.ValidText(s), "%q", s)
			}
			for _, a := range e.Attributes {
				require.True(t, schema.ValidText(a.Key) && schema.ValidText(a.Value), "%q", a)
			}
		}
		for _, r := range b.Rejected {
			require.NotEmpty(t, r.Code)
			require.GreaterOrEqual(t, r.Size, len(r.Bytes))
		}
		req.Header.Set("User-Agent", "x")
		require.NoError(t, decode(req, &again))
		b.ComputeDigest()
		again.ComputeDigest()
		require.Equal(t, b.Digest, again.Digest)
		require.NoError(t, decode(&protocol.Request{Body: body, MaxEvents: 50}, new(schema.Batch)))
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
		fmt.Fprintf(&mine, `%s{"kind":"feature","creationDate":1795487187%03d,"context":{"kind":"user","key":"user-%06d","country":"DE","plan":"pro"},`+
			`"key":"checkout_button_color","value":"blue","default":"red","variation":1,"version":42,"reason":{"kind":"RULE_MATCH","ruleIndex":0,"ruleId":"rule-42"}}`, sep, i, i)
		fmt.Fprintf(&native, `%s{"experiment":"checkout_button_color","variant":"1","unit_id":"user-%06d","unit_type":"user","time":1795487187%03d,"rule":"rule-42",`+
			`"reason":"RULE_MATCH","attributes":{"context.user.country":"DE","context.user.plan":"pro","default":"red","reason.ruleIndex":0,"value":"blue","version":42}}`, sep, i, i)
	}
	bench := func(body string, f func(*protocol.Request, *schema.Batch) error) func(*testing.B) {
		return func(b *testing.B) {
			req := request(body + "]")
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
	b.Run("launchdarkly", bench(mine.String(), decode))
	b.Run("native", bench(native.String(), func(req *protocol.Request, batch *schema.Batch) error {
		return schema.DecodeJSON(req.Body, schema.KindExposure, req.MaxEvents, batch)
	}))
}
