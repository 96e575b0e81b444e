package publish

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sony/gobreaker/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// outage is a Publisher with a spool and a ledger, over a Kafka that can be made
// to fail.
type outage struct {
	t *testing.T
	k *fakeKafka
	s *fakeSpool
	l *fakeLedger
	p *Publisher

	given int
}

// withSpool runs a script in a bubble. At its end Kafka is well again, and what
// was acknowledged has to get there.
func withSpool(t *testing.T, leaders []int, o Options, script func(t *testing.T, e *outage)) {
	synctest.Test(t, func(t *testing.T) {
		e := &outage{t: t, k: newFakeKafka(leaders...), s: newFakeSpool(), l: newFakeLedger()}
		e.s.book = e.l
		o.Producer, o.Spool, o.Ledger = e.k, e.s, e.l
		or(&o.rescanAfter, time.Hour) // the safety net hides what it has to catch
		e.p = newPublisher(t, o)
		defer shut(t, e.p)
		script(t, e)
		synctest.Wait()
		e.l.check(t)
		assert.False(t, e.s.early, "removed before Kafka had it")
		assert.Zero(t, e.p.drain.held.len(), "held")
		assert.Zero(t, e.p.queued.Load())
	})
}

// publish publishes one record and returns where it is, and how long that took.
func (e *outage) publish(partition, seq int) (batch.Durable, time.Duration, error) {
	start := time.Now()
	where, err := e.p.Publish(e.t.Context(), []batch.Record{record(partition, seq)})
	return where, time.Since(start), err
}

// spoolOne asserts that a record goes to the spool, and within a time.
func (e *outage) spoolOne(partition, seq int, took time.Duration) {
	e.t.Helper()
	where, d, err := e.publish(partition, seq)
	require.NoError(e.t, err)
	assert.Equal(e.t, batch.InSpool, where)
	assert.Equal(e.t, took, d)
	assert.Equal(e.t, []string{"spooled"}, e.l.of(seq))
}

// wait lets time pass.
func (e *outage) wait(d time.Duration) {
	retry.Sleep(e.t.Context(), d)
	synctest.Wait()
}

// giveUp makes a broker's breaker open.
func (e *outage) giveUp(partition int) {
	e.t.Helper()
	e.k.set(failing)
	for range breakerInRow {
		e.given++
		e.spoolOne(partition, 9000+e.given, 0)
		synctest.Wait() // for the drain's attempts, which count too
	}
	require.True(e.t, e.p.breakers.get(e.p.leader(partition)).open())
}

// once answers a partition's requests in some way, and the others at once.
func only(partition int, answer func(context.Context, int, []batch.Record) error) func(context.Context, int, []batch.Record) error {
	return func(ctx context.Context, at int, records []batch.Record) error {
		if at != partition {
			return nil
		}
		return answer(ctx, at, records)
	}
}

const ack = 250 * time.Millisecond // the default

func TestSpool(t *testing.T) {
	withSpool(t, []int{1}, Options{}, func(t *testing.T, e *outage) {
		where, took, err := e.publish(0, 1)
		require.NoError(t, err)
		assert.Equal(t, batch.InKafka, where)
		assert.Zero(t, took)
		assert.Equal(t, []string{"kafka"}, e.l.of(1))

		e.k.set(slow(900 * time.Millisecond))
		e.spoolOne(0, 2, ack)
		assert.Equal(t, 1, e.p.drain.held.len())
		e.wait(time.Second)
		assert.Equal(t, []string{"spooled", "kafka"}, e.l.of(2), "it got there late")
		assert.Empty(t, e.s.pending())
		assert.Equal(t, []uint64{1, 2}, e.k.stored(0), "and is not sent again")

		e.k.set(failing)
		e.spoolOne(0, 3, 0)
		e.k.set(func(context.Context, int, []batch.Record) error { return refusing() })
		_, _, err = e.publish(0, 4)
		assert.Equal(t, retry.Permanent, retry.ClassOf(err), "what Kafka will never take is not spooled")
		assert.Equal(t, []string{"void"}, e.l.of(4))

		e.k.set(failing)
		e.s.set(func(s *fakeSpool) { s.err, s.ready = errDisk, errDisk })
		_, _, err = e.publish(0, 5)
		resend(t, err, retry.Transient)
		assert.ErrorIs(t, err, errDisk)
		assert.Equal(t, []string{"void"}, e.l.of(5))
		assert.Equal(t, 2, e.s.appendedCount())
		for _, r := range e.s.log {
			assert.Equal(t, batch.Spool, r.Record.Path)
		}
	})
}

func TestOnlyWhatKafkaHasNotIsSpooled(t *testing.T) {
	withSpool(t, []int{1, 2, 1}, Options{}, func(t *testing.T, e *outage) {
		e.k.set(only(1, slow(800*time.Millisecond)))
		records := []batch.Record{record(0, 1), record(1, 2), record(2, 3), record(1, 4)}
		where, err := e.p.Publish(t.Context(), records)
		require.NoError(t, err)
		assert.Equal(t, batch.InSpool, where)
		assert.Equal(t, []uint64{2, 4}, e.s.pending())
		assert.Equal(t, []string{"kafka"}, e.l.of(1))
		assert.Equal(t, []string{"kafka"}, e.l.of(3))
		assert.Equal(t, batch.Path(""), records[1].Path, "the sender's record is as it was")
		e.wait(2 * time.Second)
		assert.Empty(t, e.s.pending())
		assert.ElementsMatch(t, []uint64{2, 4}, e.k.stored(1))
		assert.Equal(t, []string{"spooled", "kafka"}, e.l.of(2))
		assert.Equal(t, []string{"spooled", "kafka"}, e.l.of(4))
	})
}

// A batch with a record that Kafka refuses is refused, also while another record
// of it is late.
func TestRefusedBesideLate(t *testing.T) {
	withSpool(t, []int{1, 1}, Options{}, func(t *testing.T, e *outage) {
		e.k.set(func(ctx context.Context, partition int, records []batch.Record) error {
			if partition == 0 {
				return refusing(0)
			}
			return slow(time.Second)(ctx, partition, records)
		})
		_, err := e.p.Publish(t.Context(), []batch.Record{record(1, 2), record(0, 1)})
		require.Error(t, err)
		assert.Equal(t, retry.Permanent, retry.ClassOf(err))
		assert.Zero(t, e.s.appendedCount())
		e.wait(2 * time.Second)
		assert.Equal(t, []string{"void"}, e.l.of(1))
		assert.Equal(t, []string{"void", "kafka"}, e.l.of(2), "what got there all the same is told")
	})
}

func TestRequestsThatEndLate(t *testing.T) {
	fail := func(d time.Duration, persist bool, e *outage) func(context.Context, int, []batch.Record) error {
		return func(ctx context.Context, partition int, records []batch.Record) error {
			retry.Sleep(ctx, d)
			if persist {
				e.k.persist(partition, records)
			}
			e.k.set(nil)
			return errDown
		}
	}
	for name, tt := range map[string]struct {
		answer func(e *outage) func(context.Context, int, []batch.Record) error
		sync   time.Duration
		where  batch.Durable
		told   []string
		stored int // copies
	}{
		"acknowledged":                        {func(*outage) func(context.Context, int, []batch.Record) error { return slow(900 * time.Millisecond) }, 0, batch.InSpool, []string{"spooled", "kafka"}, 1},
		"acknowledged while the disk is busy": {func(*outage) func(context.Context, int, []batch.Record) error { return slow(500 * time.Millisecond) }, time.Second, batch.InKafka, []string{"kafka"}, 1},
		"failed": {func(e *outage) func(context.Context, int, []batch.Record) error {
			return fail(900*time.Millisecond, false, e)
		}, 0, batch.InSpool, []string{"spooled", "kafka"}, 1},
		"failed while the disk is busy": {func(e *outage) func(context.Context, int, []batch.Record) error {
			return fail(500*time.Millisecond, false, e)
		}, time.Second, batch.InSpool, []string{"spooled", "kafka"}, 1},
		"failed and written": {func(e *outage) func(context.Context, int, []batch.Record) error {
			return fail(900*time.Millisecond, true, e)
		}, 0, batch.InSpool, []string{"spooled", "kafka"}, 2},
		"never": {func(e *outage) func(context.Context, int, []batch.Record) error {
			return fail(time.Hour, false, e)
		}, 0, batch.InSpool, []string{"spooled", "kafka"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			withSpool(t, []int{1}, Options{}, func(t *testing.T, e *outage) {
				e.k.set(tt.answer(e))
				e.s.set(func(s *fakeSpool) { s.sync = tt.sync })
				where, took, err := e.publish(0, 1)
				require.NoError(t, err)
				assert.Equal(t, tt.where, where)
				assert.Equal(t, ack+tt.sync, took)
				if tt.sync == 0 {
					e.wait(500 * time.Millisecond)
					assert.Equal(t, 1, e.k.count(), "not sent while it may still succeed")
				}
				e.wait(time.Minute)
				assert.Len(t, e.k.stored(0), tt.stored)
				assert.Equal(t, tt.told, e.l.of(1))
				assert.Empty(t, e.s.pending())
			})
		})
	}
}

// The disk says no and has it all the same: the sender comes again, and the copy
// is sent.
func TestSpooledAllTheSame(t *testing.T) {
	withSpool(t, []int{1}, Options{rescanAfter: rescanAfter}, func(t *testing.T, e *outage) {
		e.k.set(failing)
		e.s.set(func(s *fakeSpool) { s.late = errDisk })
		_, _, err := e.publish(0, 1)
		resend(t, err, retry.Transient)
		assert.Equal(t, []string{"void"}, e.l.of(1))
		e.k.set(nil)
		e.wait(time.Minute)
		assert.Equal(t, []string{"void", "kafka"}, e.l.of(1))
		assert.Empty(t, e.s.pending())
	})
}

// The disk says no to what Kafka took meanwhile.
func TestAcknowledgedWhileTheDiskFails(t *testing.T) {
	for name, records := range map[string][]batch.Record{
		"all of it":  {record(0, 1)},
		"part of it": {record(0, 1), record(1, 2)},
	} {
		t.Run(name, func(t *testing.T) {
			// The drain may have passed over what it could not send yet: only looking
			// through all of it again finds what nobody was told the number of.
			withSpool(t, []int{1, 2}, Options{rescanAfter: rescanAfter}, func(t *testing.T, e *outage) {
				e.k.set(func(ctx context.Context, partition int, records []batch.Record) error {
					return slow(time.Duration(1+partition)*500*time.Millisecond)(ctx, partition, records)
				})
				e.s.set(func(s *fakeSpool) { s.sync, s.late = 600*time.Millisecond, errDisk })
				where, err := e.p.Publish(t.Context(), records)
				assert.Equal(t, "kafka", e.l.of(1)[0])
				if len(records) == 1 {
					require.NoError(t, err)
					assert.Equal(t, batch.InKafka, where)
				} else {
					resend(t, err, retry.Transient)
					assert.Equal(t, "void", e.l.of(2)[0])
				}
				e.wait(time.Minute)
				assert.Empty(t, e.s.pending())
			})
		})
	}
}

// A Kafka that is only slow is better than a disk that is full.
func TestSlowKafkaAndFullDisk(t *testing.T) {
	withSpool(t, []int{1}, Options{}, func(t *testing.T, e *outage) {
		e.s.set(func(s *fakeSpool) { s.err, s.ready = errDisk, errDisk })
		e.k.set(slow(800 * time.Millisecond))
		where, took, err := e.publish(0, 1)
		require.NoError(t, err)
		assert.Equal(t, batch.InKafka, where)
		assert.Equal(t, 800*time.Millisecond, took)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err = e.p.Publish(ctx, []batch.Record{record(0, 2)})
		resend(t, err, retry.Transient)
		assert.Equal(t, []string{"void"}, e.l.of(2))
		e.wait(time.Second)
		assert.Equal(t, []string{"void", "kafka"}, e.l.of(2))
	})
}

// Nobody waits for a broker that was given up, nor for one that may be back, nor
// where there is no leader or no topic.
func TestSpoolAtOnce(t *testing.T) {
	withSpool(t, []int{1, 2}, Options{OpenFor: 5 * time.Second}, func(t *testing.T, e *outage) {
		e.giveUp(0)
		e.k.set(only(0, hanging))
		n := e.k.count()
		e.spoolOne(0, 10, 0)
		assert.Equal(t, n, e.k.count())
		where, _, err := e.publish(1, 11)
		require.NoError(t, err)
		assert.Equal(t, batch.InKafka, where, "the other broker's is as ever")
		e.wait(5500 * time.Millisecond)
		require.Equal(t, gobreaker.StateHalfOpen, e.p.state(1))
		e.spoolOne(0, 12, 0)
		e.wait(time.Minute)
		e.k.setLeaders(-1, 2)
		e.spoolOne(0, 13, 0)
		e.k.setLeaders(1, 2)
		e.k.set(nil)
		e.wait(time.Minute)
		assert.Empty(t, e.s.pending())
		assert.Len(t, e.k.stored(0), 3+3)
	})
}

func TestNoTopicYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s := &unseen{fakeKafka: newFakeKafka()}, newFakeSpool()
		p := newPublisher(t, Options{Producer: k, Spool: s})
		defer shut(t, p)
		start := time.Now()
		for i := range 10 {
			where, err := p.Publish(t.Context(), []batch.Record{record(0, i)})
			require.NoError(t, err)
			assert.Equal(t, batch.InSpool, where)
			retry.Sleep(t.Context(), time.Millisecond)
			assert.Equal(t, ack+time.Duration(i+1)*time.Millisecond, time.Since(start), "only the first waits")
		}
		k.setLeaders(1)
		retry.Sleep(t.Context(), time.Minute)
		assert.Empty(t, s.pending())
		assert.Len(t, k.stored(0), 10)
	})
}

// unseen waits for a topic as long as it may.
type unseen struct{ *fakeKafka }

func (k *unseen) Partition(ctx context.Context, id batch.ID) (int, error) {
	if k.Leaders() == nil {
		<-ctx.Done()
	}
	return k.fakeKafka.Partition(ctx, id)
}

// What nobody waits for any more is not sent, also behind what somebody does.
func TestQueuedBehindOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKafka(1)
		k.set(slow(time.Second))
		p := newPublisher(t, Options{Producer: k})
		defer shut(t, p)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		for i, ctx := range []context.Context{t.Context(), t.Context(), ctx, t.Context()} {
			wg.Go(func() { _, _ = p.Publish(ctx, []batch.Record{record(0, i)}) })
			synctest.Wait()
		}
		wg.Wait()
		assert.Equal(t, []uint64{0, 1, 3}, k.stored(0))
	})
}

func TestLedgerIsToldAlsoAfterAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		k := newFakeKafka(1)
		s := &panicking{fakeSpool: newFakeSpool()}
		p := newPublisher(t, Options{Producer: k, Spool: s, Ledger: l})
		k.set(slow(time.Second))
		assert.Panics(t, func() { _, _ = p.Publish(t.Context(), []batch.Record{record(0, 1), record(0, 2)}) })
		assert.Equal(t, []string{"void"}, l.of(1))
		assert.Equal(t, []string{"void"}, l.of(2))
		assert.Zero(t, p.drain.held.len())
		shut(t, p)
		_, err := p.Publish(t.Context(), []batch.Record{record(0, 3)})
		resend(t, err, retry.Shutdown)
		assert.Equal(t, []string{"void"}, l.of(3))
		l.check(t)
	})
}

type panicking struct{ *fakeSpool }

func (*panicking) Append(context.Context, []batch.Record) (uint64, error) { panic("a fault") }

func TestLedgerWithoutSpool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := newFakeLedger(), newFakeKafka(1)
		p := newPublisher(t, Options{Producer: k, Ledger: l})
		defer shut(t, p)
		require.NoError(t, publishAll(t.Context(), p, record(0, 1))[0])
		k.set(failing)
		require.Error(t, publishAll(t.Context(), p, record(0, 2))[0])
		k.set(slow(time.Second))
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		require.Error(t, publishAll(ctx, p, record(0, 3))[0])
		assert.Equal(t, []string{"void"}, l.of(3))
		retry.Sleep(t.Context(), 2*time.Second)
		assert.Equal(t, []string{"kafka"}, l.of(1))
		assert.Equal(t, []string{"void"}, l.of(2))
		assert.Equal(t, []string{"void", "kafka"}, l.of(3))
		assert.Equal(t, []string{"0/1"}, l.where[key{seq: 3}])
	})
}

func TestCloseSpoolsWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s, l := newFakeKafka(1), newFakeSpool(), newFakeLedger()
		k.set(hanging)
		s.set(func(s *fakeSpool) { s.sync = 300 * time.Millisecond })
		p := newPublisher(t, Options{Producer: k, Spool: s, Ledger: l})
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				where, err := p.Publish(t.Context(), []batch.Record{record(0, i)})
				assert.NoError(t, err)
				assert.Equal(t, batch.InSpool, where)
			})
		}
		synctest.Wait()
		start := time.Now()
		shut(t, p)
		assert.Equal(t, ack+300*time.Millisecond+time.Second, time.Since(start), "the time-out, the disk, and a moment for the request that nobody waits for")
		wg.Wait()
		assert.Len(t, s.pending(), 5)
		l.check(t)

		// The next process sends them.
		k.set(nil)
		p = newPublisher(t, Options{Producer: k, Spool: s.reopened(none), Ledger: l})
		retry.Sleep(t.Context(), time.Second)
		shut(t, p)
		assert.ElementsMatch(t, []uint64{0, 1, 2, 3, 4}, k.stored(0))
	})
}

// A disk that hangs, too: whoever waits is told at Close's end.
func TestCloseGivesUpOnTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s, l := newFakeKafka(1), newFakeSpool(), newFakeLedger()
		k.set(hanging)
		p := newPublisher(t, Options{Producer: k, Spool: s, Ledger: l, AckTimeout: time.Hour})
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := p.Publish(t.Context(), []batch.Record{record(0, 1)})
			resend(t, err, retry.Shutdown)
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		assert.ErrorIs(t, p.Close(ctx), context.DeadlineExceeded)
		wg.Wait()
		assert.Zero(t, s.appendedCount(), "it may be closed by now")
		assert.Equal(t, []string{"void"}, l.of(1))
	})
}

func TestReasons(t *testing.T) {
	for want, err := range map[string]error{
		"timeout": errTimeUp, "slow": errBehind, "breaker_open": errOpen, "no_leader": errNoLeader, "no_topic": errNoTopic,
		"queue_full": errQueueFull, "closed": errClosed, "failed": errors.New("anything else"),
	} {
		assert.Equal(t, want, reasonOf(retry.Mark(err, retry.Transient)))
	}
}
