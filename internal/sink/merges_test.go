package sink

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"sluice/pkg/retry"
)

// said is what the store was told about merges.
func (s *memoryStore) said() []bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mergesOff)
}

// Merges are put off while blocks are full, and not longer; at its start and at its
// end a sink leaves nothing as another may have left it.
func TestMergesWaitForCatchingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.cfg.FlushRows = 50
		for i := range 100 {
			r.log.append(0, sample(fmt.Sprint(i), 10))
		}
		_, _, stop := r.start(nil)
		r.until("drained", time.Minute, r.drained)
		retry.Sleep(t.Context(), 2*time.Second)
		assert.Equal(t, []bool{true}, r.store.said())
		retry.Sleep(t.Context(), caughtUp+2*time.Second)
		assert.Equal(t, []bool{true, false}, r.store.said())

		// Small blocks at the log's end are no catching up.
		for i := range 60 {
			r.log.append(0, sample(fmt.Sprint("later", i), 10))
			retry.Sleep(t.Context(), time.Second)
		}
		assert.Equal(t, []bool{true, false}, r.store.said())

		for i := range 100 {
			r.log.append(0, sample(fmt.Sprint("burst", i), 10))
		}
		retry.Sleep(t.Context(), 3*time.Second)
		assert.Equal(t, []bool{true, false, true}, r.store.said())
		stop()
		assert.Equal(t, []bool{true, false, true, false}, r.store.said())
	})
}

// A sink that starts where one was killed while it caught up takes back what that one
// said, once.
func TestMergesAfterASinkThatWasKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		_, _, stop := r.start(nil)
		retry.Sleep(t.Context(), time.Minute)
		assert.Equal(t, []bool{false}, r.store.said())
		stop()
		assert.Equal(t, []bool{false}, r.store.said())
	})
}

// A sink that may not alter tables drains all the same, and does not ask again.
func TestMergesCannotBePutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.cfg.FlushRows = 50
		r.store.mayNotAlter = retry.Mark(errors.New("not enough privileges"), retry.Permanent)
		for i := range 100 {
			r.log.append(0, sample(fmt.Sprint(i), 10))
		}
		s, _, stop := r.start(nil)
		defer stop()
		r.until("drained", time.Minute, r.drained)
		retry.Sleep(t.Context(), time.Minute)
		assert.Empty(t, r.store.said())
		assert.Equal(t, "running", s.Status()[0].State)
	})
}
