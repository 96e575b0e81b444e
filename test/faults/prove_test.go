package faults

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// prove runs sluice prove, by the binaries of these tests: they have the race
// detector and disks that can fail.
func prove(t *testing.T, report any, args ...string) {
	t.Helper()
	bin := os.Getenv("SLUICE_TEST_BIN") // from pipeline.Main
	require.NotEmpty(t, bin)
	work := filepath.Join(t.TempDir(), "work")
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "sluice"),
		append([]string{"prove", "--programs", bin, "--dir", work, "--output", "json", "--log-format", "text"}, args...)...)
	// It ends its services in order; they end with it in any case.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "SLUICE_") || strings.HasPrefix(kv, "SLUICE_ENGINE_DIR=") || strings.HasPrefix(kv, "SLUICE_KAFKA_DIR=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	t.Logf("%s", stderr.Bytes())
	if err != nil {
		logs, _ := filepath.Glob(filepath.Join(work, "pipeline-*", "*.log"))
		for _, log := range logs {
			text, _ := os.ReadFile(log)
			t.Logf("end of %s:\n%s", log, text[max(0, len(text)-6000):])
		}
	}
	require.NoError(t, json.Unmarshal(stdout.Bytes(), report), "%v\n%s", err, stdout.Bytes())
	if err != nil {
		shortened := stdout.Bytes()
		if i := bytes.Index(shortened, []byte(`"timeline"`)); i > 0 {
			shortened = shortened[:i]
		}
		t.Errorf("sluice prove: %v\n%s", err, shortened)
	}
}

// Everything that can be broken is, for three minutes, and nothing is lost.
// SLUICE_TEST_SEED repeats a schedule.
func TestProve(t *testing.T) {
	args := []string{"--duration", "3m"}
	if seed := os.Getenv("SLUICE_TEST_SEED"); seed != "" {
		args = append(args, "--seed", seed)
	}
	var r struct {
		OK      bool
		LeftOut []string `json:"left_out"`
		Verdict struct {
			Acknowledged, Stored, Lost, Doubled, Twice, Phantom, Altered uint64
		}
		Survived  []struct{ Times int }
		Watermark struct {
			Missing                     bool
			Asked, Batches, Back, Ahead uint64
		}
		Audit   struct{ Ran, Found bool }
		Drained time.Duration `json:"drained_ns"`
		Delay   struct {
			Longest time.Duration `json:"longest_ns"`
		}
	}
	prove(t, &r, args...)
	t.Logf("%d acknowledged, longest delay %s, waited %s in the end", r.Verdict.Acknowledged, r.Delay.Longest, r.Drained)
	assert.True(t, r.OK)
	assert.Empty(t, r.LeftOut, "every kind of fault")
	assert.Greater(t, r.Verdict.Acknowledged, uint64(100_000), "a load worth the name")
	assert.Zero(t, r.Verdict.Lost, "lost")
	assert.Zero(t, r.Verdict.Doubled+r.Verdict.Twice, "doubled")
	assert.Zero(t, r.Verdict.Phantom+r.Verdict.Altered, "never sent, or otherwise")
	assert.GreaterOrEqual(t, r.Verdict.Stored, r.Verdict.Acknowledged)
	survived := 0
	for _, k := range r.Survived {
		survived += k.Times
	}
	assert.GreaterOrEqual(t, survived, 25)
	assert.False(t, r.Watermark.Missing)
	assert.Zero(t, r.Watermark.Back+r.Watermark.Ahead, "the watermark lied")
	assert.Greater(t, r.Watermark.Asked, uint64(100))
	assert.Positive(t, r.Watermark.Batches)
	assert.True(t, r.Audit.Ran)
	assert.False(t, r.Audit.Found, "the audit has findings")
}

// Pipelines that are broken on purpose are caught, each within a minute, and a
// whole one is not.
func TestProveNoticesABrokenPipeline(t *testing.T) {
	var results []struct {
		Name, How     string
		Broken, Right bool
		After         time.Duration `json:"after_ns"`
	}
	prove(t, &results, "--self-test")
	require.Len(t, results, 4)
	broken := 0
	for _, r := range results {
		t.Logf("%s: %s, after %.1f s", r.Name, r.How, r.After.Seconds())
		assert.True(t, r.Right, "%s: %s", r.Name, r.How)
		if r.Broken {
			broken++
			assert.Less(t, r.After, time.Minute, r.Name)
		}
	}
	assert.Equal(t, 3, broken)
}
