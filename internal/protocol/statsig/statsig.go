// Package statsig takes what Statsig's SDKs log, server and browser, so that an
// SDK whose log URL is set to a collector works unchanged. docs/sdk/statsig.md
// has the mapping and the reasons for it.
package statsig

import (
	"net/http"
	"time"

	"sluice/internal/protocol"
	"sluice/pkg/schema"
)

// Endpoints returns the routes of the protocol: log_event is for servers, rgstr
// for browsers, rgstr_b for the beacons of the former browser SDK. All three
// take the same bodies. sdk_exception is where SDKs report their own faults.
func Endpoints() []protocol.Endpoint {
	return []protocol.Endpoint{
		logs("statsig_log_event", "/v1/log_event"),
		logs("statsig_rgstr", "/v1/rgstr"),
		logs("statsig_rgstr_b", "/v1/rgstr_b"),
		{
			Name:    "statsig_sdk_exception",
			Source:  source,
			Methods: []string{http.MethodPost},
			Path:    "/v1/sdk_exception",
			CORS:    corsHeaders(),
			Key:     key,
			Decode:  dropException,
			Accept:  accept,
			Refuse:  refuse,
		},
	}
}

const source = "statsig"

func logs(name, path string) protocol.Endpoint {
	return protocol.Endpoint{
		Name:    name,
		Source:  source,
		Methods: []string{http.MethodPost},
		Path:    path,
		Scope:   "exposures",
		// No MediaTypes: browsers send text/plain, or nothing with a compressed body.
		MagicGzip: true,
		CORS:      corsHeaders(),
		Key:       key,
		Decode:    decode,
		Places:    map[string]string{"unit_id": "user.userID", "time": "time", "name": "eventName", "value": "value"},
		Accept:    accept,
		Refuse:    refuse,
	}
}

// corsHeaders are the headers of the browser SDKs, the former one (statsig-js)
// included.
func corsHeaders() []string {
	return []string{
		"content-encoding", "content-type",
		"statsig-api-key", "statsig-client-time", "statsig-encoded", "statsig-event-count", "statsig-retry-count",
		"statsig-sdk-type", "statsig-sdk-version", "statsig-server-session-id",
	}
}

// key finds the SDK key: server SDKs send a header, the browser SDK has it in
// the query only.
func key(r *http.Request) string {
	if v := r.Header.Get("Statsig-Api-Key"); v != "" {
		return v
	}
	return protocol.WriteKey(r)
}

// dropException takes an SDK's report of its own fault: counted, not read, and
// nothing of it is kept.
func dropException(_ *protocol.Request, b *schema.Batch) error {
	b.Dropped = 1
	return nil
}

// accept is the one answer all Statsig SDKs take for success: they want a 2xx
// with a JSON body that does not say "success":false. An empty body, or text,
// makes some of them send the batch six times.
func accept(protocol.Result) protocol.Answer {
	return protocol.Answer{
		Status:      http.StatusAccepted,
		ContentType: "application/json",
		Body:        []byte("{\"success\":true}\n"),
	}
}

// refuse makes the SDK do with the batch what the problem asks for. What may
// succeed later is 5xx, because most Statsig SDKs throw a batch away at 429 and
// 400. What cannot is 400, because the core SDKs resend on any 4xx but 400, 403,
// 405, 413 and 429; 401 and 404 stay as they are, since someone may be about to
// put them right.
func refuse(p protocol.Problem) protocol.Answer {
	switch {
	case p.Status >= http.StatusInternalServerError:
	case protocol.Retryable(p.Code):
		p.Status = http.StatusServiceUnavailable
	case p.Status == http.StatusUnauthorized, p.Status == http.StatusForbidden, p.Status == http.StatusNotFound,
		p.Status == http.StatusMethodNotAllowed, p.Status == http.StatusRequestEntityTooLarge:
	default:
		p.Status = http.StatusBadRequest
	}
	if p.Status == http.StatusServiceUnavailable {
		p.RetryAfter = max(p.RetryAfter, time.Second)
	}
	return protocol.Refuse(p)
}
