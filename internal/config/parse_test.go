package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// start parses a collector that may start: one more than the defaults give.
func start(t *testing.T, args, environ []string) (Collector, error) {
	t.Helper()
	return ParseCollector(args, append([]string{"SLUICE_ALLOW_ANONYMOUS=true"}, environ...), io.Discard, io.Discard)
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sluice.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestCollectorDefaults(t *testing.T) {
	got, err := start(t, nil, nil)
	require.NoError(t, err)
	assert.Equal(t, Collector{
		Listen: ":8080", AdminListen: "127.0.0.1:8081", AllowAnonymous: true,
		MaxBody: 10 << 20, MaxEvents: 10_000, TimePast: 720 * time.Hour, TimeFuture: time.Hour,
		AckTimeout: 250 * time.Millisecond, RecordMax: 900 << 10,
		SpoolDir: "./.sluice/spool", SpoolMax: 10 << 30, SpoolMinFree: 1 << 30, DrainRate: 32 << 20,
		LedgerInterval: time.Second,
		Kafka:          Kafka{Brokers: Addresses{"127.0.0.1:9092"}},
		Topics:         Topics{Prefix: "sluice", Partitions: 12},
		Process:        Process{LogLevel: slog.LevelInfo, LogFormat: "auto"},
		Service:        Service{ShutdownTimeout: 25 * time.Second},
	}, got)
	assert.Equal(t, "sluice.batches sluice.ledger sluice.dead",
		got.Topics.Batches()+" "+got.Topics.Ledger()+" "+got.Topics.Dead())
}

func TestSinkDefaults(t *testing.T) {
	got, err := ParseSink(nil, nil, io.Discard, io.Discard)
	require.NoError(t, err)
	assert.Equal(t, Sink{
		AdminListen: "127.0.0.1:8082", Group: "sluice-sink", SessionTimeout: 10 * time.Second,
		FlushRows: 500_000, FlushBytes: 256 << 20, FlushInterval: time.Second, FlushIntervalMax: 10 * time.Second,
		ClickHouse: ClickHouse{DSN: "clickhouse://127.0.0.1:9000/sluice", DedupWindow: 720 * time.Hour},
		Kafka:      Kafka{Brokers: Addresses{"127.0.0.1:9092"}},
		Topics:     Topics{Prefix: "sluice", Partitions: 12},
		Process:    Process{LogLevel: slog.LevelInfo, LogFormat: "auto"},
		Service:    Service{ShutdownTimeout: 25 * time.Second},
	}, got)
}

func TestPrecedence(t *testing.T) {
	path := file(t, "ack-timeout: 1s\nmax_events: 7\nkafka-brokers: [a:1, b:2]\nlisten: ':1'\nkafka-tls: true\nkeys-file: ~\n")
	environ := []string{"SLUICE_CONFIG=" + path, "SLUICE_ACK_TIMEOUT=2s", "SLUICE_LISTEN=:2", "SLUICE_SPOOL_DIR=", "HOME=/x"}
	got, err := start(t, []string{"--listen", ":3", "--log-level=debug"}, environ)
	require.NoError(t, err)
	assert.Equal(t, ":3", got.Listen, "flag over environment")
	assert.Equal(t, 2*time.Second, got.AckTimeout, "environment over file")
	assert.Equal(t, 7, got.MaxEvents, "file over default, x_y for x-y")
	assert.Equal(t, Addresses{"a:1", "b:2"}, got.Kafka.Brokers, "a list in the file")
	assert.True(t, got.Kafka.TLS)
	assert.Equal(t, "./.sluice/spool", got.SpoolDir, "set to nothing is not set")
	assert.Equal(t, slog.LevelDebug, got.Process.LogLevel)
	assert.Equal(t, path, got.Process.Config)

	got, err = start(t, []string{"--kafka-tls=false", "--config", path}, nil)
	require.NoError(t, err)
	assert.False(t, got.Kafka.TLS, "a flag can say false")
}

// The other program's settings may be in the same environment and file.
func TestOneEnvironmentForAll(t *testing.T) {
	path := file(t, "sink-group: x\nlisten: ':1'\n")
	_, err := start(t, []string{"--config", path}, []string{"SLUICE_CLICKHOUSE_DSN=clickhouse://h:1/d"})
	require.NoError(t, err)
	_, err = ParseSink(nil, []string{"SLUICE_KEYS_FILE=k", "SLUICE_CONFIG=" + path}, io.Discard, io.Discard)
	require.NoError(t, err)
	_, err = ParseSink(nil, []string{
		"SLUICE_PORT=tcp://10.0.0.1:80", "SLUICE_COLLECTOR_SERVICE_HOST=10.0.0.1", "SLUICE_COLLECTOR_SERVICE_PORT_HTTP=80",
		"SLUICE_COLLECTOR_PORT_8080_TCP_ADDR=10.0.0.1", "SLUICE_TEST_CLICKHOUSE=h:1", "SLUICE_ENGINE_DIR=d", "SLUICE_KAFKA_DIR=d", "NOT_SLUICE_X=1",
	}, io.Discard, io.Discard)
	require.NoError(t, err)
}

func TestRefusals(t *testing.T) {
	anonymous := "SLUICE_ALLOW_ANONYMOUS=true"
	for _, tc := range []struct {
		name    string
		args    []string
		environ []string
		file    string
		want    []string // all in the one line
	}{
		{name: "bad size", environ: []string{anonymous, "SLUICE_SPOOL_MAX_BYTES=10 G"}, want: []string{`SLUICE_SPOOL_MAX_BYTES="10 G": want a size`}},
		{name: "negative size", environ: []string{anonymous, "SLUICE_SPOOL_MAX_BYTES=-1"}, want: []string{`SLUICE_SPOOL_MAX_BYTES="-1": want`}},
		{name: "duration without unit", args: []string{"--ack-timeout=250"}, environ: []string{anonymous}, want: []string{`SLUICE_ACK_TIMEOUT="250": want a duration such as 250ms`}},
		{name: "nothing after a flag", args: []string{"--ack-timeout"}, environ: []string{anonymous}, want: []string{`SLUICE_ACK_TIMEOUT="": want a duration`}},
		{name: "no number", environ: []string{anonymous, "SLUICE_MAX_EVENTS=many"}, want: []string{`SLUICE_MAX_EVENTS="many": want a whole number`}},
		{name: "no bool", environ: []string{"SLUICE_ALLOW_ANONYMOUS=perhaps"}, want: []string{"SLUICE_ALLOW_ANONYMOUS: ", "true", `"perhaps"`}},
		{name: "no broker port", environ: []string{anonymous, "SLUICE_KAFKA_BROKERS=a:1,b"}, want: []string{`SLUICE_KAFKA_BROKERS="a:1,b": want host:port`}},
		{name: "log format", environ: []string{anonymous, "SLUICE_LOG_FORMAT=xml"}, want: []string{`SLUICE_LOG_FORMAT must be one of "auto","text","json"`, `"xml"`}},
		{name: "log level", environ: []string{anonymous, "SLUICE_LOG_LEVEL=loud"}, want: []string{`SLUICE_LOG_LEVEL="loud": want debug, info, warn or error`}},
		{name: "mechanism", environ: []string{anonymous, "SLUICE_KAFKA_SASL_MECHANISM=GSSAPI"}, want: []string{`SLUICE_KAFKA_SASL_MECHANISM="GSSAPI": want PLAIN`}},
		{name: "unknown variable", environ: []string{anonymous, "SLUICE_KAFKA_BROKER=x:1"}, want: []string{"SLUICE_KAFKA_BROKER is not a setting: want SLUICE_KAFKA_BROKERS"}},
		{name: "unknown variable in lower case", environ: []string{anonymous, "SLUICE_listen=x:1"}, want: []string{"SLUICE_listen is not a setting: want SLUICE_LISTEN"}},
		{name: "unknown variable, nothing near", environ: []string{anonymous, "SLUICE_COLOUR_OF_THE_SKY=secret"}, want: []string{"SLUICE_COLOUR_OF_THE_SKY is not a setting: want one that --help lists"}},
		{name: "unknown flag", args: []string{"--kafka-broker=x"}, want: []string{"unknown flag --kafka-broker", "--kafka-brokers"}},
		{name: "unexpected argument", args: []string{"go"}, environ: []string{anonymous}, want: []string{"unexpected argument go"}},
		{name: "unknown key", environ: []string{anonymous}, file: "listen: ':1'\nack-timeot: 1s\n", want: []string{`sluice.yaml, line 2: "ack-timeot" is not a setting: want "ack-timeout"`}},
		{name: "config in the file", environ: []string{anonymous}, file: "config: x\n", want: []string{`line 1: "config" is not a setting`}},
		{name: "bad value in the file", environ: []string{anonymous}, file: "\nack_timeout: 3\n", want: []string{`sluice.yaml, line 2: SLUICE_ACK_TIMEOUT="3": want a duration`}},
		{name: "key twice", environ: []string{anonymous}, file: "max-events: 1\nmax_events: 2\n", want: []string{`line 2: "max_events" comes twice`}},
		{name: "nested key", environ: []string{anonymous}, file: "kafka:\n  brokers: x:1\n", want: []string{`line 1: "kafka": want a single value`}},
		{name: "no mapping", environ: []string{anonymous}, file: "- x\n", want: []string{"line 1: want settings"}},
		{name: "no YAML", environ: []string{anonymous}, file: "a: [\n", want: []string{"which is not YAML"}},
		{name: "two documents", environ: []string{anonymous}, file: "listen: ':1'\n---\nlisten: ':2'\n", want: []string{"second document"}},
		{name: "huge file", environ: []string{anonymous}, file: strings.Repeat("#", maxFile+1), want: []string{"want a file of at most 1MiB"}},
		{name: "no file", args: []string{"--config=/nowhere/x.yaml"}, want: []string{"SLUICE_CONFIG: open /nowhere/x.yaml"}},

		{name: "no keys", want: []string{"SLUICE_KEYS_FILE is not set", "sluice keys add", "SLUICE_ALLOW_ANONYMOUS=true"}},
		{name: "keys and anonymous", environ: []string{anonymous, "SLUICE_KEYS_FILE=k.json"}, want: []string{"SLUICE_ALLOW_ANONYMOUS=true", `no SLUICE_KEYS_FILE ("k.json")`}},
		{name: "listen", environ: []string{anonymous, "SLUICE_LISTEN=8080"}, want: []string{`SLUICE_LISTEN="8080": want host:port`, ":8080"}},
		{name: "one address for two", environ: []string{anonymous, "SLUICE_LISTEN=127.0.0.1:8081"}, want: []string{`SLUICE_ADMIN_LISTEN="127.0.0.1:8081": want another address than SLUICE_LISTEN`}},
		{name: "body over memory", environ: []string{anonymous, "SLUICE_MAX_BODY_BYTES=11MiB", "SLUICE_MAX_IN_FLIGHT_BYTES=32MiB"}, want: []string{"SLUICE_MAX_IN_FLIGHT_BYTES=32MiB: want at least 4MiB and four times SLUICE_MAX_BODY_BYTES (11MiB)"}},
		{name: "small spool", environ: []string{anonymous, "SLUICE_SPOOL_MAX_BYTES=19MiB"}, want: []string{"SLUICE_SPOOL_MAX_BYTES=19MiB: want at least twice SLUICE_MAX_BODY_BYTES (10MiB)"}},
		{name: "slow drain", environ: []string{anonymous, "SLUICE_DRAIN_BYTES_PER_SECOND=1KiB"}, want: []string{"SLUICE_DRAIN_BYTES_PER_SECOND=1KiB: want at least SLUICE_RECORD_MAX_BYTES (900KiB)"}},
		{name: "no events", environ: []string{anonymous, "SLUICE_MAX_EVENTS=0"}, want: []string{"SLUICE_MAX_EVENTS=0: want 1 to 1000000"}},
		{name: "negative time", environ: []string{anonymous, "SLUICE_TIME_PAST_LIMIT=-1h"}, want: []string{"SLUICE_TIME_PAST_LIMIT=-1h0m0s: want 1s to"}},
		{name: "long ack", environ: []string{anonymous, "SLUICE_ACK_TIMEOUT=1m"}, want: []string{"SLUICE_ACK_TIMEOUT=1m0s: want 1ms to 10s"}},
		{name: "user without mechanism", environ: []string{anonymous, "SLUICE_KAFKA_SASL_USERNAME=ann"}, want: []string{`SLUICE_KAFKA_SASL_USERNAME="ann": want SLUICE_KAFKA_SASL_MECHANISM with it`}},
		{name: "password without mechanism", environ: []string{anonymous, "SLUICE_KAFKA_SASL_PASSWORD=hush"}, want: []string{"SLUICE_KAFKA_SASL_PASSWORD=******: want SLUICE_KAFKA_SASL_MECHANISM"}},
		{name: "mechanism without user", environ: []string{anonymous, "SLUICE_KAFKA_SASL_MECHANISM=plain"}, want: []string{`SLUICE_KAFKA_SASL_MECHANISM="PLAIN": want SLUICE_KAFKA_SASL_USERNAME and`}},
		{name: "topic prefix", environ: []string{anonymous, "SLUICE_TOPIC_PREFIX=a b"}, want: []string{`SLUICE_TOPIC_PREFIX="a b": want 1 to 241 letters`}},
		{name: "line break in a value", environ: []string{anonymous, "SLUICE_TOPIC_PREFIX=a\nb\x1b[1m"}, want: []string{`SLUICE_TOPIC_PREFIX="a\nb\x1b[1m": want`}},
		{name: "no shutdown", environ: []string{anonymous, "SLUICE_SHUTDOWN_TIMEOUT=0s"}, want: []string{"SLUICE_SHUTDOWN_TIMEOUT=0s: want"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := tc.args
			if tc.file != "" {
				args = append(args, "--config", file(t, tc.file))
			}
			_, err := ParseCollector(args, tc.environ, io.Discard, io.Discard)
			refused(t, err, tc.want...)
		})
	}
}

func TestSinkRefusals(t *testing.T) {
	for _, tc := range []struct{ environ, want string }{
		{"SLUICE_SINK_FLUSH_INTERVAL=20s", "SLUICE_SINK_FLUSH_INTERVAL=20s: want at most SLUICE_SINK_FLUSH_INTERVAL_MAX (10s)"},
		{"SLUICE_SINK_FLUSH_ROWS=500001", "SLUICE_SINK_FLUSH_ROWS=500001: want 1 to 500000"},
		{"SLUICE_SINK_FLUSH_BYTES=1KiB", "SLUICE_SINK_FLUSH_BYTES=1KiB: want 1MiB to 1TiB"},
		{"SLUICE_SINK_GROUP=" + strings.Repeat("g", 250), "want a name of 1 to 249 bytes"},
		{"SLUICE_DEDUP_WINDOW=1500ms", "SLUICE_DEDUP_WINDOW=1.5s: want whole seconds"},
		{"SLUICE_CLICKHOUSE_CLUSTER=a;b", `SLUICE_CLICKHOUSE_CLUSTER="a;b": want letters`},
		{"SLUICE_CLICKHOUSE_DSN=http://u:hush@h:8123/d", "SLUICE_CLICKHOUSE_DSN=******: want clickhouse://"},
		{"SLUICE_CLICKHOUSE_DSN=clickhouse://u:hush%zz@h:9000/d", "SLUICE_CLICKHOUSE_DSN=******: want clickhouse://"},
		{"SLUICE_CLICKHOUSE_DSN=clickhouse://u:hush@h/d", "SLUICE_CLICKHOUSE_DSN=******: want clickhouse://"},
		{"SLUICE_ADMIN_LISTEN=1.2.3.4", `SLUICE_ADMIN_LISTEN="1.2.3.4": want host:port`},
	} {
		t.Run(tc.environ, func(t *testing.T) {
			_, err := ParseSink(nil, []string{tc.environ}, io.Discard, io.Discard)
			refused(t, err, tc.want)
		})
	}
}

// refused checks a usage error: one line, with no secret in it.
func refused(t *testing.T, err error, want ...string) {
	t.Helper()
	var usage *UsageError
	require.ErrorAs(t, err, &usage)
	assert.Equal(t, 2, usage.ExitCode())
	for _, w := range want {
		assert.Contains(t, err.Error(), w)
	}
	assert.NotContains(t, err.Error(), "\n")
	assert.NotContains(t, err.Error(), "hush")
}

func TestHelp(t *testing.T) {
	var out, errs bytes.Buffer
	// Help wins over whatever else is wrong.
	_, err := ParseCollector([]string{"--help"}, []string{"SLUICE_NONSENSE=1", "SLUICE_ACK_TIMEOUT=x"}, &out, &errs)
	require.ErrorIs(t, err, ErrHelp)
	assert.Empty(t, errs.String())
	text := strings.Join(strings.Fields(out.String()), " ")
	settings, err := Settings()
	require.NoError(t, err)
	for _, s := range settings {
		if !assert.ObjectsAreEqual("collector", s.Programs[0]) {
			continue
		}
		assert.Contains(t, text, "--"+s.Flag)
		def := s.Default
		if def == "" {
			def = "none"
		}
		def, _, _ = strings.Cut(def, " / ")
		assert.Contains(t, text, fmt.Sprintf("(%s; %s; default %s)", s.Env, s.Unit, def))
	}
	assert.Contains(t, text, "--max-body-bytes=BYTES")

	out.Reset()
	_, err = ParseSink([]string{"-h"}, nil, &out, &errs)
	require.ErrorIs(t, err, ErrHelp)
	assert.Contains(t, out.String(), "SLUICE_SINK_FLUSH_INTERVAL_MAX")
}

// A program with verbs: its own flags are not settings, and the settings of a
// verb that was not called are not looked at.
func TestVerbs(t *testing.T) {
	type cli struct {
		Process Process `embed:""`
		Migrate struct {
			ClickHouse ClickHouse `embed:""`
			Topics     Topics     `embed:""`
			DryRun     bool       `help:"Say what would be done."`
		} `cmd:"" help:"Bring ClickHouse and the topics up to date."`
		Tail struct {
			Kafka Kafka         `embed:""`
			Since time.Duration `default:"1h" help:"From how long ago."`
		} `cmd:"" help:"Follow the topic."`
	}
	parse := func(args []string, environ ...string) (cli, *kong.Context, error) {
		var c cli
		ctx, err := Parse(&c, Program{Name: "sluice", Description: "The tool."}, args, environ, io.Discard, io.Discard)
		return c, ctx, err
	}
	c, ctx, err := parse([]string{"migrate", "--dry-run"}, "SLUICE_CLICKHOUSE_CLUSTER=c1", "SLUICE_KAFKA_SASL_USERNAME=alone", "SLUICE_LISTEN=:1")
	require.NoError(t, err)
	assert.Equal(t, "migrate", ctx.Command())
	assert.Equal(t, "c1", c.Migrate.ClickHouse.Cluster)
	assert.True(t, c.Migrate.DryRun)

	_, _, err = parse([]string{"tail"}, "SLUICE_KAFKA_SASL_USERNAME=alone")
	refused(t, err, `SLUICE_KAFKA_SASL_USERNAME="alone"`)
	_, _, err = parse([]string{"tail"}, "SLUICE_SINCE=2h")
	refused(t, err, "SLUICE_SINCE is not a setting")
	_, _, err = parse([]string{"tail", "--since", "2"})
	refused(t, err, `--since="2": want a duration`)
	_, _, err = parse(nil)
	refused(t, err, "migrate", "tail")
	_, _, err = parse([]string{"tail", "--help"})
	require.ErrorIs(t, err, ErrHelp)

	_, err = Parse(cli{}, Program{Name: "sluice"}, nil, nil, io.Discard, io.Discard)
	require.Error(t, err)
	var usage *UsageError
	assert.NotErrorAs(t, err, &usage, "a grammar that cannot be is not the user's fault")
}

func TestSecretsStayHidden(t *testing.T) {
	s, err := ParseSink(nil, []string{
		"SLUICE_KAFKA_SASL_MECHANISM=scram-sha-512", "SLUICE_KAFKA_SASL_USERNAME=ann", "SLUICE_KAFKA_SASL_PASSWORD=hush1",
		"SLUICE_CLICKHOUSE_DSN=clickhouse://ann:hush2@h1:9000,h2:9000/db?secure=true&password=hush3",
	}, io.Discard, io.Discard)
	require.NoError(t, err)
	assert.Equal(t, "hush1", s.Kafka.SASLPassword.Reveal())
	assert.Contains(t, s.ClickHouse.DSN.Reveal(), "hush2")
	assert.Equal(t, ScramSHA512, s.Kafka.SASLMechanism)

	var b bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		fmt.Fprintf(&b, verb+"\n", s)
		fmt.Fprintf(&b, verb+"\n", &s)
	}
	text, err := json.Marshal(s)
	require.NoError(t, err)
	b.Write(text)
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "settings", s, "dsn", s.ClickHouse.DSN, "password", s.Kafka.SASLPassword)
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "settings", s, "dsn", s.ClickHouse.DSN, "password", s.Kafka.SASLPassword)
	assert.NotContains(t, b.String(), "hush")
	assert.Contains(t, b.String(), "ann:******@h1:9000,h2:9000/db")
	assert.Equal(t, masked, DSN("clickhouse://h:hush").String(), "what cannot be read is hidden whole")
}

type found struct{}

func (found) Error() string { return "found a problem" }
func (found) ExitCode() int { return 3 }

func TestExitCode(t *testing.T) {
	for want, errs := range map[int][]error{
		0: {nil, ErrHelp, fmt.Errorf("x: %w", ErrHelp)},
		1: {io.EOF, fmt.Errorf("sink: %w", &exec.ExitError{ProcessState: &os.ProcessState{}})},
		2: {&UsageError{}, fmt.Errorf("x: %w", &UsageError{})},
		3: {found{}, errors.Join(found{}, io.EOF)},
	} {
		for _, err := range errs {
			assert.Equal(t, want, ExitCode(err), "%v", err)
		}
	}
}
