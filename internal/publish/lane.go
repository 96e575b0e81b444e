package publish

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"sluice/pkg/batch"
)

// entry is one record that is queued.
type entry struct {
	record batch.Record
	owner
	size int64
}

// owner is whose record it is, and which of that call's.
type owner struct {
	call  *call
	index int
}

// group is what one request carries: the records, and whose they are.
type group struct {
	records []batch.Record
	owners  []owner
}

func (g group) slice(from, to int) group {
	return group{g.records[from:to], g.owners[from:to]}
}

// refusal is an error that says: none of the records was written, because of
// what they are.
type refusal interface {
	error
	Refused() []int
}

func isRefusal(err error) bool {
	var refused refusal
	return errors.As(err, &refused)
}

// lane is the queue of one partition. While a request is in flight the next
// records gather, so a group is as large as the load makes it and nobody waits
// for company.
type lane struct {
	p         *Publisher
	partition int

	mu      sync.Mutex // guards what follows; never held over I/O
	bytes   int64      // queued and in flight
	queue   []entry    // those before head are taken
	head    int
	senders int
	taken   time.Time     // when a sender last got a group
	idle    chan struct{} // closed while there is no sender; else made anew
}

func newLane(p *Publisher, partition int) *lane {
	l := &lane{p: p, partition: partition, idle: make(chan struct{})}
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

// stuck reports whether what is on its way has had no answer for so long that
// whoever queues behind it would wait in vain.
func (l *lane) stuck(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.senders == l.p.o.InFlight && now.Sub(l.taken) > l.p.o.AckTimeout
}

// add queues a record and sees to it that somebody sends it. p.mu is held for
// reading: no sender starts once the Publisher is closed.
func (l *lane) add(e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes += e.size
	l.queue = append(l.queue, e)
	if l.senders < l.p.o.InFlight {
		if l.senders == 0 {
			l.idle = make(chan struct{})
		}
		l.senders++
		l.taken = time.Now()
		l.p.wg.Go(l.run)
	}
}

// run sends until nothing is queued.
func (l *lane) run() {
	var g group
	for {
		g = l.take(g)
		if len(g.records) == 0 {
			return
		}
		l.p.send(l, g)
		// Nobody has a reference to the group itself: a request that is still on its way
		// has the records' bytes laid out for itself.
		clear(g.records)
		clear(g.owners)
	}
}

// take hands out the next group, in the memory of the one before; an empty one when
// there is none, and then the sender ends. Records that nobody waits for any more are dropped: they are in
// the spool, or their sender was told that they are not safe.
func (l *lane) take(last group) group {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		n, size := 0, int64(0)
		for ; l.head+n < len(l.queue) && n < l.p.o.GroupRecords; n++ {
			size += l.queue[l.head+n].size
			if n > 0 && size > l.p.o.GroupBytes {
				break
			}
		}
		if n == 0 {
			if l.senders--; l.senders == 0 {
				close(l.idle)
			}
			return group{}
		}
		g := group{last.records[:0], last.owners[:0]}
		if cap(g.records) < n {
			g = group{make([]batch.Record, 0, n), make([]owner, 0, n)}
		}
		for range n {
			e := l.pop()
			if !e.call.fly(e.index) {
				l.give(e.size)
				continue
			}
			g.records = append(g.records, e.record)
			g.owners = append(g.owners, e.owner)
		}
		if len(g.records) > 0 {
			l.taken = time.Now()
			return g
		}
	}
}

// pop takes the first entry out of the queue. l.mu is held.
func (l *lane) pop() entry {
	e := l.queue[l.head]
	l.queue[l.head] = entry{}
	l.head++
	const spare = 1024
	switch n := len(l.queue) - l.head; {
	case n == 0 && l.head > spare:
		l.queue, l.head = nil, 0
	case n == 0:
		l.queue, l.head = l.queue[:0], 0
	case l.head > spare && l.head > 2*n:
		// An array no larger than what waits needs, and the copying is paid for by
		// those that were taken since the last time.
		l.queue, l.head = append(make([]entry, 0, 2*n), l.queue[l.head:]...), 0
	}
	return e
}

// sweep drops what nobody waits for any more from the front of the queue, where
// it is: everybody waits about as long.
func (l *lane) sweep() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.head < len(l.queue) {
		if e := &l.queue[l.head]; e.call.waits(e.index) {
			return
		}
		l.give(l.pop().size)
	}
}

// give gives bytes back. l.mu is held.
func (l *lane) give(bytes int64) {
	l.bytes -= bytes
	l.p.queued.Add(-bytes)
}

// failQueued settles what is queued and not in flight.
func (l *lane) failQueued(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.head < len(l.queue) {
		e := l.pop()
		l.give(e.size)
		e.call.fail(e.index, err)
	}
}

// busy reports whether a request is on its way or about to be.
func (l *lane) busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.senders > 0
}

// drained waits until nothing is queued or in flight, or ctx ends.
func (l *lane) drained(ctx context.Context) {
	l.mu.Lock()
	idle := l.idle
	l.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// land settles a group that Kafka has.
func (l *lane) land(g group, base int64) {
	l.giveBack(g)
	var remove []uint64
	var held []key
	late := 0
	for i, o := range g.owners {
		before, number := o.call.land(o.index, &g.records[i], l.partition, base+int64(i))
		switch before {
		case spooled:
			// The disk has a copy that need not be sent. A crash before it is removed:
			// it is sent, and recognised.
			remove = append(remove, number)
			held = append(held, keyOf(&g.records[i]))
			late++
		case voided:
			late++
		}
	}
	if late > 0 {
		l.p.metrics.late.Add(float64(late))
	}
	if remove != nil {
		l.p.o.Spool.Remove(remove...)
		l.p.drain.release(held, none)
	}
}

// fail settles a group that Kafka may not have. What the spool has of it is the
// drain's from now on.
func (l *lane) fail(g group, err error) {
	l.giveBack(g)
	lowest := uint64(none)
	var held []key
	for i, o := range g.owners {
		if f, number := o.call.fail(o.index, err); f == spooled {
			lowest = min(lowest, number)
			held = append(held, keyOf(&g.records[i]))
		}
	}
	if held != nil {
		l.p.drain.release(held, lowest)
	}
}

// giveBack gives a group's bytes back.
func (l *lane) giveBack(g group) {
	size := int64(0)
	for i := range g.records {
		size += int64(g.records[i].Size())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.give(size)
}

// none is no number in the spool.
const none = math.MaxUint64

// send makes one request of a group and settles it. A group that is refused is
// taken apart, so that a record Kafka will not have fails alone.
func (p *Publisher) send(l *lane, g group) {
	base, err := p.produce(l.partition, g.records, g.ticket())
	var refused refusal
	switch {
	case err == nil:
		l.land(g, base)
		return
	case !errors.As(err, &refused) || len(g.records) == 1:
		l.fail(g, err)
		return
	}
	bad, good := split(g, refused.Refused())
	if len(bad.records) > 0 {
		l.fail(bad, err)
		if len(good.records) > 0 {
			p.send(l, good)
		}
		return
	}
	// Kafka does not say which, or it is the sum: halve. At most twice as many
	// requests as records.
	half := len(g.records) / 2
	p.send(l, g.slice(0, half))
	p.send(l, g.slice(half, len(g.records)))
}

// split tells the guilty of a group from the others.
func split(g group, guilty []int) (bad, good group) {
	is := map[int]bool{}
	for _, i := range guilty {
		is[i] = true
	}
	for i := range g.records {
		to := &good
		if is[i] {
			to = &bad
		}
		to.records = append(to.records, g.records[i])
		to.owners = append(to.owners, g.owners[i])
	}
	return bad, good
}

// ticket is the one that a record of the group brought, if any.
func (g group) ticket() *ticket {
	for _, o := range g.owners {
		if o.call.ticket != nil {
			return o.call.ticket
		}
	}
	return nil
}
