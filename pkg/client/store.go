package client

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	damagedSuffix = ".damaged"
	tempSuffix    = ".tmp"
	// staleTemp is how old a temporary file must be to be a dead process's.
	staleTemp = time.Hour
)

func parent(dir string) string { return filepath.Dir(dir) }

// errFull is why a batch is not written: the store has its DirMaxBytes.
var errFull = errors.New("client: keep a batch: Dir holds DirMaxBytes")

// damagedError is why a file is set aside.
type damagedError struct {
	name  string
	cause error
}

func (e *damagedError) Error() string {
	return fmt.Sprintf("client: %s is damaged (%v)", e.name, e.cause)
}

// store keeps batches in a directory, a file each. load may be called from several
// goroutines; the rest belongs to one.
type store struct {
	files files
	dir   string
	owner string // in the names of temporary files: two processes write none together
	max   int64
	bytes int64 // in the directory, as far as this process knows
	kept  int   // batches in it, likewise
}

// openStore makes the directory if need be and returns the batches in it, oldest
// first, unread. Names that are no batch's are left alone.
func openStore(f files, dir, owner string, most int64, now time.Time) (*store, []*batch, error) {
	s := &store{files: f, dir: dir, owner: owner, max: most}
	if err := f.MkdirAll(dir); err != nil {
		return nil, nil, fmt.Errorf("client: Dir: make %s: %w", dir, err)
	}
	list, err := f.List(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("client: Dir: read %s: %w", dir, err)
	}
	var found []*batch
	for _, info := range list {
		switch {
		case strings.HasSuffix(info.name, tempSuffix):
			if now.Sub(info.modified) > staleTemp {
				// What a crashed process had begun to write: it never counted as kept.
				if err := f.Remove(s.path(info.name)); err == nil {
					continue
				}
			}
		case strings.HasSuffix(info.name, fileSuffix):
			if b, ok := named(info.name); ok {
				b.size = info.size
				found = append(found, b)
			}
		}
		s.bytes += info.size
	}
	slices.SortFunc(found, func(a, b *batch) int {
		return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.key, b.key))
	})
	s.kept = len(found)
	return s, found, nil
}

// named is the batch whose file has the name.
func named(name string) (*batch, bool) {
	created, key, ok := strings.Cut(strings.TrimSuffix(name, fileSuffix), "-")
	ms, err := strconv.ParseInt(created, 10, 64)
	if !ok || err != nil || !validKey(key) {
		return nil, false
	}
	b := &batch{key: key, created: time.UnixMilli(ms), written: true, safe: true, settled: true}
	return b, b.file() == name
}

func (s *store) path(name string) string { return filepath.Join(s.dir, name) }

// save writes batches that are in memory. It returns those that are kept now, which
// a crash from here on does not lose, and those that are not, with the reason.
func (s *store) save(batches []*batch) (saved, left []*batch, err error) {
	broken := false
	for _, b := range batches {
		if broken {
			left = append(left, b)
			continue
		}
		werr := s.write(b)
		if werr == nil {
			saved = append(saved, b)
			continue
		}
		left, err = append(left, b), werr
		broken = !errors.Is(werr, errFull) // where one does not fit, a smaller one may
	}
	if len(saved) == 0 {
		return nil, left, err
	}
	// Commit point, of all of them. A crash before: their names may be gone, and the
	// batches with the memory that held them, as if never written. A crash after:
	// the next session sends them.
	if serr := s.files.SyncDir(s.dir); serr != nil {
		// The names may be there, or not. The batches stay in memory; if a file turns
		// up in the next session after all, its key makes it a copy.
		return nil, batches, fmt.Errorf("client: keep batches: sync %s: %w", s.dir, serr)
	}
	for _, b := range saved {
		b.safe = true
	}
	return saved, left, err
}

func (s *store) write(b *batch) error {
	content := b.encode()
	if !b.written && s.bytes+int64(len(content)) > s.max {
		return errFull
	}
	name := s.path(b.file())
	temp := name + "." + s.owner + tempSuffix
	f, err := s.files.Create(temp)
	if err != nil {
		return fmt.Errorf("client: keep a batch: %w", err)
	}
	_, err = f.Write(content)
	// The content is durable before the name is: a crash leaves a whole file under
	// this name, or none.
	err = errors.Join(err, f.Sync())
	if err = errors.Join(err, f.Close()); err == nil {
		// A crash before the rename leaves a temporary file that nobody reads. The
		// name may be another process's copy of the same bytes.
		err = s.files.Rename(temp, name)
	}
	if err != nil {
		err = fmt.Errorf("client: keep a batch: %w", err)
		if rerr := s.files.Remove(temp); errors.Is(rerr, fs.ErrNotExist) {
			// The rename failed and happened all the same. A name that is not known to
			// be durable is not relied on, but removed when the batch is done.
			s.note(b, int64(len(content)))
		}
		return err
	}
	s.note(b, int64(len(content)))
	return nil
}

func (s *store) note(b *batch, size int64) {
	if !b.written {
		s.bytes += size
		s.kept++
	}
	b.written, b.size = true, size
}

// load reads a batch's file. Its error is a damagedError for one that will never be
// read, and fs.ErrNotExist when another process is done with it.
func (s *store) load(b *batch) (*batch, error) {
	content, err := s.files.Read(s.path(b.file()))
	if err != nil {
		return nil, fmt.Errorf("client: read a kept batch: %w", err)
	}
	got, err := decode(content)
	if err == nil && got.file() != b.file() {
		err = errors.New("it is another batch's")
	}
	if err != nil {
		return nil, &damagedError{b.file(), err}
	}
	return got, nil
}

// remove forgets a batch's file, if there may be one. mine is false when another
// process did it before. The directory is not synced: a file that a crash brings
// back is sent again, and its key makes it a copy.
func (s *store) remove(b *batch) (mine bool, err error) {
	if !b.written {
		return true, nil
	}
	err = s.files.Remove(s.path(b.file()))
	gone := errors.Is(err, fs.ErrNotExist)
	if err != nil && !gone {
		return true, fmt.Errorf("client: remove a kept batch: %w", err)
	}
	s.forget(b)
	return !gone, nil
}

// forget takes the file off the account.
func (s *store) forget(b *batch) {
	s.bytes -= b.size
	s.kept--
	b.written, b.safe, b.size = false, false, 0
}

// setAside renames a damaged file. It goes on counting against DirMaxBytes.
func (s *store) setAside(b *batch) error {
	name := s.path(b.file())
	if err := s.files.Rename(name, name+damagedSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("client: set a damaged file aside: %w", err)
	}
	s.kept--
	b.written, b.safe = false, false
	return nil
}
