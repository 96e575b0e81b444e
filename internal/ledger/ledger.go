// Package ledger gives every batch a collector accepts its place in that
// collector's account: who, when, and which number. What is stored can then be
// held against what was accepted.
package ledger

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"sluice/pkg/batch"
)

const (
	idFile    = "collector-id"
	boundFile = "not-before"

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

// ErrInUse is returned by Open for a directory that another collector has.
var ErrInUse = errors.New("another collector uses this directory")

// Ledger hands out stamps. Safe for concurrent use. Close it.
type Ledger struct {
	collector batch.ID
	epoch     uint64
	now       func() time.Time

	mu   sync.Mutex
	last int64  // microseconds since the Unix epoch: the newest stamp's receive time
	seq  uint64 // of the newest stamp

	store *store // nil: nothing is kept
	log   *slog.Logger
	stop  chan struct{}
	done  chan struct{}
}

// Option changes how a Ledger is opened.
type Option func(*Ledger)

// WithClock replaces time.Now.
func WithClock(now func() time.Time) Option { return func(l *Ledger) { l.now = now } }

// Open takes a collector's account up. Its id is kept in dir/collector-id, which
// is locked for as long as the Ledger is open, so that no two collectors write
// under one id; the epoch, random and at most 2^63-1, is new at every start. An
// empty dir keeps nothing: the id lives as long as the process.
//
// It returns ErrInUse when another process has the directory, and an error when
// it cannot be written. An id or a bound that cannot be read is no error: the
// file's content is set aside beside it, with a warning, and the collector gets a
// new id, under which times may start anew. So does a collector whose earlier
// times are over a day ahead of the clock. log may be nil.
func Open(dir string, log *slog.Logger, options ...Option) (*Ledger, error) {
	l := &Ledger{now: time.Now, log: log, stop: make(chan struct{}), done: make(chan struct{}), epoch: newEpoch()}
	for _, o := range options {
		o(l)
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if dir == "" {
		l.collector = batch.Random()
		close(l.done)
		return l, nil
	}
	s, err := openStore(dir, l.now().Add(maxAhead).UnixMicro(), l.log)
	if err != nil {
		return nil, err
	}
	l.store, l.collector = s, s.collector
	// No stamp of an earlier run is later than the bound it left. Until the clock
	// has passed it, receive times stand still there.
	l.last = s.bound
	if err := l.extend(); err != nil {
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

// Accept stamps a batch of n records, at least one: a receive time that is never
// before an earlier one of this collector, whatever the clock does, and n
// consecutive numbers, counted from 1 in each epoch. All three come from under
// one lock: a batch with a higher number never has an earlier time.
func (l *Ledger) Accept(n int) batch.Stamp {
	now := l.now().UnixMicro()
	l.mu.Lock()
	if now > l.last {
		l.last = now
	}
	at, first := l.last, l.seq+1
	l.seq += uint64(max(n, 1))
	l.mu.Unlock()
	return batch.Stamp{ReceivedAt: time.UnixMicro(at), Collector: l.collector, Epoch: l.epoch, FirstSeq: first}
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
		err := l.extend()
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

// extend reserves the time ahead.
func (l *Ledger) extend() error {
	l.mu.Lock()
	bound := max(l.last, l.now().UnixMicro()) + reserve.Microseconds()
	l.mu.Unlock()
	// A crash before this is on disk: the old bound holds, and every stamp so far is
	// below it. After it: the new one does.
	return l.store.write(bound)
}

// Close gives the directory back. Nothing may be stamped after it.
func (l *Ledger) Close() error {
	if l.store == nil {
		return nil
	}
	close(l.stop)
	<-l.done
	l.mu.Lock()
	last := l.last
	l.mu.Unlock()
	// An orderly end needs no reserve: the next start goes on from the last stamp.
	return errors.Join(l.store.write(last), l.store.close())
}

// setAside keeps a damaged file's content under a name of its own.
func setAside(dir, name string, content []byte, log *slog.Logger, why error) error {
	f, err := os.CreateTemp(dir, name+".damaged-*")
	if err != nil {
		return fmt.Errorf("set %s aside: %w", filepath.Join(dir, name), err)
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("set %s aside: %w", filepath.Join(dir, name), err)
	}
	log.Warn("file is damaged; its content is set aside", "file", filepath.Join(dir, name), "kept", f.Name(), "why", why)
	return nil
}
