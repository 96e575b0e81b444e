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
	"sluice/internal/protocol/amplitude"
	"sluice/internal/protocol/eppo"
	"sluice/internal/protocol/growthbook"
	"sluice/internal/protocol/launchdarkly"
	"sluice/internal/protocol/native"
	"sluice/internal/protocol/optimizely"
	"sluice/internal/protocol/otlp"
	"sluice/internal/protocol/posthog"
	"sluice/internal/protocol/segment"
	"sluice/internal/protocol/statsig"
	"sluice/internal/publish"
	"sluice/internal/spool"
	"sluice/internal/telemetry"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// endpoints are the protocols the collector speaks. A new one is one line here.
func endpoints() []protocol.Endpoint {
	return slices.Concat(
		native.Endpoints(),
		statsig.Endpoints(),
		launchdarkly.Endpoints(),
		segment.Endpoints(),
		posthog.Endpoints(),
		amplitude.Endpoints(),
		optimizely.Endpoints(),
		otlp.Endpoints(),
		growthbook.Endpoints(),
		eppo.Endpoints(),
	)
}

// execute wires and runs a collector:
//
//	settings ─► keys file ────┐
//	           endpoints ─────┼─► ingest.Collector ─► publish.Publisher ─► kafka.Producer
//	           ledger ────────┘    (HTTP server)       (breaker, lanes) └─► spool.Spool
//	admin server, ledger records beside it
//
// It returns nil when ctx ends and everything has stopped in order: requests are
// answered first, then what is queued is flushed, then the ledger writes its last
// record, then the spool is closed.
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
	// The ledger has the directory's lock: the spool is opened after it and closed
	// before it.
	book, err := ledger.Open(cfg.SpoolDir, log, ledger.WithClock(clock(environ)), ledger.WithInterval(cfg.LedgerInterval), ledger.WithRegisterer(metrics))
	if err != nil {
		return err
	}
	defer book.Close()
	disk, err := spool.Open(cfg.SpoolDir, spool.Options{
		FS:       spoolFiles(environ, log),
		MaxBytes: int64(cfg.SpoolMax),
		MinFree:  int64(cfg.SpoolMinFree),
		Log:      log, Registerer: metrics,
	})
	if err != nil {
		return fmt.Errorf("SLUICE_SPOOL_DIR %s: %w", cfg.SpoolDir, err)
	}
	defer closeSpool(disk, log)
	client, err := kafka.Open(kafka.Config{
		Brokers: cfg.Kafka.Brokers, TLS: cfg.Kafka.TLS, ClientID: "sluice-collector",
		SASLMechanism: string(cfg.Kafka.SASLMechanism), SASLUsername: cfg.Kafka.SASLUsername, SASLPassword: cfg.Kafka.SASLPassword.Reveal(),
	})
	if err != nil {
		return err
	}
	defer client.Close()

	publisher, err := publish.New(publish.Options{
		Producer:            client.NewProducer(cfg.Topics.Batches()),
		Spool:               broken(environ, disk, log),
		Ledger:              book,
		AckTimeout:          cfg.AckTimeout,
		GroupBytes:          int64(cfg.RecordMax),
		DrainBytesPerSecond: int64(cfg.DrainRate),
		Log:                 log, Registerer: metrics,
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
		// Told to end after the server above it: by then nothing more is given a
		// number, and the last record speaks for everything.
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		g.Add(func() error {
			err := book.Run(ctx, client.NewLedger(cfg.Topics.Prefix), disk)
			if err != nil && ctx.Err() != nil {
				// Kafka is away. The next start says what this one could not.
				log.Warn("the ledger has no closing record; delivery_watermark waits for this collector", "error", err)
				return nil
			}
			return err
		}, func(error) { cancel() })
	}
	{
		// Topics are made by the first process that needs them. A collector that Kafka
		// has never heard of refuses requests until then, and /readyz says so.
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
					return map[string]any{"build": telemetry.ReadBuild(), "collector": book.Collector().String(), "spool": spoolStatus(disk)}
				},
				Metrics: metrics, Log: log,
			}.Serve(ctx, admin)
		}, func(error) { cancel() })
	}
	return g.Run()
}

func closeSpool(s *spool.Spool, log *slog.Logger) {
	if err := s.Close(); err != nil {
		// Nothing acknowledged is lost by it: what was sent may be sent again.
		log.Warn("the spool was not closed in order", "error", err)
	}
}

// spoolStatus is the spool as /status shows it.
func spoolStatus(s *spool.Spool) map[string]any {
	b := s.Backlog()
	status := map[string]any{"records": b.Records, "bytes": b.Bytes, "state": s.State()}
	if b.Records > 0 {
		status["oldest"] = b.Oldest.UTC()
	}
	if b.Lost > 0 {
		status["lost"] = b.Lost
	}
	return status
}

// limitMemory keeps the process under 100 MiB with the default settings: from 90
// MiB on the collector of garbage works harder. More bytes in flight
// (SLUICE_MAX_IN_FLIGHT_BYTES, or the largest body four times) come on top one for
// one. It is a soft limit: what is needed is had, at the cost of CPU, at most half
// of it (runtime/debug.SetMemoryLimit). GOMEMLIMIT goes before it.
//
// Below that limit it may leave twice as much garbage as is in use before it collects,
// which saves some 5 % of the CPU at full load. GOGC goes before that.
func limitMemory(cfg config.Collector, environ []string) {
	set := func(name string) bool {
		return slices.ContainsFunc(environ, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
	}
	if !set("GOMEMLIMIT") {
		debug.SetMemoryLimit(memoryLimit(cfg))
	}
	if !set("GOGC") {
		debug.SetGCPercent(garbage)
	}
}

// garbage is how much of it there may be, in per cent of what is in use.
const garbage = 200

func memoryLimit(cfg config.Collector) int64 {
	const usual, usualInFlight = 86 << 20, 40 << 20
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
