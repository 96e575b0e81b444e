package bench

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseProc(t *testing.T) {
	// A name may have parentheses and spaces.
	d, err := parseStat([]byte("42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 7 8 20 0 12 0 100 1 2\n"))
	require.NoError(t, err)
	assert.Equal(t, 3*time.Second, d)
	_, err = parseStat([]byte("42 (a) S 1"))
	require.Error(t, err)
	_, err = parseStat(nil)
	require.Error(t, err)

	n, err := parsePeak([]byte("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n"))
	require.NoError(t, err)
	assert.EqualValues(t, 2<<20, n)
	_, err = parsePeak([]byte("Name:\tx\n"))
	require.Error(t, err)

	d, err = parseBusy([]byte("cpu  100 20 30 9000 500 5 45 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"))
	require.NoError(t, err)
	assert.Equal(t, 2*time.Second, d)
	_, err = parseBusy([]byte("intr 1\n"))
	require.Error(t, err)

	table := []byte("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
		"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 777 1\n" +
		"   1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 778 1\n" +
		"   2: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 779 1\n")
	assert.Equal(t, []string{"777"}, listening(table, 8080))
}

func TestOwnProcess(t *testing.T) {
	first, err := CPU(os.Getpid())
	require.NoError(t, err)
	begin := ownCPU()
	for ownCPU()-begin < 30*time.Millisecond {
	}
	second, err := CPU(os.Getpid())
	require.NoError(t, err)
	assert.Greater(t, second, first)
	busy, err := Busy()
	require.NoError(t, err)
	assert.Positive(t, busy)
	peak, err := PeakMemory(os.Getpid())
	require.NoError(t, err)
	assert.Positive(t, peak)
	_, err = CPU(1 << 30)
	require.Error(t, err)

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	pid, err := Listener(l.Addr().String())
	require.NoError(t, err)
	assert.Equal(t, os.Getpid(), pid)
	require.NoError(t, l.Close())
	_, err = Listener(l.Addr().String())
	require.Error(t, err)
}

func TestBareParts(t *testing.T) {
	c, err := Scan(20*time.Millisecond, Workload{})
	require.NoError(t, err)
	assert.Positive(t, c.Events)
	assert.Positive(t, c.CPU)
	c, err = Sync(20*time.Millisecond, t.TempDir(), 4, 1000)
	require.NoError(t, err)
	assert.Positive(t, c.Events)
}
