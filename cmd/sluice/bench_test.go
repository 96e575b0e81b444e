package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/bench"
)

func TestBenchUsage(t *testing.T) {
	for args, says := range map[string]string{
		"race":                          "must be one of",
		"--runs=0":                      "--runs=0: want 1 to 50",
		"--duration=1ms":                "--duration=1ms: want 100ms to 1h",
		"--rows=10":                     "--rows=10",
		"--connections=1001":            "--connections=1001: want 1 to 1000",
		"--partitions=0":                "--partitions=0",
		"--sinks=9":                     "--sinks=9: want 1 to 8",
		"load --rate=-1":                "--rate=-1",
		"load --protocol=telex":         `protocol "telex": want one of [amplitude`,
		"load --url=8080":               `--url="8080": want http://host:port`,
		"sink --url=http://localhost:1": "want the scenario load with it",
		"collector --only=catch-up":     `--only: "catch-up" is no measurement of collector: want some of read, `,
		"--clickhouse=127.0.0.1:9000":   "want both or none",
		"--kafka=somewhere":             `--kafka="somewhere": want host:port`,
	} {
		got := sluice(t, append([]string{"bench"}, strings.Fields(args)...))
		assert.Equal(t, 2, got.code, "%s: %s", args, got.stderr)
		assert.Empty(t, got.stdout, args)
		assert.Contains(t, oneLine(t, got.stderr), says, args)
	}
}

func TestBenchHelp(t *testing.T) {
	got := sluice(t, []string{"bench", "--help"})
	assert.Zero(t, got.code)
	for _, s := range []string{"Examples:", "--only", "--runs", "--rate", "--encoding", "--duplicates", "--url", "--out", "--output", "CPU-s/M"} {
		assert.Contains(t, got.stdout, s)
	}
	assert.NotContains(t, sluice(t, []string{"--help"}).stdout, "bench-ceiling")
}

func TestMeasurementsHaveOneScenario(t *testing.T) {
	all := measurements("all")
	for _, scenario := range []string{"collector", "sink", "both"} {
		for _, m := range measurements(scenario) {
			assert.Contains(t, all, m)
		}
	}
	for i, m := range all {
		assert.Equal(t, i, slices.Index(all, m), "%s is there once", m)
	}
	v := benchVerb{Scenario: "collector", Only: "read*, native"}
	chosen, err := v.selected()
	require.NoError(t, err)
	assert.Equal(t, map[string]bool{"read": true, "read-gzip": true, "read-one": true, "native": true}, chosen)
}

// A tiny run of everything that needs no time, on given servers: what it counts is
// right, whatever it measures.
func TestBench(t *testing.T) {
	dir := t.TempDir()
	out, lines := filepath.Join(dir, "new", "results.json"), filepath.Join(dir, "bench.txt")
	got := sluice(t, []string{"bench", "all", "--only", "read,scan,produce,native,gzip,spool,otlp-json,open-100k,insert,catch-up,both", "--runs", "1", "--duration", "100ms",
		"--rows", "20000", "--connections", "4", "--partitions", "2", "--out", out, "--go-bench", lines,
		"--kafka", os.Getenv("SLUICE_TEST_KAFKA"), "--clickhouse", os.Getenv("SLUICE_TEST_CLICKHOUSE"), "--clickhouse-http", os.Getenv("SLUICE_TEST_CLICKHOUSE_HTTP")})
	require.Zero(t, got.code, "%s\n%s", got.stdout, got.stderr)
	assert.Contains(t, got.stdout, "MEDIAN")
	text, err := os.ReadFile(out)
	require.NoError(t, err)
	var list []bench.Result
	require.NoError(t, json.Unmarshal(text, &list))
	found := map[string]bool{}
	for _, r := range list {
		found[r.Name] = true
		assert.NotEmpty(t, r.Unit, r.Name)
		if r.Name != "machine/others" {
			assert.Len(t, r.Runs, 1, r.Name)
			assert.Equal(t, r.Runs[0], r.Value, r.Name)
		}
	}
	for _, name := range []string{"ceiling/read", "ceiling/scan", "ceiling/produce", "ceiling/insert", "collector/native", "collector/native/of-ceilings", "collector/gzip/more-than-native",
		"collector/spool/rate-of-native", "collector/otlp-json/of-native", "collector/open-100k/p99", "sink/catch-up", "sink/catch-up/rate", "sink/catch-up/memory", "sink/catch-up/block", "both/rate"} {
		assert.True(t, found[name], name)
	}
	text, err = os.ReadFile(lines)
	require.NoError(t, err)
	assert.Contains(t, string(text), "BenchmarkCollector_native_rate 1 ")
}

func TestBenchWithoutPrograms(t *testing.T) {
	got := sluice(t, []string{"bench", "load", "--programs", t.TempDir(), "--kafka", os.Getenv("SLUICE_TEST_KAFKA"), "--out", ""})
	assert.Equal(t, 1, got.code)
	assert.Contains(t, got.stderr, "make build")
	got = sluice(t, []string{"bench", "load", "--url", "http://127.0.0.1:1"})
	assert.Equal(t, 1, got.code)
	assert.Contains(t, got.stderr, "--pid")
}
