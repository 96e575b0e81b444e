// Command install brings what a machine needs to run Sluice and its tests besides
// Go: the ClickHouse engine (npm) and Apache Kafka (Maven). What is there already
// is left alone.
//
//	go run ./internal/embedded/install [engine] [kafka]
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"sluice/internal/embedded"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "install:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, what []string, progress io.Writer) error {
	if len(what) == 0 {
		what = []string{"engine", "kafka"}
	}
	for _, w := range what {
		var path string
		var err error
		switch w {
		case "engine":
			path, err = embedded.EnsureEngine(ctx, "", progress)
		case "kafka":
			path, err = embedded.EnsureKafka(ctx, "", progress)
		default:
			err = fmt.Errorf("%q: want engine or kafka", w)
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(progress, "%s: %s\n", w, path)
	}
	return nil
}
