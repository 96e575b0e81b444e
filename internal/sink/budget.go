package sink

import (
	"container/list"
	"context"
	"sync"
)

// budget bounds the bytes that all partitions of the process hold together. It
// hands out in two ways: try (a partition that already holds a block does not
// wait, it writes the block instead) and wait (one that holds nothing waits for
// those that do). So nobody waits while holding, and nobody waits for ever: who
// waits is served in turn, and try gives way to those who wait.
type budget struct {
	most    int64
	mu      sync.Mutex
	limit   int64
	used    int64
	waiting list.List // of *claimant, first come first
}

type claimant struct {
	bytes   int64
	granted chan struct{}
}

func newBudget(limit int64) *budget {
	limit = max(limit, 1<<20)
	return &budget{most: limit, limit: limit}
}

// beside leaves room for n bytes that are held elsewhere, up to half of the limit.
func (b *budget) beside(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limit = max(b.most-n, b.most/2)
	b.grant()
}

// fits reports whether n bytes may be taken now. When nothing at all is taken
// they always may: one fetch must be possible, however small the limit.
func (b *budget) fits(n int64) bool { return b.used <= 0 || b.used+n <= b.limit }

func (b *budget) try(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting.Len() > 0 || !b.fits(n) {
		return false
	}
	b.used += n
	return true
}

func (b *budget) wait(ctx context.Context, n int64) error {
	b.mu.Lock()
	c := &claimant{bytes: n, granted: make(chan struct{})}
	place := b.waiting.PushBack(c)
	b.grant()
	b.mu.Unlock()
	select {
	case <-c.granted:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-c.granted: // both at once: give it back
		b.used -= n
	default:
		b.waiting.Remove(place)
	}
	b.grant()
	return ctx.Err()
}

// grant serves those who wait, in turn. b.mu is held.
func (b *budget) grant() {
	for e := b.waiting.Front(); e != nil; e = b.waiting.Front() {
		c := e.Value.(*claimant)
		if !b.fits(c.bytes) {
			return
		}
		b.used += c.bytes
		close(c.granted)
		b.waiting.Remove(e)
	}
}

// adjust corrects an estimate after the fact, or gives bytes back (n < 0). It
// may pass the limit, which only makes others wait.
func (b *budget) adjust(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used += n
	b.grant()
}

func (b *budget) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}
