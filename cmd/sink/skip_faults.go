//go:build faults

package main

import (
	"log/slog"
	"slices"
)

// skipped breaks the delivery protocol on purpose, so that the fault tests can
// show that they would notice: SLUICE_TEST_SKIP=intent or read-back.
func skipped(environ []string, log *slog.Logger) skips {
	s := skips{
		intent:   slices.Contains(environ, "SLUICE_TEST_SKIP=intent"),
		readBack: slices.Contains(environ, "SLUICE_TEST_SKIP=read-back"),
	}
	if s.intent || s.readBack {
		log.Error("the delivery protocol is broken on purpose: rows will be lost or doubled", "intent", !s.intent, "read_back", !s.readBack)
	}
	return s
}
