package embedded

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A client that is killed resets its connection. Without the doorman the engine
// ends with "Terminate called for uncaught exception: Connection reset by peer".
func TestEngineSurvivesResets(t *testing.T) {
	ch, err := StartClickHouse(t.Context(), ClickHouseConfig{Dir: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, ch.Kill()) })

	// The native protocol's hello: packet 0, name, version 24.8, revision 54400,
	// database, user, password.
	hello := []byte("\x00\x04test\x18\x08\x80\xa9\x03\x00\x07default\x00")
	for i := range 200 {
		conn, err := net.Dial("tcp", ch.Addr())
		require.NoError(t, err)
		_, err = conn.Write(hello)
		require.NoError(t, err)
		if i%2 == 0 {
			// The answer is there and is not read.
			var one [1]byte
			_, err = conn.Read(one[:])
			require.NoError(t, err)
		}
		require.NoError(t, conn.(*net.TCPConn).SetLinger(0))
		require.NoError(t, conn.Close())

		conn, err = net.Dial("tcp", ch.HTTPAddr())
		require.NoError(t, err)
		_, err = conn.Write([]byte("GET /?query=SELECT%20number%20FROM%20numbers(1000000) HTTP/1.1\r\nHost: x\r\n\r\n"))
		require.NoError(t, err)
		require.NoError(t, conn.(*net.TCPConn).SetLinger(0))
		require.NoError(t, conn.Close())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, ping(ctx, ch.HTTPAddr()))
	assert.NoError(t, ch.Err())
}
