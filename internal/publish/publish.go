// Package publish makes records durable. It gathers what many requests bring
// into few Kafka requests (one lane a partition), tries each once, and stops asking
// a broker that does not answer (a circuit breaker a partition leader). What Kafka
// does not take soon goes to the spool, which is drained beside the live traffic,
// oldest first, each leader by itself; where there is no spool either, it says so
// at once. It never claims a record before all in-sync replicas have it, or the
// disk.
package publish

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

var (
	errClosed    = errors.New("the collector is stopping")
	errQueueFull = errors.New("too many bytes wait for Kafka")
	errOpen      = errors.New("the broker does not answer and is left alone for a while")
	errNoLeader  = errors.New("the partition has no leader")
	errNoTopic   = errors.New("the topic is not in reach")
	errUnseen    = errors.New("it was not seen yet")
	errBehind    = errors.New("what was sent before has had no answer for too long")
	errNoProbe   = errors.New("no answer from Kafka yet")
	errTimeUp    = errors.New("not durable yet when the time was up")
	errSlow      = errors.New("slow answer")
)

// Publisher implements ingest.Publisher. Close it.
type Publisher struct {
	o        Options
	metrics  *metrics
	breakers *breakers
	drain    *drain
	queued   atomic.Int64 // bytes
	started  time.Time
	base     context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup // senders, the prober and the drain
	probed   atomic.Pointer[probe]

	calls   atomic.Int64  // of Publish, in progress
	closing atomic.Bool   // closed, for those that leave
	quiet   chan struct{} // closed when the last call has left after Close was called
	quieten sync.Once

	timers timers

	mu     sync.RWMutex // held for reading while records are put into lanes
	closed bool
	lanes  map[int]*lane // one a partition; only grows, and not once closed
}

// timers are those that nobody uses: each call needs one.
type timers struct{ idle sync.Pool }

func (s *timers) get(d time.Duration) *time.Timer {
	if t, ok := s.idle.Get().(*time.Timer); ok {
		t.Reset(d)
		return t
	}
	return time.NewTimer(d)
}

// put takes a timer back. Once it is stopped, nothing comes out of it any more.
func (s *timers) put(t *time.Timer) {
	t.Stop()
	s.idle.Put(t)
}

// probe is what was last heard of Kafka.
type probe struct {
	err error
	at  time.Time
}

// New checks the options and starts asking for Kafka, and draining the spool, in
// the background. It does not wait for either.
func New(o Options) (*Publisher, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	p := &Publisher{o: o, lanes: map[int]*lane{}, quiet: make(chan struct{}), started: time.Now()}
	p.base, p.cancel = context.WithCancel(context.Background())
	p.breakers = newBreakers(o)
	p.drain = newDrain(p)
	p.metrics = newMetrics(o.Registerer, p)
	p.probed.Store(&probe{err: errNoProbe})
	p.wg.Go(p.watch)
	p.wg.Go(p.drain.run)
	return p, nil
}

// Publish returns nil when every record is on all in-sync replicas, or in the
// spool, and says which (InSpool where at least one is only there). After an error
// none is claimed, and some may get there all the same: a request that timed out
// may still succeed, and what was queued when ctx ended may just have been sent.
// Copies are recognised by their identity further down. The records' values belong
// to the Publisher from then on.
//
// The error's class says what the sender may do: Permanent means that Kafka
// refuses a record of this batch for what it is. Everything else (Transient,
// Throttled, Shutdown) is worth sending again; such an error knows when, by
// RetryAfter, with jitter.
func (p *Publisher) Publish(ctx context.Context, records []batch.Record) (batch.Durable, error) {
	if len(records) == 0 {
		return batch.InKafka, nil
	}
	c := newCall(len(records), p.o.Ledger)
	err := retry.Mark(errClosed, retry.Shutdown)
	entered := p.enter()
	// Also after a panic: every record's fate is told.
	defer func() {
		p.end(c, records)
		if entered {
			p.leave()
		}
	}()
	if !entered {
		return "", p.comeBack(p.reject("closed", err), records)
	}
	if err = p.toKafka(ctx, c, records); err == nil {
		return batch.InKafka, nil
	}
	if isRefusal(err) {
		return "", retry.Mark(err, retry.Permanent)
	}
	if p.o.Spool != nil && ctx.Err() == nil && p.base.Err() == nil {
		where, serr := p.spool(ctx, c, records, err)
		if serr == nil {
			return where, nil
		}
		err = fmt.Errorf("%w; spool: %w", err, serr)
	}
	return "", p.comeBack(err, records)
}

// comeBack says that the records are not kept, and when to bring them again.
func (p *Publisher) comeBack(err error, records []batch.Record) error {
	class := retry.ClassOf(err)
	if class == retry.Permanent {
		// A right or a setting is wrong on our side. That gets mended, and then the
		// batch can go.
		class = retry.Transient
	}
	after := max(retry.After(err), time.Second) + rand.N(p.o.OpenFor)
	return retry.MarkAfter(fmt.Errorf("publish %d records: %w", len(records), err), class, after)
}

// enter lets a call in, until Close.
func (p *Publisher) enter() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return false
	}
	p.calls.Add(1)
	return true
}

func (p *Publisher) leave() {
	if p.calls.Add(-1) == 0 && p.closing.Load() {
		p.quieten.Do(func() { close(p.quiet) })
	}
}

// toKafka queues the records and waits for what becomes of them.
func (p *Publisher) toKafka(ctx context.Context, c *call, records []batch.Record) error {
	var up <-chan time.Time
	if p.o.Spool != nil {
		t := p.timers.get(p.o.AckTimeout)
		defer p.timers.put(t)
		up = t.C
	}
	var few [4]int // mostly there is one
	partitions, err := p.place(ctx, few[:0], records)
	if err != nil {
		return p.reject("no_topic", fmt.Errorf("%w: %w", errNoTopic, err))
	}
	if err := p.queue(c, records, partitions); err != nil {
		return err
	}
	for {
		select {
		case <-c.done:
			return c.why()
		case <-ctx.Done():
			err = ctx.Err()
		case <-up:
			up = nil
			if p.o.Spool.Ready() != nil {
				continue // slow, but the only way
			}
			err = context.DeadlineExceeded
		}
		select {
		case <-c.done: // both at once: the better news counts
			return c.why()
		default:
		}
		if why := c.why(); isRefusal(why) {
			return why
		}
		return fmt.Errorf("%w: %w", errTimeUp, err)
	}
}

// place finds the records' partitions.
func (p *Publisher) place(ctx context.Context, partitions []int, records []batch.Record) ([]int, error) {
	if p.o.Spool != nil && p.o.Producer.Leaders() == nil {
		if time.Since(p.started) > p.o.AckTimeout {
			return nil, errUnseen // the prober looks for it, nobody waits for that
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.o.AckTimeout)
		defer cancel()
	}
	for i := range records {
		if i > 0 && records[i].BatchID == records[i-1].BatchID {
			partitions = append(partitions, partitions[i-1])
			continue
		}
		partition, err := p.o.Producer.Partition(ctx, records[i].BatchID)
		if err != nil {
			return nil, err
		}
		partitions = append(partitions, partition)
	}
	return partitions, nil
}

// queue puts all of the records into their lanes, or none.
func (p *Publisher) queue(c *call, records []batch.Record, partitions []int) error {
	p.prepare(partitions)
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return p.reject("closed", retry.Mark(errClosed, retry.Shutdown))
	}
	size := int64(0)
	for i := range records {
		size += int64(records[i].Size())
		if i == 0 || partitions[i] != partitions[i-1] {
			if reason, err := p.reachable(c, partitions[i]); err != nil {
				return p.reject(reason, err)
			}
		}
	}
	// Nothing queued: one batch must be possible, however large.
	if n := p.queued.Add(size); n > p.o.QueueBytes && n != size {
		p.queued.Add(-size)
		return p.reject("queue_full", retry.Mark(errQueueFull, retry.Throttled))
	}
	for i := range records {
		if i > 0 && partitions[i] == partitions[i-1] {
			continue
		}
		l := p.lanes[partitions[i]]
		if l.full(size) {
			p.queued.Add(-size)
			return p.reject("queue_full", retry.Mark(errQueueFull, retry.Throttled))
		}
		if p.o.Spool != nil && l.stuck(time.Now()) && p.o.Spool.Ready() == nil {
			p.queued.Add(-size)
			return p.reject("slow", retry.Mark(errBehind, retry.Transient))
		}
	}
	for i := range records {
		// The first of them may be on its way already.
		c.slots[i].lane = p.lanes[partitions[i]]
	}
	for i := range records {
		c.slots[i].lane.add(entry{record: records[i], owner: owner{c, i}, size: int64(records[i].Size())})
	}
	return nil
}

// reachable says at once what a request would only find out. Where a broker may
// be back and the drain has nothing to try it with, the call gets the leave to do
// so; everybody else goes to the spool meanwhile.
func (p *Publisher) reachable(c *call, partition int) (reason string, err error) {
	leader := p.leader(partition)
	if leader < 0 {
		return "no_leader", retry.Mark(errNoLeader, retry.Transient)
	}
	b := p.breakers.get(leader)
	if b == nil {
		return "", nil
	}
	switch b.cb.State() {
	case gobreaker.StateClosed:
		return "", nil
	case gobreaker.StateHalfOpen:
		if p.o.Spool == nil {
			return "", nil
		}
		if c.ticket != nil && c.ticket.b == b {
			return "", nil
		}
		if c.ticket == nil && p.drain.idle(leader) {
			if done, err := b.allow(); err == nil {
				c.ticket = &ticket{b: b}
				c.ticket.done.Store(&done)
				return "", nil
			}
		}
	}
	return "breaker_open", retry.Mark(errOpen, retry.Transient)
}

func (p *Publisher) leader(partition int) int {
	leaders := p.o.Producer.Leaders()
	if partition < 0 || partition >= len(leaders) {
		return -1
	}
	return leaders[partition]
}

func (p *Publisher) reject(reason string, err error) error {
	p.metrics.rejected.WithLabelValues(reason).Inc()
	return err
}

// prepare makes the lanes that are not there yet.
func (p *Publisher) prepare(partitions []int) {
	p.mu.RLock()
	missing := slices.ContainsFunc(partitions, func(id int) bool { return p.lanes[id] == nil })
	p.mu.RUnlock()
	if !missing {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range partitions {
		if p.lanes[id] == nil && !p.closed {
			p.lanes[id] = newLane(p, id)
		}
	}
}

// Ready returns nil while something durable is in reach: a spool, or a Kafka
// that answered when it was last asked and has a partition leader that is not
// being left alone.
func (p *Publisher) Ready() error {
	p.mu.RLock()
	closed := p.closed
	p.mu.RUnlock()
	if closed {
		return errClosed
	}
	err := p.kafkaReady()
	if err != nil && p.o.Spool != nil {
		if serr := p.o.Spool.Ready(); serr != nil {
			return fmt.Errorf("%w; spool: %w", err, serr)
		}
		return nil
	}
	return err
}

func (p *Publisher) kafkaReady() error {
	if err := p.probed.Load().err; err != nil {
		return err
	}
	leaders := p.o.Producer.Leaders()
	if leaders == nil {
		return nil // never asked for yet; the probe has seen one
	}
	err := errNoLeader
	for _, leader := range leaders {
		if leader < 0 {
			continue
		}
		if b := p.breakers.get(leader); b == nil || !b.open() {
			return nil
		}
		err = errOpen
	}
	return err
}

// watch asks for Kafka: soon again while it is not ready, seldom while it is, not
// at all while requests succeed. While it is not ready nobody else asks: Ready
// turns requests away before they come to Publish.
func (p *Publisher) watch() {
	wait := p.o.ProbeEvery
	for {
		if last := p.probed.Load(); p.kafkaReady() != nil || time.Since(last.at) >= 4*wait {
			ctx, cancel := context.WithTimeout(p.base, p.o.ProduceTimeout)
			err := p.o.Producer.Probe(ctx)
			cancel()
			if p.base.Err() != nil {
				return
			}
			// A request that succeeded meanwhile knows better than a probe that failed,
			// perhaps at a broker that leads nothing.
			if err == nil || p.probed.Load() == last {
				p.heard(err)
			}
		}
		if !retry.Sleep(p.base, wait/2+rand.N(wait/2+1)) {
			return
		}
	}
}

// goodNews is how often it is worth noting that all is well still.
const goodNews = 100 * time.Millisecond

// heard keeps the news, and logs where it is news.
func (p *Publisher) heard(err error) {
	now := time.Now()
	if last := p.probed.Load(); err == nil && last.err == nil && now.Sub(last.at) < min(goodNews, p.o.ProbeEvery/8) {
		return
	}
	last := p.probed.Swap(&probe{err: err, at: now})
	switch {
	case err == nil && last.err != nil:
		p.o.Log.Info("Kafka is in reach")
	case err != nil && (last.err == nil || last.err == errNoProbe):
		p.o.Log.Warn("Kafka is not in reach", "error", err)
	}
}

// Close takes nothing more, stops the drain, and waits until everybody who waits
// for a record to become durable has an answer, or ctx ends; then it gives up on
// the rest: their publishers get a Shutdown error. Requests that nobody waits for
// (their records are in the spool, or their senders were told) have a moment to
// end. No goroutine of the Publisher is left when it returns. It returns nil when
// nothing was given up.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	lanes := p.lanes
	p.mu.Unlock()
	p.closing.Store(true)
	p.drain.stop()
	if p.calls.Load() == 0 {
		p.quieten.Do(func() { close(p.quiet) })
	}
	var err error
	select {
	case <-p.quiet:
		// Cut off now, they might be sent once more by the next process: a copy each.
		moment, cancel := context.WithTimeout(ctx, p.o.SlowAfter)
		defer cancel()
		p.drain.ended(moment)
		for _, l := range lanes {
			l.drained(moment)
		}
	case <-ctx.Done():
		err = retry.Mark(fmt.Errorf("flush to Kafka: %w", ctx.Err()), retry.Shutdown)
	}
	p.cancel()
	for _, l := range lanes {
		l.failQueued(retry.Mark(errClosed, retry.Shutdown))
	}
	p.wg.Wait()
	return err
}
