package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"sluice/pkg/batch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const home = "/spool"

// disk is a file system in memory that a test can crash, and whose calls it can
// make fail.
type disk struct {
	vfs.FS
	mu   sync.Mutex
	fail func(op, name string) error // nil: nothing fails
	free int64
}

func newDisk(t testing.TB) *disk {
	d := &disk{FS: vfs.NewCrashableMem(), free: math.MaxInt64}
	d.prepare(t)
	return d
}

func (d *disk) prepare(t testing.TB) {
	require.NoError(t, d.FS.MkdirAll(home, 0o755))
	require.NoError(t, d.SyncDir("/"))
}

// crash is the disk after a power loss that kept what was synced and a share of
// the rest.
func (d *disk) crash(percent int, rng *rand.Rand) *disk {
	return &disk{FS: d.FS.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}), free: math.MaxInt64}
}

func (d *disk) failing(f func(op, name string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = f
}

// done is an error of a call that had its effect all the same.
type done struct{ error }

func (d done) Unwrap() error { return d.error }

// either makes the call and returns err, or does not make it.
func either(err error, call func() error) error {
	var d done
	if err == nil {
		return call()
	}
	if errors.As(err, &d) {
		return errors.Join(err, call())
	}
	return err
}

func (d *disk) ask(op, name string) error {
	d.mu.Lock()
	f := d.fail
	d.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(op, name)
}

func (d *disk) MkdirAll(dir string) error { return d.FS.MkdirAll(dir, 0o755) }
func (d *disk) Create(name string) (File, error) {
	if err := d.ask("create", name); err != nil {
		return nil, err
	}
	f, err := d.FS.Create(name, vfs.WriteCategoryUnspecified)
	return d.file(f, name, err)
}
func (d *disk) Open(name string) (File, error) {
	if err := d.ask("open", name); err != nil {
		return nil, err
	}
	f, err := d.FS.Open(name)
	return d.file(f, name, err)
}
func (d *disk) file(f vfs.File, name string, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return &diskFile{File: f, d: d, name: name}, nil
}
func (d *disk) Rename(from, to string) error {
	return either(d.ask("rename", to), func() error { return d.FS.Rename(from, to) })
}
func (d *disk) Remove(name string) error {
	return either(d.ask("remove", name), func() error { return d.FS.Remove(name) })
}
func (d *disk) SyncDir(dir string) error {
	return either(d.ask("syncdir", dir), func() error {
		f, err := d.OpenDir(dir)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}
func (d *disk) Free(string) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.free, nil
}

// total is how many bytes the files below home have.
func (d *disk) total(t testing.TB) (n int64) {
	for _, name := range d.names(t, "") {
		if st, err := d.Stat(filepath.Join(home, name)); err == nil {
			n += st.Size()
		}
	}
	return n
}

// names are the files below home, and in directory below it.
func (d *disk) names(t testing.TB, below string) (out []string) {
	list, err := d.List(filepath.Join(home, below))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	require.NoError(t, err)
	for _, name := range list {
		name = filepath.Join(below, name)
		st, err := d.Stat(filepath.Join(home, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // renamed meanwhile
		}
		require.NoError(t, err)
		if st.IsDir() {
			out = append(out, d.names(t, name)...)
			continue
		}
		out = append(out, name)
	}
	return out
}

// segments are the files of records, in order.
func (d *disk) segments(t testing.TB) (out []string) {
	for _, name := range d.names(t, "") {
		if filepath.Dir(name) == segmentsDir && strings.HasSuffix(name, segmentSuffix) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func (d *disk) read(t testing.TB, name string) []byte {
	b, err := readFile(d, filepath.Join(home, name), math.MaxInt64)
	require.NoError(t, err)
	return b
}

func (d *disk) write(t testing.TB, name string, b []byte) {
	require.NoError(t, writeFile(d, filepath.Join(home, name), b, true))
	require.NoError(t, d.SyncDir(filepath.Dir(filepath.Join(home, name))))
}

type diskFile struct {
	vfs.File
	d    *disk
	name string
}

func (f *diskFile) Write(b []byte) (int, error) {
	if err := f.d.ask("write", f.name); err != nil {
		// Half of it got there, or all.
		part := b[:len(b)/2]
		if errors.As(err, new(done)) {
			part = b
		}
		n, werr := f.File.Write(part)
		return n, errors.Join(err, werr)
	}
	return f.File.Write(b)
}
func (f *diskFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.d.ask("read", f.name); err != nil {
		return 0, err
	}
	return f.File.ReadAt(b, off)
}
func (f *diskFile) Sync() error {
	return either(f.d.ask("sync", f.name), f.SyncData)
}
func (f *diskFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// start is when the tests' records begin.
func start() time.Time { return time.UnixMicro(1_700_000_000_000_000) }

// record is the n-th of a test, with a value of size bytes that shows it.
func record(n, size int) batch.Record {
	r := batch.Record{
		Project: fmt.Sprintf("project-%d", n%3), Epoch: uint64(n) + 1<<40, Seq: uint64(n), Events: n,
		Traceparent: strings.Repeat("t", n%2*55),
		Path:        batch.Spool,
		Value:       make([]byte, size),
		ReceivedAt:  start().Add(time.Duration(n) * time.Second),
	}
	for i, id := range []*batch.ID{&r.BatchID, &r.DedupID, (*batch.ID)(&r.Digest), &r.Collector} {
		binary.BigEndian.PutUint64(id[:], uint64(n))
		id[15] = byte(i + 1)
	}
	rng := rand.New(rand.NewPCG(uint64(n), 1))
	for i := range r.Value {
		r.Value[i] = byte(rng.Uint32())
	}
	return r
}

func open(t testing.TB, d *disk, change ...func(*Options)) *Spool {
	t.Helper()
	o := Options{FS: d, SegmentBytes: minSegmentBytes}
	for _, c := range change {
		c(&o)
	}
	s, err := Open(home, o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func logTo(b *bytes.Buffer) func(*Options) {
	return func(o *Options) { o.Log = slog.New(slog.NewTextHandler(b, nil)) }
}

func metricsTo(r *prometheus.Registry) func(*Options) {
	return func(o *Options) { o.Registerer = r }
}

func add(t testing.TB, s *Spool, records ...batch.Record) uint64 {
	t.Helper()
	first, err := s.Append(t.Context(), records)
	require.NoError(t, err)
	return first
}

// all is everything that waits.
func all(t testing.TB, s *Spool) []batch.Spooled {
	t.Helper()
	var out []batch.Spooled
	from := uint64(0)
	for {
		got, next, err := s.Read(t.Context(), from, 1<<20, nil)
		require.NoError(t, err)
		require.GreaterOrEqual(t, next, from)
		if len(got) == 0 {
			return out
		}
		out, from = append(out, got...), next
	}
}

// seqs are the test's numbers of the records.
func seqs(records []batch.Spooled) []int {
	out := make([]int, 0, len(records))
	for _, r := range records {
		out = append(out, int(r.Record.Seq))
	}
	return out
}

func count(from, to int, without ...int) []int {
	out := []int{}
next:
	for i := from; i <= to; i++ {
		for _, w := range without {
			if w == i {
				continue next
			}
		}
		out = append(out, i)
	}
	return out
}

// value is a metric's.
func value(t testing.TB, r *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := r.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			match := true
			for i, l := range m.GetLabel() {
				match = match && (2*i+1 >= len(labels) || l.GetName() == labels[2*i] && l.GetValue() == labels[2*i+1])
			}
			if match {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	require.Fail(t, "no such metric", "%s%v", name, labels)
	return 0
}
