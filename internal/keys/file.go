package keys

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	// version of the file's format; a newer one is refused, not guessed at.
	version = 1
	maxKeys = 10_000
	maxFile = 8 << 20
	// lock is beside the file, which is replaced as a whole and so cannot be
	// locked itself.
	lock = ".lock"
)

// Key is one entry of the file. It holds the key's hash, never the key.
type Key struct {
	ID       string    `json:"id"`      // its name in logs, limits and commands; unique in the file
	Project  string    `json:"project"` // where its events go
	SHA256   Hash      `json:"sha256"`
	Scopes   []string  `json:"scopes,omitempty"`   // ScopeExposures, ScopeEvents; empty: everything
	Rate     float64   `json:"rate,omitempty"`     // events a second; 0: unlimited
	Burst    int       `json:"burst,omitempty"`    // events at once; 0: one whole batch
	Disabled bool      `json:"disabled,omitempty"` // answered 403
	Created  time.Time `json:"created"`
}

// The scopes: what an endpoint may ask a key for.
const (
	ScopeExposures = "exposures"
	ScopeEvents    = "events"
)

type document struct {
	Version int   `json:"version"`
	Keys    []Key `json:"keys"`
}

// ErrFile is returned for a keys file whose content cannot be right.
var ErrFile = errors.New("keys file cannot be used")

// readKeys reads and checks the whole file: one bad entry and none of it counts,
// since a key that was meant to be disabled could be in what is left out.
func readKeys(path string) ([]Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open keys file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read keys file: %w", err)
	}
	keys, err := decode(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrFile, path, err)
	}
	return keys, nil
}

func decode(text []byte) ([]Key, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("it is over %d bytes", maxFile)
	}
	// The version first: a newer file may have fields that this reader would call
	// unknown, which says less.
	var head struct {
		Version *int `json:"version"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, fmt.Errorf("it is not JSON: %w", err)
	}
	if head.Version == nil || *head.Version != version {
		return nil, fmt.Errorf("want \"version\": %d", version)
	}
	var doc document
	dec := json.NewDecoder(bytes.NewReader(text))
	// A misspelled "disabled" must not be passed over.
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		return nil, err
	}
	if err := check(doc.Keys); err != nil {
		return nil, err
	}
	return doc.Keys, nil
}

func check(keys []Key) error {
	if len(keys) > maxKeys {
		return fmt.Errorf("it has %d keys: want at most %d", len(keys), maxKeys)
	}
	ids, hashes := map[string]bool{}, map[Hash]string{}
	for _, k := range keys {
		if err := k.check(); err != nil {
			return err
		}
		if ids[k.ID] {
			return fmt.Errorf("id %q comes twice", k.ID)
		}
		if other, ok := hashes[k.SHA256]; ok {
			return fmt.Errorf("key %q has the hash of key %q", k.ID, other)
		}
		ids[k.ID], hashes[k.SHA256] = true, k.ID
	}
	return nil
}

const wantName = "1 to 64 letters, digits, '.', '_' or '-'"

func (k Key) check() error {
	switch {
	case !validName(k.ID):
		return fmt.Errorf("id %q: want %s", k.ID, wantName)
	case !validName(k.Project):
		return fmt.Errorf("key %q: project %q: want %s", k.ID, k.Project, wantName)
	case k.SHA256 == Hash{}:
		return fmt.Errorf("key %q: want \"sha256\"", k.ID)
	case math.IsNaN(k.Rate) || k.Rate < 0 || k.Rate > 1e9:
		return fmt.Errorf("key %q: rate %v: want 0 (unlimited) to 1e9 events a second", k.ID, k.Rate)
	case k.Burst < 0 || k.Burst > 1e9:
		return fmt.Errorf("key %q: burst %d: want 0 (one whole batch) to 1e9 events", k.ID, k.Burst)
	case k.Burst > 0 && k.Rate == 0:
		return fmt.Errorf("key %q: burst %d without a rate: want both or neither", k.ID, k.Burst)
	}
	for _, s := range k.Scopes {
		if s != ScopeExposures && s != ScopeEvents {
			return fmt.Errorf("key %q: scope %q: want %s or %s", k.ID, s, ScopeExposures, ScopeEvents)
		}
	}
	return nil
}

func validName(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r))
	})
}

// change reads the file, has edit change the keys, and puts a new file in the
// place of the old one. A file that is not there yet has no keys. One change is
// made at a time, also by several processes.
func change(path string, edit func([]Key) ([]Key, error)) error {
	// A link keeps pointing at the file; its target is what is replaced.
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	held, err := os.OpenFile(path+lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open the keys file's lock: %w", err)
	}
	defer held.Close() // and with it the lock
	if err := syscall.Flock(int(held.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock the keys file: %w", err)
	}
	keys, err := readKeys(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if keys, err = edit(slices.Clone(keys)); err != nil {
		return err
	}
	if err := check(keys); err != nil {
		return fmt.Errorf("%w: %w", ErrFile, err)
	}
	text, err := json.MarshalIndent(document{Version: version, Keys: keys}, "", "  ")
	if err != nil {
		return fmt.Errorf("write keys file: %w", err)
	}
	return replace(path, append(text, '\n'))
}

// replace puts text in the place of the file at path. A crash at any line leaves
// the old file or the new one, whole: the new one is synced before it gets the
// name, and the directory after.
func replace(path string, text []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write keys file: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write keys file: %w", err)
		}
	}()
	if err := keepOwner(f, path); err != nil {
		return err
	}
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// keepOwner gives a new file the owner and mode of the one it replaces, so that
// a collector that could read that one can read this one. A new file is its
// maker's, mode 0600.
func keepOwner(f *os.File, path string) error {
	old, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := f.Chmod(old.Mode().Perm()); err != nil {
		return err
	}
	was, ok := old.Sys().(*syscall.Stat_t)
	now, err := f.Stat()
	if err != nil {
		return err
	}
	is, same := now.Sys().(*syscall.Stat_t)
	if !ok || !same || was.Uid == is.Uid && was.Gid == is.Gid {
		return nil
	}
	return f.Chown(int(was.Uid), int(was.Gid))
}
