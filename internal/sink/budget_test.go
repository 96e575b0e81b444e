package sink

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const mib = 1 << 20

func TestBudgetServesWaitersInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(4 * mib)
		require.True(t, b.try(4*mib))
		assert.False(t, b.try(1))
		var mu sync.Mutex
		var order []int
		for i := range 3 {
			go func() {
				assert.NoError(t, b.wait(t.Context(), 3*mib))
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
			}()
			synctest.Wait()
		}
		for i := range 3 {
			b.adjust(-b.inUse())
			assert.False(t, i < 2 && b.try(1), "those who wait go first")
			synctest.Wait()
		}
		assert.Equal(t, []int{0, 1, 2}, order)
		b.adjust(-3 * mib)
		assert.Zero(t, b.inUse())
	})
}

func TestBudgetOneFetchAlwaysFits(t *testing.T) {
	b := newBudget(1)
	require.True(t, b.try(100*mib))
	assert.False(t, b.try(1))
	b.adjust(-100 * mib)
	require.NoError(t, b.wait(t.Context(), 100*mib))
}

func TestBudgetWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(mib)
		require.True(t, b.try(mib))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		// The second, smaller one is not held up by the first that went away.
		require.ErrorIs(t, b.wait(ctx, mib), context.DeadlineExceeded)
		b.adjust(-mib / 2)
		assert.True(t, b.try(mib/2))
		b.adjust(-b.inUse())
		assert.Zero(t, b.inUse())
	})
}

// What is held elsewhere leaves less, never less than half, and not for good.
func TestBudgetBesideOthers(t *testing.T) {
	b := newBudget(8 << 20)
	require.True(t, b.try(4<<20))
	b.beside(3 << 20)
	assert.False(t, b.try(2<<20))
	assert.True(t, b.try(1<<20))
	b.beside(1 << 40)
	b.adjust(-2 << 20)
	assert.True(t, b.try(1<<20))
	assert.False(t, b.try(1))
	b.beside(0)
	assert.True(t, b.try(4<<20))
}
