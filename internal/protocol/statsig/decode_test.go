package statsig

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

func request(body string) *protocol.Request {
	return &protocol.Request{Header: http.Header{}, Query: url.Values{}, Path: "/v1/log_event", Body: []byte(body), MaxEvents: 10_000}
}

func decoded(t *testing.T, req *protocol.Request) *schema.Batch {
	t.Helper()
	var b schema.Batch
	require.NoError(t, decode(req, &b))
	assert.Equal(t, int(b.Count), len(b.Events)+len(b.Rejected))
	return &b
}

// identity is what the collector makes of a decoded batch.
func identity(t *testing.T, b *schema.Batch) (batch.ID, batch.Digest) {
	t.Helper()
	b.ComputeDigest()
	require.True(t, b.Repeatable())
	return batch.ForContent("p", b.Digest), b.Digest
}

// Without a time nothing tells a repeat from new data.
func TestNoKeyWithoutATime(t *testing.T) {
	req := request(`[{"eventName":"e","user":{"userID":"u"}},{"eventName":"e"}]`)
	b := decoded(t, req)
	require.Len(t, b.Rejected, 1)
	assert.False(t, b.Repeatable())
}

func TestBrokenBodies(t *testing.T) {
	for body, want := range map[string]string{
		``: "empty", " \n": "empty", `null`: "empty", `{}`: "empty", `[]`: "empty", `{"events":[]}`: "empty", `{"events":null}`: "empty",
		`{"statsigMetadata":{"sdkType":"s"}}`: "empty",
		`"events"`:                            "malformed", `7`: "malformed", `{"events":{}}`: "malformed", `{"events":"[]"}`: "malformed",
		`{"events":[],"events":[]}`: "malformed", `[{}`: "malformed", `[{}] []`: "malformed", `{"events":[{}]`: "malformed",
		`{"events":[{"eventName":"e",}]}`: "malformed", `[{"user":{"userID":"u"}`: "malformed", `nul`: "malformed", "\x1f\x8b\x08": "malformed",
		`{"events":[{"eventName":"e"}],"statsigMetadata":{]}`: "malformed",
		strings.Repeat(`[`, 10_000):                           "too_deep",
		`[{"metadata":` + strings.Repeat(`{"a":`, 40):         "too_deep",
		`[{},{},{},{}]`: "too_many_events",
		`[` + strings.Repeat(`{"eventName":"statsig::diagnostics"},`, 3) + `{}]`: "too_many_events",
	} {
		req := request(body)
		req.MaxEvents = 3
		err := decode(req, new(schema.Batch))
		var be *schema.BodyError
		if assert.ErrorAs(t, err, &be, "%.60q", body) {
			assert.Equal(t, want, be.Code, "%.60q", body)
		}
	}
	req := request(`[{},{},{}]`)
	req.MaxEvents = 3
	assert.Equal(t, uint32(3), decoded(t, req).Count)
}

// The browser SDK's encoding: characters as single bytes, base64, back to front.
func TestReversedBase64(t *testing.T) {
	encode := func(latin1 string) string {
		b := []byte(base64.StdEncoding.EncodeToString([]byte(latin1)))
		slices.Reverse(b)
		return string(b)
	}
	for name, set := range map[string]func(*protocol.Request){
		"query":  func(r *protocol.Request) { r.Query.Set("se", "1") },
		"header": func(r *protocol.Request) { r.Header.Set("STATSIG-ENCODED", "1") },
	} {
		for id, want := range map[string]string{"u": "u", "uu": "uu", "uuu": "uuu", "M\xfcller \xa9": "Müller ©"} {
			req := request(encode(`[{"eventName":"e","user":{"userID":"` + id + `"},"time":1}]`))
			set(req)
			b := decoded(t, req)
			require.Len(t, b.Events, 1, name)
			assert.Equal(t, want, b.Events[0].UnitID, name)
		}
		req := request(`[{"eventName":"e","user":{"userID":"plain"},"time":1}]`)
		set(req)
		assert.Equal(t, "plain", decoded(t, req).Events[0].UnitID, name)
		for _, broken := range []string{"not base64!", encode(`[{}`), "A", encode("\x1f\x8b\x08")} {
			req := request(broken)
			set(req)
			var be *schema.BodyError
			require.ErrorAs(t, decode(req, new(schema.Batch)), &be)
			assert.Equal(t, schema.BodyMalformed, be.Code)
		}
		req = request(strings.Repeat("A", maxEncoded+4))
		set(req)
		var p *protocol.Problem
		require.ErrorAs(t, decode(req, new(schema.Batch)), &p)
		assert.Equal(t, protocol.CodeBodyTooLarge, p.Code)
		req = request("")
		set(req)
		var be *schema.BodyError
		require.ErrorAs(t, decode(req, new(schema.Batch)), &be)
		assert.Equal(t, schema.BodyEmpty, be.Code)
	}
}

func TestSDKAndClock(t *testing.T) {
	const event = `{"eventName":"e","user":{"userID":"u"},"time":1}`
	for name, c := range map[string]struct {
		body, header, query string
		sdk                 string
		sentAt              int64
	}{
		"body and headers": {`{"events":[` + event + `],"statsigMetadata":{"sdkType":"a","sdkVersion":"1"}}`,
			"Statsig-Sdk-Type: b\nStatsig-Sdk-Version: 2\nStatsig-Client-Time: 1795487185227", "", "a/1", 1_795_487_185_227_000},
		"headers":              {`[` + event + `]`, "Statsig-Sdk-Type: b\nStatsig-Sdk-Version: 2", "t=5", "b/2", 5000},
		"query":                {`[` + event + `]`, "", "st=c&sv=3&t=1795487185720", "c/3", 1_795_487_185_720_000},
		"beacon":               {`{"events":[` + event + `],"clientTime":"1795487185720"}`, "", "k=x", "", 1_795_487_185_720_000},
		"no version":           {`{"events":[` + event + `],"statsigMetadata":{"sdkType":"a"}}`, "", "", "a", 0},
		"none":                 {`[` + event + `]`, "", "t=now", "", 0},
		"odd metadata":         {`{"events":[` + event + `],"statsigMetadata":[1]}`, "", "", "", 0},
		"odd values":           {`{"events":[` + event + `],"statsigMetadata":{"sdkType":"\ud800","sdkVersion":{},"stableID":1e999}}`, "", "", "", 0},
		"too long":             {`[` + event + `]`, "", "st=" + strings.Repeat("x", 300), "", 0},
		"not text":             {`[` + event + `]`, "", "st=%ff", "", 0},
		"a clock that ran out": {`[` + event + `]`, "", "t=99999999999999999999", "", 1<<63 - 1},
	} {
		t.Run(name, func(t *testing.T) {
			req := request(c.body)
			for _, l := range strings.Split(c.header, "\n") {
				if k, v, ok := strings.Cut(l, ": "); ok {
					req.Header.Set(k, v)
				}
			}
			req.Query, _ = url.ParseQuery(c.query)
			b := decoded(t, req)
			assert.Len(t, b.Events, 1)
			assert.Equal(t, c.sdk, b.SDK)
			assert.Equal(t, c.sentAt, b.SentAt)
		})
	}
}

// What an SDK puts around the same events at another attempt makes no other batch.
func TestEnvelopeIsNotIdentity(t *testing.T) {
	for name, events := range map[string]string{
		"all pass": `[{"eventName":"e","user":{"userID":"u"},"time":1795487185225,"metadata":{"b":1,"a":2}},
			{"eventName":"statsig::diagnostics","time":1}]`,
		"one rejected": `[{"eventName":"e","user":{"userID":"u"},"time":1795487185225},{"eventName":"e","user":{},"time":1795487185225}]`,
		"all rejected": `[{"eventName":"e","time":1795487185225}]`,
	} {
		t.Run(name, func(t *testing.T) {
			first := request(`{"events":` + events + `,"statsigMetadata":{"sdkType":"s","sessionID":"a","flushType":"manual"}}`)
			first.Header.Set("Statsig-Retry-Count", "0")
			first.Header.Set("Statsig-Event-Count", "2")
			first.Header.Set("Statsig-Client-Time", "1795487185300")
			second := request(`{"statsigMetadata":{"sdkType":"s","sessionID":"b","flushType":"shutdown"},"events":` + events + `}`)
			second.Header.Set("Statsig-Retry-Count", "1")
			second.Header.Set("Statsig-Client-Time", "1795487189300")
			a, b := decoded(t, first), decoded(t, second)
			assert.Equal(t, a.Events, b.Events)
			assert.Equal(t, a.Rejected, b.Rejected)
			ida, da := identity(t, a)
			idb, db := identity(t, b)
			assert.Equal(t, da, db)
			assert.Equal(t, ida, idb)
		})
	}
}

// testdata has what statsig-node 6.5.2 sent when it was answered 503 and then
// 202, and what the driver (test/sdk/statsig-node) says it logged.
func TestAttemptsOfTheSDK(t *testing.T) {
	zipped, err := os.Open("testdata/statsig-node-attempt-1.json.gz")
	require.NoError(t, err)
	defer zipped.Close()
	z, err := gzip.NewReader(zipped)
	require.NoError(t, err)
	one, err := io.ReadAll(z)
	require.NoError(t, err)
	two, err := os.ReadFile("testdata/statsig-node-attempt-2.json")
	require.NoError(t, err)

	first, second := request(string(one)), request(string(two))
	first.Header.Set("Statsig-Event-Count", "13") // the retry has none
	a, b := decoded(t, first), decoded(t, second)
	ida, da := identity(t, a)
	idb, db := identity(t, b)
	assert.Equal(t, da, db)
	assert.Equal(t, ida, idb)
	assert.False(t, ida.IsZero())
	assert.Equal(t, "statsig-node/6.5.2", a.SDK)
	assert.Equal(t, uint32(1), a.Dropped, "its diagnostics")
	assert.Empty(t, a.Rejected)

	logged, err := os.Open("testdata/statsig-node-logged.jsonl")
	require.NoError(t, err)
	defer logged.Close()
	events := a.Events
	for lines := bufio.NewScanner(logged); lines.Scan(); {
		var l struct {
			Type, Experiment, Variant, Rule, Layer, Parameter, Secondary, Name, Text string
			UnitType                                                                 string `json:"unit_type"`
			UnitID                                                                   string `json:"unit_id"`
			Value                                                                    *float64
			Attributes                                                               map[string]string
			From, To                                                                 int64
			Exposures, Events                                                        int
		}
		require.NoError(t, json.Unmarshal(lines.Bytes(), &l))
		if l.Type == "done" {
			assert.Equal(t, len(a.Events), l.Exposures+l.Events)
			break
		}
		require.NotEmpty(t, events)
		e := events[0]
		events = events[1:]
		assert.Equal(t, l.Type, e.Kind.String())
		assert.Equal(t, []string{l.Experiment, l.Variant, l.Rule, l.Name, l.UnitType, l.UnitID},
			[]string{e.Experiment, e.Variant, e.Rule, e.Name, e.UnitType, e.UnitID})
		assert.GreaterOrEqual(t, e.Time, l.From*1000)
		assert.LessOrEqual(t, e.Time, l.To*1000)
		assert.Equal(t, l.Value != nil, e.HasValue)
		if l.Value != nil {
			assert.Equal(t, *l.Value, e.Value)
		}
		got := map[string]string{}
		for _, at := range e.Attributes {
			got[at.Key] = at.Value
		}
		for k, v := range l.Attributes {
			assert.Equal(t, v, got[k])
		}
		assert.Equal(t, []string{l.Layer, l.Parameter, l.Text}, []string{got["layer"], got["parameter"], got["value"]})
		assert.Equal(t, l.Secondary != "", strings.Contains(got["secondary_exposures"], `"gate":"`+l.Secondary+`"`) && l.Secondary != "")
		for _, v := range got {
			assert.NotContains(t, v, "example.com", "the e-mail address stays out")
			assert.NotContains(t, v, "12345", "private attributes stay out")
		}
	}
	assert.Empty(t, events)
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"statsigMetadata":{"sdkType":"statsig-node","sdkVersion":"6.5.2","sessionID":"x"},"events":[{"eventName":"statsig::layer_exposure",` +
			`"metadata":{"config":"l","ruleID":"r","allocatedExperiment":"e","parameterName":"p","serverTime":1795487185226},"time":1795487185227,` +
			`"user":{"userID":"u","email":"a@b.c","custom":{"plan":"pro"},"privateAttributes":null,"customIDs":{"companyID":"co"}},"value":null,` +
			`"secondaryExposures":[{"gate":"h","gateValue":"false","ruleID":"hr"}],"statsigMetadata":{}}]}`,
		`{"events":[{"eventName":"statsig::gate_exposure","metadata":{"gate":"g","gateValue":"true","ruleID":"r"},"time":1,"user":{"userID":"u"}}]}`,
		`[{"eventName":"e","user":{"customIDs":{"b":"1","a":2}},"value":"12","metadata":{"x":{"y":[1]}},"secondaryExposures":[{"gate":"g"}]}]`,
		`{"events":[{"eventName":"e"},7],"statsigMetadata":{"stableID":"s"},"clientTime":"1"}`, `[{"eventName":"statsig::diagnostics"}]`,
		`null`, `{"events":[{"user":[],"metadata":[],"time":"1e3","eventName":"\ud800"}]}`,
	} {
		f.Add([]byte(s), false)
	}
	f.Add([]byte("0VXZ"), true)
	f.Fuzz(func(t *testing.T, body []byte, encoded bool) {
		before := bytes.Clone(body)
		req := request("")
		req.Body, req.MaxEvents = body, 50
		if encoded {
			req.Query.Set("se", "1")
		}
		var b schema.Batch
		err := decode(req, &b)
		require.Equal(t, before, body, "the body was changed")
		if err != nil {
			var be *schema.BodyError
			require.ErrorAs(t, err, &be)
			require.NotEmpty(t, be.Code)
			return
		}
		require.Equal(t, int(b.Count), len(b.Events)+len(b.Rejected))
		require.LessOrEqual(t, int(b.Count+b.Dropped), 50)
		require.NotZero(t, b.Count+b.Dropped)
		require.True(t, schema.ValidText(b.SDK))
		last := -1
		for _, e := range b.Events {
			require.Greater(t, int(e.Index), last)
			last = int(e.Index)
			require.NotEmpty(t, e.UnitID)
			require.NotEmpty(t, e.UnitType)
			require.NotEqual(t, e.Kind == schema.KindEvent, e.Name == "")
			require.NotEqual(t, e.Kind == schema.KindExposure, e.Experiment == "" || e.Variant == "")
			for _, s := range []string{e.Experiment, e.Variant, e.Name, e.UnitID, e.UnitType, e.Rule, e.Reason} {
				require.True(t, schema.ValidText(s), "%q", s)
			}
			for i, a := range e.Attributes {
				require.True(t, schema.ValidText(a.Key) && schema.ValidText(a.Value), "%q", a)
				require.True(t, i == 0 || e.Attributes[i-1].Key < a.Key)
			}
		}
		for _, r := range b.Rejected {
			require.NotEmpty(t, r.Code)
			require.Less(t, r.Index, b.Count)
		}
		// Headers play no part in the events.
		var other schema.Batch
		req.Header.Set("Statsig-Sdk-Type", "x")
		req.Header.Set("Statsig-Retry-Count", "1")
		req.Header.Set("Statsig-Client-Time", "1")
		require.NoError(t, decode(req, &other))
		require.Equal(t, b.Events, other.Events)
		require.Equal(t, b.Rejected, other.Rejected)
	})
}

// A batch of 100 exposures as statsig-node writes them.
// A batch of Statsig's against the same events in the native format.
func BenchmarkDecode(b *testing.B) {
	var theirs, ours []string
	for i := range 1000 {
		theirs = append(theirs, fmt.Sprintf(`{"eventName":"statsig::config_exposure","metadata":{"config":"checkout_button_color","ruleID":"group_test","rulePassed":"true",`+
			`"configVersion":"11","reason":"Network","configSyncTime":1700000000000,"initTime":1700000000000,"serverTime":1795487185226},`+
			`"time":1795487185226,"user":{"userID":"user-%06d","email":"user@example.com","custom":{"plan":"pro"},"privateAttributes":null,`+
			`"customIDs":{"companyID":"company-17"},"statsigEnvironment":{"tier":"production"}},"value":null,`+
			`"secondaryExposures":[{"gate":"holdout","gateValue":"false","ruleID":"hr"}],"statsigMetadata":{}}`, i))
		ours = append(ours, fmt.Sprintf(`{"experiment":"checkout_button_color","variant":"group_test","rule":"group_test","reason":"Network","time":1795487185226,`+
			`"unit_type":"user","unit_id":"user-%06d","attributes":{"rulePassed":"true","configVersion":"11","configSyncTime":1700000000000,`+
			`"user.custom.plan":"pro","user.customIDs.companyID":"company-17","user.statsigEnvironment.tier":"production",`+
			`"secondary_exposures":"[{\"gate\":\"holdout\",\"gateValue\":\"false\",\"ruleID\":\"hr\"}]"}}`, i))
	}
	run := func(name string, decode func(*schema.Batch) error) {
		b.Run(name, func(b *testing.B) {
			var batch schema.Batch
			b.ReportAllocs()
			for b.Loop() {
				batch.Reset()
				if err := decode(&batch); err != nil || len(batch.Events) != 1000 {
					b.Fatal(err, len(batch.Events))
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/event")
		})
	}
	req := request(`{"statsigMetadata":{"sdkType":"statsig-node","sdkVersion":"6.5.2"},"events":[` + strings.Join(theirs, ",") + `]}`)
	run("statsig", func(batch *schema.Batch) error { return decode(req, batch) })
	native := []byte("[" + strings.Join(ours, ",") + "]")
	run("native", func(batch *schema.Batch) error { return schema.DecodeJSON(native, schema.KindExposure, 1000, batch) })
}
