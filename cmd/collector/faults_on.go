//go:build faults

package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"sluice/internal/publish"
	"sluice/internal/spool"
	"sluice/pkg/batch"
)

// What the fault tests tell a collector that was built for them:
//
//	SLUICE_TEST_SPOOL_FAULT=FILE    the file says what is wrong with the spool's
//	                                disk at the moment: enospc, fsync, or nothing
//	SLUICE_TEST_CLOCK=FILE          the file says by how much the collector's clock
//	                                is wrong at the moment, as -90s
//	SLUICE_TEST_BREAK=ack-before-fsync|skip-record
//	                                breaks the delivery protocol on purpose, so that
//	                                the tests can show that they would notice
const (
	faultVariable = "SLUICE_TEST_SPOOL_FAULT"
	clockVariable = "SLUICE_TEST_CLOCK"
	breakVariable = "SLUICE_TEST_BREAK"
)

// clock is a clock that can be set while the collector runs.
func clock(environ []string) func() time.Time {
	file := variable(environ, clockVariable)
	if file == "" {
		return time.Now
	}
	var mu sync.Mutex
	var looked time.Time
	var off time.Duration
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if now.Sub(looked) > 50*time.Millisecond {
			looked = now
			off = 0
			if b, err := os.ReadFile(file); err == nil {
				if d, err := time.ParseDuration(strings.TrimSpace(string(b))); err == nil {
					off = d
				}
			}
		}
		return now.Round(0).Add(off)
	}
}

func variable(environ []string, name string) string {
	for _, kv := range environ {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// spoolFiles is a file system on which a kill -9 does what a power loss does:
// what was not synced is gone.
func spoolFiles(environ []string, log *slog.Logger) spool.FS {
	early := variable(environ, breakVariable) == "ack-before-fsync"
	if early {
		log.Error("the delivery protocol is broken on purpose: the spool does not wait for its disk")
	}
	return &lossyFiles{FS: spool.OS(), fault: variable(environ, faultVariable), early: early}
}

type lossyFiles struct {
	spool.FS
	fault string // names a file; empty: nothing is ever wrong
	early bool
}

// wrong is what is wrong with the disk at the moment.
func (l *lossyFiles) wrong() string {
	if l.fault == "" {
		return ""
	}
	b, err := os.ReadFile(l.fault)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Create implements spool.FS.
func (l *lossyFiles) Create(name string) (spool.File, error) {
	if l.wrong() == "enospc" {
		return nil, &os.PathError{Op: "create", Path: name, Err: syscall.ENOSPC}
	}
	f, err := l.FS.Create(name)
	if err != nil {
		return nil, err
	}
	return &lossyFile{File: f, files: l, name: name}, nil
}

// lossyFile keeps what was written in memory until it is synced.
type lossyFile struct {
	spool.File
	files *lossyFiles
	name  string

	mu     sync.Mutex
	synced int64 // bytes in the file below
	tail   []byte
	closed bool
}

// Write implements spool.File.
func (f *lossyFile) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.files.wrong() == "enospc" {
		n := len(p) / 2 // as a disk does whose last block is given away
		f.tail = append(f.tail, p[:n]...)
		return n, &os.PathError{Op: "write", Path: f.name, Err: syscall.ENOSPC}
	}
	f.tail = append(f.tail, p...)
	return len(p), nil
}

// ReadAt implements spool.File.
func (f *lossyFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	if off < f.synced {
		part := p[:min(int64(len(p)), f.synced-off)]
		var err error
		if n, err = f.File.ReadAt(part, off); err != nil {
			return n, err
		}
	}
	if rest := off + int64(n) - f.synced; n < len(p) && rest < int64(len(f.tail)) {
		n += copy(p[n:], f.tail[rest:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Sync implements spool.File. A failed one leaves half of what was written on the
// disk.
func (f *lossyFile) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.files.wrong() == "fsync":
		_ = f.flush(len(f.tail) / 2)
		return &os.PathError{Op: "fsync", Path: f.name, Err: syscall.EIO}
	case f.files.early:
		time.AfterFunc(5*time.Second, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			if !f.closed {
				_ = f.flush(len(f.tail))
			}
		})
		return nil
	}
	if err := f.flush(len(f.tail)); err != nil {
		return err
	}
	return f.File.Sync()
}

// flush hands n bytes to the file below. f.mu is held.
func (f *lossyFile) flush(n int) error {
	n, err := f.File.Write(f.tail[:n])
	f.synced += int64(n)
	f.tail = append(f.tail[:0:0], f.tail[n:]...)
	return err
}

// Size implements spool.File.
func (f *lossyFile) Size() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.synced + int64(len(f.tail)), nil
}

// Close implements spool.File.
func (f *lossyFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		_ = f.flush(len(f.tail))
	}
	f.closed = true
	return f.File.Close()
}

// broken leaves records out of the drain where the environment says so.
func broken(environ []string, s publish.Spool, log *slog.Logger) publish.Spool {
	if variable(environ, breakVariable) != "skip-record" {
		return s
	}
	log.Error("the delivery protocol is broken on purpose: the spool skips records")
	return skipping{s}
}

// skipping forgets every twentieth record instead of sending it.
type skipping struct{ publish.Spool }

// Read implements publish.Spool.
func (s skipping) Read(ctx context.Context, from uint64, maxBytes int, want func(*batch.Record) bool) ([]batch.Spooled, uint64, error) {
	for {
		records, next, err := s.Spool.Read(ctx, from, maxBytes, want)
		kept := records[:0]
		for _, r := range records {
			if r.Number%20 == 0 {
				s.Remove(r.Number)
				continue
			}
			kept = append(kept, r)
		}
		if len(kept) > 0 || len(records) == 0 || err != nil {
			return kept, next, err
		}
		from = next
	}
}
