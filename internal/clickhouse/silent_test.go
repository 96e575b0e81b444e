package clickhouse

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/embedded/teststack"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// gate passes connections on to a server until it is shut: then what is sent is
// not taken any more, as by a server that hangs.
type gate struct {
	net.Listener
	server string
	shut   chan struct{}
	wg     sync.WaitGroup
}

func newGate(t *testing.T, server string) *gate {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := &gate{Listener: l, server: server, shut: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); l.Close(); g.wg.Wait() })
	g.wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", g.server)
			if err != nil {
				client.Close()
				continue
			}
			context.AfterFunc(ctx, func() { client.Close(); server.Close() })
			g.wg.Go(func() { g.pass(ctx, client, server) })
			g.wg.Go(func() { g.pass(ctx, server, client) })
		}
	})
	return g
}

func (g *gate) pass(ctx context.Context, from, to net.Conn) {
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		select {
		case <-g.shut:
			<-ctx.Done()
			return
		default:
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// A server that hangs must not hold a partition longer than the insert's time,
// nor one that ends at all: not while rows are being sent, which it does not take,
// and not while an insert is closed.
func TestSilentServer(t *testing.T) {
	dsn, err := url.Parse(teststack.DSN(t))
	require.NoError(t, err)
	require.NoError(t, Migrate(t.Context(), Config{DSN: dsn.String()}, 720*time.Hour))
	g := newGate(t, dsn.Host)
	dsn.Host = g.Addr().String()
	c, err := Open(Config{DSN: dsn.String(), InsertTimeout: time.Second})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	ctx, cancel := context.WithCancel(t.Context())
	open := func(ctx context.Context, partition int) *Insert {
		at := place
		at.Partition = partition
		in, err := c.OpenInsert(ctx, schema.Exposures, at, "t")
		require.NoError(t, err)
		return in
	}
	ended, late, closed := open(ctx, 1), open(t.Context(), 2), open(t.Context(), 3)
	close(g.shut)
	large := exposures(0, 100_000) // more than the kernel buffers
	var wg sync.WaitGroup
	wg.Go(func() { closed.Close() })
	wg.Go(func() {
		err := late.Send(large)
		assert.ErrorContains(t, err, "no answer in 11s")
		assert.Equal(t, retry.Transient, retry.ClassOf(err))
	})
	wg.Go(func() {
		err := ended.Send(large)
		assert.Error(t, err)
		assert.Equal(t, retry.Shutdown, retry.ClassOf(err), "%v", err)
	})
	cancel()
	wg.Wait()
}

// Doors that are opened and shut for many partitions leave no query on the server
// and no connection out of the pool.
func TestManyDoors(t *testing.T) {
	c := open(t)
	var wg sync.WaitGroup
	for p := range 100 {
		wg.Go(func() {
			at := place
			at.Partition = p
			for _, table := range schema.Tables() {
				in, err := c.OpenInsert(t.Context(), table, at, "t")
				if assert.NoError(t, err) {
					in.Close()
				}
			}
		})
	}
	wg.Wait()
	assert.Zero(t, count(t, c, fmt.Sprintf("SELECT count() FROM system.processes WHERE query_id LIKE 'sluice/%s/%%'", c.Database())))
	assert.Zero(t, c.conn.Stats().Open)
}
