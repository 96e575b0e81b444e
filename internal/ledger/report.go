package ledger

import (
	"context"
	"fmt"
	"slices"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// Log is the ledger topic, and the one question about the batches topic. Both
// methods return soon after ctx is done.
type Log interface {
	// Write appends a record and returns, once all in-sync replicas have it, the
	// broker's time of it. After an error it may be in the log all the same, now or
	// later, also behind records that are written after it.
	Write(ctx context.Context, key string, value []byte) (appendedAt time.Time, err error)
	// Ends asks a broker, not a cache, for the id of the batches topic's log and for
	// the offset each of its partitions gives next: whatever was acknowledged before
	// the call lies below.
	Ends(ctx context.Context) (log string, next []int64, err error)
}

// Spool is what waits on the collector's disk, of all epochs. Both methods answer
// at once, also once the spool is closed. A record that Append has acknowledged
// counts in the Backlog until it is removed, which is after InKafka, or for as long
// as the spool is there if it can never be delivered: then as lost.
type Spool interface {
	Backlog() batch.Backlog
	State() batch.SpoolState
}

// writeTimeout bounds one attempt to write a record. The next one says more.
const writeTimeout = 10 * time.Second

// Run writes the opening record, as soon as Kafka takes it, then one record every
// interval, and at the end, when ctx is done, the last: a closing one if all that
// was accepted is in Kafka. While Kafka is away nothing is queued: a record says all
// that the ones before it did, so the newest will do. It is called once, and
// outlives whoever publishes and drains.
//
// It returns nil after an orderly end, and an error when the last records could
// not be written within the time given by WithPatience. The collector is waited
// for then as one that was killed would be.
func (l *Ledger) Run(ctx context.Context, log Log, spool Spool) error {
	// A write in flight when ctx ends is waited for: given up, it might come into the
	// log behind the closing record.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		retry.Sleep(work, l.patience)
		cancel()
	})()
	failed := retry.Policy{Min: 100 * time.Millisecond, Max: 5 * time.Second}
	for ctx.Err() == nil {
		start := time.Now()
		kind := batch.LedgerInterval
		if !l.begun {
			kind = batch.LedgerOpen
		}
		err := l.report(work, log, spool, kind)
		l.noteResult(err)
		wait := l.interval - time.Since(start)
		if err != nil {
			wait = failed.Wait(l.failures-1, err)
		}
		retry.Sleep(ctx, wait)
	}
	return l.end(work, log, spool)
}

// noteResult keeps count, and logs where it is news.
func (l *Ledger) noteResult(err error) {
	switch {
	case err == nil && l.failures > 0:
		l.log.Info("the ledger is written again", "records failed", l.failures)
	case err != nil && l.failures == 0:
		l.log.Warn("the ledger cannot be written; delivery_watermark waits for it", "error", err)
	}
	if l.failures++; err == nil {
		l.failures = 0
	}
}

// end writes the last records. From here on nothing is accepted, so that nothing
// can be acknowledged after it is said that nothing will be.
func (l *Ledger) end(ctx context.Context, log Log, spool Spool) error {
	l.mu.Lock()
	known := l.taking
	l.taking, l.ended = false, true
	l.mu.Unlock()
	write := func(kind batch.LedgerKind) error {
		policy := retry.Policy{Min: 50 * time.Millisecond, Max: time.Second, Attempts: 3}
		return policy.Do(ctx, func(ctx context.Context) error { return l.report(ctx, log, spool, kind) })
	}
	if known && !l.begun {
		if err := write(batch.LedgerOpen); err != nil {
			return fmt.Errorf("write the ledger's opening record at the end: %w", err)
		}
	}
	if known {
		// Once more as usual: where this is not taken, the closing record would not be
		// either, and the next start should not have to wait for Kafka.
		if err := write(batch.LedgerInterval); err != nil {
			return fmt.Errorf("write the last ledger record: %w", err)
		}
	}
	// A new id has acknowledged nothing. If it tried to open, it may be known all the
	// same, and waited for.
	if known = known || l.number > 0; !known || !l.clear(spool) {
		return nil
	}
	// A crash before this is on disk: the id is open, and waited for. After it,
	// whether or not the closing record gets to Kafka, at once or later: the next
	// start opens the id anew before it acknowledges anything.
	l.phase = closed
	if l.store != nil {
		if err := l.extend(func(s *state) { s.phase = closed }); err != nil {
			return fmt.Errorf("close the collector's account: %w", err)
		}
	}
	if err := write(batch.LedgerClose); err != nil {
		return fmt.Errorf("write the ledger's closing record: %w", err)
	}
	return nil
}

// clear reports whether all that was ever acknowledged is in Kafka. Nothing is
// accepted any more.
func (l *Ledger) clear(spool Spool) bool {
	l.mu.Lock()
	open := l.window.open
	l.mu.Unlock()
	waiting := spool.Backlog()
	return open == 0 && waiting.Records == 0 && waiting.Lost == 0
}

// report writes one record.
func (l *Ledger) report(ctx context.Context, log Log, spool Spool, kind batch.LedgerKind) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	at, err := l.write(ctx, log, spool, kind)
	if err != nil {
		l.metrics.failed.Inc()
		return fmt.Errorf("%s record: %w", kind, err)
	}
	l.metrics.written.Inc()
	if kind == batch.LedgerOpen {
		l.opened(at)
	}
	l.mu.Lock()
	l.written = time.Now()
	l.mu.Unlock()
	return nil
}

func (l *Ledger) write(ctx context.Context, log Log, spool Spool, kind batch.LedgerKind) (time.Time, error) {
	if kind == batch.LedgerOpen {
		// What an earlier epoch brought to Kafka is below the ends; which batches
		// those were nobody here knows any more.
		id, next, err := log.Ends(ctx)
		if err != nil {
			return time.Time{}, err
		}
		l.logID = id
		l.mu.Lock()
		for p, n := range next {
			l.raise(p, n-1)
		}
		l.mu.Unlock()
	}
	r := l.snapshot(spool)
	r.Kind = kind
	r.CompleteUntil = time.UnixMicro(l.claim(r.CompleteUntil.UnixMicro())).UTC()
	value, err := r.Encode()
	if err != nil {
		return time.Time{}, err
	}
	sent := time.Now()
	at, err := log.Write(ctx, r.Key(), value)
	if err != nil {
		return time.Time{}, err
	}
	l.hear(at, time.Since(sent))
	return at, nil
}

// snapshot says all there is to say. The order makes it true. A batch received
// before the record's time was accepted before (1); it was in flight then and holds
// CompleteUntil, or it was settled: in the spool, where it holds CompleteUntil and
// counts as pending unless (2) comes after it was removed, or in Kafka, below the
// offsets of (3). What is spooled between (1) and (2) counts as pending and not as
// settled, so that the settled numbers not in Kafka are never more than those
// pending.
func (l *Ledger) snapshot(spool Spool) batch.LedgerRecord {
	now := l.clock()
	l.mu.Lock() // (1)
	// Later than every record before it, of earlier starts too: one that turns up in
	// the log late, because its request was given up, is known by that.
	l.last = max(l.last, min(now, l.reserved), l.reported+1)
	at, complete := l.last, l.last
	l.reported = at
	if oldest, ok := l.window.oldest(); ok {
		complete = min(complete, oldest)
	}
	settled, unproven := l.window.settled(), l.window.joined
	voids := slices.Clone(l.window.voids)
	l.mu.Unlock()

	waiting := spool.Backlog() // (2)
	if waiting.Records > 0 {
		complete = min(complete, waiting.Oldest.UnixMicro())
	}

	offsets := map[int]int64{}
	l.mu.Lock() // (3)
	for p, o := range l.offsets {
		if o >= 0 {
			offsets[p] = o
		}
	}
	l.mu.Unlock()

	l.number++
	voids, more := joinVoids(voids, batch.MaxVoids)
	r := batch.LedgerRecord{
		Collector: l.collector, Epoch: l.epoch, Number: l.number, At: time.UnixMicro(at).UTC(),
		Settled: settled, Voids: voids, Unproven: unproven + more,
		CompleteUntil: time.UnixMicro(max(0, complete)).UTC(), Log: l.logID, Offsets: offsets,
		Pending: waiting.Records, PendingBytes: waiting.Bytes, Spool: spool.State(), Lost: waiting.Lost,
	}
	if waiting.Records > 0 {
		oldest := waiting.Oldest.UTC()
		r.Oldest = &oldest
	}
	if waiting.Lost > 0 {
		from := waiting.LostFrom.UTC()
		r.LostFrom = &from
	}
	return r
}

// claim returns the time that may be claimed: what was found, or what was claimed
// before where that is later. The earlier claim is still true of the batches it was
// made of, and no others come below it; what is found may be earlier because a spool
// brings records back that it had removed, or knows the time of its oldest only
// roughly.
//
// The claim is on disk before it is sent, so that a later start cannot fall behind
// it. A crash between leaves a claim that nobody has heard and that is true. Where
// it cannot be written the old one has to do.
func (l *Ledger) claim(until int64) int64 {
	if until <= l.claimed {
		return l.claimed
	}
	if l.store != nil {
		err := l.extend(func(s *state) { s.claimed, s.phase = until, l.phase })
		if err != nil && !l.stuck {
			l.log.Warn("what the ledger claims is not on disk; delivery_watermark waits for it", "error", err)
		}
		if l.stuck = err != nil; l.stuck {
			return l.claimed
		}
	}
	l.claimed = until
	return until
}

// opened begins the account: the opening record is in Kafka.
func (l *Ledger) opened(at time.Time) {
	l.begun, l.phase = true, opened
	l.mu.Lock()
	if !l.taking && !l.ended {
		// The watermark may have passed this clock's time before anybody knew of the
		// id. It has not passed the record's.
		l.last = max(l.last, at.UnixMicro())
	}
	l.mu.Unlock()
	if l.store != nil {
		// A crash before this is on disk: the next start opens again before it
		// acknowledges anything. After it: it may begin without Kafka, since whoever
		// reads the ledger waits for this id. So it does no harm if this fails; the
		// state is written whole with every claim.
		if err := l.extend(func(s *state) { s.phase = opened }); err != nil {
			l.log.Warn("the collector is not marked as known; its next start may have to wait for Kafka", "error", err)
		}
	}
	l.mu.Lock()
	l.taking = !l.ended
	l.mu.Unlock()
}
