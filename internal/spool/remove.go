package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"sluice/pkg/batch"
)

// Remove takes records out that are in Kafka. It does no I/O: what was removed is
// written down within a second, and a crash before that brings them back as
// copies. Numbers that are not there are passed over.
func (s *Spool) Remove(numbers ...uint64) {
	removed, empty := 0, false
	s.mu.Lock()
	for _, number := range numbers {
		if i := find(s.segments, number); i < len(s.segments) && s.segments[i].remove(number) {
			removed++
			empty = empty || s.segments[i].left == 0
		}
	}
	s.left -= uint64(removed)
	s.unsaved = s.unsaved || removed > 0
	s.mu.Unlock()
	s.metrics.removed.Add(float64(removed))
	if empty {
		signal(s.kick)
	}
}

// SetAside keeps a record apart that Kafka refuses for good: in a file of its own
// in dir/segments/refused, durable when SetAside returns nil, and never returned by
// Read again. `sluice spool drain --refused` sends it, once whatever was in its way
// is mended. Until then it is acknowledged and on its way to nobody, so it counts
// in Backlog's Lost. After an error it still waits. A number that does not wait is
// no error.
func (s *Spool) SetAside(number uint64, why error) error {
	s.mu.Lock()
	i := find(s.segments, number)
	there := i < len(s.segments) && s.segments[i].has(number)
	s.mu.Unlock()
	if !there {
		return nil
	}
	q := &query{s: s, next: number, want: func(*batch.Record) bool { return true }}
	if _, err := q.one(number); err != nil {
		return fmt.Errorf("set record %d aside: %w", number, err)
	}
	if len(q.found) == 0 || q.found[0].Number != number {
		return nil // it cannot be read, and was counted for that
	}
	r := &q.found[0].Record
	size, err := s.keepApart(number, r, why)
	if err != nil {
		return fmt.Errorf("set record %d aside: %w", number, err)
	}
	// A crash before this is written down: the next start finds the file and takes
	// the record out again.
	s.mu.Lock()
	s.disk += size
	if i := find(s.segments, number); i < len(s.segments) && s.segments[i].remove(number) {
		s.left--
		s.losses.add(1, inRange(r.ReceivedAt.UnixMicro()))
		s.unlisted, s.unsaved, s.urgent = true, true, true
	}
	s.mu.Unlock()
	s.metrics.setAside.WithLabelValues("refused").Inc()
	s.o.Log.Error("Kafka refuses a batch of the spool for good; it is set aside", "batch", r.BatchID.String(), "project", r.Project,
		"collector", r.Collector.String(), "epoch", r.Epoch, "seq", r.Seq, "file", filepath.Join(segmentsDir, refusedDir, refusedName(number)), "error", why)
	signal(s.kick)
	return nil
}

// one reads the record with that number, if it is there.
func (q *query) one(number uint64) (bool, error) {
	v, _ := q.s.at(number)
	if v == nil {
		return false, nil
	}
	f, err := q.s.o.FS.Open(filepath.Join(filepath.Dir(q.s.dir), v.name))
	if err != nil {
		return false, err
	}
	defer f.Close()
	return true, q.block(&window{f: f, size: v.end}, v, 0)
}

func refusedName(number uint64) string { return fmt.Sprintf("%020d%s", number, segmentSuffix) }

// keepApart writes a record as a segment of its own, and beside it why.
func (s *Spool) keepApart(number uint64, r *batch.Record, why error) (int64, error) {
	dir := filepath.Join(s.dir, refusedDir)
	if err := s.makeDir(dir); err != nil {
		return 0, err
	}
	m := newMarker()
	h := segmentHeader{marker: m, ordinal: 1, first: number, notBefore: inRange(r.ReceivedAt.UnixMicro())}
	b := h.append(make([]byte, 0, segmentHeaderBytes+recordSize(r)))
	b = appendRecord(b, m, number, 0, r, checksum(r.Value))
	text := fmt.Appendf(nil, "%s\nrefused %s: %v\n", r.BatchID, s.o.Now().UTC().Format(time.RFC3339), why)
	// The record's file last: with it the record counts as set aside.
	if err := writeFile(s.o.FS, filepath.Join(dir, fmt.Sprintf("%020d.txt", number)), text, true); err != nil {
		return 0, err
	}
	if err := replace(s.o.FS, dir, refusedName(number), b); err != nil {
		return 0, err
	}
	return int64(len(b) + len(text)), nil
}

// makeDir makes a directory below the segments', durably.
func (s *Spool) makeDir(dir string) error {
	if err := s.o.FS.MkdirAll(dir); err != nil {
		return err
	}
	return s.o.FS.SyncDir(s.dir)
}

// moveAside renames a segment's file into dir/segments/damaged.
func (s *Spool) moveAside(name string) {
	from := filepath.Join(filepath.Dir(s.dir), name)
	dir := filepath.Join(s.dir, damagedDir)
	err := s.makeDir(dir)
	if err == nil {
		err = s.o.FS.Rename(from, filepath.Join(dir, filepath.Base(name)))
	}
	if err == nil {
		err = errors.Join(s.o.FS.SyncDir(dir), s.o.FS.SyncDir(s.dir))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.o.Log.Error("a damaged segment cannot be set aside", "file", name, "error", err)
	}
}

// copyDamage copies damaged stretches to the side, so that the rest of the segment
// can go once it is sent.
func (s *Spool) copyDamage() {
	s.mu.Lock()
	work := map[*segment][]Finding{}
	for _, g := range s.segments {
		if len(g.damage) > 0 {
			work[g] = append([]Finding(nil), g.damage...)
		}
	}
	s.mu.Unlock()
	for g, list := range work {
		whole := false
		for _, f := range list {
			whole = whole || s.copyStretch(g, f) != nil
		}
		s.mu.Lock()
		g.damage = g.damage[len(list):]
		// A full disk, say: then the file itself is what is kept.
		g.whole = g.whole || whole
		s.mu.Unlock()
	}
}

func (s *Spool) copyStretch(g *segment, f Finding) error {
	if f.Length == 0 {
		return nil
	}
	s.mu.Lock()
	_, err := s.room(f.Length)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	dir := filepath.Join(s.dir, damagedDir)
	if err := s.makeDir(dir); err != nil {
		return err
	}
	from, err := s.o.FS.Open(filepath.Join(filepath.Dir(s.dir), g.name))
	if err != nil {
		return err
	}
	defer from.Close()
	w := &window{f: from, size: f.Offset + f.Length}
	name := fmt.Sprintf("%s-%d-%d", filepath.Base(g.name), f.Offset, f.Length)
	to, err := s.o.FS.Create(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	n, err := io.Copy(to, &stretch{w: w, off: f.Offset})
	err = errors.Join(err, to.Sync(), to.Close(), s.o.FS.SyncDir(dir))
	s.mu.Lock()
	s.disk += n
	s.mu.Unlock()
	return err
}

// stretch reads part of a file, with zeros for what cannot be read.
type stretch struct {
	w   *window
	off int64
}

// Read implements io.Reader.
func (r *stretch) Read(b []byte) (int, error) {
	if r.off >= r.w.size {
		return 0, io.EOF
	}
	n := r.w.read(b[:min(int64(len(b)), r.w.size-r.off)], r.off)
	if n == 0 {
		return 0, io.EOF
	}
	r.off += int64(n)
	return n, nil
}
