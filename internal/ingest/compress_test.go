package ingest

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

func gzipOf(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

func zstdOf(b []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	defer func() { _ = w.Close() }()
	return w.EncodeAll(b, nil)
}

// zstdStreamOf writes frames that do not declare their size.
func zstdStreamOf(b []byte) []byte {
	var out bytes.Buffer
	w, _ := zstd.NewWriter(&out)
	for chunk := range bytes.Lines(b) {
		_, _ = w.Write(chunk)
	}
	_ = w.Flush()
	_ = w.Close()
	return out.Bytes()
}

func brotliOf(b []byte) []byte {
	var out bytes.Buffer
	w := brotli.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

func zlibOf(b []byte) []byte {
	var out bytes.Buffer
	w := zlib.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

func deflateOf(b []byte) []byte {
	var out bytes.Buffer
	w, _ := flate.NewWriter(&out, flate.BestSpeed)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

// zstdBomb is a frame of blocks that each repeat one byte 128 Ki times: 4 bytes
// on the wire for 131,072. No size is declared.
func zstdBomb(size int64) []byte {
	out := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 13 << 3} // magic, no content size, a window of 8 MiB
	const block = 128 << 10
	n := int(size / block)
	for i := range n {
		head := uint32(block<<3 | 1<<1)
		if i == n-1 {
			head |= 1
		}
		out = append(out, byte(head), byte(head>>8), byte(head>>16), ' ')
	}
	return out
}

// zstdDeclares is a frame that declares a content of n bytes and has one.
func zstdDeclares(n uint64) []byte {
	out := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0} // single segment, 8 bytes of content size
	out = binary.LittleEndian.AppendUint64(out, n)
	return append(out, 1<<3|1, 0, 0, ' ')
}

// zeros compresses n spaces without holding them.
func zeros(t *testing.T, n int, open func(io.Writer) io.WriteCloser) []byte {
	var out bytes.Buffer
	w := open(&out)
	chunk := bytes.Repeat([]byte(" "), 1<<20)
	for ; n > 0; n -= len(chunk) {
		_, err := w.Write(chunk[:min(n, len(chunk))])
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return out.Bytes()
}

func gzipBomb(t *testing.T, n int) []byte {
	return zeros(t, n, func(w io.Writer) io.WriteCloser {
		z, _ := gzip.NewWriterLevel(w, gzip.BestCompression)
		return z
	})
}

func brotliBomb(t *testing.T, n int) []byte {
	return zeros(t, n, func(w io.Writer) io.WriteCloser { return brotli.NewWriterLevel(w, 1) })
}

func zlibBomb(t *testing.T, n int) []byte {
	return zeros(t, n, func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) })
}
