package engine

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/clickhouse"
	"sluice/internal/embedded/teststack"
	"sluice/internal/kafka"
	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

func TestMain(m *testing.M) {
	os.Exit(teststack.Main(m, teststack.NeedKafka, teststack.CheckLeaks))
}

// batches are three of two exposures and an event each, with and without ids and
// times of their own.
func batches(t *testing.T) []*schema.Batch {
	t.Helper()
	var out []*schema.Batch
	for i := range 3 {
		b := &schema.Batch{Project: "shop", Source: "native", SDK: "sluice-go/1.0.0", ID: batch.ForKey("shop", fmt.Sprint(i))}
		require.NoError(t, schema.DecodeJSON(fmt.Appendf(nil, `[
{"experiment":"colour","variant":"red","unit_id":"u%d","time":"2026-11-24T06:59:00.123Z","event_id":"5f0f4b6e-0c39-4f60-9d2e-%012d","rule":"r","reason":"targeted","attributes":{"country":"DE","n":"1"}},
{"kind":"event","name":"paid","unit_id":"u%[1]d"},
{"experiment":"größe","variant":"","unit_id":"v%[1]d","unit_type":"account"},
{"experiment":"size","variant":"l","unit_id":"v%[1]d"}]`, i, i), schema.KindExposure, 100, b))
		b.ComputeDigest()
		b.Resolve(time.Date(2026, 11, 24, 7, 0, 0, 0, time.UTC), schema.Limits{Past: time.Hour, Future: time.Hour})
		out = append(out, b)
	}
	return out
}

// What the engine stores is what the sink does, of the same records.
func TestEngineMakesTheSinksRows(t *testing.T) {
	server := teststack.StartClickHouse(t)
	cfg := clickhouse.Config{DSN: "clickhouse://" + server.Addr() + "/shop"}
	require.NoError(t, clickhouse.Migrate(t.Context(), cfg, time.Hour))
	k, err := kafka.Open(kafka.Config{Brokers: []string{teststack.Kafka(t)}, ClientID: "test"})
	require.NoError(t, err)
	t.Cleanup(k.Close)
	prefix := teststack.Prefix(t)
	require.NoError(t, retry.Policy{Attempts: 5}.Do(t.Context(), func(ctx context.Context) error { return k.EnsureTopics(ctx, prefix, 1, 0) }))
	topic := kafka.Topics(prefix).Batches

	rows := &schema.Rows{}
	p := k.NewProducer(topic)
	for i, b := range batches(t) {
		whole := schema.Range{Last: b.Count - 1}
		partition, err := p.Partition(t.Context(), b.ID)
		require.NoError(t, err)
		_, _, err = p.Produce(t.Context(), partition, []batch.Record{{BatchID: b.ID, DedupID: b.ID, Digest: b.Digest, Project: b.Project,
			ReceivedAt: time.UnixMicro(b.ReceivedAt), Value: schema.AppendRecord(nil, b, whole)}})
		require.NoError(t, err)
		for n := range b.Events {
			if e := &b.Events[n]; e.Kind == schema.KindExposure {
				rows.Events = append(rows.Events, schema.EventRow{Batch: b, Event: e, Offset: int64(i)})
			}
		}
	}
	require.NotEmpty(t, rows.Events)
	c, err := clickhouse.Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	in, err := c.OpenInsert(t.Context(), schema.Exposures, schema.Position{Log: "engine", Topic: topic}, "a")
	require.NoError(t, err)
	require.NoError(t, in.Send(rows))

	from := Config{HTTP: server.HTTPAddr(), Broker: teststack.Kafka(t), Topic: topic, Source: "shop", Plain: true}
	e, err := Setup(t.Context(), from)
	require.NoError(t, err)
	made, err := e.ask(t.Context(), "SELECT sorting_key, engine FROM system.tables WHERE database = 'shop_engine' AND name = 'exposures'")
	require.NoError(t, err)
	assert.Equal(t, "project, experiment, unit_id, event_id\tMergeTree", made)
	from.Plain, from.Consumers = false, 2
	e, err = Setup(t.Context(), from)
	require.NoError(t, err)
	require.NoError(t, e.Start(t.Context()))
	require.NoError(t, e.Done(t.Context(), int64(len(rows.Events))))
	for _, q := range []string{
		"SELECT * FROM shop.exposures EXCEPT SELECT * FROM shop_engine.exposures FORMAT Vertical",
		"SELECT * FROM shop_engine.exposures EXCEPT SELECT * FROM shop.exposures FORMAT Vertical",
	} {
		left, err := e.ask(t.Context(), q)
		require.NoError(t, err)
		assert.Empty(t, left, q)
	}
	require.NoError(t, e.Teardown(t.Context()))
	require.NoError(t, e.Teardown(t.Context()), "again")
	left, err := e.ask(t.Context(), "SELECT count() FROM system.databases WHERE name = 'shop_engine'")
	require.NoError(t, err)
	assert.Equal(t, "0", left)
}

// The engine's schema is a part of the record's.
func TestSchemaIsTheRecords(t *testing.T) {
	whole, err := os.ReadFile("../../../proto/sluice/v1/batch.proto")
	require.NoError(t, err)
	fields := regexp.MustCompile(`(?m)^  .* = \d+;$`).FindAllString(record, -1)
	assert.Greater(t, len(fields), 20)
	for _, f := range fields {
		assert.True(t, strings.Contains(string(whole), "\n"+f+"\n"), f)
	}
}

func TestSetupChecksNames(t *testing.T) {
	for _, cfg := range []Config{{}, {Source: "a b"}, {Source: "a", Database: "a"}, {Source: "a", Database: "b;c"}} {
		_, err := Setup(t.Context(), cfg)
		assert.ErrorContains(t, err, "letters", cfg)
	}
}
