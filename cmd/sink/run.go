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
	"sync/atomic"
	"time"

	"github.com/oklog/run"

	"sluice/internal/clickhouse"
	"sluice/internal/config"
	"sluice/internal/kafka"
	"sluice/internal/sink"
	"sluice/internal/telemetry"
	"sluice/internal/watermark"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// errStarting is why the sink is not ready before its tables and topics are there.
var errStarting = errors.New("waiting for ClickHouse and Kafka to prepare the tables and topics")

// execute wires and runs a sink:
//
//	settings ─► kafka.Source ─┐
//	           kafka.Group  ──┼─► sink.Sink ─► clickhouse.Client
//	           migrations ────┘
//	admin server beside it; in the sink that has partition 0, watermark.Copier too
//
// It returns nil when ctx ends and everything has stopped in order: the
// partition loops first, so that what they hold is committed or dropped while
// Kafka and ClickHouse are still there.
func execute(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "healthcheck" {
		cfg, err := config.ParseSink(args[1:], environ, stdout, stderr)
		if err != nil {
			return err
		}
		return telemetry.Healthcheck(ctx, cfg.AdminListen, "/readyz")
	}
	cfg, err := config.ParseSink(args, environ, stdout, stderr)
	if err != nil {
		return err
	}
	limitMemory(cfg, environ)
	log := telemetry.NewLogger(stderr, cfg.Process.LogLevel, cfg.Process.LogFormat)
	metrics := telemetry.NewRegistry("sink")

	chCfg := clickhouse.Config{DSN: cfg.ClickHouse.DSN.Reveal(), Cluster: cfg.ClickHouse.Cluster}
	store, err := clickhouse.Open(chCfg)
	if err != nil {
		return err
	}
	defer store.Close()
	client, err := kafka.Open(kafka.Config{
		Brokers: cfg.Kafka.Brokers, TLS: cfg.Kafka.TLS, ClientID: "sluice-sink",
		SASLMechanism: string(cfg.Kafka.SASLMechanism), SASLUsername: cfg.Kafka.SASLUsername, SASLPassword: cfg.Kafka.SASLPassword.Reveal(),
	})
	if err != nil {
		return err
	}
	defer client.Close()
	admin, err := net.Listen("tcp", cfg.AdminListen)
	if err != nil {
		return fmt.Errorf("SLUICE_ADMIN_LISTEN %s: %w", cfg.AdminListen, err)
	}

	copier := watermark.New(watermark.Config{Topic: cfg.Topics.Ledger()},
		ledgerTopic{client.NewLedger(cfg.Topics.Prefix), client.NewSource(cfg.Topics.Ledger())},
		ledgerTables{store}, log, watermark.NewMetrics(metrics))
	skip := skipped(environ, log)
	s := sink.New(sink.Config{
		Topic:            cfg.Topics.Batches(),
		FlushRows:        cfg.FlushRows,
		FlushBytes:       int64(cfg.FlushBytes),
		FlushInterval:    cfg.FlushInterval,
		FlushIntervalMax: cfg.FlushIntervalMax,
		DedupWindow:      cfg.ClickHouse.DedupWindow,
		Dead:             client.NewDead(cfg.Topics.Prefix),
		Companion:        copier.Run,
		SkipIntent:       skip.intent,
		SkipReadBack:     skip.readBack,
	}, source{client.NewSource(cfg.Topics.Batches()), client, cfg.Topics.Prefix}, tables{store}, log, sink.NewMetrics(metrics))

	var prepared atomic.Bool
	var g run.Group
	{
		ctx, cancel := context.WithCancel(ctx)
		g.Add(func() error {
			return telemetry.Admin{
				Ready: func() error {
					if !prepared.Load() {
						return errStarting
					}
					return s.Ready()
				},
				Status:  func() any { return map[string]any{"build": telemetry.ReadBuild(), "partitions": s.Status()} },
				Metrics: metrics, Log: log,
			}.Serve(ctx, admin)
		}, func(error) { cancel() })
	}
	{
		ctx, cancel := context.WithCancel(ctx)
		g.Add(func() error {
			if err := prepare(ctx, cfg, chCfg, client, log); err != nil || ctx.Err() != nil {
				return err
			}
			group, err := client.NewGroup(kafka.GroupConfig{ID: cfg.Group, Topic: cfg.Topics.Batches(),
				Session: cfg.SessionTimeout, Heartbeat: min(3*time.Second, cfg.SessionTimeout/3)})
			if err != nil {
				return err
			}
			defer group.Close()
			prepared.Store(true)
			log.Info("sink started", "topic", cfg.Topics.Batches(), "group", cfg.Group, "database", store.Database())
			return s.Run(ctx, membership{group})
		}, func(error) { cancel() })
	}
	return g.Run()
}

// limitMemory keeps the process under 512 MiB with the default settings: from 448
// MiB on the collector of garbage works harder. It grows and shrinks with
// SLUICE_SINK_FLUSH_BYTES: half as much again for the columns of two blocks, and 64
// MiB for the rest. It is a soft limit:
// what is needed is had, at the cost of CPU, at most half of it
// (runtime/debug.SetMemoryLimit). GOMEMLIMIT goes before it.
func limitMemory(cfg config.Sink, environ []string) {
	if !slices.ContainsFunc(environ, func(kv string) bool { return strings.HasPrefix(kv, "GOMEMLIMIT=") }) {
		debug.SetMemoryLimit(memoryLimit(cfg))
	}
}

func memoryLimit(cfg config.Sink) int64 { return 64<<20 + int64(cfg.FlushBytes)*3/2 }

// prepare brings tables and topics up to date. Kafka and ClickHouse may start
// later than the sink: it waits for them, and only a permanent error ends it.
func prepare(ctx context.Context, cfg config.Sink, chCfg clickhouse.Config, client *kafka.Client, log *slog.Logger) error {
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"migrate ClickHouse", func(ctx context.Context) error {
			return clickhouse.Migrate(ctx, chCfg, cfg.ClickHouse.DedupWindow)
		}},
		{"prepare the topics", func(ctx context.Context) error {
			return client.EnsureTopics(ctx, cfg.Topics.Prefix, cfg.Topics.Partitions, cfg.Topics.Replication)
		}},
	}
	for _, step := range steps {
		err := retry.Policy{Min: 200 * time.Millisecond, Max: 5 * time.Second}.Do(ctx, func(ctx context.Context) error {
			err := step.do(ctx)
			if err != nil && retry.ClassOf(err) != retry.Permanent && ctx.Err() == nil {
				log.Warn("waiting to "+step.name, "error", err)
			}
			return err
		})
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// skips are the steps of the delivery protocol that are left out on purpose.
type skips struct{ intent, readBack bool }

// The adapters say, in the sink's own types, what the packages it does not
// import return.

type source struct {
	*kafka.Source
	client *kafka.Client
	prefix string
}

func (s source) Log(ctx context.Context) (string, error) { return s.client.Log(ctx, s.prefix) }

type membership struct{ *kafka.Group }

func (m membership) Next(ctx context.Context) (sink.Generation, error) {
	g, err := m.Group.Next(ctx)
	if err != nil {
		return nil, err
	}
	return g, nil
}

type tables struct{ *clickhouse.Client }

func (t tables) OpenInsert(ctx context.Context, table schema.Table, at schema.Position, token string) (sink.Insert, error) {
	in, err := t.Client.OpenInsert(ctx, table, at, token)
	if err != nil {
		return nil, err
	}
	return in, nil
}
