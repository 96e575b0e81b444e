// Package otlp takes log records by OTLP/HTTP, in JSON and protobuf, as any
// OpenTelemetry SDK and the OpenTelemetry collector export them. Evaluations of
// feature flags are exposures. docs/sdk/otlp.md has the mapping and the reasons
// for it.
package otlp

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"sluice/internal/protocol"
	"sluice/pkg/schema"
)

const (
	source       = "otlp"
	typeJSON     = "application/json"
	typeProtobuf = "application/x-protobuf"
)

// Endpoints returns the route of the protocol.
func Endpoints() []protocol.Endpoint {
	return []protocol.Endpoint{{
		Name:           "otlp_logs",
		Source:         source,
		Methods:        []string{http.MethodPost},
		Path:           "/v1/logs",
		Scope:          "exposures",
		MediaTypes:     []string{typeJSON, typeProtobuf, "application/protobuf", "text/plain"},
		CORS:           []string{"authorization", "content-encoding", "content-type", "x-api-key"},
		Key:            key,
		AcceptRejected: true, // what OTLP calls a partial success
		Decode:         decode,
		Places:         map[string]string{"time": "timeUnixNano", "name": "eventName"},
		Accept:         accept,
		Refuse:         refuse,
	}}
}

// key finds the write key where any client may put it, and in an Authorization
// header without a scheme: exporters let people write what they like there.
func key(r *http.Request) string {
	if k := protocol.WriteKey(r); k != "" {
		return k
	}
	if v := strings.TrimSpace(r.Header.Get("Authorization")); !strings.ContainsAny(v, " \t") {
		return v
	}
	return ""
}

// The request's encoding, which the answer has as well: what Decode leaves in
// Request.Reply.
const (
	repliesJSON     = 'j'
	repliesProtobuf = 'p'
)

// decode reads an ExportLogsServiceRequest, or a bare array of log records in JSON.
func decode(req *protocol.Request, b *schema.Batch) error {
	if isProtobuf(req) {
		req.Reply = []byte{repliesProtobuf}
		return decodeProto(req, b)
	}
	req.Reply = []byte{repliesJSON}
	return decodeJSON(req, b)
}

// isProtobuf goes by the media type; without one, by the first byte.
func isProtobuf(req *protocol.Request) bool {
	if req.MediaType == "" {
		return len(req.Body) > 0 && req.Body[0] != '{' && req.Body[0] != '['
	}
	return strings.Contains(req.MediaType, "protobuf")
}

// agent is the SDK by its User-Agent, where it is one of OpenTelemetry's exporters:
// OTel-OTLP-Exporter-Python/1.45.2. Those of browsers tell about a person.
func agent(h http.Header) string {
	ua, _, _ := strings.Cut(h.Get("User-Agent"), " ")
	if !strings.HasPrefix(ua, "OTel-") {
		return ""
	}
	return ua
}

// accept writes an ExportLogsServiceResponse: empty, or with how many records were
// rejected, which no exporter sends again.
func accept(res protocol.Result) protocol.Answer {
	message := ""
	if n := len(res.Rejected); n > 0 {
		r := &res.Rejected[0]
		message = "rejected and kept as dead letters; the first one: " + string(r.Code)
		if r.Field != "" {
			message += " " + r.Field
		}
		message += ": " + r.Message
	}
	if len(res.Reply) == 1 && res.Reply[0] == repliesProtobuf {
		return protocol.Answer{Status: http.StatusOK, ContentType: typeProtobuf, Body: protoResponse(len(res.Rejected), message)}
	}
	body := []byte("{}")
	if message != "" {
		body = []byte(`{"partialSuccess":{"rejectedLogRecords":"` + strconv.Itoa(len(res.Rejected)) + `","errorMessage":`)
		body = append(schema.AppendQuoted(body, message), "}}"...)
	}
	return protocol.Answer{Status: http.StatusOK, ContentType: typeJSON, Body: body}
}

func protoResponse(rejected int, message string) []byte {
	if message == "" {
		return nil
	}
	var partial []byte
	partial = protowire.AppendTag(partial, 1, protowire.VarintType)
	partial = protowire.AppendVarint(partial, uint64(rejected))
	partial = protowire.AppendTag(partial, 2, protowire.BytesType)
	partial = protowire.AppendString(partial, message)
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), partial)
}

// refuse makes an exporter do with the batch what the problem asks for: it sends
// again at 429, 502, 503 and 504, after Retry-After, and at nothing else. The body
// is a google.rpc.Status; in JSON, since the request is not known here, and
// exporters that cannot read it only log it.
func refuse(p protocol.Problem) protocol.Answer {
	if protocol.Retryable(p.Code) && p.Status != http.StatusTooManyRequests {
		p.Status = http.StatusServiceUnavailable
	}
	if p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests {
		p.RetryAfter = max(p.RetryAfter, time.Second)
	}
	body, err := json.Marshal(struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{rpcCode(p.Status), p.Code + ": " + p.Detail})
	if err != nil { // texts and numbers: there is nothing to fail on
		return protocol.Refuse(p)
	}
	return protocol.Answer{Status: p.Status, ContentType: typeJSON, Header: protocol.RetryAfter(p), Body: append(body, '\n')}
}

// rpcCode is the code of gRPC for an HTTP status.
func rpcCode(status int) int {
	switch status {
	case http.StatusUnauthorized:
		return 16
	case http.StatusForbidden:
		return 7
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return 12
	case http.StatusTooManyRequests, http.StatusRequestEntityTooLarge:
		return 8
	case http.StatusServiceUnavailable:
		return 14
	}
	if status >= http.StatusInternalServerError {
		return 13
	}
	return 3
}
