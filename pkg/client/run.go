package client

import (
	"context"
	"fmt"
	"time"
)

const (
	// ahead is how many batches of a list are looked at for one that may be sent.
	ahead = 64
	// diskPause is how long a disk that failed, or is full, is left alone.
	diskPause = 5 * time.Second
	// reportPause is the least time between batches of nothing but reports.
	reportPause = time.Minute
)

// run is the goroutine that sends. It starts one more for each request, Concurrency
// at most, and ends after the last of them.
func (l *Logger) run() {
	defer close(l.done)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		l.take(now)
		l.start(ctx, now)
		l.spill(now)
		timer.Reset(l.pause(time.Now()))
		select {
		case <-l.kick:
		case <-timer.C:
		case r := <-l.results:
			l.finish(r, time.Now())
		case <-l.stop:
			cancel()
			l.end()
			return
		}
	}
}

// take brings in the batches that are complete, or old enough, and tells OnError
// what callers ran into.
func (l *Logger) take(now time.Time) {
	l.mu.Lock()
	if l.open != nil && now.Sub(l.open.created) >= l.opts.FlushInterval {
		l.seal()
	}
	if due, ok := l.reportDue(); ok && !now.Before(due) {
		l.sealReports()
		l.reportAt = now.Add(reportPause)
	}
	l.waiting = append(l.waiting, l.ready...)
	clear(l.ready)
	l.ready = l.ready[:0]
	faults := l.faults
	l.faults = nil
	l.mu.Unlock()
	for _, err := range faults {
		l.opts.OnError(err)
	}
}

// reportDue is when reports go without a batch of events that takes them along.
// Called with mu held.
func (l *Logger) reportDue() (time.Time, bool) {
	return later(l.dropped.Add(l.opts.FlushInterval), l.reportAt), l.open == nil && len(l.drops) > 0 && l.reporting == 0
}

// tell reports an error of the goroutine that sends.
func (l *Logger) tell(err error) {
	if l.opts.OnError != nil && err != nil {
		l.opts.OnError(err)
	}
}

// start begins requests while there are batches, endpoints and room for them.
// Batches in memory and on disk take turns: what is on disk must not wait for an
// idle moment, and memory is what fills up.
func (l *Logger) start(ctx context.Context, now time.Time) {
	for l.inflight < l.opts.Concurrency {
		lists := [2]*[]*batch{&l.waiting, &l.stored}
		if !l.fromDisk {
			lists[0], lists[1] = lists[1], lists[0]
		}
		b, e := l.next(lists[0], now)
		if b == nil {
			b, e = l.next(lists[1], now)
		}
		if b == nil {
			return
		}
		l.fromDisk = b.safe
		l.inflight++
		e.inflight++
		// Its owner is run, which waits for the result before it ends.
		go func() { l.results <- l.attempt(ctx, b, e) }()
	}
}

// next takes a batch off a list that an endpoint may be given now. What has expired
// is dropped on the way; what has to wait goes to the end.
func (l *Logger) next(list *[]*batch, now time.Time) (*batch, *endpoint) {
	usable := false
	for _, e := range l.endpoints {
		usable = usable || e.usable(now)
	}
	if !usable {
		return nil, nil
	}
	for range min(len(*list), ahead) {
		b := (*list)[0]
		(*list)[0] = nil
		*list = (*list)[1:]
		if now.Sub(b.created) > l.opts.MaxAge && !now.Before(b.notBefore) {
			l.drop(b, expired, fmt.Errorf("client: a batch is dropped: it is older than MaxAge (%v)", l.opts.MaxAge))
			continue
		}
		if e := pick(l.endpoints, b, now); e != nil {
			return b, e
		}
		*list = append(*list, b)
	}
	return nil, nil
}

// spill writes batches to disk that cannot be sent now: those that failed, all of
// them while no endpoint works, and all of them when memory is half full.
func (l *Logger) spill(now time.Time) {
	if l.store == nil || len(l.waiting) == 0 || now.Before(l.diskAfter) {
		return
	}
	l.mu.Lock()
	all := l.queued > l.opts.QueueEvents/2 || l.queuedBytes > l.opts.QueueBytes/2
	l.mu.Unlock()
	if !all {
		all = true
		for _, e := range l.endpoints {
			all = all && !e.working(now)
		}
	}
	var write, rest []*batch
	more := false
	for _, b := range l.waiting {
		switch {
		case !all && b.failures == 0:
			rest = append(rest, b)
		case len(write) == ahead:
			rest, more = append(rest, b), true
		default:
			write = append(write, b)
		}
	}
	if len(write) == 0 {
		return
	}
	l.waiting = rest
	if left := l.keep(write); len(left) > 0 {
		l.waiting = append(left, rest...)
		l.diskAfter = now.Add(diskPause)
	} else if more {
		l.wake()
	}
}

// keep writes batches to disk and returns those that are not there.
func (l *Logger) keep(batches []*batch) (left []*batch) {
	saved, left, err := l.store.save(batches)
	l.tell(err)
	for _, b := range saved {
		l.mu.Lock()
		l.release(b)
		l.settle(b)
		l.mu.Unlock()
		l.leave(b)
		l.stored = append(l.stored, b)
	}
	l.note()
	return left
}

// pause is how long there is nothing to do, unless something happens.
func (l *Logger) pause(now time.Time) time.Duration {
	d := time.Hour
	until := func(t time.Time) {
		if t.After(now) {
			d = min(d, t.Sub(now))
		}
	}
	l.mu.Lock()
	if l.open != nil {
		d = min(d, l.open.created.Add(l.opts.FlushInterval).Sub(now))
	} else if due, ok := l.reportDue(); ok {
		d = min(d, due.Sub(now))
	}
	l.mu.Unlock()
	if len(l.waiting) > 0 {
		until(l.diskAfter)
	}
	if l.inflight == l.opts.Concurrency || len(l.waiting)+len(l.stored) == 0 {
		return d
	}
	usable := false
	for _, e := range l.endpoints {
		until(e.free())
		usable = usable || e.usable(now)
	}
	for _, list := range [][]*batch{l.waiting, l.stored} {
		for _, b := range list[:min(len(list), ahead)] {
			until(b.notBefore)
		}
		if usable && len(list) > ahead {
			d = min(d, time.Second) // the others have not been looked at
		}
	}
	return d
}

// end keeps what is left, or counts it as lost. The requests have been broken off.
func (l *Logger) end() {
	l.ending = true
	for l.inflight > 0 {
		l.finish(<-l.results, time.Now())
	}
	l.mu.Lock()
	if l.store != nil {
		l.sealReports()
	}
	l.waiting = append(l.waiting, l.ready...)
	l.ready = nil
	l.mu.Unlock()
	left := l.waiting
	if l.store != nil && len(left) > 0 {
		left = l.keep(left)
	}
	for _, b := range left {
		l.mu.Lock()
		if !b.safely() { // else the batch it is a half of is there
			l.stats.Unsent += uint64(b.count - b.reports)
		}
		l.release(b)
		l.settle(b)
		l.mu.Unlock()
	}
	l.waiting = nil
	if l.transport != nil {
		l.transport.CloseIdleConnections()
	}
}
