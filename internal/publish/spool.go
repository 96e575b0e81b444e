package publish

import (
	"context"
	"errors"

	"sluice/pkg/batch"
)

// spool puts on disk what Kafka has not acknowledged of a call, whose wait ended
// because of why. It returns where all of the call's records are then.
func (p *Publisher) spool(ctx context.Context, c *call, records []batch.Record, why error) (batch.Durable, error) {
	rest, indices := p.claim(c, records)
	if len(rest) == 0 {
		return batch.InKafka, nil // it answered just now
	}
	// A crash before Append returns: nothing was answered, the sender comes again.
	// After it: the spool has the records, and whatever Kafka got is a copy.
	first, err := p.o.Spool.Append(ctx, rest)
	if err != nil {
		if c.allLanded() {
			return batch.InKafka, nil
		}
		return "", err
	}
	if n := p.keep(c, records, indices, first); n > 0 {
		p.metrics.spooled.WithLabelValues(reasonOf(why)).Add(float64(n))
		return batch.InSpool, nil
	}
	return batch.InKafka, nil
}

// claim takes over the records that Kafka has not acknowledged: what is queued of
// them is not sent any more. They are held, so that the drain sends none before
// the ledger knows that it is spooled, nor while a request is on its way that may
// still succeed.
func (p *Publisher) claim(c *call, records []batch.Record) (rest []batch.Record, indices []int) {
	c.mu.Lock()
	for i := range c.slots {
		s := &c.slots[i]
		if s.fate != waiting {
			continue
		}
		s.fate, s.held = spooling, true
		p.drain.hold(keyOf(&records[i]))
		r := records[i]
		r.Path = batch.Spool
		rest, indices = append(rest, r), append(indices, i)
	}
	c.mu.Unlock()
	p.sweep(c)
	return rest, indices
}

// keep notes that the claimed records are on disk, and returns how many of them
// are nowhere else for all that is known.
func (p *Publisher) keep(c *call, records []batch.Record, indices []int, first uint64) (kept int) {
	var remove []uint64
	var free []key
	lowest := uint64(none)
	c.mu.Lock()
	for j, i := range indices {
		s := &c.slots[i]
		s.number = first + uint64(j)
		if s.fate == landed { // while the disk was at it
			remove = append(remove, s.number)
		} else {
			s.fate = spooled
			p.o.Ledger.Spooled(&records[i])
			kept++
		}
		if !s.flying {
			s.held = false
			free = append(free, keyOf(&records[i]))
			if s.fate == spooled {
				lowest = min(lowest, s.number)
			}
		}
	}
	c.mu.Unlock()
	if remove != nil {
		p.o.Spool.Remove(remove...)
	}
	p.drain.release(free, lowest)
	return kept
}

// end tells the ledger of what a call leaves behind, whatever way it ended, and
// lets go of it.
func (p *Publisher) end(c *call, records []batch.Record) {
	var free []key
	left := false
	c.mu.Lock()
	for i := range c.slots {
		s := &c.slots[i]
		if s.fate == waiting || s.fate == spooling {
			// The spool may have it after an error all the same: then the drain sends
			// it, a copy of what its sender brings again.
			s.fate, left = voided, true
			p.o.Ledger.Void(&records[i])
		}
		if s.held && s.fate != spooled {
			s.held = false
			free = append(free, keyOf(&records[i]))
		}
	}
	c.mu.Unlock()
	c.ticket.giveBack()
	if left {
		p.sweep(c)
	}
	p.drain.release(free, none)
}

// sweep drops what is queued of a call.
func (p *Publisher) sweep(c *call) {
	var last *lane
	for i := range c.slots {
		if l := c.slots[i].lane; l != nil && l != last {
			l.sweep()
			last = l
		}
	}
}

// reasonOf is a bounded label for why records were spooled.
func reasonOf(err error) string {
	switch {
	case errors.Is(err, errTimeUp):
		return "timeout"
	case errors.Is(err, errBehind):
		return "slow"
	case errors.Is(err, errOpen):
		return "breaker_open"
	case errors.Is(err, errNoLeader):
		return "no_leader"
	case errors.Is(err, errNoTopic):
		return "no_topic"
	case errors.Is(err, errQueueFull):
		return "queue_full"
	case errors.Is(err, errClosed):
		return "closed"
	}
	return "failed"
}
