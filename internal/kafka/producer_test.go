package kafka

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

func TestProduceAndFetch(t *testing.T) {
	c := testClient(t)
	topic := Topics(testTopics(t, c, 3)).Batches
	p, s := c.NewProducer(topic), c.NewSource(topic)
	assert.Nil(t, p.Leaders())
	id, err := p.Partition(t.Context(), batch.ForKey("p", "0"))
	require.NoError(t, err)
	assert.Less(t, id, 3)
	require.Len(t, p.Leaders(), 3)
	assert.GreaterOrEqual(t, p.Leaders()[id], 0)
	require.NoError(t, p.Probe(t.Context()))

	records := testRecords(20, 1000)
	start := time.Now().Truncate(time.Millisecond)
	assert.Equal(t, int64(0), produce(t, p, id, records[:15]))
	assert.Equal(t, int64(15), produce(t, p, id, records[15:]))
	got, bounds, err := s.Fetch(t.Context(), id, 0, 1<<20, 5*time.Second)
	require.NoError(t, err)
	assert.Equal(t, batch.Bounds{Start: 0, End: 20}, bounds)
	require.Len(t, got, 20)
	for i, d := range got {
		require.NoError(t, d.Bad)
		assert.Equal(t, int64(i), d.Offset)
		assert.Equal(t, id, d.Partition)
		assert.WithinRange(t, d.AppendAt, start, time.Now())
		assert.Equal(t, records[i].Value, d.Value)
		assert.Equal(t, records[i].BatchID, d.BatchID)
		assert.Equal(t, records[i].Seq, d.Seq)
	}
}

// A Probe is what finds the leaders again once nobody asks for a Partition.
func TestProbeTellsOfTheLeaders(t *testing.T) {
	c := testClient(t)
	p := c.NewProducer(Topics(testTopics(t, c, 3)).Batches)
	require.NoError(t, p.Probe(t.Context()))
	require.Len(t, p.Leaders(), 3, "without a Partition")
	p.layout.Store(newLayout(2))
	require.Equal(t, []int{-1, -1}, p.Leaders())
	require.NoError(t, p.Probe(t.Context()))
	require.Len(t, p.Leaders(), 3)
	for _, leader := range p.Leaders() {
		assert.GreaterOrEqual(t, leader, 0)
	}
	id, err := p.Partition(t.Context(), batch.ForKey("p", "0"))
	require.NoError(t, err)
	assert.Less(t, id, 3)
}

func TestAppendTimeIsTheBrokers(t *testing.T) {
	c := testClient(t)
	topic := Topics(testTopics(t, c, 1)).Batches
	p := c.NewProducer(topic)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, at, err := p.Produce(ctx, 0, testRecords(2, 10))
	require.NoError(t, err)
	got, _, err := c.NewSource(topic).Fetch(ctx, 0, 0, 1<<20, time.Second)
	require.NoError(t, err)
	require.Len(t, got, 2)
	assert.True(t, at.Equal(got[0].AppendAt), "%s, said %s", got[0].AppendAt, at)
	assert.True(t, at.Equal(got[1].AppendAt))
}

func TestRefusedRecords(t *testing.T) {
	c := testClient(t)
	topic := Topics(testTopics(t, c, 1)).Batches
	p := c.NewProducer(topic)
	big := testRecord(0, make([]byte, 2<<20))
	rand.Read(big.Value) // does not compress
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, _, err := p.Produce(ctx, 0, []batch.Record{big, testRecord(1, nil)})
	classOf(t, retry.Permanent, err)
	var refused interface{ Refused() []int }
	require.True(t, errors.As(err, &refused))
	bounds, err := c.NewSource(topic).Bounds(ctx, 0)
	require.NoError(t, err)
	assert.Zero(t, bounds.End, "nothing of it was taken")
}

func TestProduceToNoTopic(t *testing.T) {
	c := testClient(t)
	p := c.NewProducer("t-" + batch.Random().String())
	_, err := p.Partition(t.Context(), batch.ID{})
	classOf(t, retry.Transient, err)
	classOf(t, retry.Transient, p.Probe(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, _, err = p.Produce(ctx, 0, testRecords(1, 1))
	classOf(t, retry.Transient, err)
}

func TestProduceToNobody(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ln.Close() // nobody listens there now
	c, err := Open(Config{Brokers: []string{ln.Addr().String()}})
	require.NoError(t, err)
	defer c.Close()
	p := c.NewProducer("t")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, _, err = p.Produce(ctx, 0, testRecords(1, 1))
	classOf(t, retry.Transient, err)
	_, err = p.Partition(ctx, batch.ID{})
	classOf(t, retry.Transient, err)
	classOf(t, retry.Transient, p.Probe(ctx))
	assert.NoError(t, ctx.Err(), "refused at once, not at the deadline")
}

func TestProduceToSilence(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // accepts by backlog, never answers
	require.NoError(t, err)
	defer ln.Close()
	c, err := Open(Config{Brokers: []string{ln.Addr().String()}})
	require.NoError(t, err)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, _, err = c.NewProducer("t").Produce(ctx, 0, testRecords(1, 1))
	classOf(t, retry.Transient, err)
	assert.ErrorIs(t, err, context.DeadlineExceeded)
}

// A produce that failed for want of an answer is in the log all the same; when
// the broker is back the same producer goes on.
func TestErroredButPersisted(t *testing.T) {
	c := testClient(t)
	topic := Topics(testTopics(t, c, 1)).Batches
	ill, proxy := throughProxy(t)
	p := ill.NewProducer(topic)
	produce(t, p, 0, testRecords(1, 10))

	source := c.NewSource(topic)
	fail := func(mode int32) (before int64) {
		produceSoon(t, p)
		bounds, err := source.Bounds(t.Context(), 0)
		require.NoError(t, err)
		proxy.mode.Store(mode)
		defer proxy.mode.Store(healthy)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, _, err = p.Produce(ctx, 0, testRecords(1, 10))
		classOf(t, retry.Transient, err)
		return bounds.End
	}
	// On a busy machine a connection may have been closed for being idle, or the time be
	// over, before the record was sent: then it is tried again.
	persisted := false
	for attempt := 0; attempt < 5 && !persisted; attempt++ {
		persisted = endsAt(t, source, 0, fail(muted)+1) == nil
	}
	assert.True(t, persisted)
	before := fail(hung) // which sends nothing on
	produceSoon(t, p)
	awaitEnd(t, source, 0, before+1)
	proxy.cut()
	produceSoon(t, p)
}

// produceSoon repeats what may fail once after connections broke.
func produceSoon(t *testing.T, p *Producer) {
	require.NoError(t, retry.Policy{Attempts: 5}.Do(t.Context(), func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, _, err := p.Produce(ctx, 0, testRecords(1, 10))
		return err
	}))
}

// Partitions of one broker share requests, and each gets its own answer.
func TestPartitionsShareRequests(t *testing.T) {
	c := testClient(t)
	topic := Topics(testTopics(t, c, 6)).Batches
	p, s := c.NewProducer(topic), c.NewSource(topic)
	require.NoError(t, p.Probe(t.Context()))
	big := testRecord(0, make([]byte, 2<<20))
	rand.Read(big.Value) // does not compress: partition 5 is refused
	const rounds = 20
	var wg sync.WaitGroup
	for partition := range 6 {
		wg.Go(func() {
			for i := range rounds {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				records := testRecords(1+partition, 100)
				if partition == 5 {
					records = []batch.Record{big}
				}
				base, _, err := p.Produce(ctx, partition, records)
				cancel()
				if partition == 5 {
					var refused interface{ Refused() []int }
					assert.True(t, errors.As(err, &refused), err)
					continue
				}
				assert.NoError(t, err)
				assert.Equal(t, int64(i*len(records)), base)
			}
		})
	}
	wg.Wait()
	for partition := range 6 {
		bounds, err := s.Bounds(t.Context(), partition)
		require.NoError(t, err)
		want := int64(rounds * (1 + partition))
		if partition == 5 {
			want = 0
		}
		assert.Equal(t, want, bounds.End)
	}
}

// One request that stays without an answer does not hold up the others for long, and
// who gives up waiting takes what was not sent yet with them.
func TestRequestBesideASlowOne(t *testing.T) {
	c := testClient(t)
	topic := Topics(testTopics(t, c, 3)).Batches
	ill, proxy := throughProxy(t)
	p := ill.NewProducer(topic)
	require.NoError(t, p.Probe(t.Context()))
	produceSoon(t, p)
	proxy.mode.Store(hung)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	slow := make(chan error, 1)
	go func() {
		_, _, err := p.Produce(ctx, 0, testRecords(1, 10))
		slow <- err
	}()
	d := p.dispatchers.of(p, p.Leaders()[0])
	require.Eventually(t, func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.out == 1
	}, 5*time.Second, time.Millisecond)
	// Less time than it may wait for company.
	short, end := context.WithTimeout(t.Context(), patience/4)
	_, _, err := p.Produce(short, 1, testRecords(1, 10))
	end()
	classOf(t, retry.Transient, err)
	d.mu.Lock()
	assert.Empty(t, d.waiting)
	d.mu.Unlock()
	// A connection of its own, which the proxy serves.
	proxy.mode.Store(healthy)
	_, _, err = p.Produce(ctx, 2, testRecords(1, 10))
	assert.NoError(t, err)
	cancel()
	classOf(t, retry.Shutdown, <-slow)
}

func TestProduceErrors(t *testing.T) {
	p := &Producer{c: testClient(t)}
	for code, want := range map[kafkago.Error]string{
		kafkago.NotLeaderForPartition: "moved", kafkago.UnknownTopicOrPartition: "moved",
		kafkago.InvalidRecord: "refused", kafkago.MessageSizeTooLarge: "refused",
		kafkago.NotEnoughReplicasAfterAppend: "", kafkago.RequestTimedOut: "", kafkago.TopicAuthorizationFailed: "",
	} {
		err := p.produceError(0, 3, &kafkago.ProduceResponse{RecordErrors: map[int]error{1: io.EOF, 7: io.EOF}}, fmt.Errorf("x: %w", code))
		assert.ErrorIs(t, err, code)
		var moved interface{ Moved() }
		var refused interface{ Refused() []int }
		assert.Equal(t, want == "moved", errors.As(err, &moved), code)
		assert.Equal(t, want == "refused", errors.As(err, &refused), code)
		if want == "refused" {
			assert.Equal(t, []int{1}, refused.Refused())
		}
	}
	err := p.produceError(0, 1, nil, io.EOF)
	classOf(t, retry.Transient, err)
}

func BenchmarkProduce(b *testing.B) {
	c := testClient(b)
	topic := Topics(testTopics(b, c, 1)).Batches
	p := c.NewProducer(topic)
	records := testRecords(28, 30_000)
	b.SetBytes(28 * 30_000)
	b.ReportAllocs()
	for b.Loop() {
		produce(b, p, 0, records)
	}
}

// To lay records out allocates nothing once the buffers are there.
func TestEncodeAllocatesNothing(t *testing.T) {
	records := testRecords(20, 300) // one block: the compressor takes its tables from a pool, which the race detector empties
	var e encoder
	e.encode(records, time.Time{})
	least := math.MaxFloat64
	for range 20 { // what clients of other tests do meanwhile is counted too
		least = min(least, testing.AllocsPerRun(20, func() { e.encode(records, time.Time{}) }))
	}
	assert.Zero(t, least)
}

func BenchmarkEncode(b *testing.B) {
	for name, records := range map[string][]batch.Record{"28 of 30 KB": testRecords(28, 30_000), "28 of 300 bytes": testRecords(28, 300)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var e encoder
			for b.Loop() {
				e.encode(records, time.Time{})
			}
		})
	}
}
