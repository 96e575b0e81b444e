package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// What the sink asks of a generation; the sink declares the same.
var _ interface {
	Partitions() []int
	Committed(ctx context.Context, partition int) (offset int64, metadata string, err error)
	Commit(ctx context.Context, partition int, offset int64, metadata string) error
	Start(fn func(ctx context.Context))
} = (*Generation)(nil)

func testGroup(t testing.TB, c *Client, prefix string) *Group {
	g, err := c.NewGroup(GroupConfig{ID: prefix + ".sink", Topic: Topics(prefix).Batches,
		Session: 6 * time.Second, Heartbeat: 200 * time.Millisecond, Rejoin: 50 * time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(g.Close)
	return g
}

// next waits for a generation; a rebalance may interrupt the joining.
func next(t testing.TB, g *Group) *Generation {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		gen, err := g.Next(ctx)
		if err == nil {
			return gen
		}
		require.NoError(t, ctx.Err(), err)
	}
}

func TestGroupConfig(t *testing.T) {
	c := testClient(t)
	for _, cfg := range []GroupConfig{{}, {ID: "g"}, {Topic: "t"}, {ID: "g", Topic: "t", Session: time.Second}} {
		_, err := c.NewGroup(cfg)
		classOf(t, retry.Permanent, err)
	}
}

func TestCommitKeepsMetadata(t *testing.T) {
	c := testClient(t)
	prefix := testTopics(t, c, 2)
	g := testGroup(t, c, prefix)
	gen := next(t, g)
	assert.Equal(t, []int{0, 1}, gen.Partitions())
	offset, metadata, err := gen.Committed(t.Context(), 0)
	require.NoError(t, err)
	assert.Equal(t, int64(-1), offset)
	assert.Empty(t, metadata)

	long := strings.Repeat("x", MaxMetadata)
	require.NoError(t, gen.Commit(t.Context(), 0, 7, "intent"))
	require.NoError(t, gen.Commit(t.Context(), 1, 9, long))
	classOf(t, retry.Permanent, gen.Commit(t.Context(), 1, 10, long+"x"))
	g.Close() // an empty group

	gen = next(t, testGroup(t, testClient(t), prefix))
	offset, metadata, err = gen.Committed(t.Context(), 0)
	require.NoError(t, err)
	assert.Equal(t, int64(7), offset)
	assert.Equal(t, "intent", metadata)
	offset, metadata, err = gen.Committed(t.Context(), 1)
	require.NoError(t, err)
	assert.Equal(t, int64(9), offset)
	assert.Equal(t, long, metadata)
	require.NoError(t, gen.Commit(t.Context(), 1, 10, ""))
	_, metadata, err = gen.Committed(t.Context(), 1)
	require.NoError(t, err)
	assert.Empty(t, metadata)
}

func TestStaleGenerationIsFenced(t *testing.T) {
	c := testClient(t)
	prefix := testTopics(t, c, 2)
	first := testGroup(t, c, prefix)
	stale := next(t, first)
	require.NoError(t, stale.Commit(t.Context(), 0, 1, "first"))
	ended := make(chan struct{})
	stale.Start(func(ctx context.Context) {
		<-ctx.Done()
		assert.ErrorIs(t, ctx.Err(), context.Canceled)
		close(ended)
	})

	second := testGroup(t, testClient(t), prefix)
	var wg sync.WaitGroup
	gens := make([]*Generation, 2)
	for i, g := range []*Group{first, second} {
		wg.Go(func() { gens[i] = next(t, g) })
	}
	wg.Wait()
	<-ended
	assert.Len(t, gens[0].Partitions(), 1)
	assert.Len(t, gens[1].Partitions(), 1)
	assert.NotEqual(t, gens[0].Partitions(), gens[1].Partitions())

	for range 2 { // it sticks
		err := stale.Commit(t.Context(), 0, 2, "zombie")
		require.ErrorIs(t, err, batch.ErrFenced)
		classOf(t, retry.Permanent, err)
	}
	for i, gen := range gens {
		id := gen.Partitions()[0]
		require.NoError(t, gen.Commit(t.Context(), id, 5, fmt.Sprint("owner ", i)))
	}
	offset, metadata, err := gens[0].Committed(t.Context(), 0)
	require.NoError(t, err)
	assert.Equal(t, int64(5), offset)
	assert.NotEqual(t, "zombie", metadata)
}

// A member that left, or was thrown out, is told so.
func TestFencedAfterLeaving(t *testing.T) {
	c := testClient(t)
	prefix := testTopics(t, c, 1)
	g := testGroup(t, c, prefix)
	gen := next(t, g)
	require.NoError(t, gen.Commit(t.Context(), 0, 1, ""))
	g.Close()
	require.ErrorIs(t, gen.Commit(t.Context(), 0, 2, ""), batch.ErrFenced)
	next(t, testGroup(t, c, prefix)) // somebody else
	require.ErrorIs(t, gen.Commit(t.Context(), 0, 2, ""), batch.ErrFenced)
}

func TestFencedCommitEndsTheGeneration(t *testing.T) {
	c := testClient(t)
	prefix := testTopics(t, c, 1)
	g := testGroup(t, c, prefix)
	gen := next(t, g)
	ended := make(chan struct{})
	gen.Start(func(ctx context.Context) { <-ctx.Done(); close(ended) })
	gen.gen.ID-- // as if it had slept through a rebalance
	require.ErrorIs(t, gen.Commit(t.Context(), 0, 2, ""), batch.ErrFenced)
	<-ended
	require.NoError(t, next(t, g).Commit(t.Context(), 0, 2, ""))
}

func TestReturningEndsTheGeneration(t *testing.T) {
	c := testClient(t)
	prefix := testTopics(t, c, 1)
	g := testGroup(t, c, prefix)
	gen := next(t, g)
	ended := make(chan struct{})
	gen.Start(func(ctx context.Context) { <-ctx.Done(); close(ended) })
	gen.Start(func(context.Context) {})
	<-ended
	again := next(t, g)
	assert.Equal(t, []int{0}, again.Partitions())
	require.NoError(t, again.Commit(t.Context(), 0, 1, ""))
}

func TestManyCommitsAtOnce(t *testing.T) {
	c := testClient(t)
	const partitions = 12
	prefix := testTopics(t, c, partitions)
	gen := next(t, testGroup(t, c, prefix))
	var wg sync.WaitGroup
	for id := range partitions {
		wg.Go(func() {
			for i := range int64(10) {
				assert.NoError(t, gen.Commit(t.Context(), id, i, fmt.Sprint(id, i)))
			}
		})
	}
	wg.Wait()
	for id := range partitions {
		offset, metadata, err := gen.Committed(t.Context(), id)
		require.NoError(t, err)
		assert.Equal(t, int64(9), offset)
		assert.Equal(t, fmt.Sprint(id, 9), metadata)
	}
}

// A process that is paused for longer than its session wakes up, and commits
// before it has heard of anything.
func TestPausedMemberIsThrownOut(t *testing.T) {
	prefix := testTopics(t, testClient(t), 2)
	c, proxy := throughProxy(t)
	paused := next(t, testGroup(t, c, prefix))
	require.NoError(t, paused.Commit(t.Context(), 0, 1, "intent"))
	proxy.mode.Store(hung)
	other := next(t, testGroup(t, testClient(t), prefix))
	assert.Equal(t, []int{0, 1}, other.Partitions())
	_, metadata, err := other.Committed(t.Context(), 0)
	require.NoError(t, err)
	assert.Equal(t, "intent", metadata)
	require.NoError(t, other.Commit(t.Context(), 0, 2, "taken over"))

	proxy.cut()
	proxy.mode.Store(healthy)
	require.NoError(t, retry.Policy{Attempts: 10}.Do(t.Context(), func(ctx context.Context) error {
		// The connections of before the pause are gone: the first try may say nothing.
		if err := paused.Commit(ctx, 0, 9, "zombie"); !errors.Is(err, batch.ErrFenced) {
			return err
		}
		return nil
	}))
	_, metadata, err = other.Committed(t.Context(), 0)
	require.NoError(t, err)
	assert.Equal(t, "taken over", metadata)
}

// One of the configured brokers takes connections and never answers.
func TestJoinPastASilentBroker(t *testing.T) {
	prefix := testTopics(t, testClient(t), 1)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close()
	c := testClient(t)
	c.cfg.Brokers = append([]string{silent.Addr().String()}, c.cfg.Brokers...)
	g := testGroup(t, c, prefix)
	assert.Equal(t, []int{0}, next(t, g).Partitions())
}

// A commit without an answer has an unknown outcome: neither done nor fenced,
// and the member joins anew to find out.
func TestUnansweredCommit(t *testing.T) {
	prefix := testTopics(t, testClient(t), 1)
	c, proxy := throughProxy(t)
	g, err := c.NewGroup(GroupConfig{ID: prefix + ".sink", Topic: Topics(prefix).Batches,
		Session: 6 * time.Second, Heartbeat: 200 * time.Millisecond, CommitTimeout: 300 * time.Millisecond})
	require.NoError(t, err)
	defer g.Close()
	gen := next(t, g)
	require.NoError(t, gen.Commit(t.Context(), 0, 1, "before"))
	ended := make(chan struct{})
	gen.Start(func(ctx context.Context) { <-ctx.Done(); close(ended) })

	proxy.mode.Store(muted)
	err = gen.Commit(t.Context(), 0, 2, "during")
	classOf(t, retry.Transient, err)
	assert.NotErrorIs(t, err, batch.ErrFenced)
	assert.ErrorContains(t, err, "unknown")
	<-ended
	proxy.mode.Store(healthy)
	gen = next(t, g)
	_, metadata, err := gen.Committed(t.Context(), 0)
	require.NoError(t, err)
	assert.Contains(t, []string{"before", "during"}, metadata)
	require.NoError(t, gen.Commit(t.Context(), 0, 3, "after"))
}

func TestCommitGivesUpWithItsContext(t *testing.T) {
	c := testClient(t)
	prefix := testTopics(t, c, 1)
	gen := next(t, testGroup(t, c, prefix))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	classOf(t, retry.Shutdown, gen.Commit(ctx, 0, 2, ""))
}

func TestNextEndsWithItsContext(t *testing.T) {
	c := testClient(t)
	prefix := testTopics(t, c, 1)
	g := testGroup(t, c, prefix)
	next(t, g)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := g.Next(ctx)
	require.Error(t, err)
	g.Close()
	_, err = g.Next(t.Context())
	classOf(t, retry.Shutdown, err)
}

// take is what decides which commits travel together.
func TestTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		n := &Generation{flying: true}
		add := func(ctx context.Context, partition int, offset int64) *pendingCommit {
			p := &pendingCommit{ctx: ctx, done: make(chan error, 1), commit: kafkago.OffsetCommit{Partition: partition, Offset: offset}}
			n.pending = append(n.pending, p)
			return p
		}
		a1, b1, a2, _, a3 := add(t.Context(), 0, 1), add(t.Context(), 1, 1), add(t.Context(), 0, 2), add(gone, 2, 1), add(t.Context(), 0, 3)
		assert.Equal(t, []*pendingCommit{a1, b1}, n.take())
		assert.Equal(t, []*pendingCommit{a2}, n.take())
		assert.True(t, n.flying)
		n.fenced = batch.ErrFenced
		assert.Empty(t, n.take())
		assert.False(t, n.flying)
		assert.ErrorIs(t, <-a3.done, batch.ErrFenced)
	})
}
