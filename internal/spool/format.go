package spool

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"strings"
	"time"

	"sluice/pkg/batch"
)

// marker begins every record of a segment: eight random bytes, none of them 0,
// that the segment's name and header hold too. It is what a reader looks for
// behind damage; being random, no sender can put one into an event.
type marker [8]byte

func newMarker() (m marker) {
	rand.Read(m[:]) // never fails: crypto/rand.Read crashes the process instead
	for i := range m {
		m[i] = max(m[i], 1) // an unreadable block is read as zeros
	}
	return m
}

// Sizes and magics of format version 1; doc.go shows the layout.
const (
	segmentMagic = "sluiseg1"
	footerMagic  = "sluiend1"

	segmentHeaderBytes = 72
	recordFixedBytes   = 128 // without the project, the trace context and the checksum
	recordLeastBytes   = recordFixedBytes + 4
	maxTextBytes       = 32 << 10 // project and trace context, each
	maxHeaderBytes     = recordLeastBytes + 2*maxTextBytes
	trailerBytes       = 16

	// maxNumber bounds ordinals and numbers that are believed; records are written
	// with higher ones, should some file have come near it.
	maxNumber = 1 << 61

	blockRecords     = 64 // records in a block: a word of the bitmap
	blockFooterBytes = 12
	maxBlocks        = maxSegmentBytes/recordLeastBytes/blockRecords + 1
)

var (
	errChecksum  = errors.New("checksum does not match")
	errNoSegment = errors.New("not a segment's header")
	errFooter    = errors.New("not a segment's footer")
	errTooLarge  = errors.New("too large for the spool")
)

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// segmentHeader is the first thing in a segment.
type segmentHeader struct {
	marker    marker
	ordinal   uint64 // counts segments, from 1
	first     uint64 // number of its first record
	notBefore int64  // µs since the Unix epoch: no record was received before
	// What was acknowledged of the segment before it, so that what lies beyond is
	// known to be a torn or failed write and not damage. 0: there was none.
	prev     uint64 // its ordinal
	prevEnd  int64  // its length
	prevNext uint64 // the number after its last record's
}

func (h *segmentHeader) append(b []byte) []byte {
	from := len(b)
	b = append(b, segmentMagic...)
	b = append(b, h.marker[:]...)
	for _, v := range []uint64{h.ordinal, h.first, uint64(h.notBefore), h.prev, uint64(h.prevEnd), h.prevNext} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = binary.LittleEndian.AppendUint32(b, 0)
	return binary.LittleEndian.AppendUint32(b, checksum(b[from:]))
}

func parseSegmentHeader(b []byte) (h segmentHeader, err error) {
	if len(b) < segmentHeaderBytes || string(b[:8]) != segmentMagic {
		return h, errNoSegment
	}
	b = b[:segmentHeaderBytes]
	if checksum(b[:segmentHeaderBytes-4]) != binary.LittleEndian.Uint32(b[segmentHeaderBytes-4:]) {
		return h, fmt.Errorf("segment header: %w", errChecksum)
	}
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }
	h = segmentHeader{marker: marker(b[8:16]), ordinal: word(16), first: word(24), notBefore: int64(word(32)),
		prev: word(40), prevEnd: int64(word(48)), prevNext: word(56)}
	if h.ordinal == 0 || h.first == 0 || h.prev >= h.ordinal || h.prevEnd < 0 || h.prevNext > h.first || h.notBefore != inRange(h.notBefore) ||
		h.ordinal > maxNumber || h.first > maxNumber {
		return segmentHeader{}, errNoSegment
	}
	return h, nil
}

// segmentName is the name of a segment's file: its ordinal and its marker, in hex.
func segmentName(ordinal uint64, m marker) string {
	return fmt.Sprintf("%016x-%s%s", ordinal, hex.EncodeToString(m[:]), segmentSuffix)
}

func parseSegmentName(name string) (ordinal uint64, m marker, ok bool) {
	base, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(base) != 33 || base[16] != '-' {
		return 0, m, false
	}
	var o [8]byte
	if _, err := hex.Decode(o[:], []byte(base[:16])); err != nil {
		return 0, m, false
	}
	if _, err := hex.Decode(m[:], []byte(base[17:])); err != nil {
		return 0, m, false
	}
	ordinal = binary.BigEndian.Uint64(o[:])
	return ordinal, m, ordinal > 0 && ordinal <= maxNumber && segmentName(ordinal, m) == name
}

// recordSize is what a record takes up in a segment.
func recordSize(r *batch.Record) int {
	return recordLeastBytes + len(r.Project) + len(r.Traceparent) + len(r.Value)
}

// storable refuses what the format has no room for.
func storable(r *batch.Record) error {
	switch {
	case len(r.Value) > maxValueBytes:
		return fmt.Errorf("a record of %d bytes: %w (%d)", len(r.Value), errTooLarge, maxValueBytes)
	case len(r.Project) > maxTextBytes || len(r.Traceparent) > maxTextBytes:
		return fmt.Errorf("a project of %d bytes, a trace context of %d: %w (%d)", len(r.Project), len(r.Traceparent), errTooLarge, maxTextBytes)
	case r.Events < 0 || r.Events > math.MaxUint32:
		return fmt.Errorf("a record of %d events: %w", r.Events, errTooLarge)
	}
	return nil
}

// appendRecord writes a record that storable took; sum is its value's checksum,
// which callers compute outside of locks, and index its place in its group, the
// records of one write, from 0. Its path is not kept: what comes from
// here has come by way of the spool.
func appendRecord(b []byte, m marker, number uint64, index int, r *batch.Record, sum uint32) []byte {
	from := len(b)
	le := binary.LittleEndian
	b = append(b, m[:]...)
	b = le.AppendUint32(b, uint32(recordSize(r)-len(r.Value)))
	b = le.AppendUint32(b, uint32(len(r.Value)))
	b = le.AppendUint32(b, sum)
	b = le.AppendUint32(b, uint32(r.Events))
	b = le.AppendUint64(b, number)
	b = le.AppendUint64(b, uint64(inRange(r.ReceivedAt.UnixMicro())))
	b = append(b, r.BatchID[:]...)
	b = append(b, r.DedupID[:]...)
	b = append(b, r.Digest[:]...)
	b = append(b, r.Collector[:]...)
	b = le.AppendUint64(b, r.Epoch)
	b = le.AppendUint64(b, r.Seq)
	b = le.AppendUint16(b, uint16(len(r.Project)))
	b = le.AppendUint16(b, uint16(len(r.Traceparent)))
	b = le.AppendUint32(b, uint32(index))
	b = append(b, r.Project...)
	b = append(b, r.Traceparent...)
	b = le.AppendUint32(b, checksum(b[from:]))
	return append(b, r.Value...)
}

// recordHeader is a record without its value.
type recordHeader struct {
	size   int // of the header
	value  int // of the value that follows
	sum    uint32
	number uint64
	raw    []byte // the header's bytes, good until the window moves
}

func (h *recordHeader) total() int64 { return int64(h.size) + int64(h.value) }

// group is the number of the first record of its write: what precedes it was
// durable before the write began.
func (h *recordHeader) group() uint64 {
	return h.number - min(uint64(binary.LittleEndian.Uint32(h.raw[124:])), h.number-1)
}

func (h *recordHeader) at() int64 { return inRange(int64(binary.LittleEndian.Uint64(h.raw[32:]))) }

// headerSize is how long the header that begins with b says it is; false where b
// does not begin with one. b holds at least recordLeastBytes.
func headerSize(b []byte, m marker) (int, bool) {
	if marker(b[:8]) != m {
		return 0, false
	}
	size := int(binary.LittleEndian.Uint32(b[8:]))
	texts := int(binary.LittleEndian.Uint16(b[120:])) + int(binary.LittleEndian.Uint16(b[122:]))
	return size, size == recordLeastBytes+texts
}

// parseRecordHeader reads a header of exactly the size that headerSize told.
func parseRecordHeader(b []byte) (recordHeader, error) {
	n := len(b)
	if checksum(b[:n-4]) != binary.LittleEndian.Uint32(b[n-4:]) {
		return recordHeader{}, errChecksum
	}
	h := recordHeader{size: n, value: int(binary.LittleEndian.Uint32(b[12:])), sum: binary.LittleEndian.Uint32(b[16:]),
		number: binary.LittleEndian.Uint64(b[24:]), raw: b}
	if h.value > maxValueBytes || h.number == 0 || h.number > 2*maxNumber {
		return recordHeader{}, errTooLarge
	}
	return h, nil
}

// record is the header's content; it shares no memory with it.
func (h *recordHeader) record() batch.Record {
	le, b := binary.LittleEndian, h.raw
	project := recordFixedBytes + int(le.Uint16(b[120:]))
	return batch.Record{
		BatchID: batch.ID(b[40:56]), DedupID: batch.ID(b[56:72]), Digest: batch.Digest(b[72:88]), Collector: batch.ID(b[88:104]),
		Epoch: le.Uint64(b[104:]), Seq: le.Uint64(b[112:]),
		Project:     string(b[recordFixedBytes:project]),
		Traceparent: string(b[project : project+int(le.Uint16(b[122:]))]),
		Path:        batch.Spool,
		Events:      int(le.Uint32(b[20:])),
		ReceivedAt:  time.UnixMicro(h.at()),
	}
}

// footer ends a segment that was closed in order: with it, a start need not read
// the records.
type footer struct {
	ordinal uint64
	first   uint64
	next    uint64 // the number after its last record's
	end     int64  // where the records end
	blocks  []block
}

// block is the place of up to blockRecords consecutive records.
type block struct {
	off uint32 // of the first of them
	min uint32 // ms after the segment's notBefore, rounded down: none was received before
}

func (f *footer) append(b []byte, notBefore int64) []byte {
	from := len(b)
	le := binary.LittleEndian
	b = append(b, footerMagic...)
	for _, v := range []uint64{f.ordinal, f.first, f.next, uint64(f.end)} {
		b = le.AppendUint64(b, v)
	}
	for _, k := range f.blocks {
		b = le.AppendUint32(b, k.off)
		b = le.AppendUint64(b, uint64(notBefore+int64(k.min)*1000))
	}
	b = le.AppendUint32(b, uint32(len(b)-from+trailerBytes))
	b = le.AppendUint32(b, checksum(b[from:]))
	return append(b, footerMagic...)
}

// footerSize is how long the footer is whose last bytes are b; 0: none.
func footerSize(trailer []byte, fileSize int64) int {
	if len(trailer) != trailerBytes || string(trailer[8:]) != footerMagic {
		return 0
	}
	n := int64(binary.LittleEndian.Uint32(trailer))
	if n < 40+trailerBytes || n > fileSize || n > 40+trailerBytes+maxBlocks*blockFooterBytes {
		return 0
	}
	return int(n)
}

// parseFooter reads a footer of exactly the size that footerSize told.
func parseFooter(b []byte, notBefore int64) (f footer, err error) {
	le := binary.LittleEndian
	n := len(b)
	body := b[40 : n-trailerBytes]
	switch {
	case string(b[:8]) != footerMagic || len(body)%blockFooterBytes != 0:
		return f, errFooter
	case checksum(b[:n-12]) != le.Uint32(b[n-12:]):
		return f, fmt.Errorf("segment footer: %w", errChecksum)
	}
	f = footer{ordinal: le.Uint64(b[8:]), first: le.Uint64(b[16:]), next: le.Uint64(b[24:]), end: int64(le.Uint64(b[32:]))}
	if f.first == 0 || f.next <= f.first || f.next > maxNumber || (f.next-f.first+blockRecords-1)/blockRecords != uint64(len(body)/blockFooterBytes) {
		return footer{}, errFooter
	}
	f.blocks = make([]block, 0, len(body)/blockFooterBytes)
	last := uint32(segmentHeaderBytes)
	for ; len(body) > 0; body = body[blockFooterBytes:] {
		k := block{off: le.Uint32(body), min: since(int64(le.Uint64(body[4:])), notBefore)}
		if k.off < last || int64(k.off) > f.end {
			return footer{}, errFooter
		}
		last = k.off
		f.blocks = append(f.blocks, k)
	}
	return f, nil
}

// since is how many whole milliseconds at is after notBefore, at most what fits:
// less is always safe to say.
func since(at, notBefore int64) uint32 {
	if at <= notBefore {
		return 0
	}
	return uint32(min((uint64(at)-uint64(notBefore))/1000, math.MaxUint32))
}

// maxTime bounds times, in microseconds either side of 1970: some 36,000 years.
const maxTime = 1 << 60

func inRange(us int64) int64 { return min(max(us, -maxTime), maxTime) }
