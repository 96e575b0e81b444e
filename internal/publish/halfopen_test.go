package publish

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/sony/gobreaker/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// While a broker is tried with what the spool has for it, live records do not
// wait; with nothing there, one of them tries, and has the spool to fall back on.
func TestHalfOpen(t *testing.T) {
	withSpool(t, []int{1, 2}, Options{OpenFor: 5 * time.Second}, func(t *testing.T, e *outage) {
		e.giveUp(0)
		e.k.set(slow(900 * time.Millisecond))
		n := e.k.count()
		e.wait(5600 * time.Millisecond)
		require.Equal(t, gobreaker.StateHalfOpen, e.p.state(1))
		assert.Equal(t, n+1, e.k.count(), "the drain tries")
		e.spoolOne(0, 1, 0)
		e.wait(5 * time.Second)
		require.Equal(t, gobreaker.StateClosed, e.p.state(1))
		require.Empty(t, e.s.pending())

		// The three are in the spool, then somebody else's only.
		e.giveUp(0)
		e.k.setLeaders(3, 2)
		e.k.set(nil)
		e.wait(time.Second)
		require.Empty(t, e.s.pending())
		e.k.setLeaders(1, 2)
		e.wait(10 * time.Second)
		require.Equal(t, gobreaker.StateHalfOpen, e.p.state(1), "nobody has tried")
		assert.NoError(t, e.p.Ready())
		e.k.set(only(0, slow(600*time.Millisecond)))
		n = e.k.count()
		var wg sync.WaitGroup
		waited := 0
		for i := range 20 {
			wg.Go(func() {
				where, took, err := e.publish(0, 100+i)
				assert.NoError(t, err)
				assert.Equal(t, batch.InSpool, where)
				if took > 0 {
					assert.Equal(t, ack, took)
					waited++
				}
			})
		}
		wg.Wait()
		assert.Equal(t, 1, waited, "one tries")
		assert.Equal(t, n+1, e.k.count())
		e.wait(10 * time.Second)
		assert.Equal(t, gobreaker.StateClosed, e.p.state(1))
		assert.Empty(t, e.s.pending())
		assert.Len(t, e.k.stored(0), 3+1+3+20)
	})
}

// With a disk that is full, or cannot be read, the breaker closes all the same.
func TestHalfOpenWithABadDisk(t *testing.T) {
	for name, spooled := range map[string]bool{"empty": false, "unreadable": true} {
		t.Run(name, func(t *testing.T) {
			withSpool(t, []int{1}, Options{OpenFor: 5 * time.Second}, func(t *testing.T, e *outage) {
				if spooled {
					e.giveUp(0)
				}
				e.s.set(func(s *fakeSpool) { s.err, s.ready, s.unread = errDisk, errDisk, errDisk })
				e.k.set(failing)
				for i := range breakerInRow {
					_, _, err := e.publish(0, i)
					resend(t, err, retry.Transient)
				}
				e.k.set(nil)
				e.wait(6500 * time.Millisecond)
				where, _, err := e.publish(0, 10)
				require.NoError(t, err)
				assert.Equal(t, batch.InKafka, where)
				assert.Equal(t, gobreaker.StateClosed, e.p.state(1))
				e.s.set(func(s *fakeSpool) { s.unread = nil })
				e.wait(time.Second)
				assert.Empty(t, e.s.pending())
			})
		})
	}
}

// A ticket that was not used is given back.
func TestUnusedTicket(t *testing.T) {
	withSpool(t, []int{1, 1}, Options{OpenFor: time.Second, QueueBytes: 600}, func(t *testing.T, e *outage) {
		e.s.set(func(s *fakeSpool) { s.err = errDisk })
		e.k.set(failing)
		for i := range breakerInRow {
			_, _, err := e.publish(0, i)
			resend(t, err, retry.Transient)
		}
		e.wait(2 * time.Second)
		e.k.set(nil)
		e.p.queued.Add(1 << 20)
		_, _, err := e.publish(0, 10)
		resend(t, err, retry.Throttled)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = e.p.Publish(ctx, []batch.Record{record(0, 12)})
		resend(t, err, retry.Throttled)
		e.p.queued.Add(-1 << 20)
		assert.Equal(t, gobreaker.StateHalfOpen, e.p.state(1))
		where, _, err := e.publish(0, 11)
		require.NoError(t, err)
		assert.Equal(t, batch.InKafka, where)
		assert.Equal(t, gobreaker.StateClosed, e.p.state(1))
	})
}
