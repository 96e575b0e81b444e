package main

import (
	"bytes"
	"context"
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
	"sluice/internal/ingest"
	"sluice/internal/keys"
)

// roleVariable makes this test binary the collector itself: exit codes, signals
// and what is written where belong to a process.
const roleVariable = "SLUICE_TEST_COLLECTOR"

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// command is the collector with these arguments and nothing of this process's
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

func TestEveryEndpointIsDescribed(t *testing.T) {
	require.NoError(t, ingest.CheckOpenAPI(endpoints()))
}

func TestSettingsErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		args, env []string
		says      []string
	}{
		"no keys":          {nil, nil, []string{"SLUICE_KEYS_FILE is not set", "SLUICE_ALLOW_ANONYMOUS=true"}},
		"bad unit":         {nil, []string{"SLUICE_MAX_BODY_BYTES=10 Mib/s"}, []string{"SLUICE_MAX_BODY_BYTES", "10 Mib/s", "want a size"}},
		"out of range":     {[]string{"--ack-timeout", "1h"}, nil, []string{"SLUICE_ACK_TIMEOUT=1h0m0s", "want 1ms to 10s"}},
		"unknown variable": {nil, []string{"SLUICE_LISTENS=:1"}, []string{"SLUICE_LISTENS is not a setting", "SLUICE_LISTEN"}},
		"unknown flag":     {[]string{"--listens=:1"}, nil, []string{"--listens"}},
		"an argument":      {[]string{"serve"}, nil, []string{"serve"}},
		"combination":      {nil, []string{"SLUICE_ALLOW_ANONYMOUS=true", "SLUICE_KEYS_FILE=k"}, []string{"SLUICE_ALLOW_ANONYMOUS=true", "SLUICE_KEYS_FILE"}},
		"healthcheck":      {[]string{"healthcheck", "--admin-listen=x"}, nil, []string{"SLUICE_ADMIN_LISTEN", `"x"`}},
	} {
		t.Run(name, func(t *testing.T) {
			got := runCommand(t, tc.args, tc.env...)
			assert.Equal(t, 2, got.code)
			assert.Empty(t, got.stdout)
			line := oneLine(t, got.stderr)
			assert.True(t, strings.HasPrefix(line, "collector: "), line)
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
		for _, s := range []string{"--listen", "SLUICE_LISTEN", "healthcheck", "default 10MiB"} {
			assert.Contains(t, got.stdout, s)
		}
	}
}

// What cannot be had at the start ends it, with the reason in one line.
func TestStartFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte("{}"), 0o600))
	for name, tc := range map[string]struct {
		env  []string
		says string
	}{
		"address taken":       {[]string{"SLUICE_LISTEN=" + taken.Addr().String()}, "SLUICE_LISTEN " + taken.Addr().String()},
		"admin address taken": {[]string{"SLUICE_ADMIN_LISTEN=" + taken.Addr().String()}, "SLUICE_ADMIN_LISTEN " + taken.Addr().String()},
		"spool is a file":     {[]string{"SLUICE_SPOOL_DIR=" + file}, file},
		"no keys file":        {[]string{"SLUICE_ALLOW_ANONYMOUS=false", "SLUICE_KEYS_FILE=nowhere"}, "SLUICE_KEYS_FILE"},
		"broken keys file":    {[]string{"SLUICE_ALLOW_ANONYMOUS=false", "SLUICE_KEYS_FILE=" + file}, "SLUICE_KEYS_FILE"},
	} {
		t.Run(name, func(t *testing.T) {
			got := runCommand(t, nil, append([]string{
				"SLUICE_LISTEN=127.0.0.1:0", "SLUICE_ADMIN_LISTEN=127.0.0.1:0", "SLUICE_ALLOW_ANONYMOUS=true", "SLUICE_LOG_LEVEL=error",
			}, tc.env...)...)
			assert.Equal(t, 1, got.code)
			assert.Contains(t, oneLine(t, got.stderr), tc.says)
		})
	}
}

func TestHealthcheck(t *testing.T) {
	status := http.StatusOK
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, "/readyz", r.URL.Path)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "not ready: no broker\n")
	}))
	defer admin.Close()
	addr := strings.TrimPrefix(admin.URL, "http://")
	env := []string{"SLUICE_ALLOW_ANONYMOUS=true", "SLUICE_ADMIN_LISTEN=" + addr}

	assert.Equal(t, outcome{}, runCommand(t, []string{"healthcheck"}, env...))

	status = http.StatusServiceUnavailable
	got := runCommand(t, []string{"healthcheck"}, env...)
	assert.Equal(t, 1, got.code)
	assert.Contains(t, oneLine(t, got.stderr), "503: not ready: no broker")

	admin.Close()
	got = runCommand(t, []string{"healthcheck"}, env...)
	assert.Equal(t, 1, got.code)
	assert.Contains(t, oneLine(t, got.stderr), addr)
}

// service is a collector that runs, and where it listens.
type service struct {
	cmd        *exec.Cmd
	url, admin string
}

// startService starts a collector whose Kafka is not there, and waits until it
// answers.
func startService(t *testing.T, env ...string) *service {
	t.Helper()
	free := func() string {
		addr, err := embedded.FreeAddr()
		require.NoError(t, err)
		return addr
	}
	listen, admin := free(), free()
	s := &service{url: "http://" + listen, admin: "http://" + admin}
	s.cmd = command(t, nil, append([]string{
		"SLUICE_LISTEN=" + listen, "SLUICE_ADMIN_LISTEN=" + admin, "SLUICE_KAFKA_BROKERS=" + free(),
	}, env...))
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	s.cmd.Stderr = log
	require.NoError(t, s.cmd.Start())
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill() // it may be gone
		_ = s.cmd.Wait()
		assert.NoError(t, log.Close())
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("log of the collector:\n%s", text)
		}
	})
	require.Eventually(t, func() bool {
		for _, url := range []string{s.url + "/openapi.json", s.admin + "/healthz"} {
			resp, err := http.Get(url)
			if err != nil {
				return false
			}
			_ = resp.Body.Close() // nothing of it is read
		}
		return true
	}, 20*time.Second, 20*time.Millisecond)
	return s
}

// stop asks the collector to end and returns its exit code.
func (s *service) stop(t *testing.T, sig os.Signal) int {
	t.Helper()
	require.NoError(t, s.cmd.Process.Signal(sig))
	_ = s.cmd.Wait() // the exit code says it
	return s.cmd.ProcessState.ExitCode()
}

func ask(t *testing.T, method, url, body string, header ...string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(text)
}

// Without Kafka the collector runs, says that it is not ready, and claims nothing.
func TestRunsWithoutKafka(t *testing.T) {
	s := startService(t, "SLUICE_ALLOW_ANONYMOUS=true")

	code, _ := ask(t, http.MethodGet, s.admin+"/healthz", "")
	assert.Equal(t, http.StatusOK, code)
	code, _ = ask(t, http.MethodGet, s.admin+"/readyz", "")
	assert.Equal(t, http.StatusServiceUnavailable, code)
	code, body := ask(t, http.MethodGet, s.admin+"/status", "")
	assert.Equal(t, http.StatusOK, code)
	assert.Contains(t, body, `"collector"`)

	code, body = ask(t, http.MethodPost, s.url+"/v1/exposures", `[{"experiment":"e","variant":"v","unit_id":"u"}]`, "Content-Type", "application/json")
	assert.Equal(t, http.StatusServiceUnavailable, code, body)
	code, body = ask(t, http.MethodPost, s.url+"/v1/log_event", `{"events":[]}`, "Content-Type", "application/json")
	assert.Equal(t, http.StatusServiceUnavailable, code, body)
	code, body = ask(t, http.MethodGet, s.url+"/openapi.json", "")
	assert.Equal(t, http.StatusOK, code)
	assert.Equal(t, string(ingest.OpenAPI()), body)

	assert.Zero(t, s.stop(t, syscall.SIGTERM))
}

// Keys from the file are asked for, and one that is disabled while the collector
// runs is refused soon after.
func TestKeysFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys.json")
	key, err := keys.Add(file, keys.NewKey{ID: "k", Project: "p"})
	require.NoError(t, err)
	s := startService(t, "SLUICE_KEYS_FILE="+file)
	post := func(key string) int {
		code, _ := ask(t, http.MethodPost, s.url+"/v1/exposures", `[{"experiment":"e","variant":"v","unit_id":"u"}]`,
			"Content-Type", "application/json", "Authorization", "Bearer "+key)
		return code
	}
	assert.Equal(t, http.StatusUnauthorized, post("another"))
	assert.Equal(t, http.StatusServiceUnavailable, post(key), "let in; there is no Kafka")
	require.NoError(t, keys.Disable(file, "k"))
	require.Eventually(t, func() bool { return post(key) == http.StatusForbidden }, 20*time.Second, 50*time.Millisecond)
	assert.Zero(t, s.stop(t, os.Interrupt))
}

func TestMemoryLimit(t *testing.T) {
	for _, tc := range []struct {
		body, inFlight config.Bytes
		want           int64
	}{
		{10 << 20, 0, 86 << 20},         // the defaults
		{1 << 20, 8 << 20, 86 << 20},    // less in flight
		{10 << 20, 64 << 20, 110 << 20}, // 24 MiB more
		{20 << 20, 0, 126 << 20},        // four bodies of 20 MiB
	} {
		assert.Equal(t, tc.want, memoryLimit(config.Collector{MaxBody: tc.body, MaxInFlight: tc.inFlight}), "%+v", tc)
	}
}

// What the runtime was told, as the process's own metrics show it.
func TestMemoryLimitIsSet(t *testing.T) {
	for env, want := range map[string]string{
		"SLUICE_LOG_FORMAT=json": "go_gc_gomemlimit_bytes 9.0177536e+07",
		"GOMEMLIMIT=256MiB":      "go_gc_gomemlimit_bytes 2.68435456e+08",
	} {
		s := startService(t, "SLUICE_ALLOW_ANONYMOUS=true", env)
		_, metrics := ask(t, http.MethodGet, s.admin+"/metrics", "")
		assert.Contains(t, metrics, want+"\n", env)
		assert.Zero(t, s.stop(t, syscall.SIGTERM))
	}
}
