package spool

import (
	"bytes"
	"errors"
	"io"
)

// diskBlock is the piece in which an unreadable place is looked at: what a disk
// or the page cache fails to read is never less.
const diskBlock = 4096

// How much is read at once: a lot where records are read one after the other,
// little where most of them are passed over.
const (
	readAhead = 256 << 10
	readPeek  = 4 << 10
)

// window shows a file in pieces.
type window struct {
	f    io.ReaderAt
	size int64 // what may be read of it
	buf  []byte
	base int64

	// unreadable is the first error of a block that could not be read. Such a block
	// is shown as zeros; checksums then say what it has spoilt.
	unreadable error
}

// bytes returns n bytes from off on, fewer at the end. They are good until the
// next call. ahead is how much is read if anything has to be.
func (w *window) bytes(off int64, n, ahead int) []byte {
	end := min(off+int64(n), w.size)
	if off >= end {
		return nil
	}
	if off < w.base || end > w.base+int64(len(w.buf)) {
		w.fill(off, int(min(int64(max(n, ahead)), w.size-off)))
	}
	have := w.base + int64(len(w.buf))
	if off >= have {
		return nil
	}
	return w.buf[off-w.base : min(end, have)-w.base]
}

func (w *window) fill(off int64, n int) {
	if cap(w.buf) < n {
		w.buf = make([]byte, n)
	}
	w.buf, w.base = w.buf[:n], off
	got := w.read(w.buf, off)
	w.buf = w.buf[:got]
}

// read fills b from off on and returns how much the file had. It reads again in
// pieces what cannot be read in one.
func (w *window) read(b []byte, off int64) int {
	n, err := w.f.ReadAt(b, off)
	if n == len(b) || errors.Is(err, io.EOF) {
		return n
	}
	for n < len(b) {
		piece := b[n:min(len(b), n+diskBlock-int((off+int64(n))%diskBlock))]
		got, err := w.f.ReadAt(piece, off+int64(n))
		if errors.Is(err, io.EOF) {
			return n + got
		}
		if got < len(piece) {
			if w.unreadable == nil {
				w.unreadable = err
			}
			clear(piece)
		}
		n += len(piece)
	}
	return n
}

// item is what a walker comes to: a record, or a stretch without one.
type item struct {
	from, to int64
	header   recordHeader // of a record; its number is 0 for a stretch
}

// walker goes through a segment's records, or what is left of them, in order.
type walker struct {
	w      *window
	marker marker
	off    int64
	end    int64  // where the records end
	next   uint64 // no record with a lower number can follow
	limit  uint64 // nor one with this or a higher one
	ahead  int
}

// step returns what comes next; false at the end. Its header is good until the
// window is used again.
func (k *walker) step() (item, bool) {
	if k.off >= k.end {
		return item{}, false
	}
	from := k.off
	h, ok := k.header(from)
	if !ok {
		to := k.seek(from + 1)
		k.off = to
		return item{from: from, to: to}, true
	}
	k.off, k.next = from+h.total(), h.number+1
	return item{from: from, to: k.off, header: h}, true
}

// header reads the record header at off; false where there is no intact one.
func (k *walker) header(off int64) (recordHeader, bool) {
	b := k.w.bytes(off, recordLeastBytes, k.ahead)
	if len(b) < recordLeastBytes {
		return recordHeader{}, false
	}
	n, ok := headerSize(b, k.marker)
	if !ok {
		return recordHeader{}, false
	}
	if b = k.w.bytes(off, n, k.ahead); len(b) < n {
		return recordHeader{}, false
	}
	h, err := parseRecordHeader(b)
	if err != nil || h.number < k.next || h.number >= k.limit || off+h.total() > k.end {
		return recordHeader{}, false
	}
	return h, true
}

// seek finds the next intact record header at or after off, or the end.
func (k *walker) seek(off int64) int64 {
	for off < k.end {
		b := k.w.bytes(off, readAhead, readAhead)
		b = b[:min(int64(len(b)), k.end-off)]
		i := bytes.Index(b, k.marker[:])
		switch {
		case i < 0 && len(b) < readAhead:
			return k.end
		case i < 0:
			off += int64(len(b)) - int64(len(k.marker)) + 1
			continue
		}
		off += int64(i)
		if _, ok := k.header(off); ok {
			return off
		}
		off++
	}
	return k.end
}

// value reads the value of the record at it into memory of its own; false where
// it is damaged.
func (k *walker) value(it *item) ([]byte, bool) {
	h := it.header // its raw bytes are not looked at below
	v := make([]byte, h.value)
	off := it.from + int64(h.size)
	n := 0
	if off >= k.w.base {
		if have := k.w.base + int64(len(k.w.buf)) - off; have > 0 {
			n = copy(v, k.w.buf[off-k.w.base:])
		}
	}
	if n < len(v) {
		n += k.w.read(v[n:], off+int64(n))
	}
	return v, n == len(v) && checksum(v) == h.sum
}

// check is value for who needs no copy.
func (k *walker) check(it *item) bool {
	h := it.header
	b := k.w.bytes(it.from+int64(h.size), h.value, max(h.value, readAhead))
	return len(b) == h.value && checksum(b) == h.sum
}
