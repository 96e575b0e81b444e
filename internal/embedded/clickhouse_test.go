package embedded

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func startClickHouse(t *testing.T, cfg ClickHouseConfig) *ClickHouse {
	t.Helper()
	c, err := StartClickHouse(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Stop(context.Background())) })
	return c
}

func TestClickHouseKeepsItsDataOverKillsAndRestarts(t *testing.T) {
	c := startClickHouse(t, ClickHouseConfig{Dir: t.TempDir()})
	query(t, c.HTTPAddr(), "CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n")
	for round := 1; round <= 3; round++ {
		query(t, c.HTTPAddr(), "INSERT INTO kept SELECT number FROM numbers(1000)")
		if round == 2 {
			require.NoError(t, c.Stop(t.Context()))
		} else {
			require.NoError(t, c.Kill())
		}
		<-c.Done()
		assert.NoError(t, c.Err(), "it was asked to end")
		_, err := tryQuery(t.Context(), c.HTTPAddr(), "SELECT 1")
		require.Error(t, err)
		require.NoError(t, c.Restart(t.Context()))
		assert.Equal(t, fmt.Sprint(1000*round), query(t, c.HTTPAddr(), "SELECT count() FROM kept"))
	}
	require.NoError(t, c.Restart(t.Context()), "a running one")
	assert.Equal(t, "3000", query(t, c.HTTPAddr(), "SELECT count() FROM kept"))
}

func TestPausedClickHouseDoesNotAnswer(t *testing.T) {
	c := startClickHouse(t, ClickHouseConfig{Dir: t.TempDir()})
	require.NoError(t, c.Pause())
	_, err := tryQuery(shortly(t), c.HTTPAddr(), "SELECT 1")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, c.Resume())
	assert.Equal(t, "1", query(t, c.HTTPAddr(), "SELECT 1"))
	assert.NoError(t, c.Err())
}

func TestClickHouseThatDiesIsNoticed(t *testing.T) {
	c := startClickHouse(t, ClickHouseConfig{Dir: t.TempDir()})
	require.NoError(t, syscall.Kill(c.PID(), syscall.SIGKILL))
	<-c.Done()
	assert.ErrorContains(t, c.Err(), "clickhouse ended by itself (signal: killed)")
	assert.ErrorContains(t, c.Err(), c.Log())
	require.NoError(t, c.Restart(t.Context()))
	assert.NoError(t, c.Err())
}

func TestClickHouseDiesWithItsParent(t *testing.T) {
	dir := t.TempDir()
	parent, addr := perform(t, "clickhouse", dir, "")
	query(t, addr, "CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n")
	query(t, addr, "INSERT INTO kept VALUES (7)")
	_, err := StartClickHouse(shortly(t), ClickHouseConfig{Dir: dir})
	require.ErrorIs(t, err, ErrInUse)
	kill(parent)
	// Its directory and its addresses are free.
	c := startClickHouse(t, ClickHouseConfig{Dir: dir, HTTP: Endpoint{Addr: addr}})
	assert.Equal(t, "7", query(t, c.HTTPAddr(), "SELECT n FROM kept"))
}

func TestClickHouseAddressesShareAHost(t *testing.T) {
	_, err := StartClickHouse(t.Context(), ClickHouseConfig{Dir: t.TempDir(), HTTP: Endpoint{Addr: "[::1]:0", Setting: "X"}})
	assert.ErrorContains(t, err, "X")
}

// A script takes the place of the binary: it says which version it is, and serves
// with the engine's library what its configuration names.
func TestClickHouseBinary(t *testing.T) {
	library, err := EnsureEngine(t.Context(), "", os.Stderr)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	bin := t.TempDir()
	fake := filepath.Join(bin, "clickhouse")
	serverOf := func(version string) {
		script(t, fake, `
if [ "$2" = --version ]; then echo "ClickHouse server version `+version+`.1.2 (official build)."; exit; fi
config=${2#--config-file=}
value() { sed -n "s,.*<$1>\(.*\)</$1>.*,\1,p" "$config" | head -1; }
host=$(value listen_host)
set -- "`+library+`" "$host:$(value tcp_port)" "$host:$(value http_port)" \
	"--path=$(value path)" "--listen_host=$host" --query "`+serve+`"
export `+childVariable+`=1
exec "`+self+`" "$@"
`)
	}
	serverOf("26.1")
	named := startClickHouse(t, ClickHouseConfig{Dir: t.TempDir(), Binary: fake})
	assert.Equal(t, "1", query(t, named.HTTPAddr(), "SELECT 1"))
	assert.FileExists(t, filepath.Join(filepath.Dir(named.Log()), "server.xml"))

	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	found := startClickHouse(t, ClickHouseConfig{Dir: t.TempDir()})
	assert.FileExists(t, filepath.Join(filepath.Dir(found.Log()), "server.xml"))

	// One that is too old is passed over, and that is said.
	serverOf("18.16")
	var told strings.Builder
	engine := startClickHouse(t, ClickHouseConfig{Dir: t.TempDir(), Progress: &told})
	assert.NoFileExists(t, filepath.Join(filepath.Dir(engine.Log()), "server.xml"))
	assert.Contains(t, told.String(), "not using "+fake+" (version 18.16")

	_, err = StartClickHouse(t.Context(), ClickHouseConfig{Dir: t.TempDir(), Binary: "/does/not/exist"})
	assert.ErrorIs(t, err, os.ErrNotExist)
}

func TestClickHouseThatDoesNotStartSaysWhy(t *testing.T) {
	fake := filepath.Join(t.TempDir(), "clickhouse")
	script(t, fake, "echo Poco::Exception: no room >&2; exit 210")
	_, err := StartClickHouse(t.Context(), ClickHouseConfig{Dir: t.TempDir(), Binary: fake})
	assert.ErrorContains(t, err, "exit status 210")
	assert.ErrorContains(t, err, "no room")
}

func TestVersionOrder(t *testing.T) {
	assert.True(t, version{24, 12}.before(version{25, 3}))
	assert.True(t, version{25, 2}.before(version{25, 3}))
	assert.False(t, version{25, 3}.before(version{25, 3}))
	assert.False(t, version{26, 1}.before(version{25, 3}))
}

func TestEngineSaysWhatIsWrong(t *testing.T) {
	var stderr strings.Builder
	assert.Equal(t, 2, engine(nil, &stderr))
	assert.Contains(t, stderr.String(), childVariable)
	stderr.Reset()
	assert.Equal(t, 1, engine([]string{"/does/not/exist.so", "127.0.0.1:0", "127.0.0.1:0", "--path=x"}, &stderr))
	assert.Contains(t, stderr.String(), "/does/not/exist.so")

	_, child := EngineMain()
	assert.False(t, child)
	t.Setenv(childVariable, "1")
	_, err := StartClickHouse(t.Context(), ClickHouseConfig{Dir: t.TempDir()})
	assert.ErrorContains(t, err, "EngineMain")
}
