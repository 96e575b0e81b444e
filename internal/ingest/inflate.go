package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

const (
	// maxZstdWindow is what RFC 8878 (section 3.1.1.1.2) asks every decoder to
	// support and lets it refuse to pass: a frame may declare terabytes.
	maxZstdWindow = 8 << 20
	// maxZstdBlock is the most that one block decompresses to (RFC 8878, section
	// 3.1.1.2.4).
	maxZstdBlock = 128 << 10
	// inflateSlack is what a decoder may write, or hold, beside what it returns.
	inflateSlack = 64
	// brotliTables is what a brotli decoder holds beside its window.
	brotliTables = 128 << 10
)

var (
	errTrailing = errors.New("there is something after the compressed data")
	errWindow   = errors.New("invalid window size")
)

// coding is a content coding.
type coding uint8

const (
	identity coding = iota
	gzipped
	zstandard
	brotlied
	deflated
)

// codingOf reads the Content-Encoding headers. ok is false for an unknown coding
// and for more than one: nested codings are what bombs are made of, and no SDK
// sends them.
func codingOf(headers []string) (c coding, ok bool) {
	if len(headers) == 0 {
		return identity, true
	}
	if len(headers) > 1 {
		return 0, false
	}
	switch strings.ToLower(strings.TrimSpace(headers[0])) {
	case "", "identity":
		return identity, true
	case "gzip", "x-gzip":
		return gzipped, true
	case "zstd":
		return zstandard, true
	case "br":
		return brotlied, true
	case "deflate":
		return deflated, true
	}
	return 0, false
}

// looksGzipped recognises gzip (RFC 1952) with deflate, the only method there is.
func looksGzipped(b []byte) bool { return bytes.HasPrefix(b, []byte{0x1f, 0x8b, 8}) }

// inflater decompresses whole bodies, with decoders that are used again. It
// works on bytes that have all arrived, so a slow client never holds one. Not
// safe for concurrent use.
type inflater struct {
	buffers *buffers
	limit   int64 // bytes, decompressed

	in    bytes.Reader
	gzip  *gzip.Reader
	zlib  io.ReadCloser
	flate io.ReadCloser
	zstd  *zstd.Decoder
}

// inflate returns src decompressed, in a buffer charged to h. It returns
// errTooLarge for more than the limit (or a zstd frame that declares more than
// it may), having decompressed little more than that at most; errOverloaded; or
// what is wrong with src.
func (f *inflater) inflate(c coding, src []byte, h *holding) (*buffer, error) {
	if len(src) == 0 {
		return f.buffers.get(h, 0) // an empty body, however compressed, is an empty body
	}
	if c == zstandard {
		return f.unzstd(src, h)
	}
	f.in.Reset(src)
	defer f.in.Reset(nil) // a decoder must not keep the request's bytes
	dst, err := f.buffers.get(h, 8*int64(len(src)))
	if err != nil {
		return nil, err
	}
	switch c {
	case gzipped:
		err = f.ungzip(dst)
	case brotlied:
		err = f.unbrotli(src, dst, h)
	case deflated:
		err = f.undeflate(src, dst)
	default:
		err = dst.fill(&f.in, f.limit)
	}
	if err != nil {
		dst.free()
		return nil, err
	}
	return dst, nil
}

// ungzip reads all members and checks each one's CRC.
func (f *inflater) ungzip(dst *buffer) error {
	var err error
	if f.gzip == nil {
		f.gzip, err = gzip.NewReader(&f.in) // nil with an error
	} else {
		err = f.gzip.Reset(&f.in)
	}
	if err == nil {
		err = dst.fill(f.gzip, f.limit)
	}
	return wrap("gzip", err)
}

// undeflate reads the zlib format, which is what the name means (RFC 9110,
// section 8.4.1.2), and bare deflate, which is what many send.
func (f *inflater) undeflate(src []byte, dst *buffer) error {
	var z io.Reader
	var err error
	switch {
	case len(src) >= 2 && src[0]&0x0f == 8 && (int(src[0])<<8|int(src[1]))%31 == 0:
		if f.zlib == nil {
			f.zlib, err = zlib.NewReader(&f.in)
		} else {
			err = f.zlib.(zlib.Resetter).Reset(&f.in, nil)
		}
		z = f.zlib
	case f.flate == nil:
		f.flate = flate.NewReader(&f.in)
		z = f.flate
	default:
		err = f.flate.(flate.Resetter).Reset(&f.in, nil)
		z = f.flate
	}
	if err == nil {
		err = dst.fill(z, f.limit)
	}
	if err == nil && f.in.Len() > 0 {
		err = errTrailing
	}
	return wrap("deflate", err)
}

// unbrotli makes a decoder for each body. Nobody sends this coding in bulk, and
// a kept decoder would keep its window, which the sender chooses (up to 16 MiB).
// For as long as it lives the window is charged to the request.
func (f *inflater) unbrotli(src []byte, dst *buffer, h *holding) error {
	bits := brotliWindow(src[0])
	if bits == 0 {
		return wrap("br", errWindow)
	}
	cost := int64(1)<<bits + brotliTables
	if err := h.take(cost); err != nil {
		return err
	}
	defer h.give(cost)
	return wrap("br", dst.fill(brotli.NewReader(&f.in), f.limit))
}

// brotliWindow returns the window's size as a power of two, from the first byte
// of a stream (RFC 7932, section 9.1), or 0 where there is no such window.
func brotliWindow(b byte) int {
	if b&1 == 0 {
		return 16
	}
	if n := int(b >> 1 & 7); n != 0 {
		return 17 + n
	}
	switch n := int(b >> 4 & 7); n {
	case 0:
		return 17
	case 1:
		return 0
	default:
		return 8 + n
	}
}

// unzstd decompresses straight into the buffer, which then is the window: no
// memory is spent on what a frame declares.
func (f *inflater) unzstd(src []byte, h *holding) (*buffer, error) {
	if f.zstd == nil {
		z, err := zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true),
			zstd.WithDecodeAllCapLimit(true),
			zstd.WithDecoderMaxMemory(uint64(max(f.limit, maxZstdWindow))),
			zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		f.zstd = z
	}
	// Room for one block over the limit: so that a body over it is seen to be,
	// instead of the decoder moving to memory of its own.
	size := min(zstdBound(src), f.limit+maxZstdBlock) + inflateSlack
	b, err := f.buffers.alloc(h, int(size))
	if err != nil {
		return nil, err
	}
	dst := &buffer{b: b, from: f.buffers, held: h}
	out, err := f.zstd.DecodeAll(src, b)
	switch {
	case errors.Is(err, zstd.ErrDecoderSizeExceeded), errors.Is(err, zstd.ErrWindowSizeExceeded), int64(len(out)) > f.limit:
		err = errTooLarge
	case err == nil:
		dst.b = out
		return dst, nil
	}
	dst.free()
	return nil, wrap("zstd", err)
}

// zstdBound returns the most that src can decompress to, by its frames' and
// blocks' headers, without decompressing anything. Where src is damaged it is
// the bound of what comes before.
func zstdBound(src []byte) int64 {
	var total int64
	for len(src) > 0 {
		var h zstd.Header
		if h.Decode(src) != nil {
			return total
		}
		skip := int64(h.HeaderSize)
		if h.Skippable {
			skip += int64(h.SkippableSize)
		}
		if skip > int64(len(src)) {
			return total
		}
		src = src[skip:]
		if h.Skippable {
			continue
		}
		frame, n := zstdBlocks(src)
		if h.HasFCS && h.FrameContentSize < uint64(frame) {
			frame = int64(h.FrameContentSize)
		}
		total += frame
		if h.HasCheckSum {
			n += 4
		}
		src = src[min(n, len(src)):]
	}
	return total
}

// zstdBlocks returns the most that one frame's blocks decompress to, and how
// long they are.
func zstdBlocks(src []byte) (bound int64, n int) {
	for n+3 <= len(src) {
		head := int(src[n]) | int(src[n+1])<<8 | int(src[n+2])<<16
		n += 3
		size := head >> 3
		switch head >> 1 & 3 {
		case 0: // raw
			bound += int64(size)
			n += size
		case 1: // one byte, repeated
			bound += int64(size)
			n++
		default:
			bound += maxZstdBlock
			n += size
		}
		if head&1 == 1 {
			break
		}
	}
	return bound, min(n, len(src))
}

func wrap(what string, err error) error {
	if err == nil || errors.Is(err, errTooLarge) || errors.Is(err, errOverloaded) {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}
