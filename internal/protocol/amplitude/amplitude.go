// Package amplitude takes what Amplitude's SDKs upload, from servers, browsers and
// phones, so that one whose server URL is set to a collector works unchanged.
// docs/sdk/amplitude.md has the mapping and the reasons for it.
package amplitude

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
)

const (
	source   = "amplitude"
	typeJSON = "application/json"
)

// Endpoints returns the routes of the protocol. POST /batch is shared with PostHog,
// whose bodies have `batch`.
func Endpoints() []protocol.Endpoint {
	return []protocol.Endpoint{
		uploads("amplitude", "/2/httpapi"),
		uploads("amplitude_batch", "/batch"),
		uploads("amplitude_v1", "/httpapi"),
	}
}

func uploads(name, path string) protocol.Endpoint {
	return protocol.Endpoint{
		Name:    name,
		Source:  source,
		Methods: []string{http.MethodPost},
		Path:    path,
		Scope:   "exposures",
		// No MediaTypes: beacons send text/plain, the first API took a form.
		CORS:           []string{"accept", "content-encoding", "content-type"},
		BodyKey:        bodyKey,
		AcceptRejected: true, // an error makes the SDKs send the same up to twelve times
		Decode:         decode,
		Places: map[string]string{
			"unit_id": "user_id", "time": "time", "event_id": "insert_id", "name": "event_type", "value": "revenue",
			"experiment": "event_properties.flag_key", "variant": "event_properties.variant",
		},
		Accept: accept,
		Refuse: refuse,
	}
}

// bodyKey finds the project's key beside the events.
func bodyKey(req *protocol.Request) string {
	if f := parseForm(req.Body); f.ok {
		return f.key
	}
	return wire.Member(req.Body, "api_key")
}

// accept is what Amplitude answers: the SDKs read the code in the body before they
// look at the status. A form is answered as the first API did.
func accept(res protocol.Result) protocol.Answer {
	if len(res.Reply) > 0 {
		return protocol.Answer{Status: http.StatusOK, ContentType: "text/plain; charset=utf-8", Body: res.Reply}
	}
	body := []byte(`{"code":200,"events_ingested":`)
	body = strconv.AppendInt(body, int64(res.Accepted), 10)
	body = append(body, `,"payload_size_bytes":`...)
	body = strconv.AppendInt(body, int64(res.BodyBytes), 10)
	body = append(body, `,"server_upload_time":`...)
	body = strconv.AppendInt(body, time.Now().UnixMilli(), 10)
	return protocol.Answer{Status: http.StatusOK, ContentType: typeJSON, Body: append(body, "}\n"...)}
}

// refusal is the body of an error.
type refusal struct {
	Code  int    `json:"code"`
	Error string `json:"error"`
	// MissingField has the SDKs give the whole batch up. Without it, and without a
	// list of the events at fault, they send it again.
	MissingField string `json:"missing_field,omitempty"`
	// Throttled has the SDKs wait 30 seconds with the events at these places instead
	// of a fraction of a second.
	Throttled []int  `json:"throttled_events,omitempty"`
	Reason    string `json:"reason"` // one of protocol.Codes
}

// most is how many events the SDKs put into a batch at most (200 by default, 1,000
// in what Amplitude takes).
const most = 1000

// refuse makes the SDK do with the batch what the problem asks for: at 429 and 5xx it
// sends it again, at 413 it halves it, at any other 4xx it drops what it is told to.
func refuse(p protocol.Problem) protocol.Answer {
	if p.Status < http.StatusInternalServerError && p.Status != http.StatusTooManyRequests && protocol.Retryable(p.Code) {
		p.Status = http.StatusServiceUnavailable
	}
	r := refusal{Code: p.Status, Error: p.Detail, Reason: p.Code}
	switch {
	case p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable:
		p.RetryAfter = max(p.RetryAfter, time.Second)
		if p.Status == http.StatusTooManyRequests {
			r.Throttled = make([]int, most)
			for i := range r.Throttled {
				r.Throttled[i] = i
			}
		}
	case p.Status == http.StatusUnauthorized || p.Status == http.StatusForbidden:
		r.Error = "Invalid API key: " + p.Detail // SDKs look for this beginning
	case p.Status < http.StatusInternalServerError && p.Status != http.StatusRequestEntityTooLarge:
		r.MissingField = "events"
	}
	body, err := json.Marshal(r)
	if err != nil { // texts and numbers: there is nothing to fail on
		return protocol.Refuse(p)
	}
	return protocol.Answer{Status: p.Status, ContentType: typeJSON, Header: protocol.RetryAfter(p), Body: append(body, '\n')}
}
