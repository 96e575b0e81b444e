package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
)

const (
	progressMagic = "sluiprg1"
	maxProgress   = 64 << 20
)

// progress says which records need not be sent any more, and how far the log was
// acknowledged. It is written in turns to two files, so that the worst a crash
// leaves is one that is torn and one that is a second older: then some records are
// sent again.
//
//	magic 8 · generation 8 · next record 8 · lost 8 · lost from 8 · segments 4
//	per segment: ordinal 8 · first 8 · words 4 · words × 8
//	crc32c 4
type progress struct {
	generation uint64
	number     uint64 // records below it were acknowledged, or never will be
	lost       losses
	removed    map[uint64]removal // by the segment's ordinal
}

type removal struct {
	first uint64
	words []uint64
}

// covers reports whether a record was removed.
func (r removal) covers(number uint64) bool {
	if number < r.first || (number-r.first)/blockRecords >= uint64(len(r.words)) {
		return false
	}
	i := number - r.first
	return r.words[i/blockRecords]>>(i%blockRecords)&1 == 1
}

func (p *progress) encode() []byte {
	le := binary.LittleEndian
	b := append([]byte(nil), progressMagic...)
	for _, v := range []uint64{p.generation, p.number, p.lost.records, uint64(p.lost.from)} {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, uint32(len(p.removed)))
	ordinals := make([]uint64, 0, len(p.removed))
	for o := range p.removed {
		ordinals = append(ordinals, o)
	}
	slices.Sort(ordinals)
	for _, o := range ordinals {
		r := p.removed[o]
		b = le.AppendUint64(b, o)
		b = le.AppendUint64(b, r.first)
		b = le.AppendUint32(b, uint32(len(r.words)))
		for _, w := range r.words {
			b = le.AppendUint64(b, w)
		}
	}
	return le.AppendUint32(b, checksum(b))
}

var errProgress = errors.New("not a progress file")

func parseProgress(b []byte) (p progress, err error) {
	le := binary.LittleEndian
	if len(b) < 48 || string(b[:8]) != progressMagic {
		return p, errProgress
	}
	body := b[:len(b)-4]
	if checksum(body) != le.Uint32(b[len(b)-4:]) {
		return p, fmt.Errorf("progress: %w", errChecksum)
	}
	p = progress{generation: le.Uint64(body[8:]), number: le.Uint64(body[16:]),
		lost: losses{le.Uint64(body[24:]), int64(le.Uint64(body[32:]))}, removed: map[uint64]removal{}}
	if p.number == 0 || p.number > maxNumber {
		return progress{}, errProgress
	}
	n := le.Uint32(body[40:])
	body = body[44:]
	for range n {
		if len(body) < 20 {
			return progress{}, errProgress
		}
		o, r, words := le.Uint64(body), removal{first: le.Uint64(body[8:])}, le.Uint32(body[16:])
		body = body[20:]
		if uint64(len(body)) < 8*uint64(words) {
			return progress{}, errProgress
		}
		r.words = make([]uint64, words)
		for i := range r.words {
			r.words[i] = le.Uint64(body[8*i:])
		}
		body = body[8*words:]
		p.removed[o] = r
	}
	if len(body) != 0 {
		return progress{}, errProgress
	}
	return p, nil
}

// readProgress reads the newer of the two files. bad says what is wrong with each
// that is no good: that may just be a crash while it was written.
func readProgress(f FS, dir string) (p progress, bad []error) {
	p = progress{number: 1, lost: losses{from: math.MaxInt64}, removed: map[uint64]removal{}}
	for _, name := range []string{progressA, progressB} {
		b, err := readFile(f, filepath.Join(dir, name), maxProgress)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var q progress
		if err == nil {
			q, err = parseProgress(b)
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", name, err))
			continue
		}
		if q.generation >= p.generation {
			p = q
		}
	}
	return p, bad
}

// progressName is the file whose turn it is.
func progressName(generation uint64) string {
	if generation%2 == 0 {
		return progressA
	}
	return progressB
}
