package launchdarkly

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

func TestEndpoints(t *testing.T) {
	scopes := map[string]string{}
	for _, ep := range Endpoints() {
		scopes[ep.Methods[0]+" "+ep.Path] = ep.Scope
		assert.Equal(t, "launchdarkly", ep.Source)
		assert.Empty(t, ep.MediaTypes, "any")
		assert.Nil(t, ep.Takes)
		if ep.Methods[0] == http.MethodPost {
			for _, h := range []string{"authorization", "content-type", "x-launchdarkly-event-schema", "x-launchdarkly-payload-id",
				"x-launchdarkly-user-agent", "x-launchdarkly-wrapper", "x-launchdarkly-tags"} {
				assert.Contains(t, ep.CORS, h)
			}
		}
		for _, res := range []protocol.Result{{}, {Accepted: 3, Durable: batch.InKafka}, {Duplicate: true}, {Rejected: []schema.Rejected{{}}}} {
			a := ep.Accept(res)
			assert.Equal(t, 202, a.Status)
			assert.Empty(t, a.Body)
		}
		if ep.Scope != "" {
			assert.True(t, ep.AcceptRejected, "unmappable events must not stop an SDK")
		}
	}
	assert.Equal(t, map[string]string{
		"POST /bulk": "exposures", "POST /mobile": "exposures", "POST /mobile/events": "exposures", "POST /mobile/events/bulk": "exposures",
		"POST /events/bulk/*": "exposures", "GET /a/*": "exposures",
		"POST /diagnostic": "", "POST /mobile/events/diagnostic": "", "POST /events/diagnostic/*": "",
	}, scopes)
	assert.Equal(t, "/bulk", Endpoints()[0].Path, "dead letters are read by the first")
}

func TestKeys(t *testing.T) {
	for _, ep := range Endpoints() {
		switch ep.Path {
		case "/events/bulk/*", "/events/diagnostic/*":
			r := httptest.NewRequest(http.MethodPost, ep.Path[:len(ep.Path)-1]+"env%2d1?k=x", nil)
			r.Header.Set("Authorization", "other")
			assert.Equal(t, "env-1", ep.Key(r))
			continue
		case "/a/*":
			assert.Equal(t, "env-1", ep.Key(httptest.NewRequest(http.MethodGet, "/a/env-1.gif?d=W10", nil)))
			continue
		}
		for header, want := range map[string]string{
			"": "", "sdk-x": "sdk-x", "api_key mob-x": "mob-x", "API_KEY  mob-x": "mob-x", "Bearer b": "b", "bearer b": "b",
			"Basic b": "", " sdk-x ": "sdk-x",
		} {
			r := httptest.NewRequest(http.MethodPost, ep.Path, nil)
			r.Header.Set("Authorization", header)
			assert.Equal(t, want, ep.Key(r), header)
		}
		assert.Equal(t, "q", ep.Key(httptest.NewRequest(http.MethodPost, ep.Path+"?k=q", nil)))
		r := httptest.NewRequest(http.MethodPost, ep.Path, nil)
		r.Header.Set("X-Api-Key", "h")
		assert.Equal(t, "h", ep.Key(r))
	}
}

// SDKs send again at 400, 408, 429 and 5xx, and stop for good at any other 4xx.
func TestRefusals(t *testing.T) {
	for _, c := range protocol.Codes() {
		a := refuse(*protocol.NewProblem(c.Code, "detail"))
		switch c.Code {
		case protocol.CodeNoKey, protocol.CodeUnknownKey:
			assert.Equal(t, 401, a.Status, c.Code)
		case protocol.CodeKeyDisabled, protocol.CodeScopeMissing:
			assert.Equal(t, 403, a.Status, c.Code)
		case protocol.CodeNotFound, protocol.CodeMethodNotAllowed:
			assert.Equal(t, c.Status, a.Status, c.Code)
		default:
			assert.True(t, a.Status >= 500 || a.Status == 400 || a.Status == 408 || a.Status == 429, "%s: %d", c.Code, a.Status)
		}
		if a.Status == 503 || a.Status == 429 {
			assert.Equal(t, "1", a.Header["Retry-After"], c.Code)
		}
		assert.Contains(t, string(a.Body), `"code":"`+c.Code+`"`)
	}
}

func TestPayloadID(t *testing.T) {
	const id = "45e3929a-bf0e-425a-aa38-3698a47d6436"
	long := string(make([]byte, 300))
	for name, c := range map[string]struct {
		values []string
		want   string
	}{
		"absent": {nil, ""}, "one": {[]string{id}, id}, "empty": {[]string{""}, ""}, "twice": {[]string{id, id}, ""},
		"spaces": {[]string{"a b"}, ""}, "long": {[]string{long}, ""}, "not ASCII": {[]string{"é"}, ""},
	} {
		key, p := payloadID(&protocol.Request{Header: http.Header{"X-Launchdarkly-Payload-Id": c.values}}, nil)
		require.Nil(t, p, name)
		assert.Equal(t, c.want, key, name)
	}
}

// What an SDK reports of itself is taken whatever it is.
func TestDiagnostics(t *testing.T) {
	for _, ep := range Endpoints() {
		if ep.Scope != "" {
			continue
		}
		for _, body := range []string{`{"kind":"diagnostic-init"}`, "not JSON", ""} {
			var b schema.Batch
			require.NoError(t, ep.Decode(request(body), &b))
			assert.Equal(t, schema.Batch{Dropped: 1}, b)
		}
	}
}
