package publish

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sony/gobreaker/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

// fill puts records into the spool as an outage does: seq counts from first on,
// and partitions take turns.
func (e *outage) fill(partitions, first, n int) {
	e.t.Helper()
	for i := range n {
		where, _, err := e.publish(i%partitions, first+i)
		require.NoError(e.t, err)
		require.Equal(e.t, batch.InSpool, where)
		synctest.Wait() // for the drain's attempts, which count too
	}
}

// When a broker is back, one record finds out, the oldest; then all the others
// come, oldest first, while live ones go straight.
func TestDrainOldestFirst(t *testing.T) {
	withSpool(t, []int{1, 1}, Options{OpenFor: 5 * time.Second, GroupRecords: 20}, func(t *testing.T, e *outage) {
		e.k.set(failing)
		e.fill(2, 0, 100)
		require.Equal(t, gobreaker.StateOpen, e.p.state(1))
		n := e.k.count()
		e.k.set(nil)
		e.wait(4 * time.Second)
		assert.Equal(t, n, e.k.count(), "the broker is left alone")
		e.wait(2 * time.Second)
		assert.Equal(t, gobreaker.StateClosed, e.p.state(1))
		assert.Empty(t, e.s.pending())
		assert.Len(t, e.k.requests[n], 1, "one finds out")
		for partition := range 2 {
			seqs := e.k.stored(partition)
			assert.Len(t, seqs, 50)
			assert.True(t, slices.IsSorted(seqs))
			for _, r := range e.k.log[partition] {
				assert.Equal(t, batch.Spool, r.Path)
				assert.Equal(t, []byte("value"), r.Value)
			}
		}
		for _, r := range e.k.requests[n:] {
			assert.LessOrEqual(t, len(r), 20)
		}
		for seq := range 100 {
			assert.Equal(t, []string{"spooled", "kafka"}, e.l.of(seq))
		}
		assert.Equal(t, []string{"0/49"}, e.l.where[key{seq: 98}])
		where, _, err := e.publish(0, 100)
		require.NoError(t, err)
		assert.Equal(t, batch.InKafka, where)
	})
}

func TestDrainWhatAnEarlierProcessLeft(t *testing.T) {
	withSpool(t, []int{1, 2}, Options{}, func(t *testing.T, e *outage) {
		e.k.set(failing)
		e.fill(2, 0, 50)
		shut(t, e.p)
		e.k.set(nil)
		for _, back := range []uint64{none, 40} { // with and without a crash after which some are back
			e.s = e.s.reopened(back)
			e.p = newPublisher(t, Options{Producer: e.k, Spool: e.s, Ledger: e.l})
			e.wait(time.Second)
			assert.Empty(t, e.s.pending())
			shut(t, e.p)
		}
		assert.Len(t, e.k.stored(0), 25+5)
		assert.Len(t, e.k.stored(1), 25+5)
	})
}

// A leader that is down, or hangs, stops nobody else's drain.
func TestDrainOfOneLeaderDoesNotWaitForAnother(t *testing.T) {
	for name, bad := range map[string]func(context.Context, int, []batch.Record) error{"down": failing, "hung": hanging} {
		t.Run(name, func(t *testing.T) {
			withSpool(t, []int{1, 2, 3}, Options{OpenFor: 5 * time.Second, rescanAfter: rescanAfter}, func(t *testing.T, e *outage) {
				e.k.set(failing)
				e.fill(3, 0, 90)
				e.k.set(only(0, bad))
				e.wait(6 * time.Second)
				assert.Len(t, e.k.stored(1), 30)
				assert.Len(t, e.k.stored(2), 30)
				assert.Len(t, e.s.pending(), 30)
				assert.NotEqual(t, gobreaker.StateClosed, e.p.state(1))
				before := e.s.headers()
				e.wait(time.Minute)
				assert.LessOrEqual(t, e.s.headers()-before, 2*30*7+60, "the others do not look through it all the time")
				e.k.set(nil)
				e.wait(20 * time.Second)
				assert.Empty(t, e.s.pending())
				assert.Len(t, e.k.stored(0), 30)
				for leader := 1; leader <= 3; leader++ {
					assert.Equal(t, gobreaker.StateClosed, e.p.state(leader))
				}
			})
		})
	}
}

// One partition that cannot be written to does not stop those of the same leader.
func TestDrainPassesOverAPartitionThatFails(t *testing.T) {
	for name, err := range map[string]error{"moved": movedError{errDown}, "transient": errDown} {
		t.Run(name, func(t *testing.T) {
			withSpool(t, []int{1, 1, 1}, Options{GroupRecords: 10, GroupBytes: 10 << 10}, func(t *testing.T, e *outage) {
				e.k.setLeaders(-1, -1, -1)
				e.fill(1, 0, 200) // most of what is read first
				e.fill(3, 200, 60)
				e.k.set(only(0, func(context.Context, int, []batch.Record) error { return err }))
				e.k.setLeaders(1, 1, 1)
				e.wait(30 * time.Second)
				assert.Len(t, e.k.stored(1), 20)
				assert.Len(t, e.k.stored(2), 20)
				assert.Len(t, e.s.pending(), 220)
				e.k.set(nil)
				e.wait(30 * time.Second)
				assert.Empty(t, e.s.pending())
				assert.Len(t, e.k.stored(0), 220)
				assert.True(t, slices.IsSorted(e.k.stored(0)))
			})
		})
	}
}

func TestDrainSetsAside(t *testing.T) {
	for name, known := range map[string]bool{"named": true, "not named": false} {
		t.Run(name, func(t *testing.T) {
			withSpool(t, []int{1, 1}, Options{}, func(t *testing.T, e *outage) {
				e.k.setLeaders(-1, -1)
				e.fill(2, 0, 40)
				bad := map[uint64]bool{3: true, 4: true, 30: true, 39: true}
				e.k.set(func(_ context.Context, _ int, records []batch.Record) error {
					var at []int
					for i, r := range records {
						if bad[r.Seq] {
							at = append(at, i)
						}
					}
					switch {
					case at == nil:
						return nil
					case known:
						return refusing(at...)
					}
					return refusing()
				})
				// The disk cannot, at first.
				e.s.set(func(s *fakeSpool) { s.unaside = errDisk })
				e.k.setLeaders(1, 1)
				e.wait(5 * time.Second)
				assert.ElementsMatch(t, []uint64{3, 4, 30, 39}, e.s.pending(), "the rest goes on")
				n := e.k.count()
				e.wait(5 * time.Second)
				assert.Equal(t, n, e.k.count(), "they are not sent again")
				e.s.set(func(s *fakeSpool) { s.unaside = nil })
				e.wait(time.Second)
				assert.Empty(t, e.s.pending())
				assert.Len(t, e.s.asides, 4)
				for _, why := range e.s.asides {
					assert.True(t, isRefusal(why))
				}
				assert.Len(t, e.k.log[0], 18)
				assert.Len(t, e.k.log[1], 18)
				assert.Equal(t, []string{"spooled"}, e.l.of(3))
				assert.Equal(t, 4.0, testutil.ToFloat64(e.p.metrics.aside))
			})
		})
	}
}

// Too many that cannot be set aside hold their partition up, and no other.
func TestTooManyRefused(t *testing.T) {
	withSpool(t, []int{1, 1}, Options{GroupRecords: 100}, func(t *testing.T, e *outage) {
		e.k.setLeaders(-1, -1)
		e.fill(2, 0, 2*maxRefused+200)
		e.s.set(func(s *fakeSpool) { s.unaside = errDisk })
		e.k.set(only(0, func(context.Context, int, []batch.Record) error { return refusing() }))
		e.k.setLeaders(1, 1)
		e.wait(time.Minute)
		assert.Len(t, e.k.stored(1), maxRefused+100)
		assert.Len(t, e.s.pending(), maxRefused+100)
		assert.Equal(t, maxRefused, e.p.drain.held.len())
		e.s.set(func(s *fakeSpool) { s.unaside = nil })
		e.wait(time.Minute)
		assert.Empty(t, e.s.pending())
		assert.Len(t, e.s.asides, maxRefused+100)
	})
}

// Records go where their partition is led when they are sent.
func TestDrainFollowsTheLeaders(t *testing.T) {
	withSpool(t, []int{1, 2}, Options{OpenFor: 5 * time.Second}, func(t *testing.T, e *outage) {
		down := map[int]bool{1: true, 2: true, 3: true}
		var mu sync.Mutex
		e.k.set(func(_ context.Context, partition int, _ []batch.Record) error {
			mu.Lock()
			defer mu.Unlock()
			if down[e.p.leader(partition)] {
				return errDown
			}
			return nil
		})
		e.fill(2, 0, 40)
		mu.Lock()
		down[2] = false
		mu.Unlock()
		e.wait(6 * time.Second)
		assert.Len(t, e.k.stored(1), 20, "the second broker's are drained")
		assert.Len(t, e.s.pending(), 20)
		e.k.setLeaders(2, 2)
		e.wait(time.Second)
		assert.Empty(t, e.s.pending(), "it has the first one's now, which it had passed over")

		// More partitions: what waits goes to where its copies go from now on.
		e.k.setLeaders(-1, -1)
		for i := range 3 {
			e.spoolOne(2+i, 100+i, 0)
		}
		e.k.setLeaders(2, 2, 2, 2, 2)
		e.wait(time.Second)
		assert.Equal(t, []uint64{100}, e.k.stored(2))
		assert.Equal(t, []uint64{101}, e.k.stored(3))
		assert.Equal(t, []uint64{102}, e.k.stored(4))

		// And fewer.
		e.k.setLeaders()
		e.spoolOne(4, 200, 0)
		e.wait(time.Minute)
		assert.Equal(t, []uint64{200}, e.s.pending())
		e.k.setLeaders(2)
		e.wait(time.Second)
		assert.Empty(t, e.s.pending())
		assert.Contains(t, e.k.stored(0), uint64(200))
	})
}

// A partition moves while its drain reads and sends.
func TestDrainWhileLeadersMove(t *testing.T) {
	withSpool(t, []int{1, 1, 2, 2}, Options{GroupRecords: 2}, func(t *testing.T, e *outage) {
		e.k.setLeaders(-1, -1, -1, -1)
		e.fill(4, 0, 400)
		moves := [][]int{{1, 1, 2, 2}, {2, 1, 2, 1}, {1, 2, 1, 2}, {3, 2, 1, -1}}
		e.k.set(func(ctx context.Context, partition int, records []batch.Record) error {
			e.k.setLeaders(moves[e.k.count()%len(moves)]...)
			return slow(20*time.Millisecond)(ctx, partition, records)
		})
		e.k.setLeaders(moves[0]...)
		e.wait(2 * time.Second)
		e.k.set(nil)
		e.wait(time.Second)
		e.k.setLeaders(moves[0]...) // they may have stopped where one has no leader
		e.wait(10 * time.Second)
		assert.Empty(t, e.s.pending())
		all := map[uint64]int{}
		for partition := range 4 {
			for _, seq := range e.k.stored(partition) {
				all[seq]++
			}
		}
		assert.Len(t, all, 400)
	})
}

func TestDrainRate(t *testing.T) {
	withSpool(t, []int{1, 2, 3}, Options{DrainBytesPerSecond: 10 << 10, GroupBytes: 1 << 10}, func(t *testing.T, e *outage) {
		e.k.setLeaders(-1, -1, -1)
		e.fill(3, 0, 600)
		total := e.s.Backlog().Bytes
		e.k.setLeaders(1, 2, 3)
		e.wait(10 * time.Second)
		sent := total - e.s.Backlog().Bytes
		assert.InDelta(t, 10*10<<10, sent, 5<<10)
		e.wait(time.Minute)
		assert.Empty(t, e.s.pending())
	})
	withSpool(t, []int{1}, Options{DrainBytesPerSecond: 1 << 10, GroupBytes: 512}, func(t *testing.T, e *outage) {
		e.k.set(failing)
		big := record(0, 1)
		big.Value = make([]byte, 5<<10)
		_, err := e.p.Publish(t.Context(), []batch.Record{big})
		require.NoError(t, err)
		e.k.set(nil)
		e.wait(10 * time.Second)
		assert.Empty(t, e.s.pending(), "a record larger than what the rate gives at once goes too")
	})
}

// The drain has one request at a time at a broker.
func TestDrainIsModest(t *testing.T) {
	withSpool(t, []int{1, 1, 1, 1}, Options{GroupRecords: 10}, func(t *testing.T, e *outage) {
		e.k.setLeaders(-1, -1, -1, -1)
		e.fill(4, 0, 400)
		var mu sync.Mutex
		flying, most := 0, 0
		e.k.set(func(ctx context.Context, partition int, records []batch.Record) error {
			mu.Lock()
			flying++
			most = max(most, flying)
			mu.Unlock()
			defer func() {
				mu.Lock()
				flying--
				mu.Unlock()
			}()
			return slow(10*time.Millisecond)(ctx, partition, records)
		})
		e.k.setLeaders(1, 1, 1, 1)
		e.wait(time.Minute)
		assert.Empty(t, e.s.pending())
		assert.Equal(t, 1, most)
	})
}

func TestCloseStopsTheDrain(t *testing.T) {
	withSpool(t, []int{1}, Options{GroupRecords: 10}, func(t *testing.T, e *outage) {
		e.k.setLeaders(-1)
		e.fill(1, 0, 100)
		e.k.set(slow(100 * time.Millisecond))
		e.k.setLeaders(1)
		e.wait(750 * time.Millisecond)
		n := e.k.count()
		start := time.Now()
		shut(t, e.p)
		assert.LessOrEqual(t, time.Since(start), 100*time.Millisecond, "the request on its way ends, no other begins")
		assert.Equal(t, n, e.k.count())
		assert.Len(t, e.s.pending(), 100-10*n)
	})
}

func TestReadErrors(t *testing.T) {
	withSpool(t, []int{1}, Options{}, func(t *testing.T, e *outage) {
		e.k.setLeaders(-1)
		e.fill(1, 0, 10)
		e.s.set(func(s *fakeSpool) { s.unread = errors.New("input/output error") })
		e.k.setLeaders(1)
		e.wait(5 * time.Second)
		assert.Len(t, e.s.pending(), 10)
		assert.NotZero(t, testutil.ToFloat64(e.p.metrics.drainErrors.WithLabelValues("read")))
		e.s.set(func(s *fakeSpool) { s.unread = nil })
		e.wait(time.Second)
		assert.Empty(t, e.s.pending())
	})
}

// forgetting loses sight of some partitions for a while.
type forgetting struct {
	*fakeKafka
	mu     sync.Mutex
	forgot bool
}

func (k *forgetting) set(forgot bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forgot = forgot
}

func (k *forgetting) Partition(ctx context.Context, id batch.ID) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.forgot && id[0] == 0 {
		return 0, errNotThere
	}
	return k.fakeKafka.Partition(ctx, id)
}

// What could not be placed is looked at again.
func TestDrainWithoutAPlace(t *testing.T) {
	withSpool(t, []int{1, 1}, Options{}, func(t *testing.T, e *outage) {
		e.k.setLeaders(-1, -1)
		e.fill(2, 0, 20)
		shut(t, e.p)
		k := &forgetting{fakeKafka: e.k, forgot: true}
		e.k.setLeaders(1, 1)
		e.p = newPublisher(t, Options{Producer: k, Spool: e.s, Ledger: e.l, rescanAfter: time.Hour})
		e.wait(5 * time.Second)
		assert.Len(t, e.k.stored(1), 10)
		assert.Len(t, e.s.pending(), 10)
		k.set(false)
		e.wait(5 * time.Second)
		assert.Empty(t, e.s.pending())
		shut(t, e.p)
	})
}

func TestDrainMetrics(t *testing.T) {
	r := prometheus.NewRegistry()
	withSpool(t, []int{1}, Options{Registerer: r, OpenFor: 5 * time.Second}, func(t *testing.T, e *outage) {
		e.k.set(failing)
		e.fill(1, 0, 10)
		e.k.setLeaders(-1)
		e.fill(1, 10, 1)
		e.k.setLeaders(1)
		e.wait(5500 * time.Millisecond)
		e.k.set(slow(800 * time.Millisecond))
		e.wait(10 * time.Second)
		e.spoolOne(0, 100, ack)
		e.wait(5 * time.Second)
		require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(`
# HELP sluice_drain_bytes_total Bytes of records that were brought from the spool to Kafka.
# TYPE sluice_drain_bytes_total counter
sluice_drain_bytes_total 2871
# HELP sluice_drain_errors_total Attempts to bring records from the spool to Kafka that failed, by class: transient, throttled, permanent, shutdown, or read where it was the spool.
# TYPE sluice_drain_errors_total counter
sluice_drain_errors_total{class="transient"} 2
# HELP sluice_drain_held_records Spooled records that are not sent now: a request that has them may still succeed, or they wait to be set aside.
# TYPE sluice_drain_held_records gauge
sluice_drain_held_records 0
# HELP sluice_drain_records_total Records that were brought from the spool to Kafka.
# TYPE sluice_drain_records_total counter
sluice_drain_records_total 11
# HELP sluice_drain_set_aside_total Spooled records that Kafka refuses for good; they are kept apart.
# TYPE sluice_drain_set_aside_total counter
sluice_drain_set_aside_total 0
# HELP sluice_publish_late_total Records that Kafka acknowledged after nobody waited any more; their copies in the spool are not sent.
# TYPE sluice_publish_late_total counter
sluice_publish_late_total 1
# HELP sluice_publish_spooled_total Records that went to the spool, by reason: timeout, slow, failed, breaker_open, no_leader, no_topic, queue_full, closed.
# TYPE sluice_publish_spooled_total counter
sluice_publish_spooled_total{reason="breaker_open"} 8
sluice_publish_spooled_total{reason="failed"} 2
sluice_publish_spooled_total{reason="no_leader"} 1
sluice_publish_spooled_total{reason="timeout"} 1
`), "sluice_drain_bytes_total", "sluice_drain_errors_total", "sluice_drain_held_records", "sluice_drain_records_total",
			"sluice_drain_set_aside_total", "sluice_publish_late_total", "sluice_publish_spooled_total"))
		problems, err := testutil.GatherAndLint(r)
		require.NoError(t, err)
		assert.Empty(t, problems)
	})
}
