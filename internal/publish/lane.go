package publish

import (
	"context"
	"errors"
	"sync"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// call is one Publish: it is done when all its records are.
type call struct {
	ctx  context.Context
	mu   sync.Mutex
	left int
	err  error // the first one; read after done
	done chan struct{}
}

// finish settles n of the call's records.
func (c *call) finish(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	if c.left--; c.left == 0 {
		close(c.done)
	}
}

// entry is one record on its way.
type entry struct {
	record batch.Record
	call   *call
	size   int64
}

// refusal is an error that says: none of the records was written, because of
// what they are.
type refusal interface {
	error
	Refused() []int
}

// lane is the queue of one partition. While a request is in flight the next
// records gather, so a group is as large as the load makes it and nobody waits
// for company.
type lane struct {
	p         *Publisher
	partition int

	mu      sync.Mutex // guards what follows; never held over I/O
	bytes   int64      // queued and in flight
	open    *batch.Accumulator[entry]
	groups  [][]entry // full ones, in front of open
	senders int
	idle    chan struct{} // closed while there is no sender; else made anew
}

func newLane(p *Publisher, partition int) *lane {
	l := &lane{p: p, partition: partition, idle: make(chan struct{}),
		open: batch.NewAccumulator[entry](batch.Bound{Count: p.o.GroupRecords, Bytes: p.o.GroupBytes})}
	close(l.idle)
	return l
}

// full reports whether size more bytes are too many. Anything fits into an empty
// lane.
func (l *lane) full(size int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes > 0 && l.bytes+size > l.p.o.LaneBytes
}

// add queues a record and sees to it that somebody sends it. p.mu is held for
// reading: no sender starts once the Publisher is closed.
func (l *lane) add(e entry, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes += e.size
	if !l.open.Fits(1, e.size) {
		l.groups = append(l.groups, l.open.Take())
	}
	l.open.Add(e, 1, e.size, now)
	if l.senders < l.p.o.InFlight {
		if l.senders == 0 {
			l.idle = make(chan struct{})
		}
		l.senders++
		l.p.wg.Go(l.run)
	}
}

// run sends until nothing is queued.
func (l *lane) run() {
	for {
		group := l.take()
		if group == nil {
			return
		}
		l.p.send(l, group)
	}
}

// take hands out the next group, nil when there is none. Records that nobody
// waits for any more are dropped: their sender was told that they are not safe.
func (l *lane) take() []entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		var group []entry
		switch {
		case len(l.groups) > 0:
			group = l.groups[0]
			l.groups[0] = nil
			l.groups = l.groups[1:]
		case l.open.Len() > 0:
			group = l.open.Take()
		default:
			l.groups = nil
			if l.senders--; l.senders == 0 {
				close(l.idle)
			}
			return nil
		}
		kept := group[:0]
		for _, e := range group {
			if err := e.call.ctx.Err(); err != nil {
				l.release(e, err)
				continue
			}
			kept = append(kept, e)
		}
		if len(kept) > 0 {
			return kept
		}
	}
}

// release gives a record's bytes back and settles it. l.mu is held.
func (l *lane) release(e entry, err error) {
	l.bytes -= e.size
	l.p.queued.Add(-e.size)
	e.call.finish(err)
}

// settle is release for a whole group.
func (l *lane) settle(group []entry, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range group {
		l.release(e, err)
	}
}

// failQueued settles what is queued and not in flight.
func (l *lane) failQueued(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, group := range append(l.groups, l.open.Take()) {
		for _, e := range group {
			l.release(e, err)
		}
	}
	l.groups = nil
}

// drained waits until nothing is queued or in flight and reports whether that
// came before ctx's end.
func (l *lane) drained(ctx context.Context) bool {
	l.mu.Lock()
	idle := l.idle
	l.mu.Unlock()
	select {
	case <-idle:
		return true
	default:
	}
	select {
	case <-idle:
		return true
	case <-ctx.Done():
		return false
	}
}

// send makes one request of a group and settles it. A group that is refused is
// taken apart, so that a record Kafka will not have fails alone.
func (p *Publisher) send(l *lane, group []entry) {
	err := p.request(l, group)
	var refused refusal
	if err == nil || !errors.As(err, &refused) || len(group) == 1 {
		l.settle(group, err)
		return
	}
	guilty := map[int]bool{}
	for _, i := range refused.Refused() {
		guilty[i] = true
	}
	var bad, good []entry
	for i, e := range group {
		if guilty[i] {
			bad = append(bad, e)
		} else {
			good = append(good, e)
		}
	}
	if len(bad) > 0 {
		l.settle(bad, err)
		if len(good) > 0 {
			p.send(l, good)
		}
		return
	}
	// Kafka does not say which, or it is the sum: halve. At most twice as many
	// requests as records.
	p.send(l, group[:len(group)/2])
	p.send(l, group[len(group)/2:])
}

// request asks the breaker and then Kafka, once.
func (p *Publisher) request(l *lane, group []entry) error {
	leader := p.leader(l.partition)
	if leader < 0 {
		return p.reject("no_leader", retry.Mark(errNoLeader, retry.Transient))
	}
	b := p.breakers.of(leader)
	done, err := b.allow()
	if err != nil {
		return p.reject("breaker_open", retry.Mark(errOpen, retry.Transient))
	}
	records := make([]batch.Record, len(group))
	for i := range group {
		records[i] = group[i].record
	}
	// The verdict is given exactly once: when the answer is slow, or when there is
	// one, or when this function ends in any other way.
	verdict := errSlow
	var once sync.Once
	judge := func(err error) { once.Do(func() { done(err) }) }
	defer func() { judge(verdict) }()
	slow := time.AfterFunc(p.o.SlowAfter, func() {
		judge(errSlow)
		if b.open() {
			// Who waits behind this request is told now, not at its end.
			p.failBehind(leader)
		}
	})
	defer slow.Stop()

	// Not the publishers' contexts: the request is many publishers', and outlives
	// whoever gives up.
	ctx, cancel := context.WithTimeout(p.base, p.o.ProduceTimeout)
	defer cancel()
	start := time.Now()
	_, _, err = p.o.Producer.Produce(ctx, l.partition, records)
	p.metrics.request(len(records), time.Since(start), err)
	verdict = err
	if err == nil {
		p.heard(nil)
	}
	return err
}

// failBehind settles what is queued for a broker that has just been given up.
func (p *Publisher) failBehind(leader int) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for partition, l := range p.lanes {
		if p.leader(partition) == leader {
			l.failQueued(retry.Mark(errOpen, retry.Transient))
		}
	}
}
