package spool

import (
	"errors"
	"io"
	"os"
)

// FS is a file system as the spool needs it. Names are complete paths. What a
// crash may take back: a file's content since its last Sync, and what became of
// names in a directory since its last SyncDir.
type FS interface {
	MkdirAll(dir string) error
	// Create makes a file, or empties the one that is there, for writing.
	Create(name string) (File, error)
	// Open opens a file for reading; an error that is fs.ErrNotExist where there is
	// none.
	Open(name string) (File, error)
	// List returns the names in a directory, in any order; an error that is
	// fs.ErrNotExist where there is no such directory.
	List(dir string) ([]string, error)
	Rename(from, to string) error
	Remove(name string) error
	// SyncDir makes the names in a directory durable.
	SyncDir(dir string) error
	// Free is how many bytes may still be written on dir's disk.
	Free(dir string) (int64, error)
}

// File is an open file. Writes go to its end.
type File interface {
	io.Writer
	io.ReaderAt
	// Sync makes everything written durable. After an error it may be durable, or
	// not, whatever a later Sync says.
	Sync() error
	Size() (int64, error)
	Close() error
}

// OS is the operating system's file system.
func OS() FS { return osFS{} }

type osFS struct{}

// MkdirAll implements FS. A directory it makes is there after a crash.
func (osFS) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o755) }

// Create implements FS.
func (osFS) Create(name string) (File, error) {
	return file(os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644))
}

// Open implements FS.
func (osFS) Open(name string) (File, error) { return file(os.Open(name)) }

func file(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// List implements FS.
func (osFS) List(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	return names, errors.Join(err, d.Close())
}

// Rename implements FS.
func (osFS) Rename(from, to string) error { return os.Rename(from, to) }

// Remove implements FS.
func (osFS) Remove(name string) error { return os.Remove(name) }

// SyncDir implements FS.
func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

type osFile struct{ *os.File }

// Sync implements File.
func (f osFile) Sync() error { return syncData(f.File) }

// Size implements File.
func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}
