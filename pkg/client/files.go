package client

import (
	"errors"
	"io"
	"os"
	"runtime"
	"time"
)

// files is a file system as the store needs it, safe for concurrent use. What a
// crash may take back: a file's content since its last Sync, and what became of
// names in a directory since its last SyncDir. A call that failed may have had its
// effect.
type files interface {
	// MkdirAll makes a directory that only this user may read (unit ids are personal
	// data), durably.
	MkdirAll(dir string) error
	List(dir string) ([]fileInfo, error)
	// Read returns a file's content; an error that is fs.ErrNotExist where there is
	// no such file.
	Read(name string) ([]byte, error)
	Create(name string) (file, error)
	Rename(from, to string) error
	// Remove returns an error that is fs.ErrNotExist where there is no such file.
	Remove(name string) error
	SyncDir(dir string) error
}

type file interface {
	io.WriteCloser
	Sync() error
}

type fileInfo struct {
	name     string
	size     int64
	modified time.Time
}

// osFiles is the operating system's.
type osFiles struct{}

func (o osFiles) MkdirAll(dir string) error {
	// The directories that are to be made, the outermost last.
	var made []string
	for d := dir; ; d = parent(d) {
		if _, err := os.Stat(d); err == nil || parent(d) == d {
			break
		}
		made = append(made, d)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, d := range made {
		if err := o.SyncDir(parent(d)); err != nil {
			return err
		}
	}
	return nil
}

func (osFiles) List(dir string) ([]fileInfo, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []fileInfo
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			continue // another process removed it meanwhile, or not ours
		}
		if err != nil {
			return nil, err
		}
		out = append(out, fileInfo{info.Name(), info.Size(), info.ModTime()})
	}
	return out, nil
}

func (osFiles) Read(name string) ([]byte, error) { return os.ReadFile(name) }

func (osFiles) Create(name string) (file, error) {
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
}

func (osFiles) Rename(from, to string) error { return os.Rename(from, to) }

func (osFiles) Remove(name string) error { return os.Remove(name) }

func (osFiles) SyncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // directories cannot be synced there; NTFS journals their names
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
