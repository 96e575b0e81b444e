package publish

import (
	"sync"

	"sluice/pkg/batch"
)

// key tells records apart before they have a number in the spool.
type key struct {
	collector  batch.ID
	epoch, seq uint64
}

func keyOf(r *batch.Record) key { return key{r.Collector, r.Epoch, r.Seq} }

// held are the records that the drain may not send: somebody else is about to
// say what became of them. There are never more than what is on its way to Kafka
// or to the disk, and what is refused and could not be set aside (maxRefused).
type held struct {
	mu   sync.Mutex
	keys map[key]int // how often
}

func (h *held) add(k key) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.keys == nil {
		h.keys = map[key]int{}
	}
	h.keys[k]++
}

func (h *held) drop(keys []key) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range keys {
		if h.keys[k]--; h.keys[k] <= 0 {
			delete(h.keys, k)
		}
	}
}

func (h *held) has(k key) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.keys[k] > 0
}

func (h *held) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.keys)
}
