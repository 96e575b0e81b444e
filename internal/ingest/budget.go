package ingest

import (
	"errors"
	"sync"
)

var (
	errTooLarge   = errors.New("over the limit for one request")
	errOverloaded = errors.New("too much in hand")
)

// reserve is the share of the budget (1/reserve) that the busiest key leaves to
// the others: what one key may hold is the rest, which is enough for the largest
// request there is and too little to shut the others out.
const reserve = 8

// budget bounds the bytes that all requests hold together, and what one write
// key has of them. It never makes anybody wait: who gets nothing is told so at
// once, and comes back later.
type budget struct {
	limit    int64 // bytes, together
	share    int64 // bytes, of one key
	requests int   // at once, of one key

	mu    sync.Mutex
	used  int64
	byKey map[string]*account // of keys with a request in hand
}

type account struct {
	key      string
	used     int64
	requests int
}

// newBudget divides limit bytes, and as many requests at once as there may be
// connections.
func newBudget(limit int64, connections int) *budget {
	return &budget{
		limit:    limit,
		share:    limit - limit/reserve,
		requests: max(1, connections-connections/reserve),
		byKey:    map[string]*account{},
	}
}

// enter begins a request of a key. It returns nil where the key has too many in
// hand.
func (b *budget) enter(key string) *holding {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.byKey[key]
	if a == nil {
		a = &account{key: key}
		b.byKey[key] = a
	}
	if a.requests >= b.requests {
		return nil
	}
	a.requests++
	return &holding{budget: b, account: a}
}

// move makes the request, and what it holds, that of another key. It returns false
// where that one has too much in hand.
func (h *holding) move(key string) bool {
	b := h.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.byKey[key]
	if a == nil {
		a = &account{key: key}
	}
	if a == h.account {
		return true
	}
	if a.requests >= b.requests || a.used+h.n > b.share {
		return false
	}
	b.byKey[key] = a
	h.account.used -= h.n
	b.leave(h.account)
	a.used += h.n
	a.requests++
	h.account = a
	return true
}

// leave ends a request of an account. It is called with the lock held.
func (b *budget) leave(a *account) {
	if a.requests--; a.requests == 0 {
		delete(b.byKey, a.key)
	}
}

// inUse returns the bytes held now.
func (b *budget) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// holding is what one request has of the budget. One goroutine uses it.
type holding struct {
	budget  *budget
	account *account
	n       int64
}

// take takes n bytes more. It returns errTooLarge when the request would hold
// more than any request may, so that coming back would not help, or
// errOverloaded when others hold too much now.
func (h *holding) take(n int64) error {
	b := h.budget
	if h.n+n > b.share {
		return errTooLarge
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used+n > b.limit || h.account.used+n > b.share {
		return errOverloaded
	}
	h.add(n)
	return nil
}

// settle corrects what was taken on an estimate by n bytes, up or down. It never
// refuses: the memory is there already.
func (h *holding) settle(n int64) {
	h.budget.mu.Lock()
	defer h.budget.mu.Unlock()
	h.add(n)
}

func (h *holding) give(n int64) { h.settle(-n) }

// add is called with the budget's lock held.
func (h *holding) add(n int64) {
	h.n += n
	h.account.used += n
	h.budget.used += n
}

// close gives everything back and ends the request.
func (h *holding) close() {
	b := h.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	h.add(-h.n)
	b.leave(h.account)
}
