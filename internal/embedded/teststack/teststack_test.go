package teststack

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// roleVariable makes this test binary the one of a package that is tested here.
const roleVariable = "SLUICE_TESTSTACK_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(Main(m, NeedKafka, NeedClickHouse, CheckLeaks))
	case "kafka":
		os.Exit(Main(m, NeedKafka))
	case "leaky":
		stop := make(chan struct{})
		go func() { <-stop }()
		code := Main(m, CheckLeaks)
		close(stop)
		os.Exit(code)
	}
}

// inRole runs one test of this binary in a package of that role.
func inRole(t *testing.T, role, test string, env ...string) (output string, code int) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), append(env, roleVariable+"="+role)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		require.ErrorAs(t, err, new(*exec.ExitError), string(out))
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func ask(t *testing.T, sql string) string {
	t.Helper()
	resp, err := http.Post("http://"+os.Getenv(httpVariable)+"/?query="+url.QueryEscape(sql), "", nil)
	require.NoError(t, err)
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, string(body))
	return strings.TrimSpace(string(body))
}

func TestServersAnswer(t *testing.T) {
	for _, addr := range []string{Kafka(t), ClickHouse(t)} {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}
}

func TestDatabaseLastsAsLongAsItsTest(t *testing.T) {
	var database string
	t.Run("in", func(t *testing.T) {
		dsn, err := url.Parse(DSN(t))
		require.NoError(t, err)
		assert.Equal(t, ClickHouse(t), dsn.Host)
		database = strings.TrimPrefix(dsn.Path, "/")
		assert.Equal(t, "0", ask(t, "EXISTS DATABASE "+database))
		ask(t, "CREATE DATABASE "+database)
		assert.NotEqual(t, DSN(t), dsn.String())
	})
	assert.Equal(t, "0", ask(t, "EXISTS DATABASE "+database))
}

func TestPrefixes(t *testing.T) {
	assert.NotEqual(t, Prefix(t), Prefix(t))
	assert.Regexp(t, `^t-[a-z0-9]{16}$`, Prefix(t))
}

func TestOwnServers(t *testing.T) {
	ch := StartClickHouse(t)
	assert.NotEqual(t, ClickHouse(t), ch.Addr())
	require.NoError(t, ch.Kill())
	require.NoError(t, ch.Restart(t.Context()))
	k := StartKafka(t)
	assert.NotEqual(t, Kafka(t), k.Addr())
	require.NoError(t, k.Stop(context.Background()))
}

// What a package without a Kafka says: one line, and it fails.
func TestServerThatDoesNotStartFailsTheRun(t *testing.T) {
	out, code := inRole(t, "kafka", "TestPrefixes", kafkaVariable+"=", "JAVA_HOME="+t.TempDir())
	assert.Equal(t, 1, code, out)
	assert.Regexp(t, `^teststack: kafka: cannot install Apache Kafka: install a JDK [^\n]*\n$`, out)
}

func TestGivenServersAreUsed(t *testing.T) {
	out, code := inRole(t, "kafka", "TestPrefixes", kafkaVariable+"=127.0.0.1:1", "JAVA_HOME="+t.TempDir())
	assert.Zero(t, code, out)
	assert.Contains(t, out, "--- PASS: TestPrefixes")
}

func TestForgottenNeedIsTold(t *testing.T) {
	out, code := inRole(t, "kafka", "TestServersAnswer", kafkaVariable+"=127.0.0.1:1", clickHouseVariable+"=")
	assert.Equal(t, 1, code)
	assert.Contains(t, out, "teststack.NeedClickHouse")
}

func TestLeaksFailTheRun(t *testing.T) {
	out, code := inRole(t, "leaky", "TestPrefixes")
	assert.Equal(t, 1, code)
	assert.Contains(t, out, "--- PASS: TestPrefixes")
	assert.Contains(t, out, "teststack: after the tests: found unexpected goroutines")
}

func TestListingStartsNothing(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, "-test.list=.")
	cmd.Env = append(os.Environ(), roleVariable+"=kafka", kafkaVariable+"=", "JAVA_HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	assert.Contains(t, string(out), "TestListingStartsNothing")
}

// The servers' folder goes with the run.
func TestTemporaryFolderIsRemoved(t *testing.T) {
	tmp := t.TempDir()
	out, code := inRole(t, "kafka", "TestPrefixes", kafkaVariable+"=127.0.0.1:1", "TMPDIR="+tmp)
	require.Zero(t, code, out)
	left, err := filepath.Glob(filepath.Join(tmp, "*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}
