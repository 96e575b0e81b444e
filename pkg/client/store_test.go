package client

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// While no endpoint works, batches go to disk; Flush and Close return with that,
// and the next session sends them with the same keys and events (which the wire
// checks), oldest first.
func TestKeptForTheNextSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		w := newWire(t, nil)
		w.now(reply{err: errCut, stored: true}) // stored, and the answer lost
		l := start(t, w, on(d), func(o *Options) { o.Concurrency = 1 })
		for i := range 35 {
			expose(l, i, i+1)
			pass(time.Millisecond)
		}
		require.NoError(t, l.Flush(t.Context()))
		s := l.Stats()
		assert.Equal(t, []int{0, 4}, []int{s.Waiting, s.Stored})
		expose(l, 35, 40)
		require.NoError(t, l.Close(t.Context()))
		assert.Len(t, d.names(t, fileSuffix), 5)
		assert.Empty(t, d.names(t, tempSuffix))
		assert.Zero(t, l.Stats().Dropped())
		before := len(w.seen())

		w.now(reply{})
		l = start(t, w, on(d), func(o *Options) { o.Concurrency = 1 })
		assert.Equal(t, uint64(5), l.Stats().Adopted)
		expose(l, 40, 45)
		pass(2 * time.Second)
		synctest.Wait()
		s = l.Stats()
		assert.Equal(t, []int{0, 0, 0}, []int{s.Waiting, s.Stored, int(s.StoredBytes)})
		assert.Equal(t, uint64(45), s.Acknowledged)
		require.NoError(t, l.Close(t.Context()))
		w.once(45)
		assert.Empty(t, d.names(t, ""))
		assert.Equal(t, "u0", w.seen()[before].decoded[0].UnitID, "oldest first")
	})
}

// Power is lost at any moment of an outage: what Flush returned for is there,
// whatever share of the rest the disk kept, and everything is stored once.
func TestPowerLoss(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 3))
			stored := rng.Uint64()
			d := newDisk()
			w := newWire(t, func(r request) reply {
				if r.n%3 == 0 {
					return reply{err: errCut, stored: stored>>(r.n%64)&1 == 1}
				}
				return reply{status: 503}
			})
			l := start(t, w, on(d), func(o *Options) { o.Concurrency = 1; o.GzipAbove = 1 })
			flushed := rng.IntN(60)
			expose(l, 0, flushed)
			require.NoError(t, l.Flush(t.Context()))
			expose(l, flushed, flushed+rng.IntN(60))
			pass(time.Duration(rng.IntN(3000)) * time.Millisecond)
			after := d.crash(rng.IntN(101), rng) // the process is gone as well
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			_ = l.Close(ended)

			w.now(reply{})
			l = start(t, w, on(after))
			pass(time.Minute)
			require.NoError(t, l.Close(t.Context()))
			units := w.units()
			for i := range flushed {
				assert.Equal(t, 1, units[fmt.Sprintf("u%d", i)], "seed %d: u%d", seed, i)
			}
			for u, n := range units {
				assert.Equal(t, 1, n, "seed %d: %s", seed, u)
			}
			assert.Empty(t, after.names(t, damagedSuffix))
			assert.Empty(t, after.names(t, fileSuffix))
		})
	}
}

// Each call on the disk fails once, without its effect and with it. Nothing is
// lost: what is not kept on disk stays in memory.
func TestDiskFails(t *testing.T) {
	for _, op := range []string{"create", "write", "sync", "rename", "syncdir", "remove", "read"} {
		for _, had := range []bool{false, true} {
			t.Run(fmt.Sprint(op, " had its effect: ", had), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					d := newDisk()
					w := newWire(t, nil)
					w.now(reply{status: 503})
					l := start(t, w, on(d))
					calls := 0
					d.failing(func(o, _ string) error {
						if o != op {
							return nil
						}
						if calls++; calls > 1 {
							return nil
						}
						if had {
							return done{errOf(op)}
						}
						return errOf(op)
					})
					expose(l, 0, 25)
					require.NoError(t, l.Flush(t.Context()))
					kept := d.crash(0, nil) // what a power loss right now leaves
					w.now(reply{})
					pass(2 * time.Minute)
					require.NoError(t, l.Close(t.Context()))
					assert.Equal(t, 1, min(calls, 1), "it was called")
					w.once(25)
					s := l.Stats()
					assert.Equal(t, []uint64{25, 0, 0}, []uint64{s.Acknowledged, s.Dropped(), s.Damaged})
					if op != "remove" { // else the next session finds the file
						assert.Zero(t, s.Stored)
					}

					// Copies from another life of the disk change nothing.
					l = start(t, w, on(kept))
					pass(time.Minute)
					require.NoError(t, l.Close(t.Context()))
					w.once(25)
					// A file that could not be removed is sent by the next session.
					l = start(t, w, on(d))
					pass(time.Minute)
					require.NoError(t, l.Close(t.Context()))
					w.once(25)
					assert.Empty(t, d.names(t, fileSuffix))
				})
			})
		}
	}
}

// A disk that never works is as if there were none, and Close says what is lost.
func TestDiskIsBroken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		w := newWire(t, nil)
		w.now(reply{status: 503})
		var told []error
		l := start(t, w, on(d), func(o *Options) { o.OnError = func(err error) { told = append(told, err) } })
		d.failing(func(op, _ string) error { return errOf(op) })
		expose(l, 0, 25)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorContains(t, l.Close(ctx), "25 events")
		assert.Equal(t, uint64(25), l.Stats().Unsent)
		assert.Contains(t, fmt.Sprint(told), "create: injected")
	})
}

// DirMaxBytes bounds the directory; batches past it stay in memory, and what does
// not fit there is dropped and reported.
func TestDirIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		w := newWire(t, nil)
		w.now(reply{status: 503})
		l := start(t, w, on(d), func(o *Options) { o.DirMaxBytes, o.QueueEvents = 8000, 50 })
		for i := range 20 {
			expose(l, i*10, i*10+10)
			pass(10 * time.Second)
		}
		s := l.Stats()
		assert.LessOrEqual(t, s.StoredBytes, int64(8000))
		assert.Positive(t, s.Stored)
		assert.GreaterOrEqual(t, s.Waiting, 50)
		assert.Positive(t, s.QueueFull)
		w.now(reply{})
		pass(2 * time.Minute)
		require.NoError(t, l.Close(t.Context()))
		s = l.Stats()
		assert.Equal(t, uint64(200), s.Acknowledged+s.QueueFull)
		assert.Equal(t, map[string]float64{"e/v queue_full": float64(s.QueueFull)}, w.reports())
		w.once(int(s.Acknowledged))
	})
}

// Files that are no batches: set aside, or left alone.
func TestDamagedFiles(t *testing.T) {
	b := newBatch(time.UnixMilli(946684800000)) // the start of the bubble's clock
	b.add([]byte(`{"experiment":"e","variant":"v","unit_id":"u0","time":1,"event_id":"x"}`))
	good := b.encode()
	other := newBatch(b.created)
	flipped := append([]byte(nil), good...)
	flipped[len(flipped)-10] ^= 1
	for name, tt := range map[string]struct {
		file    string
		content []byte
		aside   bool
	}{
		"empty":            {b.file(), nil, true},
		"cut":              {b.file(), good[:len(good)-1], true},
		"longer":           {b.file(), append(good[:len(good):len(good)], 'x'), true},
		"a bit flipped":    {b.file(), flipped, true},
		"another's":        {other.file(), good, true},
		"a later version":  {b.file(), append([]byte("sluice-batch 2 "), good[len(fileMagic):]...), true},
		"zeros":            {b.file(), make([]byte, 500), true},
		"not a name":       {"notes.txt", good, false},
		"not a batch name": {"x" + fileSuffix, good, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDisk()
				d.put(t, tt.file, tt.content)
				w := newWire(t, nil)
				l := start(t, w, on(d))
				expose(l, 0, 1)
				pass(5 * time.Second)
				require.NoError(t, l.Close(t.Context()))
				w.once(1)
				if tt.aside {
					assert.Equal(t, []string{tt.file + damagedSuffix}, d.names(t, ""))
					assert.Equal(t, uint64(1), l.Stats().Damaged)
				} else {
					assert.Equal(t, []string{tt.file}, d.names(t, ""))
					assert.Zero(t, l.Stats().Damaged)
				}
				assert.Zero(t, l.Stats().Stored)
			})
		})
	}
}

// A temporary file of a process that crashed is removed, one that may be another
// process's at work is not.
func TestTemporaryFiles(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "a"+fileSuffix+".x"+tempSuffix)
	young := filepath.Join(dir, "b"+fileSuffix+".x"+tempSuffix)
	for _, name := range []string{old, young} {
		require.NoError(t, os.WriteFile(name, []byte("half"), 0o600))
	}
	require.NoError(t, os.Chtimes(old, time.Time{}, time.Now().Add(-2*time.Hour)))
	l, err := New(Options{Endpoints: []string{"http://127.0.0.1:1"}, Dir: dir})
	require.NoError(t, err)
	require.NoError(t, l.Close(t.Context()))
	assert.NoFileExists(t, old)
	assert.FileExists(t, young)
}

// On a real file system: readable by this user only, and a Dir that cannot be is an
// error of New.
func TestRealDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	o := Options{Endpoints: []string{"http://127.0.0.1:1"}, Dir: dir}
	l, err := New(o)
	require.NoError(t, err)
	expose(l, 0, 3)
	require.NoError(t, l.Close(t.Context()))
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, 1)
	info, err := files[0].Info()
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())

	w := newWire(t, nil)
	w.now(reply{status: 503})
	o.HTTP = w.client()
	l, err = New(o)
	require.NoError(t, err)
	expose(l, 3, 5)
	require.NoError(t, l.Flush(t.Context()))
	assert.Equal(t, 2, l.Stats().Stored)
	w.now(reply{})
	require.Eventually(t, func() bool { return l.Stats().Stored == 0 }, 30*time.Second, time.Millisecond)
	require.NoError(t, l.Close(t.Context()))
	assert.Zero(t, l.Stats().Damaged)
	w.once(5)

	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = New(Options{Endpoints: o.Endpoints, Dir: file})
	require.ErrorContains(t, err, "Dir")
}

// Two processes on one directory send the same files: one key, and each dropped
// batch counted by one of them.
func TestTwoOnOneDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		w := newWire(t, nil)
		w.now(reply{status: 503})
		a := start(t, w, on(d), func(o *Options) { o.MaxAge = time.Hour })
		expose(a, 0, 100)
		pass(5 * time.Second)
		b := start(t, w, on(d), func(o *Options) { o.MaxAge = time.Hour })
		assert.Equal(t, uint64(10), b.Stats().Adopted)
		expose(b, 100, 120)
		w.now(reply{})
		pass(time.Minute)
		w.once(120)
		assert.Empty(t, d.names(t, ""))
		for _, l := range []*Logger{a, b} {
			s := l.Stats()
			assert.Equal(t, []int{0, 0, 0}, []int{s.Waiting, s.Stored, int(s.StoredBytes)})
			assert.Zero(t, s.Dropped())
		}

		w.now(reply{status: 503})
		expose(a, 200, 300)
		pass(5 * time.Second)
		c := start(t, w, on(d), func(o *Options) { o.MaxAge = time.Hour })
		pass(2 * time.Hour)
		w.now(reply{})
		pass(5 * time.Minute)
		for _, l := range []*Logger{a, b, c} {
			require.NoError(t, l.Close(t.Context()))
		}
		assert.Equal(t, uint64(100), a.Stats().Expired+c.Stats().Expired)
		assert.Equal(t, map[string]float64{"e/v expired": 100}, w.reports())
	})
}

// A crash between making halves and removing what they are halves of: the next
// session halves the batch again, with the same keys.
func TestHalvedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		w := newWire(t, nil)
		w.now(reply{status: 503})
		l := start(t, w, on(d))
		expose(l, 0, 10)
		require.NoError(t, l.Close(t.Context()))

		// The first half is taken, the second is not.
		small := func(r request) reply {
			switch {
			case len(r.decoded) > 5:
				return reply{status: 413}
			case r.decoded[0].UnitID == "u5":
				return reply{err: errCut, stored: true}
			}
			return reply{}
		}
		w.mu.Lock()
		w.answer = small
		w.mu.Unlock()
		l = start(t, w, on(d), func(o *Options) { o.Concurrency = 1 })
		pass(50 * time.Millisecond)
		after := d.crash(100, rand.New(rand.NewPCG(1, 1)))
		require.NoError(t, l.Close(t.Context()))
		assert.NotEmpty(t, after.names(t, fileSuffix))

		l = start(t, w, on(after))
		pass(5 * time.Second)
		require.NoError(t, l.Close(t.Context()))
		assert.Equal(t, uint64(1), l.Stats().Halved)
		w.now(reply{})
		for _, disk := range []*disk{d, after} {
			l = start(t, w, on(disk))
			pass(5 * time.Second)
			require.NoError(t, l.Close(t.Context()))
			assert.Empty(t, disk.names(t, ""))
		}
		w.once(10)
	})
}

// Reports that cannot be sent are kept like events.
func TestReportsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		w := newWire(t, nil)
		w.now(reply{status: 400})
		l := start(t, w, on(d))
		expose(l, 0, 10)
		pass(100 * time.Millisecond)
		w.now(reply{status: 503})
		require.NoError(t, l.Close(t.Context()))
		assert.Equal(t, uint64(10), l.Stats().Refused)
		assert.Len(t, d.names(t, fileSuffix), 1)
		w.now(reply{})
		l = start(t, w, on(d))
		pass(time.Second)
		require.NoError(t, l.Close(t.Context()))
		assert.Equal(t, map[string]float64{"e/v refused": 10}, w.reports())
		assert.Zero(t, l.Stats().Acknowledged)
	})
}

// Batches wait behind requests that hang: before memory is full they go to disk.
func TestMemoryHalfFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		w := newWire(t, nil)
		w.now(reply{hang: make(chan struct{})})
		l := start(t, w, on(d), func(o *Options) { o.QueueEvents, o.RequestTimeout = 200, time.Hour })
		for i := range 100 {
			expose(l, i*10, i*10+10)
			synctest.Wait()
		}
		assert.Zero(t, l.Stats().QueueFull)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		require.NoError(t, l.Close(ended), "what hung is kept as well")
		w.now(reply{})
		l = start(t, w, on(d))
		pass(time.Minute)
		require.NoError(t, l.Close(t.Context()))
		w.once(1000)
	})
}

func TestFileFormat(t *testing.T) {
	b := &batch{key: "k-1", created: time.UnixMilli(1_790_000_000_123), reports: 1}
	b.add([]byte(`{"a":1}`))
	b.add([]byte(`{"b":2}`))
	content := string(b.encode())
	assert.Equal(t, "1790000000123-k-1.batch", b.file())
	head, body, _ := strings.Cut(content, "\n")
	assert.Equal(t, "sluice-batch 1 a7ab846c 86", head)
	assert.Equal(t, `{"key":"k-1","created":1790000000123,"count":2,"reports":1,"events":[{"a":1},{"b":2}]}`, body)
	got, err := decode([]byte(content))
	require.NoError(t, err)
	assert.Equal(t, b, got)
}

// Whatever is in a file, it is refused or is a batch that can be written again.
func FuzzDecode(f *testing.F) {
	b := newBatch(time.UnixMilli(1_790_000_000_123))
	b.add([]byte(`{"experiment":"e","variant":"v","unit_id":"u"}`))
	f.Add(b.encode())
	f.Add([]byte(fileMagic + "00000000 0\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		got, err := decode(content)
		if err != nil {
			return
		}
		again, err := decode(got.encode())
		require.NoError(t, err)
		assert.Equal(t, got, again)
		if events, err := split(got.events); err == nil && len(events) > 1 {
			_, err = got.halves()
			assert.NoError(t, err)
		}
	})
}
