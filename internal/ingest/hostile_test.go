package ingest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/schema"
)

// hostile is one input and what has to come of it.
type hostile struct {
	name   string
	edit   func(*Options)
	send   func(e *env) answer
	status int    // 0: the connection is closed without an answer
	code   string // of a problem, or of the one rejected event
	stored int    // events
}

func body(b string, headers ...string) func(e *env) answer {
	return func(e *env) answer { return e.post("/v1/exposures", []byte(b), headers...) }
}

func encoded(coding string, b []byte) func(e *env) answer {
	return func(e *env) answer { return e.post("/v1/exposures", b, "Content-Encoding", coding) }
}

func raw(parts ...string) func(e *env) answer {
	return func(e *env) answer { return e.raw(parts...) }
}

// hostileInputs goes from the outside in: bombs, lengths, framing, headers,
// bodies, events, keys.
func hostileInputs(t *testing.T) []hostile {
	one := []byte("[" + good + "]")
	truncated := gzipOf(exposures(50, "x"))
	truncated = truncated[:len(truncated)-20]
	badCRC := gzipOf(one)
	badCRC[len(badCRC)-6] ^= 0xff
	half := func(b []byte) (string, string) { return string(b[:len(b)/2]), string(b[len(b)/2:]) }
	firstHalf, secondHalf := half(exposures(4, "members"))
	long := strings.Repeat("x", 1<<20)

	return []hostile{
		// Bombs.
		{name: "zstd bomb, 10 GB in 329 KB", send: encoded("zstd", zstdBomb(10<<30)), status: 413, code: "body_too_large"},
		{name: "zstd declares terabytes", send: encoded("zstd", zstdDeclares(1<<42)), status: 413, code: "body_too_large"},
		{name: "zstd declares a little too much", send: encoded("zstd", zstdDeclares(11<<20)), status: 413, code: "body_too_large"},
		{name: "zstd declares a huge window", send: encoded("zstd", []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3, 1<<3 | 1, 0, 0, ' '}), status: 413, code: "body_too_large"},
		{name: "zstd bomb behind a good frame", send: encoded("zstd", append(zstdOf(one), zstdBomb(1<<30)...)), status: 413, code: "body_too_large"},
		{name: "gzip bomb", send: encoded("gzip", gzipBomb(t, 16<<20)), status: 413, code: "body_too_large"},
		{name: "gzip bomb of members", send: encoded("gzip", bytes.Repeat(gzipBomb(t, 1<<20), 30)), status: 413, code: "body_too_large"},
		{name: "brotli bomb", send: encoded("br", brotliBomb(t, 16<<20)), status: 413, code: "body_too_large"},
		{name: "deflate bomb", send: encoded("deflate", zlibBomb(t, 16<<20)), status: 413, code: "body_too_large"},
		{name: "attributes of two bytes, a body of 10 MB", send: body(attributeBomb(10<<20 - 200)), status: 413, code: "body_too_large"},
		// Members.
		{name: "two gzip members", send: encoded("gzip", append(gzipOf([]byte(firstHalf)), gzipOf([]byte(secondHalf))...)), status: 202, stored: 4},
		{name: "two zstd frames and one to skip", send: encoded("zstd", bytes.Join([][]byte{zstdOf([]byte("[" + good)),
			{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'}, zstdOf([]byte("," + good + "]"))}, nil)), status: 202, stored: 2},
		// Damage.
		{name: "truncated gzip", send: encoded("gzip", truncated), status: 400, code: "bad_encoding"},
		{name: "bad CRC", send: encoded("gzip", badCRC), status: 400, code: "bad_encoding"},
		{name: "gzip that is not", send: encoded("gzip", one), status: 400, code: "bad_encoding"},
		{name: "zstd that is not", send: encoded("zstd", one), status: 400, code: "bad_encoding"},
		{name: "truncated zstd", send: encoded("zstd", zstdOf(exposures(50, "x"))[:200]), status: 400, code: "bad_encoding"},
		{name: "brotli that is not", send: encoded("br", []byte{0x91, 0x13, 0x37}), status: 400, code: "bad_encoding"},
		{name: "brotli with a large window", send: encoded("br", []byte{0x11, 0x3f, 0, 0}), status: 400, code: "bad_encoding"},
		{name: "truncated brotli", send: encoded("br", brotliOf(exposures(50, "x"))[:100]), status: 400, code: "bad_encoding"},
		{name: "something after brotli", send: encoded("br", append(brotliOf(one), '!')), status: 400, code: "bad_encoding"},
		{name: "something after deflate", send: encoded("deflate", append(zlibOf(one), '!')), status: 400, code: "bad_encoding"},
		{name: "gzip without its header", send: body(string(gzipOf(one))), status: 400, code: "malformed"},
		// Codings.
		{name: "gzip, gzip", send: encoded("gzip, gzip", gzipOf(gzipOf(one))), status: 415, code: "unsupported_encoding"},
		{name: "two Content-Encoding headers", send: raw(rawPost(string(gzipOf(one)), "Content-Encoding: gzip", "Content-Encoding: gzip")), status: 415, code: "unsupported_encoding"},
		{name: "an unknown coding", send: encoded("snappy", one), status: 415, code: "unsupported_encoding"},
		// Length.
		{name: "Content-Length over the cap, nothing sent", send: raw(rawHead("POST", "/v1/exposures", "Content-Length: 10485761")), status: 413, code: "body_too_large"},
		{name: "Content-Length of exabytes", send: raw(rawHead("POST", "/v1/exposures", "Content-Length: 9223372036854775807")), status: 413, code: "body_too_large"},
		{name: "endless chunks", send: func(e *env) answer {
			chunk := fmt.Sprintf("%x\r\n%s\r\n", len(long), long)
			return e.raw(append([]string{rawHead("POST", "/v1/exposures", "Transfer-Encoding: chunked")}, slicesRepeat(chunk, 64)...)...)
		}, status: 413, code: "body_too_large"},
		{name: "Content-Length longer than the body", edit: quick, send: raw(rawHead("POST", "/v1/exposures", "Content-Length: 5000"), good), status: 408, code: "body_timeout"},
		{name: "a byte at a time", edit: quick, send: dribble, status: 408, code: "body_timeout"},
		{name: "a hang-up in the middle of the body", send: func(e *env) answer {
			c := e.dial()
			_, err := io.WriteString(c, rawHead("POST", "/v1/exposures", "Content-Length: 5000")+good)
			require.NoError(e.t, err)
			require.NoError(e.t, c.(*net.TCPConn).CloseWrite())
			return readAnswer(c)
		}, status: 400, code: "incomplete_body"},
		{name: "a reset in the middle of the body", send: func(e *env) answer {
			c := e.dial()
			_, err := io.WriteString(c, rawHead("POST", "/v1/exposures", "Content-Length: 5000")+good)
			require.NoError(e.t, err)
			require.NoError(e.t, c.(*net.TCPConn).SetLinger(0))
			require.NoError(e.t, c.Close())
			return answer{}
		}},
		// Framing.
		{name: "a bare LF in a chunk size", send: raw(rawHead("POST", "/v1/exposures", "Transfer-Encoding: chunked"), fmt.Sprintf("%x\n%s\r\n0\r\n\r\n", len(one), one)), status: 400, code: "incomplete_body"},
		{name: "a flood of chunk extensions", send: func(e *env) answer {
			chunk := "1;" + strings.Repeat("x", 3000) + "\r\n \r\n"
			return e.raw(append([]string{rawHead("POST", "/v1/exposures", "Transfer-Encoding: chunked")}, slicesRepeat(chunk, 200)...)...)
		}, status: 400, code: "incomplete_body"},
		{name: "a chunk size that is none", send: raw(rawHead("POST", "/v1/exposures", "Transfer-Encoding: chunked"), "zz\r\n"), status: 400, code: "incomplete_body"},
		{name: "Content-Length and Transfer-Encoding", send: raw(rawHead("POST", "/v1/exposures", "Content-Length: 4", "Transfer-Encoding: chunked"), "0\r\n\r\n"), status: 400, code: "bad_request"},
		{name: "Transfer-Encoding and Content-Length", send: raw(rawHead("POST", "/v1/exposures", "transfer-encoding: chunked", "CONTENT-LENGTH: 4"), "0\r\n\r\n"), status: 400, code: "bad_request"},
		{name: "two Content-Lengths", send: raw(rawHead("POST", "/v1/exposures", "Content-Length: 4", "Content-Length: 5"), "[]  "), status: 400, code: "bad_request"},
		{name: "Transfer-Encoding in HTTP/1.0", send: raw("POST /v1/exposures HTTP/1.0\r\nAuthorization: Bearer "+goodKey+
			"\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(one), one)), status: 400, code: "bad_request"},
		{name: "another Transfer-Encoding", send: raw(rawHead("POST", "/v1/exposures", "Transfer-Encoding: gzip")), status: 501, code: "unsupported_transfer_encoding"},
		{name: "chunked twice", send: raw(rawHead("POST", "/v1/exposures", "Transfer-Encoding: chunked, chunked")), status: 501, code: "unsupported_transfer_encoding"},
		{name: "an upgrade to h2c", send: raw(rawHead("POST", "/v1/exposures", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__", "Content-Length: 2") + "[]"), status: 400, code: "empty"},
		{name: "HTTP/2 at once", send: raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), status: 404, code: "not_found"},
		{name: "not HTTP", send: raw("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"), status: 400, code: "bad_request"},
		{name: "no Host", send: raw("POST /v1/exposures HTTP/1.1\r\n\r\n"), status: 400, code: "bad_request"},
		// Headers and URL.
		{name: "17 KB of headers", send: raw(rawPost(string(one), "X-Long: "+strings.Repeat("x", 17<<10))), status: 431, code: "headers_too_large"},
		{name: "a megabyte of headers", send: raw(rawHead("POST", "/v1/exposures", "X-Long: "+long)), status: 431, code: "headers_too_large"},
		{name: "thousands of headers", send: raw(rawHead("POST", "/v1/exposures", slicesRepeat("X-Many: 1", 20000)...)), status: 431, code: "headers_too_large"},
		{name: "thousands of cookies", send: raw(rawPost(string(one), slicesRepeat("Cookie: a=b; c=d", 2500)...)), status: 202, stored: 1},
		{name: "a long URL", send: raw(rawHead("POST", "/v1/exposures?x="+strings.Repeat("x", 9<<10), "Content-Length: 0")), status: 414, code: "url_too_long"},
		{name: "a huge URL", send: raw(rawHead("POST", "/v1/exposures?x="+long)), status: 414, code: "url_too_long"},
		{name: "OPTIONS *", send: raw("OPTIONS * HTTP/1.1\r\nHost: sluice\r\n\r\n"), status: 404, code: "not_found"},
		{name: "a trailing slash", send: func(e *env) answer { return e.post("/v1/exposures/", one) }, status: 404, code: "not_found"},
		{name: "two slashes", send: raw(strings.Replace(rawPost(string(one)), "/v1/", "//v1/", 1)), status: 202, stored: 1},
		{name: "two slashes in the middle", send: raw(strings.Replace(rawPost(string(one)), "/v1/", "/v1//", 1)), status: 404, code: "not_found"},
		{name: "dots in the path", send: raw(strings.Replace(rawPost(string(one)), "/v1/", "/v1/../v1/", 1)), status: 404, code: "not_found"},
		{name: "the wrong method", send: func(e *env) answer { return e.do(http.MethodGet, "/v1/exposures", nil) }, status: 405, code: "method_not_allowed"},
		{name: "the wrong Content-Type", send: body(string(one), "Content-Type", "application/xml"), status: 415, code: "unsupported_media_type"},
		{name: "two Content-Types", send: raw(rawPost(string(one), "Content-Type: application/json", "Content-Type: application/json")), status: 415, code: "unsupported_media_type"},
		{name: "a Content-Type with parameters", send: body(string(one), "Content-Type", "Application/JSON; charset=UTF-8"), status: 202, stored: 1},
		// Bodies.
		{name: "ten thousand brackets", send: body(strings.Repeat("[", 10_000)), status: 400, code: "too_deep"},
		{name: "ten thousand objects", send: body(strings.Repeat(`{"events":`, 10_000)), status: 400, code: "malformed"},
		{name: "depth within an event", send: body(`[{"experiment":"e","variant":"v","unit_id":"u","x":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}]`), status: 400, code: "too_deep"},
		{name: "an empty body", send: body(""), status: 400, code: "empty"},
		{name: "an empty body, gzipped", send: encoded("gzip", nil), status: 400, code: "empty"},
		{name: "null", send: body("null"), status: 400, code: "empty"},
		{name: "{}", send: body("{}"), status: 400, code: "empty"},
		{name: "[]", send: body("[]"), status: 400, code: "empty"},
		{name: "two values", send: body("[" + good + "][" + good + "]"), status: 400, code: "malformed"},
		{name: "garbage at the end", send: body("[" + good + "] x"), status: 400, code: "malformed"},
		{name: "a number", send: body("17"), status: 400, code: "malformed"},
		{name: "an array of numbers", send: body("[1,2,3]"), status: 422, code: "invalid_type"},
		{name: "events of the wrong type", send: body(`{"events":{"a":1}}`), status: 400, code: "malformed"},
		{name: "a protobuf that is none", send: body("\xff\xff\xff", "Content-Type", "application/x-protobuf"), status: 400, code: "malformed"},
		{name: "a hundred thousand events", send: body("[" + strings.Repeat("{},", 99_999) + "{}]"), status: 413, code: "too_many_events"},
		// Events.
		{name: "a field twice", send: body(`[{"experiment":"a","experiment":"b","variant":"v","unit_id":"u"}]`), status: 422, code: "duplicate_field"},
		{name: "a field in another case", send: body(`[{"Experiment":"a","variant":"v","unit_id":"u"}]`), status: 422, code: "misspelled_field"},
		{name: "an attribute twice", send: body(`[{"experiment":"e","variant":"v","unit_id":"u","attributes":{"a":1,"a":2}}]`), status: 202, stored: 1},
		{name: "invalid UTF-8", send: body("[{\"experiment\":\"\xff\",\"variant\":\"v\",\"unit_id\":\"u\"}]"), status: 422, code: "invalid_string"},
		{name: "a lone surrogate", send: body(`[{"experiment":"\ud800","variant":"v","unit_id":"u"}]`), status: 422, code: "invalid_string"},
		{name: "NUL", send: body(`[{"experiment":"a\u0000b","variant":"v","unit_id":"u"}]`), status: 422, code: "invalid_string"},
		{name: "1e999", send: body(`[{"kind":"event","name":"n","unit_id":"u","value":1e999}]`), status: 422, code: "invalid_number"},
		{name: "NaN", send: body(`[{"kind":"event","name":"n","unit_id":"u","value":NaN}]`), status: 422, code: "invalid_number"},
		{name: "an integer beyond 64 bits", send: body(`[{"kind":"event","name":"n","unit_id":"u","attributes":{"n":92233720368547758080}}]`), status: 422, code: "invalid_number"},
		{name: "a number of 5 MB", send: body(`[{"kind":"event","name":"n","unit_id":"u","value":` + strings.Repeat("1", 5<<20) + `}]`), status: 422, code: "invalid_number"},
		{name: "a number of 11 MB", send: body(`[{"kind":"event","name":"n","unit_id":"u","value":` + strings.Repeat("1", 11<<20) + `}]`), status: 413, code: "body_too_large"},
		{name: "an event over the record limit", send: body("[" + good + "," + oversized() + "]"), status: 202, code: "too_large", stored: 1},
		{name: "one bad event among good ones", send: body("[" + good + `,{"experiment":"x"},` + good + "]"), status: 202, code: "missing_field", stored: 2},
		{name: "absurd times", send: body(`[{"experiment":"e","variant":"v","unit_id":"u","time":"0001-01-01T00:00:00Z"},{"experiment":"e","variant":"v","unit_id":"u","time":"9999-12-31T23:59:59Z"},` +
			`{"experiment":"e","variant":"v","unit_id":"u","time":1},{"experiment":"e","variant":"v","unit_id":"u","time":1e300}]`), status: 202, stored: 4},
		{name: "line breaks and escapes", send: body(`[{"experiment":"a\r\nSet-Cookie: x\u001b[2J","variant":"<script>","unit_id":"u"}]`), status: 202, stored: 1},
		// Idempotency keys.
		{name: "an empty idempotency key", send: raw(rawPost(string(one), "Idempotency-Key:")), status: 400, code: "bad_idempotency_key"},
		{name: "an idempotency key of 257 bytes", send: body(string(one), "Idempotency-Key", strings.Repeat("k", 257)), status: 400, code: "bad_idempotency_key"},
		{name: "a control character in the idempotency key", send: raw(rawPost(string(one), "Idempotency-Key: a\tb")), status: 400, code: "bad_idempotency_key"},
		{name: "two idempotency keys", send: raw(rawPost(string(one), "Idempotency-Key: a", "Idempotency-Key: a")), status: 400, code: "bad_idempotency_key"},
		// Write keys.
		{name: "no write key", send: body(string(one), "Authorization", ""), status: 401, code: "no_key"},
		{name: "a wrong write key", send: body(string(one), "Authorization", "Bearer wk_wrong"), status: 401, code: "unknown_key"},
		{name: "a prefix of a write key", send: body(string(one), "Authorization", "Bearer "+goodKey[:len(goodKey)-1]), status: 401, code: "unknown_key"},
		{name: "a write key as Basic", send: body(string(one), "Authorization", "Basic "+goodKey), status: 401, code: "no_key"},
		{name: "a disabled write key", send: body(string(one), "Authorization", "Bearer wk_disabled"), status: 403, code: "key_disabled"},
		{name: "a write key without the scope", send: body(string(one), "Authorization", "Bearer wk_events_only"), status: 403, code: "scope_missing"},
		{name: "an unknown key and a body that never comes", send: raw("POST /v1/exposures HTTP/1.1\r\nHost: sluice\r\nContent-Length: 100\r\n\r\n"), status: 401, code: "no_key"},
		// Peers.
		{name: "a spoofed X-Forwarded-For", send: body(string(one), "X-Forwarded-For", "203.0.113.9"), status: 202, stored: 1},
		// Nowhere to go.
		{name: "nothing durable in reach", edit: func(o *Options) { o.Publisher.(*publisher).hook = refuseAll }, send: body(string(one)), status: 503, code: "not_durable"},
		{name: "the ledger may not take anything down", edit: func(o *Options) { o.Ledger.(*clock).ready = errDown }, send: body(string(one)), status: 503, code: "not_durable"},
		{name: "the ledger has just ended", edit: func(o *Options) { o.Ledger.(*clock).shut = true }, send: body(string(one)), status: 503, code: "not_durable"},
		{name: "known to be nothing durable in reach", edit: func(o *Options) { o.Publisher.(*publisher).ready = errDown }, send: body(string(one)), status: 503, code: "not_durable"},
	}
}

func slicesRepeat(s string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = s
	}
	return out
}

func oversized() string {
	var b strings.Builder
	b.WriteString(`{"experiment":"e","variant":"v","unit_id":"u","attributes":{`)
	for i := range 20 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"k%d":"%s"`, i, strings.Repeat("v", 60<<10))
	}
	return b.String() + "}}"
}

// attributeBomb has as many attributes as fit.
func attributeBomb(size int) string {
	var b strings.Builder
	b.Grow(size)
	b.WriteByte('[')
	for b.Len() < size-4000 {
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		b.WriteString(`{"experiment":"e","variant":"v","unit_id":"u","attributes":{`)
		for i := range 250 {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `"%x":1`, i)
		}
		b.WriteString("}}")
	}
	b.WriteByte(']')
	return b.String()
}

// dribble sends a body byte by byte, until it is cut off.
func dribble(e *env) answer {
	c := e.dial()
	_, err := io.WriteString(c, rawHead("POST", "/v1/exposures", "Content-Length: 1000000"))
	require.NoError(e.t, err)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if _, err := c.Write([]byte(" ")); err != nil {
					return
				}
			}
		}
	}()
	a := readAnswer(c)
	close(stop)
	<-done
	return a
}

// TestHostileInputs sends what nobody should, over a real connection: each gets
// its status, nothing is stored that should not be, memory stays bounded, and the
// next good request is served.
func TestHostileInputs(t *testing.T) {
	schemas := documented(t)
	shared := start(t)
	for _, tt := range hostileInputs(t) {
		t.Run(tt.name, func(t *testing.T) {
			e := shared
			if tt.edit != nil {
				e = start(t, tt.edit)
			}
			e.t = t
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			a := tt.send(e)
			runtime.ReadMemStats(&after)
			// Allocated in all, by both ends: bodies of 11 MB are the largest sent.
			assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(120<<20))

			require.Equal(t, tt.status, a.status, "%s", a.body)
			stored := 0
			for _, b := range batches(t, e.pub.records()) {
				stored += len(b.Events)
			}
			assert.Equal(t, tt.stored, stored, "events stored")
			switch {
			case tt.status == 202:
				schemas.check(t, "/v1/exposures", "post", a)
				if rejected := a.accepted(t).Rejected; tt.code != "" {
					require.Len(t, rejected, 1)
					assert.Equal(t, tt.code, rejected[0].Code)
				} else {
					assert.Empty(t, rejected)
				}
			case tt.status == 422 && a.code() == protocol.CodeAllRejected:
				schemas.problem(t, a)
				var p accepted
				require.NoError(t, json.Unmarshal(a.body, &p))
				require.NotEmpty(t, p.Rejected)
				assert.Equal(t, tt.code, p.Rejected[0].Code)
			case tt.code != "":
				schemas.problem(t, a)
				assert.Equal(t, tt.code, a.code(), "%s", a.body)
			}
			if e == shared {
				e.alive()
				e.idle()
			}
		})
	}
}

// TestRejectedAreKept looks into the records: rejected events ride along.
func TestRejectedAreKept(t *testing.T) {
	e := start(t)
	bad := `{"experiment":"x","variant":"y"}`
	a := e.post("/v1/exposures", []byte("["+good+","+bad+"]"))
	require.Equal(t, 202, a.status)
	got := batches(t, e.pub.records())
	require.Len(t, got, 1)
	require.Len(t, got[0].Rejected, 1)
	assert.Equal(t, bad, string(got[0].Rejected[0].Bytes))
	assert.Equal(t, schema.CodeMissingField, got[0].Rejected[0].Code)

	a = e.post("/v1/exposures", []byte("["+bad+"]"))
	require.Equal(t, 422, a.status)
	got = batches(t, e.pub.records())
	require.Len(t, got, 1, "a batch without a good event is published for its rejected ones")
	assert.Empty(t, got[0].Events)
	assert.Equal(t, bad, string(got[0].Rejected[0].Bytes))

	e.pub.set(refuseAll)
	a = e.post("/v1/exposures", []byte("["+bad+",1]"))
	assert.Equal(t, 422, a.status, "keeping them is best effort: sending again would not help")
}

// TestTimesAreClamped: event times far off are moved to the limit and flagged.
func TestTimesAreClamped(t *testing.T) {
	e := start(t)
	a := e.post("/v1/exposures", []byte(`[{"experiment":"e","variant":"v","unit_id":"u","time":"0001-01-01T00:00:00Z"},{"experiment":"e","variant":"v","unit_id":"u","time":"9999-12-31T23:59:59Z"}]`))
	require.Equal(t, 202, a.status)
	records := e.pub.records()
	b := batches(t, records)[0]
	require.Len(t, b.Events, 2)
	assert.Equal(t, e.ledger.now.Add(-720*time.Hour).UnixMicro(), b.Events[0].Time)
	assert.Equal(t, e.ledger.now.Add(time.Hour).UnixMicro(), b.Events[1].Time)
	assert.True(t, b.Events[0].TimeAdjusted && b.Events[1].TimeAdjusted)
	assert.Equal(t, e.ledger.now, records[0].ReceivedAt)
}

// TestLabelsAreBounded: whatever comes from outside, the metrics have no more
// series than the tables allow.
func TestLabelsAreBounded(t *testing.T) {
	e := start(t)
	send := func(round string) {
		for i := range 50 {
			e.post(fmt.Sprintf("/no/%s/%d", round, i), nil)
			e.do(fmt.Sprintf("M%s%d", round, i), "/v1/exposures", nil)
			e.post("/v1/exposures", fmt.Appendf(nil, `[{"experiment":"%s%d","variant":"%d","unit_id":"u","attributes":{"%d":1}}]`, round, i, i, i),
				"Idempotency-Key", fmt.Sprintf("%s-%d", round, i))
			e.post("/v1/exposures", fmt.Appendf(nil, `[{"%s%d":1}]`, round, i))
		}
	}
	send("a")
	before := series(t, e.reg)
	send("b")
	assert.Equal(t, before, series(t, e.reg))
}

func series(t testing.TB, g prometheus.Gatherer) int {
	t.Helper()
	n := 0
	for _, f := range gather(t, g) {
		n += len(f.Metric)
	}
	return n
}

func gather(t testing.TB, g prometheus.Gatherer) map[string]*dto.MetricFamily {
	t.Helper()
	fs, err := g.Gather()
	require.NoError(t, err)
	out := map[string]*dto.MetricFamily{}
	for _, f := range fs {
		out[f.GetName()] = f
	}
	return out
}

// value is a counter's or a gauge's, with the labels given as name, value pairs.
func value(t testing.TB, g prometheus.Gatherer, name string, labels ...string) float64 {
	t.Helper()
next:
	for _, m := range gather(t, g)[name].GetMetric() {
		have := map[string]string{}
		for _, l := range m.Label {
			have[l.GetName()] = l.GetValue()
		}
		for i := 0; i < len(labels); i += 2 {
			if have[labels[i]] != labels[i+1] {
				continue next
			}
		}
		if m.Histogram != nil {
			return float64(m.Histogram.GetSampleCount())
		}
		return m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return 0
}
