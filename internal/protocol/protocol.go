// Package protocol is the seam between the collector's HTTP side and the wire
// formats it understands. A protocol is a folder beside this file with one
// Endpoint a route; everything that is the same for all of them (limits,
// authentication, decompression, identity, durability) is done around it, and
// no protocol can leave it out.
package protocol

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// Request is what a protocol sees of an HTTP request: the decompressed body and
// what it needs of the rest. Body belongs to the collector, which uses it again
// after the answer: what a protocol takes from it may alias it, but only as
// part of the schema.Batch it fills.
type Request struct {
	Header    http.Header
	Query     url.Values
	Path      string
	MediaType string // lower case, without parameters; empty where none was sent
	Body      []byte
	MaxEvents int // more events than this: schema.BodyError with code too_many_events

	// Reply is for Decode to leave what Accept needs of the body, such as an answer
	// that names every event. It must not alias Body.
	Reply []byte
}

// Answer is a complete HTTP answer, ready to write.
type Answer struct {
	Status      int
	ContentType string
	Header      map[string]string // more headers; may be nil
	Body        []byte
}

// Result is what became of a batch that is safe. Durable is empty where there
// was nothing to keep (all of it was noise the protocol dropped).
type Result struct {
	BatchID   batch.ID
	Accepted  int
	Rejected  []schema.Rejected // without Bytes
	Durable   batch.Durable
	Duplicate bool   // a copy of what was acknowledged before
	BodyBytes int    // size of the decompressed body; some SDKs want it back
	Reply     []byte // what Decode left in Request.Reply
}

// Problem is why a request was refused: an RFC 9457 problem with a stable code.
type Problem struct {
	Status     int
	Code       string        // one of Codes
	Detail     string        // for a person; never contains the sender's bytes unescaped
	RetryAfter time.Duration // zero: no Retry-After header
	Err        error         // for the log, never for the answer

	// Of a batch whose every event was rejected.
	BatchID  batch.ID
	Rejected []schema.Rejected // without Bytes
}

// Error makes a Problem usable as an error.
func (p *Problem) Error() string { return p.Code + ": " + p.Detail }

// Unwrap returns the cause.
func (p *Problem) Unwrap() error { return p.Err }

// Endpoint is one route of one protocol. All functions are called concurrently.
type Endpoint struct {
	Name    string   // label in metrics, e.g. "native_exposures"
	Source  string   // the protocol, as stored in the source column
	Methods []string // e.g. POST
	// Path is exact, e.g. /v1/exposures, or ends in /*, which is one more segment,
	// whatever it is. The exact path goes first.
	Path  string
	Scope string // what a write key must be allowed: "exposures", "events"; empty: nothing in particular
	// Takes reports whether a body is this protocol's, where another has the same
	// path. Exactly one of the endpoints of a path and method has none: it takes
	// what the others do not, and what can be said before the body is read is said
	// its way. It is called with a decompressed body that may be anything.
	Takes func(req *Request) bool

	// MediaTypes are those accepted, in lower case and without parameters; empty:
	// any. A request without a Content-Type is always accepted.
	MediaTypes []string
	// MagicGzip is for SDKs that send gzip without saying so: a body without a
	// Content-Encoding that starts like gzip is decompressed.
	MagicGzip bool
	// CORS lists the request headers a browser SDK sends, beyond those every page
	// may send. Nil: the endpoint is not for other origins' pages.
	CORS []string

	// Key finds the write key; "" means none. Nil: WriteKey.
	Key func(r *http.Request) string
	// BodyKey finds the write key in the decompressed body, which may be anything.
	// It is asked where Key found none; then nobody is told that a key is missing
	// before the body was read. Nil: it is never there. The result must not alias
	// the body.
	BodyKey func(req *Request) string
	// AcceptRejected has a batch whose every event was rejected answered by Accept,
	// once the events are safe among the dead letters, for SDKs that an error makes
	// stop, or send the same again.
	AcceptRejected bool
	// Decode fills the batch, which comes empty: events, rejected events, sdk and
	// sent-at. It returns an error only for a body that is broken as a whole, a
	// *schema.BodyError or a *Problem; one bad event goes to b.Rejected. A batch
	// that is left with Count 0 is acknowledged without being stored.
	Decode func(req *Request, b *schema.Batch) error
	// Places says where in an event, by the names of the members on the way and dots
	// between them, this protocol has what a dead letter may be mended with before it
	// is replayed: of the native fields those it names. Nil: nothing can be.
	Places map[string]string
	// IdempotencyKey finds the client's own name for the batch; "" means none.
	// Nil: the protocol has no such thing. It is called after Decode.
	IdempotencyKey func(req *Request, b *schema.Batch) (string, *Problem)
	// Accept writes the answer this SDK takes for success. Nil: Accept.
	Accept func(Result) Answer
	// Refuse writes an error so that this SDK does the right thing with the batch
	// (send again, or not). Nil: Refuse.
	Refuse func(Problem) Answer
}

// WriteKey finds the write key where any client may put it: "Authorization:
// Bearer", X-API-Key, or ?k= for what cannot set headers (sendBeacon). The first
// one present counts.
func WriteKey(r *http.Request) string {
	if v := r.Header.Get("Authorization"); v != "" {
		scheme, key, ok := strings.Cut(v, " ")
		if ok && strings.EqualFold(scheme, "Bearer") {
			return strings.TrimSpace(key)
		}
	}
	if v := r.Header.Get("X-Api-Key"); v != "" {
		return v
	}
	if r.URL.RawQuery == "" {
		return ""
	}
	return r.URL.Query().Get("k")
}

// MaxIdempotencyKey is the longest idempotency key, in bytes.
const MaxIdempotencyKey = 256

// HeaderIdempotencyKey reads the Idempotency-Key header: absent, or once, with
// 1 to MaxIdempotencyKey visible ASCII characters.
func HeaderIdempotencyKey(h http.Header) (string, *Problem) {
	vs := h["Idempotency-Key"]
	switch {
	case len(vs) == 0:
		return "", nil
	case len(vs) > 1:
		return "", NewProblem(CodeBadIdempotencyKey, "the Idempotency-Key header came more than once")
	}
	if !ValidIdempotencyKey(vs[0]) {
		return "", NewProblem(CodeBadIdempotencyKey, "Idempotency-Key must have 1 to 256 visible ASCII characters (! to ~)")
	}
	return vs[0], nil
}

// ValidIdempotencyKey reports whether s has 1 to MaxIdempotencyKey visible ASCII
// characters.
func ValidIdempotencyKey(s string) bool {
	if len(s) == 0 || len(s) > MaxIdempotencyKey {
		return false
	}
	for i := range len(s) {
		if s[i] < '!' || s[i] > '~' {
			return false
		}
	}
	return true
}
