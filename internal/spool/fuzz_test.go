package spool

import (
	"bytes"
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

func walkAll(b []byte, m marker, from int64) (found []batch.Spooled) {
	w := &window{f: bytes.NewReader(b), size: int64(len(b))}
	k := walker{w: w, marker: m, off: from, end: int64(len(b)), limit: math.MaxUint64, ahead: readPeek}
	for it, ok := k.step(); ok; it, ok = k.step() {
		if it.header.number == 0 {
			continue
		}
		r := it.header.record()
		if v, ok := k.value(&it); ok {
			r.Value = v
			found = append(found, batch.Spooled{Number: it.header.number, Record: r})
		}
	}
	return found
}

// Whatever comes before, between and behind records, the decoder finds the intact
// ones, claims no others, and what it returns encodes to the bytes it read.
func FuzzRecord(f *testing.F) {
	m := marker{1, 2, 3, 4, 5, 6, 7, 8}
	one, two := record(1, 100), record(2, 0)
	encoded := appendRecord(appendRecord(nil, m, 1, 0, &one, checksum(one.Value)), m, 2, 1, &two, checksum(two.Value))
	later := appendRecord(appendRecord(nil, m, maxNumber-1, 0, &one, checksum(one.Value)), m, maxNumber, 1, &two, checksum(two.Value))
	f.Add(encoded, uint16(0), byte(0))
	f.Add(encoded, uint16(200), byte(1))
	f.Add(encoded[:300], uint16(0), byte(0))
	f.Add(append([]byte("garbage"), encoded...), uint16(3), byte(255))
	f.Fuzz(func(t *testing.T, b []byte, at uint16, x byte) {
		b = bytes.Clone(b)
		if int(at) < len(b) {
			b[at] ^= x
		}
		for _, r := range walkAll(b, m, 0) {
			size := recordSize(&r.Record)
			out := appendRecord(nil, m, r.Number, 0, &r.Record, checksum(r.Record.Value))
			require.Len(t, out, size)
			clear(out[124:128])
			again := walkAll(out, m, 0)
			require.LessOrEqual(t, len(again), 1)
		}
		// Behind whatever there is, two records are found: it may have begun one that
		// would reach into them, but not with their numbers.
		for _, gap := range []int{0, 1, 4095} {
			whole := append(append(bytes.Clone(b), make([]byte, gap)...), later...)
			n := 0
			for _, r := range walkAll(whole, m, 0) {
				if r.Number > maxNumber/2 {
					n++
				}
			}
			assert.LessOrEqual(t, n, 2)
			if !bytes.Contains(b, m[:]) {
				assert.Equal(t, 2, n)
			}
			assert.Empty(t, walkAll(whole, marker{9, 9, 9, 9, 9, 9, 9, 9}, 0), "found by another marker")
		}
	})
}

// A start on any bytes whatever ends in a spool that works, and claims no record
// that is not whole.
func FuzzSegment(f *testing.F) {
	m := marker{1, 2, 3, 4, 5, 6, 7, 8}
	h := segmentHeader{marker: m, ordinal: 1, first: 1, notBefore: start().UnixMicro()}
	seg := h.append(nil)
	var blocks []block
	for i := 1; i <= 3; i++ {
		r := record(i, 50)
		if i == 1 {
			blocks = append(blocks, block{off: uint32(len(seg))})
		}
		seg = appendRecord(seg, m, uint64(i), 0, &r, checksum(r.Value))
	}
	foot := footer{ordinal: 1, first: 1, next: 4, end: int64(len(seg)), blocks: blocks}
	sealed := foot.append(bytes.Clone(seg), h.notBefore)
	list := manifest{ordinal: 2, number: 4, lost: losses{from: math.MaxInt64}, segments: []entry{{ordinal: 1, first: 1, next: 4, notBefore: h.notBefore}}}
	done := progress{generation: 1, number: 4, lost: losses{from: math.MaxInt64}, removed: map[uint64]removal{1: {first: 1, words: []uint64{1}}}}
	f.Add(seg, list.encode(), done.encode(), false)
	f.Add(sealed, list.encode(), done.encode(), true)
	f.Add(sealed[:100], []byte(manifestTitle), []byte(progressMagic), false)
	f.Add([]byte{}, []byte{}, []byte{}, false)
	f.Fuzz(func(t *testing.T, seg, list, progress []byte, fix bool) {
		if fix && len(seg) >= segmentHeaderBytes {
			// Past the checksums, which chance does not get past.
			seg = bytes.Clone(seg)
			copy(seg[segmentHeaderBytes-4:], le32(checksum(seg[:segmentHeaderBytes-4])))
			if i := bytes.LastIndex(list, []byte("crc32c ")); i >= 0 {
				list = fmt.Appendf(bytes.Clone(list[:i]), "crc32c %08x\n", checksum(list[:i]))
			}
			if n := len(progress) - 4; n > 0 {
				progress = append(bytes.Clone(progress[:n]), le32(checksum(progress[:n]))...)
			}
		}
		d := &disk{FS: vfs.NewMem(), free: math.MaxInt64}
		require.NoError(t, d.MkdirAll(filepath.Join(home, segmentsDir)))
		d.write(t, filepath.Join(segmentsDir, segmentName(1, m)), seg)
		d.write(t, filepath.Join(segmentsDir, manifestName), list)
		d.write(t, filepath.Join(segmentsDir, progressA), progress)
		_, err := Inspect(d, home, func(int64) error { return nil })
		require.NoError(t, err)
		s := open(t, d)
		before := all(t, s)
		b := s.Backlog()
		require.Equal(t, uint64(len(before)), b.Records)
		r := record(7, 70)
		number := add(t, s, r)
		for _, w := range before {
			require.Less(t, w.Number, number)
		}
		require.NoError(t, s.Close())
		s = open(t, d)
		after := all(t, s)
		require.Len(t, after, len(before)+1)
		require.Equal(t, r, after[len(before)].Record)
		require.NoError(t, s.Close())
	})
}

func le32(v uint32) []byte { return []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)} }
