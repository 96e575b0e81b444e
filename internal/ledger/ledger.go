// Package ledger is a collector's account of the batches it accepts. It gives
// each its place, who, when, and which number; is told what becomes of every
// number; and writes to Kafka, once a second, what can be claimed of them all, so
// that what is stored can be held against what was acknowledged, and anyone can
// ask until when everything is there.
//
// What is claimed rests on few things. Receive times of one id never go back,
// whatever the clock and the process do, so nothing can be accepted below a time
// that was claimed. A number is in flight from before its batch is published until
// it is known to be in Kafka, on disk, or refused, so nothing slips between two
// records. And an id whose readers may not know of it, or have been told that it
// ended, acknowledges nothing until its opening record is in Kafka.
package ledger

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

const (
	// reserve is how far ahead of the clock receive times are reserved on disk, and
	// so by how much they may run ahead of it after a kill -9; renew is how often.
	reserve = 3 * time.Second
	renew   = time.Second

	// maxAhead is how far an earlier run's receive times may be ahead of the clock:
	// further than daylight saving or a wrong zone explains, the clock was wrong
	// then, and waiting for it could take years.
	maxAhead = 24 * time.Hour
	// noticeable is how far the clock may be behind before a warning says so.
	noticeable = time.Minute
)

var (
	// ErrInUse is returned by Open for a directory that another collector has.
	ErrInUse = errors.New("another collector uses this directory")

	errUnopened  = errors.New("the ledger's opening record is not in Kafka yet")
	errEnded     = errors.New("the ledger has ended")
	errUnsettled = errors.New("the ledger waits for a batch of which nobody says what became of it")
)

// Ledger hands out stamps and keeps account of them. Safe for concurrent use.
// Close it, after Run has returned.
type Ledger struct {
	collector batch.ID
	epoch     uint64
	now       func() time.Time
	heard     atomic.Pointer[brokerTime] // nil: Kafka has not answered yet
	interval  time.Duration
	patience  time.Duration // for the last records
	registry  prometheus.Registerer
	steps     func(string, func() error) error

	store   *store // nil: nothing is kept
	log     *slog.Logger
	metrics *metrics
	stop    chan struct{}
	done    chan struct{}

	mu       sync.Mutex // guards what follows; never held over I/O
	taking   bool       // stamps are given
	ended    bool       // and never will be again
	last     int64      // microseconds since the Unix epoch: the newest stamp's or record's time
	reserved int64      // the same: how far times may go, by what is on disk
	window   window
	offsets  []int64   // the highest known to hold a record of this collector, by partition; -1: none
	reported int64     // the newest record's At; no earlier run's is later
	written  time.Time // when a record was last acknowledged; at first, the start

	// What follows belongs to Run.
	logID    string // of the log the offsets are in; empty before the opening record
	begun    bool   // the opening record is in Kafka
	phase    phase  // as it should be on disk
	stuck    bool   // the disk does not take claims
	number   uint64 // of the newest record
	claimed  int64  // the newest CompleteUntil
	failures int    // records in a row that were not written
}

// Option changes how a Ledger is opened.
type Option func(*Ledger)

// WithClock replaces time.Now as the source of receive times.
func WithClock(now func() time.Time) Option { return func(l *Ledger) { l.now = now } }

// WithInterval is how often a record is written; 1 s by default.
func WithInterval(d time.Duration) Option { return func(l *Ledger) { l.interval = d } }

// WithPatience is how long the last records may take once Run is told to end; 5 s
// by default.
func WithPatience(d time.Duration) Option { return func(l *Ledger) { l.patience = d } }

// WithRegisterer is where the ledger's metrics go; nowhere by default.
func WithRegisterer(r prometheus.Registerer) Option { return func(l *Ledger) { l.registry = r } }

// Open takes a collector's account up. Its id is kept in dir/collector-id, which
// is locked for as long as the Ledger is open, so that no two collectors write
// under one id; the epoch, random and at most 2^63-1, is new at every start. An
// empty dir keeps nothing: the id lives as long as the process.
//
// It neither waits for Kafka nor needs it: see Ready.
//
// It returns ErrInUse when another process has the directory, and an error when
// it cannot be written. A file that cannot be read is no error: its content is set
// aside beside it, with a warning, and the collector gets a new id, under which
// times may start anew. So does a collector whose earlier times are over a day
// ahead of the clock. log may be nil.
func Open(dir string, log *slog.Logger, options ...Option) (*Ledger, error) {
	l := &Ledger{now: time.Now, interval: time.Second, patience: 5 * time.Second, log: log,
		stop: make(chan struct{}), done: make(chan struct{}),
		epoch: newEpoch(), window: newWindow(), written: time.Now(), phase: fresh, reserved: math.MaxInt64}
	for _, o := range options {
		o(l)
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if l.registry == nil {
		l.registry = prometheus.NewRegistry()
	}
	var err error
	if l.metrics, err = newMetrics(l.registry, l); err != nil {
		return nil, err
	}
	if dir == "" {
		l.collector = batch.Random()
		close(l.done)
		return l, nil
	}
	s, err := openStore(dir, l.now().Add(maxAhead).UnixMicro(), l.log, l.steps)
	if err != nil {
		return nil, err
	}
	l.store, l.collector, l.claimed = s, s.collector, s.state.claimed
	// No stamp and no record of an earlier run is later than the bound it left.
	// Until the clock has passed it, receive times stand still there.
	l.last, l.reported = s.state.bound, s.state.bound
	l.phase = s.state.phase
	l.taking = l.phase == opened
	if err := l.extend(nil); err != nil {
		s.close()
		return nil, err
	}
	go l.keep()
	return l, nil
}

func newEpoch() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails: crypto/rand.Read crashes the process instead
	return max(1, binary.BigEndian.Uint64(b[:])>>1)
}

// Collector is the id this collector's batches carry.
func (l *Ledger) Collector() batch.ID { return l.collector }

// Epoch is this start's number.
func (l *Ledger) Epoch() uint64 { return l.epoch }

// Ready returns nil while batches may be accepted. A collector whose id is new, or
// closed when it last ended, is not ready before its opening record is in Kafka
// (Run writes it): whoever computes the watermark would not wait for what it
// acknowledges. One that is known may begin without Kafka. Nothing is ready once
// Run has been told to end.
func (l *Ledger) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.ended:
		return retry.Mark(errEnded, retry.Shutdown)
	case !l.taking:
		return retry.Mark(errUnopened, retry.Transient)
	case !l.window.fits(1):
		return retry.Mark(errUnsettled, retry.Throttled)
	}
	return nil
}

// Accept stamps a batch of n records, at least one: a receive time that is never
// before an earlier one of this collector, whatever the clock does, and n
// consecutive numbers, counted from 1 in each epoch. All three come from under
// one lock: a batch with a higher number never has an earlier time. The numbers
// are in flight until InKafka, Spooled, Void or Withdraw says what became of each.
//
// While Ready says no, it returns the zero Stamp, whose FirstSeq is 0: nothing may
// be published then. To ask Ready first is not enough, since it may change.
func (l *Ledger) Accept(n int) batch.Stamp {
	n = max(n, 1)
	now := l.clock()
	l.mu.Lock()
	if !l.taking || !l.window.fits(n) {
		l.mu.Unlock()
		return batch.Stamp{}
	}
	l.last = max(l.last, min(now, l.reserved))
	at := l.last
	first := l.window.give(n, at)
	l.mu.Unlock()
	return batch.Stamp{ReceivedAt: time.UnixMicro(at), Collector: l.collector, Epoch: l.epoch, FirstSeq: first}
}

// InKafka says that all in-sync replicas have a record, at an offset of the
// batches topic: one that was sent at once, one out of the spool, or one that got
// there after its sender had given up, of whatever collector and epoch. Of a
// record that waits in the spool it is said before the spool forgets it, or there
// is a moment in which nothing knows of it.
func (l *Ledger) InKafka(r *batch.Record, partition int, offset int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.raise(partition, offset)
	l.settle(r, markKept)
}

// Spooled says that a record is on this collector's disk, synced.
func (l *Ledger) Spooled(r *batch.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle(r, markKept)
}

// Void says that a record's sender is told that it is not kept. It may turn up in
// Kafka all the same.
func (l *Ledger) Void(r *batch.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle(r, markVoid)
}

// Withdraw is Void for a stamp's n numbers that came to no record.
func (l *Ledger) Withdraw(stamp batch.Stamp, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if stamp.Collector != l.collector || stamp.Epoch != l.epoch {
		return
	}
	for i := range max(n, 1) {
		l.window.settle(stamp.FirstSeq+uint64(i), markVoid)
	}
}

// settle takes a record's number out of flight where it is of this epoch. l.mu is
// held.
func (l *Ledger) settle(r *batch.Record, mark int64) {
	if r.Epoch == l.epoch && r.Collector == l.collector {
		l.window.settle(r.Seq, mark)
	}
}

// raise remembers that a record is at an offset. l.mu is held.
func (l *Ledger) raise(partition int, offset int64) {
	if partition < 0 || offset < 0 {
		return
	}
	for len(l.offsets) <= partition {
		l.offsets = append(l.offsets, -1)
	}
	l.offsets[partition] = max(l.offsets[partition], offset)
}

// brokerTime is what the brokers' clock showed when a record was appended, and when
// this process heard of it.
type brokerTime struct{ at, heard time.Time }

// A broker appends a record at some moment of the request for it. What a slow
// answer tells of its clock is old by as much, and receive times would be early by
// that; the last quick one is better, for as long as two machines' clocks may be
// taken to run alike (50 ppm apart, which is common: 30 ms in ten minutes).
const (
	quickAnswer = 250 * time.Millisecond
	runsAlike   = 10 * time.Minute
)

// hear takes note of the brokers' clock, from a request that took so long.
func (l *Ledger) hear(at time.Time, took time.Duration) {
	last := l.heard.Load()
	if last == nil || took <= quickAnswer || time.Since(last.heard) > runsAlike {
		l.heard.Store(&brokerTime{at: at, heard: time.Now()})
	}
}

// clock is the receive clock, in microseconds since the Unix epoch, before it is
// kept from going back: the machine's, but never ahead of the brokers', as last
// heard of. The watermark is bounded by when a broker appended a record: a batch
// that waits in the spool under a time in the future would not hold it back. A
// clock that is behind does no harm, so the one that is earlier counts; what passed
// since is measured, not read from a clock that may be set.
func (l *Ledger) clock() int64 {
	now := l.now().UnixMicro()
	if b := l.heard.Load(); b != nil {
		now = min(now, b.at.Add(time.Since(b.heard)).UnixMicro())
	}
	return now
}

// keep renews the bound until Close.
func (l *Ledger) keep() {
	defer close(l.done)
	t := time.NewTicker(renew)
	defer t.Stop()
	failing, behind := false, false
	for {
		select {
		case <-l.stop:
			return
		case <-t.C:
		}
		err := l.extend(nil)
		if err != nil && !failing {
			// Stamps go on: without the bound they only go back if the process dies and
			// the clock is set back before it is there again.
			l.log.Warn("receive times are not reserved on disk", "error", err)
		}
		failing = err != nil
		was := behind
		if behind = l.ahead() > noticeable; behind && !was {
			l.log.Warn("the clock was set back; receive times stand still until it has caught up", "behind", l.ahead())
		}
	}
}

// ahead is how far the newest receive time is ahead of the clock.
func (l *Ledger) ahead() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.UnixMicro(l.last).Sub(l.now())
}

// extend reserves the time ahead, and changes the state in the same write.
func (l *Ledger) extend(change func(*state)) error {
	l.mu.Lock()
	bound := max(l.last, l.clock()) + reserve.Microseconds()
	l.mu.Unlock()
	// A crash before this is on disk: the old bound holds, and every stamp so far is
	// below it, also where the clock has leapt ahead meanwhile. After it: the new one
	// does.
	err := l.store.update(func(s *state) {
		s.bound = max(s.bound, bound)
		bound = s.bound
		if change != nil {
			change(s)
		}
	})
	if err != nil {
		bound = math.MaxInt64 // times that stand still would be worse
	}
	l.mu.Lock()
	l.reserved = bound
	l.mu.Unlock()
	return err
}

// Close gives the directory back. Nothing may be stamped after it, and Run has
// returned before it.
func (l *Ledger) Close() error {
	l.mu.Lock()
	l.taking, l.ended = false, true
	last := l.last
	l.mu.Unlock()
	if l.store == nil {
		return nil
	}
	close(l.stop)
	<-l.done
	// An orderly end needs no reserve: the next start goes on from the last stamp.
	err := l.store.update(func(s *state) { s.bound = last })
	if err := errors.Join(err, l.store.close()); err != nil {
		return fmt.Errorf("close the ledger: %w", err)
	}
	return nil
}
