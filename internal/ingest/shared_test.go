package ingest

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// other is a protocol that has its key in the body: "other <key> <unit>…", one
// event for each unit; the unit "bad" is rejected.
func other(path string, takes bool) protocol.Endpoint {
	ep := protocol.Endpoint{
		Name: "other", Source: "other", Methods: []string{http.MethodPost}, Path: path, Scope: "exposures",
		BodyKey: func(req *protocol.Request) string {
			if f := strings.Fields(string(req.Body)); len(f) > 1 {
				return f[1]
			}
			return ""
		},
		Decode: func(req *protocol.Request, b *schema.Batch) error {
			for _, unit := range strings.Fields(string(req.Body))[2:] {
				e := b.Append()
				e.Kind, e.Experiment, e.Variant, e.UnitID, e.ClientID = schema.KindExposure, "e", "v", unit, unit
				if unit == "bad" {
					b.Reject(schema.CodeUnmappable, "", "bad", []byte(unit))
				}
				req.Reply = append(req.Reply, unit...)
			}
			return nil
		},
		AcceptRejected: true,
		Accept: func(res protocol.Result) protocol.Answer {
			return protocol.Answer{Status: http.StatusOK, Body: append([]byte("took "), res.Reply...)}
		},
	}
	if takes {
		ep.Takes = func(req *protocol.Request) bool { return bytes.HasPrefix(req.Body, []byte("other ")) }
	}
	return ep
}

func TestSharedPath(t *testing.T) {
	e := start(t, withEndpoints(other("/v1/events", true)))

	a := e.post("/v1/events", []byte("other "+goodKey+" u1"), "Authorization", "")
	assert.Equal(t, 200, a.status, "%s", a.body)
	assert.Equal(t, "took u1", string(a.body))
	a = e.post("/v1/events", []byte("other whatever u2"))
	assert.Equal(t, "took u2", string(a.body), "a key in the header goes first: %d", a.status)
	a = e.post("/v1/events", []byte(`[{"name":"n","unit_id":"u3"}]`))
	require.Equal(t, 202, a.status, "the path's own protocol takes the rest: %s", a.body)
	got := batches(t, e.pub.records())
	require.Len(t, got, 3)
	assert.Equal(t, []string{"other", "other", "native"}, []string{got[0].Source, got[1].Source, got[2].Source})

	for name, tt := range map[string]struct {
		body   string
		status int
		code   string
	}{
		"no key, the path's own": {`[{"name":"n","unit_id":"u"}]`, 401, protocol.CodeNoKey},
		"no key, the other's":    {"other", 401, protocol.CodeNoKey},
		"unknown key":            {"other nonsense u", 401, protocol.CodeUnknownKey},
	} {
		t.Run(name, func(t *testing.T) {
			a := e.post("/v1/events", []byte(tt.body), "Authorization", "")
			assert.Equal(t, tt.status, a.status)
			assert.Equal(t, tt.code, a.code())
		})
	}
	e.idle()
}

// A copy gets an answer of its own, and what the answer to the first one was made of is
// not kept: a list of every event of the last 50,000 batches would be.
func TestCopiesHaveAReplyOfTheirOwn(t *testing.T) {
	e := start(t, withEndpoints(other("/other", false)))
	for range 2 {
		a := e.post("/other", []byte("other x u1"), "Idempotency-Key", "k")
		assert.Equal(t, "took u1", string(a.body), "%d", a.status)
	}
	require.Len(t, e.pub.records(), 1)
	for _, a := range e.c.recent.byID {
		assert.Nil(t, a.outcome.result.Reply)
		assert.Equal(t, 1, a.outcome.result.Accepted)
	}
	e.idle()
}

// What goes for a protocol goes on a shared path too: where its key may be in the
// request, and that its SDKs send gzip without saying so.
func TestSharedPathIsReadItsWay(t *testing.T) {
	ep := other("/v1/events", true)
	ep.MagicGzip = true
	ep.Key = func(r *http.Request) string { return r.URL.Query().Get("token") }
	ep.BodyKey = func(*protocol.Request) string { return "" }
	e := start(t, withEndpoints(ep))
	a := e.post("/v1/events?token="+goodKey, []byte("other x u1"), "Authorization", "")
	assert.Equal(t, "took u1", string(a.body), "%d", a.status)
	a = e.post("/v1/events?token=nonsense", []byte("other x u1"), "Authorization", "")
	assert.Equal(t, protocol.CodeUnknownKey, a.code())
	a = e.post("/v1/events?token="+goodKey, []byte(`[{"name":"n","unit_id":"u3"}]`), "Authorization", "")
	assert.Equal(t, protocol.CodeNoKey, a.code(), "the path's own has it elsewhere")
	a = e.post("/v1/events?token="+goodKey, gzipOf([]byte("other x u2")), "Authorization", "")
	assert.Equal(t, "took u2", string(a.body), "%d", a.status)
	e.idle()
}

func TestSharedPathNeedsOneThatTakesTheRest(t *testing.T) {
	o, _, _, _ := testOptions()
	o.Endpoints = append(o.Endpoints, other("/somewhere", true))
	_, err := New(o)
	assert.ErrorContains(t, err, "no endpoint takes what")
	o, _, _, _ = testOptions()
	o.Endpoints = append(o.Endpoints, other("/healthz", false), other("/somewhere", false))
	o.Endpoints[len(o.Endpoints)-2].Methods = []string{http.MethodGet}
	_, err = New(o)
	assert.ErrorContains(t, err, "is taken by")
}

func TestAnySegment(t *testing.T) {
	e := start(t, withEndpoints(other("/bulk/*", false)))
	for path, status := range map[string]int{
		"/bulk/env1": 200, "//bulk/env1": 200, "//": 404, "/bulk/": 404, "/bulk": 404, "/bulk/a/b": 404, "/bulk/*": 200, "/bulk/%2F": 404,
	} {
		assert.Equal(t, status, e.post(path, []byte("other "+goodKey+" "+batch.Random().String()), "Authorization", "").status, path)
	}
}

// A batch of which every event was rejected is told to be safe only when it is.
func TestAcceptRejected(t *testing.T) {
	e := start(t, withEndpoints(other("/other", false)))
	e.pub.set(refuseAll)
	assert.Equal(t, 503, e.post("/other", []byte("other k bad")).status)
	e.pub.set(nil)
	a := e.post("/other", []byte("other k bad"))
	assert.Equal(t, 200, a.status)
	assert.Equal(t, "took bad", string(a.body))
	got := batches(t, e.pub.records())
	require.Len(t, got, 1)
	assert.Len(t, got[0].Rejected, 1)
	assert.Equal(t, "took bad", string(e.post("/other", []byte("other k bad")).body), "a copy has the same answer")
	assert.Empty(t, e.pub.records())
}

// A request whose key is in its body is on that key's account from then on.
func TestMove(t *testing.T) {
	b := newBudget(800, 8)
	h := b.enter(unidentified)
	require.NoError(t, h.take(600))
	busy := b.enter("busy")
	require.NoError(t, busy.take(200))
	assert.False(t, h.move("busy"), "more than one key may hold")
	require.True(t, h.move("k"))
	require.True(t, h.move("k"))
	assert.Equal(t, int64(600), b.byKey["k"].used)
	assert.NotContains(t, b.byKey, unidentified)
	h.close()
	busy.close()
	assert.Empty(t, b.byKey)
	assert.Zero(t, b.inUse())

	var hs []*holding
	for range b.requests {
		hs = append(hs, b.enter("many"))
	}
	h = b.enter(unidentified)
	assert.False(t, h.move("many"), "as many requests as one key may have")
	h.close()
	for _, h := range hs {
		h.close()
	}
	assert.Empty(t, b.byKey)
}

// Work on a body is not begun for a key that is over its rate, wherever it is.
func TestBodyKeyHasARate(t *testing.T) {
	e := start(t, withEndpoints(other("/other", false)), func(o *Options) {
		keys := o.Keys
		o.Keys = keysFunc(func(key string) (Grant, error) {
			g, err := keys.Lookup(key)
			g.Rate, g.Burst = 0.001, 1
			return g, err
		})
		o.Limits.MaxEvents = 1
	})
	e.pub.set(func(context.Context, []batch.Record) (batch.Durable, error) { return batch.InKafka, nil })
	assert.Equal(t, 200, e.post("/other", []byte("other "+goodKey+" u1"), "Authorization", "").status)
	a := e.post("/other", []byte("other "+goodKey+" u2"), "Authorization", "")
	assert.Equal(t, 429, a.status)
	assert.NotEmpty(t, a.header.Get("Retry-After"))
}

type keysFunc func(string) (Grant, error)

func (f keysFunc) Lookup(key string) (Grant, error) { return f(key) }
