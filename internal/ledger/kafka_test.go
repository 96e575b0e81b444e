package ledger

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/embedded/teststack"
	"sluice/internal/kafka"
	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

var _ Log = (*kafka.LedgerTopic)(nil)

// TestRealKafka: two starts of one collector on a real Kafka, the first of which is
// killed, and what a reader of the topic finds.
func TestRealKafka(t *testing.T) {
	c, err := kafka.Open(kafka.Config{Brokers: strings.Split(teststack.Kafka(t), ","), ClientID: "test"})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	prefix := "t-" + batch.Random().String()
	require.NoError(t, retry.Policy{Attempts: 5}.Do(t.Context(), func(ctx context.Context) error {
		return c.EnsureTopics(ctx, prefix, 3, 0)
	}))
	t.Cleanup(func() { assert.NoError(t, c.DeleteTopics(context.Background(), prefix)) })
	topic, producer := c.NewLedger(prefix), c.NewProducer(kafka.Topics(prefix).Batches)
	dir, spool := t.TempDir(), &disk{state: batch.SpoolIntact}

	produce := func(l *Ledger) *batch.Record {
		r := numbered(l.Accept(1))
		r.BatchID = batch.Random()
		partition, err := producer.Partition(t.Context(), r.BatchID)
		require.NoError(t, err)
		offset, _, err := producer.Produce(t.Context(), partition, []batch.Record{*r})
		require.NoError(t, err)
		l.InKafka(r, partition, offset)
		return r
	}
	ready := func(l *Ledger) {
		require.Eventually(t, func() bool { return l.Ready() == nil }, 20*time.Second, time.Millisecond)
	}
	read := func() (out []written) {
		for from := int64(0); ; {
			entries, next, err := topic.Read(t.Context(), from, 10*time.Millisecond)
			require.NoError(t, err)
			for _, e := range entries {
				r, err := batch.DecodeLedgerRecord(e.Value)
				require.NoError(t, err)
				assert.Equal(t, r.Key(), e.Key)
				out = append(out, written{r, e.At})
			}
			if next == from {
				return out
			}
			from = next
		}
	}

	l, err := Open(dir, nil, WithInterval(20*time.Millisecond))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, topic, spool) }()
	ready(l)
	first := produce(l)
	assert.False(t, first.ReceivedAt.Before(read()[0].appended), "not received before its collector was known")
	left := l.Accept(1) // in flight when it dies
	require.Eventually(t, func() bool { all := read(); return all[len(all)-1].Settled == 1 }, 20*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	crash(l)
	before := read()
	last := before[len(before)-1]
	assert.Equal(t, batch.LedgerInterval, last.Kind, "one that is in flight is not closed over")
	assert.True(t, last.CompleteUntil.Equal(left.ReceivedAt))
	id, err := c.Log(t.Context(), prefix)
	require.NoError(t, err)
	assert.Equal(t, id, last.Log)

	l, err = Open(dir, nil, WithInterval(20*time.Millisecond))
	require.NoError(t, err)
	require.NoError(t, l.Ready(), "it is known")
	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- l.Run(ctx, topic, spool) }()
	produce(l)
	require.Eventually(t, func() bool { return len(read()) > len(before)+2 }, 20*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	require.NoError(t, l.Close())
	after := read()[len(before):]
	assert.Equal(t, batch.LedgerOpen, after[0].Kind)
	covered := 0
	for _, o := range after[0].Offsets {
		covered += int(o) + 1
	}
	assert.GreaterOrEqual(t, covered, 1, "what the first epoch brought there is below the second one's ends")
	closing := after[len(after)-1]
	assert.Equal(t, batch.LedgerClose, closing.Kind)
	assert.Equal(t, closing.At, closing.CompleteUntil)
	assert.Equal(t, uint64(1), closing.Settled)
}
