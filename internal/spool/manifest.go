package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
)

// Names in the spool's directory.
const (
	segmentsDir = "segments"
	damagedDir  = "damaged"
	refusedDir  = "refused"

	segmentSuffix = ".seg"
	tmpSuffix     = ".tmp"
	manifestName  = "manifest"
	progressA     = "progress.a"
	progressB     = "progress.b"

	manifestTitle = "sluice-spool-manifest 1"
	// maxManifest bounds what is read of one: over a million segments.
	maxManifest = 128 << 20
)

// losses are the records that will not be sent: acknowledged, and gone, or
// refused by Kafka.
type losses struct {
	records uint64
	from    int64 // none of them was received before; math.MaxInt64: there are none
}

// add counts n records of which none was received before at.
func (l *losses) add(n uint64, at int64) {
	if n > 0 {
		l.records += n
		l.from = min(l.from, at)
	}
}

// worse is the one of two accounts that has more.
func (l losses) worse(o losses) losses {
	return losses{max(l.records, o.records), min(l.from, o.from)}
}

// entry is a segment that must be there.
type entry struct {
	ordinal   uint64
	first     uint64
	next      uint64 // the number after its last record's; 0: it was being written to
	notBefore int64
}

// manifest says which segments there are, so that one that is missing is
// noticed, and what was lost so far. It is replaced as a whole, durably, before a
// segment's file is deleted and soon after one is made:
//
//	sluice-spool-manifest 1
//	next SEGMENT RECORD       the ordinals and numbers below were given
//	lost COUNT MICROSECONDS
//	segment ORDINAL FIRST-RECORD NEXT-RECORD NOT-BEFORE-MICROSECONDS   (any number)
//	crc32c CHECKSUM-OF-ALL-ABOVE
type manifest struct {
	ordinal  uint64 // of the next segment
	number   uint64 // the records below are in the segments, or gone
	lost     losses
	segments []entry
}

func (m *manifest) encode() []byte {
	b := fmt.Appendf(nil, "%s\nnext %d %d\nlost %d %d\n", manifestTitle, m.ordinal, m.number, m.lost.records, m.lost.from)
	for _, e := range m.segments {
		b = fmt.Appendf(b, "segment %d %d %d %d\n", e.ordinal, e.first, e.next, e.notBefore)
	}
	return fmt.Appendf(b, "crc32c %08x\n", checksum(b))
}

var errManifest = errors.New("not a manifest")

func parseManifest(b []byte) (m manifest, err error) {
	at := bytes.LastIndex(b, []byte("crc32c "))
	if at < 0 {
		return m, errManifest
	}
	if string(b[at:]) != fmt.Sprintf("crc32c %08x\n", checksum(b[:at])) {
		return m, fmt.Errorf("manifest: %w", errChecksum)
	}
	lines := bytes.Split(bytes.TrimSuffix(b[:at], []byte("\n")), []byte("\n"))
	if len(lines) < 3 || string(lines[0]) != manifestTitle {
		return m, errManifest
	}
	scan := func(line []byte, format string, v ...any) bool {
		n, err := fmt.Sscanf(string(line), format, v...)
		return err == nil && n == len(v)
	}
	if !scan(lines[1], "next %d %d", &m.ordinal, &m.number) || !scan(lines[2], "lost %d %d", &m.lost.records, &m.lost.from) {
		return manifest{}, errManifest
	}
	for _, line := range lines[3:] {
		var e entry
		if !scan(line, "segment %d %d %d %d", &e.ordinal, &e.first, &e.next, &e.notBefore) || e.ordinal == 0 || e.first == 0 ||
			max(e.ordinal, e.first, e.next) > maxNumber || e.notBefore != inRange(e.notBefore) {
			return manifest{}, errManifest
		}
		m.segments = append(m.segments, e)
	}
	if m.ordinal == 0 || m.number == 0 || max(m.ordinal, m.number) > maxNumber || !slices.IsSortedFunc(m.segments, byOrdinal) {
		return manifest{}, errManifest
	}
	return m, nil
}

func byOrdinal(a, b entry) int {
	switch {
	case a.ordinal < b.ordinal:
		return -1
	case a.ordinal > b.ordinal:
		return 1
	}
	return 0
}

// replace writes a file that is complete and durable, or not there: under another
// name first, which is then given to it. A crash before the rename is durable
// leaves the file that was there before.
func replace(f FS, dir, name string, content []byte) error {
	tmp := filepath.Join(dir, name+tmpSuffix)
	if err := writeFile(f, tmp, content, true); err != nil {
		return err
	}
	if err := f.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("rename %s: %w", tmp, err)
	}
	if err := f.SyncDir(dir); err != nil {
		return fmt.Errorf("fsync %s: %w", dir, err)
	}
	return nil
}

func writeFile(f FS, name string, content []byte, durable bool) error {
	w, err := f.Create(name)
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	if _, err = w.Write(content); err != nil {
		err = fmt.Errorf("write %s: %w", name, err)
	} else if durable {
		if err = w.Sync(); err != nil {
			err = fmt.Errorf("fsync %s: %w", name, err)
		}
	}
	return errors.Join(err, w.Close())
}

// readFile reads a small file whole; an error that is fs.ErrNotExist where there
// is none.
func readFile(f FS, name string, most int64) ([]byte, error) {
	r, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	size, err := r.Size()
	if err != nil {
		return nil, err
	}
	if size > most {
		return nil, fmt.Errorf("%s has %d bytes: %w", name, size, errTooLarge)
	}
	b := make([]byte, size)
	n, err := r.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b[:n], nil
}

// readManifest reads the manifest; found says whether there is a good one, err
// what is wrong with the one that is there.
func readManifest(f FS, dir string) (m manifest, found bool, err error) {
	none := manifest{ordinal: 1, number: 1, lost: losses{from: math.MaxInt64}}
	b, err := readFile(f, filepath.Join(dir, manifestName), maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return none, false, nil
	}
	if err == nil {
		m, err = parseManifest(b)
	}
	if err != nil {
		return none, false, err
	}
	return m, true, nil
}
