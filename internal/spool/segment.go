package spool

import (
	"math"
	"math/bits"
	"slices"
)

// segment is what is known in memory of a file of records: a bit a record, and
// eight bytes a block of 64. Guarded by Spool.mu.
type segment struct {
	segmentHeader
	name string

	count uint64 // its records have the numbers first to first+count-1
	start int64  // where they begin
	end   int64  // and end
	size  int64  // of the file

	blocks  []block
	removed []uint64 // a word a block: in Kafka, set aside, or lost
	left    uint64   // not removed
	bytes   int64    // of those, by the average size of their block
	oldest  int64    // none of those was received before; math.MaxInt64: none left

	writing bool      // it is being appended to
	gone    bool      // its file is on the way out, or was found missing
	sealed  bool      // it has a footer
	damage  []Finding // what is not copied to the side yet
	whole   bool      // something could not be copied: all of it is kept in the end
}

func (g *segment) next() uint64 { return g.first + g.count }

// add takes up the record that follows, which was received at at and begins at off.
func (g *segment) add(off, at int64) {
	g.lower(at)
	k := int(g.count / blockRecords)
	if k == len(g.blocks) {
		g.blocks = append(g.blocks, block{off: uint32(off), min: math.MaxUint32})
		g.removed = append(g.removed, 0)
	}
	g.blocks[k].min = min(g.blocks[k].min, since(at, g.notBefore))
	g.oldest = min(g.oldest, g.blockOldest(k))
	g.count++
	g.left++
}

// lower makes notBefore true again for a record that was received at at. It has
// work to do only where the header that said so could not be read.
func (g *segment) lower(at int64) {
	if at >= g.notBefore {
		return
	}
	for k := range g.blocks {
		g.blocks[k].min = uint32(min(uint64(g.blocks[k].min)+uint64(since(g.notBefore, at)), math.MaxUint32))
	}
	g.notBefore = at
}

// grow is add for a group that was written: size is its length.
func (g *segment) grow(offs, ats []int64, size int64) {
	k := max(len(g.blocks)-1, 0)
	if k < len(g.blocks) {
		g.bytes -= g.share(k, g.blockLeft(k))
	}
	for i := range offs {
		g.add(offs[i], ats[i])
	}
	g.end += size
	g.size = max(g.size, g.end)
	for ; k < len(g.blocks); k++ {
		g.bytes += g.share(k, g.blockLeft(k))
	}
}

func (g *segment) blockOldest(k int) int64 {
	return g.notBefore + int64(g.blocks[k].min)*1000
}

// blockCount is how many records block k has.
func (g *segment) blockCount(k int) int {
	return int(min(g.count-uint64(k)*blockRecords, blockRecords))
}

// blockLeft is how many of them are not removed.
func (g *segment) blockLeft(k int) int {
	return g.blockCount(k) - bits.OnesCount64(g.removed[k])
}

// blockEnd is where block k ends.
func (g *segment) blockEnd(k int) int64 {
	if k+1 < len(g.blocks) {
		return int64(g.blocks[k+1].off)
	}
	return g.end
}

// share is how much of block k's bytes left of its records take up.
func (g *segment) share(k, left int) int64 {
	return (g.blockEnd(k) - int64(g.blocks[k].off)) * int64(left) / int64(g.blockCount(k))
}

// has reports whether a record is there and not removed.
func (g *segment) has(number uint64) bool {
	if number < g.first || number >= g.next() {
		return false
	}
	i := number - g.first
	return g.removed[i/blockRecords]>>(i%blockRecords)&1 == 0
}

// remove takes a record out and reports whether it was there.
func (g *segment) remove(number uint64) bool {
	if !g.has(number) {
		return false
	}
	k := int((number - g.first) / blockRecords)
	before := g.blockLeft(k)
	g.removed[k] |= 1 << ((number - g.first) % blockRecords)
	g.bytes += g.share(k, before-1) - g.share(k, before)
	g.left--
	if before == 1 {
		g.sum()
	}
	return true
}

// sum counts everything again: what is left, its bytes, and the oldest of it.
func (g *segment) sum() {
	g.left, g.bytes, g.oldest = 0, 0, math.MaxInt64
	for k := range g.blocks {
		left := g.blockLeft(k)
		if left == 0 {
			continue
		}
		g.left += uint64(left)
		g.bytes += g.share(k, left)
		g.oldest = min(g.oldest, g.blockOldest(k))
	}
}

// find is the place of the segment that has the record with that number, or of
// the first one after it.
func find(segments []*segment, number uint64) int {
	i, _ := slices.BinarySearchFunc(segments, number, func(g *segment, n uint64) int {
		if g.next() <= n {
			return -1
		}
		return 1
	})
	return i
}
