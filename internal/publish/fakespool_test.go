package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// fakeSpool is a disk in memory that does what Spool promises, and goes wrong as
// the test says. Its first number is 0.
type fakeSpool struct {
	appended chan struct{}
	book     *fakeLedger // nil, or what has to be told before Remove

	mu      sync.Mutex
	log     []batch.Spooled
	gone    map[uint64]bool // removed or set aside
	asides  map[uint64]error
	next    uint64
	live    int // records neither removed nor set aside
	bytes   int64
	total   int           // ever appended
	err     error         // of Append: nothing is kept
	late    error         // of Append: it is kept all the same
	ready   error         // of Ready
	unread  error         // of Read
	unaside error         // of SetAside
	sync    time.Duration // between being readable and Append's return
	early   bool          // Remove was called for what Kafka did not acknowledge
	scanned int           // headers read
}

func newFakeSpool() *fakeSpool {
	return &fakeSpool{appended: make(chan struct{}, 1), gone: map[uint64]bool{}, asides: map[uint64]error{}}
}

// reopened is what the next process finds: everything that was not removed, and
// what was removed since number back.
func (s *fakeSpool) reopened(back uint64) *fakeSpool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := newFakeSpool()
	n.book, n.next, n.asides = s.book, s.next, s.asides
	for _, r := range s.log {
		if _, aside := s.asides[r.Number]; !aside && (!s.gone[r.Number] || r.Number >= back) {
			n.log = append(n.log, r)
			n.live++
			n.bytes += int64(r.Record.Size())
		}
	}
	return n
}

func (s *fakeSpool) set(change func(*fakeSpool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *fakeSpool) Append(ctx context.Context, records []batch.Record) (uint64, error) {
	s.mu.Lock()
	if s.err != nil {
		defer s.mu.Unlock()
		return 0, s.err
	}
	first := s.next
	for _, r := range records {
		r.Value = slices.Clone(r.Value)
		s.log = append(s.log, batch.Spooled{Number: s.next, Record: r})
		s.next++
		s.live++
		s.total++
		s.bytes += int64(r.Size())
	}
	late, wait := s.late, s.sync
	s.mu.Unlock()
	select {
	case s.appended <- struct{}{}:
	default:
	}
	if wait > 0 && !retry.Sleep(ctx, wait) {
		return 0, ctx.Err()
	}
	if late != nil {
		return 0, late
	}
	return first, nil
}

func (s *fakeSpool) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

func (s *fakeSpool) Read(ctx context.Context, from uint64, maxBytes int, want func(*batch.Record) bool) ([]batch.Spooled, uint64, error) {
	if ctx.Err() != nil {
		return nil, from, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unread != nil {
		return nil, from, s.unread
	}
	var out []batch.Spooled
	next, size := from, 0
	i, _ := s.find(from)
	for _, r := range s.log[i:] {
		if len(out) > 0 && size >= maxBytes {
			break
		}
		next = r.Number + 1
		if s.gone[r.Number] {
			continue
		}
		s.scanned++
		header := r.Record
		header.Value = nil
		if want(&header) {
			out = append(out, r)
			size += r.Record.Size()
		}
	}
	return out, next, nil
}

// find is where a number is in the log. s.mu is held.
func (s *fakeSpool) find(n uint64) (int, bool) {
	return slices.BinarySearchFunc(s.log, n, func(r batch.Spooled, n uint64) int { return cmp.Compare(r.Number, n) })
}

// drop notes that a record is done with. s.mu is held.
func (s *fakeSpool) drop(n uint64) {
	i, there := s.find(n)
	if !there || s.gone[n] {
		return
	}
	s.gone[n] = true
	s.live--
	s.bytes -= int64(s.log[i].Record.Size())
}

func (s *fakeSpool) Remove(numbers ...uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range numbers {
		i, there := s.find(n)
		if !there || s.book != nil && !s.book.has(&s.log[i].Record) {
			s.early = true
		}
		s.drop(n)
	}
}

func (s *fakeSpool) SetAside(number uint64, why error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unaside != nil {
		return s.unaside
	}
	s.drop(number)
	s.asides[number] = why
	return nil
}

func (s *fakeSpool) Backlog() batch.Backlog {
	s.mu.Lock()
	defer s.mu.Unlock()
	return batch.Backlog{Records: uint64(s.live), Bytes: s.bytes}
}

func (s *fakeSpool) Appended() <-chan struct{} { return s.appended }

// pending are the sequence numbers of what is still to be sent.
func (s *fakeSpool) pending() []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []uint64
	for _, r := range s.log {
		if !s.gone[r.Number] {
			out = append(out, r.Record.Seq)
		}
	}
	return out
}

// headers is how many were looked at.
func (s *fakeSpool) headers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.scanned
}

// appendedCount is how many records were ever put there.
func (s *fakeSpool) appendedCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// fakeLedger writes down what it is told.
type fakeLedger struct {
	mu    sync.Mutex
	told  map[key][]string // "kafka", "spooled", "void"
	where map[key][]string // partition/offset
}

func newFakeLedger() *fakeLedger {
	return &fakeLedger{told: map[key][]string{}, where: map[key][]string{}}
}

func (l *fakeLedger) tell(r *batch.Record, what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told[keyOf(r)] = append(l.told[keyOf(r)], what)
}

func (l *fakeLedger) InKafka(r *batch.Record, partition int, offset int64) {
	l.tell(r, "kafka")
	l.mu.Lock()
	defer l.mu.Unlock()
	l.where[keyOf(r)] = append(l.where[keyOf(r)], fmt.Sprintf("%d/%d", partition, offset))
}
func (l *fakeLedger) Spooled(r *batch.Record) { l.tell(r, "spooled") }
func (l *fakeLedger) Void(r *batch.Record)    { l.tell(r, "void") }

// of is what was told of a record.
func (l *fakeLedger) of(seq int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.told[key{seq: uint64(seq)}])
}

// has reports whether a record was said to be in Kafka.
func (l *fakeLedger) has(r *batch.Record) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(l.told[keyOf(r)], "kafka")
}

// check asserts that exactly one thing was told of each record, and after it only
// that it is in Kafka.
func (l *fakeLedger) check(t testing.TB) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, told := range l.told {
		for i, what := range told {
			if i > 0 {
				assert.Equal(t, "kafka", what, "%d: %v", k.seq, told)
			}
		}
	}
}

var errDisk = errors.New("disk full")
