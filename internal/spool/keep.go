package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"time"
)

const (
	// saveEvery is how often what was removed is written down: a crash sends again
	// what left the spool since.
	saveEvery = time.Second
	// idleAfter is how long an empty segment waits for another record before its
	// file is given up.
	idleAfter = 10 * time.Second
)

// sealing is a segment on its way from the writer to its end.
type sealing struct {
	g      *segment
	file   File
	foot   footer
	failed bool // it is not to be written to
}

// keep does what nobody waits for, until the spool is closed: it ends segments,
// deletes the ones that are empty, copies what is damaged to the side, and keeps
// the manifest and the progress.
func (s *Spool) keep() {
	defer close(s.kept)
	t := time.NewTicker(saveEvery)
	defer t.Stop()
	for {
		select {
		case <-s.kick:
		case <-t.C:
			s.askFree()
			s.idle()
		case <-s.written:
			s.complain(s.tidy(true))
			return
		}
		s.complain(s.tidy(false))
	}
}

// complain logs an error of the keeper when it is news, and keeps the last one for
// Close.
func (s *Spool) complain(err error) {
	if err != nil && (s.complained == nil || s.complained.Error() != err.Error()) {
		s.o.Log.Warn("the spool's housekeeping failed and is tried again", "error", err)
	}
	s.complained = err
}

// idle has an empty segment given up that was not written to for a while, and the
// memory for groups.
func (s *Spool) idle() {
	s.mu.Lock()
	idle := s.o.Now().Sub(s.lastUsed) >= idleAfter && len(s.current.buf) == 0
	if idle {
		s.spare, s.current = nil, &group{}
		for _, g := range s.segments {
			if g.writing && g.left == 0 {
				s.retire = true
			}
		}
	}
	wake := s.retire
	writing := (*segment)(nil)
	if n := len(s.segments); n > 0 && s.segments[n-1].writing {
		writing = s.segments[n-1]
	}
	s.mu.Unlock()
	if writing != nil && s.missing(writing.name) {
		// What is acknowledged from now on would be gone with the process.
		s.mu.Lock()
		s.deleted, wake = writing, true
		s.mu.Unlock()
	}
	if wake {
		signal(s.wake)
	}
}

// missing reports whether somebody has deleted a file.
func (s *Spool) missing(name string) bool {
	f, err := s.o.FS.Open(filepath.Join(filepath.Dir(s.dir), name))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	_ = f.Close() // was only opened
	return false
}

// tidy does what there is to do. With all, also what would have waited for more.
func (s *Spool) tidy(all bool) error {
	var errs []error
	for _, c := range s.takeClosings() {
		if err := s.seal(c); err != nil {
			errs = append(errs, err)
		}
	}
	s.copyDamage()
	// What is lost is in both, and which records it is only in the progress: that
	// goes first, so that a crash in between does not have them counted again.
	if err := s.saveProgress(all); err != nil {
		errs = append(errs, err)
	}
	if err := s.saveManifest(); err != nil {
		// Nothing is deleted that the manifest on disk still has.
		return errors.Join(append(errs, err)...)
	}
	s.delete()
	if all {
		// A power loss would bring deleted files back: copies, but many.
		if err := s.o.FS.SyncDir(s.dir); err != nil {
			errs = append(errs, fmt.Errorf("fsync %s: %w", s.dir, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Spool) takeClosings() []*sealing {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.closings
	s.closings = nil
	return c
}

// seal writes a segment's footer. An error costs the next start a few milliseconds:
// it reads the records instead.
func (s *Spool) seal(c *sealing) error {
	if c.failed {
		_ = c.file.Close() // nothing is expected of it
		return nil
	}
	b := c.foot.append(nil, c.g.notBefore)
	_, err := c.file.Write(b)
	if err != nil {
		s.metrics.writeErrors.Inc()
	} else if err = c.file.Sync(); err != nil {
		s.metrics.syncErrors.Inc()
	}
	size, serr := c.file.Size()
	s.mu.Lock()
	if serr == nil && size > c.g.size && !c.g.gone {
		s.disk += size - c.g.size
		c.g.size = size
	}
	c.g.sealed = err == nil
	s.mu.Unlock()
	if err = errors.Join(err, c.file.Close()); err != nil {
		return fmt.Errorf("close %s: %w", c.g.name, err)
	}
	return nil
}

// saveManifest writes the manifest if it has changed or segments can go, and takes
// those out.
func (s *Spool) saveManifest() error {
	s.mu.Lock()
	// The count of what is lost never gets ahead of the progress, see tidy.
	m := manifest{ordinal: s.ordinal, number: s.end, lost: s.saved}
	var gone []*segment
	for _, g := range s.segments {
		// Not while some of what is lost is written down nowhere but in the segment.
		if g.left == 0 && !g.writing && len(g.damage) == 0 && !s.closes(g) && s.losses == s.saved {
			gone = append(gone, g)
			continue
		}
		e := entry{ordinal: g.ordinal, first: g.first, notBefore: g.notBefore}
		if !g.writing {
			e.next = g.next()
		}
		m.segments = append(m.segments, e)
	}
	changed := s.unlisted || len(gone) > 0
	s.unlisted = s.losses != s.saved
	s.mu.Unlock()
	if !changed {
		return nil
	}
	content := m.encode()
	// A crash before this is durable: the old list, and all of its files. After it:
	// the new one; a file that is not on it any more is empty, and is only sent
	// again.
	err := replace(s.o.FS, s.dir, manifestName, content)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.unlisted = true
		return fmt.Errorf("write the spool's manifest: %w", err)
	}
	s.disk += int64(len(content)) - s.manifested
	s.manifested = int64(len(content))
	for _, g := range gone {
		g.gone = true
	}
	n := 0
	for _, g := range s.segments {
		if !g.gone {
			s.segments[n] = g
			n++
		}
	}
	clear(s.segments[n:])
	s.segments = s.segments[:n]
	s.dying = append(s.dying, gone...)
	return nil
}

// closes reports whether a segment still waits for its footer.
func (s *Spool) closes(g *segment) bool {
	for _, c := range s.closings {
		if c.g == g {
			return true
		}
	}
	return false
}

// delete deletes the files of segments that are on no list any more.
func (s *Spool) delete() {
	dying := s.dying
	s.dying = nil
	for _, g := range dying {
		path := filepath.Join(filepath.Dir(s.dir), g.name)
		if g.whole {
			s.moveAside(g.name)
			continue
		}
		if err := s.o.FS.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.dying = append(s.dying, g) // again the next time
			continue
		}
		s.mu.Lock()
		s.disk -= g.size
		s.records -= g.count
		if s.free < math.MaxInt64 {
			s.free += g.size
		}
		s.mu.Unlock()
	}
}

// saveProgress writes down what was removed, if it is time.
func (s *Spool) saveProgress(all bool) error {
	s.mu.Lock()
	now := s.o.Now()
	waited := now.Sub(s.savedAt)
	if !s.unsaved || !all && !s.urgent && waited >= 0 && waited < saveEvery {
		s.mu.Unlock()
		return nil
	}
	p := progress{generation: s.generation + 1, number: s.end, lost: s.losses, removed: map[uint64]removal{}}
	for _, g := range s.segments {
		if g.left < g.count {
			p.removed[g.ordinal] = removal{first: g.first, words: append([]uint64(nil), g.removed...)}
		}
	}
	urgent := s.urgent
	s.unsaved, s.urgent = false, false
	s.mu.Unlock()
	content := p.encode()
	err := writeFile(s.o.FS, filepath.Join(s.dir, progressName(p.generation)), content, true)
	if err == nil {
		err = s.o.FS.SyncDir(s.dir)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.unsaved, s.urgent = true, urgent
		return fmt.Errorf("write what was removed: %w", err)
	}
	s.generation, s.savedAt, s.saved = p.generation, now, p.lost
	turn := &s.progressed[p.generation%2]
	s.disk += int64(len(content)) - *turn
	*turn = int64(len(content))
	return nil
}
