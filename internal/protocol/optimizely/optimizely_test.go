package optimizely

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

func TestEndpoint(t *testing.T) {
	eps := Endpoints()
	require.Len(t, eps, 1)
	ep := eps[0]
	assert.Equal(t, "/v1/events", ep.Path)
	assert.Equal(t, []string{"POST"}, ep.Methods)
	assert.Equal(t, "optimizely", ep.Source)
	assert.Equal(t, "exposures", ep.Scope)
	assert.Contains(t, ep.CORS, "content-type")
	assert.True(t, ep.AcceptRejected)
	assert.Nil(t, ep.IdempotencyKey)
	for _, res := range []protocol.Result{{}, {Accepted: 3, Durable: batch.InKafka}, {Duplicate: true}, {Rejected: []schema.Rejected{{}}}} {
		a := ep.Accept(res)
		assert.Equal(t, 202, a.Status)
		assert.Empty(t, a.Body)
	}
	for _, c := range protocol.Codes() {
		assert.Equal(t, c.Status, ep.Refuse(*protocol.NewProblem(c.Code, "")).Status)
	}
}

func TestKeys(t *testing.T) {
	ep := Endpoints()[0]
	for body, want := range map[string]string{
		`{"account_id":"12","visitors":[]}`: "12", `{"visitors":[{}],"account_id":12}`: "12", `{"visitors":[]}`: "", `{"account_id":null}`: "",
		`{"account_id":[]}`: "", ``: "", `not JSON`: "", `{"account_id":"12","visitors":[`: "12",
	} {
		assert.Equal(t, want, ep.BodyKey(request(body)), body)
	}
	r := httptest.NewRequest(http.MethodPost, "/v1/events?k=q", nil)
	assert.Equal(t, "q", ep.Key(r))
	r.Header.Set("X-Api-Key", "h")
	assert.Equal(t, "h", ep.Key(r))
	r.Header.Set("Authorization", "Bearer b")
	assert.Equal(t, "b", ep.Key(r))
}

func TestTakes(t *testing.T) {
	for body, want := range map[string]bool{
		`{"account_id":"12","visitors":[`:                     true,
		`{"visitors":[{"a":1}],"client_name":"node-sdk"}`:     true,
		`{"client_name":"node-sdk","visitors":null}`:          true,
		`{"visitors":[]}`:                                     false,
		`{"account_id":"12"}`:                                 false,
		`{"events":[],"account_id":"12","visitors":[]}`:       false,
		`{"sdk":{},"events":[{"visitors":1,"account_id":1}]}`: false,
		`[{"account_id":"12","visitors":[]}]`:                 false,
		``:                                                    false,
		`7`:                                                   false,
		`{`:                                                   false,
		"\x0a\x02visitors":                                    false,
		`{"sent_at":1,"x":{"account_id":1,"visitors":[]},"y":1`: false,
	} {
		assert.Equal(t, want, takes(request(body)), body)
	}
	for _, m := range []string{"application/x-protobuf", "application/x-ndjson"} {
		req := request(`{"account_id":"12","visitors":[]}`)
		req.MediaType = m
		assert.False(t, takes(req), m)
	}
}
