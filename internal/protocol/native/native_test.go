package native

import (
	"net/http"
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/schema"
)

func TestEndpoints(t *testing.T) {
	type route struct{ path, scope string }
	var got []route
	for _, ep := range Endpoints() {
		got = append(got, route{ep.Path, ep.Scope})
		assert.Equal(t, []string{"POST"}, ep.Methods)
		assert.Equal(t, "native", ep.Source)
		assert.Contains(t, ep.MediaTypes, "text/plain", "sendBeacon")
		assert.False(t, ep.MagicGzip)
		assert.Nil(t, ep.Accept)
		assert.Nil(t, ep.Refuse)
	}
	assert.Equal(t, []route{{"/v1/exposures", "exposures"}, {"/v1/events", "events"}}, got)
}

const (
	exposure = `{"experiment":"e","variant":"v","unit_id":"u"}`
	custom   = `{"name":"n","unit_id":"u","value":1.5}`
)

func TestDecode(t *testing.T) {
	proto := func() []byte {
		b := new(schema.Batch)
		require.NoError(t, schema.DecodeJSON([]byte("["+exposure+"]"), schema.KindExposure, 10, b))
		return schema.AppendRecord(nil, b, schema.Range{})
	}()
	for name, tt := range map[string]struct {
		endpoint  int
		mediaType string
		body      string
		kinds     []schema.Kind
		rejected  int
		err       string
	}{
		"an exposure":                {0, "application/json", "[" + exposure + "]", []schema.Kind{schema.KindExposure}, 0, ""},
		"an event":                   {1, "application/json", "[" + custom + "]", []schema.Kind{schema.KindEvent}, 0, ""},
		"an exposure as an event":    {1, "application/json", "[" + exposure + "]", nil, 1, ""},
		"both kinds":                 {0, "application/json", "[" + exposure + `,{"kind":"event","name":"n","unit_id":"u"}]`, []schema.Kind{schema.KindExposure, schema.KindEvent}, 0, ""},
		"no type":                    {0, "", "[" + exposure + "]", []schema.Kind{schema.KindExposure}, 0, ""},
		"text is JSON":               {0, "text/plain", `{"events":[` + exposure + "]}", []schema.Kind{schema.KindExposure}, 0, ""},
		"lines":                      {0, "application/x-ndjson", exposure + "\n\n" + exposure, []schema.Kind{schema.KindExposure, schema.KindExposure}, 0, ""},
		"protobuf":                   {0, "application/x-protobuf", string(proto), []schema.Kind{schema.KindExposure}, 0, ""},
		"JSON that is called so not": {0, "application/x-protobuf", "[" + exposure + "]", nil, 0, "malformed"},
		"too many":                   {0, "application/json", "[" + exposure + "," + exposure + "," + exposure + "," + exposure + "]", nil, 0, "too_many_events"},
	} {
		t.Run(name, func(t *testing.T) {
			b := new(schema.Batch)
			req := &protocol.Request{Header: http.Header{}, MediaType: tt.mediaType, Body: []byte(tt.body), MaxEvents: 3}
			err := Endpoints()[tt.endpoint].Decode(req, b)
			if tt.err != "" {
				var body *schema.BodyError
				require.ErrorAs(t, err, &body)
				assert.Equal(t, tt.err, body.Code)
				return
			}
			require.NoError(t, err)
			var kinds []schema.Kind
			for i := range b.Events {
				kinds = append(kinds, b.Events[i].Kind)
			}
			assert.Equal(t, tt.kinds, kinds)
			assert.Len(t, b.Rejected, tt.rejected)
		})
	}
}

func TestSentAt(t *testing.T) {
	const body = `{"events":[` + exposure + `],"sent_at":"2026-01-01T00:00:00Z"}`
	const inBody, inHeader = 1_767_225_600_000_000, 1_767_225_661_500_000
	for header, want := range map[string]int64{
		"":                         inBody,
		"2026-01-01T00:01:01.5Z":   inHeader,
		"1767225661500":            inHeader,
		"yesterday":                inBody,
		"0":                        inBody,
		"-5":                       inBody,
		"1e400":                    1<<63 - 1,
		"2026-01-01 00:01:01.500Z": inHeader,
	} {
		b := new(schema.Batch)
		req := &protocol.Request{Header: http.Header{}, Body: []byte(body), MaxEvents: 3}
		req.Header.Set("X-Sent-At", header)
		require.NoError(t, Endpoints()[0].Decode(req, b))
		assert.Equal(t, want, b.SentAt, "%q", header)
	}
}

// A beacon cannot set headers.
func TestIdempotencyKeyInQuery(t *testing.T) {
	ep := Endpoints()[0]
	for query, want := range map[string]string{"idempotency_key=k-1": "k-1", "": "", "k=x": ""} {
		q, err := url.ParseQuery(query)
		require.NoError(t, err)
		key, p := ep.IdempotencyKey(&protocol.Request{Query: q}, nil)
		assert.Nil(t, p)
		assert.Equal(t, want, key)
	}
	for _, query := range []string{"idempotency_key=", "idempotency_key=a&idempotency_key=a", "idempotency_key=a%20b"} {
		q, err := url.ParseQuery(query)
		require.NoError(t, err)
		_, p := ep.IdempotencyKey(&protocol.Request{Query: q}, nil)
		require.NotNil(t, p, query)
		assert.Equal(t, protocol.CodeBadIdempotencyKey, p.Code)
	}
	key, p := ep.IdempotencyKey(&protocol.Request{Header: http.Header{"Idempotency-Key": {"h"}}, Query: url.Values{"idempotency_key": {"q"}}}, nil)
	assert.Nil(t, p)
	assert.Equal(t, "h", key, "the header goes first")
}

func TestIdempotencyKey(t *testing.T) {
	req := &protocol.Request{Header: http.Header{"Idempotency-Key": {"k-1"}}}
	for _, ep := range Endpoints() {
		key, p := ep.IdempotencyKey(req, nil)
		assert.Nil(t, p)
		assert.Equal(t, "k-1", key)
	}
	req.Header.Add("Idempotency-Key", "k-2")
	_, p := Endpoints()[0].IdempotencyKey(req, nil)
	require.NotNil(t, p)
	assert.Equal(t, protocol.CodeBadIdempotencyKey, p.Code)
}
