// Command sink drains Kafka into ClickHouse.
package main

import (
	"context"
	"errors"
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
	var usage *config.UsageError
	switch {
	case err == nil, errors.Is(err, config.ErrHelp):
		return
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "sink:", err)
		os.Exit(usage.ExitCode())
	}
	fmt.Fprintln(os.Stderr, "sink:", err)
	os.Exit(1)
}
