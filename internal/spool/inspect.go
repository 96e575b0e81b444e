package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sluice/pkg/batch"
)

// lockFile is the file in a spool's directory that whoever changes the spool has
// locked; internal/ledger keeps the collector's id in it.
const lockFile = "collector-id"

// ErrRunning is returned by Lock where a collector has the directory.
var ErrRunning = errors.New("collector is running")

// Lock keeps collectors out of a spool's directory until unlock is called. It
// returns ErrRunning at once where one has it.
func Lock(dir string) (unlock func() error, err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrRunning
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f.Close, nil
}

// Report is what a spool's directory holds.
type Report struct {
	State    batch.SpoolState `json:"state"`
	Segments []SegmentReport  `json:"segments"`
	Records  uint64           `json:"records"`          // that wait to be sent
	Bytes    int64            `json:"bytes"`            // of those, on disk
	Oldest   *time.Time       `json:"oldest,omitempty"` // to the millisecond, rounded down, and at most 63 records older
	// Lost counts what was acknowledged and will not be sent, with what Findings
	// add; LostFrom is a time that none of it was received before.
	Lost     uint64     `json:"lost"`
	LostFrom *time.Time `json:"lost_from,omitempty"`
	// Findings are damage that no start has dealt with yet, Known damage that was
	// counted before and is still in the files, Cut what a crash left at the end of
	// a segment: nothing of that was acknowledged.
	Findings []Finding   `json:"findings"`
	Known    []Finding   `json:"known"`
	Cut      []Finding   `json:"cut"`
	SetAside []AsideFile `json:"set_aside"`
}

// SegmentReport is one file of records.
type SegmentReport struct {
	File    string     `json:"file"`
	Records uint64     `json:"records"`
	Waiting uint64     `json:"waiting"` // of those, not removed
	First   uint64     `json:"first"`   // number of the first record
	Last    uint64     `json:"last"`
	Bytes   int64      `json:"bytes"`            // of the file
	Oldest  *time.Time `json:"oldest,omitempty"` // receive time, to the millisecond
	Newest  *time.Time `json:"newest,omitempty"`
	Closed  bool       `json:"closed"` // in order, with a footer
}

// AsideFile is what was damaged, or what Kafka refused.
type AsideFile struct {
	File  string `json:"file"`
	Bytes int64  `json:"bytes"`
}

// Inspection is a look at a spool's directory. It changes nothing, and needs no
// lock: a collector may go on meanwhile, and what it appends later is not seen.
type Inspection struct {
	Report
	s *Spool
}

// Inspect looks into dir. With deep it also reads every record and checks it; deep
// is told how many bytes each file has before it is read, and ends it with an
// error. f may be nil: the operating system's files. An error is fs.ErrNotExist
// where there is no such directory.
func Inspect(f FS, dir string, deep func(bytes int64) error) (*Inspection, error) {
	if f == nil {
		f = osFS{}
	}
	if _, err := f.List(dir); err != nil {
		return nil, fmt.Errorf("inspect a spool: %w", err)
	}
	r, err := look(f, dir, deep)
	for range 3 {
		if err != nil || !slices.ContainsFunc(r.findings, func(f Finding) bool { return f.Kind == MissingSegment }) {
			break
		}
		// A collector may have deleted one between the manifest and the listing.
		var again *recovered
		if again, err = look(f, dir, deep); err != nil || len(again.findings) >= len(r.findings) {
			break
		}
		r = again
	}
	if err != nil {
		return nil, fmt.Errorf("inspect a spool: %w", err)
	}
	o := Options{FS: f}
	if err := o.defaults(); err != nil {
		return nil, err
	}
	// Reading needs no goroutine, and whatever it finds stays in memory.
	s := &Spool{o: o, dir: filepath.Join(dir, segmentsDir), kick: make(chan struct{}, 1), segments: r.segments, end: r.end, losses: r.losses}
	s.metrics = newMetrics(o.Registerer, s)
	i := &Inspection{s: s}
	i.report(r)
	for _, side := range []string{damagedDir, refusedDir} {
		if err := i.listAside(f, dir, below(side)); err != nil {
			return nil, err
		}
	}
	return i, nil
}

func moment(us int64) *time.Time {
	t := time.UnixMicro(us).UTC()
	return &t
}

func (i *Inspection) report(r *recovered) {
	i.Segments, i.SetAside = []SegmentReport{}, []AsideFile{}
	i.Findings, i.Known, i.Cut = append([]Finding{}, r.findings...), append([]Finding{}, r.known...), append([]Finding{}, r.cut...)
	switch {
	case !r.exists:
		i.State = batch.SpoolAbsent
	case len(r.findings) > 0:
		i.State = batch.SpoolDamaged
	default:
		i.State = batch.SpoolIntact
	}
	oldest := int64(math.MaxInt64)
	for _, g := range r.segments {
		i.s.left += g.left
		i.Bytes += g.bytes
		oldest = min(oldest, g.oldest)
		first, last := i.times(g)
		i.Segments = append(i.Segments, SegmentReport{File: g.name, Records: g.count, Waiting: g.left,
			First: g.first, Last: g.next() - 1, Bytes: g.size, Oldest: first, Newest: last, Closed: g.sealed})
	}
	i.Records = i.s.left
	if i.Records > 0 {
		i.Oldest = moment(oldest)
	}
	if i.Lost = r.losses.records; i.Lost > 0 {
		i.LostFrom = moment(r.losses.from)
	}
}

// times are the receive times of a segment's oldest record and its newest (that is
// the newest of its last block).
func (i *Inspection) times(g *segment) (oldest, newest *time.Time) {
	first := int64(math.MaxInt64)
	for k := range g.blocks {
		first = min(first, g.blockOldest(k))
	}
	f, err := i.s.o.FS.Open(filepath.Join(filepath.Dir(i.s.dir), g.name))
	if err != nil {
		return moment(first), nil
	}
	defer f.Close()
	k := walker{w: &window{f: f, size: g.end}, marker: g.marker, off: int64(g.blocks[len(g.blocks)-1].off), end: g.end,
		next: 1, limit: math.MaxUint64, ahead: readPeek}
	last, found := int64(math.MinInt64), false
	for it, ok := k.step(); ok; it, ok = k.step() {
		if it.header.number > 0 {
			last, found = max(last, it.header.at()), true
		}
	}
	if !found {
		return moment(first), nil
	}
	return moment(first), moment(last)
}

func (i *Inspection) listAside(f FS, dir, side string) error {
	names, err := f.List(filepath.Join(dir, side))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("inspect a spool: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		i.SetAside = append(i.SetAside, AsideFile{File: filepath.Join(side, name), Bytes: fileSize(f, filepath.Join(dir, side, name))})
	}
	return nil
}

// Read returns the records that wait, as Spool.Read does.
func (i *Inspection) Read(ctx context.Context, from uint64, maxBytes int) (records []batch.Spooled, next uint64, err error) {
	return i.s.Read(ctx, from, maxBytes, nil)
}

// Refused are the numbers of the records that Kafka refused, in order.
func (i *Inspection) Refused() []uint64 {
	var numbers []uint64
	for _, a := range i.SetAside {
		base, ok := strings.CutSuffix(filepath.Base(a.File), segmentSuffix)
		if !ok || filepath.Dir(a.File) != below(refusedDir) {
			continue
		}
		if n, err := strconv.ParseUint(base, 10, 64); err == nil {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// ReadRefused returns a record that was set aside by SetAside.
func (i *Inspection) ReadRefused(number uint64) (batch.Spooled, error) {
	name := filepath.Join(i.s.dir, refusedDir, refusedName(number))
	f, err := i.s.o.FS.Open(name)
	if err != nil {
		return batch.Spooled{}, fmt.Errorf("read a refused record: %w", err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return batch.Spooled{}, fmt.Errorf("read a refused record: %w", err)
	}
	w := &window{f: f, size: size}
	h, err := parseSegmentHeader(w.bytes(0, segmentHeaderBytes, readAhead))
	if err != nil {
		return batch.Spooled{}, fmt.Errorf("read %s: %w", name, err)
	}
	k := walker{w: w, marker: h.marker, off: segmentHeaderBytes, end: size, next: number, limit: number + 1, ahead: readAhead}
	it, ok := k.step()
	if !ok || it.header.number != number {
		return batch.Spooled{}, fmt.Errorf("read %s: %w", name, errChecksum)
	}
	r := it.header.record()
	if r.Value, ok = k.value(&it); !ok {
		return batch.Spooled{}, fmt.Errorf("read %s: %w", name, errChecksum)
	}
	return batch.Spooled{Number: number, Record: r}, nil
}

// ForgetRefused deletes a record that was set aside and is in Kafka now. Only who
// has the Lock may. It stays in Lost: the account of what went wrong.
func (i *Inspection) ForgetRefused(number uint64) error {
	dir := filepath.Join(i.s.dir, refusedDir)
	err := i.s.o.FS.Remove(filepath.Join(dir, refusedName(number)))
	if terr := i.s.o.FS.Remove(filepath.Join(dir, fmt.Sprintf("%020d.txt", number))); err == nil && !errors.Is(terr, fs.ErrNotExist) {
		err = terr
	}
	return err
}
