package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// Read returns records that wait, oldest first: those with a number of at least
// from, neither removed nor set aside, for which want is true. want sees a record
// without its Value, and may keep nothing of it; nil wants them all. It stops at
// about maxBytes (by batch.Record.Size), but returns at least one record if there is
// any. next is where to go on; without records there are none now, up to next.
//
// What cannot be read is passed over and counted in Backlog's Lost, and Read goes
// on behind it. An error is ctx's, or a file that cannot be opened at all, such as
// for want of file handles; the records read until then come with it. Called
// concurrently, also with Append and Remove; the caller owns the records.
func (s *Spool) Read(ctx context.Context, from uint64, maxBytes int, want func(*batch.Record) bool) (records []batch.Spooled, next uint64, err error) {
	q := &query{s: s, next: from, room: maxBytes, want: want}
	for {
		if err := ctx.Err(); err != nil {
			return q.found, q.next, fmt.Errorf("read the spool: %w", err)
		}
		done, err := q.segment(ctx)
		if err != nil {
			return q.found, q.next, fmt.Errorf("read the spool: %w", err)
		}
		if done {
			return q.found, q.next, nil
		}
	}
}

// query is one Read.
type query struct {
	s     *Spool
	next  uint64
	room  int
	want  func(*batch.Record) bool
	found []batch.Spooled
}

func (q *query) full() bool { return len(q.found) > 0 && q.room <= 0 }

// view is a segment as it was at one moment.
type view struct {
	g       *segment
	name    string
	marker  marker
	first   uint64
	end     int64
	k       int // the block to begin with
	blocks  []block
	counts  uint64
	removed []uint64
}

// at is the segment to go on in; nil where nothing waits from there to before end.
func (s *Spool) at(from uint64) (v *view, end uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := find(s.segments, from); i < len(s.segments); i++ {
		g := s.segments[i]
		if g.left == 0 {
			continue
		}
		k := int((max(from, g.first) - g.first) / blockRecords)
		return &view{g: g, name: g.name, marker: g.marker, first: g.first, end: g.end, k: k,
			blocks: append([]block(nil), g.blocks[k:]...), counts: g.count,
			removed: append([]uint64(nil), g.removed[k:]...)}, s.end
	}
	return nil, s.end
}

// segment reads on in the segment that has the next record. It returns true when
// there is nothing more, or enough is found.
func (q *query) segment(ctx context.Context) (done bool, err error) {
	v, end := q.s.at(q.next)
	if v == nil {
		q.next = max(q.next, end)
		return true, nil
	}
	q.next = max(q.next, v.first)
	f, err := q.s.o.FS.Open(filepath.Join(filepath.Dir(q.s.dir), v.name))
	if errors.Is(err, fs.ErrNotExist) {
		q.s.vanished(v.g)
		return false, nil
	}
	if err != nil {
		return false, retry.Mark(err, retry.Transient)
	}
	defer f.Close()
	w := &window{f: f, size: v.end}
	for i := range v.blocks {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if err := q.block(w, v, i); err != nil {
			return false, err
		}
		if q.full() {
			return true, nil
		}
	}
	return false, nil
}

// last is the number after the last one of the view's i-th block.
func (v *view) last(i int) uint64 {
	return v.first + min(uint64(v.k+i+1)*blockRecords, v.counts)
}

func (v *view) has(i int, number uint64) bool {
	return v.removed[i]>>((number-v.first)%blockRecords)&1 == 0
}

// block reads what is wanted of one block.
func (q *query) block(w *window, v *view, i int) error {
	begin := v.first + uint64(v.k+i)*blockRecords
	end := v.last(i)
	full := uint64(math.MaxUint64)
	if n := end - begin; n < blockRecords {
		full = 1<<n - 1
	}
	if v.removed[i]&full == full || q.next >= end {
		q.next = max(q.next, end)
		return nil
	}
	stop := v.end
	if i+1 < len(v.blocks) {
		stop = int64(v.blocks[i+1].off)
	}
	k := walker{w: w, marker: v.marker, off: int64(v.blocks[i].off), end: stop, next: begin, limit: end, ahead: readAhead}
	expect := begin
	stretch := gap{from: -1, what: whatStretch}
	for {
		it, ok := k.step()
		if !ok {
			break
		}
		if it.header.number == 0 {
			if stretch.from < 0 {
				stretch.from = it.from
			}
			stretch.to = it.to
			continue
		}
		number, at := it.header.number, it.header.at()
		if number > expect {
			q.gap(w, v, i, stretch, expect, number, it.from)
		}
		expect, stretch = number+1, gap{from: -1, what: whatStretch}
		q.next = max(q.next, number)
		if number < q.next || !v.has(i, number) {
			continue
		}
		r := it.header.record()
		if q.want != nil && !q.want(&r) {
			k.ahead = readPeek
			q.next = number + 1
			continue
		}
		k.ahead = readAhead
		if len(q.found) > 0 && r.Size()+it.header.value > q.room {
			q.room = 0
			return nil
		}
		value, ok := k.value(&it)
		if !ok {
			q.s.damaged(v.g, gap{from: it.from, to: it.to, first: number, n: 1, at: at, what: whatChecksum}, w.unreadable)
			w.unreadable = nil
			q.next = number + 1
			continue
		}
		r.Value = value
		q.room -= r.Size()
		q.found = append(q.found, batch.Spooled{Number: number, Record: r})
		q.next = number + 1
		if q.full() {
			return nil
		}
	}
	if expect < end {
		q.gap(w, v, i, stretch, expect, end, stop)
	}
	q.next = max(q.next, end)
	return nil
}

// gap is for the numbers from first to before next, which should come before off.
func (q *query) gap(w *window, v *view, i int, p gap, first, next uint64, off int64) {
	if p.from < 0 {
		p.from, p.to, p.what = off, off, whatMissing
	}
	p.first, p.n = first, next-first
	q.s.mu.Lock()
	p.at = v.g.notBefore + int64(v.blocks[i].min)*1000
	q.s.mu.Unlock()
	q.s.damaged(v.g, p, w.unreadable)
	w.unreadable = nil
}

// maxCopies is of how many stretches of one segment copies are made; with more,
// the whole file is kept.
const maxCopies = 256

// damaged counts what a gap costs. From this moment it is in Lost and not in
// Records.
func (s *Spool) damaged(g *segment, p gap, why error) {
	if why != nil {
		p.what = fmt.Sprintf("%s (%v)", p.what, why)
	}
	s.mu.Lock()
	lost := g.lose(p.first, p.n)
	f := p.finding(g, lost)
	if lost > 0 {
		s.left -= lost
		s.losses.add(lost, p.at)
		s.unlisted, s.unsaved, s.urgent = true, true, true
		g.setAside(f)
	}
	s.mu.Unlock()
	if lost == 0 {
		return // counted before, or nothing that was still to be sent
	}
	s.tell(f)
	signal(s.kick)
}

// setAside has a damaged stretch copied before the segment's file goes.
func (g *segment) setAside(f Finding) {
	if len(g.damage) >= maxCopies {
		g.whole = true
		return
	}
	g.damage = append(g.damage, f)
}

// vanished counts a segment whose file somebody has deleted.
func (s *Spool) vanished(g *segment) {
	s.mu.Lock()
	if g.gone {
		s.mu.Unlock()
		return
	}
	lost := g.left
	p := gap{first: g.first, n: g.count, at: g.oldest, what: "the segment is missing"}
	f := p.finding(g, lost)
	f.Kind = MissingSegment
	s.losses.add(g.lose(g.first, g.count), p.at)
	s.left -= lost
	s.unlisted, s.unsaved, s.urgent = true, true, true
	s.mu.Unlock()
	if lost == 0 {
		return
	}
	s.tell(f)
	signal(s.kick)
}
