package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"sluice/pkg/retry"
)

// Logger logs exposures and events. Its methods are safe for concurrent use.
type Logger struct {
	opts      Options
	id        string // of this Logger, in reports
	http      *http.Client
	transport *http.Transport // of its own; nil: the caller's client is used
	store     *store          // nil: without Dir
	policy    retry.Policy
	buffers   sync.Pool // *[]byte that events are written in

	kick chan struct{} // there is something to do for run
	stop chan struct{} // closed: send no more, keep what is left
	done chan struct{} // closed: run has ended

	closeOnce sync.Once

	mu                  sync.Mutex
	closed              bool
	usual               int    // bytes of a batch, to begin the next one with
	open                *batch // being filled
	ready               []*batch
	numbers             uint64 // batches sealed
	live                int    // sealed and not settled
	waiters             []*waiter
	queued, queuedBytes int  // events in memory
	full                bool // the last event did not fit
	drops               drops
	dropped             time.Time // since when there is something in drops
	reporting           int       // batches with reports that are not settled
	faults              []error   // for OnError
	stats               Stats

	// What follows belongs to run.
	endpoints []*endpoint
	waiting   []*batch // in memory
	stored    []*batch // on disk
	fromDisk  bool     // the last batch begun was
	inflight  int
	results   chan result
	diskAfter time.Time // the disk failed: try again then
	reportAt  time.Time // earliest batch of nothing but reports
	ending    bool      // the requests have been broken off
}

// waiter is a Flush: it waits for left batches with numbers below upTo.
type waiter struct {
	upTo uint64
	left int
	done chan struct{}
}

// Stats counts since New. Events are counted without the Logger's own reports.
type Stats struct {
	Logged       uint64 // events given to Exposure and Event that were complete
	Acknowledged uint64 // events a collector has; those of earlier sessions too
	Rejected     uint64 // events a collector keeps as dead letters

	// Events that are not sent.
	Invalid    uint64 // without a required field; not in Logged
	AfterClose uint64 // given after Close; not in Logged
	QueueFull  uint64
	TooLarge   uint64
	Expired    uint64 // older than MaxAge
	Refused    uint64 // 400, 415, 422
	Unsent     uint64 // neither acknowledged nor on disk when Close ended

	Attempts uint64 // requests, and files read for one
	Failures uint64 // of those, without an answer that settles the batch
	Halved   uint64 // batches
	Adopted  uint64 // batches of earlier sessions found in Dir
	Damaged  uint64 // files set aside

	Waiting     int   // events in memory, reports included
	Stored      int   // batches on disk
	StoredBytes int64 // in Dir, as far as this process knows
}

// Dropped is how many events were dropped for good.
func (s Stats) Dropped() uint64 {
	return s.QueueFull + s.TooLarge + s.Expired + s.Refused + s.Unsent
}

// New starts a Logger, which must be closed. It returns an error for options that
// cannot be right and for a Dir that cannot be made or read; it does not try the
// endpoints.
func New(o Options) (*Logger, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	l := &Logger{
		opts:    o,
		id:      newID(),
		policy:  retry.Policy{Min: o.RetryBase, Max: o.RetryCap},
		kick:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
		drops:   drops{},
		results: make(chan result, o.Concurrency),
	}
	l.buffers.New = func() any { return new([]byte) }
	for i, e := range o.Endpoints {
		l.endpoints = append(l.endpoints, &endpoint{url: strings.TrimRight(e, "/") + "/v1/exposures", bit: 1 << i})
	}
	if o.Dir != "" {
		var err error
		if l.store, l.stored, err = openStore(o.files, o.Dir, l.id, o.DirMaxBytes, time.Now()); err != nil {
			return nil, err
		}
		l.stats.Adopted = uint64(len(l.stored))
		l.stats.Stored, l.stats.StoredBytes = len(l.stored), l.store.bytes
	}
	client := &http.Client{}
	if o.HTTP != nil {
		*client = *o.HTTP
	} else {
		l.transport = &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			ForceAttemptHTTP2:   true,
			MaxIdleConnsPerHost: o.Concurrency,
			IdleConnTimeout:     90 * time.Second,
		}
		client.Transport = l.transport
	}
	// A POST that is redirected becomes a GET, and its 200 says nothing.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	l.http = client
	go l.run()
	return l, nil
}

// Exposure logs an exposure. It does not block and does not fail: what is missing a
// required field, or does not fit into the queue, is counted.
func (l *Logger) Exposure(e Exposure) {
	if name := e.missing(); name != "" {
		l.invalid(fmt.Errorf("client: exposure without %s (experiment %.100q)", name, e.Experiment))
		return
	}
	b := l.buffers.Get().(*[]byte)
	*b = e.append((*b)[:0])
	l.log(*b, dropKey{experiment: e.Experiment, variant: e.Variant})
	l.putBack(b)
}

// Event logs a custom event, as Exposure does.
func (l *Logger) Event(e Event) {
	if name := e.missing(); name != "" {
		l.invalid(fmt.Errorf("client: event without %s (name %.100q)", name, e.Name))
		return
	}
	if e.Name == droppedName {
		l.invalid(errors.New("client: events named " + droppedName + " are the logger's own"))
		return
	}
	b := l.buffers.Get().(*[]byte)
	*b = e.append((*b)[:0])
	l.log(*b, dropKey{event: e.Name})
	l.putBack(b)
}

// putBack keeps a buffer for the next event, unless it grew out of the usual.
func (l *Logger) putBack(b *[]byte) {
	if cap(*b) <= 16<<10 {
		l.buffers.Put(b)
	}
}

// log puts an event that is written into the open batch.
func (l *Logger) log(event []byte, k dropKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		l.stats.AfterClose++
		return
	}
	l.stats.Logged++
	switch {
	case len(event) > maxEventBytes:
		k.reason = tooLarge
		l.stats.TooLarge++
		l.count(k, 1)
		l.fault(fmt.Errorf("client: an event of %d bytes is dropped: more than %d", len(event), maxEventBytes))
		return
	case l.queued >= l.opts.QueueEvents || l.queuedBytes+len(event) > l.opts.QueueBytes:
		k.reason = queueFull
		l.stats.QueueFull++
		l.count(k, 1)
		if !l.full {
			l.full = true
			l.fault(fmt.Errorf("client: the queue is full (%d events, %d bytes): new ones are dropped", l.queued, l.queuedBytes))
		}
		return
	}
	l.full = false
	if l.open != nil && len(l.open.events)+1+len(event) > l.opts.BatchBytes {
		l.seal()
	}
	if l.open == nil {
		l.open = newBatch(time.Now())
		l.open.counted = true
		l.open.events = make([]byte, 0, l.usual)
		l.wake() // to set its timer
	}
	before := len(l.open.events)
	l.open.add(event)
	l.queued++
	l.queuedBytes += len(l.open.events) - before
	if l.open.count >= l.opts.BatchEvents || len(l.open.events) >= l.opts.BatchBytes {
		l.seal()
	}
}

// count remembers dropped events for the next report. Called with mu held.
func (l *Logger) count(k dropKey, n uint64) {
	if len(l.drops) == 0 {
		l.dropped = time.Now()
		l.wake() // to set the report's timer
	}
	l.drops.add(k, n)
}

// seal hands the open batch to run, with the reports of what was dropped.
// Called with mu held.
func (l *Logger) seal() {
	b := l.open
	l.open = nil
	l.usual = min(len(b.events)+len(b.events)/16, l.opts.BatchBytes)
	l.report(b)
	b.number = l.numbers
	l.numbers++
	l.live++
	l.ready = append(l.ready, b)
	l.wake()
}

// report adds what was dropped to a batch that is not sealed yet, unless a report
// is under way: there is at most one set of them in memory. Called with mu held.
func (l *Logger) report(b *batch) {
	if len(l.drops) == 0 || l.reporting > 0 {
		return
	}
	before, now := len(b.events), time.Now()
	for k, n := range l.drops {
		b.add(k.append(nil, l.id, n, now))
		b.reports++
	}
	clear(l.drops)
	l.reporting++
	l.queued += b.reports
	l.queuedBytes += len(b.events) - before
}

// sealReports makes a batch of nothing but reports, if there is something to
// report. Called with mu held.
func (l *Logger) sealReports() {
	if l.open == nil && len(l.drops) > 0 && l.reporting == 0 {
		l.open = newBatch(time.Now())
		l.open.counted = true
		l.seal()
	}
}

// settle notes that Flush need not wait for a batch. Called with mu held.
func (l *Logger) settle(b *batch) {
	if b.settled {
		return
	}
	b.settled = true
	l.live--
	if b.reports > 0 {
		l.reporting--
	}
	for _, w := range l.waiters {
		if b.number < w.upTo {
			if w.left--; w.left == 0 {
				close(w.done)
			}
		}
	}
}

// adopt notes two halves in place of their batch. Called with mu held.
func (l *Logger) adopt(b *batch, halves [2]*batch) {
	for _, h := range halves {
		h.counted = true
		l.queued += h.count
		l.queuedBytes += len(h.events)
		if h.settled = b.settled; h.settled {
			continue
		}
		l.live++
		if h.reports > 0 {
			l.reporting++
		}
		for _, w := range l.waiters {
			if h.number < w.upTo {
				w.left++
			}
		}
	}
	l.release(b)
	l.settle(b)
}

// release takes a batch's events out of memory. Called with mu held.
func (l *Logger) release(b *batch) {
	if b.counted {
		b.counted = false
		l.queued -= b.count
		l.queuedBytes -= len(b.events)
	}
	b.events = nil
}

// Flush sends what was logged before the call without waiting for more, and returns
// when every event of it is acknowledged, on disk, or dropped and counted. When ctx
// ends first it returns an error with ctx's cause; nothing is given up by that.
func (l *Logger) Flush(ctx context.Context) error {
	l.mu.Lock()
	if l.open != nil {
		l.seal()
	}
	l.sealReports()
	w := &waiter{upTo: l.numbers, left: l.live, done: make(chan struct{})}
	if w.left == 0 {
		l.mu.Unlock()
		return nil
	}
	l.waiters = append(l.waiters, w)
	l.mu.Unlock()
	var err error
	select {
	case <-w.done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, other := range l.waiters {
		if other == w {
			l.waiters = append(l.waiters[:i], l.waiters[i+1:]...)
			break
		}
	}
	if err != nil && w.left > 0 {
		return fmt.Errorf("client: %d batches are not flushed yet: %w", w.left, err)
	}
	return nil
}

// Close takes no more events and flushes. When everything logged is acknowledged,
// on disk or dropped, or when ctx ends, it breaks off the requests in flight, writes
// what is left to Dir, and ends the Logger's goroutines. It returns an error when
// events are lost by that: without Dir, or when the disk failed or is full. Without
// Dir, and with no collector in reach, it returns when ctx ends. Further calls
// return when the first one has.
func (l *Logger) Close(ctx context.Context) error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.closeOnce.Do(func() {
		// What is not flushed is kept, or counted as unsent, by run.
		if l.Flush(ctx) == nil {
			_ = l.Flush(ctx) // the reports of what the first one had to drop
		}
		close(l.stop)
	})
	<-l.done
	if n := l.Stats().Unsent; n > 0 {
		return fmt.Errorf("client: closed with %d events that are neither acknowledged nor on disk: they are lost", n)
	}
	return nil
}

// Stats returns the counts up to now.
func (l *Logger) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Waiting = l.queued
	return s
}

func (l *Logger) invalid(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Invalid++
	l.fault(err)
}

// fault has run tell OnError, unless many are waiting to be told. Called with mu held.
func (l *Logger) fault(err error) {
	if l.opts.OnError != nil && len(l.faults) < 16 && !l.closed {
		l.faults = append(l.faults, err)
		l.wake()
	}
}

func (l *Logger) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}
