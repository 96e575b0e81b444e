package sink

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// endsWithMarker is a log whose partitions above 0 end with something that is no record,
// as the marker of a transaction: their end is one further than their last record.
type endsWithMarker struct{ *memoryLog }

func (s endsWithMarker) Fetch(ctx context.Context, partition int, offset int64, maxBytes int, maxWait time.Duration) ([]batch.Delivery, batch.Bounds, error) {
	out, b, err := s.memoryLog.Fetch(ctx, partition, offset, maxBytes, maxWait)
	if partition > 0 {
		b.End++
	}
	return out, b, err
}

func (s endsWithMarker) Bounds(ctx context.Context, partition int) (batch.Bounds, error) {
	b, err := s.memoryLog.Bounds(ctx, partition)
	if partition > 0 {
		b.End++
	}
	return b, err
}

// Partitions that get nothing, though something seems to be there, do not keep the
// others from reading.
func TestTurnsOfPartitionsThatGetNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		for p := 1; p <= turns; p++ {
			r.log.records[p], r.log.committed[p] = nil, commit{offset: -1}
		}
		r.source = endsWithMarker{r.log}
		_, _, stop := r.start(nil)
		defer stop()
		retry.Sleep(t.Context(), 10*time.Second)
		for i := range 200 {
			r.log.append(0, sample(fmt.Sprint(i), 5))
		}
		r.until("drained", time.Hour, r.drained)
	})
}

// While much arrives blocks wait long for more of it; once nothing does they do not.
func TestBlocksDoNotWaitForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.cfg.FlushRows, r.cfg.FlushInterval, r.cfg.FlushIntervalMax = 500_000, time.Second, 10*time.Second
		s, _, stop := r.start(nil)
		defer stop()
		for i := range 600 {
			r.log.append(0, sample(fmt.Sprint(i), 2000))
			retry.Sleep(t.Context(), 100*time.Millisecond)
		}
		before := s.Status()[0].Next
		retry.Sleep(t.Context(), 3*time.Second)
		r.log.append(0, sample("last", 2000))
		r.until("drained", 3*time.Second, r.drained)
		assert.Less(t, before, int64(590), "blocks were small while much arrived")
	})
}

// hungBroker does not answer for partitions above 0, in which much has piled up.
type hungBroker struct{ *memoryLog }

func (s hungBroker) Fetch(ctx context.Context, partition int, offset int64, maxBytes int, maxWait time.Duration) ([]batch.Delivery, batch.Bounds, error) {
	if partition == 0 {
		return s.memoryLog.Fetch(ctx, partition, offset, maxBytes, maxWait)
	}
	if !retry.Sleep(ctx, maxWait+10*time.Second) {
		return nil, batch.Bounds{}, ctx.Err()
	}
	return nil, batch.Bounds{}, retry.Mark(context.DeadlineExceeded, retry.Transient)
}

func (s hungBroker) Bounds(ctx context.Context, partition int) (batch.Bounds, error) {
	if partition == 0 {
		return s.memoryLog.Bounds(ctx, partition)
	}
	return batch.Bounds{End: 1000}, nil
}

// Partitions whose broker hangs take a turn each to find that out, and no more.
func TestTurnsOfPartitionsWhoseBrokerHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.cfg.FlushRows = 500
		for p := 1; p <= 3*turns; p++ {
			r.log.records[p], r.log.committed[p] = nil, commit{offset: -1}
		}
		r.source = hungBroker{r.log}
		_, _, stop := r.start(nil)
		defer stop()
		retry.Sleep(t.Context(), time.Minute)
		for i := range 1000 {
			r.log.append(0, sample(fmt.Sprint(i), 5))
		}
		r.until("drained", 5*time.Second, r.drained)
	})
}
