// Package publish makes records durable. It gathers what many requests bring
// into few Kafka requests (one lane a partition), tries each once, stops asking a
// broker that does not answer (a circuit breaker a partition leader), and says at
// once when nothing durable is in reach. It never claims a record before all
// in-sync replicas have it.
package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// Producer is Kafka as this package needs it. Its errors are classified
// (sluice/pkg/retry). Called concurrently.
type Producer interface {
	// Partition is where a batch's records go. It may wait for ctx before the topic
	// was ever seen, and does no I/O after that.
	Partition(ctx context.Context, id batch.ID) (int, error)
	// Leaders are the brokers that lead the partitions, by partition; -1: none.
	// Nil before the topic was ever seen. No I/O.
	Leaders() []int
	// Produce writes records to a partition, in order, and returns nil when all
	// in-sync replicas have them. It tries once and returns soon after ctx has
	// ended. After an error they may be written all the same, now or later, unless
	// the error has a method Refused() []int: then none was written, because of the
	// records themselves; the indices at fault are listed where they are known. An
	// error with a method Moved() comes from a broker that is well and does not lead
	// the partition any more.
	Produce(ctx context.Context, partition int, records []batch.Record) (base int64, at time.Time, err error)
	// Probe asks a broker, not a cache, whether the topic can be written to. What it
	// saw of the leaders is what Leaders returns from then on.
	Probe(ctx context.Context) error
}

// Spool is the collector's disk: where records go that Kafka cannot take now.
type Spool interface {
	// Append keeps the records and returns nil when they survive a kill -9 and a
	// power loss: files and directories are fsynced. They reach Kafka later,
	// possibly as copies of records that got there by themselves. After an error
	// nothing is claimed. It does not keep the records' memory. Called concurrently.
	Append(ctx context.Context, records []batch.Record) error
	// Ready returns nil while Append may succeed.
	Ready() error
}

// Options are what a Publisher is made of. Every zero field but Producer gets
// its default.
type Options struct {
	Producer Producer
	Spool    Spool // nil: none, what Kafka cannot take is an error

	AckTimeout     time.Duration // only with a Spool: how long Kafka is waited for before a batch is spooled; default 250 ms
	ProduceTimeout time.Duration // one request to Kafka; default 10 s
	SlowAfter      time.Duration // a request still unanswered by then counts against its broker; default 5 s, 1 s with a Spool
	OpenFor        time.Duration // how long a broker is left alone; default 5 s
	GroupRecords   int           // records in a request at most; default 1,000
	GroupBytes     int64         // their bytes, uncompressed; default 900 KiB: what a topic takes (1 MiB) less headers
	InFlight       int           // requests of one partition at once; default 1, which keeps their order (2 and 4 were no faster, and cost 5 and 15 % more CPU)
	QueueBytes     int64         // held for all partitions; default 64 MiB
	LaneBytes      int64         // held for one partition, so that one leader's trouble leaves room; default 16 MiB
	ProbeEvery     time.Duration // how often Kafka is asked, at most, while it is not ready; default 2 s, four to five times that while it is

	Log        *slog.Logger
	Registerer prometheus.Registerer
}

func (o *Options) defaults() error {
	if o.Producer == nil {
		return errors.New("publish: a producer is required")
	}
	or(&o.AckTimeout, 250*time.Millisecond)
	or(&o.ProduceTimeout, 10*time.Second)
	if o.Spool != nil {
		or(&o.SlowAfter, time.Second)
	}
	or(&o.SlowAfter, 5*time.Second)
	or(&o.OpenFor, 5*time.Second)
	or(&o.GroupRecords, 1000)
	or(&o.GroupBytes, 900<<10)
	or(&o.InFlight, 1)
	or(&o.QueueBytes, 64<<20)
	or(&o.LaneBytes, 16<<20)
	or(&o.ProbeEvery, 2*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Registerer == nil {
		o.Registerer = prometheus.NewRegistry()
	}
	return nil
}

func or[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

var (
	errClosed    = errors.New("the collector is stopping")
	errQueueFull = errors.New("too many bytes wait for Kafka")
	errOpen      = errors.New("the broker does not answer and is left alone for a while")
	errNoLeader  = errors.New("the partition has no leader")
	errNoProbe   = errors.New("no answer from Kafka yet")
	errTimeUp    = errors.New("not durable yet when the time was up")
	errSlow      = errors.New("slow answer")
)

// Publisher implements ingest.Publisher. Close it.
type Publisher struct {
	o        Options
	metrics  *metrics
	breakers *breakers
	queued   atomic.Int64 // bytes
	base     context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup // senders and the prober
	probed   atomic.Pointer[probe]

	mu     sync.RWMutex // held for reading while records are put into lanes
	closed bool
	lanes  map[int]*lane // one a partition; only grows, and not once closed
}

// probe is what was last heard of Kafka.
type probe struct {
	err error
	at  time.Time
}

// New checks the options and starts asking for Kafka in the background. It does
// not wait for it.
func New(o Options) (*Publisher, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	p := &Publisher{o: o, lanes: map[int]*lane{}}
	p.base, p.cancel = context.WithCancel(context.Background())
	p.breakers = newBreakers(o)
	p.metrics = newMetrics(o.Registerer, p)
	p.probed.Store(&probe{err: errNoProbe})
	p.wg.Go(p.watch)
	return p, nil
}

// Publish returns nil when every record is on all in-sync replicas, or in the
// spool, and says which. After an error none is claimed, and some may get there
// all the same: a request that timed out may still succeed, and what was queued
// when ctx ended may just have been sent. Copies are recognised by their
// identity further down.
//
// The error's class says what the sender may do: Permanent means that Kafka
// refuses a record of this batch for what it is. Everything else (Transient,
// Throttled, Shutdown) is worth sending again; such an error knows when, by
// RetryAfter, with jitter.
func (p *Publisher) Publish(ctx context.Context, records []batch.Record) (batch.Durable, error) {
	if len(records) == 0 {
		return batch.InKafka, nil
	}
	err := p.toKafka(ctx, records)
	if err == nil {
		return batch.InKafka, nil
	}
	var refused refusal
	if errors.As(err, &refused) {
		return "", retry.Mark(err, retry.Permanent)
	}
	if p.o.Spool != nil {
		// A crash before Append returns: nothing was answered, the sender comes again.
		// After it: the spool has the records, and whatever Kafka got is a copy.
		serr := p.o.Spool.Append(ctx, records)
		if serr == nil {
			return batch.InSpool, nil
		}
		err = fmt.Errorf("%w; spool: %w", err, serr)
	}
	class := retry.ClassOf(err)
	if class == retry.Permanent {
		// A right or a setting is wrong on our side. That gets mended, and then the
		// batch can go.
		class = retry.Transient
	}
	after := max(retry.After(err), time.Second) + rand.N(p.o.OpenFor)
	return "", retry.MarkAfter(fmt.Errorf("publish %d records: %w", len(records), err), class, after)
}

// toKafka queues the records and waits for what becomes of them.
func (p *Publisher) toKafka(ctx context.Context, records []batch.Record) error {
	if p.o.Spool != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.o.AckTimeout)
		defer cancel()
	}
	partitions := make([]int, len(records))
	for i := range records {
		var err error
		if i > 0 && records[i].BatchID == records[i-1].BatchID {
			partitions[i] = partitions[i-1]
		} else if partitions[i], err = p.o.Producer.Partition(ctx, records[i].BatchID); err != nil {
			return p.reject("no_topic", err)
		}
	}
	c := &call{ctx: ctx, left: len(records), done: make(chan struct{})}
	if err := p.queue(c, records, partitions); err != nil {
		return err
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
	}
	select {
	case <-c.done: // both at once: the better news counts
		return c.err
	default:
		return fmt.Errorf("%w: %w", errTimeUp, ctx.Err())
	}
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
			if reason, err := p.reachable(partitions[i]); err != nil {
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
		if p.lanes[partitions[i]].full(size) {
			p.queued.Add(-size)
			return p.reject("queue_full", retry.Mark(errQueueFull, retry.Throttled))
		}
	}
	now := time.Now()
	for i := range records {
		p.lanes[partitions[i]].add(entry{record: records[i], call: c, size: int64(records[i].Size())}, now)
	}
	return nil
}

// reachable says at once what a request would only find out.
func (p *Publisher) reachable(partition int) (reason string, err error) {
	leader := p.leader(partition)
	if leader < 0 {
		return "no_leader", retry.Mark(errNoLeader, retry.Transient)
	}
	if b := p.breakers.get(leader); b != nil && b.open() {
		return "breaker_open", retry.Mark(errOpen, retry.Transient)
	}
	return "", nil
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

// heard keeps the news, and logs where it is news.
func (p *Publisher) heard(err error) {
	last := p.probed.Swap(&probe{err: err, at: time.Now()})
	switch {
	case err == nil && last.err != nil:
		p.o.Log.Info("Kafka is in reach")
	case err != nil && (last.err == nil || last.err == errNoProbe):
		p.o.Log.Warn("Kafka is not in reach", "error", err)
	}
}

// Close takes nothing more, waits for what is queued and in flight until ctx
// ends, then gives up on the rest: their publishers get a Shutdown error. No
// goroutine is left when it returns. It returns nil when nothing was given up.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	lanes := p.lanes
	p.mu.Unlock()
	var err error
	for _, l := range lanes {
		if !l.drained(ctx) {
			err = retry.Mark(fmt.Errorf("flush to Kafka: %w", ctx.Err()), retry.Shutdown)
		}
	}
	p.cancel()
	for _, l := range lanes {
		l.failQueued(retry.Mark(errClosed, retry.Shutdown))
	}
	p.wg.Wait()
	return err
}
