// Package engine sets up ClickHouse's own Kafka engine on the records that the sink
// reads, so that one can be measured against the other: a queue that reads
// sluice.v1.Batch, one record a batch, and a materialized view that makes the same
// rows of it, ids and defaults included, in a table of the same definition. What it
// leaves out is what the sink has on top: copies are stored again, `batches` and
// `progress` are not written, and a crash between insert and commit repeats a block.
package engine

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Config says what the engine reads, and how. The settings' defaults are what took
// the least CPU here (docs/benchmarks.md).
type Config struct {
	HTTP   string // host:port of ClickHouse's HTTP interface
	Broker string // host:port of Kafka, as ClickHouse reaches it
	Topic  string // the batches' topic
	Source string // a migrated database: exposures is made like its table

	Database     string // made by Setup, dropped by Teardown; default: the source's name and "_engine"
	Consumers    int    // kafka_num_consumers, each with a thread of its own; default 1
	BlockRecords int    // kafka_max_block_size, in records (of 100 events each, say); default 5000
	// Plain makes the table a MergeTree, not a ReplacingMergeTree. That costs what the
	// latter does with optimize_on_insert = 0, which a sink can ask for and the engine
	// cannot: it goes by the server's default profile (measured: 2.3 CPU-s/M either way,
	// 4.7 without).
	Plain bool
}

// Engine is one set-up. Not safe for concurrent use.
type Engine struct {
	cfg    Config
	client *http.Client
}

//go:embed record.proto
var record string

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Setup makes the database, the table and the queue, instead of those that are there
// from before. Nothing is read until Start.
func Setup(ctx context.Context, cfg Config) (*Engine, error) {
	if cfg.Database == "" {
		cfg.Database = cfg.Source + "_engine"
	}
	if !identifier.MatchString(cfg.Database) || !identifier.MatchString(cfg.Source) || cfg.Database == cfg.Source {
		return nil, fmt.Errorf("databases %q and %q: want two names of letters, digits and _", cfg.Source, cfg.Database)
	}
	if cfg.Consumers < 1 {
		cfg.Consumers = 1
	}
	if cfg.BlockRecords < 1 {
		cfg.BlockRecords = 5000
	}
	e := &Engine{cfg: cfg, client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	table, err := e.table(ctx)
	if err != nil {
		return nil, fmt.Errorf("set up the Kafka engine: %w", err)
	}
	for _, s := range []string{"DROP DATABASE IF EXISTS " + cfg.Database + " SYNC", "CREATE DATABASE " + cfg.Database, table, e.queue()} {
		if _, err := e.ask(ctx, s); err != nil {
			return nil, fmt.Errorf("set up the Kafka engine: %w", err)
		}
	}
	return e, nil
}

// table is exposures as in the source, but for the engine if that shall be plain.
func (e *Engine) table(ctx context.Context) (string, error) {
	create := fmt.Sprintf("CREATE TABLE %s.exposures AS %s.exposures", e.cfg.Database, e.cfg.Source)
	if !e.cfg.Plain {
		return create, nil
	}
	keys, err := e.ask(ctx, fmt.Sprintf("SELECT concat('PARTITION BY (', partition_key, ') ORDER BY (', sorting_key, ')') FROM system.tables WHERE database = '%s' AND name = 'exposures' FORMAT TSVRaw", e.cfg.Source))
	if err != nil {
		return "", err
	}
	return create + " ENGINE = MergeTree " + keys + " SETTINGS fsync_after_insert = 1, fsync_part_directory = 1", nil
}

// queue is the table that reads the topic, from its beginning: the group is a new
// one each time. A block is written when it has BlockRecords, or after 7.5 s.
func (e *Engine) queue() string {
	return fmt.Sprintf(`CREATE TABLE %s.queue
(
    "events.kind" Array(Int8),
    "events.experiment" Array(LowCardinality(String)),
    "events.variant" Array(LowCardinality(String)),
    "events.unit_id" Array(String),
    "events.unit_type" Array(LowCardinality(String)),
    "events.time_us" Array(Int64),
    "events.rule" Array(LowCardinality(String)),
    "events.reason" Array(LowCardinality(String)),
    "events.attributes" Array(Map(LowCardinality(String), String)),
    "events.index" Array(UInt32),
    "events.id" Array(FixedString(16)),
    "events.time_adjusted" Array(Bool),
    "sdk.name" String,
    "sdk.version" String,
    batch_id FixedString(16),
    project LowCardinality(String),
    source LowCardinality(String),
    received_at_us Int64
)
ENGINE = Kafka
SETTINGS kafka_broker_list = %s, kafka_topic_list = %s, kafka_group_name = %s,
    kafka_format = 'ProtobufSingle', format_schema_source = 'string', format_schema = %s, format_schema_message_name = 'Batch',
    kafka_num_consumers = %d, kafka_thread_per_consumer = %d, kafka_max_block_size = %d, kafka_poll_max_batch_size = %[8]d`,
		e.cfg.Database, quote(e.cfg.Broker), quote(e.cfg.Topic), quote(fmt.Sprintf("%s-%d", e.cfg.Database, time.Now().UnixNano())), quote(record),
		e.cfg.Consumers, min(e.cfg.Consumers-1, 1), e.cfg.BlockRecords)
}

// view makes rows of records. An event without an id of its own has the batch's with
// the last four bytes XORed by (index+1)·0x9E3779B1 (docs/identity.md).
func (e *Engine) view() string {
	uuid := func(column string) string {
		return fmt.Sprintf("reinterpretAsUUID(concat(reverse(substring(%s, 1, 8)), reverse(substring(%[1]s, 9, 8))))", column)
	}
	return fmt.Sprintf(`CREATE MATERIALIZED VIEW %[1]s.reader TO %[1]s.exposures AS
WITH %[2]s AS batch
SELECT project, experiment, variant, unit_type, unit_id,
    fromUnixTimestamp64Micro(if(time_us = 0, received_at_us, time_us), 'UTC') AS time,
    fromUnixTimestamp64Micro(received_at_us, 'UTC') AS received_at,
    rule, reason, attributes, time_adjusted,
    if(id = toFixedString('', 16),
        reinterpretAsUUID(bitXor(reinterpretAsUInt128(batch), bitShiftLeft(toUInt128(toUInt32((index + 1) * 2654435761)), 64))),
        %[3]s) AS event_id,
    batch AS batch_id, index AS batch_index, source,
    if("sdk.version" = '', "sdk.name", concat("sdk.name", '/', "sdk.version")) AS sdk,
    'engine' AS log, _topic AS topic, toUInt32(_partition) AS partition, _offset AS offset
FROM %[1]s.queue
ARRAY JOIN "events.kind" AS kind, "events.experiment" AS experiment, "events.variant" AS variant, "events.unit_id" AS unit_id,
    "events.unit_type" AS unit_type, "events.time_us" AS time_us, "events.rule" AS rule, "events.reason" AS reason,
    "events.attributes" AS attributes, "events.index" AS index, "events.id" AS id, "events.time_adjusted" AS time_adjusted
WHERE kind = 1`, e.cfg.Database, uuid("batch_id"), uuid("id"))
}

// Start begins reading.
func (e *Engine) Start(ctx context.Context) error {
	if _, err := e.ask(ctx, e.view()); err != nil {
		return fmt.Errorf("start the Kafka engine: %w", err)
	}
	return nil
}

// Done waits until exposures has that many rows. If none come for a minute it returns
// what the engine says is wrong.
func (e *Engine) Done(ctx context.Context, rows int64) error {
	const patience = time.Minute
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	last, since := int64(0), time.Now()
	for {
		text, err := e.ask(ctx, "SELECT count() FROM "+e.cfg.Database+".exposures")
		if err != nil {
			return fmt.Errorf("wait for the Kafka engine: %w", err)
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("wait for the Kafka engine: count() is %q", text)
		}
		if n >= rows {
			return nil
		}
		if n > last {
			last, since = n, time.Now()
		} else if time.Since(since) > patience {
			why, err := e.ask(ctx, fmt.Sprintf("SELECT arrayStringConcat(arrayDistinct(arrayFlatten(groupArray(exceptions.text))), '; ') FROM system.kafka_consumers WHERE database = '%s' FORMAT TSVRaw", e.cfg.Database))
			return errors.Join(fmt.Errorf("the Kafka engine stands at %d of %d rows: %s", n, rows, why), err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the Kafka engine: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// Database is where the rows are.
func (e *Engine) Database() string { return e.cfg.Database }

// Teardown drops what Setup made; the consumers leave first.
func (e *Engine) Teardown(ctx context.Context) error {
	for _, s := range []string{"DROP TABLE IF EXISTS " + e.cfg.Database + ".reader SYNC", "DROP TABLE IF EXISTS " + e.cfg.Database + ".queue SYNC",
		"DROP DATABASE IF EXISTS " + e.cfg.Database + " SYNC"} {
		if _, err := e.ask(ctx, s); err != nil {
			return fmt.Errorf("take the Kafka engine down: %w", err)
		}
	}
	return nil
}

func (e *Engine) ask(ctx context.Context, query string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+e.cfg.HTTP+"/", strings.NewReader(query))
	if err != nil {
		return "", err
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", err
	}
	text = bytes.TrimSpace(text)
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, text[:min(len(text), 500)])
	}
	return string(text), nil
}

// quote makes a literal of a string.
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}
