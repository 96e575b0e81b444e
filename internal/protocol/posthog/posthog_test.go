package posthog

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

func request(body string) *protocol.Request {
	return &protocol.Request{Header: http.Header{}, Query: url.Values{}, Path: "/batch/", Body: []byte(body), MaxEvents: 10_000}
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

func decoded(t *testing.T, req *protocol.Request) *schema.Batch {
	t.Helper()
	var b schema.Batch
	require.NoError(t, decode(req, &b))
	assert.Equal(t, int(b.Count), len(b.Events)+len(b.Rejected))
	return &b
}

func identity(b *schema.Batch) batch.ID {
	b.ComputeDigest()
	return batch.ForContent("p", b.Digest)
}

func attributes(e schema.Event) map[string]string {
	out := map[string]string{}
	for _, a := range e.Attributes {
		out[a.Key] = a.Value
	}
	return out
}

// An exposure in the shape of posthog-node 5.70.0, and what becomes of it.
const (
	nodeEvent = `{"event":"$feature_flag_called","properties":{"$feature_flag":"checkout","$feature_flag_response":"blue","$feature_flag_id":5,` +
		`"$feature_flag_version":9,"$feature_flag_reason":"Matched condition set 1","locally_evaluated":false,"$feature/checkout":"blue",` +
		`"$feature_flag_request_id":"11111111-2222-4333-8444-555555555555","$lib":"posthog-node","$lib_version":"5.70.0","$is_server":true,"$geoip_disable":true},` +
		`"timestamp":"2026-03-04T05:06:07.890Z","uuid":"01a20b60-49e1-748f-906f-1ada4c0473ba","distinct_id":"ada"}`
	nodeMicros = int64(1_772_600_767_890_000)
)

func nodeExposure() schema.Event {
	return schema.Event{Kind: schema.KindExposure, HasTime: true, Time: nodeMicros, Experiment: "checkout", Variant: "blue",
		UnitType: "user", UnitID: "ada", Reason: "Matched condition set 1", ClientID: "01a20b60-49e1-748f-906f-1ada4c0473ba",
		Attributes: []schema.Attribute{
			{Key: "$feature_flag_id", Value: "5"}, {Key: "$feature_flag_request_id", Value: "11111111-2222-4333-8444-555555555555"},
			{Key: "$feature_flag_version", Value: "9"}, {Key: "$is_server", Value: "true"}, {Key: "locally_evaluated", Value: "false"},
		}}
}

func TestBatchOfNode(t *testing.T) {
	b := decoded(t, request(`{"api_key":"phc","batch":[`+nodeEvent+`],"sent_at":"2026-03-04T05:06:09.000Z"}`))
	require.Empty(t, b.Rejected)
	assert.Equal(t, []schema.Event{nodeExposure()}, b.Events)
	assert.Equal(t, "posthog-node/5.70.0", b.SDK)
	assert.Zero(t, b.SentAt, "it says when the first attempt was")
	assert.True(t, b.Repeatable())
	again := decoded(t, request(`{"sent_at":"2026-03-04T05:09:09.000Z","batch":[`+nodeEvent+`],"api_key":"phc"}`))
	assert.Equal(t, identity(b), identity(again))
	// As a dead letter is read again.
	assert.Equal(t, b.Events, decoded(t, request(`[`+nodeEvent+`]`)).Events)
	// As one event.
	assert.Equal(t, b.Events, decoded(t, request(`{"api_key":"phc",`+nodeEvent[1:])).Events)
}

// The later API has the SDK and its clock in headers, and says what became of each event.
func TestV1(t *testing.T) {
	const (
		stamped = `"uuid":"%","timestamp":"2026-03-04T05:06:07.890Z","options":{}`
		flag    = `{"event":"$feature_flag_called","distinct_id":"ada","session_id":"s1",` + stamped + `,"properties":{"$feature_flag":"checkout","$feature_flag_response":true}}`
		bad     = `{"event":"$feature_flag_called","distinct_id":"ada",` + stamped + `,"properties":{"$feature_flag":"checkout"}}`
		noisy   = `{"event":"$snapshot",` + stamped + `,"properties":{}}`
	)
	as := func(event, uuid string) string { return strings.Replace(event, "%", uuid, 1) }
	body := `{"created_at":"2026-03-04T05:06:08.000Z","batch":[` + strings.Join([]string{
		as(flag, "01a20b60-4d4c-7388-958d-b999db6d263a"), as(bad, "bad-1"), as(noisy, "noise"), as(flag, `q\"\u00e9`), as(flag, ""), as(flag, strings.Repeat("u", 300)), `7`,
	}, ",") + `]}`
	send := func(attempt, clock string) (*protocol.Request, *schema.Batch) {
		req := request(body)
		req.Path = pathV1
		req.Header.Set("PostHog-Sdk-Info", "posthog-node/5.70.0")
		req.Header.Set("PostHog-Attempt", attempt)
		req.Header.Set("PostHog-Request-Timestamp", clock)
		b := new(schema.Batch)
		require.NoError(t, endpoint(t, pathV1).Decode(req, b))
		return req, b
	}
	req, b := send("1", "2026-03-04T05:06:09.000Z")
	assert.Equal(t, "posthog-node/5.70.0", b.SDK)
	assert.Equal(t, int64(1_772_600_769_000_000), b.SentAt)
	assert.Equal(t, []int{4, 2, 1}, []int{len(b.Events), len(b.Rejected), int(b.Dropped)})
	assert.Equal(t, "true", b.Events[0].Variant)
	assert.Equal(t, map[string]string{"$session_id": "s1"}, attributes(b.Events[0]))

	_, again := send("2", "2026-03-04T05:08:09.000Z")
	assert.Equal(t, identity(b), identity(again))

	a := endpoint(t, pathV1).Accept(protocol.Result{Reply: req.Reply})
	assert.Equal(t, http.StatusOK, a.Status)
	var reply struct {
		Results map[string]struct{ Result, Details string }
	}
	require.NoError(t, json.Unmarshal(a.Body, &reply), string(a.Body))
	results := map[string]string{}
	for uuid, r := range reply.Results {
		results[uuid] = r.Result
	}
	assert.Equal(t, map[string]string{"01a20b60-4d4c-7388-958d-b999db6d263a": "ok", "bad-1": "drop", "noise": "ok", `q"é`: "ok"}, results)
	assert.Equal(t, "missing_field: variant is missing or empty", reply.Results["bad-1"].Details)
	assert.JSONEq(t, `{"results":{}}`, string(endpoint(t, pathV1).Accept(protocol.Result{}).Body))
}

// posthog-js 1.449.2: all that is personal or about the SDK stays out.
func TestEventOfABrowser(t *testing.T) {
	const event = `{"uuid":"01a211d9-94d6-7552-af4f-232483fd7002","event":"$feature_flag_called","properties":{"$os":"Linux","$browser":"Chrome",
		"$current_url":"http://localhost/p?x=1","$host":"localhost","$pathname":"/p","$raw_user_agent":"Mozilla/5.0","$ip":"192.0.2.1","$lib":"web","$lib_version":"1.449.2",
		"$insert_id":"00a3","$time":1795595801.815,"$sdk_dist_channel":"cdn","$initialization_time":"2026-11-25T08:36:41.733Z","distinct_id":"r-u0","$device_id":"d",
		"$active_feature_flags":["r-e0"],"$feature_flag_payloads":{},"$feature/r-e0":"a","$feature_flag":"r-e0","$feature_flag_response":"a","$feature_flag_payload":null,
		"token":"phc_capture","email":"a@example.com","$session_id":"s","$session_entry_url":"http://localhost/","$lib_custom_api_host":"http://x","$groups":{"company":"acme"},
		"$process_person_profile":true,"$lib_rate_limit_remaining_tokens":98.62},"$set":{"email":"a@example.com"},"$set_once":{"$initial_referrer":"$direct"},"timestamp":"2026-11-25T08:36:41.814Z"}`
	b := decoded(t, request(`{"api_key":"phc_capture","batch":[`+event+`],"sent_at":"2026-11-25T08:36:42.000Z"}`))
	require.Empty(t, b.Rejected)
	e := b.Events[0]
	assert.Equal(t, []any{"r-e0", "a", "r-u0", "01a211d9-94d6-7552-af4f-232483fd7002", int64(1_795_595_801_814_000)},
		[]any{e.Experiment, e.Variant, e.UnitID, e.ClientID, e.Time})
	assert.Equal(t, map[string]string{"$os": "Linux", "$browser": "Chrome", "$current_url": "http://localhost/p?x=1", "$host": "localhost", "$pathname": "/p",
		"$device_id": "d", "$session_id": "s", "$groups": `{"company":"acme"}`}, attributes(e))
	assert.Equal(t, "web/1.449.2", b.SDK)
	assert.Equal(t, int64(1_795_595_802_000_000), b.SentAt)
}

func TestEvents(t *testing.T) {
	for name, c := range map[string]struct {
		event string
		want  schema.Event
		attrs map[string]string
	}{
		"custom": {`{"event":"order","distinct_id":"u","properties":{"value":"3","items":[1],"note":null}}`,
			schema.Event{Name: "order", UnitID: "u", HasValue: true, Value: 3}, map[string]string{"value": "3", "items": "[1]"}},
		"revenue":              {`{"event":"order","distinct_id":5,"properties":{"revenue":2.5}}`, schema.Event{Name: "order", UnitID: "5", HasValue: true, Value: 2.5}, map[string]string{"revenue": "2.5"}},
		"no properties":        {`{"event":"e","distinct_id":"u"}`, schema.Event{Name: "e", UnitID: "u"}, nil},
		"null properties":      {`{"event":"e","distinct_id":"u","properties":null,"uuid":null}`, schema.Event{Name: "e", UnitID: "u"}, nil},
		"properties of PHP":    {`{"event":"e","distinct_id":"u","properties":[]}`, schema.Event{Name: "e", UnitID: "u"}, nil},
		"id in the properties": {`{"event":"e","distinct_id":"","properties":{"distinct_id":"p"}}`, schema.Event{Name: "e", UnitID: "p"}, nil},
		"identify": {`{"event":"$identify","distinct_id":"u","$set":{"email":"a@example.com"},"properties":{"$anon_distinct_id":"v","$set":{"name":"Ada"}}}`,
			schema.Event{Name: "$identify", UnitID: "u"}, map[string]string{"$anon_distinct_id": "v"}},
		"engage":    {`{"$token":"phc","$distinct_id":"u","$set":{"plan":"pro"}}`, schema.Event{Name: "$identify", UnitID: "u"}, nil},
		"alias":     {`{"event":"$create_alias","distinct_id":"u","properties":{"distinct_id":"u","alias":"v"}}`, schema.Event{Name: "$create_alias", UnitID: "u"}, map[string]string{"alias": "v"}},
		"exception": {`{"event":"$exception","distinct_id":"u","properties":{"$exception_level":"error","$exception_list":[{"value":"secret"}],"$exception_message":"secret"}}`, schema.Event{Name: "$exception", UnitID: "u"}, map[string]string{"$exception_level": "error"}},
		"experiment exposure": {`{"event":"$experiment_exposure","distinct_id":"u","properties":{"$feature_flag":"f","$feature_flag_response":"a","$feature_flag_rule_id":"r"}}`,
			schema.Event{Name: "$experiment_exposure", UnitID: "u"}, map[string]string{"$feature_flag": "f", "$feature_flag_response": "a", "$feature_flag_rule_id": "r"}},
		"insert id":         {`{"event":"e","uuid":"","distinct_id":"u","properties":{"$insert_id":"i"}}`, schema.Event{Name: "e", UnitID: "u", ClientID: "i"}, nil},
		"uuid of odd type":  {`{"event":"e","uuid":{"a":1},"distinct_id":"u"}`, schema.Event{Name: "e", UnitID: "u"}, nil},
		"exposure, a bool":  {`{"event":"$feature_flag_called","distinct_id":"u","properties":{"$feature_flag":"f","$feature_flag_response":false}}`, schema.Event{Kind: schema.KindExposure, Experiment: "f", Variant: "false", UnitID: "u"}, nil},
		"exposure, by code": {`{"event":"$feature_flag_called","distinct_id":"u","properties":{"$feature_flag":"f","$feature_flag_response":"a","$feature_flag_reason_code":"SPLIT","$feature_flag_rule_id":"r"}}`, schema.Event{Kind: schema.KindExposure, Experiment: "f", Variant: "a", UnitID: "u", Rule: "r", Reason: "SPLIT"}, nil},
		"long nested value": {`{"event":"$feature_flag_called","distinct_id":"u","properties":{"$feature_flag":"f","$feature_flag_response":"a","x":["` + strings.Repeat("x", 70_000) + `"]}}`, schema.Event{Kind: schema.KindExposure, Experiment: "f", Variant: "a", UnitID: "u"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			for _, body := range []string{`{"api_key":"k","batch":[` + c.event + `]}`, `[` + c.event + `]`, `{"api_key":"k",` + c.event[1:]} {
				b := decoded(t, request(body))
				require.Empty(t, b.Rejected)
				require.Len(t, b.Events, 1)
				got := b.Events[0]
				if c.attrs == nil {
					c.attrs = map[string]string{}
				}
				assert.Equal(t, c.attrs, attributes(got))
				if c.want.Kind == 0 {
					c.want.Kind = schema.KindEvent
				}
				c.want.UnitType, got.Attributes = "user", nil
				assert.Equal(t, c.want, got)
			}
		})
	}
}

func TestTimesAndClocks(t *testing.T) {
	const second = int64(1_000_000)
	for event, want := range map[string]int64{
		`"timestamp":"1970-01-01T00:00:01Z","properties":{"$time":9.5}`: second,
		`"timestamp":"1970-01-01T00:00:01.000000"`:                      second, // posthog-python of old
		`"timestamp":1000`:                                     second,
		`"properties":{"$time":1.5}`:                           second + 500_000,
		`"properties":{"$time":"1795595801.815"}`:              1_795_595_801_815_000,
		`"properties":{"$time":1795595801815}`:                 1_795_595_801_815_000,
		`"offset":1500,"sent_at":"2026-01-02T03:04:05Z"`:       0, // would be another time at each attempt
		`"timestamp":null,"properties":{"$time":"soon"}`:       0,
		`"timestamp":"","properties":{"$time":{"a":1},"a":-1}`: 0,
	} {
		b := decoded(t, request(`[{"event":"e","distinct_id":"u",`+event+`}]`))
		require.Len(t, b.Events, 1, event)
		assert.Equal(t, []any{want, want != 0}, []any{b.Events[0].Time, b.Events[0].HasTime}, event)
	}
	const e = `{"event":"e","uuid":"1","distinct_id":"u"`
	for body, want := range map[string]int64{
		`{"batch":[` + e + `}],"sent_at":"1970-01-01T00:00:01Z"}`:                                   second,
		`{"sent_at":"1970-01-01T00:00:01+00:00","batch":[` + e + `}]}`:                              second,
		e + `,"sent_at":"1970-01-01T00:00:01Z"}`:                                                    second,
		`[` + e + `,"sent_at":"1970-01-01T00:00:01Z"},` + e + `,"sent_at":"1970-01-01T00:00:09Z"}]`: second,
		`[` + e + `}]`:                            5 * second, // from the query
		`{"batch":[` + e + `}],"sent_at":{}}`:     5 * second,
		`{"batch":[` + e + `}],"sent_at":"soon"}`: 0,
		`{"batch":[` + e + `,"options":{"disable_skew_correction":true}}],"sent_at":"1970-01-01T00:00:01Z"}`: 0,
		`{"batch":[` + e + `,"properties":{"$ignore_sent_at":true}}],"sent_at":"1970-01-01T00:00:01Z"}`:      0,
	} {
		req := request(body)
		req.Query.Set("_", "5000")
		assert.Equal(t, want, decoded(t, req).SentAt, body)
	}
	// Attempts at an array of a browser of old.
	one, two := request(`[`+e+`,"offset":5,"sent_at":"1970-01-01T00:00:01Z"}]`), request(`[`+e+`,"offset":5,"sent_at":"1970-01-01T00:00:08Z"}]`)
	one.Query.Set("_", "1")
	assert.Equal(t, identity(decoded(t, one)), identity(decoded(t, two)))
	assert.Equal(t, "posthog-go/1.5.2", decoded(t, request(`[`+e+`,"library":"posthog-go","library_version":"1.5.2"}]`)).SDK)
}

func TestNoise(t *testing.T) {
	b := decoded(t, request(`[{"event":"$snapshot","properties":{"$snapshot_data":["\ud800"]}},{"event":"$$heatmap"},{"event":"$performance_event"},{"event":"$$client_ingestion_warning"}]`))
	assert.Equal(t, []uint32{0, 4}, []uint32{b.Count, b.Dropped})
	b = new(schema.Batch)
	require.NoError(t, endpoint(t, "/s/").Decode(request(`broken`), b))
	assert.Equal(t, []uint32{0, 1}, []uint32{b.Count, b.Dropped})
}

func TestRejected(t *testing.T) {
	const good = `{"event":"e","distinct_id":"u","uuid":"1"}`
	called := func(properties string) string {
		return `{"event":"$feature_flag_called","distinct_id":"u","properties":` + properties + `}`
	}
	for name, c := range map[string]struct {
		event, field string
		code         schema.Code
	}{
		"no flag":          {called(`{"$feature_flag_response":"a"}`), "experiment", schema.CodeMissingField},
		"no response":      {called(`{"$feature_flag":"f"}`), "variant", schema.CodeMissingField},
		"null response":    {called(`{"$feature_flag":"f","$feature_flag_response":null}`), "variant", schema.CodeMissingField},
		"flag an object":   {called(`{"$feature_flag":{"a":1},"$feature_flag_response":"a"}`), "$feature_flag", schema.CodeInvalidType},
		"properties text":  {called(`"x"`), "properties", schema.CodeInvalidType},
		"nobody":           {`{"event":"e","distinct_id":null}`, "unit_id", schema.CodeMissingField},
		"no name":          {`{"distinct_id":"u","properties":{}}`, "name", schema.CodeMissingField},
		"empty":            {`{}`, "unit_id", schema.CodeMissingField},
		"name a list":      {`{"event":[],"distinct_id":"u"}`, "name", schema.CodeInvalidType},
		"id true":          {`{"event":"e","distinct_id":true}`, "unit_id", schema.CodeInvalidType},
		"bad time":         {`{"event":"e","distinct_id":"u","timestamp":"soon"}`, "time", schema.CodeInvalidTime},
		"properties twice": {`{"event":"e","distinct_id":"u","properties":{},"properties":{}}`, "properties", schema.CodeDuplicateField},
		"surrogate":        {`{"event":"\ud800","distinct_id":"u"}`, "name", schema.CodeInvalidString},
		"not UTF-8":        {"{\"event\":\"e\",\"distinct_id\":\"\xff\"}", "unit_id", schema.CodeInvalidString},
		"huge number":      {called(`{"$feature_flag":"f","$feature_flag_response":1e999}`), "properties", schema.CodeInvalidNumber},
		"too long":         {called(`{"$feature_flag":"f","$feature_flag_response":"` + strings.Repeat("v", 5000) + `"}`), "variant", schema.CodeTooLong},
		"no object":        {`"e"`, "", schema.CodeInvalidType},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, request(`{"batch":[`+good+`,`+c.event+`,`+good+`]}`))
			assert.Len(t, b.Events, 2, "the neighbours")
			require.Len(t, b.Rejected, 1)
			r := b.Rejected[0]
			assert.Equal(t, []any{c.code, c.field, uint32(1), len(c.event)}, []any{r.Code, r.Field, r.Index, r.Size}, r.Message)
			assert.Len(t, decoded(t, request(`[`+c.event+`]`)).Rejected, 1)
		})
	}
}

func TestBrokenBodies(t *testing.T) {
	for body, code := range map[string]string{
		``: "empty", ` `: "empty", `null`: "empty", `{}`: "empty", `[]`: "empty", `{"batch":[]}`: "empty", `{"batch":null}`: "empty",
		`{"api_key":"k","sent_at":"x"}`: "empty", `7`: "malformed", `{"batch":{}}`: "malformed", `{"batch":[],"batch":[]}`: "malformed",
		`[{"event":"e"}`: "malformed", `[{}] x`: "malformed", `{"event":"e"`: "malformed", "\x1f\x8b": "malformed", `data=`: "empty", `data=%zz`: "malformed",
		`data=eyJ*`: "malformed", `eyJhIjoxfQ`: "malformed", strings.Repeat("[", 99): "too_deep", `[{},{},{},{}]`: "too_many_events",
	} {
		req := request(body)
		req.MaxEvents = 3
		var err *schema.BodyError
		require.ErrorAs(t, decode(req, new(schema.Batch)), &err, body)
		assert.Equal(t, code, err.Code, body)
	}
}

// Beacons, and browsers of old.
func TestForms(t *testing.T) {
	inner := `{"api_key":"phc","batch":[{"event":"größe >>>>>","distinct_id":"u","uuid":"1"}]}`
	encoded := base64.StdEncoding.EncodeToString([]byte(inner))
	require.Contains(t, encoded, "+")
	for name, body := range map[string]string{
		"posthog-js":       "data=" + url.QueryEscape(encoded),
		"not escaped":      "data=" + encoded,
		"no padding":       "data=" + strings.TrimRight(url.QueryEscape(encoded), "%3D"),
		"JSON":             "data=" + url.QueryEscape(inner),
		"among others":     "ver=1&data=" + url.QueryEscape(encoded) + "&compression=base64",
		"base64 by itself": encoded,
	} {
		t.Run(name, func(t *testing.T) {
			req := request(body)
			req.Query.Set("compression", "base64")
			assert.Equal(t, "phc", endpoint(t, "/e/").BodyKey(req))
			b := decoded(t, req)
			require.Len(t, b.Events, 1)
			assert.Equal(t, "größe >>>>>", b.Events[0].Name)
			assert.Equal(t, body, string(req.Body))
		})
	}
	var p *protocol.Problem
	big := request("data=" + strings.Repeat("A", maxEncoded))
	require.ErrorAs(t, decode(big, new(schema.Batch)), &p)
	assert.Equal(t, protocol.CodeBodyTooLarge, p.Code)
	assert.Empty(t, bodyKey(big))
}

func TestKeys(t *testing.T) {
	for name, c := range map[string]struct{ header, query, body, want string }{
		"bearer":             {"Bearer phc", "", `{"api_key":"other"}`, "phc"},
		"token in the query": {"", "token=phc", ``, "phc"},
		"api_key in it":      {"", "api_key=phc&_=1", ``, "phc"},
		"native":             {"", "k=phc", ``, "phc"},
		"batch":              {"", "", `{"api_key":"phc","batch":[]}`, "phc"},
		"batch, last":        {"", "", `{"batch":[{"properties":{"token":"other"}}],"api_key":"phc"}`, "phc"},
		"one event":          {"", "retry_count=1", `{"token":"phc","event":"e"}`, "phc"},
		"properties":         {"", "", `{"event":"e","properties":{"a":[1],"token":"phc"}}`, "phc"},
		"engage":             {"", "", `{"$token":"phc","$set":{}}`, "phc"},
		"array":              {"", "", `[{"event":"e","properties":{"token":"phc"}},{"properties":{"token":"other"}}]`, "phc"},
		"only in an event":   {"", "", `{"batch":[{"event":"e","properties":{"token":"phc"}}]}`, "phc"},
		"none":               {"", "", `{"batch":[{"event":"e","properties":{"token":null}}]}`, ""},
		"no JSON":            {"", "", `x`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/e/?"+c.query, nil)
			if c.header != "" {
				r.Header.Set("Authorization", c.header)
			}
			got := key(r)
			if got == "" {
				got = bodyKey(request(c.body))
			}
			assert.Equal(t, c.want, got)
		})
	}
}

func TestAnswers(t *testing.T) {
	ep := endpoint(t, "/batch/")
	a := ep.Accept(protocol.Result{})
	assert.Equal(t, http.StatusOK, a.Status)
	assert.JSONEq(t, `{"status":1}`, string(a.Body))
	for _, c := range protocol.Codes() {
		if c.Code == protocol.CodeUnsupportedTE { // a fault of the sender's, and yet 501
			continue
		}
		a := ep.Refuse(protocol.Problem{Status: c.Status, Code: c.Code})
		assert.Equal(t, c.Retry, a.Status >= 500, c.Code)
		assert.NotEqual(t, http.StatusTooManyRequests, a.Status)
		if a.Status == http.StatusServiceUnavailable {
			assert.Equal(t, "1", a.Header["Retry-After"], c.Code)
		}
	}
	a = ep.Refuse(*protocol.NewProblem(protocol.CodeUnknownKey, ""))
	assert.Equal(t, http.StatusUnauthorized, a.Status)
	a = ep.Refuse(*protocol.NewProblem(protocol.CodeTooManyEvents, ""))
	assert.Equal(t, http.StatusRequestEntityTooLarge, a.Status, "posthog-node halves the batch")
}

func TestEndpoints(t *testing.T) {
	seen := map[string]bool{}
	for _, ep := range Endpoints() {
		assert.False(t, seen[ep.Path], ep.Path)
		seen[ep.Path] = true
		assert.Equal(t, strings.HasPrefix(ep.Path, "/s"), ep.Scope == "", ep.Path)
		assert.Equal(t, ep.Path == "/batch", ep.Takes != nil, ep.Path)
		assert.True(t, ep.MagicGzip && ep.CORS != nil)
	}
	assert.False(t, seen["/track"], "another protocol's")
	takes := endpoint(t, "/batch").Takes
	assert.True(t, takes(request(`{"api_key":"k","batch":[]}`)))
	assert.False(t, takes(request(`{"api_key":"k","events":[{"batch":1}]}`)))
	assert.False(t, takes(request(`x`)))
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"api_key":"k","batch":[` + nodeEvent + `],"sent_at":"2026-03-04T05:06:09.000Z"}`, `[{"event":"e","properties":{"distinct_id":1,"$time":5,"token":"t"}},7]`,
		`{"$token":"k","$distinct_id":"u","$set":{}}`, `data=eyJldmVudCI6ImUiLCJkaXN0aW5jdF9pZCI6InUifQ%3D%3D`, `{"event":"$snapshot","uuid":"\"<"}`,
		`{"created_at":"x","batch":[{"uuid":"a","event":"$feature_flag_called","distinct_id":"u","properties":{"$feature_flag":"f"}}]}`, `null`, `data={}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		req := request(body)
		req.MaxEvents = 50
		req.Query.Set("compression", "base64")
		bodyKey(req)
		var b, again schema.Batch
		if err := decodeV1(req, &b); err != nil {
			var be *schema.BodyError
			require.ErrorAs(t, err, &be)
			return
		}
		require.Equal(t, body, string(req.Body), "the body was changed")
		require.Equal(t, int(b.Count), len(b.Events)+len(b.Rejected))
		require.LessOrEqual(t, int(b.Count+b.Dropped), 50)
		require.True(t, schema.ValidText(b.SDK))
		if req.Reply != nil {
			require.True(t, json.Valid(req.Reply), "%q", req.Reply)
		}
		for _, e := range b.Events {
			require.NotEmpty(t, e.UnitID)
			for _, s := range []string{e.Experiment, e.Variant, e.Name, e.UnitID, e.Rule, e.Reason, e.ClientID} {
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

// A batch of 1,000 exposures as posthog-node writes them, by either API, and beside
// it the same in the native format.
func BenchmarkDecode(b *testing.B) {
	const n = 1000
	const native = `{"experiment":"checkout","variant":"blue","unit_id":"ada","time":"2026-03-04T05:06:07.890Z","reason":"Matched condition set 1","event_id":"01a20b60-49e1-748f-906f-1ada4c0473ba",` +
		`"attributes":{"$feature_flag_id":5,"$feature_flag_version":9,"locally_evaluated":false,"$feature_flag_request_id":"11111111-2222-4333-8444-555555555555","$is_server":true}}`
	var batch schema.Batch
	run := func(head, event, tail string, decode func(*protocol.Request, *schema.Batch) error) func(b *testing.B) {
		return func(b *testing.B) {
			var body strings.Builder
			body.WriteString(head)
			for i := range n {
				if i > 0 {
					body.WriteByte(',')
				}
				body.WriteString(strings.Replace(event, "473ba", strconv.Itoa(10_000+i), 1))
			}
			body.WriteString(tail)
			req := request(body.String())
			b.SetBytes(int64(len(req.Body)))
			b.ReportAllocs()
			for b.Loop() {
				batch.Reset()
				if err := decode(req, &batch); err != nil || len(batch.Events) != n {
					b.Fatal(err, len(batch.Events))
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/event")
		}
	}
	b.Run("posthog", run(`{"api_key":"phc","batch":[`, nodeEvent, `],"sent_at":"2026-03-04T05:06:09.000Z"}`, decode))
	b.Run("posthog-v1", run(`{"created_at":"2026-03-04T05:06:09.000Z","batch":[`, nodeEvent, `]}`, decodeV1))
	b.Run("native", run(`{"events":[`, native, `]}`, func(req *protocol.Request, b *schema.Batch) error {
		return schema.DecodeJSON(req.Body, schema.KindExposure, req.MaxEvents, b)
	}))
}
