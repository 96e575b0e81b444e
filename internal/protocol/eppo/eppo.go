// Package eppo takes what Eppo's SDKs send to its event ingestion, and assignments as
// they are given to an assignment logger. docs/sdk/eppo.md has the mapping and the
// reasons for it.
package eppo

import (
	"net/http"
	"time"

	"sluice/internal/protocol"
)

const source = "eppo"

// Endpoints returns the route of the protocol.
func Endpoints() []protocol.Endpoint {
	return []protocol.Endpoint{{
		Name:           "eppo",
		Source:         source,
		Methods:        []string{http.MethodPost},
		Path:           "/v0/i",
		Scope:          "exposures",
		CORS:           []string{"content-type", "x-eppo-token"},
		Key:            key,
		AcceptRejected: true, // the SDKs send the same again for ever
		Decode:         decode,
		Places: map[string]string{
			"unit_id": "payload.subject", "time": "timestamp", "event_id": "uuid", "name": "type",
			"experiment": "payload.experiment", "variant": "payload.variation", "rule": "payload.allocation", "value": "payload.value",
		},
		Accept: accept,
		Refuse: refuse,
	}}
}

// key finds the SDK key where the SDKs send it, or any client may.
func key(r *http.Request) string {
	if k := r.Header.Get("X-Eppo-Token"); k != "" {
		return k
	}
	return protocol.WriteKey(r)
}

// accept says that no event failed. Those that were rejected are kept as dead
// letters; the SDK would send them again.
func accept(protocol.Result) protocol.Answer {
	return protocol.Answer{Status: http.StatusOK, ContentType: "application/json", Body: []byte("{\"failed_events\":[]}\n")}
}

// refuse: to the SDKs all that is not 2xx is the same. They try three times more and
// then put the events back into their queue.
func refuse(p protocol.Problem) protocol.Answer {
	if p.Status < http.StatusInternalServerError && p.Status != http.StatusTooManyRequests && protocol.Retryable(p.Code) {
		p.Status = http.StatusServiceUnavailable
	}
	if p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests {
		p.RetryAfter = max(p.RetryAfter, time.Second)
	}
	return protocol.Refuse(p)
}
