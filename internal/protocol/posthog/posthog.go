// Package posthog takes what PostHog's SDKs capture, on servers, in browsers and on
// phones, so that one whose host is set to a collector works unchanged.
// docs/sdk/posthog.md has the mapping and the reasons for it.
package posthog

import (
	"net/http"
	"strings"
	"time"

	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// Endpoints returns the routes of the protocol. All that take events take the same
// bodies; the answers differ. POST /batch without a slash is shared with Amplitude,
// whose bodies have no `batch`. POST /track without one is another's.
func Endpoints() []protocol.Endpoint {
	shared := captures("posthog_batch_shared", "/batch")
	shared.Takes = func(req *protocol.Request) bool { return wire.Has(req.Body, "batch") }
	return []protocol.Endpoint{
		captures("posthog_batch", "/batch/"),
		shared,
		captures("posthog_e", "/e/"),
		captures("posthog_e", "/e"),
		captures("posthog_capture", "/capture/"),
		captures("posthog_capture", "/capture"),
		captures("posthog_i_v0_e", "/i/v0/e/"),
		captures("posthog_i_v0_e", "/i/v0/e"),
		captures("posthog_i_v0_ai", "/i/v0/ai/batch/"),
		captures("posthog_track", "/track/"),
		captures("posthog_engage", "/engage/"),
		captures("posthog_engage", "/engage"),
		analytics("posthog_v1", pathV1),
		analytics("posthog_v1", pathV1+"/"),
		recordings("posthog_s", "/s/"),
		recordings("posthog_s", "/s"),
	}
}

const (
	source = "posthog"
	pathV1 = "/i/v1/analytics/events"
)

// captures is a route that answers as PostHog's first API does.
func captures(name, path string) protocol.Endpoint {
	return protocol.Endpoint{
		Name:    name,
		Source:  source,
		Methods: []string{http.MethodPost},
		Path:    path,
		Scope:   "exposures",
		// No MediaTypes: browsers send text/plain, beacons a form.
		MagicGzip:      true,
		CORS:           corsHeaders(),
		Key:            key,
		BodyKey:        bodyKey,
		AcceptRejected: true, // posthog-go would send the same ten times
		Decode:         decode,
		Places: map[string]string{
			"unit_id": "distinct_id", "time": "timestamp", "event_id": "uuid", "name": "event",
			"experiment": "properties.$feature_flag", "variant": "properties.$feature_flag_response", "reason": "properties.$feature_flag_reason",
		},
		Accept: accept,
		Refuse: refuse,
	}
}

// analytics is a route that answers with a result for each event.
func analytics(name, path string) protocol.Endpoint {
	ep := captures(name, path)
	ep.Decode = decodeV1
	ep.Accept = acceptV1
	return ep
}

// recordings takes films of a screen: counted, not read, and nothing of them is
// kept.
func recordings(name, path string) protocol.Endpoint {
	ep := captures(name, path)
	ep.Scope = "" // it takes no events
	ep.Places, ep.AcceptRejected = nil, false
	ep.Decode = func(_ *protocol.Request, b *schema.Batch) error {
		b.Dropped = 1
		return nil
	}
	return ep
}

// corsHeaders are the headers of the SDKs: browsers send Content-Type only, and
// what runs in a web view or a worker may send those of the later API.
func corsHeaders() []string {
	return []string{
		"authorization", "content-encoding", "content-type",
		"posthog-attempt", "posthog-request-id", "posthog-request-timestamp", "posthog-sdk-info",
	}
}

// key finds the project's key where it is not in the body.
func key(r *http.Request) string {
	if k := protocol.WriteKey(r); k != "" || r.URL.RawQuery == "" {
		return k
	}
	q := r.URL.Query()
	return wire.First(q.Get("token"), q.Get("api_key"))
}

// bodyKey finds the project's key beside the events or, from browsers, in the first
// of them.
func bodyKey(req *protocol.Request) string {
	body, err := plain(req)
	if err != nil {
		return ""
	}
	var r jsonscan.Reader
	r.Reset(body, schema.MaxDepth)
	var found keys
	found.read(&r, false)
	return strings.Clone(wire.First(found[:]...))
}

// keys are what may be the project's key, what counts first at first: api_key, token,
// $token and properties.token beside the events, then properties.token, api_key and
// token of the first event. They are found in one pass: who sends is not known yet.
type keys [7]string

// read reads an object, or the first element of an array, until there is nothing that
// would count more. It leaves the reader anywhere.
func (k *keys) read(r *jsonscan.Reader, event bool) {
	if r.Kind() == jsonscan.Array && (!r.Array() || !r.More()) {
		return
	}
	if r.Kind() != jsonscan.Object || !r.Object() {
		return
	}
	own, token, property := 0, 1, 3
	if event {
		own, token, property = 5, 6, 4
	}
	for r.More() {
		switch name := r.Key(); {
		case name == "api_key":
			if k.take(r, own); !event && k[own] != "" {
				return
			}
		case name == "token":
			k.take(r, token)
		case name == "$token" && !event:
			k.take(r, 2)
		case name == "properties" && r.Kind() == jsonscan.Object:
			r.Object()
			for r.More() {
				if r.Key() == "token" {
					k.take(r, property)
				} else {
					r.Skip()
				}
			}
		case name == "batch" && !event && r.Kind() != jsonscan.None:
			m := r.Mark()
			k.read(r, true)
			r.Rewind(m)
			r.Skip()
		default:
			r.Skip()
		}
	}
}

// take reads a key, if it is a string or a number and none was there before.
func (k *keys) take(r *jsonscan.Reader, i int) {
	r.ClearFault()
	kind, s := r.Scalar()
	if k[i] == "" && r.Fault() == jsonscan.NoFault && (kind == jsonscan.String || kind == jsonscan.Number) {
		k[i] = s
	}
}

// accept: posthog-python and posthog-js want exactly 200, and posthog-js a body
// that is JSON.
func accept(protocol.Result) protocol.Answer {
	return protocol.Answer{Status: http.StatusOK, ContentType: "application/json", Body: []byte("{\"status\":1}\n")}
}

// acceptV1 says what became of each event, as Decode wrote it down. None is ever to
// be sent again: those that were rejected are kept as dead letters.
func acceptV1(res protocol.Result) protocol.Answer {
	body := res.Reply
	if len(body) == 0 {
		body = []byte(`{"results":{}}`)
	}
	return protocol.Answer{Status: http.StatusOK, ContentType: "application/json", Body: body}
}

// refuse makes the SDK do with the batch what the problem asks for. posthog-js
// throws away on any 4xx, 429 included, and sends again on 5xx; the others send
// again on both. So what may succeed later is 503. The rest is final, except to
// posthog-go, which sends everything ten times, and on 413, at which posthog-node
// halves the batch.
func refuse(p protocol.Problem) protocol.Answer {
	if p.Status < http.StatusInternalServerError && protocol.Retryable(p.Code) {
		p.Status = http.StatusServiceUnavailable
	}
	if p.Status == http.StatusServiceUnavailable {
		p.RetryAfter = max(p.RetryAfter, time.Second)
	}
	return protocol.Refuse(p)
}
