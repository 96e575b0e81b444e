// Package native is Sluice's own protocol: POST /v1/exposures and POST
// /v1/events, in JSON, NDJSON or protobuf.
package native

import (
	"net/http"

	"sluice/internal/protocol"
	"sluice/pkg/schema"
)

// Endpoints returns the two routes of the native API. They differ in the kind
// that events have which do not name theirs, and in the scope a key needs.
func Endpoints() []protocol.Endpoint {
	return []protocol.Endpoint{
		endpoint("native_exposures", "/v1/exposures", "exposures", schema.KindExposure),
		endpoint("native_events", "/v1/events", "events", schema.KindEvent),
	}
}

const (
	typeJSON     = "application/json"
	typeText     = "text/plain" // what sendBeacon may send across origins; read as JSON
	typeNDJSON   = "application/x-ndjson"
	typeProtobuf = "application/x-protobuf"
)

func endpoint(name, path, scope string, def schema.Kind) protocol.Endpoint {
	return protocol.Endpoint{
		Name:       name,
		Source:     "native",
		Methods:    []string{http.MethodPost},
		Path:       path,
		Scope:      scope,
		MediaTypes: []string{typeJSON, typeText, typeNDJSON, typeProtobuf},
		CORS:       []string{"authorization", "content-encoding", "content-type", "idempotency-key", "x-api-key", "x-sent-at"},
		Decode: func(req *protocol.Request, b *schema.Batch) error {
			return decode(req, def, b)
		},
		IdempotencyKey: idempotencyKey,
	}
}

// idempotencyKey is the header, or for beacons, which cannot set one, the query
// parameter idempotency_key.
func idempotencyKey(req *protocol.Request, _ *schema.Batch) (string, *protocol.Problem) {
	key, p := protocol.HeaderIdempotencyKey(req.Header)
	if key != "" || p != nil {
		return key, p
	}
	vs := req.Query["idempotency_key"]
	switch {
	case len(vs) == 0:
		return "", nil
	case len(vs) > 1 || !protocol.ValidIdempotencyKey(vs[0]):
		return "", protocol.NewProblem(protocol.CodeBadIdempotencyKey, "idempotency_key must come once and have 1 to 256 visible ASCII characters (! to ~)")
	}
	return vs[0], nil
}

func decode(req *protocol.Request, def schema.Kind, b *schema.Batch) error {
	var err error
	switch req.MediaType {
	case typeNDJSON:
		err = schema.DecodeNDJSON(req.Body, def, req.MaxEvents, b)
	case typeProtobuf:
		err = schema.DecodeProto(req.Body, def, req.MaxEvents, b)
	default:
		err = schema.DecodeJSON(req.Body, def, req.MaxEvents, b)
	}
	if err != nil {
		return err
	}
	// The header is set anew at each attempt, the body need not be: the header wins.
	if at, ok := sentAt(req.Header.Get("X-Sent-At")); ok {
		b.SentAt = at
	}
	return nil
}

// sentAt reads RFC 3339 or epoch milliseconds as microseconds since the epoch.
// Anything else counts as absent: a client's wrong clock never costs its events.
func sentAt(s string) (us int64, ok bool) {
	if us, ok = schema.ParseTime(s); !ok {
		us, ok = schema.ParseEpochMillis(s)
	}
	return us, ok && us > 0
}
