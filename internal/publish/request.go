package publish

import (
	"context"
	"sync"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// produce asks the breaker and then Kafka, once. A ticket stands for the
// breaker's leave, if it is the right breaker's.
func (p *Publisher) produce(partition int, records []batch.Record, t *ticket) (base int64, err error) {
	leader := p.leader(partition)
	if leader < 0 {
		return 0, p.reject("no_leader", retry.Mark(errNoLeader, retry.Transient))
	}
	b := p.breakers.of(leader)
	var done func(error)
	if t != nil && t.b == b {
		done = t.take()
	}
	if done == nil {
		if done, err = b.allow(); err != nil {
			return 0, p.reject("breaker_open", retry.Mark(errOpen, retry.Transient))
		}
	}
	// The verdict is given exactly once: when the answer is slow, or when there is
	// one, or when this function ends in any other way.
	verdict := errSlow
	var once sync.Once
	judge := func(err error) { once.Do(func() { done(err) }) }
	defer func() { judge(verdict) }()

	// Not the publishers' contexts: the request is many publishers', and outlives
	// whoever gives up.
	ctx, cancel := context.WithTimeout(p.base, p.o.ProduceTimeout)
	defer cancel()
	slow := time.AfterFunc(p.o.SlowAfter, func() {
		judge(errSlow)
		// Few lanes make few requests: one that stays unanswered counts again.
		for !b.open() && retry.Sleep(ctx, p.o.SlowAfter) {
			if done, err := b.allow(); err == nil {
				done(errSlow)
			}
		}
		if b.open() {
			// Who waits behind this request is told now, not at its end.
			p.failBehind(leader)
		}
	})
	defer slow.Stop()
	start := time.Now()
	base, _, err = p.o.Producer.Produce(ctx, partition, records)
	p.metrics.request(len(records), time.Since(start), err)
	verdict = err
	if err == nil {
		p.heard(nil)
	}
	return base, err
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

// busy reports whether any partition of a broker has a live request on its way.
func (p *Publisher) busy(leader int) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for partition, l := range p.lanes {
		if p.leader(partition) == leader && l.busy() {
			return true
		}
	}
	return false
}
