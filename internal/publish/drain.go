package publish

import (
	"context"
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"sluice/pkg/batch"
)

const (
	// drainEvery is how often the drain looks whether there is something to do that
	// nobody tells it of: a broker's rest is over, a partition has moved.
	drainEvery = 500 * time.Millisecond
	// drainAgain is how long a partition is passed over after it failed.
	drainAgain = time.Second
	// drainBytes is what is read of the spool at once, for all leaders together, but
	// a group each at least.
	drainBytes = 4 << 20
	// drainShare is the part of a broker's time, one in so many, that the drain takes
	// while live traffic wants it too.
	drainShare = 5
	// rescanAfter is how long a leader's drain that has come to the end waits before
	// it looks through all of the spool again, should it have missed something; at
	// most one part in rescanShare of the time goes into that.
	rescanAfter = 10 * time.Second
	rescanShare = 100
	// maxRefused bounds what Kafka refused for good and the disk could not set aside.
	maxRefused = 1024
)

// drain brings what the spool has to Kafka. Each partition leader is drained by
// itself, by one goroutine with one request at a time, so that one that is down
// stops nobody else.
type drain struct {
	p       *Publisher
	limiter *rate.Limiter // bytes, all leaders together
	held    held
	wake    chan struct{}
	ctx     context.Context
	stop    context.CancelFunc
	over    chan struct{} // closed when nothing of it runs

	mu      sync.Mutex
	leaders map[int]*drainer
	refused []aside
}

// aside is a record that Kafka refuses for good and that is not set aside yet.
type aside struct {
	number uint64
	key    key
	why    error
}

func newDrain(p *Publisher) *drain {
	d := &drain{p: p, wake: make(chan struct{}, 1), over: make(chan struct{}), leaders: map[int]*drainer{},
		limiter: rate.NewLimiter(rate.Limit(p.o.DrainBytesPerSecond), int(p.o.GroupBytes))}
	d.ctx, d.stop = context.WithCancel(p.base)
	return d
}

// hold keeps the drain from sending a record, until release.
func (d *drain) hold(k key) { d.held.add(k) }

// release lets the drain send records that were held, the lowest of whose numbers
// is lowest; none: they are not, or no longer, in the spool.
func (d *drain) release(keys []key, lowest uint64) {
	if len(keys) == 0 {
		return
	}
	d.held.drop(keys)
	if lowest == none {
		return
	}
	d.mu.Lock()
	for _, l := range d.leaders {
		l.back = min(l.back, lowest)
	}
	d.mu.Unlock()
	d.nudge()
}

// nudge has the drain look at once.
func (d *drain) nudge() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// idle reports whether a broker's drain has nothing to try it with.
func (d *drain) idle(leader int) bool {
	if d.p.o.Spool.Backlog().Records == 0 {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.leaders[leader]
	return l != nil && !l.nothing.IsZero() && time.Since(l.nothing) < 2*drainEvery
}

// ended waits until nothing of the drain runs, or ctx ends.
func (d *drain) ended(ctx context.Context) {
	select {
	case <-d.over:
	case <-ctx.Done():
	}
}

// run starts a leader's drain where there is something to do, until stop.
func (d *drain) run() {
	defer close(d.over)
	if d.p.o.Spool == nil {
		return
	}
	var running sync.WaitGroup
	defer running.Wait()
	t := time.NewTicker(drainEvery)
	defer t.Stop()
	for {
		d.look(&running)
		select {
		case <-d.ctx.Done():
			return
		case <-d.p.o.Spool.Appended():
		case <-d.wake:
		case <-t.C:
			d.setAside()
		}
	}
}

// look starts the drains that are not running and have a broker that may be asked.
func (d *drain) look(running *sync.WaitGroup) {
	if d.p.o.Spool.Backlog().Records == 0 {
		return
	}
	leads := map[int]bool{}
	for _, leader := range d.p.o.Producer.Leaders() {
		if leader >= 0 {
			leads[leader] = true
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.leaders, func(leader int, l *drainer) bool { return !leads[leader] && !l.running })
	for leader := range leads {
		l := d.leaders[leader]
		if l == nil {
			l = &drainer{drain: d, p: d.p, leader: leader, back: none}
			d.leaders[leader] = l
		}
		if !l.running && !d.p.breakers.of(leader).open() {
			l.running = true
			running.Go(l.run)
		}
	}
}

// share is how much a leader's drain reads at once.
func (d *drain) share() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return max(int(d.p.o.GroupBytes), drainBytes/max(1, len(d.leaders)))
}

// refuse sets a record aside that Kafka will never take. Where the disk cannot do
// that now, the record is kept from being sent and tried again; it returns an
// error when there are too many of those.
func (d *drain) refuse(r *batch.Spooled, why error) error {
	a := aside{r.Number, keyOf(&r.Record), why}
	if err := d.p.o.Spool.SetAside(a.number, why); err != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.refused) >= maxRefused {
			return err
		}
		d.p.o.Log.Warn("a refused record could not be set aside; it is tried again", "number", r.Number, "error", err)
		d.held.add(a.key)
		d.refused = append(d.refused, a)
		return nil
	}
	d.p.metrics.aside.Inc()
	return nil
}

// setAside tries again what could not be set aside, until one fails.
func (d *drain) setAside() {
	for {
		d.mu.Lock()
		if len(d.refused) == 0 {
			d.mu.Unlock()
			return
		}
		a := d.refused[0]
		d.mu.Unlock()
		if d.p.o.Spool.SetAside(a.number, a.why) != nil {
			return
		}
		d.p.metrics.aside.Inc()
		d.mu.Lock()
		d.refused = d.refused[1:]
		d.mu.Unlock()
		d.held.drop([]key{a.key})
	}
}
