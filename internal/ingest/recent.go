package ingest

import (
	"sync"
	"time"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// outcome is what became of a batch: either a result or a problem. It owns its
// memory, and is never changed once it is shared.
type outcome struct {
	result  protocol.Result
	problem *protocol.Problem // every event rejected, or a failure
	failed  bool              // not durable: the next copy is tried afresh
}

// answer is what a copy of the batch is told.
func (o *outcome) answer() (protocol.Result, *protocol.Problem) {
	if o.problem != nil {
		p := *o.problem
		return protocol.Result{}, &p
	}
	r := o.result
	r.Duplicate = true
	return r, nil
}

// listCost is what a list of rejected events takes up in memory, without Bytes.
func listCost(rs []schema.Rejected) int64 {
	var n int64
	for i := range rs {
		n += int64(104 + len(rs[i].Field) + len(rs[i].Message))
	}
	return n
}

func (o *outcome) cost() int64 {
	const attempt = 224 // with its place in the map
	n := attempt + listCost(o.result.Rejected)
	if o.problem != nil {
		n += 160 + listCost(o.problem.Rejected)
	}
	return n
}

// attempt is one batch being published, or one that was.
type attempt struct {
	id      batch.ID
	digest  batch.Digest
	over    bool          // outcome is set
	done    chan struct{} // closed when it is; nil: nobody waits for it, or it is over
	outcome outcome       // read only once it is over
	expires time.Time
	cost    int64
	next    *attempt // the one that was finished after it
}

// recent remembers batches by identity, so that a copy of one in flight shares
// its outcome and a copy of one that is safe is answered without another record.
// It is only a shortcut: what it forgets, the sink recognises. What is in flight
// is bounded by the requests in flight; what is remembered by count, bytes, age.
type recent struct {
	maxCount int
	maxBytes int64
	maxAge   time.Duration

	mu             sync.Mutex
	byID           map[batch.ID]*attempt
	oldest, newest *attempt // those that are done, in the order they were finished
	count          int      // of them
	bytes          int64    // of them
}

func newRecent(count int, bytes int64, age time.Duration) *recent {
	return &recent{maxCount: count, maxBytes: bytes, maxAge: age, byID: map[batch.ID]*attempt{}}
}

// begin returns the attempt for the batch. With first true it is the caller's to
// publish and to finish, whatever happens. Otherwise it is another request's:
// its outcome may be read when done is closed, or at once where done is nil.
func (r *recent) begin(id batch.ID, d batch.Digest) (a *attempt, done <-chan struct{}, first bool) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire(now)
	if a := r.byID[id]; a != nil {
		if a.done == nil && !a.over {
			a.done = make(chan struct{})
		}
		return a, a.done, false
	}
	a = &attempt{id: id, digest: d}
	r.byID[id] = a
	return a, nil, true
}

// finish sets the outcome and wakes who waits for it. A failed attempt is
// forgotten in the same step, so that a copy which comes now tries again instead
// of being called a duplicate of something that was never kept.
func (r *recent) finish(a *attempt, o outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a.outcome = o
	a.over = true
	if a.done != nil {
		close(a.done)
		a.done = nil
	}
	a.cost = o.cost()
	if o.failed || a.cost > r.maxBytes/8 {
		delete(r.byID, a.id)
		return
	}
	now := time.Now()
	a.expires = now.Add(r.maxAge)
	if r.newest == nil {
		r.oldest = a
	} else {
		r.newest.next = a
	}
	r.newest = a
	r.count++
	r.bytes += a.cost
	r.expire(now)
}

// expire drops what is too old or too much. r.mu is held.
func (r *recent) expire(now time.Time) {
	for a := r.oldest; a != nil; a = r.oldest {
		if r.count <= r.maxCount && r.bytes <= r.maxBytes && now.Before(a.expires) {
			return
		}
		if r.oldest = a.next; r.oldest == nil {
			r.newest = nil
		}
		a.next = nil
		r.count--
		r.bytes -= a.cost
		delete(r.byID, a.id)
	}
}

// size returns how many batches are remembered or in flight.
func (r *recent) size() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.byID)
}
