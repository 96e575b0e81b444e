// Package optimizely takes the events of Optimizely's Feature Experimentation SDKs,
// so that an SDK whose event dispatcher posts to a collector works unchanged.
// docs/sdk/optimizely.md has the mapping and the reasons for it.
package optimizely

import (
	"net/http"
	"strings"

	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// Endpoints returns the one route of the protocol. The native API has the same
// path: bodies tell the two apart.
func Endpoints() []protocol.Endpoint {
	return []protocol.Endpoint{{
		Name:    "optimizely_events",
		Source:  "optimizely",
		Methods: []string{http.MethodPost},
		Path:    "/v1/events",
		Scope:   "exposures",
		Takes:   takes,
		CORS:    []string{"authorization", "content-encoding", "content-type", "x-api-key"},
		Key:     protocol.WriteKey,
		BodyKey: func(req *protocol.Request) string { return wire.Member(req.Body, "account_id") },
		// SDKs that send again do so on anything but success, whatever was wrong.
		AcceptRejected: true,
		Decode:         decode,
		Places:         map[string]string{"unit_id": "visitor_id"},
		Accept:         accept,
		Refuse:         protocol.Refuse,
	}}
}

// accept: SDKs look at the status only.
func accept(protocol.Result) protocol.Answer {
	return protocol.Answer{Status: http.StatusAccepted}
}

// takes reports whether a body is Optimizely's: an object with visitors, of an
// account or from a client with a name. A native body is not read to its end for
// that: what may come before its events is short.
func takes(req *protocol.Request) bool {
	if strings.HasSuffix(req.MediaType, "protobuf") || strings.HasSuffix(req.MediaType, "ndjson") {
		return false
	}
	var r jsonscan.Reader
	r.Reset(req.Body, schema.MaxDepth)
	if r.Kind() != jsonscan.Object || !r.Object() {
		return false
	}
	visitors, sender := false, false
	for r.More() {
		switch r.Key() {
		case "events": // the native envelope's
			return false
		case "visitors":
			visitors = true
		case "account_id", "client_name":
			sender = true
		}
		if visitors && sender {
			return true
		}
		r.Skip()
	}
	return false
}
