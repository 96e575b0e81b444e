package kafka

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"sluice/pkg/batch"
)

// layoutAge is how long the topic's layout is used before the transport, which
// keeps it fresh by itself, is asked again.
const layoutAge = 500 * time.Millisecond

// Producer writes records to one topic. Safe for concurrent use.
type Producer struct {
	c     *Client
	k     *kafkago.Client
	topic string

	layout     atomic.Pointer[layout]
	refreshing sync.Mutex

	dispatchers dispatchers
	encoders    encoders
	frames      frames
}

// layout is a topic as it was last seen.
type layout struct {
	numbers []int // 0 to n-1, as the partitioner wants them
	leaders []int // broker id by partition; -1: none
	at      time.Time
}

// NewProducer returns a writer to a topic. It lives as long as the Client.
func (c *Client) NewProducer(topic string) *Producer {
	return &Producer{c: c, k: c.open([]string{topic}), topic: topic}
}

// Partition is where a batch's records go: murmur2 of the key as Java clients
// compute it, so that copies of a batch meet in one partition whoever writes
// them. (Should the topic get more partitions, copies of batches that are in
// flight then may part; they collapse by event_id.) It waits for the first sight
// of the topic, and returns a Transient error while there is none.
func (p *Producer) Partition(ctx context.Context, id batch.ID) (int, error) {
	l, err := p.current(ctx)
	if err != nil {
		return 0, err
	}
	return partitionOf(id, l.numbers), nil
}

func partitionOf(id batch.ID, numbers []int) int {
	var text [idText]byte
	key, _ := id.AppendText(text[:0]) // has no error to return
	return numbers[int(murmur2(key)&math.MaxInt32)%len(numbers)]
}

// murmur2 is Austin Appleby's MurmurHash2 with the seed of Java's Kafka clients.
func murmur2(b []byte) uint32 {
	const m, r = 0x5bd1e995, 24
	h := uint32(0x9747b28c) ^ uint32(len(b))
	for ; len(b) >= 4; b = b[4:] {
		k := binary.LittleEndian.Uint32(b) * m
		h = h*m ^ (k^k>>r)*m
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h = (h ^ uint32(b[0])) * m
	}
	h = (h ^ h>>13) * m
	return h ^ h>>15
}

// Leaders are the brokers that lead the partitions, by partition, -1 where none
// is known; nil before the first sight of the topic. The caller does not change
// them.
func (p *Producer) Leaders() []int {
	if l := p.layout.Load(); l != nil {
		return l.leaders
	}
	return nil
}

func (p *Producer) current(ctx context.Context) (*layout, error) {
	l := p.layout.Load()
	if l != nil && time.Since(l.at) < layoutAge {
		return l, nil
	}
	if l != nil {
		// One refreshes, the others go on with what is known.
		if !p.refreshing.TryLock() {
			return l, nil
		}
		defer p.refreshing.Unlock()
	}
	m, err := p.k.Metadata(ctx, &kafkago.MetadataRequest{Topics: []string{p.topic}})
	if err == nil && len(m.Topics) != 1 {
		err = errResponse
	}
	if err == nil {
		err = m.Topics[0].Error
	}
	if err == nil && len(m.Topics[0].Partitions) == 0 {
		err = kafkago.UnknownTopicOrPartition
	}
	if err != nil {
		if l != nil {
			return l, nil // the topic does not go away; Produce finds out
		}
		return nil, p.c.classify(fmt.Errorf("look up topic %s: %w", p.topic, err))
	}
	fresh := newLayout(len(m.Topics[0].Partitions))
	for _, part := range m.Topics[0].Partitions {
		if part.ID >= 0 && part.ID < len(fresh.leaders) && part.Leader.Host != "" {
			fresh.leaders[part.ID] = part.Leader.ID
		}
	}
	p.layout.Store(fresh)
	return fresh, nil
}

// newLayout is that of a topic with n partitions, none of which has a leader.
func newLayout(n int) *layout {
	l := &layout{numbers: make([]int, n), leaders: make([]int, n), at: time.Now()}
	for i := range n {
		l.numbers[i], l.leaders[i] = i, -1
	}
	return l
}

// Produce writes records to a partition, in order, as one record batch, in a request
// that it may share with other partitions of the same broker, and returns when all
// in-sync replicas have it: the offset of the first record and the broker's time (zero
// where the topic does not take it). It tries once, until ctx's deadline. Once it has
// returned it does not look at the records again.
//
// After an error the records may be in the log all the same, now or later,
// unless the error has a method Refused() []int: then the broker took none of
// them, because of the records themselves (too large together or by itself,
// invalid), and names the ones at fault where it knows. An error with a method
// Moved() comes from a broker that is well: the partition has another leader by
// now, which is known within seconds. (It may have moved after the records were
// written.)
func (p *Producer) Produce(ctx context.Context, partition int, records []batch.Record) (base int64, at time.Time, err error) {
	if len(records) == 0 {
		return 0, time.Time{}, nil
	}
	now, leader := time.Now(), -1
	if l := p.Leaders(); partition >= 0 && partition < len(l) {
		leader = l[partition]
	}
	x := &parcel{partition: partition, from: p.encoders.get(), deadline: now.Add(callTimeout), done: make(chan struct{})}
	if d, ok := ctx.Deadline(); ok && d.Before(x.deadline) {
		x.deadline = d
	}
	x.set = x.from.encode(records, now)
	switch {
	case !p.dispatchers.of(p, leader).send(ctx, x):
		return 0, time.Time{}, p.produceError(partition, len(records), nil, ctx.Err())
	case x.err != nil:
		return 0, time.Time{}, p.produceError(partition, len(records), &kafkago.ProduceResponse{RecordErrors: x.errs}, x.err)
	}
	return x.base, x.at, nil
}

func (p *Producer) produceError(partition, n int, res *kafkago.ProduceResponse, err error) error {
	code, ok := codeOf(err)
	err = p.c.classify(fmt.Errorf("produce %d records to %s/%d: %w", n, p.topic, partition, err))
	switch {
	case ok && moving[code]:
		return &movedError{err}
	case !ok || !refusing[code]:
		return err
	}
	refused := &refusedError{error: err}
	if res == nil {
		return refused
	}
	for i := range res.RecordErrors {
		if i >= 0 && i < n {
			refused.indexes = append(refused.indexes, i)
		}
	}
	return refused
}

// Probe asks a broker, not a cache, for the topic, and returns nil when at least
// one of its partitions has a leader. Leaders tells of what it saw: whoever has
// stopped asking for a Partition, because none had a leader, learns it here.
func (p *Producer) Probe(ctx context.Context) error {
	m, err := p.c.describe(ctx, p.topic)
	if err != nil {
		return p.c.classify(fmt.Errorf("probe topic %s: %w", p.topic, err))
	}
	t := m.topics[p.topic]
	if t.err != 0 {
		return p.c.classify(fmt.Errorf("probe topic %s: %w", p.topic, t.err))
	}
	fresh, led := newLayout(len(t.leaders)), false
	for i, leader := range t.leaders {
		fresh.leaders[i] = int(leader)
		led = led || leader >= 0
	}
	p.layout.Store(fresh)
	if led {
		return nil
	}
	return p.c.classify(fmt.Errorf("probe topic %s: %w", p.topic, kafkago.LeaderNotAvailable))
}
