// Command collector accepts batches of exposure logs over HTTP and makes them durable.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"sluice/internal/config"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := execute(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	if code := config.ExitCode(err); code != 0 {
		fmt.Fprintln(os.Stderr, "collector:", err)
		os.Exit(code)
	}
}
