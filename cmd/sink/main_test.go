package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/config"
	"sluice/internal/embedded"
)

// roleVariable makes this test binary the sink itself: exit codes, signals and
// what is written where belong to a process.
const roleVariable = "SLUICE_TEST_SINK"

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// command is the sink with these arguments and nothing of this process's
// settings. It ends with the test.
func command(t *testing.T, args, env []string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self, args...)
	// The race detector would keep each process for a second at its end.
	cmd.Env = append([]string{roleVariable + "=1", "GORACE=atexit_sleep_ms=0"}, env...)
	cmd.Dir = t.TempDir()
	return cmd
}

type outcome struct {
	code           int
	stdout, stderr string
}

func runCommand(t *testing.T, args []string, env ...string) outcome {
	t.Helper()
	cmd := command(t, args, env)
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

func TestSettingsErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		args, env []string
		says      []string
	}{
		"bad unit":         {nil, []string{"SLUICE_SINK_FLUSH_BYTES=256M"}, []string{"SLUICE_SINK_FLUSH_BYTES", "256M", "want a size"}},
		"out of range":     {[]string{"--sink-flush-rows", "500001"}, nil, []string{"SLUICE_SINK_FLUSH_ROWS=500001", "want 1 to 500000"}},
		"unknown variable": {nil, []string{"SLUICE_SINK_GRUOP=x"}, []string{"SLUICE_SINK_GRUOP is not a setting", "SLUICE_SINK_GROUP"}},
		"unknown flag":     {[]string{"--topic=x"}, nil, []string{"--topic"}},
		"an argument":      {[]string{"drain"}, nil, []string{"drain"}},
		"combination":      {[]string{"--sink-flush-interval=20s"}, nil, []string{"SLUICE_SINK_FLUSH_INTERVAL=20s", "SLUICE_SINK_FLUSH_INTERVAL_MAX"}},
		"password":         {nil, []string{"SLUICE_CLICKHOUSE_DSN=http://u:hush@x:1/y"}, []string{"SLUICE_CLICKHOUSE_DSN", "want clickhouse://"}},
		"healthcheck":      {[]string{"healthcheck", "--admin-listen=x"}, nil, []string{"SLUICE_ADMIN_LISTEN", `"x"`}},
	} {
		t.Run(name, func(t *testing.T) {
			got := runCommand(t, tc.args, tc.env...)
			assert.Equal(t, 2, got.code)
			assert.Empty(t, got.stdout)
			line := oneLine(t, got.stderr)
			assert.True(t, strings.HasPrefix(line, "sink: "), line)
			assert.NotContains(t, line, "hush")
			for _, s := range tc.says {
				assert.Contains(t, line, s)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"healthcheck", "--help"}} {
		got := runCommand(t, args)
		assert.Zero(t, got.code)
		assert.Empty(t, got.stderr)
		for _, s := range []string{"--sink-flush-bytes", "SLUICE_SINK_FLUSH_BYTES", "healthcheck", "default 256MiB"} {
			assert.Contains(t, got.stdout, s)
		}
	}
}

// What cannot be had at the start ends it, with the reason in one line.
func TestAddressTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	got := runCommand(t, nil, "SLUICE_ADMIN_LISTEN="+taken.Addr().String(), "SLUICE_LOG_LEVEL=error")
	assert.Equal(t, 1, got.code)
	assert.Contains(t, oneLine(t, got.stderr), "SLUICE_ADMIN_LISTEN "+taken.Addr().String())
}

func TestHealthcheck(t *testing.T) {
	status := http.StatusOK
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, "/readyz", r.URL.Path)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "not ready: waiting for the consumer group\n")
	}))
	defer admin.Close()
	addr := strings.TrimPrefix(admin.URL, "http://")

	assert.Equal(t, outcome{}, runCommand(t, []string{"healthcheck"}, "SLUICE_ADMIN_LISTEN="+addr))

	status = http.StatusServiceUnavailable
	got := runCommand(t, []string{"healthcheck"}, "SLUICE_ADMIN_LISTEN="+addr)
	assert.Equal(t, 1, got.code)
	assert.Contains(t, oneLine(t, got.stderr), "503: not ready: waiting for the consumer group")

	admin.Close()
	got = runCommand(t, []string{"healthcheck", "--admin-listen", addr})
	assert.Equal(t, 1, got.code)
	assert.Contains(t, oneLine(t, got.stderr), addr)
}

// Without Kafka and ClickHouse the sink runs, says what it waits for, and ends
// when it is asked to.
func TestRunsAlone(t *testing.T) {
	for _, tc := range []struct {
		env, limit string
		end        os.Signal
	}{
		{"SLUICE_LOG_FORMAT=json", "4.69762048e+08", syscall.SIGTERM}, // 448 MiB
		{"GOMEMLIMIT=256MiB", "2.68435456e+08", os.Interrupt},
	} {
		nobody, err := embedded.FreeAddr()
		require.NoError(t, err)
		admin, err := embedded.FreeAddr()
		require.NoError(t, err)
		cmd := command(t, nil, []string{"SLUICE_ADMIN_LISTEN=" + admin, "SLUICE_KAFKA_BROKERS=" + nobody,
			"SLUICE_CLICKHOUSE_DSN=clickhouse://" + nobody + "/x", tc.env})
		log, err := os.Create(filepath.Join(t.TempDir(), "log"))
		require.NoError(t, err)
		cmd.Stderr = log
		require.NoError(t, cmd.Start())
		get := func(path string) (code int, body string) {
			resp, err := http.Get("http://" + admin + path)
			if err != nil {
				return 0, err.Error()
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			return resp.StatusCode, string(text)
		}
		assert.Eventually(t, func() bool { code, _ := get("/healthz"); return code == http.StatusOK }, 20*time.Second, 20*time.Millisecond)
		code, body := get("/readyz")
		assert.Equal(t, http.StatusServiceUnavailable, code)
		assert.Contains(t, body, errStarting.Error())
		_, body = get("/status")
		assert.Contains(t, body, `"partitions": []`)
		_, body = get("/metrics")
		assert.Contains(t, body, "go_gc_gomemlimit_bytes "+tc.limit+"\n", tc.env)
		assert.Eventually(t, func() bool {
			text, err := os.ReadFile(log.Name())
			return err == nil && strings.Contains(string(text), "waiting to migrate ClickHouse")
		}, 20*time.Second, 20*time.Millisecond)

		require.NoError(t, cmd.Process.Signal(tc.end))
		_ = cmd.Wait() // the exit code says it
		assert.Zero(t, cmd.ProcessState.ExitCode())
		require.NoError(t, log.Close())
	}
}

func TestMemoryLimit(t *testing.T) {
	for flush, want := range map[config.Bytes]int64{
		256 << 20: 448 << 20, // the default
		64 << 20:  160 << 20,
		1 << 30:   1600 << 20,
	} {
		assert.Equal(t, want, memoryLimit(config.Sink{FlushBytes: flush}), "%v", flush)
	}
}
