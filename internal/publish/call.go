package publish

import (
	"errors"
	"sync"
	"sync/atomic"

	"sluice/pkg/batch"
)

// fate is what became of a record. It leaves waiting and spooling once, together
// with the one word the ledger gets of it.
type fate uint8

const (
	waiting  fate = iota // for Kafka
	spooling             // on its way to the disk; nobody sends it any more who does not already
	landed               // Ledger.InKafka was told
	spooled              // Ledger.Spooled was told
	voided               // Ledger.Void was told
)

// slot is one record of a call.
type slot struct {
	fate   fate
	flying bool   // a request that has it is on its way
	held   bool   // the drain may not send it
	number uint64 // in the spool, when spooled
	lane   *lane  // where it was queued; nil: nowhere
}

// call is one Publish. It is done when no record of it is queued or on its way.
type call struct {
	ledger Ledger
	done   chan struct{}
	ticket *ticket // set before its records are queued

	mu    sync.Mutex // guards what follows; taken under a lane's lock, not around it
	left  int        // records not settled yet
	err   error      // a refusal, or else the first one
	slots []slot
	one   [1]slot
}

func newCall(records int, l Ledger) *call {
	c := &call{ledger: l, left: records, done: make(chan struct{})}
	if c.slots = c.one[:]; records != 1 {
		c.slots = make([]slot, records)
	}
	return c
}

// fly reports whether a record is still to be sent, and says that it is on its
// way.
func (c *call) fly(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.slots[i]
	if s.fate != waiting {
		return false
	}
	s.flying = true
	return true
}

// waits reports whether a record is still to be sent.
func (c *call) waits(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slots[i].fate == waiting
}

// land settles a record that Kafka has. It returns what had become of it before,
// and its number where that is spooled.
func (c *call) land(i int, r *batch.Record, partition int, offset int64) (before fate, number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.slots[i]
	s.flying = false
	before = s.fate
	if before == waiting || before == spooling {
		s.fate = landed
	}
	c.ledger.InKafka(r, partition, offset)
	c.settle(nil)
	return before, s.number
}

// fail settles a record that Kafka may not have. It returns what has become of it,
// and its number where that is spooled.
func (c *call) fail(i int, err error) (fate, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.slots[i]
	s.flying = false
	c.settle(err)
	return s.fate, s.number
}

// settle counts a record. c.mu is held.
func (c *call) settle(err error) {
	if err != nil && (c.err == nil || isRefusal(err)) {
		c.err = err
	}
	if c.left--; c.left == 0 {
		close(c.done)
	}
}

// why is the error so far.
func (c *call) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// allLanded reports whether Kafka has every record.
func (c *call) allLanded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.slots {
		if c.slots[i].fate != landed {
			return false
		}
	}
	return true
}

// ticket is the leave to send one request to a broker that may be back.
type ticket struct {
	b    *breaker
	done atomic.Pointer[func(error)]
}

// take returns how to report what became of the request; nil when somebody else
// has taken it.
func (t *ticket) take() func(error) {
	if t == nil {
		return nil
	}
	if done := t.done.Swap(nil); done != nil {
		return *done
	}
	return nil
}

// errUnused says that no request was made after all.
var errUnused = errors.New("not sent")

// giveBack lets somebody else have it, unless it is in use.
func (t *ticket) giveBack() {
	if done := t.take(); done != nil {
		done(errUnused)
	}
}
