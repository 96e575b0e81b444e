package ingest

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

func TestBudget(t *testing.T) {
	b := newBudget(1600, 16)
	h1, h2, h3 := b.enter("hot"), b.enter("hot"), b.enter("cold")
	require.NoError(t, h1.take(1000))
	require.NoError(t, h2.take(400))
	assert.ErrorIs(t, h2.take(1), errOverloaded, "one key has seven eighths at most")
	assert.ErrorIs(t, h3.take(1401), errTooLarge, "no request could ever have that")
	require.NoError(t, h3.take(200), "the rest is for others")
	assert.ErrorIs(t, h3.take(1), errOverloaded)
	h3.settle(50)
	assert.Equal(t, int64(1650), b.inUse(), "what is there is counted, even over the limit")
	h1.give(1000)
	assert.ErrorIs(t, h2.take(1001), errTooLarge)
	require.NoError(t, h2.take(900))
	h1.close()
	h2.close()
	h3.close()
	assert.Zero(t, b.inUse())
	assert.Empty(t, b.byKey)

	for range 14 {
		require.NotNil(t, b.enter("hot"))
	}
	assert.Nil(t, b.enter("hot"), "nor more than seven eighths of the requests")
	assert.NotNil(t, b.enter("cold"))
}

func TestBuffers(t *testing.T) {
	p, b := newBuffers(), newBudget(100<<20, 16)
	h := b.enter("k")
	buf, err := p.get(h, 1<<40)
	require.NoError(t, err)
	assert.Equal(t, firstBuffer, cap(buf.b), "an announcement alone gets little")
	text := strings.Repeat("0123456789", 100_000)
	require.NoError(t, buf.fill(strings.NewReader(text), 1<<20))
	assert.Equal(t, text, string(buf.b))
	assert.Equal(t, int64(cap(buf.b)), h.n, "what is held is what is charged")
	buf.free()
	buf.free()
	assert.Zero(t, h.n)

	buf, err = p.get(h, 10)
	require.NoError(t, err)
	assert.Equal(t, 8<<10, cap(buf.b))
	assert.ErrorIs(t, buf.fill(strings.NewReader(text), 1000), errTooLarge)
	assert.LessOrEqual(t, len(buf.b), 8<<10)
	assert.ErrorIs(t, buf.fill(noProgress{}, 1<<20), io.ErrNoProgress)
	buf.free()

	// However many are given back, few are kept.
	var held []*buffer
	for range 200 {
		buf, err := p.get(h, 100<<10)
		require.NoError(t, err)
		held = append(held, buf)
	}
	for _, buf := range held {
		buf.free()
	}
	kept := 0
	for i, class := range bufferClasses {
		assert.LessOrEqual(t, len(p.idle[i]), class.kept)
		kept += class.kept * class.size
	}
	assert.Less(t, kept, 5<<20)
}

type noProgress struct{}

func (noProgress) Read([]byte) (int, error) { return 0, nil }

// TestHotKey: a key that takes all it can get leaves the others their part.
func TestHotKey(t *testing.T) {
	e := start(t, func(o *Options) { o.Limits.MaxBody, o.Limits.MaxInFlight = 1<<20, 4<<20 })
	release := make(chan struct{})
	entered := make(chan struct{}, 1000)
	e.pub.set(func(_ context.Context, rs []batch.Record) (batch.Durable, error) {
		if rs[0].Project == "shop" {
			entered <- struct{}{}
			<-release
		}
		return batch.InKafka, nil
	})
	big := exposures(1000, "hot") // some 200 KB as a record
	var answers []<-chan answer
	refused := 0
	for i := 0; refused < 3; i++ {
		require.Less(t, i, 100, "the budget is never used up")
		ch := e.later(big, "Idempotency-Key", fmt.Sprint(i))
		select {
		case <-entered:
			answers = append(answers, ch)
		case a := <-ch:
			refused++
			require.Equal(t, 503, a.status)
			assert.Equal(t, protocol.CodeOverloaded, a.code())
			assert.Contains(t, []string{"1", "2", "3", "4", "5"}, a.header.Get("Retry-After"))
		}
	}
	held := e.c.inflight.inUse()
	assert.Greater(t, held, int64(1<<20))
	assert.LessOrEqual(t, held, int64(4<<20))
	for i := range 20 {
		a := e.post("/v1/exposures", exposures(100, fmt.Sprint("cold", i)), "Authorization", "Bearer "+otherKey)
		assert.Equal(t, 202, a.status, "the other key's requests are served: %s", a.body)
	}
	close(release)
	for _, ch := range answers {
		assert.Equal(t, 202, (<-ch).status)
	}
	e.idle()
}

// TestLargestBody: the largest body that is allowed gets through, however it is
// encoded, with nothing else in hand.
func TestLargestBody(t *testing.T) {
	e := start(t)
	b := exposures(10_000, "largest")
	b = append(b, strings.Repeat(" ", 10<<20-len(b))...)
	require.Len(t, b, 10<<20)
	for _, tt := range []struct {
		coding string
		body   []byte
	}{{"identity", b}, {"gzip", gzipOf(b)}, {"zstd", zstdOf(b)}, {"zstd", zstdStreamOf(b)}, {"br", brotliOf(b)}} {
		a := e.post("/v1/exposures", tt.body, "Content-Encoding", tt.coding, "Idempotency-Key", fmt.Sprint(tt.coding, len(tt.body)))
		require.Equal(t, 202, a.status, "%s: %s", tt.coding, a.body)
		events := 0
		for _, part := range batches(t, e.pub.records()) {
			events += len(part.Events)
		}
		assert.Equal(t, 10_000, events)
		e.idle()
	}
	a := e.post("/v1/exposures", append(b, ' '))
	assert.Equal(t, 413, a.status)
	a = e.post("/v1/exposures", gzipOf(append(b, ' ')), "Content-Encoding", "gzip")
	assert.Equal(t, 413, a.status)
	a = e.post("/v1/exposures", zstdOf(append(b, ' ')), "Content-Encoding", "zstd")
	assert.Equal(t, 413, a.status)
}

// TestDecodedBound: what is charged for a decoded batch covers what it takes up.
func TestDecodedBound(t *testing.T) {
	for name, tt := range map[string]struct {
		mediaType string
		body      []byte
	}{
		"plain":         {"application/json", exposures(500, "x")},
		"attributes":    {"application/json", []byte(attributeBomb(200_000))},
		"escapes":       {"application/json", []byte(`[{"experiment":"` + strings.Repeat(`\u00e9`, 500) + `","variant":"v","unit_id":"u"}]`)},
		"protobuf":      {"application/x-protobuf", protoOf(t, exposures(500, "x"))},
		"protobuf bomb": {"application/x-protobuf", protoOf(t, []byte(attributeBomb(200_000)))},
		"protobuf, empty attributes": {"application/x-protobuf", func() []byte {
			event := "\x12\x01v\x1a\x01u\x22\x01u\x0a" + strings.Repeat("\x52\x00", 200)
			return []byte(strings.Repeat("\x0a"+string(byteVarint(len(event)))+event, 100))
		}()},
	} {
		t.Run(name, func(t *testing.T) {
			b := new(schema.Batch)
			_ = decodeNative(tt.mediaType, tt.body, b)
			var holds int64
			for i := range b.Events {
				holds += 208 + 32*int64(len(b.Events[i].Attributes))
			}
			assert.GreaterOrEqual(t, decodedBound(tt.mediaType, tt.body, 10_000), holds)
		})
	}
	bomb := attributeBomb(200_000)
	b := new(schema.Batch)
	require.NoError(t, decodeNative("", []byte(bomb), b))
	var holds int64
	for i := range b.Events {
		holds += 208 + 32*int64(len(b.Events[i].Attributes))
	}
	assert.GreaterOrEqual(t, decodedBound("", []byte(base64.StdEncoding.EncodeToString([]byte(bomb))), 10_000), holds, "in base64")

	typical := exposures(10_000, "typical")
	assert.Less(t, decodedBound("application/json", typical, 10_000), 3*int64(len(typical)), "a full batch of the usual kind is not refused for it")
}

func byteVarint(n int) []byte { return []byte{byte(n) | 0x80, byte(n >> 7)} }

func decodeNative(mediaType string, body []byte, b *schema.Batch) error {
	if strings.Contains(mediaType, "protobuf") {
		return schema.DecodeProto(body, schema.KindExposure, 10_000, b)
	}
	return schema.DecodeJSON(body, schema.KindExposure, 10_000, b)
}

// protoOf is a JSON body as protobuf.
func protoOf(t testing.TB, body []byte) []byte {
	t.Helper()
	b := new(schema.Batch)
	require.NoError(t, schema.DecodeJSON(body, schema.KindExposure, 10_000, b))
	b.Resolve(time.Unix(1_767_225_600, 0), schema.Limits{Past: time.Hour, Future: time.Hour})
	return schema.AppendRecord(nil, b, schema.Range{Last: b.Count - 1})
}

// TestFullLoad fills everything that can be filled under the default limits (the
// connections, the bytes in flight, the recent batches, the idle buffers) and
// measures what the process holds then. Clients are bare sockets, so that what
// is measured is the collector's.
func TestFullLoad(t *testing.T) {
	e := start(t)
	release := make(chan struct{})
	var published sync.WaitGroup
	e.pub.set(func(_ context.Context, rs []batch.Record) (batch.Durable, error) {
		published.Add(1)
		defer published.Done()
		<-release
		return "", errDown // keep nothing
	})
	rejected := make([]schema.Rejected, 3)
	for i := range rejected {
		rejected[i] = schema.Rejected{Code: schema.CodeMissingField, Field: "unit_id", Message: strings.Repeat("x", 50)}
	}
	for range 60_000 {
		a, _, _ := e.c.recent.begin(batch.Random(), batch.Digest{})
		rs := append([]schema.Rejected(nil), rejected...)
		for i := range rs {
			rs[i].Message = strings.Clone(rs[i].Message)
		}
		e.c.recent.finish(a, outcome{result: protocol.Result{Accepted: 1, Rejected: rs}})
	}
	var pooled []*buffer
	h := e.c.inflight.enter("pool")
	for _, class := range bufferClasses {
		for range class.kept {
			b, err := e.c.buffers.alloc(h, class.size)
			require.NoError(t, err)
			pooled = append(pooled, &buffer{b: b, from: e.c.buffers, held: h})
		}
	}
	for _, b := range pooled {
		b.free()
	}
	h.close()

	// Bodies that end up as records of some 50 KB, on as many connections as there
	// may be; two keys, since one may not have it all.
	body, long := string(exposures(450, "load")), "X-Long: "+strings.Repeat("x", 12<<10)
	conns := make([]net.Conn, 0, e.c.limits.MaxConns)
	for i := range e.c.limits.MaxConns {
		c, err := net.Dial("tcp", e.addr)
		require.NoError(t, err)
		conns = append(conns, c)
		key := goodKey
		if i%2 == 0 {
			key = otherKey
		}
		_, err = io.WriteString(c, strings.Replace(rawPost(body, long, fmt.Sprint("Idempotency-Key: ", i)), goodKey, key, 1))
		require.NoError(t, err)
	}
	full := func() bool { return e.c.inflight.inUse() > e.c.inflight.limit*9/10 }
	require.Eventually(t, full, 60*time.Second, 10*time.Millisecond, "the budget is used up")

	for range e.c.limits.MaxConns - int(value(t, e.reg, "sluice_connections")) {
		c, err := net.Dial("tcp", e.addr)
		require.NoError(t, err)
		conns = append(conns, c)
	}

	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	held := m.HeapAlloc + m.StackInuse
	t.Logf("held at full load: %d MiB (heap %d, stacks %d), %d bytes in flight, %d recent batches, %v connections",
		held>>20, m.HeapAlloc>>20, m.StackInuse>>20, e.c.inflight.inUse(), e.c.recent.size(), value(t, e.reg, "sluice_connections"))
	assert.LessOrEqual(t, e.c.inflight.inUse(), e.c.inflight.limit*11/10)
	assert.Less(t, held, uint64(100<<20))

	close(release)
	for _, c := range conns {
		_ = c.Close()
	}
	published.Wait()
	e.idle()
	e.pub.set(nil)
	e.alive()
}

// TestOverloaded: a request that finds the budget used up is told to come back,
// before or after its body.
func TestOverloaded(t *testing.T) {
	e := start(t)
	schemas := documented(t)
	h := e.c.inflight.enter("other")
	h.settle(e.c.inflight.limit)
	a := e.raw(rawHead("POST", "/v1/exposures", "Content-Length: 1000"))
	assert.Equal(t, 503, a.status)
	assert.Equal(t, protocol.CodeOverloaded, a.code())
	schemas.problem(t, a)
	h.settle(-24 << 10) // the body fits, what becomes of it does not
	a = e.post("/v1/exposures", exposures(50, "o"), "Idempotency-Key", "o")
	assert.Equal(t, 503, a.status)
	assert.Equal(t, protocol.CodeOverloaded, a.code())
	h.close()
	a = e.post("/v1/exposures", exposures(50, "o"), "Idempotency-Key", "o")
	assert.Equal(t, 202, a.status)
	e.idle()
}

func TestUnread(t *testing.T) {
	assert.Equal(t, http.StatusBadRequest, unread(errors.New("reset")).Status)
	assert.Equal(t, http.StatusRequestTimeout, unread(context.DeadlineExceeded).Status)
}
