package kafka

import (
	"context"
	"errors"
	"fmt"

	kafkago "github.com/segmentio/kafka-go"

	"sluice/pkg/batch"
)

// MaxMetadata is the longest metadata a commit may carry, in bytes: the brokers'
// default for offset.metadata.max.bytes.
const MaxMetadata = 4096

// pendingCommit is one partition's commit on its way.
type pendingCommit struct {
	ctx    context.Context
	commit kafkago.OffsetCommit
	done   chan error // buffered
}

// Commit commits an offset and its metadata as this generation's member. It is
// durable when Commit returns nil. One request is in flight at a time; what
// comes meanwhile travels together in the next one.
//
// The errors: batch.ErrFenced means that the group does not count this member to
// the generation any more (or is about to deal anew), so the partitions may have
// another owner; it sticks, and the generation ends. A Permanent error was never
// sent or is refused for what it is; any other answer of the broker means that
// nothing was committed, and the call may be repeated. Where there was no answer
// (time-out, connection lost) the commit may have happened or still happen: the
// error is Transient, and the generation ends, so that the next owner, most
// likely this process, reads what was committed.
func (n *Generation) Commit(ctx context.Context, partition int, offset int64, metadata string) error {
	if len(metadata) > MaxMetadata {
		return permanentf("commit %s/%d at %d: %d bytes of metadata, Kafka takes %d", n.g.cfg.Topic, partition, offset, len(metadata), MaxMetadata)
	}
	p := &pendingCommit{ctx: ctx, done: make(chan error, 1),
		commit: kafkago.OffsetCommit{Partition: partition, Offset: offset, Metadata: metadata}}
	n.mu.Lock()
	if err := n.fenced; err != nil {
		n.mu.Unlock()
		return err
	}
	n.pending = append(n.pending, p)
	if !n.flying {
		n.flying = true
		n.g.wg.Go(n.flush)
	}
	n.mu.Unlock()
	select {
	case err := <-p.done:
		return err
	case <-ctx.Done():
		return n.g.c.classify(fmt.Errorf("commit %s/%d at %d, outcome unknown: %w", n.g.cfg.Topic, partition, offset, ctx.Err()))
	}
}

// flush sends what is pending until nothing is.
func (n *Generation) flush() {
	for {
		group := n.take()
		if len(group) == 0 {
			return
		}
		n.send(group)
	}
}

// take hands out what goes into the next request: each partition's first commit,
// so that two of one partition stay in order. What nobody waits for any more is
// dropped: its partition loop has ended.
func (n *Generation) take() []*pendingCommit {
	n.mu.Lock()
	defer n.mu.Unlock()
	var now, later []*pendingCommit
	taken := map[int]bool{}
	for _, p := range n.pending {
		switch {
		case p.ctx.Err() != nil:
		case n.fenced != nil:
			p.done <- n.fenced
		case taken[p.commit.Partition]:
			later = append(later, p)
		default:
			taken[p.commit.Partition] = true
			now = append(now, p)
		}
	}
	n.pending = later
	n.flying = len(now) > 0
	return now
}

func (n *Generation) send(group []*pendingCommit) {
	ctx, cancel := context.WithTimeout(n.g.c.base, n.g.cfg.CommitTimeout)
	defer cancel()
	commits := make([]kafkago.OffsetCommit, len(group))
	for i, p := range group {
		commits[i] = p.commit
	}
	// A crash before the broker has it: the next owner finds the offset and intent
	// of before. After it: the next owner goes on from here. Which of the two it
	// was when no answer came only the next owner can tell.
	res, err := n.g.c.cluster.OffsetCommit(ctx, &kafkago.OffsetCommitRequest{
		GroupID:      n.g.cfg.ID,
		GenerationID: int(n.gen.ID),
		MemberID:     n.gen.MemberID,
		Topics:       map[string][]kafkago.OffsetCommit{n.g.cfg.Topic: commits},
	})
	answers := map[int]error{}
	if err == nil {
		for _, p := range res.Topics[n.g.cfg.Topic] {
			answers[p.Partition] = p.Error
		}
	}
	for _, p := range group {
		answer, ok := answers[p.commit.Partition]
		switch {
		case err != nil:
			answer = err
		case !ok:
			answer = errResponse
		}
		p.done <- n.settle(p, answer, err == nil && ok)
	}
}

// settle says what the answer to a commit means. answered: it is the broker's
// about this very commit.
func (n *Generation) settle(p *pendingCommit, answer error, answered bool) error {
	if answer == nil {
		return nil
	}
	answered = answered && !errors.Is(answer, kafkago.RequestTimedOut)
	what := fmt.Sprintf("commit %s/%d at %d", n.g.cfg.Topic, p.commit.Partition, p.commit.Offset)
	if !answered {
		n.end()
		return n.g.c.classify(fmt.Errorf("%s, outcome unknown: %w", what, answer))
	}
	err := n.g.c.classify(fmt.Errorf("%s: %w", what, answer))
	if errors.Is(err, batch.ErrFenced) {
		n.mu.Lock()
		n.fenced = err
		n.mu.Unlock()
		n.end()
	}
	return err
}

// end ends the generation; the group rejoins when everything in it has returned.
func (n *Generation) end() { n.once.Do(func() { close(n.over) }) }
