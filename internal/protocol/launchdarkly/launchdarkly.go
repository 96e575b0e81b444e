// Package launchdarkly takes the events of LaunchDarkly's SDKs, server, mobile and
// browser, so that an SDK whose events URL is set to a collector works unchanged.
// docs/sdk/launchdarkly.md has the mapping and the reasons for it.
package launchdarkly

import (
	"net/http"
	"strings"
	"time"

	"sluice/internal/protocol"
	"sluice/pkg/schema"
)

// Endpoints returns the routes of the protocol. Those with a last segment of any
// name are for browsers, whose key is that segment.
func Endpoints() []protocol.Endpoint {
	return []protocol.Endpoint{
		events("launchdarkly_bulk", "/bulk"),
		events("launchdarkly_mobile", "/mobile"),
		events("launchdarkly_mobile_events", "/mobile/events"),
		events("launchdarkly_mobile_bulk", "/mobile/events/bulk"),
		events("launchdarkly_browser_bulk", "/events/bulk/*"),
		pixel("launchdarkly_pixel", "/a/*"),
		diagnostics("launchdarkly_diagnostic", "/diagnostic"),
		diagnostics("launchdarkly_mobile_diagnostic", "/mobile/events/diagnostic"),
		diagnostics("launchdarkly_browser_diagnostic", "/events/diagnostic/*"),
	}
}

const source = "launchdarkly"

func events(name, path string) protocol.Endpoint {
	return protocol.Endpoint{
		Name:           name,
		Source:         source,
		Methods:        []string{http.MethodPost},
		Path:           path,
		Scope:          "exposures",
		CORS:           corsHeaders(),
		Key:            keyOf(path),
		AcceptRejected: true, // an error would stop some SDKs, or have them send the same again
		Decode:         decode,
		Places:         map[string]string{"experiment": "key", "name": "key", "variant": "variation", "unit_id": "userKey", "time": "creationDate", "value": "metricValue"},
		IdempotencyKey: payloadID,
		Accept:         accept,
		Refuse:         refuse,
	}
}

// pixel is what former browser SDKs do where they cannot post across origins: the
// events are in the URL of an image.
func pixel(name, path string) protocol.Endpoint {
	ep := events(name, path)
	ep.Methods = []string{http.MethodGet}
	ep.CORS = nil
	ep.Decode = decodePixel
	return ep
}

// diagnostics takes what an SDK reports of itself: counted, not read, and nothing
// of it is kept.
func diagnostics(name, path string) protocol.Endpoint {
	return protocol.Endpoint{
		Name:    name,
		Source:  source,
		Methods: []string{http.MethodPost},
		Path:    path,
		CORS:    corsHeaders(),
		Key:     keyOf(path),
		Decode: func(_ *protocol.Request, b *schema.Batch) error {
			b.Dropped = 1
			return nil
		},
		Accept: accept,
		Refuse: refuse,
	}
}

// corsHeaders are the headers of the browser SDKs, and of client SDKs for other
// platforms when they run in a web view.
func corsHeaders() []string {
	return []string{
		"authorization", "content-encoding", "content-type",
		"x-launchdarkly-event-schema", "x-launchdarkly-instance-id", "x-launchdarkly-payload-id", "x-launchdarkly-tags",
		"x-launchdarkly-user-agent", "x-launchdarkly-wrapper",
	}
}

// keyOf finds the SDK key: the last segment of the path where that is for browsers,
// else the Authorization header, as it is or after "api_key" (mobile SDKs of old).
func keyOf(path string) func(r *http.Request) string {
	inPath := strings.HasSuffix(path, "/*")
	return func(r *http.Request) string {
		if inPath {
			key := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
			return strings.TrimSuffix(key, ".gif")
		}
		v := strings.TrimSpace(r.Header.Get("Authorization"))
		scheme, key, more := strings.Cut(v, " ")
		switch {
		case more && strings.EqualFold(scheme, "api_key"):
			return strings.TrimSpace(key)
		case v != "" && !more:
			return v
		}
		return protocol.WriteKey(r)
	}
}

// payloadID is the SDK's own name for the payload, the same when it sends it again.
// One that is no name counts as absent: it must not cost the events.
func payloadID(req *protocol.Request, _ *schema.Batch) (string, *protocol.Problem) {
	if vs := req.Header["X-Launchdarkly-Payload-Id"]; len(vs) == 1 && protocol.ValidIdempotencyKey(vs[0]) {
		return vs[0], nil
	}
	return "", nil
}

// accept: SDKs look at the status, and at the Date header for the server's clock.
func accept(protocol.Result) protocol.Answer {
	return protocol.Answer{Status: http.StatusAccepted}
}

// refuse makes the SDK do with the payload what the problem asks for. It sends
// again, once and after a second, at 400, 408, 429 and 5xx; any other 4xx stops it
// for as long as its process runs, at some SDKs also 413. So what can never succeed
// is 400, and only a wrong key (401, 403) or a wrong path stops it.
func refuse(p protocol.Problem) protocol.Answer {
	switch {
	case p.Status >= http.StatusInternalServerError:
	case p.Status == http.StatusUnauthorized, p.Status == http.StatusForbidden, p.Status == http.StatusNotFound,
		p.Status == http.StatusMethodNotAllowed, p.Status == http.StatusRequestTimeout, p.Status == http.StatusTooManyRequests:
	default:
		p.Status = http.StatusBadRequest
	}
	if p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests {
		p.RetryAfter = max(p.RetryAfter, time.Second)
	}
	return protocol.Refuse(p)
}
