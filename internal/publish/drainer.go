package publish

import (
	"errors"
	"slices"
	"time"

	"github.com/sony/gobreaker/v2"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// drainer drains what belongs to one leader.
type drainer struct {
	drain  *drain
	p      *Publisher
	leader int

	// Under drain.mu.
	running bool
	back    uint64    // the lowest number that was passed over and is to be looked at now
	nothing time.Time // when it last found nothing to send

	// run's alone.
	from   uint64  // where to read on
	layout []int   // the leaders by which it was decided what to pass over before from
	failed failure // partitions that are passed over for a while
	began  time.Time
	rescan time.Time // when to look through all of the spool again
	unread bool      // Read failed the last time
}

// failure is what a drainer passes over because it failed.
type failure struct {
	partitions map[int]bool
	lowest     uint64 // of the numbers passed over
	until      time.Time
}

// note passes a partition over, from a number on.
func (f *failure) note(partition int, number uint64) {
	if len(f.partitions) == 0 {
		*f = failure{partitions: map[int]bool{}, lowest: none, until: time.Now().Add(drainAgain)}
	}
	f.partitions[partition] = true
	f.lowest = min(f.lowest, number)
}

// run sends until there is nothing more to send, or its broker is given up.
func (d *drainer) run() {
	defer func() {
		d.drain.mu.Lock()
		defer d.drain.mu.Unlock()
		d.running = false
	}()
	for d.drain.ctx.Err() == nil {
		b := d.p.breakers.of(d.leader)
		bytes := d.drain.share()
		switch b.cb.State() {
		case gobreaker.StateOpen:
			return
		case gobreaker.StateHalfOpen:
			bytes = 1 // one record finds out whether the broker is back
		}
		d.position()
		records, err := d.read(bytes)
		if err != nil || len(records) == 0 {
			d.found(time.Now())
			if err == nil {
				d.atEnd()
			}
			return
		}
		d.found(time.Time{})
		if !d.send(b, records) {
			d.goBack(records[0].Number)
			return
		}
	}
}

// position decides where to read on.
func (d *drainer) position() {
	now := time.Now()
	if leaders := d.p.o.Producer.Leaders(); !slices.Equal(leaders, d.layout) {
		// What was passed over may be this leader's now.
		d.layout, d.from, d.began, d.failed = leaders, 0, now, failure{}
	}
	if len(d.failed.partitions) > 0 && !now.Before(d.failed.until) {
		d.from = min(d.from, d.failed.lowest)
		d.failed = failure{}
	}
	if !d.rescan.IsZero() && !now.Before(d.rescan) {
		d.from, d.began, d.rescan = 0, now, time.Time{}
	}
	d.drain.mu.Lock()
	defer d.drain.mu.Unlock()
	d.from = min(d.from, d.back)
	d.back = none
}

// atEnd notes that all of the spool was looked through.
func (d *drainer) atEnd() {
	if d.rescan.IsZero() {
		now := time.Now()
		d.rescan = now.Add(max(d.p.o.rescanAfter, rescanShare*now.Sub(d.began)))
	}
}

// goBack has a number looked at again.
func (d *drainer) goBack(number uint64) {
	d.drain.mu.Lock()
	defer d.drain.mu.Unlock()
	d.back = min(d.back, number)
}

// found notes since when there is nothing to send; zero: there is something.
func (d *drainer) found(nothing time.Time) {
	d.drain.mu.Lock()
	defer d.drain.mu.Unlock()
	d.nothing = nothing
}

// read returns the leader's next records.
func (d *drainer) read(bytes int) ([]batch.Spooled, error) {
	var unplaced error
	passed := false
	records, next, err := d.p.o.Spool.Read(d.drain.ctx, d.from, bytes, func(r *batch.Record) bool {
		partition, err := d.p.o.Producer.Partition(d.drain.ctx, r.BatchID)
		switch {
		case err != nil:
			unplaced = err
			return false
		case partition >= len(d.layout) || d.layout[partition] != d.leader:
			return false
		case d.failed.partitions[partition]:
			passed = true
			return false
		}
		return !d.drain.held.has(keyOf(r))
	})
	if unplaced != nil {
		err = errors.Join(err, unplaced)
	}
	if err != nil && len(records) == 0 {
		if d.drain.ctx.Err() == nil {
			d.p.metrics.drainErrors.WithLabelValues("read").Inc()
			if !d.unread {
				d.p.o.Log.Warn("the spool cannot be drained; it is tried again", "error", err)
			}
			d.unread = true
		}
		return nil, err
	}
	d.unread = false
	if passed {
		d.failed.lowest = min(d.failed.lowest, d.from)
	}
	if unplaced != nil {
		d.goBack(d.from)
	}
	d.from = next
	return records, nil
}

// send sends records, each partition's in order, the partition of the oldest
// first. It returns false when there is no point in going on now.
func (d *drainer) send(b *breaker, records []batch.Spooled) bool {
	for _, g := range d.groups(records) {
		if d.failed.partitions[g.partition] {
			d.failed.note(g.partition, g.records[0].Number)
			continue
		}
		if err := d.sendGroup(g.partition, g.records); err != nil {
			over := d.drain.ctx.Err() != nil || b.cb.State() != gobreaker.StateClosed
			if !over || excluded(err) {
				// It is the partition's fault: the others go on, or are tried next.
				d.failed.note(g.partition, g.records[0].Number)
			}
			if over {
				return false
			}
		}
	}
	return true
}

// portion is what one request takes of a partition.
type portion struct {
	partition int
	records   []batch.Spooled
	bytes     int64
}

func (d *drainer) groups(records []batch.Spooled) []*portion {
	var all []*portion
	open := map[int]*portion{}
	for _, r := range records {
		partition, err := d.p.o.Producer.Partition(d.drain.ctx, r.Record.BatchID)
		if err != nil {
			d.goBack(r.Number)
			continue
		}
		size := int64(r.Record.Size())
		g := open[partition]
		if g == nil || len(g.records) >= d.p.o.GroupRecords || g.bytes+size > d.p.o.GroupBytes {
			g = &portion{partition: partition}
			open[partition] = g
			all = append(all, g)
		}
		g.records = append(g.records, r)
		g.bytes += size
	}
	return all
}

// movedAway says that a partition is not this leader's any more.
type movedAway struct{}

func (movedAway) Error() string { return "the partition has another leader now" }
func (movedAway) Moved()        {}

// sendGroup makes one request of records, once the rate allows. What is refused is
// taken apart, so that only the records that Kafka will not have are set aside.
func (d *drainer) sendGroup(partition int, spooled []batch.Spooled) error {
	records := make([]batch.Record, len(spooled))
	size := 0
	for i := range spooled {
		records[i] = spooled[i].Record
		records[i].Path = batch.Spool
		size += records[i].Size()
	}
	if err := d.drain.limiter.WaitN(d.drain.ctx, min(size, d.drain.limiter.Burst())); err != nil {
		return err
	}
	if d.p.leader(partition) != d.leader {
		return movedAway{}
	}
	start := time.Now()
	base, err := d.p.produce(partition, records, nil)
	took := time.Since(start)
	var refused refusal
	switch {
	case err == nil:
		numbers := make([]uint64, len(spooled))
		for i := range spooled {
			numbers[i] = spooled[i].Number
			d.p.o.Ledger.InKafka(&records[i], partition, base+int64(i))
		}
		// A crash before this is on disk: they are sent again, as copies.
		d.p.o.Spool.Remove(numbers...)
		d.p.metrics.drained.Add(float64(len(spooled)))
		d.p.metrics.drainedBytes.Add(float64(size))
		d.giveWay(took)
		return nil
	case !errors.As(err, &refused):
		d.p.metrics.drainErrors.WithLabelValues(retry.ClassOf(err).String()).Inc()
		return err
	case len(spooled) == 1:
		return d.drain.refuse(&spooled[0], err)
	}
	bad, good := tell(spooled, refused.Refused())
	if len(bad) == 0 {
		half := len(spooled) / 2
		if err := d.sendGroup(partition, spooled[:half]); err != nil {
			return err
		}
		return d.sendGroup(partition, spooled[half:])
	}
	for i := range bad {
		if err := d.drain.refuse(&bad[i], err); err != nil {
			return err
		}
	}
	if len(good) == 0 {
		return nil
	}
	return d.sendGroup(partition, good)
}

// giveWay rests after a request while live ones are on their way to the same
// broker, so that the drain has it for one part in drainShare of the time at most,
// however slow it is. Where nobody else wants it, only the rate limits the drain.
func (d *drainer) giveWay(took time.Duration) {
	if d.p.busy(d.leader) {
		retry.Sleep(d.drain.ctx, min((drainShare-1)*took, d.p.o.ProduceTimeout))
	}
}

// tell tells the guilty from the others.
func tell(records []batch.Spooled, guilty []int) (bad, good []batch.Spooled) {
	is := map[int]bool{}
	for _, i := range guilty {
		is[i] = true
	}
	for i, r := range records {
		if is[i] {
			bad = append(bad, r)
		} else {
			good = append(good, r)
		}
	}
	return bad, good
}
