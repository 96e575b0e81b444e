package protocol

import (
	"net/http"
	"time"
)

// The codes of problems: part of the public contract, documented in
// docs/errors.md. A status may come with several codes; a code always comes with
// the same status.
const (
	CodeMalformed         = "malformed"
	CodeTooDeep           = "too_deep"
	CodeEmpty             = "empty"
	CodeBadEncoding       = "bad_encoding"
	CodeIncompleteBody    = "incomplete_body"
	CodeBadRequest        = "bad_request"
	CodeBadIdempotencyKey = "bad_idempotency_key"
	CodeNoKey             = "no_key"
	CodeUnknownKey        = "unknown_key"
	CodeKeyDisabled       = "key_disabled"
	CodeScopeMissing      = "scope_missing"
	CodeNotFound          = "not_found"
	CodeMethodNotAllowed  = "method_not_allowed"
	CodeBodyTimeout       = "body_timeout"
	CodeBodyTooLarge      = "body_too_large"
	CodeTooManyEvents     = "too_many_events"
	CodeURLTooLong        = "url_too_long"
	CodeUnsupportedType   = "unsupported_media_type"
	CodeUnsupportedCoding = "unsupported_encoding"
	CodeAllRejected       = "all_rejected"
	CodeKeyReused         = "key_reused"
	CodeRateLimited       = "rate_limited"
	CodeHeadersTooLarge   = "headers_too_large"
	CodeInternal          = "internal"
	CodeUnsupportedTE     = "unsupported_transfer_encoding"
	CodeOverloaded        = "overloaded"
	CodeNotDurable        = "not_durable"
)

// CodeInfo documents one code.
type CodeInfo struct {
	Code   string
	Status int
	// Retry tells whether the same request may succeed later.
	Retry bool
	// Meaning and Do are what docs/errors.md says.
	Meaning, Do string
}

// Codes lists every code in the order of the documentation.
func Codes() []CodeInfo {
	return []CodeInfo{
		{CodeMalformed, http.StatusBadRequest, false, "The body as a whole cannot be read: broken JSON, something after it, or not an array or an object with `events`.", "Correct the sender. Nothing of the request was kept."},
		{CodeTooDeep, http.StatusBadRequest, false, "The body is nested more than 32 levels deep.", "Flatten the body."},
		{CodeEmpty, http.StatusBadRequest, false, "There is no event in the body.", "Do not send empty batches."},
		{CodeBadEncoding, http.StatusBadRequest, false, "The body is not what Content-Encoding says: truncated, damaged, or followed by something else.", "Compress the whole body once; send it again if it may have been damaged on the way."},
		{CodeIncompleteBody, http.StatusBadRequest, true, "The connection ended, or the chunked framing broke, before the whole body had arrived.", "Send the whole request again."},
		{CodeBadRequest, http.StatusBadRequest, false, "Not HTTP as RFC 9112 has it, or ambiguous about where the body ends (both Content-Length and Transfer-Encoding, several Content-Lengths, or Transfer-Encoding in HTTP/1.0). The connection is closed.", "Correct the client or the proxy in front."},
		{CodeBadIdempotencyKey, http.StatusBadRequest, false, "Idempotency-Key is empty, longer than 256 characters, not visible ASCII, or came twice.", "Use, say, a UUID."},
		{CodeNoKey, http.StatusUnauthorized, false, "The request has no write key.", "Send `Authorization: Bearer <write key>`, `X-API-Key`, or `?k=`."},
		{CodeUnknownKey, http.StatusUnauthorized, false, "No such write key.", "Check the key with whoever runs the collector."},
		{CodeKeyDisabled, http.StatusForbidden, false, "The write key is disabled.", "Ask for a new key."},
		{CodeScopeMissing, http.StatusForbidden, false, "The write key is not allowed this endpoint.", "Use a key with the scope, or the endpoint the key is for."},
		{CodeNotFound, http.StatusNotFound, false, "No such path.", "Check the URL; a trailing slash counts."},
		{CodeMethodNotAllowed, http.StatusMethodNotAllowed, false, "The path does not take this method; `Allow` lists those it takes.", "Use one of them."},
		{CodeBodyTimeout, http.StatusRequestTimeout, true, "The body did not arrive in time, or slower than 2 KiB a second.", "Send it again, with the same Idempotency-Key; send smaller batches on slow links."},
		{CodeBodyTooLarge, http.StatusRequestEntityTooLarge, false, "The body is too large: as sent, after decompression, or as what its events take up in memory.", "Send fewer events a request."},
		{CodeTooManyEvents, http.StatusRequestEntityTooLarge, false, "The batch has too many events.", "Send fewer events a request."},
		{CodeURLTooLong, http.StatusRequestURITooLong, false, "The URL is over 8 KiB.", "Put data into the body."},
		{CodeUnsupportedType, http.StatusUnsupportedMediaType, false, "The Content-Type is not one this endpoint reads.", "Send `application/json`, `application/x-ndjson` or `application/x-protobuf`."},
		{CodeUnsupportedCoding, http.StatusUnsupportedMediaType, false, "The Content-Encoding is unknown, or a list of several.", "Send `gzip`, `zstd`, `br`, `deflate`, or none."},
		{CodeAllRejected, http.StatusUnprocessableEntity, false, "Every event was rejected; `rejected` says why. They are kept among the dead letters where possible.", "Correct the events."},
		{CodeKeyReused, http.StatusUnprocessableEntity, false, "The Idempotency-Key was used before with other events.", "Use a new key for each batch, and the same key only to send the same batch again."},
		{CodeRateLimited, http.StatusTooManyRequests, true, "The write key is over its rate.", "Wait as long as `Retry-After` says, then send the same request again."},
		{CodeHeadersTooLarge, http.StatusRequestHeaderFieldsTooLarge, false, "The headers are over 16 KiB (cookies not counted).", "Send fewer headers."},
		{CodeInternal, http.StatusInternalServerError, true, "A fault in the collector; its log has it. It is not known whether the batch was kept.", "Send it again with the same Idempotency-Key, and report it."},
		{CodeUnsupportedTE, http.StatusNotImplemented, false, "The Transfer-Encoding is not `chunked`.", "Send a Content-Length, or `chunked`."},
		{CodeOverloaded, http.StatusServiceUnavailable, true, "The collector has too much in hand.", "Wait as long as `Retry-After` says, then send the same request again, or use another collector."},
		{CodeNotDurable, http.StatusServiceUnavailable, true, "There is nowhere durable to put the batch now. Nothing is claimed; a copy may still have been kept, which the same Idempotency-Key makes harmless.", "Wait as long as `Retry-After` says, then send the same request with the same Idempotency-Key."},
	}
}

// Retryable reports whether a request that was refused with this code may succeed
// later as it is.
func Retryable(code string) bool {
	for _, c := range Codes() {
		if c.Code == code {
			return c.Retry
		}
	}
	return false
}

// statusOf is the status of a code; an unknown one is our fault.
func statusOf(code string) int {
	for _, c := range Codes() {
		if c.Code == code {
			return c.Status
		}
	}
	return http.StatusInternalServerError
}

// NewProblem makes a Problem with the status that belongs to the code.
func NewProblem(code, detail string) *Problem {
	return &Problem{Status: statusOf(code), Code: code, Detail: detail}
}

// After returns the problem with a time to come back after.
func (p *Problem) After(d time.Duration) *Problem {
	p.RetryAfter = d
	return p
}

// Because returns the problem with a cause for the log.
func (p *Problem) Because(err error) *Problem {
	p.Err = err
	return p
}
