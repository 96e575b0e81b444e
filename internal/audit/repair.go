package audit

import (
	"cmp"
	"context"
	"slices"
)

// Repairer brings back what ClickHouse does not have of the records of a partition,
// offsets first to last inclusive, from Kafka: rows of batches as well as of events.
// What is there stays as it is, so that repeating it changes nothing.
type Repairer interface {
	Repair(ctx context.Context, partition int, first, last int64) (inserted int64, err error)
}

// Range is offsets of a partition, both inclusive.
type Range struct {
	Partition   int
	First, Last int64
}

// Repairs lists the offsets at which a report finds something missing that a log
// may still have, neighbours joined.
func Repairs(r *Report, log string) []Range {
	var out []Range
	for _, l := range r.Findings {
		if (l.Kind == Lost || l.Kind == Torn) && l.Log == log && l.Partition >= 0 && l.Offset >= 0 {
			last := l.Offset
			if l.Kind == Lost {
				last += int64(max(l.Count, 1)) - 1
			}
			out = append(out, Range{l.Partition, l.Offset, last})
		}
	}
	slices.SortFunc(out, func(a, b Range) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.First, b.First))
	})
	joined := out[:0]
	for _, x := range out {
		if n := len(joined); n > 0 && joined[n-1].Partition == x.Partition && x.First <= joined[n-1].Last+1 {
			joined[n-1].Last = max(joined[n-1].Last, x.Last)
		} else {
			joined = append(joined, x)
		}
	}
	return joined
}

// Repair repairs what a report found and returns how many rows were inserted. After
// an error what was inserted stays.
func Repair(ctx context.Context, with Repairer, r *Report, log string, progress func(done, total int64)) (inserted int64, err error) {
	ranges := Repairs(r, log)
	for i, x := range ranges {
		if progress != nil {
			progress(int64(i), int64(len(ranges)))
		}
		n, err := with.Repair(ctx, x.Partition, x.First, x.Last)
		inserted += n
		if err != nil {
			return inserted, err
		}
	}
	return inserted, nil
}
