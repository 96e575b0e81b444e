package spool

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// recovered is what is found in a spool's directory. Finding it changes nothing
// on the disk.
type recovered struct {
	exists   bool // there has been a spool
	segments []*segment
	findings []Finding // new damage
	known    []Finding // damage that was counted before
	cut      []Finding // tails that were never acknowledged
	losses   losses    // with the new ones
	refused  []uint64  // numbers of records that Kafka refused
	hopeless []string  // segments in which nothing can be told from anything
	scraps   []string  // files that were never finished

	manifest   manifest
	manifestOK bool
	progress   progress

	ordinal uint64 // of the next segment
	number  uint64 // of the next record
	end     uint64 // the number after the last record's
	tail    segmentHeader
	disk    int64

	manifested int64 // sizes of the files
	progressed [2]int64
}

// look reads a spool's directory. With deep it reads every record of every segment,
// not only of those that were not closed in order, and tells deep how many bytes
// the next one has; an error of deep ends it.
func look(f FS, dir string, deep func(bytes int64) error) (*recovered, error) {
	r := &recovered{ordinal: 1, number: 1, end: 1}
	at := filepath.Join(dir, segmentsDir)
	var problem error
	// In this order: while a collector goes on, what is read later only holds more.
	if r.manifest, r.manifestOK, problem = readManifest(f, at); problem != nil {
		r.find(Finding{Kind: BadManifest, File: below(manifestName), What: problem.Error()})
	}
	var bad []error
	r.progress, bad = readProgress(f, at)
	r.losses = r.manifest.lost.worse(r.progress.lost)
	names, err := f.List(at)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", at, err)
	}
	if len(bad) == 2 {
		// One alone is what a crash leaves.
		r.find(Finding{Kind: BadProgress, File: below(progressA), What: errors.Join(bad...).Error()})
	}
	if err := r.load(f, at, names, deep); err != nil {
		return nil, err
	}
	r.exists = r.manifestOK || problem != nil || len(r.segments)+len(r.hopeless) > 0
	if !r.manifestOK && problem == nil && r.exists {
		r.find(Finding{Kind: BadManifest, File: below(manifestName), What: "it is missing"})
	}
	r.missing()
	r.finish()
	return r, nil
}

func below(name string) string { return filepath.Join(segmentsDir, name) }

func (r *recovered) find(f Finding) { r.findings = append(r.findings, f) }

// load reads the segments.
func (r *recovered) load(f FS, at string, names []string, deep func(int64) error) error {
	slices.Sort(names)
	var opened []*reading
	defer func() {
		for _, o := range opened {
			_ = o.f.Close() // was only read
		}
	}()
	for _, name := range names {
		path := filepath.Join(at, name)
		switch {
		case strings.HasSuffix(name, tmpSuffix):
			r.scraps = append(r.scraps, path)
			continue
		case name == refusedDir || name == damagedDir:
			r.side(f, path)
			continue
		case name == manifestName:
			r.manifested = fileSize(f, path)
		case name == progressA:
			r.progressed[0] = fileSize(f, path)
		case name == progressB:
			r.progressed[1] = fileSize(f, path)
		}
		o, err := r.open(f, path, name)
		if err != nil {
			return err
		}
		if o != nil {
			opened = append(opened, o)
		}
	}
	after := map[uint64]*segmentHeader{} // the header that tells of a segment's end
	newest := uint64(0)
	for _, o := range opened {
		if o.g.prev > 0 {
			after[o.g.prev] = &o.g.segmentHeader
		}
		newest = max(newest, o.g.ordinal)
	}
	for _, e := range r.manifest.segments {
		newest = max(newest, e.ordinal)
	}
	r.ordinal = max(newest+1, r.manifest.ordinal)
	for _, o := range opened {
		if deep != nil {
			if err := deep(o.g.size); err != nil {
				return err
			}
		}
		r.read(o, after[o.g.ordinal], o.g.ordinal == newest, deep != nil)
	}
	slices.SortFunc(r.segments, func(a, b *segment) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.ordinal, b.ordinal))
	})
	return nil
}

// side takes stock of what is set aside.
func (r *recovered) side(f FS, dir string) {
	names, err := f.List(dir)
	if err != nil {
		return // nothing is read from there that matters
	}
	for _, name := range names {
		r.disk += fileSize(f, filepath.Join(dir, name))
		if base, ok := strings.CutSuffix(name, segmentSuffix); ok && filepath.Base(dir) == refusedDir {
			if n, err := strconv.ParseUint(base, 10, 64); err == nil {
				r.refused = append(r.refused, n)
				r.number = max(r.number, n+1)
			}
		}
	}
}

func fileSize(f FS, name string) int64 {
	h, err := f.Open(name)
	if err != nil {
		return 0
	}
	defer h.Close()
	n, err := h.Size()
	if err != nil {
		return 0
	}
	return n
}

// reading is a segment while it is read.
type reading struct {
	g       *segment
	f       File
	w       window
	problem string // with its header
}

// open reads a segment's header. It returns nil for what is not a segment, and an
// error where another user, or more file handles, would help.
func (r *recovered) open(f FS, path, name string) (*reading, error) {
	ordinal, m, ok := parseSegmentName(name)
	if !ok {
		r.disk += fileSize(f, path)
		return nil, nil
	}
	h, err := f.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return nil, fmt.Errorf("open a segment: %w", err)
	}
	if err != nil {
		r.nothing(&reading{g: &segment{name: below(name), segmentHeader: segmentHeader{ordinal: ordinal, notBefore: r.floor(ordinal)}}, problem: err.Error()})
		return nil, nil
	}
	size, err := h.Size()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("size of %s: %w", path, err), h.Close())
	}
	r.disk += size
	o := &reading{f: h, w: window{f: h, size: size}}
	o.g = &segment{name: below(name), size: size, start: segmentHeaderBytes, oldest: math.MaxInt64}
	o.g.segmentHeader, err = parseSegmentHeader(o.w.bytes(0, segmentHeaderBytes, readPeek))
	if err != nil || o.g.ordinal != ordinal {
		o.problem = cmp.Or(err, errNoSegment).Error()
		if o.w.unreadable != nil {
			o.problem += fmt.Sprintf(" (%v)", o.w.unreadable)
		}
		o.g.segmentHeader = segmentHeader{ordinal: ordinal, marker: m}
	}
	return o, nil
}

// listed is the manifest's entry for a segment.
func (r *recovered) listed(ordinal uint64) (entry, bool) {
	i, ok := slices.BinarySearchFunc(r.manifest.segments, entry{ordinal: ordinal}, byOrdinal)
	if !ok {
		return entry{}, false
	}
	return r.manifest.segments[i], true
}

// acknowledged is the number below which every record was acknowledged, as far
// as was written down.
func (r *recovered) acknowledged() uint64 { return max(r.progress.number, r.manifest.number) }

// read finds out what is left of a segment. after is the header that tells where
// it ended, nil: none; newest says that no later segment was ever made.
func (r *recovered) read(o *reading, after *segmentHeader, newest, deep bool) {
	g := o.g
	e, listed := r.listed(g.ordinal)
	if o.problem != "" {
		g.first, g.notBefore = e.first, r.floor(g.ordinal)
	}
	var b bounds
	switch {
	case after != nil:
		b.end, b.next = after.prevEnd, after.prevNext
	case listed && e.next > 0:
		b.next = e.next
	case newest && r.manifestOK && (listed || g.ordinal >= r.manifest.ordinal):
		b.least = r.acknowledged()
	}
	foot, footOK := g.footer(&o.w)
	if footOK && o.problem == "" && (b.next == 0 || b.next == foot.next) {
		b, g.sealed = bounds{end: foot.end, next: foot.next}, true
	}
	var gaps, cut []gap
	if g.sealed && !deep {
		g.blocks, g.count, g.end = foot.blocks, foot.next-foot.first, foot.end
		g.removed = make([]uint64, len(g.blocks))
		g.sum()
	} else {
		gaps, cut = g.scan(&o.w, b)
	}
	if g.count == 0 {
		r.nothing(o)
		return
	}
	if o.problem != "" {
		r.find(Finding{Kind: BadSegment, File: g.name, Length: min(g.size, segmentHeaderBytes), What: o.problem})
	}
	g.apply(r.progress.removed[g.ordinal])
	for _, p := range gaps {
		r.gap(g, p)
	}
	for _, p := range cut {
		r.cut = append(r.cut, p.finding(g, 0))
	}
	r.segments = append(r.segments, g)
}

// footer reads a segment's footer, if it has a good one.
func (g *segment) footer(w *window) (footer, bool) {
	if w.size < segmentHeaderBytes+trailerBytes {
		return footer{}, false
	}
	n := footerSize(w.bytes(w.size-trailerBytes, trailerBytes, 0), w.size)
	if n == 0 {
		return footer{}, false
	}
	b := w.bytes(w.size-int64(n), n, 0)
	if len(b) < n {
		return footer{}, false
	}
	f, err := parseFooter(b, g.notBefore)
	ok := err == nil && f.ordinal == g.ordinal && f.first == g.first && f.end == w.size-int64(n)
	return f, ok
}

// gap counts what is lost in a gap.
func (r *recovered) gap(g *segment, p gap) {
	lost := g.lose(p.first, p.n)
	f := p.finding(g, lost)
	if lost == 0 && p.n > 0 {
		r.known = append(r.known, f)
		return
	}
	r.losses.add(lost, p.at)
	r.find(f)
	g.setAside(f)
}

// floor is a time that no record of a segment was received before, of which only
// the ordinal is known: its own by the manifest, else that of the nearest earlier
// segment, else of the nearest later one. (Receive times do not go back; without
// the manifest, records that were written out of order may be a little older.)
func (r *recovered) floor(ordinal uint64) int64 {
	best := entry{}
	for _, e := range r.manifest.segments {
		if best.ordinal == 0 || e.ordinal <= ordinal {
			best = e
		}
	}
	for _, g := range r.segments {
		if best.ordinal == 0 || g.ordinal < ordinal && g.ordinal > best.ordinal {
			best = entry{ordinal: g.ordinal, notBefore: g.notBefore}
		}
	}
	return best.notBefore
}

// nothing deals with a segment of which no record can be read, nor how many there
// were: every segment had one, durable, before it got its name.
func (r *recovered) nothing(o *reading) {
	g := o.g
	what := o.problem
	if what == "" {
		what = whatStretch
	}
	r.hopeless = append(r.hopeless, g.name)
	at := g.notBefore
	r.losses.add(1, at)
	t := time.UnixMicro(at)
	r.find(Finding{Kind: BadSegment, File: g.name, Length: g.size, Lost: 1, NotBefore: &t, What: what + "; at least this many"})
}

// missing looks for segments that should be there.
func (r *recovered) missing() {
	have := map[uint64]bool{}
	for _, g := range r.segments {
		have[g.ordinal] = true
	}
	for _, name := range r.hopeless {
		ordinal, _, _ := parseSegmentName(filepath.Base(name))
		have[ordinal] = true
	}
	told := false
	for _, e := range r.manifest.segments {
		if have[e.ordinal] {
			continue
		}
		next := e.next
		for _, g := range r.segments {
			if next == 0 && g.prev == e.ordinal {
				next = g.prevNext
			}
		}
		if next == 0 {
			next, told = r.acknowledged(), true // it was the newest
		}
		r.lose(e, next)
	}
	if !r.manifestOK {
		r.holes()
		return
	}
	// A segment that was acknowledged from, and neither listed yet nor there.
	if end := max(r.last(), r.manifest.number); !told && r.progress.number > end {
		r.lose(entry{ordinal: r.ordinal, first: end, notBefore: r.floor(r.ordinal)}, r.progress.number)
	}
}

// last is the number after the last record's that is there.
func (r *recovered) last() uint64 {
	end := uint64(1)
	for _, g := range r.segments {
		end = max(end, g.next())
	}
	return end
}

// lose counts a missing segment's records, less those that were removed.
func (r *recovered) lose(e entry, next uint64) {
	n := uint64(0)
	removed := r.progress.removed[e.ordinal]
	for number := e.first; number < next && number-e.first <= maxRecords; number++ {
		if !removed.covers(number) {
			n++
		}
	}
	what := "the segment is missing"
	switch {
	case next > e.first && n == 0:
		return // nothing in it was still to be sent
	case next <= e.first:
		n, what = 1, what+"; at least this many"
	}
	at := time.UnixMicro(e.notBefore)
	f := Finding{Kind: MissingSegment, File: below(fmt.Sprintf("%016x-*%s", e.ordinal, segmentSuffix)), Lost: n, NotBefore: &at, What: what}
	if next > e.first {
		f.First, f.Last = e.first, next-1
	}
	r.losses.add(n, e.notBefore)
	r.find(f)
}

// holes finds missing segments by their neighbours' numbers, where there is no
// manifest.
func (r *recovered) holes() {
	for i := 1; i < len(r.segments); i++ {
		before, g := r.segments[i-1], r.segments[i]
		if g.prev > before.ordinal && g.prevNext > before.next() {
			r.lose(entry{ordinal: g.prev, first: before.next(), notBefore: before.notBefore}, g.prevNext)
		}
	}
}

// finish takes stock.
func (r *recovered) finish() {
	kept := r.segments[:0]
	for _, g := range r.segments {
		if len(kept) > 0 && g.first < kept[len(kept)-1].next() {
			// A copy made by hand: its numbers are another segment's.
			r.hopeless = append(r.hopeless, g.name)
			r.find(Finding{Kind: BadSegment, File: g.name, Length: g.size, What: "its records are another segment's"})
			continue
		}
		kept = append(kept, g)
	}
	r.segments = kept
	r.end = max(r.last(), r.acknowledged())
	r.number = max(r.number, r.end)
	if n := len(r.segments); n > 0 {
		g := r.segments[n-1]
		r.tail = segmentHeader{prev: g.ordinal, prevEnd: g.end, prevNext: g.next()}
	}
	for _, number := range r.refused {
		// It was set aside; the crash came before that was written down.
		if i := find(r.segments, number); i < len(r.segments) && r.segments[i].has(number) {
			g := r.segments[i]
			r.losses.add(1, g.blockOldest(int((number-g.first)/blockRecords)))
			g.remove(number)
		}
	}
}
