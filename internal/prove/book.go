package prove

import (
	"sync"
	"time"
)

// book is what the senders know of every batch: that it was begun, and when it was
// acknowledged. It takes eight bytes a batch. Safe for concurrent use.
type book struct {
	now func() time.Time

	mu    sync.Mutex
	times []int64 // by batch: 0 not acknowledged, else when it was, in µs since 1970
	acked uint64
	// The acknowledged batches that were not handed out by before yet, in the order
	// of their acknowledgement.
	queue []uint64
	last  int64
}

func newBook(now func() time.Time) *book { return &book{now: now} }

// begin gives out the number of the next batch.
func (b *book) begin() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.times = append(b.times, 0)
	return uint64(len(b.times) - 1)
}

// ack notes that a batch was acknowledged just now. The time is taken under the
// lock, so that batches queue in its order; it is a little after the answer came,
// and the watermark must have let the batch wait for that much longer only.
func (b *book) ack(batch uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.times[batch] != 0 {
		return
	}
	b.last = max(b.last, b.now().UnixMicro())
	b.times[batch] = b.last
	b.acked++
	b.queue = append(b.queue, batch)
}

// before takes out of the queue the batches that were acknowledged before an
// instant, at most limit of them. more is whether there are others.
func (b *book) before(us int64, limit int) (batches []uint64, more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for n < len(b.queue) && n < limit && b.times[b.queue[n]] < us {
		n++
	}
	batches = append(batches, b.queue[:n]...)
	if b.queue = b.queue[n:]; len(b.queue) == 0 {
		b.queue = nil // gives the memory back
	}
	return batches, len(b.queue) > 0 && b.times[b.queue[0]] < us
}

// state is what is known of a batch.
func (b *book) state(batch uint64) (begun bool, ackedAt int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if batch >= uint64(len(b.times)) {
		return false, 0
	}
	return true, b.times[batch]
}

// totals are how many batches were begun and acknowledged, and when the last was.
func (b *book) totals() (begun, acked uint64, last time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return uint64(len(b.times)), b.acked, time.UnixMicro(b.last)
}

// copied is the times as they are now.
func (b *book) copied() []int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]int64(nil), b.times...)
}
