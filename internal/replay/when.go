package replay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sluice/pkg/batch"
)

// Offsets returns the first and the last offset of a partition's records that Kafka
// took from since on and before until; last is before first where there is none. The
// zero since is the log's start, the zero until its end. A log's brokers stamp
// records in the order of their offsets, give or take the difference of their
// clocks.
func (r *Repairer) Offsets(ctx context.Context, partition int, since, until time.Time) (first, last int64, err error) {
	var bounds batch.Bounds
	err = r.policy.Do(ctx, func(ctx context.Context) (err error) {
		bounds, err = r.o.Log.Bounds(ctx, partition)
		return err
	})
	if err != nil {
		return 0, -1, err
	}
	first, end := bounds.Start, bounds.End
	if !since.IsZero() {
		if first, err = r.search(ctx, partition, bounds, since); err != nil {
			return 0, -1, err
		}
	}
	if !until.IsZero() {
		if end, err = r.search(ctx, partition, batch.Bounds{Start: first, End: bounds.End}, until); err != nil {
			return 0, -1, err
		}
	}
	return first, end - 1, nil
}

// search returns the first offset within bounds from which on no record is older
// than at, or the end.
func (r *Repairer) search(ctx context.Context, partition int, bounds batch.Bounds, at time.Time) (int64, error) {
	low, high := bounds.Start, bounds.End // before low: older; from high on: not
	for low < high {
		middle := low + (high-low)/2
		older, next, err := r.older(ctx, partition, middle, at)
		if err != nil {
			return 0, fmt.Errorf("partition %d: look for the records of %s: %w", partition, at.UTC().Format(time.RFC3339), err)
		}
		if older {
			low = max(next, middle+1)
		} else {
			high = middle
		}
	}
	return min(low, bounds.End), nil
}

// older reports whether the first record from an offset on is older than at, and
// the offset behind the older ones.
func (r *Repairer) older(ctx context.Context, partition int, offset int64, at time.Time) (older bool, next int64, err error) {
	const few = 64 << 10
	err = r.policy.Do(ctx, func(ctx context.Context) error {
		got, bounds, err := r.o.Log.Fetch(ctx, partition, offset, few, fetchWait)
		older, next = false, offset
		switch {
		case errors.Is(err, batch.ErrOffsetGone):
			if bounds, err = r.o.Log.Bounds(ctx, partition); err != nil {
				return err
			}
			if offset < bounds.Start { // deleted meanwhile: the oldest go first
				older, next = true, bounds.Start
			}
			return nil
		case err != nil:
			return err
		}
		for _, d := range got {
			if !d.AppendAt.Before(at) {
				break
			}
			older, next = true, d.Offset+1
		}
		return nil
	})
	return older, next, err
}
