// Package growthbook takes what GrowthBook's tracking plugins send to its event
// ingestor. docs/sdk/growthbook.md has the mapping and the reasons for it.
package growthbook

import (
	"net/http"
	"time"

	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
)

const source = "growthbook"

// Endpoints returns the route of the protocol. POST /track/ with a slash is
// PostHog's.
func Endpoints() []protocol.Endpoint {
	return []protocol.Endpoint{{
		Name:           "growthbook",
		Source:         source,
		Methods:        []string{http.MethodPost},
		Path:           "/track",
		Scope:          "exposures",
		CORS:           []string{"accept", "content-type"},
		Key:            key,
		AcceptRejected: true, // they are kept, and the SDKs only look at the status to log it
		Decode:         decode,
		Places: map[string]string{
			"unit_id": "user_id", "name": "event_name", "value": "properties_json.value",
			"experiment": "properties_json.experimentId", "variant": "properties_json.variationId",
		},
		Accept: accept,
		Refuse: refuse,
	}}
}

// key finds the client key.
func key(r *http.Request) string {
	if r.URL.RawQuery != "" {
		if k := r.URL.Query().Get("client_key"); k != "" {
			return k
		}
	}
	return protocol.WriteKey(r)
}

// accept: the Python plugin wants exactly 200, and nobody reads the body.
func accept(protocol.Result) protocol.Answer {
	return protocol.Answer{Status: http.StatusOK, ContentType: "application/json", Body: []byte("{\"success\":true}\n")}
}

// refuse: no plugin sends anything again, whatever the answer. What may succeed later
// is 503 for whoever stands between.
func refuse(p protocol.Problem) protocol.Answer {
	if p.Status < http.StatusInternalServerError && p.Status != http.StatusTooManyRequests && protocol.Retryable(p.Code) {
		p.Status = http.StatusServiceUnavailable
	}
	if p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests {
		p.RetryAfter = max(p.RetryAfter, time.Second)
	}
	return protocol.Refuse(p)
}

// sdk is the SDK by its language: growthbook-js/1.8.0.
func sdk(language, version string) string {
	if language == "" {
		return wire.SDK(source, version)
	}
	return wire.SDK(source+"-"+language, version)
}
