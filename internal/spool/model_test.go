package spool

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

// model is a spool as it should be: a map.
type model struct {
	waiting map[uint64]batch.Record
	back    map[uint64]batch.Record // removed since the last orderly end: a crash may bring them back
	aside   map[uint64]batch.Record
	next    uint64 // no number below it is given again
	n       int
	log     bytes.Buffer
}

func (m *model) oldest() time.Time {
	var at time.Time
	for _, r := range m.waiting {
		if at.IsZero() || r.ReceivedAt.Before(at) {
			at = r.ReceivedAt
		}
	}
	return at
}

func (m *model) numbers() []uint64 {
	out := make([]uint64, 0, len(m.waiting))
	for n := range m.waiting {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// A spool behaves like a map, through any sequence of calls, restarts and crashes.
func TestModel(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { modelRun(t, seed) })
	}
}

func modelRun(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 11))
	d := newDisk(t)
	change := func(o *Options) { o.SegmentBytes = minSegmentBytes << rng.IntN(3) }
	s := open(t, d, change)
	m := &model{waiting: map[uint64]batch.Record{}, back: map[uint64]batch.Record{}, aside: map[uint64]batch.Record{}, next: 1}
	for range 300 {
		switch op := rng.IntN(100); {
		case op < 50:
			var records []batch.Record
			for range 1 + rng.IntN(5) {
				m.n++
				r := record(m.n, rng.IntN(5000))
				// Requests do not end in the order they came; some long ago.
				r.ReceivedAt = r.ReceivedAt.Add(-time.Duration(rng.IntN(90)) * time.Second)
				records = append(records, r)
			}
			first := add(t, s, records...)
			require.GreaterOrEqual(t, first, m.next)
			m.next = first + uint64(len(records))
			for i, r := range records {
				m.waiting[first+uint64(i)] = r
			}
		case op < 75:
			numbers := m.numbers()
			if len(numbers) == 0 {
				continue
			}
			at := rng.IntN(len(numbers))
			some := numbers[at:min(len(numbers), at+rng.IntN(40))]
			s.Remove(some...)
			for _, n := range some {
				m.back[n] = m.waiting[n]
				delete(m.waiting, n)
			}
		case op < 78:
			numbers := m.numbers()
			if len(numbers) == 0 {
				continue
			}
			n := numbers[rng.IntN(len(numbers))]
			require.NoError(t, s.SetAside(n, errors.New("refused")))
			m.aside[n] = m.waiting[n]
			delete(m.waiting, n)
		case op < 92:
			m.read(t, s, rng)
		case op < 96:
			require.NoError(t, s.Close())
			s = open(t, d, change)
			require.Equal(t, batch.SpoolIntact, s.State())
			clear(m.back)
		default:
			after := d.crash(rng.IntN(101), rng)
			require.NoError(t, s.Close())
			d = after
			m.log.Reset()
			s = open(t, d, change, logTo(&m.log))
			m.recover(t, s)
		}
		m.check(t, s)
	}
	require.NoError(t, s.Close())
}

// recover takes back what a crash brought back.
func (m *model) recover(t *testing.T, s *Spool) {
	require.NotEqual(t, batch.SpoolDamaged, s.State(), m.log.String())
	for _, r := range all(t, s) {
		if _, ok := m.waiting[r.Number]; ok {
			continue
		}
		back, ok := m.back[r.Number]
		require.True(t, ok, "record %d was never removed and never there", r.Number)
		m.waiting[r.Number] = back
	}
	clear(m.back)
}

func (m *model) check(t *testing.T, s *Spool) {
	b := s.Backlog()
	require.Equal(t, uint64(len(m.waiting)), b.Records)
	require.Equal(t, uint64(len(m.aside)), b.Lost)
	for _, r := range m.aside {
		require.False(t, b.LostFrom.After(r.ReceivedAt))
	}
	if len(m.waiting) == 0 {
		require.True(t, b.Oldest.IsZero())
		require.Zero(t, b.Bytes)
		return
	}
	require.False(t, b.Oldest.After(m.oldest()), "oldest %v, truly %v", b.Oldest, m.oldest())
	size := int64(0)
	for _, r := range m.waiting {
		size += int64(recordSize(&r))
	}
	require.Greater(t, b.Bytes, int64(0))
	require.Less(t, math.Abs(float64(b.Bytes-size)), 64*6000.0*float64(1+len(m.waiting)/10))
}

// read reads from anywhere, with and without a filter, and expects exactly what
// the model has.
func (m *model) read(t *testing.T, s *Spool, rng *rand.Rand) {
	var want func(*batch.Record) bool
	mod := uint64(1 + rng.IntN(4))
	if mod > 1 {
		want = func(r *batch.Record) bool { return r.Seq%mod == 0 }
	}
	from := uint64(rng.Int64N(int64(m.next) + 2))
	var expect []uint64
	for _, n := range m.numbers() {
		if r := m.waiting[n]; n >= from && r.Seq%mod == 0 {
			expect = append(expect, n)
		}
	}
	var got []uint64
	for {
		records, next, err := s.Read(t.Context(), from, rng.IntN(60_000), want)
		require.NoError(t, err)
		for _, r := range records {
			got = append(got, r.Number)
			w := m.waiting[r.Number]
			w.Path = batch.Spool
			require.Equal(t, w, r.Record)
			require.Less(t, r.Number, next)
		}
		if len(records) == 0 {
			break
		}
		from = next
	}
	assert.Equal(t, expect, got)
}
