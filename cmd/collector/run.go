package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/oklog/run"
	"github.com/prometheus/client_golang/prometheus"

	"sluice/internal/config"
	"sluice/internal/ingest"
	"sluice/internal/kafka"
	"sluice/internal/keys"
	"sluice/internal/ledger"
	"sluice/internal/protocol"
	"sluice/internal/protocol/native"
	"sluice/internal/protocol/statsig"
	"sluice/internal/publish"
	"sluice/internal/telemetry"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// endpoints are the protocols the collector speaks. A new one is one line here.
func endpoints() []protocol.Endpoint {
	return slices.Concat(
		native.Endpoints(),
		statsig.Endpoints(),
	)
}

// execute wires and runs a collector:
//
//	settings ─► keys file ────┐
//	           endpoints ─────┼─► ingest.Collector ─► publish.Publisher ─► kafka.Producer
//	           ledger ────────┘    (HTTP server)       (breaker, lanes)
//	admin server beside it
//
// It returns nil when ctx ends and everything has stopped in order: requests are
// answered first, then what is queued is flushed, then the ledger is closed.
func execute(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "healthcheck" {
		cfg, err := config.ParseCollector(args[1:], environ, stdout, stderr)
		if err != nil {
			return err
		}
		return telemetry.Healthcheck(ctx, cfg.AdminListen, "/readyz")
	}
	cfg, err := config.ParseCollector(args, environ, stdout, stderr)
	if err != nil {
		return err
	}
	limitMemory(cfg, environ)
	log := telemetry.NewLogger(stderr, cfg.Process.LogLevel, cfg.Process.LogFormat)
	metrics := telemetry.NewRegistry("collector")

	public, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("SLUICE_LISTEN %s: %w", cfg.Listen, err)
	}
	defer public.Close()
	admin, err := net.Listen("tcp", cfg.AdminListen)
	if err != nil {
		return fmt.Errorf("SLUICE_ADMIN_LISTEN %s: %w", cfg.AdminListen, err)
	}
	defer admin.Close()
	book, err := ledger.Open(cfg.SpoolDir, log)
	if err != nil {
		return err
	}
	defer book.Close()
	client, err := kafka.Open(kafka.Config{
		Brokers: cfg.Kafka.Brokers, TLS: cfg.Kafka.TLS, ClientID: "sluice-collector",
		SASLMechanism: string(cfg.Kafka.SASLMechanism), SASLUsername: cfg.Kafka.SASLUsername, SASLPassword: cfg.Kafka.SASLPassword.Reveal(),
	})
	if err != nil {
		return err
	}
	defer client.Close()

	publisher, err := publish.New(publish.Options{
		Producer:   client.NewProducer(cfg.Topics.Batches()),
		AckTimeout: cfg.AckTimeout,
		GroupBytes: int64(cfg.RecordMax),
		Log:        log, Registerer: metrics,
	})
	if err != nil {
		return err
	}
	who, err := writers(cfg, log)
	if err != nil {
		return errors.Join(err, publisher.Close(ctx))
	}
	collector, err := newCollector(cfg, publisher, book, who, log, metrics)
	if err != nil {
		return errors.Join(err, publisher.Close(ctx))
	}
	server := ingest.NewServer(collector, nil)

	var g run.Group
	{
		g.Add(func() error {
			log.Info("collector started", "listen", public.Addr().String(), "collector", book.Collector().String())
			return server.Serve(public)
		}, func(error) {
			// Answers first: many SDKs do not send again what was received and not
			// answered. Then the lanes, so that what was answered with an error is not
			// left half sent. A crash in between loses nothing that was acknowledged.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.Service.ShutdownTimeout)
			defer cancel()
			if err := server.Shutdown(ctx); err != nil {
				log.Warn("requests were cut off", "error", err)
				_ = server.Close()
			}
			if err := publisher.Close(ctx); err != nil {
				log.Warn("batches without an answer were dropped; their clients send them again", "error", err)
			}
		})
	}
	{
		// Topics are made by the first process that needs them. Until then, and while
		// Kafka is away, requests are refused and /readyz says so.
		ctx, cancel := context.WithCancel(ctx)
		g.Add(func() error {
			ensureTopics(ctx, cfg, client, log)
			<-ctx.Done()
			return nil
		}, func(error) { cancel() })
	}
	{
		// Beside the topics, not after them: a key that is disabled while Kafka is
		// away must be refused all the same.
		ctx, cancel := context.WithCancel(ctx)
		g.Add(func() error {
			who.run(ctx)
			return nil
		}, func(error) { cancel() })
	}
	{
		// Last to end, so that /readyz and /metrics can be asked while requests are
		// finished.
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		g.Add(func() error {
			return telemetry.Admin{
				Ready: collector.Ready,
				Status: func() any {
					return map[string]any{"build": telemetry.ReadBuild(), "collector": book.Collector().String()}
				},
				Metrics: metrics, Log: log,
			}.Serve(ctx, admin)
		}, func(error) { cancel() })
	}
	return g.Run()
}

// limitMemory keeps the process under 100 MiB with the default settings: from 90
// MiB on the collector of garbage works harder. More bytes in flight
// (SLUICE_MAX_IN_FLIGHT_BYTES, or the largest body four times) come on top one for
// one. It is a soft limit: what is needed is had, at the cost of CPU, at most half
// of it (runtime/debug.SetMemoryLimit). GOMEMLIMIT goes before it.
func limitMemory(cfg config.Collector, environ []string) {
	if !slices.ContainsFunc(environ, func(kv string) bool { return strings.HasPrefix(kv, "GOMEMLIMIT=") }) {
		debug.SetMemoryLimit(memoryLimit(cfg))
	}
}

func memoryLimit(cfg config.Collector) int64 {
	const usual, usualInFlight = 90 << 20, 40 << 20
	inFlight := max(int64(cfg.MaxInFlight), 4*int64(cfg.MaxBody))
	return usual + max(0, inFlight-usualInFlight)
}

func newCollector(cfg config.Collector, p ingest.Publisher, book ingest.Ledger, who writerKeys, log *slog.Logger, metrics prometheus.Registerer) (*ingest.Collector, error) {
	return ingest.New(ingest.Options{
		Endpoints: endpoints(),
		Publisher: p, Ledger: book, Keys: who,
		Limits: ingest.Limits{
			MaxBody:     int64(cfg.MaxBody),
			MaxEvents:   cfg.MaxEvents,
			RecordMax:   int(cfg.RecordMax),
			MaxInFlight: int64(cfg.MaxInFlight),
			Time:        schema.Limits{Past: cfg.TimePast, Future: cfg.TimeFuture},
		},
		Log: log, Registerer: metrics,
	})
}

func ensureTopics(ctx context.Context, cfg config.Collector, client *kafka.Client, log *slog.Logger) {
	err := retry.Policy{Min: 200 * time.Millisecond, Max: 5 * time.Second}.Do(ctx, func(ctx context.Context) error {
		err := client.EnsureTopics(ctx, cfg.Topics.Prefix, cfg.Topics.Partitions, cfg.Topics.Replication)
		if err != nil && retry.ClassOf(err) != retry.Permanent && ctx.Err() == nil {
			log.Warn("waiting for Kafka to prepare the topics", "error", err)
		}
		return err
	})
	if err != nil && ctx.Err() == nil {
		// Somebody else may make them, or may have to: the producer finds out.
		log.Error("topics cannot be created; make them with `sluice migrate`", "error", err)
	}
}

// writerKeys is who may write, in the words of ingest.
type writerKeys struct{ file *keys.Keys }

func writers(cfg config.Collector, log *slog.Logger) (writerKeys, error) {
	if cfg.AllowAnonymous {
		log.Warn("anybody may write (SLUICE_ALLOW_ANONYMOUS)")
		return writerKeys{}, nil
	}
	file, err := keys.Open(cfg.Keys.File, log)
	if err != nil {
		return writerKeys{}, fmt.Errorf("SLUICE_KEYS_FILE: %w", err)
	}
	return writerKeys{file}, nil
}

// Lookup implements ingest.Keys.
func (w writerKeys) Lookup(key string) (ingest.Grant, error) {
	if w.file == nil {
		return ingest.Anonymous{}.Lookup(key)
	}
	g, err := w.file.Lookup(key)
	if err != nil {
		return ingest.Grant{}, ingest.ErrUnknownKey
	}
	return ingest.Grant(g), nil
}

// run reads the file again when it changes, until ctx ends.
func (w writerKeys) run(ctx context.Context) {
	if w.file == nil {
		<-ctx.Done()
		return
	}
	w.file.Run(ctx, 0)
}
