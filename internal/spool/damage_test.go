package spool

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

const damageRecords = 200

// filled is a disk with a spool of damageRecords, each some 2,000 bytes, 29 or so
// a segment, which was closed in order or crashed.
func filled(t *testing.T, closed bool) *disk {
	d := newDisk(t)
	s := open(t, d)
	for i := 1; i <= damageRecords; i++ {
		add(t, s, record(i, 2000))
	}
	if closed {
		require.NoError(t, s.Close())
		return d
	}
	// Once the keeper has written its list, as it does within moments.
	var crashed *disk
	require.Eventually(t, func() bool {
		crashed = d.crash(0, nil)
		m, ok, err := readManifest(crashed, filepath.Join(home, segmentsDir))
		return ok && err == nil && len(m.segments) == len(crashed.segments(t))
	}, 10*time.Second, time.Millisecond)
	return crashed
}

// place is where a record is.
type place struct {
	file        string
	from, value int64 // of the record, and of its value
	to          int64
}

// places are where the records are, by their number.
func places(t *testing.T, d *disk) map[int]place {
	out := map[int]place{}
	for _, name := range d.segments(t) {
		b := d.read(t, name)
		h, err := parseSegmentHeader(b)
		require.NoError(t, err)
		k := walker{w: &window{f: vfs.NewMemFile(b), size: int64(len(b))}, marker: h.marker, off: segmentHeaderBytes, end: int64(len(b)), next: 1, limit: 1 << 40, ahead: readAhead}
		for it, ok := k.step(); ok; it, ok = k.step() {
			if it.header.number > 0 {
				out[int(it.header.number)] = place{name, it.from, it.from + int64(it.header.size), it.to}
			}
		}
	}
	return out
}

func flip(at int64) func([]byte) []byte {
	return func(b []byte) []byte {
		b[at] ^= 0x10
		return b
	}
}

func (d *disk) change(t *testing.T, name string, how func([]byte) []byte) {
	d.write(t, name, how(d.read(t, name)))
}

func TestDamage(t *testing.T) {
	last := func(d *disk) string {
		s := d.segments(t)
		return s[len(s)-1]
	}
	for _, tc := range []struct {
		name   string
		crash  bool // without Close
		damage func(t *testing.T, d *disk, at map[int]place)
		lost   []int  // records
		more   uint64 // lost, beyond those: where the count is not known, or too high
		kind   Kind   // of the finding; "": none
		later  bool   // found by Read only
	}{
		{name: "nothing", damage: func(*testing.T, *disk, map[int]place) {}},
		{name: "nothing, after a crash", crash: true, damage: func(*testing.T, *disk, map[int]place) {}},
		{name: "a torn tail", crash: true, damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, last(d), func(b []byte) []byte { return append(b, b[len(b)-1000:]...) })
		}},
		{name: "a torn tail, a record begun", crash: true, damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, last(d), func(b []byte) []byte {
				r := record(damageRecords+1, 2000)
				_, m, _ := parseSegmentName(filepath.Base(last(d)))
				return append(b, appendRecord(nil, m, damageRecords+1, 0, &r, checksum(r.Value))[:900]...)
			})
		}},
		{name: "a torn tail of zeros", crash: true, damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, last(d), func(b []byte) []byte { return append(b, make([]byte, 10_000)...) })
		}},
		{name: "a bit of a value in the middle", damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, at[100].file, flip(at[100].value+77))
		}, lost: []int{100}, kind: BadRecord, later: true},
		{name: "a bit of a header in the middle", damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, at[100].file, flip(at[100].from+30))
		}, lost: []int{100}, kind: BadRecord, later: true},
		{name: "a bit of a length in the middle", damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, at[100].file, flip(at[100].from+14))
		}, lost: []int{100}, kind: BadRecord, later: true},
		{name: "a bit of a marker in the middle", damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, at[100].file, flip(at[100].from+3))
		}, lost: []int{100}, kind: BadRecord, later: true},
		{name: "a bit in the segment that was being written", crash: true, damage: func(t *testing.T, d *disk, at map[int]place) {
			n := damageRecords - 3
			require.Equal(t, last(d), at[n].file)
			d.change(t, at[n].file, flip(at[n].from+30))
		}, lost: []int{damageRecords - 3}, kind: BadRecord},
		{name: "a bit in the last record", damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, at[damageRecords].file, flip(at[damageRecords].value+77))
		}, lost: []int{damageRecords}, kind: BadRecord, later: true},
		{name: "a stretch of several records", damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, at[100].file, func(b []byte) []byte {
				clear(b[at[98].from+10 : at[102].from+10])
				return b
			})
		}, lost: []int{98, 99, 100, 101, 102}, kind: BadRecord, later: true},
		{name: "a missing file in the middle", damage: func(t *testing.T, d *disk, at map[int]place) {
			require.NoError(t, d.Remove(filepath.Join(home, at[100].file)))
		}, lost: []int{100}, kind: MissingSegment},
		{name: "a missing file at the beginning", damage: func(t *testing.T, d *disk, at map[int]place) {
			require.NoError(t, d.Remove(filepath.Join(home, at[1].file)))
		}, lost: []int{1}, kind: MissingSegment},
		{name: "a missing file at the end", damage: func(t *testing.T, d *disk, at map[int]place) {
			require.NoError(t, d.Remove(filepath.Join(home, last(d))))
		}, lost: []int{damageRecords}, kind: MissingSegment},
		{name: "a missing file, and no manifest", damage: func(t *testing.T, d *disk, at map[int]place) {
			require.NoError(t, d.Remove(filepath.Join(home, at[100].file)))
			require.NoError(t, d.Remove(filepath.Join(home, segmentsDir, manifestName)))
		}, lost: []int{100}, kind: MissingSegment},
		{name: "all files missing", damage: func(t *testing.T, d *disk, at map[int]place) {
			for _, name := range d.segments(t) {
				require.NoError(t, d.Remove(filepath.Join(home, name)))
			}
		}, lost: count(1, damageRecords), kind: MissingSegment},
		{name: "half of a segment", damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, at[100].file, func(b []byte) []byte { return b[:at[100].value] })
		}, lost: []int{-100}, kind: BadRecord},
		{name: "half of a segment's header", damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, at[100].file, func(b []byte) []byte { return b[:segmentHeaderBytes/2] })
		}, lost: []int{100}, kind: BadSegment},
		{name: "an empty segment", damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, at[100].file, func(b []byte) []byte { return nil })
		}, lost: []int{100}, kind: BadSegment},
		{name: "a bit of a segment's header", damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, at[100].file, flip(27))
		}, kind: BadSegment},
		{name: "a bit of the last segment's header", crash: true, damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, last(d), flip(27))
		}, kind: BadSegment},
		{name: "a bit of a footer", damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, at[100].file, func(b []byte) []byte { return flip(int64(len(b) - 30))(b) })
		}},
		{name: "a bit of the manifest", damage: func(t *testing.T, d *disk, at map[int]place) {
			d.change(t, "segments/manifest", flip(60))
		}, kind: BadManifest},
		{name: "no manifest", damage: func(t *testing.T, d *disk, at map[int]place) {
			require.NoError(t, d.Remove(filepath.Join(home, segmentsDir, manifestName)))
		}, kind: BadManifest},
		{name: "both progress files", damage: func(t *testing.T, d *disk, at map[int]place) {
			d.write(t, "segments/progress.a", []byte("sluiprg1 and nothing that follows it"))
			d.write(t, "segments/progress.b", nil)
		}, kind: BadProgress},
		{name: "one progress file", damage: func(t *testing.T, d *disk, at map[int]place) {
			d.write(t, "segments/progress.a", []byte("sluiprg1"))
		}},
		{name: "files of others", damage: func(t *testing.T, d *disk, at map[int]place) {
			d.write(t, "segments/README", []byte("hello"))
			d.write(t, "segments/"+segmentName(99, marker{1, 2, 3, 4, 5, 6, 7, 8})+tmpSuffix, []byte("half"))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := filled(t, !tc.crash)
			at := places(t, d)
			require.Len(t, at, damageRecords)
			lost := map[int]bool{}
			for _, n := range tc.lost {
				first := n
				if n < 0 {
					first = -n
				}
				for m, p := range at {
					// A whole segment, or the rest of one.
					whole := tc.kind == MissingSegment || tc.kind == BadSegment
					if m == n || p.file == at[first].file && (whole || n < 0 && m >= first) {
						lost[m] = true
					}
				}
			}
			tc.damage(t, d, at)

			deep, err := Inspect(d, home, func(int64) error { return nil })
			require.NoError(t, err)
			if tc.kind == "" {
				assert.Empty(t, deep.Findings)
			} else {
				require.NotEmpty(t, deep.Findings)
				kinds := ""
				for _, f := range deep.Findings {
					kinds += string(f.Kind) + " "
					assert.NotEmpty(t, f.File)
					assert.NotEmpty(t, f.String())
				}
				assert.Contains(t, kinds, tc.kind)
			}
			assert.Equal(t, uint64(len(lost))+tc.more, deep.Lost)

			var out bytes.Buffer
			reg := prometheus.NewRegistry()
			s := open(t, d, logTo(&out), metricsTo(reg))
			state := batch.SpoolIntact
			if tc.kind != "" && !tc.later {
				state = batch.SpoolDamaged
			}
			assert.Equal(t, state, s.State())
			var want, missing []int
			for i := 1; i <= damageRecords; i++ {
				if lost[i] {
					missing = append(missing, i)
				} else {
					want = append(want, i)
				}
			}
			got := all(t, s)
			assert.Equal(t, append([]int{}, want...), seqs(got))
			for _, r := range got {
				assert.Equal(t, record(int(r.Record.Seq), 2000), r.Record)
			}
			b := s.Backlog()
			assert.Equal(t, uint64(len(want)), b.Records)
			assert.Equal(t, uint64(len(lost))+tc.more, b.Lost)
			if len(lost) > 0 {
				assert.False(t, b.LostFrom.After(record(missing[0], 0).ReceivedAt), "no lost record is older")
				assert.False(t, b.LostFrom.Before(start().Add(-slack)))
				assert.Equal(t, float64(len(lost)), value(t, reg, "sluice_spool_set_aside_total", "reason", "damaged"))
			}
			if tc.kind != "" {
				assert.Contains(t, out.String(), "the spool is damaged")
				assert.GreaterOrEqual(t, value(t, reg, "sluice_spool_damage_total", "kind", string(tc.kind)), 1.0)
			} else {
				assert.NotContains(t, out.String(), "ERROR")
			}
			assert.Equal(t, uint64(damageRecords+1), add(t, s, record(damageRecords+1, 10)), "it goes on")
			require.NoError(t, s.Close())

			// It was counted, and is not counted again.
			s = open(t, d)
			if tc.kind == BadSegment && len(lost) == 0 {
				state = batch.SpoolDamaged // the header still is
			} else {
				state = batch.SpoolIntact
			}
			assert.Equal(t, state, s.State())
			assert.Equal(t, append(want, damageRecords+1), seqs(all(t, s)))
			assert.Equal(t, b.Lost, s.Backlog().Lost)
			assert.Equal(t, b.LostFrom, s.Backlog().LostFrom)
			for _, r := range all(t, s) {
				s.Remove(r.Number)
			}
			require.NoError(t, s.Close())
			assert.Empty(t, d.segments(t), "what was sent, goes")
			side := strings.Join(d.names(t, "segments/damaged"), " ")
			switch {
			case tc.kind == BadRecord:
				assert.Contains(t, side, filepath.Base(at[missing[0]].file), "what could not be read is kept")
			case len(missing) == 0 && tc.kind != BadSegment:
				assert.Empty(t, side)
			}
		})
	}
}

// A block of the disk that cannot be read costs the records in it, and no other.
func TestUnreadableBlock(t *testing.T) {
	for _, closed := range []bool{true, false} {
		t.Run(fmt.Sprintf("closed %v", closed), func(t *testing.T) {
			d := filled(t, closed)
			at := places(t, d)
			n := damageRecords - 5 // in the segment that was written last
			block := at[n].from / diskBlock
			var want []int
			for i := 1; i <= damageRecords; i++ {
				p := at[i]
				if p.file != at[n].file || p.to <= block*diskBlock || p.from >= (block+1)*diskBlock {
					want = append(want, i)
				}
			}
			bad := filepath.Join(home, at[n].file)
			s := open(t, &disk{FS: &unreadable{FS: d.FS, name: bad, block: block}, free: d.free})
			assert.Equal(t, want, seqs(all(t, s)))
			b := s.Backlog()
			assert.Equal(t, uint64(damageRecords-len(want)), b.Lost)
			assert.Equal(t, uint64(len(want)), b.Records)
			require.NoError(t, s.Close())
		})
	}
}

// unreadable fails every read that touches one block of one file.
type unreadable struct {
	vfs.FS
	name  string
	block int64
}

func (u *unreadable) Open(name string, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := u.FS.Open(name, o...)
	if err == nil && name == u.name {
		f = &unreadableFile{File: f, block: u.block}
	}
	return f, err
}

type unreadableFile struct {
	vfs.File
	block int64
}

func (u *unreadableFile) ReadAt(b []byte, off int64) (int, error) {
	if off < (u.block+1)*diskBlock && off+int64(len(b)) > u.block*diskBlock {
		return 0, syscall.EIO
	}
	return u.File.ReadAt(b, off)
}
