package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// slack is how much older than the first record of a segment a later one may be
// without needing a segment of its own: requests do not end in the order they came.
const slack = time.Minute

// group is the records of one write and fsync.
type group struct {
	buf   []byte
	offs  []int64 // of each record, in buf
	ats   []int64 // receive times, µs
	first uint64  // number of the first
	least int64   // of ats
	done  chan struct{}
	err   error // set before done is closed
}

// Append keeps the records and returns nil when they survive a kill -9 and a power
// loss: the file is fsynced, and the directory where the file is new. Their numbers
// are consecutive, from first on; the records' memory is the caller's again.
// Callers that come together share one write and one fsync.
//
// After an error nothing is claimed, and some of the records may be sent all the
// same: copies. When ctx ends the caller is let go with its error; should the
// records be written all the same, they are in Backlog and are sent. A spool or
// disk that is full gives a Throttled error, a record the format has no room for a
// Permanent one, a closed spool Shutdown; a write or an fsync that fails a
// Transient one: the file is not written to again, and the next Append begins
// another.
func (s *Spool) Append(ctx context.Context, records []batch.Record) (first uint64, err error) {
	if len(records) == 0 {
		return 0, nil
	}
	size := int64(0)
	var few [8]uint32
	sums := few[:0]
	for i := range records {
		r := &records[i]
		if err := storable(r); err != nil {
			return 0, retry.Mark(fmt.Errorf("spool %d records: %w", len(records), err), retry.Permanent)
		}
		size += int64(recordSize(r))
		sums = append(sums, checksum(r.Value))
	}
	if size > maxAppendBytes {
		return 0, retry.Mark(fmt.Errorf("spool %d records of %d bytes: %w (%d)", len(records), size, errTooLarge, maxAppendBytes), retry.Permanent)
	}
	g, first, err := s.join(ctx, records, sums, size)
	if err != nil {
		return 0, fmt.Errorf("spool %d records: %w", len(records), err)
	}
	signal(s.wake)
	select {
	case <-g.done:
	case <-ctx.Done():
		select {
		case <-g.done: // both at once: the better news counts
		default:
			return 0, fmt.Errorf("spool %d records: %w", len(records), ctx.Err())
		}
	}
	if g.err != nil {
		return 0, fmt.Errorf("spool %d records: %w", len(records), g.err)
	}
	return first, nil
}

// join puts the records into the group that is written next. It waits for room in
// it, not for room on the disk.
func (s *Spool) join(ctx context.Context, records []batch.Record, sums []uint32, size int64) (*group, uint64, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, 0, retry.Mark(errClosed, retry.Shutdown)
		}
		if reason, err := s.room(size); err != nil {
			s.mu.Unlock()
			s.metrics.refused.WithLabelValues(reason).Inc()
			return nil, 0, err
		}
		g := s.current
		if len(g.buf) > 0 && int64(len(g.buf))+size > groupBytes {
			taken := s.taken
			s.mu.Unlock()
			select {
			case <-taken:
			case <-ctx.Done():
			}
			continue
		}
		if len(g.buf) == 0 {
			g.first, g.least, g.done = s.number, math.MaxInt64, make(chan struct{})
		}
		first := s.number
		for i := range records {
			r := &records[i]
			at := inRange(r.ReceivedAt.UnixMicro())
			g.offs, g.ats, g.least = append(g.offs, int64(len(g.buf))), append(g.ats, at), min(g.least, at)
			g.buf = appendRecord(g.buf, s.marker, s.number, len(g.offs)-1, r, sums[i])
			s.number++
		}
		s.queued += size
		s.records += uint64(len(records))
		s.mu.Unlock()
		return g, first, nil
	}
}

// take is the group that is to be written, nil where there is none.
func (s *Spool) take() *group {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.current.buf) == 0 {
		return nil
	}
	g := s.current
	s.current, s.spare = s.spare, nil
	if s.current == nil {
		s.current = &group{}
	}
	close(s.taken)
	s.taken = make(chan struct{})
	return g
}

// finish tells the group's callers, and keeps its memory for another.
func (s *Spool) finish(g *group, err error) {
	s.mu.Lock()
	s.queued -= int64(len(g.buf))
	if err != nil {
		s.records -= uint64(len(g.offs))
		s.failed, s.failedAt = err, s.o.Now()
	} else {
		s.failed = nil
	}
	if s.spare == nil && cap(g.buf) <= 2*groupBytes {
		s.spare = &group{buf: g.buf[:0], offs: g.offs[:0], ats: g.ats[:0]}
	}
	s.mu.Unlock()
	if err != nil {
		s.metrics.refused.WithLabelValues("error").Add(float64(len(g.offs)))
	} else {
		s.metrics.appended.Add(float64(len(g.offs)))
		signal(s.appended)
	}
	g.err = err
	close(g.done)
}

// writer is the goroutine that appends. It alone has the file.
type writer struct {
	s    *Spool
	file File
	g    *segment      // nil: the next group begins one
	tail segmentHeader // prev, prevEnd and prevNext of the segment that comes next
}

// write appends group after group until the spool is closed.
func (s *Spool) write(tail segmentHeader) {
	defer close(s.written)
	w := &writer{s: s, tail: tail}
	for {
		w.retire()
		if g := s.take(); g != nil {
			began := time.Now()
			err := w.commit(g)
			s.metrics.commit.Observe(time.Since(began).Seconds())
			s.finish(g, err)
			continue
		}
		select {
		case <-s.wake:
		case <-s.closing:
			// Nothing joins any more; what did is written.
			for g := s.take(); g != nil; g = s.take() {
				s.finish(g, w.commit(g))
			}
			w.end()
			return
		}
	}
}

// commit writes a group and makes it durable.
func (w *writer) commit(g *group) error {
	if w.g != nil && (w.g.end+int64(len(g.buf)) > w.s.o.SegmentBytes || g.least < w.g.notBefore) {
		w.end()
	}
	if w.g == nil {
		return w.begin(g)
	}
	// A crash from here until the sync returns: some of the group's records may be
	// there, whole, and are sent; nobody was told of them. What is torn is cut off.
	_, err := w.file.Write(g.buf)
	if err != nil {
		w.s.metrics.writeErrors.Inc()
		err = fmt.Errorf("write %s: %w", w.g.name, err)
	} else if err = w.file.Sync(); err != nil {
		// The kernel may have dropped the pages it could not write and say "done" the
		// next time: this file is not asked again.
		w.s.metrics.syncErrors.Inc()
		err = fmt.Errorf("fsync %s: %w", w.g.name, err)
	}
	if err != nil {
		w.abandon()
		return retry.Mark(err, retry.Transient)
	}
	w.s.mu.Lock()
	w.acknowledge(g)
	w.s.mu.Unlock()
	return nil
}

// acknowledge takes a durable group into the account. The caller holds the lock.
func (w *writer) acknowledge(g *group) {
	s, base := w.s, w.g.end
	for i := range g.offs {
		g.offs[i] += base
	}
	before := w.g.size
	w.g.grow(g.offs, g.ats, int64(len(g.buf)))
	s.left += uint64(len(g.offs))
	s.end = w.g.next()
	s.disk += w.g.size - before
	s.free = max(0, s.free-int64(len(g.buf)))
	s.lastUsed, s.unsaved = s.o.Now(), true
}

// begin makes a segment whose first records are the group's. It gets its name only
// when they are durable, so that a segment without a record is damage, always.
func (w *writer) begin(g *group) (err error) {
	s := w.s
	h := w.tail
	h.marker, h.first = s.marker, g.first
	h.notBefore = inRange(g.least - slack.Microseconds())
	s.mu.Lock()
	h.ordinal = s.ordinal
	s.ordinal++ // never used again, whatever becomes of this one
	s.mu.Unlock()
	name := segmentName(h.ordinal, h.marker)
	path := filepath.Join(s.dir, name)
	f, err := w.create(path, h, g)
	if err != nil {
		return retry.Mark(err, retry.Transient)
	}
	w.file = f
	w.g = &segment{segmentHeader: h, name: below(name), start: segmentHeaderBytes, end: segmentHeaderBytes, oldest: math.MaxInt64, writing: true}
	s.mu.Lock()
	s.segments = append(s.segments, w.g)
	w.acknowledge(g)
	s.unlisted = true
	s.mu.Unlock()
	signal(s.kick)
	return nil
}

func (w *writer) create(path string, h segmentHeader, g *group) (f File, err error) {
	s, tmp := w.s, path+tmpSuffix
	defer func() {
		if err == nil {
			return
		}
		if f != nil {
			_ = f.Close() // it is given up
		}
		// A crash may bring either name back: the next start deletes the one, and
		// sends what is whole in the other.
		_, _ = s.o.FS.Remove(tmp), s.o.FS.Remove(path)
	}()
	if f, err = s.o.FS.Create(tmp); errors.Is(err, fs.ErrNotExist) {
		// Somebody has deleted the folder.
		if err = s.o.FS.MkdirAll(s.dir); err == nil {
			err = s.o.FS.SyncDir(filepath.Dir(s.dir))
		}
		if err == nil {
			f, err = s.o.FS.Create(tmp)
		}
	}
	if err != nil {
		s.metrics.writeErrors.Inc()
		return nil, fmt.Errorf("create a segment: %w", err)
	}
	_, err = f.Write(h.append(make([]byte, 0, segmentHeaderBytes)))
	if err == nil {
		_, err = f.Write(g.buf)
	}
	if err != nil {
		s.metrics.writeErrors.Inc()
		return f, fmt.Errorf("write %s: %w", tmp, err)
	}
	if err = f.Sync(); err != nil {
		s.metrics.syncErrors.Inc()
		return f, fmt.Errorf("fsync %s: %w", tmp, err)
	}
	if err = s.o.FS.Rename(tmp, path); err != nil {
		s.metrics.writeErrors.Inc()
		return f, fmt.Errorf("name %s: %w", path, err)
	}
	// Without this the power loss takes the file, and all that is in it.
	if err = s.o.FS.SyncDir(s.dir); err != nil {
		s.metrics.syncErrors.Inc()
		return f, fmt.Errorf("fsync %s: %w", s.dir, err)
	}
	return f, nil
}

// abandon leaves a segment as it is after an error. What was acknowledged of it can
// be read; where that ends, the next segment's header says.
func (w *writer) abandon() {
	size, err := w.file.Size()
	if err != nil {
		size = w.g.end
	}
	w.s.mu.Lock()
	w.s.disk += max(0, size-w.g.size)
	w.g.size = max(w.g.size, size)
	w.s.mu.Unlock()
	w.s.o.Log.Warn("a segment of the spool is not written to any more, after an error", "file", w.g.name)
	w.release(nil)
}

// end closes the segment in order.
func (w *writer) end() {
	if w.g != nil {
		w.release(&sealing{g: w.g, file: w.file, foot: footer{ordinal: w.g.ordinal, first: w.g.first}})
	}
}

// release lets the segment go; the keeper closes it.
func (w *writer) release(c *sealing) {
	s := w.s
	w.tail = segmentHeader{prev: w.g.ordinal, prevEnd: w.g.end, prevNext: w.g.next()}
	if c == nil {
		c = &sealing{g: w.g, file: w.file, failed: true}
	}
	s.mu.Lock()
	c.foot.next, c.foot.end = w.g.next(), w.g.end
	c.foot.blocks = append(c.foot.blocks, w.g.blocks...)
	w.g.writing, s.retire, s.unlisted = false, false, true
	s.closings = append(s.closings, c)
	s.mu.Unlock()
	w.g, w.file = nil, nil
	signal(s.kick)
}

// retire ends a segment that the keeper found empty and unused, and leaves one
// whose file somebody has deleted.
func (w *writer) retire() {
	w.s.mu.Lock()
	idle := w.s.retire && w.g != nil && w.g.left == 0
	lost := w.s.deleted != nil && w.s.deleted == w.g
	w.s.retire, w.s.deleted = false, nil
	w.s.mu.Unlock()
	switch {
	case lost:
		w.abandon()
	case idle:
		w.end()
	}
}
