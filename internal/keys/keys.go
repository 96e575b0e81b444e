// Package keys keeps the write keys: a file of hashes that the sluice command
// changes and every collector reads again when it has changed.
//
// The file holds the plain SHA-256 of each key, without salt and without the
// slowness that passwords need. Those make guessing expensive; here there is
// nothing to guess: a key is made by Add from at least 128 random bits, so
// whoever reads the file would have to try 2¹²⁷ keys for an even chance, and two
// files cannot be compared for a key that people choose alike. It makes a lookup
// cheap enough to do for each request.
package keys

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// Hash is the SHA-256 of a key, written as 64 hex digits.
type Hash [sha256.Size]byte

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(h)) {
		return fmt.Errorf("sha256 of %d characters: want 64 hex digits", len(text))
	}
	if _, err := hex.Decode(h[:], text); err != nil {
		return errors.New("sha256: want 64 hex digits")
	}
	return nil
}

// ErrUnknown is returned by Lookup for a key that is not in the file.
var ErrUnknown = errors.New("no such write key")

// Grant is what a key allows.
type Grant struct {
	ID       string   // names the key; not the key itself
	Project  string   // where its events go
	Scopes   []string // empty: everything; not to be changed
	Disabled bool
	Rate     float64 // events a second; 0: unlimited
	Burst    int     // events at once; 0: one whole batch
}

// maxKey bounds what is hashed: longer than any key that Add makes.
const maxKey = 256

// Keys answers for the keys of one file. Lookup is safe for concurrent use and
// does not block: it reads a snapshot, which Run replaces.
type Keys struct {
	path string
	log  *slog.Logger
	live atomic.Pointer[snapshot]
	bad  atomic.Pointer[error] // why the file as it is now cannot be used; nil: it can

	// Run's alone.
	seen  mark
	faced string // what of a broken file was logged
}

type snapshot struct {
	byHash map[Hash]*entry
}

type entry struct {
	hash  Hash
	grant Grant
}

// Open reads the file. It returns an error for one that is not there, cannot be
// read, or cannot be right (ErrFile): a collector should not start then. log may
// be nil.
func Open(path string, log *slog.Logger) (*Keys, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	k := &Keys{path: path, log: log}
	// The mark before the content: a change between the two is read once more.
	k.seen = markOf(path)
	list, err := readKeys(path)
	if err != nil {
		return nil, err
	}
	k.live.Store(snapshotOf(list))
	return k, nil
}

func snapshotOf(list []Key) *snapshot {
	s := &snapshot{byHash: make(map[Hash]*entry, len(list))}
	for _, k := range list {
		s.byHash[k.SHA256] = &entry{hash: k.SHA256, grant: Grant{
			ID: k.ID, Project: k.Project, Scopes: k.Scopes, Disabled: k.Disabled, Rate: k.Rate, Burst: k.Burst,
		}}
	}
	return s
}

// Lookup returns what a key allows, or ErrUnknown. The map is asked for the
// key's hash, so what its timing could tell is about a hash that the sender
// cannot steer (SHA-256 has no known preimages); the hash that is found is
// compared in constant time all the same.
func (k *Keys) Lookup(key string) (Grant, error) {
	if key == "" || len(key) > maxKey {
		return Grant{}, ErrUnknown
	}
	hash := Hash(sha256.Sum256([]byte(key)))
	e := k.live.Load().byHash[hash]
	if e == nil || subtle.ConstantTimeCompare(e.hash[:], hash[:]) != 1 {
		return Grant{}, ErrUnknown
	}
	return e.grant, nil
}

// Len is how many keys are in force, disabled ones included.
func (k *Keys) Len() int { return len(k.live.Load().byHash) }

// Err is why the file, as it is now, cannot be used, or nil. While it is not
// nil, the keys from before are in force.
func (k *Keys) Err() error {
	if err := k.bad.Load(); err != nil {
		return *err
	}
	return nil
}

// Run looks at the file every interval (0: a second) and reads it again when it
// has changed, until ctx ends. A file that cannot be used leaves the keys from
// before in force, and is logged once for each thing that is wrong with it.
func (k *Keys) Run(ctx context.Context, interval time.Duration) {
	if interval <= 0 {
		interval = time.Second
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			k.refresh()
		}
	}
}

func (k *Keys) refresh() {
	now := markOf(k.path)
	if now.same(k.seen) && k.faced == "" {
		return
	}
	list, err := readKeys(k.path)
	if err != nil {
		k.bad.Store(&err)
		if text := err.Error(); text != k.faced {
			k.faced = text
			k.log.Error("keys file cannot be used; the keys known before stay in force", "error", err)
		}
		return
	}
	k.seen, k.faced = now, ""
	k.bad.Store(nil)
	k.live.Store(snapshotOf(list))
	k.log.Info("keys file was read again", "keys", len(list))
}

// mark is what tells one state of the file from another without reading it.
type mark struct{ info os.FileInfo }

// markOf follows symbolic links: Kubernetes changes a mounted file by turning
// one.
func markOf(path string) mark {
	info, err := os.Stat(path)
	if err != nil {
		return mark{}
	}
	return mark{info}
}

func (m mark) same(o mark) bool {
	if m.info == nil || o.info == nil {
		return m.info == nil && o.info == nil
	}
	return os.SameFile(m.info, o.info) && m.info.ModTime().Equal(o.info.ModTime()) && m.info.Size() == o.info.Size()
}

// NewKey is what Add makes a key of.
type NewKey struct {
	ID      string // empty: one is made up, "key-" and 8 characters
	Project string
	Scopes  []string
	Rate    float64
	Burst   int
	// Prefix goes in front of the key, for SDKs that look at how a key begins
	// (Statsig's want "secret-" or "client-"); up to 32 letters, digits, '_', '-'.
	Prefix string
}

// Errors of Add, Disable and Enable.
var (
	ErrExists = errors.New("a key with this id is in the file")
	ErrNoKey  = errors.New("no key with this id is in the file")
)

// Add makes a key, puts its hash into the file (which it makes where there is
// none) and returns the key. It is shown this once: nobody can find it out from
// the file. It returns ErrExists, ErrFile, or the error of a file that cannot be
// written. When it returns nil, the key is on disk to stay; after an error it may
// be there too, if only the last sync failed, and is then a key nobody knows.
func Add(path string, n NewKey) (string, error) {
	if len(n.Prefix) > 32 || n.Prefix != "" && (!validName(n.Prefix) || strings.Contains(n.Prefix, ".")) {
		return "", fmt.Errorf("prefix %q: want up to 32 letters, digits, '_' or '-'", n.Prefix)
	}
	if n.ID == "" {
		n.ID = "key-" + strings.ToLower(rand.Text()[:8])
	}
	// 26 characters of base32: 130 bits. rand.Text cannot fail.
	key := n.Prefix + "slk_" + strings.ToLower(rand.Text())
	err := change(path, func(keys []Key) ([]Key, error) {
		for i := range keys {
			if keys[i].ID == n.ID {
				return nil, fmt.Errorf("%w: %q", ErrExists, n.ID)
			}
		}
		return append(keys, Key{
			ID: n.ID, Project: n.Project, SHA256: sha256.Sum256([]byte(key)), Scopes: n.Scopes,
			Rate: n.Rate, Burst: n.Burst, Created: time.Now().UTC().Truncate(time.Second),
		}), nil
	})
	if err != nil {
		return "", err
	}
	return key, nil
}

// List returns the file's keys in its order. It returns fs.ErrNotExist or
// ErrFile, wrapped.
func List(path string) ([]Key, error) { return readKeys(path) }

// Disable has a key answered 403 from the next time collectors look at the file.
// It returns ErrNoKey, ErrFile, or the error of a file that cannot be written.
func Disable(path, id string) error { return set(path, id, true) }

// Enable takes Disable back.
func Enable(path, id string) error { return set(path, id, false) }

func set(path, id string, disabled bool) error {
	return change(path, func(keys []Key) ([]Key, error) {
		for i := range keys {
			if keys[i].ID == id {
				keys[i].Disabled = disabled
				return keys, nil
			}
		}
		return nil, fmt.Errorf("%w: %q", ErrNoKey, id)
	})
}
