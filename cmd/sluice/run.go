package main

import (
	"context"
	"encoding/json"
	"io"

	"sluice/internal/clickhouse"
	"sluice/internal/config"
	"sluice/internal/kafka"
)

// cli is the tool's command line: a verb a field.
type cli struct {
	Process config.Process `embed:""`

	Up      up           `cmd:"" help:"Run everything on this machine: a broker, ClickHouse, a collector and a sink. Ctrl-C ends it; data stays."`
	Migrate migrate      `cmd:"" help:"Bring the ClickHouse tables and the Kafka topics up to date. Safe to repeat, and for several at once."`
	Receipt receipts     `cmd:"" help:"Tell what became of one batch, by its idempotency key or its id. Exit code 3 where nothing is known of it."`
	Audit   audits       `cmd:"" help:"Hold what collectors acknowledged against what is stored. Exit code 3 for a batch that is lost, torn or doubled."`
	Replay  replays      `cmd:"" help:"Send dead letters again after a fix, or insert rows that are missing again from Kafka. Twice is harmless."`
	Spool   spools       `cmd:"" help:"Look after the spool of a collector: list, verify, print, send. Works on a damaged one too."`
	Prove   proveVerb    `cmd:"" help:"Break a pipeline of its own in every way there is, and count what it acknowledged and stored. Exit code 3 for anything lost or doubled."`
	Bench   benchVerb    `cmd:"" help:"Measure the pipeline, and the ceilings beside it: cost, rate, latency, memory."`
	Ceiling benchCeiling `cmd:"" name:"bench-ceiling" hidden:""`
	Doctor  doctors      `cmd:"" help:"Send one test exposure as an SDK would, and follow it into ClickHouse. Exit code 3 where it does not arrive as it was sent."`
	Resume  resume       `cmd:"" help:"List the partitions a sink has stopped at a gap, and let them go on."`
	Keys    struct {
		Add     keysAdd     `cmd:"" help:"Make a write key. It is printed once; the file keeps its hash."`
		List    keysList    `cmd:"" help:"List the write keys."`
		Disable keysDisable `cmd:"" help:"Disable a write key: its requests are answered 403."`
		Enable  keysEnable  `cmd:"" help:"Enable a disabled write key."`
	} `cmd:"" help:"Manage the collector's write keys."`
}

// tool is what every verb gets.
type tool struct {
	ctx            context.Context
	process        config.Process
	environ        []string
	stdout, stderr io.Writer
}

// execute parses the command line and runs one verb.
func execute(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	var c cli
	parsed, err := config.Parse(&c, config.Program{
		Name:        "sluice",
		Description: "Runs and looks after a Sluice pipeline. Exit codes: 0 done, 1 failed, 2 usage, 3 found a problem.",
	}, args, environ, stdout, stderr)
	if err != nil {
		return err
	}
	return parsed.Run(&tool{ctx: ctx, process: c.Process, environ: environ, stdout: stdout, stderr: stderr})
}

// output is how a verb prints data.
type output struct {
	Output string `enum:"table,json" default:"table" help:"How to print: table or json."`
}

// print writes v as JSON, or rows as a table, aligned and cut to the terminal's
// width. Cells are escaped: what is stored may come from anybody.
func (o output) print(w io.Writer, v any, header []string, rows [][]string) error {
	if o.Output == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	return table(w, header, rows)
}

func openStore(c config.ClickHouse) (*clickhouse.Client, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return clickhouse.Open(clickhouse.Config{DSN: c.DSN.Reveal(), Cluster: c.Cluster})
}

func openKafka(k config.Kafka) (*kafka.Client, error) {
	if err := k.Validate(); err != nil {
		return nil, err
	}
	return kafka.Open(kafka.Config{
		Brokers: k.Brokers, TLS: k.TLS, ClientID: "sluice-tool",
		SASLMechanism: string(k.SASLMechanism), SASLUsername: k.SASLUsername, SASLPassword: k.SASLPassword.Reveal(),
	})
}
