package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// Everything that was acknowledged is there after a power loss at any moment,
// whole, whatever share of the rest the disk kept; and no damage is claimed.
func TestPowerLoss(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			d := newDisk(t)
			s := open(t, d)
			var mu sync.Mutex
			acked, removed := map[int]bool{}, map[int]bool{}
			var wg sync.WaitGroup
			ctx, stop := context.WithCancel(t.Context())
			var n atomic.Int64
			for range 4 {
				size := 100 + rng.IntN(6000)
				wg.Go(func() {
					for ctx.Err() == nil {
						i := int(n.Add(1))
						first, err := s.Append(ctx, []batch.Record{record(i, size)})
						if err != nil {
							return
						}
						mu.Lock()
						acked[i] = true
						if i%3 == 0 && i > 20 {
							removed[i] = true
							mu.Unlock()
							s.Remove(first)
							continue
						}
						mu.Unlock()
					}
				})
			}
			crashes := 1 + rng.IntN(3)
			for range crashes {
				until := n.Load() + int64(rng.IntN(150))
				require.Eventually(t, func() bool { return n.Load() >= until }, 20*time.Second, time.Millisecond)
				mu.Lock()
				var must []int
				for i := range acked {
					if !removed[i] {
						must = append(must, i)
					}
				}
				mu.Unlock()
				after := d.crash(rng.IntN(101), rng)
				verify(t, after, must, &mu, removed)
			}
			stop()
			wg.Wait()
		})
	}
}

// verify opens what is left of a disk, twice, and looks for what must be there.
func verify(t *testing.T, d *disk, must []int, mu *sync.Mutex, removed map[int]bool) {
	for round := range 2 {
		var out bytes.Buffer
		s := open(t, d, logTo(&out))
		require.NotEqual(t, batch.SpoolDamaged, s.State(), out.String())
		got := map[int]bool{}
		for _, r := range all(t, s) {
			i := int(r.Record.Seq)
			require.Equal(t, record(i, len(r.Record.Value)), r.Record)
			require.False(t, got[i], "record %d twice", i)
			got[i] = true
		}
		mu.Lock()
		for _, i := range must {
			if !removed[i] {
				require.True(t, got[i], "round %d: record %d was acknowledged", round, i)
			}
		}
		mu.Unlock()
		b := s.Backlog()
		assert.Zero(t, b.Lost)
		assert.Equal(t, uint64(len(got)), b.Records)
		add(t, s, record(1_000_000+round, 10))
		must = append(must, 1_000_000+round)
		if round == 0 {
			d = d.crash(0, nil)
		}
		require.NoError(t, s.Close())
	}
}

var errDisk = errors.New("the disk is broken")

// Every call to the disk fails once, without its effect and with it: the callers
// of that moment get an error, nobody else, and what was acknowledged stays.
func TestEveryCallFails(t *testing.T) {
	for _, err := range []error{errDisk, done{errDisk}} {
		for at, fired := 1, true; fired; at++ {
			fired = failOnce(t, at, err)
			require.True(t, fired || at > 30, "there are more calls")
		}
	}
}

// failOnce has the at-th call of a run fail, and reports whether there was one.
func failOnce(t *testing.T, at int, with error) (fired bool) {
	d := newDisk(t)
	s, err := Open(home, Options{FS: d, SegmentBytes: minSegmentBytes})
	require.NoError(t, err)
	first := record(1, 100)
	add(t, s, first)
	n := 0
	var mu sync.Mutex
	d.failing(func(op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if op == "read" || op == "open" {
			return nil
		}
		if n++; n != at {
			return nil
		}
		fired = true
		return with
	})
	acked := []int{1}
	failed := 0
	for i := 2; i <= 60; i++ {
		if _, err := s.Append(t.Context(), []batch.Record{record(i, 4000)}); err != nil {
			require.ErrorIs(t, err, errDisk)
			require.Equal(t, retry.Transient, retry.ClassOf(err))
			failed++
			continue
		}
		acked = append(acked, i)
		if i == 30 {
			s.Remove(1, 2, 3, 4, 5)
		}
	}
	require.LessOrEqual(t, failed, 1, "call %d", at)
	got := map[int]bool{}
	for _, r := range all(t, s) {
		got[int(r.Record.Seq)] = true
	}
	for _, i := range acked {
		require.True(t, i <= 5 || got[i], "call %d: record %d was acknowledged", at, i)
	}
	crashed := d.crash(0, nil)
	_ = s.Close() // may be what fails
	d.failing(nil)
	for _, disk := range []*disk{d, crashed} {
		s, err := Open(home, Options{FS: disk, SegmentBytes: minSegmentBytes})
		require.NoError(t, err)
		got := map[int]bool{}
		for _, r := range all(t, s) {
			got[int(r.Record.Seq)] = true
			require.Equal(t, record(int(r.Record.Seq), len(r.Record.Value)), r.Record)
		}
		for _, i := range acked {
			require.True(t, i <= 5 || got[i], "call %d: record %d was acknowledged", at, i)
		}
		require.Zero(t, s.Backlog().Lost, "call %d", at)
		require.NotEqual(t, batch.SpoolDamaged, s.State(), "call %d", at)
		require.NoError(t, s.Close())
	}
	return fired
}

// An fsync that fails is not asked again: its segment is left, what was
// acknowledged in it stays, and the next append goes to another. Whether the
// failed write is on the disk or not, nothing is damaged by it.
func TestFsyncError(t *testing.T) {
	for _, persisted := range []bool{true, false} {
		t.Run(fmt.Sprintf("persisted %v", persisted), func(t *testing.T) {
			d := newDisk(t)
			reg := prometheus.NewRegistry()
			s := open(t, d, metricsTo(reg), func(o *Options) { o.Now = start })
			add(t, s, record(1, 100), record(2, 100))
			bad := filepath.Join(home, d.segments(t)[0])
			syncs := 0
			d.failing(func(op, name string) error {
				if op != "sync" || !strings.HasPrefix(name, bad) {
					return nil
				}
				syncs++
				if persisted {
					return done{errDisk}
				}
				return errDisk
			})
			_, err := s.Append(t.Context(), []batch.Record{record(3, 100)})
			assert.ErrorIs(t, err, errDisk)
			assert.ErrorIs(t, s.Ready(), errDisk, "for a moment")
			assert.Equal(t, uint64(2), s.Backlog().Records)
			assert.Equal(t, 1.0, value(t, reg, "sluice_spool_fsync_errors_total"))
			assert.Equal(t, uint64(4), add(t, s, record(4, 100)), "the failed one's number is not given again")
			assert.NoError(t, s.Ready())
			assert.Equal(t, []int{1, 2, 4}, seqs(all(t, s)))
			assert.Len(t, d.segments(t), 2)
			assert.Equal(t, 1, syncs)

			for _, after := range []*disk{d.crash(0, nil), d.crash(100, rand.New(rand.NewPCG(1, 2)))} {
				s := open(t, after)
				assert.Equal(t, batch.SpoolIntact, s.State())
				assert.Equal(t, []int{1, 2, 4}, seqs(all(t, s)), "nobody was told of 3")
				assert.Zero(t, s.Backlog().Lost)
				require.NoError(t, s.Close())
			}
			require.NoError(t, s.Close())
			s = open(t, d)
			assert.Equal(t, []int{1, 2, 4}, seqs(all(t, s)))
		})
	}
}

// A full disk: errors, nothing acknowledged, half-written files; and when space
// returns it goes on by itself.
func TestDiskFull(t *testing.T) {
	d := newDisk(t)
	s := open(t, d)
	add(t, s, record(1, 5000))
	full := func(op, name string) error {
		if op == "write" || op == "create" && strings.Contains(name, "1") {
			return syscall.ENOSPC
		}
		return nil
	}
	d.failing(full)
	for i := 2; i <= 10; i++ {
		_, err := s.Append(t.Context(), []batch.Record{record(i, 5000)})
		assert.ErrorIs(t, err, syscall.ENOSPC)
		assert.Equal(t, retry.Transient, retry.ClassOf(err))
	}
	assert.Equal(t, []int{1}, seqs(all(t, s)))
	crashed := d.crash(100, rand.New(rand.NewPCG(1, 2)))
	d.failing(nil)
	add(t, s, record(11, 5000))
	assert.Equal(t, []int{1, 11}, seqs(all(t, s)))
	require.NoError(t, s.Close())

	for disk, want := range map[*disk][]int{d: {1, 11}, crashed: {1}} {
		s := open(t, disk)
		assert.Equal(t, batch.SpoolIntact, s.State())
		assert.Equal(t, want, seqs(all(t, s)))
		assert.Zero(t, s.Backlog().Lost)
		require.NoError(t, s.Close())
	}
}

// At its bound the spool refuses, and never drops what it has; once something is
// removed there is room again.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		const most = 1 << 20
		s := open(t, d, func(o *Options) { o.MaxBytes = most; o.SegmentBytes = 64 << 20 })
		n := 0
		var err error
		for err == nil {
			n++
			_, err = s.Append(t.Context(), []batch.Record{record(n, 8000)})
			synctest.Wait()
			require.LessOrEqual(t, d.total(t), int64(most))
		}
		assert.Equal(t, retry.Throttled, retry.ClassOf(err))
		assert.ErrorIs(t, err, errFull)
		assert.Equal(t, retry.Throttled, retry.ClassOf(s.Ready()))
		assert.Greater(t, n, 100)
		assert.Equal(t, count(1, n-1), seqs(all(t, s)))
		for i := uint64(1); i <= 20; i++ {
			s.Remove(i)
		}
		<-time.After(2 * time.Second)
		synctest.Wait()
		assert.NoError(t, s.Ready())
		add(t, s, record(n, 8000))
		assert.Equal(t, count(21, n), seqs(all(t, s)))
		require.NoError(t, s.Close())
		require.LessOrEqual(t, d.total(t), int64(most))
	})
}

// The floor of free space: refused below it, and taken again within a second of
// its return.
func TestFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		d.free = 10 << 20
		s := open(t, d, func(o *Options) { o.MinFree = 9 << 20; o.MaxBytes = 64 << 20 })
		n := 0
		var err error
		for err == nil {
			n++
			_, err = s.Append(t.Context(), []batch.Record{record(n, 60_000)})
		}
		assert.ErrorIs(t, err, errFloor)
		assert.Equal(t, retry.Throttled, retry.ClassOf(err))
		assert.InDelta(t, 17, n, 2, "between two looks, what was written is reckoned")
		assert.ErrorIs(t, s.Ready(), errFloor)
		d.mu.Lock()
		d.free = 20 << 20
		d.mu.Unlock()
		<-time.After(time.Second)
		synctest.Wait()
		assert.NoError(t, s.Ready())
		add(t, s, record(n, 60_000))
		require.NoError(t, s.Close())
	})
}

// A caller whose time is up while the disk hangs is let go; its record, which was
// on its way, is counted and sent.
func TestSlowDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		s := open(t, d)
		add(t, s, record(1, 10))
		hang := make(chan struct{})
		d.failing(func(op, name string) error {
			if op == "sync" && strings.Contains(name, segmentSuffix) {
				<-hang
			}
			return nil
		})
		var wg sync.WaitGroup
		for i := 2; i <= 4; i++ {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Second)
				defer cancel()
				_, err := s.Append(ctx, []batch.Record{record(i, 10)})
				assert.ErrorIs(t, err, context.DeadlineExceeded)
			})
		}
		wg.Wait()
		assert.Equal(t, uint64(1), s.Backlog().Records)
		assert.NoError(t, s.Ready())
		close(hang)
		synctest.Wait()
		assert.Equal(t, uint64(4), s.Backlog().Records)
		assert.ElementsMatch(t, []int{1, 2, 3, 4}, seqs(all(t, s)))
		require.NoError(t, s.Close())
	})
}

// An empty segment is given up after a while, and a deleted one is noticed.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		s := open(t, d)
		s.Remove(add(t, s, record(1, 10)))
		<-time.After(5 * time.Second)
		synctest.Wait()
		assert.Len(t, d.segments(t), 1)
		<-time.After(10 * time.Second)
		synctest.Wait()
		assert.Empty(t, d.segments(t))

		add(t, s, record(2, 10))
		require.NoError(t, d.Remove(filepath.Join(home, d.segments(t)[0])))
		<-time.After(2 * time.Second)
		synctest.Wait()
		add(t, s, record(3, 10))
		assert.Len(t, d.segments(t), 1)
		assert.Equal(t, []int{3}, seqs(all(t, s)))
		assert.Equal(t, uint64(1), s.Backlog().Lost)
		assert.Equal(t, uint64(1), s.Backlog().Records)
		require.NoError(t, s.Close())
	})
}
