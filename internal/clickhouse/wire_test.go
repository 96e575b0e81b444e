package clickhouse

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/schema"
)

// An insert whose context has ended is closed at the server too: whoever opens the
// table next for this partition would wait for it.
func TestCloseAfterTheContext(t *testing.T) {
	c := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	in, err := c.OpenInsert(ctx, schema.Exposures, place, "a")
	require.NoError(t, err)
	require.NotNil(t, in.wire)
	cancel()
	in.Close()
	in.Close()
	assert.Empty(t, c.wires)
	assert.Eventually(t, func() bool {
		return count(t, c, "SELECT count() FROM system.processes WHERE query LIKE 'INSERT INTO exposures%' AND current_database = currentDatabase()") == 0
	}, 10*time.Second, 20*time.Millisecond)
}

// mutes are connections through which, from some moment on, nothing comes back.
func mutes(t *testing.T, to string) (addr string, mute *atomic.Bool, asked *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	mute, asked = new(atomic.Bool), new(atomic.Int32)
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				return
			}
			go func() {
				defer server.Close()
				for p := make([]byte, 1<<16); ; {
					n, err := client.Read(p)
					if err != nil {
						return
					}
					if mute.Load() {
						asked.Add(1)
						_, _ = io.Copy(io.Discard, client)
						return
					}
					_, _ = server.Write(p[:n])
				}
			}()
			go func() { _, _ = io.Copy(client, server); client.Close() }()
		}
	}()
	return l.Addr().String(), mute, asked
}

// A server that does not answer is waited for once, not once for each connection that
// was idle.
func TestSilentServerAndManyIdleConnections(t *testing.T) {
	c := open(t)
	addr, mute, asked := mutes(t, c.opts.Addr[0])
	c.opts.Addr = []string{addr}
	var all []*Insert
	for i := range idleWires {
		at := place
		at.Partition = i
		in, err := c.OpenInsert(t.Context(), schema.Exposures, at, "a")
		require.NoError(t, err)
		in.wire.timeout = 100 * time.Millisecond
		all = append(all, in)
	}
	for _, in := range all {
		in.Close()
	}
	require.Len(t, c.wires, idleWires)
	mute.Store(true)
	_, err := c.OpenInsert(t.Context(), schema.Exposures, place, "a")
	require.Error(t, err)
	assert.EqualValues(t, 1, asked.Load())
}
