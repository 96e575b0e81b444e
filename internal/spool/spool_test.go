package spool

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

func TestRoundTrip(t *testing.T) {
	d := newDisk(t)
	s := open(t, d)
	assert.Equal(t, batch.SpoolAbsent, s.State())
	assert.NoError(t, s.Ready())
	assert.Equal(t, batch.Backlog{}, s.Backlog())

	var want []batch.Record
	for i := 1; i <= 300; i += 3 {
		three := []batch.Record{record(i, 1000), record(i+1, 0), record(i+2, 3000)}
		first := add(t, s, three...)
		assert.Equal(t, uint64(i), first)
		want = append(want, three...)
	}
	select {
	case <-s.Appended():
	default:
		t.Error("no news of what was appended")
	}
	got := all(t, s)
	require.Len(t, got, len(want))
	for i := range got {
		assert.Equal(t, uint64(i+1), got[i].Number)
		assert.Equal(t, want[i], got[i].Record)
	}
	b := s.Backlog()
	assert.Equal(t, uint64(300), b.Records)
	assert.Equal(t, start().Add(time.Second), b.Oldest)
	assert.Zero(t, b.Lost)
	assert.Greater(t, len(d.segments(t)), 4)

	require.NoError(t, s.Close())
	s = open(t, d)
	assert.Equal(t, batch.SpoolIntact, s.State())
	assert.Equal(t, b, s.Backlog())
	again := all(t, s)
	assert.Equal(t, got, again)
	assert.Equal(t, uint64(301), add(t, s, record(301, 10)), "numbers are never given twice")
}

// The path a record comes with is that of whoever wrote it; what leaves the spool
// has come by way of it.
func TestPath(t *testing.T) {
	s := open(t, newDisk(t))
	r := record(1, 10)
	r.Path = batch.Direct
	add(t, s, r)
	assert.Equal(t, batch.Spool, all(t, s)[0].Record.Path)
}

func TestReadByParts(t *testing.T) {
	s := open(t, newDisk(t))
	for i := 1; i <= 200; i++ {
		add(t, s, record(i, 2000))
	}
	got, next, err := s.Read(t.Context(), 0, 1, nil)
	require.NoError(t, err)
	assert.Equal(t, []int{1}, seqs(got), "at least one")
	assert.Equal(t, uint64(2), next)
	got, next, err = s.Read(t.Context(), 100, 3*(2000+256+80), nil)
	require.NoError(t, err)
	assert.Equal(t, []int{100, 101, 102}, seqs(got))
	assert.Equal(t, uint64(103), next)

	odd := func(r *batch.Record) bool {
		assert.Nil(t, r.Value, "a filter sees the header only")
		return r.Seq%100 == 99
	}
	got, next, err = s.Read(t.Context(), 0, 1<<20, odd)
	require.NoError(t, err)
	assert.Equal(t, []int{99, 199}, seqs(got))
	assert.Equal(t, uint64(201), next)
	got, next, err = s.Read(t.Context(), next, 1<<20, odd)
	require.NoError(t, err)
	assert.Empty(t, got)
	assert.Equal(t, uint64(201), next)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, next, err = s.Read(ctx, 7, 1<<20, nil)
	assert.ErrorIs(t, err, context.Canceled)
	assert.Equal(t, uint64(7), next)
}

func TestOldest(t *testing.T) {
	s := open(t, newDisk(t), func(o *Options) { o.SegmentBytes = 1 << 20 })
	for i := 1; i <= 200; i++ {
		add(t, s, record(i, 2000))
	}
	full := s.Backlog()
	for i := uint64(1); i <= 64; i++ {
		assert.Equal(t, start().Add(time.Second), s.Backlog().Oldest, "exact to a block of 64")
		s.Remove(i, i, 1000)
	}
	b := s.Backlog()
	assert.Equal(t, uint64(136), b.Records)
	assert.InDelta(t, float64(full.Bytes)*136/200, float64(b.Bytes), 5000)
	assert.Equal(t, start().Add(65*time.Second).UnixMilli(), b.Oldest.UnixMilli())
	assert.False(t, b.Oldest.After(start().Add(65*time.Second)))
	assert.Equal(t, count(65, 200), seqs(all(t, s)))
	for i := uint64(65); i <= 200; i++ {
		s.Remove(i)
	}
	assert.Equal(t, batch.Backlog{}, s.Backlog())
}

func TestRemove(t *testing.T) {
	d := newDisk(t)
	s := open(t, d)
	for i := 1; i <= 200; i++ {
		add(t, s, record(i, 2000))
	}
	assert.Greater(t, len(d.segments(t)), 4)
	for i := uint64(1); i <= 200; i++ {
		if i != 130 {
			s.Remove(i)
		}
	}
	assert.Equal(t, []int{130}, seqs(all(t, s)))
	require.NoError(t, s.Close())
	assert.Len(t, d.segments(t), 1, "only the file that has the record is left")
	s = open(t, d)
	assert.Equal(t, batch.SpoolIntact, s.State(), "segments that were emptied in the middle are not missed")
	assert.Equal(t, []int{130}, seqs(all(t, s)))
	s.Remove(130)
	assert.Equal(t, batch.Backlog{}, s.Backlog())
	require.NoError(t, s.Close())
	assert.Empty(t, d.segments(t))
	s = open(t, d)
	assert.Equal(t, batch.SpoolIntact, s.State())
	assert.Equal(t, uint64(201), add(t, s, record(201, 1)))
}

func TestSetAside(t *testing.T) {
	d := newDisk(t)
	reg := prometheus.NewRegistry()
	s := open(t, d, metricsTo(reg))
	add(t, s, record(1, 100), record(2, 100), record(3, 100))
	require.NoError(t, s.SetAside(2, errors.New("too large for the topic")))
	require.NoError(t, s.SetAside(2, errors.New("again")), "what does not wait is no error")
	assert.Equal(t, []int{1, 3}, seqs(all(t, s)))
	b := s.Backlog()
	assert.Equal(t, uint64(2), b.Records)
	assert.Equal(t, uint64(1), b.Lost, "acknowledged, and on its way to nobody")
	assert.Equal(t, record(2, 0).ReceivedAt, b.LostFrom)
	assert.Equal(t, 1.0, value(t, reg, "sluice_spool_set_aside_total", "reason", "refused"))

	// A crash at once: only what is durable is there.
	after := d.crash(0, nil)
	s = open(t, after)
	assert.Equal(t, []int{1, 3}, seqs(all(t, s)))
	assert.Equal(t, b.Lost, s.Backlog().Lost)
	assert.False(t, s.Backlog().LostFrom.After(b.LostFrom))
	assert.False(t, s.Backlog().LostFrom.Before(record(1, 0).ReceivedAt), "exact to a block of records")
	require.NoError(t, s.Close())

	i, err := Inspect(after, home, nil)
	require.NoError(t, err)
	assert.Equal(t, []uint64{2}, i.Refused())
	got, err := i.ReadRefused(2)
	require.NoError(t, err)
	assert.Equal(t, record(2, 100), got.Record)
	assert.Contains(t, string(after.read(t, "segments/refused/00000000000000000002.txt")), "too large for the topic")
	require.NoError(t, i.ForgetRefused(2))
	i, err = Inspect(after, home, nil)
	require.NoError(t, err)
	assert.Empty(t, i.Refused())
	assert.Equal(t, uint64(1), i.Lost, "the account stays")
}

func TestRefusedAppends(t *testing.T) {
	s := open(t, newDisk(t))
	big := record(1, 0)
	big.Value = make([]byte, maxValueBytes+1)
	_, err := s.Append(t.Context(), []batch.Record{big})
	assert.Equal(t, retry.Permanent, retry.ClassOf(err))
	assert.ErrorIs(t, err, errTooLarge)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Append(ctx, []batch.Record{record(1, 1)})
	assert.ErrorIs(t, err, context.Canceled)
	assert.Zero(t, s.Backlog().Records)

	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	_, err = s.Append(t.Context(), []batch.Record{record(1, 1)})
	assert.Equal(t, retry.Shutdown, retry.ClassOf(err))
	assert.Equal(t, retry.Shutdown, retry.ClassOf(s.Ready()))
}

// 3.4 million records, 10 GiB of 3 KB each, take less than 10 MB of memory.
func TestMemory(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	s := &Spool{}
	for i := range uint64(160) {
		g := &segment{segmentHeader: segmentHeader{first: i*21_500 + 1}, oldest: math.MaxInt64}
		for k := range int64(21_500) {
			g.grow([]int64{k * 3000}, []int64{k}, 3000)
		}
		s.segments = append(s.segments, g)
		s.left += g.left
	}
	assert.Less(t, heap()-before, uint64(10<<20))
	assert.Equal(t, uint64(3_440_000), s.Backlog().Records)
	assert.Equal(t, int64(3_440_000*3000), s.Backlog().Bytes)
}

// Several append, several drain with filters of their own, as partitions do; each
// record comes to exactly one of them, and in the end nothing is left.
func TestConcurrent(t *testing.T) {
	d := newDisk(t)
	s := open(t, d)
	const writers, each, drains = 6, 150, 3
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				_, err := s.Append(t.Context(), []batch.Record{record(1+w*each+i, 500+w*700)})
				assert.NoError(t, err)
			}
		})
	}
	var left atomic.Int64
	left.Store(writers * each)
	for k := range uint64(drains) {
		wg.Go(func() {
			from, seen := uint64(0), map[uint64]bool{}
			for left.Load() > 0 && t.Context().Err() == nil {
				got, next, err := s.Read(t.Context(), from, 20_000, func(r *batch.Record) bool { return r.Seq%drains == k })
				if !assert.NoError(t, err) {
					return
				}
				for _, r := range got {
					if !assert.Equal(t, k, r.Record.Seq%drains) || !assert.False(t, seen[r.Record.Seq]) {
						return
					}
					assert.Equal(t, record(int(r.Record.Seq), len(r.Record.Value)), r.Record)
					seen[r.Record.Seq] = true
					s.Remove(r.Number)
					left.Add(-1)
				}
				if from = next; len(got) == 0 {
					runtime.Gosched()
				}
			}
		})
	}
	wg.Wait()
	assert.Equal(t, batch.Backlog{}, s.Backlog())
	assert.Empty(t, all(t, s))
	require.NoError(t, s.Close())
	assert.Empty(t, d.segments(t))
}

// The same on the files of the operating system.
func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	s, err := Open(dir, Options{SegmentBytes: minSegmentBytes})
	require.NoError(t, err)
	for i := 1; i <= 100; i++ {
		add(t, s, record(i, 3000))
	}
	s.Remove(1, 2, 3)
	require.NoError(t, s.SetAside(4, errors.New("too large")))
	require.NoError(t, s.Close())
	s, err = Open(dir, Options{MinFree: 1, Registerer: prometheus.NewRegistry()})
	require.NoError(t, err)
	require.NoError(t, s.Ready())
	assert.Equal(t, count(5, 100), seqs(all(t, s)))
	s.mu.Lock()
	assert.Less(t, s.free, int64(math.MaxInt64))
	s.mu.Unlock()
	require.NoError(t, s.Close())

	unlock, err := Lock(dir)
	require.NoError(t, err)
	_, err = Lock(dir)
	assert.ErrorIs(t, err, ErrRunning)
	require.NoError(t, unlock())

	_, err = Inspect(nil, filepath.Join(dir, "nowhere"), nil)
	assert.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	_, err = Open(filepath.Join(dir, "file"), Options{})
	assert.Error(t, err)
}

// A look at a spool that is in use changes nothing, and finds no damage.
func TestInspect(t *testing.T) {
	d := newDisk(t)
	s := open(t, d)
	var stop atomic.Bool
	var wg sync.WaitGroup
	defer func() {
		stop.Store(true)
		wg.Wait()
		assert.Zero(t, s.Backlog().Lost)
		require.NoError(t, s.Close())
	}()
	wg.Go(func() {
		for i := 1; !stop.Load(); i++ {
			first, err := s.Append(t.Context(), []batch.Record{record(i, 3000), record(i, 10)})
			assert.NoError(t, err)
			if i > 60 {
				s.Remove(first-120, first-119)
			}
		}
	})
	for range 50 {
		i, err := Inspect(d, home, func(int64) error { return nil })
		require.NoError(t, err)
		require.Empty(t, i.Findings)
		require.NotEqual(t, batch.SpoolDamaged, i.State)
		_, _, err = i.Read(t.Context(), 0, 1<<20)
		require.NoError(t, err, "also when what was there is gone by now")
	}
}
