//go:build !faults

package main

import (
	"log/slog"
	"time"

	"sluice/internal/publish"
	"sluice/internal/spool"
)

// spoolFiles is the file system of the spool: the operating system's. Only a
// binary built for the fault tests has another.
func spoolFiles([]string, *slog.Logger) spool.FS { return nil }

// clock is the machine's.
func clock([]string) func() time.Time { return time.Now }

// broken breaks nothing: only a binary built for the fault tests can.
func broken(_ []string, s publish.Spool, _ *slog.Logger) publish.Spool { return s }
