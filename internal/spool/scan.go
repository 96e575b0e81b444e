package spool

import (
	"fmt"
	"math"
)

// maxRecords is more than a segment can hold: no number is believed that would
// make it more.
const maxRecords = (maxSegmentBytes + maxAppendBytes) / recordLeastBytes

// bounds are what is known of a segment's end before it is read.
type bounds struct {
	end   int64  // where the acknowledged records end; 0: not known
	next  uint64 // the number after the last of them; 0: not known
	least uint64 // records below it were acknowledged, though more may have been
}

const (
	whatChecksum  = "a record whose checksum does not match"
	whatStretch   = "no intact record"
	whatTruncated = "the file ends too early"
	whatMissing   = "records are missing"
	whatTorn      = "a write that was never acknowledged"
)

// scan reads all of a segment's records, fills in what is kept of them, and
// returns the gaps, and what is cut: where the end is not known, gaps in the last
// write, which a crash or an error has torn. (A write begins when the one before it
// is durable, so that any other gap is damage. Damage to the last write itself,
// within a second of a crash, looks the same as a torn one.)
func (g *segment) scan(w *window, b bounds) (gaps, cut []gap) {
	end := w.size
	if b.end > 0 {
		end = min(end, b.end)
	}
	k := walker{w: w, marker: g.marker, off: g.start, end: end, next: max(g.first, 1), limit: maxNumber, ahead: readAhead}
	if g.first > 0 {
		k.limit = g.first + maxRecords
	}
	if b.next > 0 {
		k.limit = min(k.limit, b.next)
	}
	stretch, lastGroup := gap{from: -1}, uint64(0)
	g.end = g.start
	for {
		it, ok := k.step()
		if !ok {
			break
		}
		if it.header.number == 0 {
			if stretch.from < 0 {
				stretch = gap{from: it.from, what: whatStretch}
			}
			stretch.to = it.to
			continue
		}
		at, number := it.header.at(), it.header.number
		lastGroup = it.header.group()
		if g.first == 0 {
			g.first, k.limit = number, min(k.limit, number+maxRecords)
		}
		if stretch.from >= 0 || number > g.next() {
			if stretch.from < 0 {
				stretch = gap{from: it.from, to: it.from, what: whatMissing}
			}
			gaps = append(gaps, g.close(stretch, number, it.from, at))
			stretch = gap{from: -1}
		}
		g.add(it.from, at)
		if !k.check(&it) {
			gaps = append(gaps, gap{from: it.from, to: it.to, first: number, n: 1, at: at, what: whatChecksum})
		}
		g.end = it.to
	}
	next := max(b.next, b.least)
	if g.first > 0 && next > g.next() && next-g.first <= maxRecords {
		if stretch.from < 0 {
			stretch = gap{from: g.end, to: g.end, what: whatTruncated}
		}
		gaps = append(gaps, g.close(stretch, next, stretch.to, g.notBefore))
		g.end = stretch.to
		stretch = gap{from: -1}
	}
	switch {
	case stretch.from < 0:
	case b.end > 0: // within what was acknowledged, though no number is missing
		gaps = append(gaps, stretch)
	default:
		stretch.what = whatTorn
		cut = append(cut, stretch)
	}
	g.sum()
	if b.next == 0 {
		sure := gaps[:0]
		for _, p := range gaps {
			if p.n == 0 || p.first < max(lastGroup, b.least) {
				sure = append(sure, p)
				continue
			}
			p.what = whatTorn
			cut = append(cut, p)
			g.lose(p.first, p.n)
		}
		gaps = sure
	}
	if w.unreadable != nil {
		for i := range gaps {
			gaps[i].what = fmt.Sprintf("%s (%v)", gaps[i].what, w.unreadable)
		}
	}
	return gaps, cut
}

// close ends a stretch before the record with that number, which begins at off
// and was received at at. The numbers it jumps over take that record's place in
// the blocks.
func (g *segment) close(p gap, number uint64, off, at int64) gap {
	p.first, p.at = g.next(), g.notBefore
	for g.next() < number {
		g.add(off, at)
		p.n++
	}
	return p
}

// apply takes out what the progress file says is removed.
func (g *segment) apply(r removal) {
	if r.first != g.first {
		return
	}
	for k := range min(len(g.removed), len(r.words)) {
		g.removed[k] |= r.words[k] & (math.MaxUint64 >> (blockRecords - g.blockCount(k)))
	}
	g.sum()
}

// lose takes consecutive numbers out and returns how many of them were still there.
func (g *segment) lose(first, n uint64) (lost uint64) {
	for number := first; number < first+n; number++ {
		if g.has(number) {
			i := number - g.first
			g.removed[i/blockRecords] |= 1 << (i % blockRecords)
			lost++
		}
	}
	g.sum()
	return lost
}
