package prove

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// echo answers every line with itself, until the test ends.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn) // until the other end closes
			}()
		}
	}()
	return l.Addr().String()
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

func newTestWire(t *testing.T) *Wire {
	t.Helper()
	w, err := NewWire("test", freeAddr(t), echo(t))
	require.NoError(t, err)
	t.Cleanup(w.Close)
	return w
}

type line struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, w *Wire) line {
	t.Helper()
	conn, err := net.Dial("tcp", w.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return line{conn, bufio.NewReader(conn)}
}

// says sends a line and returns what came back.
func (l line) says(text string) (string, error) {
	if _, err := l.Write([]byte(text + "\n")); err != nil {
		return "", err
	}
	got, err := l.r.ReadString('\n')
	return strings.TrimSuffix(got, "\n"), err
}

func works(t *testing.T, w *Wire) line {
	t.Helper()
	l := dial(t, w)
	got, err := l.says("hello")
	require.NoError(t, err)
	require.Equal(t, "hello", got)
	return l
}

func TestCutWireRefuses(t *testing.T) {
	w := newTestWire(t)
	l := works(t, w)
	require.NoError(t, w.cut())
	_, err := l.says("hello")
	require.Error(t, err, "the connection there was is gone")
	_, err = net.Dial("tcp", w.Addr())
	require.Error(t, err)
	require.NoError(t, w.heal())
	works(t, w)
}

func TestHangingWireIsSilent(t *testing.T) {
	w := newTestWire(t)
	l := works(t, w)
	require.NoError(t, breakWire(w, Fault{Mode: "hanging"}))
	for _, l := range []line{l, dial(t, w)} {
		require.NoError(t, l.SetDeadline(time.Now().Add(200*time.Millisecond)))
		_, err := l.says("hello")
		var timeout net.Error
		require.ErrorAs(t, err, &timeout)
		require.True(t, timeout.Timeout(), "it stays, and nothing comes")
	}
	require.NoError(t, w.heal())
	require.NoError(t, l.SetDeadline(time.Now().Add(20*time.Second)))
	_, err := l.r.ReadByte()
	require.Error(t, err, "what was swallowed is never followed by something else")
	works(t, w)
}

func TestSlowWire(t *testing.T) {
	w := newTestWire(t)
	l := works(t, w)
	require.NoError(t, w.add(toxicsOf(kindNamed(t, "latency-client"), Fault{Amount: 400})...))
	began := time.Now()
	got, err := l.says("hello")
	require.NoError(t, err)
	assert.Equal(t, "hello", got)
	assert.GreaterOrEqual(t, time.Since(began), 200*time.Millisecond, "100 ms each way at least")
	require.NoError(t, w.heal())
	works(t, w)
}

func TestTornWireEndsAnswersInTheMiddle(t *testing.T) {
	w := newTestWire(t)
	works(t, w)
	k := kindNamed(t, "reset-client")
	torn := 0
	require.NoError(t, w.add(toxicsOf(k, Fault{Mode: "ended", Amount: 3})...))
	for range 40 {
		l := dial(t, w)
		got, err := l.says("hello")
		if errors.Is(err, io.EOF) && got == "hel" {
			torn++
		}
		require.NoError(t, l.Close())
	}
	assert.Positive(t, torn, "about 24 of 40")
	assert.Less(t, torn, 40)
	require.NoError(t, w.heal())
	works(t, w)

	reset := 0
	require.NoError(t, w.add(toxicsOf(k, Fault{Mode: "reset", Amount: 10})...))
	for range 40 {
		l := dial(t, w)
		if _, err := l.says("hello"); err != nil {
			reset++
		}
		require.NoError(t, l.Close())
	}
	assert.Positive(t, reset)
	assert.Less(t, reset, 40)
	require.NoError(t, w.heal())
	works(t, w)
}

// A reader that does not read blocks the library: the wire is renewed in spite of
// it.
func TestStuckWireIsRenewed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	accepted := make(chan net.Conn, 2)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn // and nobody reads
		}
	}()
	addr := freeAddr(t)
	w, err := NewWire("stuck", addr, l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(w.Close)
	w.patience = 200 * time.Millisecond
	client, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, client.SetWriteDeadline(time.Now().Add(time.Second)))
	for err == nil {
		_, err = client.Write(make([]byte, 1<<20)) // until all buffers are full
	}
	err = w.add(toxicsOf(kindNamed(t, "latency-client"), Fault{Amount: 400})...)
	require.ErrorIs(t, err, errStuck)
	again, err := net.Dial("tcp", addr)
	require.NoError(t, err, "there is a new proxy on the same address")
	require.NoError(t, again.Close())
	require.NoError(t, (<-accepted).Close())
	require.NoError(t, (<-accepted).Close())
}

func TestWireOnATakenAddress(t *testing.T) {
	_, err := NewWire("test", echo(t), "127.0.0.1:1")
	assert.ErrorContains(t, err, "for the wire test")
}

func TestWholeWireIsLeftAlone(t *testing.T) {
	w := newTestWire(t)
	l := works(t, w)
	require.NoError(t, w.heal())
	got, err := l.says("still there")
	require.NoError(t, err)
	assert.Equal(t, "still there", got)
}
