package ingest

import (
	"bytes"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var codings = map[coding]func([]byte) []byte{
	identity: bytes.Clone, gzipped: gzipOf, zstandard: zstdOf, brotlied: brotliOf, deflated: zlibOf,
}

func TestCodingOf(t *testing.T) {
	for _, tt := range []struct {
		headers []string
		want    coding
		ok      bool
	}{
		{nil, identity, true}, {[]string{""}, identity, true}, {[]string{" GZIP "}, gzipped, true}, {[]string{"x-gzip"}, gzipped, true},
		{[]string{"zstd"}, zstandard, true}, {[]string{"br"}, brotlied, true}, {[]string{"deflate"}, deflated, true},
		{[]string{"gzip", "gzip"}, 0, false}, {[]string{"gzip,br"}, 0, false}, {[]string{"compress"}, 0, false},
	} {
		got, ok := codingOf(tt.headers)
		assert.Equal(t, tt.ok, ok, "%q", tt.headers)
		assert.Equal(t, tt.want, got, "%q", tt.headers)
	}
}

// TestInflateLimit: exactly the limit passes, one byte more does not, whatever the
// coding; and a decoder is as good as new after an error.
func TestInflateLimit(t *testing.T) {
	const limit = 100_000
	text := []byte(strings.Repeat("sluice ", 100_000/7+1))
	for c, compress := range codings {
		b := newBudget(64<<20, 16)
		h := b.enter("k")
		f := &inflater{buffers: newBuffers(), limit: limit}
		for range 3 {
			dst, err := f.inflate(c, compress(text[:limit]), h)
			require.NoError(t, err, c)
			assert.True(t, bytes.Equal(text[:limit], dst.b))
			dst.free()
			_, err = f.inflate(c, compress(text[:limit+1]), h)
			assert.ErrorIs(t, err, errTooLarge, c)
			if c != identity {
				_, err = f.inflate(c, compress(text[:limit])[:50], h)
				assert.Error(t, err, c)
				_, err = f.inflate(c, []byte("\x00\x01\x02\x03"), h)
				assert.Error(t, err, c)
			}
		}
		assert.Zero(t, h.n, "everything is given back")
	}
}

// TestInflateChargesTheWindow: what a brotli stream makes its decoder hold counts.
func TestInflateChargesTheWindow(t *testing.T) {
	for bits := 10; bits <= 24; bits++ {
		var out bytes.Buffer
		w := brotli.NewWriterOptions(&out, brotli.WriterOptions{Quality: 1, LGWin: bits})
		_, _ = w.Write(bytes.Repeat([]byte("x"), 100_000))
		require.NoError(t, w.Close())
		got := brotliWindow(out.Bytes()[0])
		assert.GreaterOrEqual(t, got, bits, "the encoder may take a larger one")

		h := newBudget(1<<got+brotliTables-1, 16).enter("k")
		f := &inflater{buffers: newBuffers(), limit: 1 << 20}
		_, err := f.inflate(brotlied, out.Bytes(), h)
		assert.ErrorIs(t, err, errTooLarge)
		h = newBudget(1<<got<<1+1<<20, 16).enter("k")
		dst, err := f.inflate(brotlied, out.Bytes(), h)
		require.NoError(t, err)
		dst.free()
		assert.Zero(t, h.n)
	}
}

// TestZstdWindows: a small body is fine whatever window its frame declares, up to
// the one that every decoder has to support, also under a smaller body limit.
func TestZstdWindows(t *testing.T) {
	for _, window := range []int{1 << 10, 1 << 20, 8 << 20, 16 << 20} {
		var out bytes.Buffer
		w, err := zstd.NewWriter(&out, zstd.WithWindowSize(window), zstd.WithSingleSegment(false))
		require.NoError(t, err)
		for range 100 {
			_, _ = w.Write([]byte(strings.Repeat("0123456789", 10)))
			require.NoError(t, w.Flush())
		}
		require.NoError(t, w.Close())
		h := newBudget(8<<20, 16).enter("k")
		f := &inflater{buffers: newBuffers(), limit: 64 << 10}
		dst, err := f.inflate(zstandard, out.Bytes(), h)
		if window > maxZstdWindow {
			assert.ErrorIs(t, err, errTooLarge)
			continue
		}
		require.NoError(t, err)
		assert.Len(t, dst.b, 100_00)
		assert.LessOrEqual(t, h.n, int64(512<<10), "memory is that of the content, not of the window")
		dst.free()
	}
}

func TestZstdBound(t *testing.T) {
	text := exposures(2000, "bound")
	for name, src := range map[string][]byte{
		"one frame": zstdOf(text), "a stream": zstdStreamOf(text), "two": append(zstdOf(text), zstdStreamOf(text)...),
	} {
		n := int64(len(text))
		if name == "two" {
			n *= 2
		}
		assert.GreaterOrEqual(t, zstdBound(src), n, name)
	}
	assert.Equal(t, int64(len(text)), zstdBound(zstdOf(text)), "a declared size is taken")
	assert.Equal(t, int64(10<<30), zstdBound(zstdBomb(10<<30)))
}

// FuzzInflate: no input crashes a decoder, passes the limit, leaves anything
// charged, or harms the next body.
func FuzzInflate(f *testing.F) {
	text := exposures(20, "f")
	for c, compress := range codings {
		f.Add(uint8(c), compress(text))
		f.Add(uint8(c), compress(text)[:40])
	}
	f.Add(uint8(deflated), deflateOf(text))
	f.Add(uint8(zstandard), zstdBomb(1<<30))
	f.Add(uint8(zstandard), zstdDeclares(1<<50))
	f.Add(uint8(brotlied), []byte{0x11})
	const limit = 256 << 10
	var compressed [deflated + 1][]byte
	for c, compress := range codings {
		compressed[c] = compress(text)
	}
	buffers := newBuffers()
	f.Fuzz(func(t *testing.T, which uint8, src []byte) {
		c := coding(which % uint8(deflated+1))
		b := newBudget(64<<20, 16)
		h := b.enter("k")
		inf := &inflater{buffers: buffers, limit: limit}
		if dst, err := inf.inflate(c, src, h); err == nil {
			if len(dst.b) > limit {
				t.Fatalf("%d bytes", len(dst.b))
			}
			if int64(cap(dst.b)) > h.n {
				t.Fatalf("%d bytes held, %d charged", cap(dst.b), h.n)
			}
			dst.free()
		}
		if h.n != 0 {
			t.Fatalf("%d bytes are still charged", h.n)
		}
		dst, err := inf.inflate(c, compressed[c], h)
		if err != nil || !bytes.Equal(dst.b, text) {
			t.Fatalf("the next body: %v", err)
		}
		dst.free()
	})
}
