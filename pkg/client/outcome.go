package client

import (
	"context"
	"errors"
	"io/fs"
	"time"
)

// finish deals with what became of an attempt.
func (l *Logger) finish(r result, now time.Time) {
	b, e := r.batch, r.endpoint
	l.inflight--
	e.inflight--
	broken := l.ending && errors.Is(r.err, context.Canceled) // by Close: nobody's failure
	l.mu.Lock()
	l.stats.Attempts++
	if !broken && (r.verdict == again || r.verdict == wrong) {
		l.stats.Failures++
	}
	l.mu.Unlock()
	if r.loaded != nil {
		b.count, b.reports = r.loaded.count, r.loaded.reports
	}
	switch r.verdict {
	case taken, discarded:
		e.answered()
		rejected := r.rejected
		if r.verdict == discarded {
			rejected = b.count
		}
		l.acknowledged(b, rejected)
		l.tell(r.err)
	case again, wrong:
		l.putOff(b)
		if !broken {
			l.failed(b, e, r.started, now, r.verdict == wrong, r.err)
			l.tell(r.err)
		}
	case halve:
		e.answered()
		l.halve(b, r)
	case refuse:
		e.answered()
		b.events = l.eventsOf(b, r)
		l.drop(b, refused, r.err)
	case unread:
		l.unreadable(b, r.err, now)
	}
}

// unreadable deals with a batch whose file cannot be read.
func (l *Logger) unreadable(b *batch, err error, now time.Time) {
	var damaged *damagedError
	switch {
	case errors.As(err, &damaged):
		l.mu.Lock()
		l.stats.Damaged++
		l.mu.Unlock()
		// Where that fails, the next session finds it damaged again.
		l.tell(errors.Join(err, l.store.setAside(b)))
		l.resolved(b)
	case errors.Is(err, fs.ErrNotExist):
		l.store.forget(b) // another process is done with it
		l.resolved(b)
	default:
		l.tell(err)
		b.notBefore = now.Add(diskPause)
		l.putOff(b)
	}
}

// putOff keeps a batch for another attempt.
func (l *Logger) putOff(b *batch) {
	if b.safe {
		l.stored = append(l.stored, b)
		return
	}
	l.waiting = append(l.waiting, b)
}

// eventsOf are a batch's events, wherever they were when it was sent.
func (l *Logger) eventsOf(b *batch, r result) []byte {
	if r.loaded != nil {
		return r.loaded.events
	}
	return b.events
}

// acknowledged ends a batch that a collector has.
func (l *Logger) acknowledged(b *batch, rejected int) {
	// Commit point: the collector has the batch, the file may go. A crash before it
	// is gone sends the batch once more, as a copy.
	_, err := l.removeFile(b)
	l.tell(err)
	l.mu.Lock()
	events := b.count - b.reports
	rejected = min(rejected, events)
	l.stats.Acknowledged += uint64(events - rejected)
	l.stats.Rejected += uint64(rejected)
	l.mu.Unlock()
	l.resolved(b)
}

func (l *Logger) removeFile(b *batch) (mine bool, err error) {
	if l.store == nil {
		return true, nil
	}
	return l.store.remove(b)
}

// resolved ends a batch, and those it is a half of when it was their last one.
func (l *Logger) resolved(b *batch) {
	l.mu.Lock()
	l.release(b)
	l.settle(b)
	l.mu.Unlock()
	l.leave(b)
	l.note()
}

// leave takes a half that is done, or on disk itself, off its batch; the file of a
// batch both of whose halves are is not needed any more. A crash before it is
// removed makes the same halves again.
func (l *Logger) leave(b *batch) {
	for p := b.parent; p != nil; p = p.parent {
		b.parent = nil
		if p.left--; p.left > 0 {
			return
		}
		_, err := l.removeFile(p)
		l.tell(err)
		b = p
	}
}

// note copies what the store has into the counts.
func (l *Logger) note() {
	if l.store == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Stored, l.stats.StoredBytes = l.store.kept, l.store.bytes
}

// halve makes two batches of one that is too large for a collector.
func (l *Logger) halve(b *batch, r result) {
	b.events = l.eventsOf(b, r)
	if b.count < 2 {
		l.drop(b, tooLarge, r.err)
		return
	}
	halves, err := b.halves()
	if err != nil {
		l.drop(b, refused, err) // not reached: the Logger wrote the events
		return
	}
	l.mu.Lock()
	l.stats.Halved++
	l.adopt(b, halves)
	l.mu.Unlock()
	l.waiting = append(l.waiting, halves[0], halves[1])
}

// drop gives a batch up and counts its events, for the statistics and the next
// report. Where another process was faster, it counts them.
func (l *Logger) drop(b *batch, why reason, cause error) {
	if b.events == nil {
		loaded, err := l.store.load(b)
		if err != nil {
			l.unreadable(b, err, time.Now())
			return
		}
		b.events, b.count, b.reports = loaded.events, loaded.count, loaded.reports
	}
	events, err := split(b.events)
	counts := drops{} // read before mu is held: callers wait for it
	for _, e := range events {
		k, n := readEvent(e).key(why)
		counts[k] += n
	}
	wasSafe := b.safe
	// A crash before the file is gone finds the batch again, and drops it again.
	mine, rerr := l.removeFile(b)
	l.tell(errors.Join(err, rerr))
	l.mu.Lock()
	if mine || !wasSafe {
		for k, n := range counts {
			l.count(k, n)
		}
		n := uint64(b.count - b.reports)
		switch why {
		case expired:
			l.stats.Expired += n
		case tooLarge:
			l.stats.TooLarge += n
		default:
			l.stats.Refused += n
		}
	}
	l.mu.Unlock()
	l.tell(cause)
	l.resolved(b)
}
