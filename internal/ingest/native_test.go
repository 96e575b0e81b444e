package ingest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// FuzzNative sends anything to the native endpoints. Whatever it is, the answer
// is one of those documented, what is published can be read back, accepted and
// rejected events add up, and nothing stays charged.
func FuzzNative(f *testing.F) {
	types := []string{"application/json", "application/x-ndjson", "application/x-protobuf", "text/plain", ""}
	encodings := []string{"", "gzip", "zstd", "br", "deflate"}
	body := exposures(3, "f")
	for i, b := range [][]byte{body, gzipOf(body), zstdOf(body), brotliOf(body), zlibOf(body)} {
		f.Add(uint8(0), uint8(i), "k", "2026-01-01T00:00:00Z", b)
	}
	f.Add(uint8(1), uint8(0), "", "", []byte(good+"\n"+good+"\n{]"))
	f.Add(uint8(2), uint8(0), "x", "1767225600000", protoOf(f, body))
	f.Add(uint8(0), uint8(0), " ", "yesterday", []byte(`[{"experiment":"e","variant":"v","unit_id":"u"},{},1,"\ud800"]`))

	statuses := map[string]int{}
	for _, info := range protocol.Codes() {
		statuses[info.Code] = info.Status
	}
	o, pub, _, _ := testOptions()
	o.Limits.MaxBody, o.Limits.MaxInFlight, o.Limits.RecordMax = 256<<10, 4<<20, 16<<10
	c, err := New(o)
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, mediaType, encoding uint8, key, sentAt string, body []byte) {
		r := httptest.NewRequest("POST", "/v1/exposures", bytes.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+goodKey)
		r.Header.Set("Content-Type", types[int(mediaType)%len(types)])
		r.Header.Set("Content-Encoding", encodings[int(encoding)%len(encodings)])
		r.Header.Set("X-Sent-At", sentAt)
		if key != "" {
			r.Header.Set("Idempotency-Key", key)
		}
		w := httptest.NewRecorder()
		c.ServeHTTP(w, r)

		var got struct {
			accepted
			Code string `json:"code"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatalf("%d %q: %v", w.Code, w.Body, err)
		}
		records := pub.records()
		events, rejected := 0, 0
		for _, rec := range records {
			b := new(schema.Batch)
			if err := schema.DecodeRecord(rec.Value, b); err != nil {
				t.Fatal(err)
			}
			if len(rec.Value) > 16<<10 {
				t.Fatalf("a record of %d bytes", len(rec.Value))
			}
			events, rejected = events+len(b.Events), rejected+len(b.Rejected)
		}
		switch {
		case w.Code == 202:
			if events != got.Accepted || rejected != len(got.Rejected) || events == 0 {
				t.Fatalf("answered %s, published %d and %d", w.Body, events, rejected)
			}
		case w.Code == 200:
			if len(records) != 0 || !got.Duplicate {
				t.Fatalf("answered %s, published %d records", w.Body, len(records))
			}
		case statuses[got.Code] != w.Code || got.Code == protocol.CodeInternal || w.Code == 503:
			t.Fatalf("answered %d %s", w.Code, w.Body)
		case events != 0:
			t.Fatalf("answered %s, published %d events", w.Body, events)
		}
		if n := c.inflight.inUse(); n != 0 {
			t.Fatalf("%d bytes are still charged", n)
		}
	})
}

// nowhere is a publisher that costs nothing.
type nowhere struct{}

func (nowhere) Publish(context.Context, []batch.Record) (batch.Durable, error) {
	return batch.InKafka, nil
}
func (nowhere) Ready() error { return nil }

// sender returns what sends one request, again and again under other keys, from its
// headers to its answer, without a network and with a publisher that does nothing.
func sender(t testing.TB, body []byte, encoding string) func() {
	o, _, _, _ := testOptions()
	o.Publisher = nowhere{}
	c, err := New(o)
	require.NoError(t, err)
	r := httptest.NewRequest("POST", "/v1/exposures", nil)
	r.Header.Set("Authorization", "Bearer "+goodKey)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Content-Encoding", encoding)
	r.ContentLength = int64(len(body))
	in := bytes.NewReader(nil)
	r.Body = io.NopCloser(in)
	w := &discard{header: http.Header{}}
	i := 0
	return func() {
		in.Reset(body)
		r.Header["Idempotency-Key"] = []string{strconv.Itoa(i)}
		i++
		c.ServeHTTP(w, r)
		if w.status != 202 {
			t.Fatal(w.status)
		}
	}
}

// What a request allocates does not depend on how many events it has.
func TestAllocationsOfARequest(t *testing.T) {
	count := func(events int) float64 {
		send := sender(t, exposures(events, "allocations"), "")
		send()
		return testing.AllocsPerRun(100, send)
	}
	one := count(1)
	assert.LessOrEqual(t, one, 20.0)
	assert.InDelta(t, one, count(100), 2)
	assert.InDelta(t, one, count(300), 2)
}

func BenchmarkNative(b *testing.B) {
	plain := exposures(100, "bench")
	for _, bb := range []struct {
		name, encoding string
		body           []byte
		events         float64
	}{
		{"plain", "", plain, 100}, {"gzip", "gzip", gzipOf(plain), 100}, {"zstd", "zstd", zstdOf(plain), 100},
		{"one event", "", exposures(1, "bench"), 1},
	} {
		b.Run(bb.name, func(b *testing.B) {
			send := sender(b, bb.body, bb.encoding)
			b.ReportAllocs()
			for b.Loop() {
				send()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/bb.events, "ns/event")
		})
	}
}

type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }

func (d *discard) SetReadDeadline(time.Time) error  { return nil }
func (d *discard) SetWriteDeadline(time.Time) error { return nil }
