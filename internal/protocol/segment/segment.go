// Package segment takes what Segment's libraries send, for servers, browsers and
// phones, so that one whose host is set to a collector works unchanged.
// docs/sdk/segment.md has the mapping and the reasons for it.
package segment

import (
	"net/http"
	"time"

	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
	"sluice/pkg/schema"
)

// Endpoints returns the routes of the protocol: those of the HTTP API (some
// libraries end theirs in a slash), and the short ones of the browser library.
func Endpoints() []protocol.Endpoint {
	return []protocol.Endpoint{
		events("segment_batch", "/v1/batch", ""),
		events("segment_import", "/v1/import", ""),
		events("segment_batch", "/v1/batch/", ""),
		events("segment_import", "/v1/import/", ""),
		events("segment_track", "/v1/track", typeTrack),
		events("segment_identify", "/v1/identify", typeIdentify),
		events("segment_page", "/v1/page", typePage),
		events("segment_screen", "/v1/screen", typeScreen),
		events("segment_group", "/v1/group", typeGroup),
		events("segment_alias", "/v1/alias", typeAlias),
		events("segment_b", "/v1/b", ""),
		events("segment_t", "/v1/t", typeTrack),
		events("segment_i", "/v1/i", typeIdentify),
		events("segment_p", "/v1/p", typePage),
		events("segment_s", "/v1/s", typeScreen),
		events("segment_g", "/v1/g", typeGroup),
		events("segment_a", "/v1/a", typeAlias),
		{
			// What the browser library measures of itself.
			Name:    "segment_metrics",
			Source:  source,
			Methods: []string{http.MethodPost},
			Path:    "/v1/m",
			CORS:    corsHeaders(),
			Key:     key,
			BodyKey: bodyKey,
			Decode: func(_ *protocol.Request, b *schema.Batch) error {
				b.Dropped = 1
				return nil
			},
			Accept: accept,
			Refuse: refuse,
		},
	}
}

const source = "segment"

// The types of call.
const (
	typeTrack    = "track"
	typeIdentify = "identify"
	typePage     = "page"
	typeScreen   = "screen"
	typeGroup    = "group"
	typeAlias    = "alias"
)

// events is a route that takes calls; single is the type of those that do not say,
// where the route takes one a request, and empty where it takes batches.
func events(name, path, single string) protocol.Endpoint {
	return protocol.Endpoint{
		Name:    name,
		Source:  source,
		Methods: []string{http.MethodPost},
		Path:    path,
		Scope:   "exposures",
		// No MediaTypes: browsers send text/plain.
		CORS:           corsHeaders(),
		Key:            key,
		BodyKey:        bodyKey,
		AcceptRejected: true, // Segment answers 200 too, and analytics-go sends anything else ten times
		Decode: func(req *protocol.Request, b *schema.Batch) error {
			return decode(req, b, single)
		},
		Places: map[string]string{
			"unit_id": "userId", "time": "timestamp", "event_id": "messageId", "name": "event",
			"experiment": "properties.experiment_id", "variant": "properties.variation_id",
		},
		Accept: accept,
		Refuse: refuse,
	}
}

// corsHeaders are the headers of the browser library.
func corsHeaders() []string {
	return []string{"authorization", "content-encoding", "content-type", "x-retry-count"}
}

// key finds the write key: the user of basic authentication, whose password does
// not matter.
func key(r *http.Request) string {
	if user, _, ok := r.BasicAuth(); ok && user != "" {
		return user
	}
	return protocol.WriteKey(r)
}

// bodyKey finds the write key of a library that sends no header: beside the events
// or, from browsers, in them.
func bodyKey(req *protocol.Request) string {
	if k := wire.Member(req.Body, "writeKey"); k != "" {
		return k
	}
	return wire.Member(req.Body, "batch", "writeKey")
}

// accept is what Segment answers. Libraries look at the status only.
func accept(protocol.Result) protocol.Answer {
	return protocol.Answer{
		Status:      http.StatusOK,
		ContentType: "application/json",
		Body:        []byte("{\"success\":true}\n"),
	}
}

// refuse makes the library do with the batch what the problem asks for. All of them
// send again at 429 and 5xx, and most honour Retry-After (at 429; without one
// there, analytics-node waits a minute); 408 only the recent ones. Any other 4xx is
// final.
func refuse(p protocol.Problem) protocol.Answer {
	if p.Status < http.StatusInternalServerError && p.Status != http.StatusTooManyRequests && protocol.Retryable(p.Code) {
		p.Status = http.StatusServiceUnavailable
	}
	if p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests {
		p.RetryAfter = max(p.RetryAfter, time.Second)
	}
	return protocol.Refuse(p)
}
