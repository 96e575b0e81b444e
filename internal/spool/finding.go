package spool

import (
	"fmt"
	"time"
)

// Kind is what is wrong with a spool, as a metric label.
type Kind string

// The kinds of damage.
const (
	BadRecord      Kind = "record"   // a stretch of a segment that holds no intact record
	BadSegment     Kind = "segment"  // a segment's header or footer, or all of it
	MissingSegment Kind = "missing"  // a segment that should be there
	BadManifest    Kind = "manifest" // the list of segments
	BadProgress    Kind = "progress" // what was removed: some records are sent again
)

// Finding is one piece of damage.
type Finding struct {
	Kind   Kind   `json:"kind"`
	File   string `json:"file"` // below the spool's directory
	Offset int64  `json:"offset"`
	Length int64  `json:"length"` // bytes; 0: not known, or none
	// Lost is how many acknowledged records it costs, First and Last their numbers
	// where they are known (else 0).
	Lost  uint64 `json:"lost"`
	First uint64 `json:"first,omitempty"`
	Last  uint64 `json:"last,omitempty"`
	// NotBefore is a time that none of them was received before.
	NotBefore *time.Time `json:"not_before,omitempty"`
	What      string     `json:"what"`
}

// String is the finding in one line.
func (f Finding) String() string {
	s := f.File
	if f.Length > 0 {
		s += fmt.Sprintf(", %d bytes at %d", f.Length, f.Offset)
	}
	s += ": " + f.What
	if f.Lost > 0 {
		s += fmt.Sprintf("; %d records lost", f.Lost)
		if f.First > 0 {
			s += fmt.Sprintf(" (%d to %d)", f.First, f.Last)
		}
	}
	return s
}

// gap is a stretch of a segment without intact records, and the numbers that are
// missing there.
type gap struct {
	from, to int64
	first    uint64
	n        uint64
	at       int64 // none of them was received before
	what     string
}

func (p gap) finding(g *segment, lost uint64) Finding {
	f := Finding{Kind: BadRecord, File: g.name, Offset: p.from, Length: p.to - p.from, Lost: lost, What: p.what}
	if p.n > 0 {
		f.First, f.Last = p.first, p.first+p.n-1
	}
	if lost > 0 {
		at := time.UnixMicro(p.at)
		f.NotBefore = &at
	}
	return f
}
