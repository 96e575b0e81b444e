package embedded

import (
	"net"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTakenPortSaysWhatToChange(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	addr := l.Addr().String()

	err = CheckPort(Endpoint{Addr: addr, Setting: "SLUICE_LISTEN"})
	require.ErrorIs(t, err, ErrPortTaken)
	assert.ErrorContains(t, err, addr)
	assert.ErrorContains(t, err, "set SLUICE_LISTEN to another address")
	if _, err := os.Stat("/proc/net/tcp"); err == nil {
		assert.ErrorContains(t, CheckPort(Endpoint{Addr: addr}), "(pid "+strconv.Itoa(os.Getpid())+")")
	}
	assert.ErrorContains(t, CheckPort(Endpoint{Addr: addr}), "choose another address")

	for name, start := range map[string]func() error{
		"broker": func() error {
			_, err := StartBroker(t.Context(), BrokerConfig{Dir: t.TempDir(), Listen: Endpoint{addr, "X"}})
			return err
		},
		"kafka": func() error {
			_, err := StartApacheKafka(t.Context(), KafkaConfig{Dir: t.TempDir(), Listen: Endpoint{addr, "X"}})
			return err
		},
		"clickhouse": func() error {
			_, err := StartClickHouse(t.Context(), ClickHouseConfig{Dir: t.TempDir(), HTTP: Endpoint{addr, "X"}})
			return err
		},
	} {
		err := start()
		assert.ErrorIs(t, err, ErrPortTaken, name)
		assert.ErrorContains(t, err, "set X to", name)
	}
}

func TestFreePort(t *testing.T) {
	assert.NoError(t, CheckPort(Endpoint{Addr: "127.0.0.1:0"}))
	err := CheckPort(Endpoint{Addr: "127.0.0.1:99999", Setting: "X"})
	assert.ErrorContains(t, err, "127.0.0.1:99999")
	assert.NotErrorIs(t, err, ErrPortTaken)
}

func TestClaim(t *testing.T) {
	a, b, c := Endpoint{}, Endpoint{Addr: "localhost:0"}, Endpoint{Addr: "127.0.0.1:"}
	require.NoError(t, claim(&a, &b, &c))
	ports := map[string]bool{}
	for _, e := range []Endpoint{a, b, c} {
		assert.Equal(t, "127.0.0.1", hostOf(e))
		port, err := strconv.Atoi(portOf(e))
		require.NoError(t, err)
		assert.GreaterOrEqual(t, port, lowestFree)
		assert.Less(t, port, highestFree)
		ports[portOf(e)] = true
	}
	assert.Len(t, ports, 3)
	assert.ErrorIs(t, claim(&a, &Endpoint{Addr: a.Addr}), ErrPortTaken, "the same twice")

	for addr, says := range map[string]string{
		"0.0.0.0:9092":     "loopback only",
		":9092":            "loopback only",
		"192.0.2.1:9092":   "loopback only",
		"example.org:9092": "loopback only",
		"9092":             "want host:port",
	} {
		err := claim(&Endpoint{Addr: addr, Setting: "SLUICE_X"})
		assert.ErrorContains(t, err, says, addr)
		assert.ErrorContains(t, err, "SLUICE_X", addr)
	}
}

func TestListeningReadsTheTable(t *testing.T) {
	table := t.TempDir() + "/tcp"
	require.NoError(t, os.WriteFile(table, []byte(`  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:46CB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2001 1 0 100 0 0 10 0
   1: 0100007F:46CB 0100007F:9000 01 00000000:00000000 00:00000000 00000000     0        0 2002 1 0 100 0 0 10 0
   2: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2003 1 0 100 0 0 10 0
cut
`), 0o644))
	assert.Equal(t, []string{"2001"}, listening(table, 0x46cb))
	assert.Empty(t, listening(table, 0x9000))
	assert.Empty(t, listening(table+".not", 22))
}
