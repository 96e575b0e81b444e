// Command sluice is the operator's tool, and runs the whole pipeline on one machine.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"sluice/internal/config"
	"sluice/internal/embedded"
)

func main() {
	// The embedded ClickHouse runs in a child process that is this program again.
	if code, child := embedded.EngineMain(); child {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once
	err := execute(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	if code := config.ExitCode(err); code != 0 {
		fmt.Fprintln(os.Stderr, "sluice:", err)
		os.Exit(code)
	}
}
