package sink

import (
	"context"
	"time"

	"sluice/pkg/retry"
)

const (
	// A sink catches up until none of its blocks was full for so long.
	caughtUp = 10 * time.Second
	// Another sink of the group, which has caught up, may have said otherwise: what is
	// wanted is said again so often.
	sayAgain = 10 * time.Second
)

// fillsBlocks notes that a partition has filled a block, and more is to come.
func (s *Sink) fillsBlocks() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = s.now()
}

func (s *Sink) catchesUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.full.IsZero() && s.now().Sub(s.full) < caughtUp
}

// watchMerges has ClickHouse put merges off while this process catches up: a row costs
// twice as much CPU to merge as to insert, and is merged again and again where blocks
// come fast (docs/adr/0018). Afterwards one merge does for many of them. Only speed
// depends on it: after an error it tries again, and gives up where it may not.
func (s *Sink) watchMerges(ctx context.Context) {
	store := s.guarded(nil)
	off, said := true, time.Time{} // perhaps: a process before this one may have ended in the middle
	say := func(ctx context.Context, want bool) error {
		err := store.PutMergesOff(ctx, want)
		if err == nil {
			off, said = want, s.now()
		}
		return err
	}
	for retry.Sleep(ctx, time.Second) {
		want := s.catchesUp()
		if want == off && (!want || s.now().Sub(said) < sayAgain) {
			continue
		}
		if err := say(ctx, want); err != nil && retry.ClassOf(err) == retry.Permanent {
			s.log.Warn("merges are not put off while the sink catches up", "error", err)
			<-ctx.Done() // were this to return now, the generation would end
			return
		}
	}
	if off && !said.IsZero() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = say(last, false) // else the next process does
	}
}
