//go:build !linux

package spool

import (
	"math"
	"os"
)

// syncData is all that Go offers everywhere (on macOS F_FULLFSYNC).
func syncData(f *os.File) error { return f.Sync() }

// Free implements FS: it is not asked here, and a full disk is noticed when a
// write fails.
func (osFS) Free(string) (int64, error) { return math.MaxInt64, nil }
