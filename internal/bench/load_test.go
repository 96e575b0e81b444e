package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

// server counts the keys it gets, and answers as it is told.
func server(t *testing.T, answer http.HandlerFunc) (addr string, keys func() map[string]int) {
	t.Helper()
	var mu sync.Mutex
	seen := map[string]int{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		seen[r.Header.Get("Idempotency-Key")]++
		mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://"), func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		return seen
	}
}

func accepted(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusAccepted)
	_, _ = io.WriteString(w, `{"accepted":5}`)
}

func TestLoads(t *testing.T) {
	for name, cfg := range map[string]LoadConfig{
		"closed":     {Connections: 4},
		"open":       {Connections: 4, Rate: 5000},
		"duplicates": {Connections: 2, Workload: Workload{Duplicates: 0.5}},
	} {
		t.Run(name, func(t *testing.T) {
			addr, keys := server(t, accepted)
			cfg.Addr, cfg.Workload.Events = addr, 5
			l, err := StartLoad(t.Context(), cfg)
			require.NoError(t, err)
			require.Eventually(t, func() bool { return l.Handled() >= 500 }, 30*time.Second, time.Millisecond)
			require.NoError(t, l.Stop())
			requests := int64(0)
			for _, n := range keys() {
				requests += int64(n)
			}
			assert.Equal(t, requests*5, l.Handled(), "every request has its answer")
			assert.Equal(t, int64(len(keys()))*5, l.Events())
			assert.Equal(t, name == "duplicates", l.Handled() > l.Events())
			lat := l.Latencies()
			assert.Equal(t, requests, lat.N)
			assert.Positive(t, lat.P50)
			assert.LessOrEqual(t, lat.P50, lat.P99)
			assert.LessOrEqual(t, lat.P99, lat.Max)
			assert.Zero(t, l.Latencies().N, "each is told once")
		})
	}
}

func TestRefusedLoad(t *testing.T) {
	addr, _ := server(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no such key", http.StatusUnauthorized) })
	l, err := StartLoad(t.Context(), LoadConfig{Addr: addr, Connections: 1})
	require.NoError(t, err)
	<-l.Failed()
	require.ErrorContains(t, l.Stop(), "a request was answered 401: no such key")

	l, err = StartLoad(t.Context(), LoadConfig{Addr: addr, Connections: 1, Tolerant: true})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return l.Refused() > 3 }, 30*time.Second, time.Millisecond)
	require.NoError(t, l.Stop())
	assert.Zero(t, l.Events())

	_, err = StartLoad(t.Context(), LoadConfig{Addr: "127.0.0.1:1", Connections: 1})
	require.ErrorContains(t, err, "connect to the collector")
	_, err = StartLoad(t.Context(), LoadConfig{Addr: addr, Connections: 1001})
	require.ErrorContains(t, err, "want 1 to 1000")
}

func TestReadAnswer(t *testing.T) {
	for text, want := range map[string]struct {
		status int
		body   int64
		bad    bool
	}{
		"HTTP/1.1 202 Accepted\r\nContent-Length: 14\r\nX: y\r\n\r\n": {202, 14, false},
		"HTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\n":                 {200, 0, false},
		"HTTP/1.1 204 No Content\r\n\r\n":                             {204, 0, false},
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n":       {bad: true},
		"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n":               {bad: true},
		"HTTP/1.1 2x0 OK\r\n\r\n":                                     {bad: true},
		"SSH-2.0-OpenSSH\r\n":                                         {bad: true},
		"HTTP/1.1 200 OK\r\n":                                         {bad: true},
	} {
		status, body, err := readAnswer(bufio.NewReader(strings.NewReader(text)))
		if want.bad {
			assert.Error(t, err, text)
			continue
		}
		require.NoError(t, err, text)
		assert.Equal(t, want.status, status)
		assert.Equal(t, want.body, body)
	}
}

// fakeTopic keeps what is written to it.
type fakeTopic struct {
	mu   sync.Mutex
	seen map[batch.ID]int // partition
	err  error
}

func (f *fakeTopic) Partition(_ context.Context, id batch.ID) (int, error) {
	return int(id[15] % 3), nil
}

func (f *fakeTopic) Produce(_ context.Context, partition int, records []batch.Record) (int64, time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range records {
		f.seen[r.BatchID] = partition
	}
	return 0, time.Time{}, f.err
}

func TestFill(t *testing.T) {
	for _, rate := range []float64{0, 20_000} {
		topic := &fakeTopic{seen: map[batch.ID]int{}}
		f, err := NewFiller(topic, Workload{Events: 10})
		require.NoError(t, err)
		n, err := f.Fill(t.Context(), 2001, rate)
		require.NoError(t, err)
		assert.EqualValues(t, 2010, n, "whole records")
		assert.EqualValues(t, 2010, f.Events())
		require.Len(t, topic.seen, 201)
		for id, p := range topic.seen {
			assert.Equal(t, int(id[15]%3), p)
		}
	}
	topic := &fakeTopic{seen: map[batch.ID]int{}, err: fmt.Errorf("away")}
	f, err := NewFiller(topic, Workload{Events: 10})
	require.NoError(t, err)
	_, err = f.Fill(t.Context(), 100_000, 0)
	require.ErrorContains(t, err, "fill the topic: away")
}
