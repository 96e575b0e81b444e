package ingest

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/internal/protocol/amplitude"
	"sluice/internal/protocol/eppo"
	"sluice/internal/protocol/growthbook"
	"sluice/internal/protocol/launchdarkly"
	"sluice/internal/protocol/native"
	"sluice/internal/protocol/optimizely"
	"sluice/internal/protocol/otlp"
	"sluice/internal/protocol/posthog"
	"sluice/internal/protocol/segment"
	"sluice/internal/protocol/statsig"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// description is the OpenAPI document, with its schemas ready to use.
type description struct {
	doc      map[string]any
	compiler *jsonschema.Compiler
}

func documented(t testing.TB) *description {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(OpenAPI()))
	require.NoError(t, err)
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020) // what OpenAPI 3.1 says
	c.AssertFormat()
	require.NoError(t, c.AddResource("https://sluice.invalid/openapi.json", v))
	return &description{doc: v.(map[string]any), compiler: c}
}

// at walks to a place in the document, through references.
func (d *description) at(t testing.TB, path ...string) (any, []string) {
	t.Helper()
	v := any(d.doc)
	for i, p := range path {
		m, ok := v.(map[string]any)
		require.True(t, ok, "%v is no object", path[:i])
		if target, ok := m["$ref"].(string); ok {
			return d.at(t, append(strings.Split(strings.TrimPrefix(target, "#/"), "/"), path[i:]...)...)
		}
		v, ok = m[p]
		require.True(t, ok, "%v is not described", path[:i+1])
	}
	return v, path
}

func (d *description) validate(t testing.TB, body []byte, path ...string) {
	t.Helper()
	_, path = d.at(t, path...)
	for i, p := range path {
		path[i] = strings.ReplaceAll(strings.ReplaceAll(p, "~", "~0"), "/", "~1")
	}
	s, err := d.compiler.Compile("https://sluice.invalid/openapi.json#/" + strings.Join(path, "/"))
	require.NoError(t, err)
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	require.NoError(t, err, "%s", body)
	assert.NoError(t, s.Validate(v), "%s", body)
}

// check validates an answer against what the operation documents for its status.
func (d *description) check(t testing.TB, path, method string, a answer) {
	t.Helper()
	mediaType, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
	at := []string{"paths", path, method, "responses", strconv.Itoa(a.status)}
	d.validate(t, a.body, append(slices.Clone(at), "content", mediaType, "schema")...)
	d.headers(t, a, at...)
}

// problem validates a problem against the response that documents its status.
func (d *description) problem(t testing.TB, a answer) {
	t.Helper()
	require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
	name := d.responseFor(t, a.status)
	d.validate(t, a.body, "components", "responses", name, "content", "application/problem+json", "schema")
	d.headers(t, a, "components", "responses", name)
}

func (d *description) headers(t testing.TB, a answer, at ...string) {
	t.Helper()
	v, at := d.at(t, append(at, "description")...)
	require.NotEmpty(t, v)
	at = at[:len(at)-1]
	r, _ := d.at(t, at...)
	hs, _ := r.(map[string]any)["headers"].(map[string]any)
	for name := range hs {
		got := a.header.Get(name)
		if assert.NotEmpty(t, got, "header %s", name) {
			quoted, _ := json.Marshal(got)
			d.validate(t, quoted, append(slices.Clone(at), "headers", name, "schema")...)
		}
	}
	if _, documented := hs["Retry-After"]; !documented {
		assert.Empty(t, a.header.Get("Retry-After"))
	}
}

// responseFor finds the response that documents a status.
func (d *description) responseFor(t testing.TB, status int) string {
	t.Helper()
	all, _ := d.at(t, "components", "responses")
	for name := range all.(map[string]any) {
		if strings.HasPrefix(name, "Statsig") || strings.HasPrefix(name, "Vendor") {
			continue
		}
		if st, _ := d.statusAndCodes(t, name); st == status {
			return name
		}
	}
	t.Fatalf("no response documents status %d", status)
	return ""
}

func (d *description) statusAndCodes(t testing.TB, response string) (status int, codes []string) {
	t.Helper()
	s, _ := d.at(t, "components", "responses", response, "content", "application/problem+json", "schema", "allOf")
	props := s.([]any)[1].(map[string]any)["properties"].(map[string]any)
	n, err := props["status"].(map[string]any)["const"].(json.Number).Int64()
	require.NoError(t, err)
	for _, c := range props["code"].(map[string]any)["enum"].([]any) {
		codes = append(codes, c.(string))
	}
	return int(n), codes
}

// TestOpenAPIRoutes: every route is described and every described route is there.
func TestOpenAPIRoutes(t *testing.T) {
	all := slices.Concat(native.Endpoints(), statsig.Endpoints(), launchdarkly.Endpoints(), segment.Endpoints(), posthog.Endpoints(),
		amplitude.Endpoints(), optimizely.Endpoints(), otlp.Endpoints(), growthbook.Endpoints(), eppo.Endpoints())
	require.NoError(t, CheckOpenAPI(all))

	err := CheckOpenAPI(append(all, protocol.Endpoint{Path: "/v1/more", Methods: []string{"POST", "GET"}}))
	assert.ErrorContains(t, err, "POST /v1/more is not described")
	assert.ErrorContains(t, err, "GET /v1/more is not described")
	assert.ErrorContains(t, CheckOpenAPI(native.Endpoints()), "POST /v1/rgstr is described, and there is no such route")
}

// TestOpenAPICodes: the document lists exactly the codes there are, each under
// its status, and every operation that takes batches documents every status.
func TestOpenAPICodes(t *testing.T) {
	d := documented(t)
	want, got := map[int][]string{}, map[int][]string{}
	var all, statuses []string
	for _, info := range protocol.Codes() {
		want[info.Status] = append(want[info.Status], info.Code)
		all = append(all, info.Code)
		if s := strconv.Itoa(info.Status); info.Status != 404 && info.Status != 405 && !slices.Contains(statuses, s) {
			statuses = append(statuses, s) // those two are about no operation
		}
	}
	responses, _ := d.at(t, "components", "responses")
	for name := range responses.(map[string]any) {
		if !strings.HasPrefix(name, "Statsig") && !strings.HasPrefix(name, "Vendor") {
			st, codes := d.statusAndCodes(t, name)
			got[st] = codes
		}
	}
	assert.Equal(t, want, got)

	enum, _ := d.at(t, "components", "schemas", "ProblemCode", "enum")
	assert.ElementsMatch(t, all, enum)

	var events []string
	for _, info := range protocol.EventCodes() {
		events = append(events, string(info.Code))
	}
	enum, _ = d.at(t, "components", "schemas", "RejectedEvent", "properties", "code", "enum")
	assert.ElementsMatch(t, events, enum)

	for _, path := range []string{"/v1/exposures", "/v1/events"} {
		rs, _ := d.at(t, "paths", path, "post", "responses")
		var have []string
		for st := range rs.(map[string]any) {
			have = append(have, st)
		}
		assert.ElementsMatch(t, append([]string{"200", "202"}, statuses...), have, path)
	}
}

// TestOpenAPIStatsig: whatever the collector refuses a request of a Statsig SDK
// for, the answer it makes of that is described. And so is what it says to a batch.
func TestOpenAPIStatsig(t *testing.T) {
	d := documented(t)
	for _, ep := range statsig.Endpoints() {
		for _, info := range protocol.Codes() {
			if info.Code == protocol.CodeNotFound || info.Code == protocol.CodeMethodNotAllowed {
				continue // not about an operation
			}
			p := protocol.NewProblem(info.Code, "detail")
			if info.Code == protocol.CodeAllRejected {
				p.BatchID, p.Rejected = batch.Random(), []schema.Rejected{{Code: schema.CodeUnmappable, Message: "m"}}
			}
			r := ep.Refuse(*p)
			h := http.Header{"Content-Type": {r.ContentType}}
			for k, v := range r.Header {
				h.Set(k, v)
			}
			if r.Status == http.StatusUnauthorized {
				h.Set("WWW-Authenticate", "Bearer") // as the collector adds
			}
			d.check(t, ep.Path, "post", answer{r.Status, h, r.Body})
		}
	}
	e := start(t, withEndpoints(statsig.Endpoints()...))
	body := []byte(`{"events":[{"eventName":"statsig::gate_exposure","user":{"userID":"u"},"time":1767225600000,"metadata":{"gate":"g","gateValue":"true","ruleID":"r"}}]}`)
	for _, path := range []string{"/v1/log_event", "/v1/rgstr", "/v1/rgstr_b", "/v1/sdk_exception"} {
		for range 2 {
			a := e.post(path, body, "Authorization", "", "Statsig-Api-Key", goodKey, "Content-Type", "application/json")
			require.Equal(t, 202, a.status, "%s: %s", path, a.body)
			d.check(t, path, "post", a)
		}
	}
	assert.Len(t, e.pub.records(), 1, "the same events, by whichever endpoint, are one batch")
}

// TestOpenAPIAnswers validates real answers of the service's own endpoints, and
// the document's examples by sending them.
func TestOpenAPIAnswers(t *testing.T) {
	d, e := documented(t), start(t)
	for _, path := range []string{"/v1/exposures", "/v1/events"} {
		examples, _ := d.at(t, "paths", path, "post", "requestBody", "content", "application/json", "examples")
		for name, x := range examples.(map[string]any) {
			b, err := json.Marshal(x.(map[string]any)["value"])
			require.NoError(t, err)
			d.validate(t, b, "paths", path, "post", "requestBody", "content", "application/json", "schema")
			a := e.post(path, b, "Content-Type", "application/json")
			require.Equal(t, 202, a.status, "%s: %s", name, a.body)
			d.check(t, path, "post", a)
			a = e.post(path, b, "Content-Type", "application/json")
			require.Equal(t, 200, a.status, "%s again: %s", name, a.body)
			d.check(t, path, "post", a)
		}
	}
	a := e.do("GET", "/healthz", nil)
	require.Equal(t, 200, a.status)
	assert.Equal(t, "ok\n", string(a.body))
	a = e.do("GET", "/openapi.json", nil)
	require.Equal(t, 200, a.status)
	d.check(t, "/openapi.json", "get", a)
	assert.Equal(t, OpenAPI(), a.body)
	assert.Equal(t, 200, e.do("HEAD", "/healthz", nil).status)
	assert.Equal(t, 200, e.do("HEAD", "/openapi.json", nil).status)
}
