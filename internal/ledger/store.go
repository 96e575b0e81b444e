package ledger

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"sluice/pkg/batch"
)

// store is what a Ledger keeps on disk, in the spool's directory:
//
//	collector-id   the id as a UUID and a newline; locked (flock) while in use
//	not-before     a receive time in microseconds since the Unix epoch that no
//	               stamp so far has passed, and its CRC-32C, in 29 bytes
//
// Both are written in place: collector-id once, not-before as one write far
// below a sector, so that a crash leaves the old line or the new one; should it
// leave neither, the checksum says so.
type store struct {
	dir       string
	id, times *os.File
	collector batch.ID
	bound     int64
}

const (
	maxIDFile  = 4 << 10
	lineFormat = "%019d %08x\n"
	lineBytes  = 19 + 1 + 8 + 1
)

// openStore reads the id and the bound. A bound beyond latest is set aside.
func openStore(dir string, latest int64, log *slog.Logger) (_ *store, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("SLUICE_SPOOL_DIR %s: %w", dir, err)
	}
	s := &store{dir: dir}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.id, err = os.OpenFile(filepath.Join(dir, idFile), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, fmt.Errorf("SLUICE_SPOOL_DIR %s: %w", dir, err)
	}
	if err := syscall.Flock(int(s.id.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("SLUICE_SPOOL_DIR %s: %w; give each its own", dir, ErrInUse)
		}
		return nil, fmt.Errorf("SLUICE_SPOOL_DIR %s: lock %s: %w", dir, idFile, err)
	}
	// Only the lock's holder gets here.
	if err := s.readID(log); err != nil {
		return nil, err
	}
	if s.times, err = os.OpenFile(filepath.Join(dir, boundFile), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, fmt.Errorf("SLUICE_SPOOL_DIR %s: %w", dir, err)
	}
	if err := s.readBound(latest, log); err != nil {
		return nil, err
	}
	// The names of both, before anything is acknowledged under the id.
	if err := syncDir(dir); err != nil {
		return nil, fmt.Errorf("SLUICE_SPOOL_DIR %s: %w", dir, err)
	}
	return s, nil
}

// readID reads the id, or makes one.
func (s *store) readID(log *slog.Logger) error {
	content, err := io.ReadAll(io.LimitReader(s.id, maxIDFile))
	if err != nil {
		return fmt.Errorf("read %s: %w", s.id.Name(), err)
	}
	if len(content) > 0 {
		id, err := batch.ParseID(strings.TrimSpace(string(content)))
		if err == nil && !id.IsZero() {
			s.collector = id
			return nil
		}
		if err == nil {
			err = batch.ErrBadID
		}
		if err := setAside(s.dir, idFile, content, log, err); err != nil {
			return err
		}
	}
	return s.newID()
}

// newID gives the collector another id.
func (s *store) newID() error {
	s.collector = batch.Random()
	// A crash before the sync: an empty file, or half an id, under which nothing was
	// acknowledged; the next start makes another.
	if err := overwrite(s.id, s.collector.String()+"\n"); err != nil {
		return fmt.Errorf("write %s: %w", s.id.Name(), err)
	}
	return nil
}

// readBound reads the bound; without one, times start with the clock. One that is
// no good is set aside together with the id it was for: of that, no receive time
// may be earlier than one before.
func (s *store) readBound(latest int64, log *slog.Logger) error {
	content, err := io.ReadAll(io.LimitReader(s.times, maxIDFile))
	if err != nil {
		return fmt.Errorf("read %s: %w", s.times.Name(), err)
	}
	if len(content) == 0 {
		return nil
	}
	bound, err := parseBound(content)
	if err == nil && bound > latest {
		err = errAhead
	}
	if err != nil {
		if err := setAside(s.dir, boundFile, content, log, err); err != nil {
			return err
		}
		return s.newID()
	}
	s.bound = bound
	return nil
}

var (
	errBound   = errors.New("not a time and its checksum")
	errAhead   = errors.New("over a day ahead of the clock")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func appendBound(bound int64) []byte {
	digits := fmt.Appendf(nil, "%019d", bound)
	return fmt.Appendf(nil, lineFormat, bound, crc32.Checksum(digits, castagnoli))
}

func parseBound(line []byte) (int64, error) {
	var bound int64
	var sum uint32
	if len(line) != lineBytes {
		return 0, errBound
	}
	if n, err := fmt.Sscanf(string(line), "%d %x\n", &bound, &sum); n != 2 || err != nil {
		return 0, errBound
	}
	if bound < 0 || string(appendBound(bound)) != string(line) {
		return 0, errBound
	}
	return bound, nil
}

// write makes a bound durable.
func (s *store) write(bound int64) error {
	if err := overwrite(s.times, string(appendBound(bound))); err != nil {
		return fmt.Errorf("write %s: %w", s.times.Name(), err)
	}
	return nil
}

// overwrite replaces a file's content and makes it durable. What is there is as
// long as what comes, or there is nothing worth keeping.
func overwrite(f *os.File, content string) error {
	if _, err := f.WriteAt([]byte(content), 0); err != nil {
		return err
	}
	if err := f.Truncate(int64(len(content))); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// close gives the lock back with the file.
func (s *store) close() error {
	var errs []error
	for _, f := range []*os.File{s.times, s.id} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
