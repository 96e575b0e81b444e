package client

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"
)

const home = "/exposures"

// disk is a file system in memory that a test can crash, and whose calls it can
// make fail.
type disk struct {
	mem *vfs.MemFS

	mu   sync.Mutex
	fail func(op, name string) error // nil: nothing fails
}

func newDisk() *disk { return &disk{mem: vfs.NewCrashableMem()} }

// crash is the disk after a power loss that kept what was synced and a share of the
// rest.
func (d *disk) crash(percent int, rng *rand.Rand) *disk {
	return &disk{mem: d.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})}
}

func (d *disk) failing(f func(op, name string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = f
}

// done is an error of a call that had its effect all the same.
type done struct{ error }

// try makes a call, unless it is to fail; a done error comes after its effect.
func (d *disk) try(op, name string, call func() error) error {
	d.mu.Lock()
	fail := d.fail
	d.mu.Unlock()
	if fail == nil {
		return call()
	}
	err := fail(op, name)
	if err == nil || errors.As(err, new(done)) {
		return errors.Join(err, call())
	}
	return err
}

func (d *disk) MkdirAll(dir string) error {
	return d.try("mkdir", dir, func() error {
		return errors.Join(d.mem.MkdirAll(dir, 0o700), d.SyncDir(filepath.Dir(dir)))
	})
}

func (d *disk) List(dir string) (out []fileInfo, err error) {
	err = d.try("list", dir, func() error {
		names, err := d.mem.List(dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			info, err := d.mem.Stat(filepath.Join(dir, name))
			if err != nil {
				return err
			}
			out = append(out, fileInfo{name, info.Size(), info.ModTime()})
		}
		return nil
	})
	return out, err
}

func (d *disk) Read(name string) (b []byte, err error) {
	err = d.try("read", name, func() error {
		f, err := d.mem.Open(name)
		if err != nil {
			return err
		}
		b, err = io.ReadAll(f)
		return errors.Join(err, f.Close())
	})
	return b, err
}

func (d *disk) Create(name string) (file, error) {
	var f vfs.File
	err := d.try("create", name, func() (err error) {
		f, err = d.mem.Create(name, vfs.WriteCategoryUnspecified)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &diskFile{f, d, name}, nil
}

func (d *disk) Rename(from, to string) error {
	return d.try("rename", to, func() error { return d.mem.Rename(from, to) })
}

func (d *disk) Remove(name string) error {
	return d.try("remove", name, func() error { return d.mem.Remove(name) })
}

func (d *disk) SyncDir(dir string) error {
	return d.try("syncdir", dir, func() error {
		f, err := d.mem.OpenDir(dir)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

type diskFile struct {
	vfs.File
	d    *disk
	name string
}

func (f *diskFile) Write(b []byte) (n int, err error) {
	err = f.d.try("write", f.name, func() error { n, err = f.File.Write(b); return err })
	return n, err
}

func (f *diskFile) Sync() error { return f.d.try("sync", f.name, f.File.Sync) }

// names are the files with a suffix.
func (d *disk) names(t testing.TB, suffix string) (out []string) {
	names, err := d.mem.List(home)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	require.NoError(t, err)
	for _, n := range names {
		if strings.HasSuffix(n, suffix) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// put writes a file as if it had been there.
func (d *disk) put(t testing.TB, name string, content []byte) {
	require.NoError(t, d.MkdirAll(home))
	f, err := d.Create(filepath.Join(home, name))
	require.NoError(t, err)
	_, err = f.Write(content)
	require.NoError(t, errors.Join(err, f.Sync(), f.Close(), d.SyncDir(home)))
}

func on(d *disk) func(*Options) {
	return func(o *Options) { o.Dir, o.files, o.BatchEvents = home, d, 10 }
}

func errOf(op string) error { return fmt.Errorf("%s: injected", op) }
