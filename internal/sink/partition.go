package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

const (
	fetchBytes = 4 << 20
	// tipBytes is asked for where nothing is known to be there. Such a fetch waits:
	// were it charged for as much as any other, the idle ones of many partitions
	// would hold the budget.
	tipBytes  = 64 << 10
	fetchWait = 500 * time.Millisecond
	// lookWait is for what is there already.
	lookWait = time.Millisecond
	// fetchFactor is what a fetch is charged for before it is known: it ends with
	// the batch of records that passes its bytes.
	fetchFactor = 2
	// turns is how many partitions read what has piled up at the same time: one
	// reads while the blocks of two are written, and memory is for three large
	// blocks, however many partitions there are.
	turns = 3
	// blockShare of the process's bytes is what one block may take.
	blockShare = 4
)

// partition drains one partition for one generation. Owned by one goroutine.
type partition struct {
	s      *Sink
	store  guard
	at     schema.Position // Offset is not used
	log    *slog.Logger
	seen   *remembered
	rate   rate
	own    string // in the tokens of this loop, and of no other
	pieces int    // how many tokens were made for parts of blocks
	state  Status // as shown last

	next    int64  // the offset to go on from
	horizon int64  // up to here rows may be there already: verify, then insert what is missing
	intent  intent // what an earlier owner was about to insert
	end     int64  // the log's end when last seen

	filling *batch.Accumulator[item]
	turn    bool         // it holds one of the process's turns
	deaf    bool         // the last fetch failed
	scratch schema.Batch // what records are decoded into
	spare   []item       // fetched and decoded, for the next block
	held    int64        // bytes charged to the budget for what is fetched and not delivered

	// Events of the last blocks that ClickHouse refused, as long as it took none.
	refusedInRow int
}

func newPartition(s *Sink, id, remember int) *partition {
	p := &partition{
		s:       s,
		at:      schema.Position{Topic: s.cfg.Topic, Partition: id},
		log:     s.log.With("partition", id),
		seen:    newRemembered(remember),
		own:     batch.Random().String(),
		filling: batch.NewAccumulator[item](batch.Bound{Count: s.cfg.FlushRows, Bytes: s.cfg.FlushBytes / blockShare}),
	}
	p.store = s.guarded(func() (over func()) {
		before := p.state
		p.status("waiting", "ClickHouse does not answer")
		return func() { p.status(before.State, before.Detail) }
	})
	return p
}

// run drains the partition until ctx ends or its ownership is in doubt.
func (p *partition) run(ctx context.Context, gen Generation) error {
	defer func() { p.release(p.held); p.endTurn() }()
	p.status("taking_over", "")
	if err := p.takeOver(ctx, gen); err != nil {
		return fmt.Errorf("take over: %w", err)
	}
	for {
		p.status("running", "")
		b, err := p.fill(ctx)
		var gap *gapError
		if err != nil && !errors.As(err, &gap) {
			return err
		}
		if err := p.sameLog(ctx); err != nil {
			return err
		}
		if gap != nil {
			p.endTurn()
			p.spare = nil
			p.release(p.held)
			if err := p.stop(ctx, gen, gap); err != nil {
				return err
			}
			// It may go on where rows are already.
			if err := p.findHorizon(ctx); err != nil {
				return err
			}
			continue
		}
		if err := p.deliver(ctx, gen, b); err != nil {
			return err
		}
		if err := p.forward(ctx, b); err != nil {
			return err
		}
		// A crash before this commit: the next owner finds the intent, reads back
		// that every row is there, and commits. After it: the block is done.
		if err := gen.Commit(ctx, p.at.Partition, b.last+1, intent{Log: p.at.Log}.String()); err != nil {
			return fmt.Errorf("commit offset %d: %w", b.last+1, err)
		}
		p.remember(b)
		p.count(b)
		p.next = b.last + 1
		p.release(b.bytes)
		p.endTurn()
		p.s.metrics.delivered(b)
	}
}

// release gives bytes back to the process's budget.
func (p *partition) release(n int64) {
	p.held -= n
	p.s.budget.adjust(-n)
}

// takeOver learns where the previous owner was, makes sure that nothing it has
// begun can still arrive, and up to where rows may be there already. It waits out
// every error: were the loop to return, the generation would end for the process's
// other partitions too, again and again.
func (p *partition) takeOver(ctx context.Context, gen Generation) error {
	var gap *gapError
	err := p.retry(ctx, "learn where the previous owner was", func() (err error) {
		gap, err = p.locate(ctx, gen)
		return err
	})
	if err != nil {
		return err
	}
	if gap != nil {
		if err := p.stop(ctx, gen, gap); err != nil {
			return err
		}
	}
	return p.findHorizon(ctx)
}

// locate reads which log this is and what was committed for it. It returns a gap
// where the partition has to stop.
func (p *partition) locate(ctx context.Context, gen Generation) (*gapError, error) {
	// Asked anew for each generation: a topic that was deleted and made again
	// while this process runs is another log.
	var err error
	if p.at.Log, err = p.s.source.Log(ctx); err != nil {
		return nil, fmt.Errorf("read the log's id: %w", err)
	}
	offset, metadata, err := gen.Committed(ctx, p.at.Partition)
	if err != nil {
		return nil, fmt.Errorf("read the committed offset: %w", err)
	}
	bounds, err := p.s.source.Bounds(ctx, p.at.Partition)
	if err != nil {
		return nil, fmt.Errorf("read the log's bounds: %w", err)
	}
	p.next, p.end = offset, bounds.End
	if offset < 0 {
		if err := p.startWithoutCommit(ctx); err != nil {
			return nil, fmt.Errorf("find where storing ended: %w", err)
		}
	}
	if p.intent, err = parseIntent(metadata); err != nil {
		return &gapError{reason: "intent", resumeAt: p.next, detail: err.Error()}, nil
	}
	return p.checkLog(bounds), nil
}

// findHorizon shuts every door and finds out up to where rows may be there
// already, from the next offset on.
func (p *partition) findHorizon(ctx context.Context) error {
	err := p.retry(ctx, "shut the doors", func() error {
		if err := p.shutDoors(ctx); err != nil {
			return err
		}
		highest, err := p.store.Highest(ctx, p.at, p.next)
		if err != nil {
			return err
		}
		p.horizon = highest
		if p.intent.Token != "" {
			p.horizon = max(p.horizon, p.intent.Last)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if p.s.cfg.SkipIntent {
		p.horizon = -1
	}
	if p.horizon >= p.end {
		// The log has lost its newest records. Their rows stay; records that come
		// to the same offsets are told from them by their batch.
		p.s.metrics.alarm("truncated")
		p.log.Error("rows are stored that the log does not have any more", "log_end", p.end, "stored_to", p.horizon)
	}
	if p.horizon >= p.next {
		p.log.Info("reading back what an earlier owner may have stored", "from", p.next, "to", p.horizon)
	}
	return nil
}

// shutDoors opens and closes an insert into every table. A process that was
// paused between its intent and its insert wakes up to a cancelled query; only
// then is it certain that what is read back stays true.
func (p *partition) shutDoors(ctx context.Context) error {
	for _, t := range schema.Tables() {
		door, err := p.store.OpenInsert(ctx, t, p.at, p.at.Log)
		if err != nil {
			return err
		}
		door.Close()
	}
	return nil
}

// errOtherLog ends a partition loop whose topic was deleted and made again.
var errOtherLog = errors.New("the topic is another log now")

// sameLog makes sure that what was read so far is of the log this loop has taken
// over. A topic that was deleted and made again answers under the same name, with
// other records at the same offsets; once it has another id it never has the old
// one again. The next generation decides how to go on.
func (p *partition) sameLog(ctx context.Context) error {
	var now string
	err := p.retry(ctx, "read the log's id", func() (err error) {
		now, err = p.s.source.Log(ctx)
		return err
	})
	if err == nil && now != p.at.Log {
		err = fmt.Errorf("%w: %s, it was %s", errOtherLog, now, p.at.Log)
	}
	return err
}

// startWithoutCommit finds the place to begin at when the group has no offset
// for the partition: a new group, or one whose offsets Kafka has forgotten
// (offsets.retention.minutes). What ClickHouse has of this log says it; else it
// is the log's very first offset, so that records which retention has deleted
// unread raise the alarm instead of being passed over.
func (p *partition) startWithoutCommit(ctx context.Context) error {
	through, err := p.store.Through(ctx, p.at)
	p.next = through + 1
	return err
}

// checkLog returns a gap where the committed offset does not fit the log: going
// on would skip records, or take those of another log for these.
func (p *partition) checkLog(bounds batch.Bounds) *gapError {
	switch {
	case p.intent.Log != "" && p.intent.Log != p.at.Log:
		return &gapError{reason: "other_log", resumeAt: bounds.Start,
			detail: fmt.Sprintf("offset %d was committed for log %s, this one is %s", p.next, p.intent.Log, p.at.Log)}
	case p.next > bounds.End:
		return &gapError{reason: "beyond_end", resumeAt: bounds.Start,
			detail: fmt.Sprintf("committed offset %d is beyond the log's end %d", p.next, bounds.End)}
	case p.next < bounds.Start:
		return &gapError{reason: "deleted", resumeAt: bounds.Start,
			detail: fmt.Sprintf("records %d to %d were deleted before they were stored", p.next, bounds.Start-1)}
	}
	return nil
}

// gapError says that the log does not go on where it should.
type gapError struct {
	reason   string // bounded: intent, other_log, beyond_end, deleted, hole
	detail   string
	resumeAt int64
}

func (e *gapError) Error() string { return e.reason + ": " + e.detail }

// stop raises the alarm and waits until a person has resumed the partition, or
// the generation ends.
func (p *partition) stop(ctx context.Context, gen Generation, gap *gapError) error {
	p.status("stopped", gap.detail)
	p.s.metrics.alarm(gap.reason)
	p.log.Error("partition stopped; look, then: sluice resume", "reason", gap.reason, "detail", gap.detail,
		"offset", p.next, "resume_at", gap.resumeAt)
	at := p.at
	at.Offset = p.next
	store := p.s.guarded(nil) // it stays stopped, also while ClickHouse is away
	recorded := false
	for {
		if !recorded {
			// What a person decides counts from here on: a decision about an earlier
			// stop at this place does not.
			err := store.RecordStop(ctx, at, gap.reason, gap.detail, gap.resumeAt)
			if err != nil && ctx.Err() == nil {
				p.log.Warn("the stop cannot be written down yet", "error", err)
			}
			recorded = err == nil
		}
		if recorded {
			resumeAt, ok, err := store.Resumed(ctx, at)
			if err == nil && ok {
				return p.resume(ctx, gen, resumeAt)
			}
		}
		if !retry.Sleep(ctx, 2*time.Second) {
			return ctx.Err()
		}
	}
}

// resume goes on where a person said.
func (p *partition) resume(ctx context.Context, gen Generation, at int64) error {
	p.log.Warn("partition resumed by a person", "at", at)
	// A crash before this commit: the partition stops again at the same place, and
	// has to be resumed again. After it: the next owner goes on from there.
	if err := gen.Commit(ctx, p.at.Partition, at, intent{Log: p.at.Log}.String()); err != nil {
		return fmt.Errorf("commit the resumed offset %d: %w", at, err)
	}
	p.next, p.intent = at, intent{}
	p.seen.forget() // it may lie before what this loop has seen
	return nil
}

// fill reads a block. What has piled up in Kafka is read until the block is full by
// rows or bytes. At the log's end it waits in Kafka, not here, until the block is due by
// age or nothing comes any more; then what has come meanwhile is read at once. So large
// blocks are in memory for as long as it takes to read and write them, and only those of
// a few partitions.
//
// While rows may be there already it ends a block exactly where the earlier owner's
// block ended, so that it has the same token.
func (p *partition) fill(ctx context.Context) (*block, error) {
	a := p.filling
	a.SetAge(p.age())
	limit, want := int64(-1), p.next
	if p.intent.Token != "" && p.intent.First == p.next {
		limit = p.intent.Last
	} else if p.next <= p.horizon {
		limit = p.horizon
	}
	if limit >= 0 && limit < p.end {
		a.SetAge(0) // its end is known and at hand
	}
	var began time.Time
	looked := false // for what had come by the time the block was due
	for {
		// What is at hand first.
		for len(p.spare) > 0 {
			it := p.spare[0]
			if !a.Fits(it.rowCount(), it.memory()) {
				return p.cut(a), nil
			}
			a.Add(it, it.rowCount(), it.memory(), p.s.now())
			p.spare[0] = item{} // its memory is the block's now
			p.spare = p.spare[1:]
			want = it.delivery.Offset + 1
			if limit >= 0 && want > limit {
				return p.cut(a), nil
			}
		}
		now := p.s.now()
		if a.Len() > 0 {
			if began.IsZero() {
				began = now
			}
			late := a.Remaining(now) == 0 && now.Sub(began) > p.s.cfg.FlushIntervalMax
			if !a.Fits(1, 1) || late || looked && want >= p.end {
				return p.cut(a), nil
			}
			if want >= p.end {
				p.endTurn()
				if err := p.await(ctx, a.Remaining(now)); err != nil {
					return nil, err
				}
				looked = true
			}
		}
		if done, err := p.refill(ctx, want, a, began); err != nil {
			return nil, err
		} else if done {
			return p.cut(a), nil
		}
	}
}

// await waits until a block is due, or until nothing has come for as long as a block of
// an idle partition waits: a large block is worth waiting for only while it grows.
func (p *partition) await(ctx context.Context, due time.Duration) error {
	until, end := p.s.now().Add(due), p.end
	for due > 0 {
		if !retry.Sleep(ctx, min(due, max(p.s.cfg.FlushInterval, fetchWait))) {
			return ctx.Err()
		}
		if due = until.Sub(p.s.now()); due <= 0 {
			return nil
		}
		bounds, err := p.s.source.Bounds(ctx, p.at.Partition)
		if err != nil || bounds.End == end {
			return nil // a fetch says what is wrong, and what is at hand is delivered
		}
		end = bounds.End
	}
	return nil
}

// refill fetches records for the block being filled, within the budget. It
// reports true when the block should be cut as it is: nobody waits for bytes
// while holding some, or for a turn for longer than a block may grow, and what is at
// hand is delivered before an error stops the partition (the error comes again).
func (p *partition) refill(ctx context.Context, from int64, a *batch.Accumulator[item], began time.Time) (bool, error) {
	// What is held stays held through an outage, and nothing is added to it.
	if err := p.store.ready(ctx); err != nil {
		return false, err
	}
	size, wait := tipBytes, fetchWait
	// Who did not get an answer last time asks for little, and holds up nobody who waits
	// for a turn until there is one: to find out takes as long as the client's time-outs.
	if (from < p.end || a.Len() > 0) && !p.deaf {
		// No more than there is room for: what comes beyond it is read again.
		size = int(min(fetchBytes, max(tipBytes, p.s.cfg.FlushBytes/blockShare-a.Bytes())))
		if a.Len() > 0 {
			wait = lookWait
		}
		if ok, err := p.takeTurn(ctx, a.Len() > 0, began); err != nil || !ok {
			return !ok, err
		}
	}
	charge := int64(size * fetchFactor)
	if !p.s.budget.try(charge) {
		if a.Len() > 0 {
			return true, nil
		}
		p.status("waiting", "other partitions hold SLUICE_SINK_FLUSH_BYTES")
		if err := p.s.budget.wait(ctx, charge); err != nil {
			return false, err
		}
		p.status("running", "")
	}
	p.held += charge
	items, err := p.fetch(ctx, from, size, wait)
	used := int64(0)
	for i := range items {
		used += items[i].memory()
	}
	p.release(charge - used)
	p.spare = items
	if len(items) == 0 && a.Len() == 0 {
		p.endTurn()
	}
	if err != nil && a.Len() > 0 && ctx.Err() == nil {
		return true, nil
	}
	return false, err
}

// takeTurn waits until the partition may read what has piled up. Who holds part of a
// block waits until that is due at the latest: then it reports false.
func (p *partition) takeTurn(ctx context.Context, holding bool, began time.Time) (bool, error) {
	if p.turn {
		return true, nil
	}
	var late <-chan time.Time
	if holding {
		t := time.NewTimer(max(lookWait, p.s.cfg.FlushIntervalMax-p.s.now().Sub(began)))
		defer t.Stop()
		late = t.C
	}
	select {
	case p.s.turns <- struct{}{}:
		p.turn = true
		return true, nil
	case <-late:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// endTurn lets another partition read. It is ended early where a partition waits for
// something else than its own work.
func (p *partition) endTurn() {
	if p.turn {
		p.turn = false
		<-p.s.turns
	}
}

// cut ends the block being filled.
func (p *partition) cut(a *batch.Accumulator[item]) *block {
	full := len(p.spare) > 0 || !a.Fits(1, 1)
	for i := range p.spare { // read again later: many partitions may wait for long
		p.release(p.spare[i].memory())
	}
	p.spare = nil
	b := newBlock(a)
	p.rate.add(b.rows, p.s.now())
	if full && b.last+1 < p.end {
		p.s.fillsBlocks()
	}
	return b
}

// fetch reads and decodes records from an offset on, about size bytes of them, and
// sees to it that none is missing.
func (p *partition) fetch(ctx context.Context, offset int64, size int, wait time.Duration) ([]item, error) {
	deliveries, bounds, err := p.s.source.Fetch(ctx, p.at.Partition, offset, size, wait)
	if errors.Is(err, batch.ErrOffsetGone) {
		bounds, berr := p.s.source.Bounds(ctx, p.at.Partition)
		switch {
		case berr != nil:
			err = berr
		case offset < bounds.Start || offset > bounds.End:
			p.end = bounds.End
			reason := "deleted"
			if offset > bounds.End {
				reason = "beyond_end"
			}
			return nil, &gapError{reason: reason, resumeAt: bounds.Start,
				detail: fmt.Sprintf("offset %d is not in the log, which holds %d to %d", offset, bounds.Start, bounds.End-1)}
		}
	}
	p.deaf = err != nil
	if err != nil {
		p.endTurn()
		if ctx.Err() == nil {
			p.status("waiting", "Kafka: "+err.Error())
			retry.Sleep(ctx, time.Second)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, nil
	}
	p.end = bounds.End
	items := make([]item, 0, len(deliveries))
	for _, d := range deliveries {
		if d.Offset != offset {
			if len(items) > 0 {
				break // deliver what is sound; the hole is found at the next fetch
			}
			return nil, &gapError{reason: "hole", resumeAt: d.Offset,
				detail: fmt.Sprintf("records %d to %d are missing from the log", offset, d.Offset-1)}
		}
		items = append(items, newItem(d))
		offset++
	}
	return items, nil
}

func (p *partition) status(state, detail string) {
	p.state = Status{Partition: p.at.Partition, State: state, Next: p.next, Lag: max(0, p.end-p.next), Detail: detail}
	p.s.setStatus(p.state)
}
