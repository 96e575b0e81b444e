package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/embedded/teststack"
	"sluice/test/pipeline"
)

func TestMain(m *testing.M) {
	os.Exit(pipeline.Main(m, teststack.NeedKafka, teststack.NeedClickHouse))
}

// command is the tool as it was built beside the services, with nothing of this
// process's settings. It ends with ctx.
func command(ctx context.Context, t *testing.T, args, env []string) *exec.Cmd {
	t.Helper()
	bin := os.Getenv("SLUICE_TEST_BIN") // from pipeline.Main
	require.NotEmpty(t, bin)
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "sluice"), args...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "SLUICE_") || strings.HasPrefix(kv, "SLUICE_ENGINE_DIR=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	// The race detector would keep each process for a second at its end.
	cmd.Env = append(append(cmd.Env, "GORACE=atexit_sleep_ms=0"), env...)
	return cmd
}

type outcome struct {
	code           int
	stdout, stderr string
}

func sluice(t *testing.T, args []string, env ...string) outcome {
	t.Helper()
	cmd := command(t.Context(), t, args, env)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// oneLine requires that a text is one line, and returns it.
func oneLine(t *testing.T, s string) string {
	t.Helper()
	line, ok := strings.CutSuffix(s, "\n")
	require.True(t, ok, "%q", s)
	require.NotContains(t, line, "\n")
	return line
}
