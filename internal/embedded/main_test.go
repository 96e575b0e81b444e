package embedded

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// roleVariable makes this test binary play a part in a test of the processes it
// starts: the part's name, the directory and the address.
const roleVariable = "SLUICE_EMBEDDED_ROLE"

func TestMain(m *testing.M) {
	if code, child := EngineMain(); child {
		os.Exit(code)
	}
	if role := os.Getenv(roleVariable); role != "" {
		if err := play(context.Background(), role, os.Args[1], os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// play does what its part is, prints a line when it is done with that, and stays
// until it is killed.
func play(ctx context.Context, role, dir, addr string) error {
	lock := func() (*os.File, error) { return lockFile(ctx, filepath.Join(dir, "child"), func() {}) }
	said := "up"
	switch role {
	case "broker":
		b, err := StartBroker(ctx, BrokerConfig{Dir: dir, Listen: Endpoint{Addr: addr}, Log: os.Stderr})
		if err != nil {
			return err
		}
		said = b.Addr()
	case "parent": // of a child that holds a lock
		l, err := lock()
		if err != nil {
			return err
		}
		if _, err := start(command{name: "sleep", path: "/bin/sleep", args: []string{"1000"}, log: filepath.Join(dir, "log"), lock: l}); err != nil {
			return err
		}
	case "watched": // the same, with nothing but the watching shell to end it
		l, err := lock()
		if err != nil {
			return err
		}
		cmd := exec.Command("/bin/sleep", "1000")
		cmd.ExtraFiles = []*os.File{l}
		if err := cmd.Start(); err != nil {
			return err
		}
		if _, err := watch(cmd.Process.Pid); err != nil {
			return err
		}
	case "clickhouse":
		c, err := StartClickHouse(ctx, ClickHouseConfig{Dir: dir, Native: Endpoint{Addr: addr}, Progress: os.Stderr})
		if err != nil {
			return err
		}
		said = c.HTTPAddr()
	default:
		return errors.New("no such role: " + role)
	}
	fmt.Println(said)
	select {}
}

// perform starts this binary in a role and returns what it said when it was ready.
func perform(t *testing.T, role, dir, addr string) (cmd *exec.Cmd, said string) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd = exec.Command(self, dir, addr)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { kill(cmd) })
	said, err = bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err, "the %s ended", role)
	return cmd, strings.TrimSpace(said)
}

func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill() // it may be gone
	_ = cmd.Wait()
}

// query asks ClickHouse over HTTP.
func query(t *testing.T, addr, sql string) string {
	t.Helper()
	out, err := tryQuery(t.Context(), addr, sql)
	require.NoError(t, err)
	return out
}

func tryQuery(ctx context.Context, addr, sql string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/?query="+url.QueryEscape(sql), nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return strings.TrimSpace(string(body)), err
}

// shortly is a context for what is expected to take for ever.
func shortly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// script writes an executable shell script.
func script(t *testing.T, path, body string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755))
}
