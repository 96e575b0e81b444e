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
	"sync"
	"syscall"

	"sluice/pkg/batch"
)

// store is what a Ledger keeps on disk, in the spool's directory:
//
//	collector-id   the id as a UUID and a newline; locked (flock) while in use
//	ledger-state   one line: the state, the id it is of, and their CRC-32C
//
// Both are written in place: collector-id once, ledger-state as one write far
// below a sector, so that a crash leaves the old line or the new one; should it
// leave neither, the checksum says so. A sync that fails is not believed later:
// the next write has the whole line again.
type store struct {
	dir       string
	id, line  *os.File
	collector batch.ID
	steps     func(what string, do func() error) error // a test's: fails steps, or ends the world

	mu    sync.Mutex // held over I/O: writers take turns
	state state      // as it was last known to be on disk
}

// state is what a start must know of the ones before it.
type state struct {
	bound   int64 // microseconds since the Unix epoch; no stamp so far is later
	claimed int64 // the same; no record's CompleteUntil so far is later
	phase   phase
}

// phase is what an id may do without Kafka. The words are those in the file.
type phase string

const (
	// fresh has no opening record in Kafka, as far as is known: whoever reads the
	// ledger may never have heard of the id. It acknowledges nothing.
	fresh phase = "new"
	// opened has one, and has not closed since: it is waited for, so it may
	// acknowledge before its next opening record is in Kafka.
	opened phase = "opened"
	// closed has a closing record, or was about to send one: it is not waited for,
	// and starts as a new one does.
	closed phase = "closed"
)

const (
	idFile    = "collector-id"
	stateFile = "ledger-state"

	maxFile   = 4 << 10
	lineBytes = 19 + 1 + 19 + 1 + 6 + 1 + 36 + 1 + 8 + 1
)

// openStore reads the id and the state. A bound beyond latest is set aside.
func openStore(dir string, latest int64, log *slog.Logger, steps func(string, func() error) error) (_ *store, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("SLUICE_SPOOL_DIR %s: %w", dir, err)
	}
	s := &store{dir: dir, steps: steps}
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
	if s.line, err = os.OpenFile(filepath.Join(dir, stateFile), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, fmt.Errorf("SLUICE_SPOOL_DIR %s: %w", dir, err)
	}
	if err := s.readState(latest, log); err != nil {
		return nil, err
	}
	// The names of both, before anything is acknowledged under the id.
	if err := s.step("sync directory", func() error { return syncDir(dir) }); err != nil {
		return nil, fmt.Errorf("SLUICE_SPOOL_DIR %s: %w", dir, err)
	}
	return s, nil
}

// readID reads the id, or makes one.
func (s *store) readID(log *slog.Logger) error {
	content, err := io.ReadAll(io.LimitReader(s.id, maxFile))
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
	if err := s.overwrite(s.id, s.collector.String()+"\n"); err != nil {
		return fmt.Errorf("write %s: %w", s.id.Name(), err)
	}
	return nil
}

// readState reads the state; without one, the id is new and times start with the
// clock. One that is no good is set aside together with the id it was for: of
// that, no receive time and no CompleteUntil may be earlier than one before. A
// state of another id (one that was set aside) is only good for its bound.
func (s *store) readState(latest int64, log *slog.Logger) error {
	s.state = state{phase: fresh}
	content, err := io.ReadAll(io.LimitReader(s.line, maxFile))
	if err != nil {
		return fmt.Errorf("read %s: %w", s.line.Name(), err)
	}
	if len(content) == 0 {
		return nil
	}
	st, id, err := parseState(content)
	if err == nil && st.bound > latest {
		err = errAhead
	}
	if err != nil {
		if err := setAside(s.dir, stateFile, content, log, err); err != nil {
			return err
		}
		return s.newID()
	}
	if id != s.collector {
		st = state{bound: st.bound, phase: fresh}
	}
	s.state = st
	return nil
}

var (
	errState   = errors.New("not a state and its checksum")
	errAhead   = errors.New("over a day ahead of the clock")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func appendState(b []byte, s state, id batch.ID) []byte {
	from := len(b)
	b = fmt.Appendf(b, "%019d %019d %-6s %s", s.bound, s.claimed, s.phase, id)
	return fmt.Appendf(b, " %08x\n", crc32.Checksum(b[from:], castagnoli))
}

// parseState reads exactly what appendState writes.
func parseState(line []byte) (state, batch.ID, error) {
	if len(line) != lineBytes {
		return state{}, batch.ID{}, errState
	}
	var s state
	var word, uuid string
	var sum uint32
	if _, err := fmt.Sscanf(string(line), "%d %d %s %s %x\n", &s.bound, &s.claimed, &word, &uuid, &sum); err != nil {
		return state{}, batch.ID{}, errState
	}
	id, err := batch.ParseID(uuid)
	s.phase = phase(word)
	known := s.phase == fresh || s.phase == opened || s.phase == closed
	if err != nil || !known || s.bound < 0 || s.claimed < 0 || string(appendState(nil, s, id)) != string(line) {
		return state{}, batch.ID{}, errState
	}
	return s, id, nil
}

// update changes the state and makes it durable. After an error either state may
// be on disk; the old one is what counts from here on.
func (s *store) update(change func(*state)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.state
	change(&next)
	if err := s.overwrite(s.line, string(appendState(nil, next, s.collector))); err != nil {
		return fmt.Errorf("write %s: %w", s.line.Name(), err)
	}
	s.state = next
	return nil
}

// overwrite replaces a file's content and makes it durable. What is there is as
// long as what comes, or there is nothing worth keeping.
func (s *store) overwrite(f *os.File, content string) error {
	name := filepath.Base(f.Name())
	if err := s.step("write "+name, func() error {
		_, err := f.WriteAt([]byte(content), 0)
		return err
	}); err != nil {
		return err
	}
	if err := s.step("truncate "+name, func() error { return f.Truncate(int64(len(content))) }); err != nil {
		return err
	}
	return s.step("sync "+name, f.Sync)
}

func (s *store) step(what string, do func() error) error {
	if s.steps != nil {
		return s.steps(what, do)
	}
	return do()
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
	for _, f := range []*os.File{s.line, s.id} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// setAside keeps a damaged file's content under a name of its own.
func setAside(dir, name string, content []byte, log *slog.Logger, why error) error {
	f, err := os.CreateTemp(dir, name+".damaged-*")
	if err != nil {
		return fmt.Errorf("set %s aside: %w", filepath.Join(dir, name), err)
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("set %s aside: %w", filepath.Join(dir, name), err)
	}
	log.Warn("file is damaged; its content is set aside", "file", filepath.Join(dir, name), "kept", f.Name(), "why", why)
	return nil
}
