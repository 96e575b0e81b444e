package statsig

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

func TestEndpoints(t *testing.T) {
	paths := map[string]bool{}
	for _, ep := range Endpoints() {
		paths[ep.Path] = true
		assert.Equal(t, []string{"POST"}, ep.Methods)
		assert.Equal(t, "statsig", ep.Source)
		assert.Empty(t, ep.MediaTypes, "any")
		for _, h := range []string{"content-type", "statsig-api-key", "statsig-event-count", "statsig-retry-count", "statsig-sdk-type",
			"statsig-sdk-version", "statsig-client-time"} {
			assert.Contains(t, ep.CORS, h)
		}
		for url, want := range map[string]string{ep.Path: "", ep.Path + "?k=client-x&st=s": "client-x"} {
			r := httptest.NewRequest(http.MethodPost, url, nil)
			assert.Equal(t, want, ep.Key(r))
			r.Header.Set("STATSIG-API-KEY", "secret-x")
			assert.Equal(t, "secret-x", ep.Key(r))
		}
		r := httptest.NewRequest(http.MethodPost, ep.Path, nil)
		r.Header.Set("Authorization", "Bearer x")
		assert.Equal(t, "x", ep.Key(r))

		for _, res := range []protocol.Result{{}, {Accepted: 3, Durable: batch.InKafka}, {Duplicate: true, Durable: batch.InSpool},
			{Accepted: 1, Rejected: []schema.Rejected{{Index: 1}}}} {
			a := ep.Accept(res)
			assert.Equal(t, 202, a.Status)
			assert.Equal(t, "application/json", a.ContentType)
			assert.JSONEq(t, `{"success":true}`, string(a.Body))
		}
	}
	assert.Equal(t, map[string]bool{"/v1/log_event": true, "/v1/rgstr": true, "/v1/rgstr_b": true, "/v1/sdk_exception": true}, paths)
}

// SDKs send again at 408 and most 5xx, and never at 429; the core SDKs also at
// any 4xx but those listed.
func TestRefusals(t *testing.T) {
	final := []int{400, 401, 403, 404, 405, 413, 501}
	for _, c := range protocol.Codes() {
		for _, ep := range Endpoints() {
			a := ep.Refuse(*protocol.NewProblem(c.Code, "detail"))
			if c.Retry {
				assert.GreaterOrEqual(t, a.Status, 500, c.Code)
			} else {
				assert.Contains(t, final, a.Status, c.Code)
			}
			if a.Status == 503 {
				assert.Equal(t, "1", a.Header["Retry-After"], c.Code)
			}
			assert.Equal(t, "application/problem+json", a.ContentType)
			assert.Contains(t, string(a.Body), `"code":"`+c.Code+`"`)
		}
	}
	a := refuse(*protocol.NewProblem(protocol.CodeRateLimited, "").After(2500 * time.Millisecond))
	assert.Equal(t, 503, a.Status)
	assert.Equal(t, "3", a.Header["Retry-After"])
}

// Reports of an SDK's own faults are taken whatever they are.
func TestExceptions(t *testing.T) {
	for _, ep := range Endpoints() {
		if ep.Path != "/v1/sdk_exception" {
			continue
		}
		for _, body := range []string{`{"exception":"Error","info":"stack"}`, "not JSON", ""} {
			var b schema.Batch
			require.NoError(t, ep.Decode(request(body), &b))
			assert.Equal(t, schema.Batch{Dropped: 1}, b)
		}
	}
}
