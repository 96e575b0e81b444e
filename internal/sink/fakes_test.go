package sink

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// memoryLog is a log and its group in memory: the parts of Kafka the sink
// relies on, with its rules (a stale generation's commit is refused, committed
// metadata stays until the next commit). What the sink stores goes into a real
// ClickHouse.
type memoryLog struct {
	mu         sync.Mutex
	id         string
	records    map[int][]batch.Delivery
	start      map[int]int64
	committed  map[int]commit
	generation int
	end        context.CancelFunc // of the newest generation
	// unsureCommit makes that share of commits happen and report an error.
	unsureCommit float64
	random       *rand.Rand
}

type commit struct {
	offset   int64
	metadata string
}

func newMemoryLog(partitions int, seed uint64) *memoryLog {
	l := &memoryLog{id: testLog, records: map[int][]batch.Delivery{}, start: map[int]int64{}, committed: map[int]commit{},
		random: rand.New(rand.NewPCG(seed, 0))}
	for p := range partitions {
		l.committed[p] = commit{offset: -1}
		l.records[p] = nil
	}
	return l
}

// append puts a batch at the end of a partition.
func (l *memoryLog) append(partition int, b *schema.Batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.put(partition, b)
}

// put is append for who holds l.mu.
func (l *memoryLog) put(partition int, b *schema.Batch) {
	r := schema.Range{First: 0, Last: b.Count - 1}
	d := batch.Delivery{Partition: partition, Offset: l.start[partition] + int64(len(l.records[partition])), AppendAt: time.Now(),
		Record: batch.Record{BatchID: b.ID, DedupID: b.ID, Digest: b.Digest, Project: b.Project, Collector: batch.ID{1}, Epoch: 1, Seq: 1,
			Path: batch.Direct, ReceivedAt: time.UnixMicro(b.ReceivedAt), Value: schema.AppendRecord(nil, b, r)}}
	l.records[partition] = append(l.records[partition], d)
}

func (l *memoryLog) generations() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.generation
}

func (l *memoryLog) Fetch(ctx context.Context, partition int, offset int64, maxBytes int, maxWait time.Duration) ([]batch.Delivery, batch.Bounds, error) {
	deadline := time.Now().Add(maxWait)
	for {
		l.mu.Lock()
		bounds := batch.Bounds{Start: l.start[partition], End: l.start[partition] + int64(len(l.records[partition]))}
		if offset < bounds.Start || offset > bounds.End {
			l.mu.Unlock()
			return nil, bounds, batch.ErrOffsetGone
		}
		out := append([]batch.Delivery(nil), l.records[partition][offset-bounds.Start:]...)
		l.mu.Unlock()
		if len(out) > 40 {
			out = out[:40]
		}
		if len(out) > 0 || time.Now().After(deadline) {
			return out, bounds, nil
		}
		if !retry.Sleep(ctx, 10*time.Millisecond) {
			return nil, bounds, ctx.Err()
		}
	}
}

func (l *memoryLog) Log(context.Context) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id, nil
}

func (l *memoryLog) Bounds(_ context.Context, partition int) (batch.Bounds, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return batch.Bounds{Start: l.start[partition], End: l.start[partition] + int64(len(l.records[partition]))}, nil
}

// member is one process of the group. Whoever joined last owns everything and
// the others wait: enough to try every change of owner.
type member struct {
	log     *memoryLog
	current *generation
}

// Next blocks while the member's generation is alive, as the real one does.
func (m *member) Next(ctx context.Context) (Generation, error) {
	if m.current != nil {
		<-m.current.ctx.Done()
		m.current.wg.Wait()
		m.log.mu.Lock()
		displaced := m.log.generation != m.current.number
		m.log.mu.Unlock()
		if displaced {
			<-ctx.Done()
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	m.log.mu.Lock()
	defer m.log.mu.Unlock()
	if m.log.end != nil {
		m.log.end() // the rebalance: the other member's generation is over
	}
	m.log.generation++
	g := &generation{log: m.log, number: m.log.generation}
	g.ctx, g.cancel = context.WithCancel(ctx)
	m.log.end = g.cancel
	m.current = g
	return g, nil
}

// generation is one membership of the group.
type generation struct {
	log    *memoryLog
	number int
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (g *generation) Partitions() []int {
	g.log.mu.Lock()
	defer g.log.mu.Unlock()
	var out []int
	for p := range g.log.records {
		out = append(out, p)
	}
	return out
}

func (g *generation) Committed(_ context.Context, partition int) (int64, string, error) {
	g.log.mu.Lock()
	defer g.log.mu.Unlock()
	c := g.log.committed[partition]
	return c.offset, c.metadata, nil
}

var errUnsure = errors.New("commit: connection reset")

func (g *generation) Commit(_ context.Context, partition int, offset int64, metadata string) error {
	g.log.mu.Lock()
	defer g.log.mu.Unlock()
	if g.number != g.log.generation {
		return batch.ErrFenced
	}
	g.log.committed[partition] = commit{offset, metadata}
	if g.log.random.Float64() < g.log.unsureCommit {
		return errUnsure
	}
	return nil
}

func (g *generation) Start(fn func(context.Context)) {
	g.wg.Go(func() {
		defer g.cancel()
		fn(g.ctx)
	})
}

// faultyStore fails inserts on purpose, in the two ways that matter: before
// anything is stored, and after everything is.
type faultyStore struct {
	Store
	mu     sync.Mutex
	random *rand.Rand
	before float64
	after  float64
}

func (s *faultyStore) draw() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.random.Float64()
}

func (s *faultyStore) OpenInsert(ctx context.Context, t schema.Table, at schema.Position, token string) (Insert, error) {
	in, err := s.Store.OpenInsert(ctx, t, at, token)
	if err != nil {
		return nil, err
	}
	return &faultyInsert{Insert: in, s: s}, nil
}

type faultyInsert struct {
	Insert
	s *faultyStore
}

var errInjected = errors.New("injected: connection lost")

func (i *faultyInsert) Send(rows *schema.Rows) error {
	switch d := i.s.draw(); {
	case d < i.s.before:
		i.Insert.Close()
		return fmt.Errorf("before: %w", errInjected)
	case d < i.s.before+i.s.after:
		if err := i.Insert.Send(rows); err != nil {
			return err
		}
		return fmt.Errorf("after: %w", errInjected)
	}
	return i.Insert.Send(rows)
}
