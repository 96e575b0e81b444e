// Package replay brings back what did not get through the first time. Dead takes
// dead letters, mends them and sends what is valid now to Kafka, each event as a
// record of its own whose identity follows from where it was lost, so that sending
// it again changes nothing. Repairer reads Kafka again and inserts the rows that
// ClickHouse does not have, or all of them into a table for comparison.
//
// Neither keeps any state of its own: what is done is seen in ClickHouse, so both
// may be interrupted at any point and run again.
package replay

import (
	"cmp"
	"context"
	"slices"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// Producer writes to the topic of the batches. Its errors are classified
// (sluice/pkg/retry).
type Producer interface {
	// Partition is where a batch's records go.
	Partition(ctx context.Context, id batch.ID) (int, error)
	// Produce writes records to a partition, in order, and returns nil when all
	// in-sync replicas have them. After an error they may be written all the same.
	Produce(ctx context.Context, partition int, records []batch.Record) (base int64, at time.Time, err error)
}

// Log reads the topic of the batches. Its errors are classified.
type Log interface {
	// Fetch returns records from offset on, in order, none before it; an empty
	// slice when there is nothing within maxWait. It returns batch.ErrOffsetGone
	// when the log does not hold the offset.
	Fetch(ctx context.Context, partition int, offset int64, maxBytes int, maxWait time.Duration) ([]batch.Delivery, batch.Bounds, error)
	Bounds(ctx context.Context, partition int) (batch.Bounds, error)
	// Log is the id of the log the topic is now.
	Log(ctx context.Context) (string, error)
}

// patience is how often a question to Kafka or ClickHouse is asked before the
// operator is told: some 20 s. Whatever was done by then stays done.
func patience() retry.Policy {
	return retry.Policy{Min: 200 * time.Millisecond, Max: 5 * time.Second, Attempts: 8}
}

// mostCounts bounds what a report tells apart: experiments and variants come from
// whoever sends events. What is beyond is counted together.
const mostCounts = 10_000

// tally counts things by a key, in bounded memory.
type tally[K comparable] struct {
	counts map[K]int64
	rest   func(K) K // the key to count under when there are too many
}

func newTally[K comparable](rest func(K) K) *tally[K] {
	return &tally[K]{counts: map[K]int64{}, rest: rest}
}

func (t *tally[K]) add(k K, n int64) {
	if _, ok := t.counts[k]; !ok && len(t.counts) >= mostCounts {
		k = t.rest(k)
	}
	t.counts[k] += n
}

// list returns the counts, the largest first, and equal ones in the order of less.
func list[K comparable, V any](t *tally[K], make func(K, int64) V, less func(a, b K) int) []V {
	type entry struct {
		key K
		n   int64
	}
	all := []entry{}
	for k, n := range t.counts {
		all = append(all, entry{k, n})
	}
	slices.SortFunc(all, func(a, b entry) int {
		return cmp.Or(cmp.Compare(b.n, a.n), less(a.key, b.key))
	})
	out := []V{}
	for _, e := range all {
		out = append(out, make(e.key, e.n))
	}
	return out
}

// others is what experiment and variant are called where there are too many to
// tell apart.
const others = "(others)"
