package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/config"
	"sluice/internal/embedded"
	"sluice/internal/prove"
)

func TestProveUsage(t *testing.T) {
	for args, says := range map[string]string{
		"--faults=burn":                   `"burn" is no fault: want all, or some of cut-client, `,
		"--duration=1s":                   "--duration=1s: want 10s to 24h",
		"--duration=soon":                 "--duration",
		"--rate=0":                        "--rate=0",
		"--events=1001":                   "--events=1001: want 1 to 1000",
		"--collectors=0":                  "--collectors=0",
		"--sinks=9":                       "--sinks=9",
		"--partitions=0":                  "--partitions=0",
		"--duration=1m --outage=2m":       "--outage=2m0s",
		"--clickhouse=127.0.0.1:9000":     "want both or none",
		"--clickhouse-http=127.0.0.1:812": "want both or none",
		"--kafka=somewhere":               `--kafka="somewhere": want host:port`,
		"--output=xml":                    "--output",
	} {
		got := sluice(t, append([]string{"prove"}, strings.Fields(args)...))
		assert.Equal(t, 2, got.code, args)
		assert.Empty(t, got.stdout, args)
		assert.Contains(t, oneLine(t, got.stderr), says, args)
	}
}

func TestProveHelp(t *testing.T) {
	got := sluice(t, []string{"prove", "--help"})
	assert.Zero(t, got.code)
	for _, s := range []string{"--duration", "--faults", "--seed", "--rate", "--events", "--collectors", "--sinks", "--report", "--output", "--self-test", "--kafka", "--clickhouse"} {
		assert.Contains(t, got.stdout, s)
	}
	assert.NotContains(t, got.stdout, "--broker-")
}

func TestProveWantsItsPrograms(t *testing.T) {
	got := sluice(t, []string{"prove", "--programs", t.TempDir()})
	assert.Equal(t, 1, got.code)
	assert.Contains(t, oneLine(t, got.stderr), "make build")

	// Programs without the build tag cannot be told to break.
	dir := t.TempDir()
	for _, name := range []string{"collector", "sink"} {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, name), "sluice/cmd/"+name)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	got = sluice(t, []string{"prove", "--self-test", "--programs", dir})
	assert.Equal(t, 1, got.code)
	assert.Contains(t, oneLine(t, got.stderr), "-tags faults")

	p := proveVerb{Programs: os.Getenv("SLUICE_TEST_BIN")}
	found, err := p.programs()
	require.NoError(t, err)
	assert.True(t, found.faults, "those of these tests can")
}

// logsOf shows what the services of a run that went wrong have logged.
func logsOf(t *testing.T, got outcome, dir string) {
	t.Helper()
	if got.code == 0 {
		return
	}
	logs, err := filepath.Glob(filepath.Join(dir, "pipeline-*", "*.log"))
	require.NoError(t, err)
	for _, log := range logs {
		text, err := os.ReadFile(log)
		require.NoError(t, err)
		t.Logf("end of %s:\n%s", log, text[max(0, len(text)-10_000):])
	}
}

// A short run where there is no Java: on the embedded broker, which can be killed
// too.
func TestProveWithoutJava(t *testing.T) {
	dir := t.TempDir()
	report := filepath.Join(dir, "report.json")
	got := sluice(t, []string{"prove", "--duration", "20s", "--rate", "50", "--faults", "kill-broker,kill-sink,cut-collector-kafka", "--seed", "4",
		"--report", report, "--dir", filepath.Join(dir, "work")}, "JAVA_HOME="+t.TempDir())
	logsOf(t, got, filepath.Join(dir, "work"))
	require.Zero(t, got.code, "%s\n%s", got.stdout, got.stderr)
	assert.Contains(t, got.stdout, "Kept: ")
	assert.Contains(t, got.stdout, "embedded broker")
	assert.Contains(t, got.stderr, "--seed 4")
	text, err := os.ReadFile(report)
	require.NoError(t, err)
	var r prove.Report
	require.NoError(t, json.Unmarshal(text, &r))
	assert.True(t, r.OK)
	assert.Positive(t, r.Verdict.Acknowledged)
	assert.NotEmpty(t, r.Survived)
	page, err := os.ReadFile(filepath.Join(dir, "report.md"))
	require.NoError(t, err)
	assert.Contains(t, string(page), "# Fault run, seed 4")
}

// The servers that are given are used, and not broken.
func TestProveOnGivenServers(t *testing.T) {
	got := sluice(t, []string{"prove", "--duration", "12s", "--rate", "50", "--faults", "kill-*,latency-sink-clickhouse", "--output", "json",
		"--kafka", os.Getenv("SLUICE_TEST_KAFKA"), "--clickhouse", os.Getenv("SLUICE_TEST_CLICKHOUSE"), "--clickhouse-http", os.Getenv("SLUICE_TEST_CLICKHOUSE_HTTP")})
	require.Zero(t, got.code, "%s\n%s", got.stdout, got.stderr)
	var r prove.Report
	require.NoError(t, json.Unmarshal([]byte(got.stdout), &r))
	assert.Equal(t, []string{"kill-broker", "kill-clickhouse"}, r.LeftOut)
	assert.Equal(t, "given", r.About.Kafka)
}

func TestFindingsExitWith3(t *testing.T) {
	assert.Equal(t, 3, config.ExitCode(errors.Join(foundProblem{"lost 1"}, nil)))
}

func TestProveBrokerAdvertises(t *testing.T) {
	addr, err := embedded.FreeAddr()
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cmd := command(ctx, t, []string{"prove", "--broker-dir", t.TempDir(), "--broker-listen", addr, "--broker-advertised", "127.0.0.1:1"}, nil)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	}, patience, tick)
	cancel()
	_ = cmd.Wait() // that it was ended is no news
	assert.Zero(t, cmd.ProcessState.ExitCode(), "Ctrl-C ends it in order")
}
