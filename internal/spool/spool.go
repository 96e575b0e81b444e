package spool

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

var (
	errClosed = errors.New("the spool is closed")
	errFull   = errors.New("the spool is full")
	errFloor  = errors.New("too little free space on the spool's disk")
)

// Spool keeps records on disk until Kafka has them. Safe for concurrent use.
// Close it.
type Spool struct {
	o       Options
	dir     string // of the segments
	marker  marker // of every segment this process makes
	state   batch.SpoolState
	metrics *metrics
	told    atomic.Int64 // lines about damage

	appended chan struct{} // news for whoever drains
	wake     chan struct{} // work for the writer
	kick     chan struct{} // work for the keeper
	closing  chan struct{}
	written  chan struct{} // the writer has ended
	kept     chan struct{} // the keeper has ended

	mu       sync.Mutex // of everything below; never held during I/O
	closed   bool
	segments []*segment // by number
	current  *group     // what the next write takes
	spare    *group     // for the one after it
	taken    chan struct{}
	number   uint64 // of the next record
	end      uint64 // the number after the last acknowledged record's
	ordinal  uint64 // of the next segment
	left     uint64 // records not removed
	records  uint64 // in the files, or about to be
	losses   losses
	disk     int64 // bytes of all files
	queued   int64 // bytes that wait to be written
	free     int64 // on the disk, when the keeper last asked, less what was written since
	failed   error // of the last write, nil once one has succeeded
	failedAt time.Time
	lastUsed time.Time // when something was last appended
	retire   bool      // the writer is asked to end its segment
	deleted  *segment  // that somebody has deleted the file of

	unlisted bool       // the manifest must be written: segments or losses have changed
	unsaved  bool       // the progress must be written
	urgent   bool       // and be durable: it says which records are lost
	closings []*sealing // segments to be closed in order

	// The keeper's alone.
	generation uint64
	savedAt    time.Time
	saved      losses // as the progress on disk has them
	manifested int64  // sizes of the files as they were last written
	progressed [2]int64
	dying      []*segment
	complained error
}

// Open takes up the spool in dir, whose files are in dir/segments: it makes the
// folder where there is none. Only one process may have it open; the lock that
// sees to this is internal/ledger's, on dir/collector-id.
//
// Damage is no error: what cannot be read is set aside under dir/segments/damaged
// with a line in the log, counted in Backlog's Lost and in the metrics, and State
// says so. Segments that were closed in order are not read here (a spool of 10 GiB
// opens in well under a second); damage in them is found by Read, or by `sluice
// spool verify`. An error is a directory that cannot be read or made, or a segment
// that this user may not open.
func Open(dir string, o Options) (*Spool, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	at := filepath.Join(dir, segmentsDir)
	r, err := look(o.FS, dir, nil)
	if err != nil {
		return nil, fmt.Errorf("open the spool in %s: %w", dir, err)
	}
	if err := o.FS.MkdirAll(at); err != nil {
		return nil, fmt.Errorf("make a spool in %s: %w", dir, err)
	}
	s := &Spool{
		o: o, dir: at, marker: newMarker(), state: batch.SpoolIntact,
		appended: make(chan struct{}, 1), wake: make(chan struct{}, 1), kick: make(chan struct{}, 1),
		closing: make(chan struct{}), written: make(chan struct{}), kept: make(chan struct{}),
		segments: r.segments, taken: make(chan struct{}), current: &group{}, spare: &group{},
		number: r.number, end: r.end, ordinal: r.ordinal, losses: r.losses, disk: r.disk,
		generation: r.progress.generation, lastUsed: o.Now(), free: math.MaxInt64,
	}
	switch {
	case !r.exists:
		s.state = batch.SpoolAbsent
	case len(r.findings) > 0:
		s.state = batch.SpoolDamaged
	}
	for _, g := range s.segments {
		s.left += g.left
		s.records += g.count
	}
	s.manifested, s.progressed = r.manifested, r.progressed
	s.saved = r.manifest.lost.worse(r.progress.lost)
	s.metrics = newMetrics(o.Registerer, s)
	s.report(r)
	for _, path := range r.scraps {
		// What a crash left half made: nothing in it was ever acknowledged.
		if err := o.FS.Remove(path); err != nil {
			o.Log.Warn("a file that was never finished cannot be deleted", "file", path, "error", err)
		}
	}
	for _, name := range r.hopeless {
		// Before the manifest forgets it: a crash in between only counts it again.
		s.moveAside(name)
	}
	// What is cut off is, too: before a new segment says that it should be there.
	s.urgent = len(r.findings)+len(r.cut) > 0 || s.losses != s.saved
	s.unlisted, s.unsaved = true, s.urgent
	s.askFree()
	// Before anything is acknowledged the names are durable, and from now on a
	// directory without a spool is a spool that was deleted.
	if err := o.FS.SyncDir(dir); err != nil {
		return nil, fmt.Errorf("make a spool in %s: %w", dir, err)
	}
	for up := filepath.Dir(filepath.Clean(dir)); up != filepath.Dir(up); up = filepath.Dir(up) {
		// Somebody may have just made them all. Those that cannot be opened were
		// there before this user came.
		_ = o.FS.SyncDir(up)
	}
	s.complain(s.tidy(true))
	go s.write(r.tail)
	go s.keep()
	return s, nil
}

// maxLines bounds what is logged of damage: of one start, and of what is read.
const maxLines = 100

// report says once what was found.
func (s *Spool) report(r *recovered) {
	for _, f := range r.findings {
		s.tell(f)
	}
	for _, f := range r.cut {
		s.o.Log.Info("the end of a segment is cut off", finding(f))
	}
}

// tell counts damage and logs it.
func (s *Spool) tell(f Finding) {
	s.metrics.damage.WithLabelValues(string(f.Kind)).Inc()
	s.metrics.setAside.WithLabelValues("damaged").Add(float64(f.Lost))
	switch n := s.told.Add(1); {
	case n <= maxLines:
		s.o.Log.Error("the spool is damaged; what can be read is delivered", finding(f))
	case n == maxLines+1:
		s.o.Log.Error("the spool is damaged in more places; sluice spool verify names them")
	}
}

func finding(f Finding) slog.Attr {
	return slog.Group("damage", "kind", string(f.Kind), "file", f.File, "offset", f.Offset, "length", f.Length,
		"lost", f.Lost, "first", f.First, "last", f.Last, "what", f.What)
}

// State is what Open found.
func (s *Spool) State() batch.SpoolState { return s.state }

// Appended receives after an Append; several may share one.
func (s *Spool) Appended() <-chan struct{} { return s.appended }

// Backlog is what waits. It does no I/O. A record is in it before its Append
// returns, and whatever becomes unreadable is in Lost from the moment it is not in
// Records any more.
func (s *Spool) Backlog() batch.Backlog {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := batch.Backlog{Records: s.left, Lost: s.losses.records}
	oldest := int64(math.MaxInt64)
	for _, g := range s.segments {
		b.Bytes += g.bytes
		oldest = min(oldest, g.oldest)
	}
	if b.Records > 0 {
		b.Oldest = time.UnixMicro(oldest)
	}
	if b.Lost > 0 {
		b.LostFrom = time.UnixMicro(s.losses.from)
	}
	return b
}

// Ready returns nil while Append may succeed: there is room in the spool and on
// the disk, and no write has failed within the last quarter of a second. It does no
// I/O.
func (s *Spool) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return retry.Mark(errClosed, retry.Shutdown)
	}
	if since := s.o.Now().Sub(s.failedAt); s.failed != nil && since >= 0 && since < failedFor {
		return s.failed
	}
	_, err := s.room(leastRoom)
	return err
}

const (
	// failedFor is how long a failed write speaks for the next one.
	failedFor = 250 * time.Millisecond
	// leastRoom is what Ready wants to see: a usual batch.
	leastRoom = 64 << 10
	// reserve is for a segment's header and footer, and for the manifest and its
	// successor.
	reserve = 32 << 10
)

// room says whether so many more bytes may be written, and if not, why not. The
// footer and the two progress files take up to half a byte a record.
func (s *Spool) room(size int64) (reason string, err error) {
	taken := s.disk + s.queued + reserve + int64(s.records/2) + 48*int64(len(s.segments))
	switch {
	case taken+size+size/recordLeastBytes > s.o.MaxBytes:
		return "full", retry.Mark(fmt.Errorf("%w: %d of %d bytes are taken (SLUICE_SPOOL_MAX_BYTES)", errFull, taken, s.o.MaxBytes), retry.Throttled)
	case s.o.MinFree > 0 && s.free-s.queued-size < s.o.MinFree:
		return "disk", retry.Mark(fmt.Errorf("%w: %d bytes, of which %d are to be left (SLUICE_SPOOL_MIN_FREE_BYTES)", errFloor, s.free, s.o.MinFree), retry.Throttled)
	}
	return "", nil
}

// askFree asks how much is free. Where that cannot be told, a full disk is noticed
// when a write fails.
func (s *Spool) askFree() {
	free, err := s.o.FS.Free(s.dir)
	if err != nil {
		free = math.MaxInt64
	}
	s.mu.Lock()
	s.free = free
	s.mu.Unlock()
}

// Close takes no more records, ends the segment in order and writes down what was
// removed. What waits stays for the next Open. No goroutine is left when it
// returns.
func (s *Spool) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		<-s.kept
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.closing)
	<-s.written
	<-s.kept
	return s.complained
}

// signal wakes whoever waits for c.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is on its way
	}
}
