//go:build !faults

package main

import "log/slog"

// skipped leaves nothing out: only a binary built for the fault tests can.
func skipped([]string, *slog.Logger) skips { return skips{} }
