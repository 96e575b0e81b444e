package spool

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

// BenchmarkAppend is durable appends of 35 KB, each with an fsync before it
// returns, on the disk of the temporary directory.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s, err := Open(b.TempDir(), Options{MaxBytes: 4 << 30})
			require.NoError(b, err)
			r := record(1, 35<<10)
			b.SetBytes(int64(len(r.Value)))
			b.ReportAllocs()
			var n atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range writers {
				wg.Go(func() {
					for n.Add(1) <= int64(b.N) {
						first, err := s.Append(b.Context(), []batch.Record{r})
						if err != nil {
							b.Error(err)
							return
						}
						s.Remove(first) // the disk is not to fill up
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			require.NoError(b, s.Close())
		})
	}
}

// BenchmarkRead is the drain's side: records of 35 KB, a few at once.
func BenchmarkRead(b *testing.B) {
	s, err := Open(b.TempDir(), Options{})
	require.NoError(b, err)
	r := record(1, 35<<10)
	for range 1000 {
		_, err := s.Append(b.Context(), []batch.Record{r, r, r, r})
		require.NoError(b, err)
	}
	b.SetBytes(int64(len(r.Value)))
	b.ReportAllocs()
	b.ResetTimer()
	from := uint64(0)
	for n := 0; n < b.N; {
		got, next, err := s.Read(b.Context(), from, 900<<10, nil)
		require.NoError(b, err)
		n, from = n+len(got), next
		if len(got) == 0 {
			from = 0
		}
	}
	b.StopTimer()
	require.NoError(b, s.Close())
}

// BenchmarkOpen is a start on 10 GiB in 3.4 million records, all of it in segments
// that were closed in order. (The files are sparse: what a start reads is there.)
func BenchmarkOpen(b *testing.B) {
	const segments, records, size = 160, 21_500, 64 << 20
	dir := b.TempDir()
	at := filepath.Join(dir, segmentsDir)
	require.NoError(b, os.MkdirAll(at, 0o755))
	m := newMarker()
	list := manifest{ordinal: segments + 1, number: segments*records + 1, lost: losses{from: maxTime}}
	for i := range uint64(segments) {
		h := segmentHeader{marker: m, ordinal: i + 1, first: i*records + 1, notBefore: start().UnixMicro(), prev: i}
		foot := footer{ordinal: h.ordinal, first: h.first, next: h.first + records, end: size}
		if i > 0 {
			h.prevEnd, h.prevNext = size, h.first
		}
		for k := range uint32((records + blockRecords - 1) / blockRecords) {
			foot.blocks = append(foot.blocks, block{off: segmentHeaderBytes + k*190_000, min: k})
		}
		f, err := os.Create(filepath.Join(at, segmentName(h.ordinal, m)))
		require.NoError(b, err)
		_, err = f.Write(h.append(nil))
		require.NoError(b, err)
		_, err = f.WriteAt(foot.append(nil, h.notBefore), size)
		require.NoError(b, err)
		require.NoError(b, f.Close())
		list.segments = append(list.segments, entry{ordinal: h.ordinal, first: h.first, next: foot.next, notBefore: h.notBefore})
	}
	require.NoError(b, os.WriteFile(filepath.Join(at, manifestName), list.encode(), 0o600))
	b.ReportAllocs()
	for b.Loop() {
		s, err := Open(dir, Options{MaxBytes: 20 << 30})
		require.NoError(b, err)
		require.Equal(b, uint64(segments*records), s.Backlog().Records)
		require.Equal(b, batch.SpoolIntact, s.State())
		require.NoError(b, s.Close())
	}
}
