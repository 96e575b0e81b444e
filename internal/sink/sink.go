// Package sink drains Kafka into ClickHouse, each record once. Per partition
// it repeats: read a block, decide for each record whether it is the first of
// its copies, open the inserts, commit what is about to be inserted (the
// intent), insert, commit the next offset. Whatever is unsure after a crash, an
// error or a change of owner is read back from ClickHouse before anything is
// inserted again.
package sink

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// Source reads the log. Safe for concurrent use.
type Source interface {
	// Fetch returns records from offset on, in order, none before it; an empty
	// slice when there is nothing new within maxWait. It returns
	// batch.ErrOffsetGone when the log does not hold the offset (and never jumps
	// elsewhere by itself).
	Fetch(ctx context.Context, partition int, offset int64, maxBytes int, maxWait time.Duration) ([]batch.Delivery, batch.Bounds, error)
	Bounds(ctx context.Context, partition int) (batch.Bounds, error)
	// Log is the id of the log the topic has now: another one after the topic was
	// deleted and made again.
	Log(ctx context.Context) (string, error)
}

// Generation is this process's share of the partitions for as long as the
// group's membership does not change.
type Generation interface {
	Partitions() []int
	// Committed returns the committed offset, -1 for none, and its metadata.
	Committed(ctx context.Context, partition int) (offset int64, metadata string, err error)
	// Commit is durable when it returns nil. batch.ErrFenced means that another
	// owner may have the partition: nothing may be inserted after it. After any
	// other error the commit may have happened or not.
	Commit(ctx context.Context, partition int, offset int64, metadata string) error
	// Start runs fn until the generation ends, which cancels fn's context; the
	// generation also ends, and the group rejoins, when fn returns.
	Start(fn func(ctx context.Context))
}

// Group hands out generations. Next must be called again and again: it is what
// keeps the member in the group. It blocks until a generation begins.
type Group interface {
	Next(ctx context.Context) (Generation, error)
}

// Insert is an open insert that has sent no rows yet. Send's error leaves open
// whether the rows are stored. Close without Send stores nothing.
type Insert interface {
	Send(rows *schema.Rows) error
	Close()
}

// Store is ClickHouse as the sink needs it. Safe for concurrent use. Every
// insert is durable when Send returns nil, and is one block: all of it or none
// of it is stored, except when the server dies between the two. An error of Send
// with a method Content() says that ClickHouse refused the rows for what is in
// them, and would refuse the same rows again.
type Store interface {
	// OpenInsert opens a table for one partition and cancels whoever had it open
	// before: when it returns nil, what the other one sent is stored or never
	// will be.
	OpenInsert(ctx context.Context, t schema.Table, at schema.Position, token string) (Insert, error)
	// NewColumns returns empty columns, which Send takes in place of exposures and
	// events, or nil where these have to be sent as rows. Send may refuse columns that
	// were made before a table changed; that is transient.
	NewColumns() schema.Columns
	// Present reports the rows of offsets first to last that the table has; for
	// progress, the last offset when that is covered.
	Present(ctx context.Context, t schema.Table, at schema.Position, first, last int64, have func(offset int64, index uint32, id batch.ID)) error
	// Highest is the highest offset from the given one on that any table has a row
	// of (progress aside), or -1.
	Highest(ctx context.Context, at schema.Position, from int64) (int64, error)
	// Through is the offset up to which the partition's log is stored, -1 for none.
	Through(ctx context.Context, at schema.Position) (int64, error)
	// Copies reports the stored records of the batches.
	Copies(ctx context.Context, ids []batch.ID, found func(schema.Copy)) error
	// Held is how many bytes the store keeps in memory to answer Copies.
	Held() int64
	// HasBatch looks for events first to last of a batch that is older than the
	// dedup window, stored by another record than the one at the position.
	HasBatch(ctx context.Context, project string, id batch.ID, first, last uint32, at schema.Position) (bool, error)
	// MergedEvents reports, by index, which of the rows the table has at any
	// offset: rows that a merge would make one of.
	MergedEvents(ctx context.Context, t schema.Table, rows []schema.EventRow, found func(row int)) error
	// MergedDead does the same for dead letters.
	MergedDead(ctx context.Context, rows []schema.DeadLetter, found func(row int)) error
	// Parts is how many parts exposures has.
	Parts(ctx context.Context) (int, error)
	// PutMergesOff has merges of exposures and events wait until there are very many
	// parts for one, or lets ClickHouse merge as it sees fit again. It may be said again
	// and again, by several sinks. What an operator has set stays as it is.
	PutMergesOff(ctx context.Context, off bool) error
	// RecordStop writes down that the partition has stopped at a position. Resumed
	// returns where a person let it go on, if one did since.
	RecordStop(ctx context.Context, at schema.Position, reason, detail string, resumeAt int64) error
	Resumed(ctx context.Context, at schema.Position) (resumeAt int64, ok bool, err error)
	// Ping returns nil when ClickHouse answers.
	Ping(ctx context.Context) error
}

// DeadLetters takes what could not be stored, beside the table of that name, for
// consumers of their own. Safe for concurrent use.
type DeadLetters interface {
	// Write is durable when it returns nil. The same letter may be written more than
	// once: its key is the same then.
	Write(ctx context.Context, key, value []byte, headers map[string]string) error
}

// Config are the sink's settings.
type Config struct {
	Topic            string
	FlushRows        int   // rows in a block at most, 1 to 500,000
	FlushBytes       int64 // decoded bytes held by the whole process
	FlushInterval    time.Duration
	FlushIntervalMax time.Duration
	DedupWindow      time.Duration
	Flushes          int // inserts at once; default 2
	Remembered       int // batches kept in memory by the process; default 250,000

	// Dead gets the dead letters of stage "sink" before their offset is committed;
	// nil: they go to the table only.
	Dead DeadLetters
	// Companion runs beside the partition loops in the one process of the group
	// that has partition 0, until its context ends with the generation; nil: nothing
	// does. Should it return earlier it is not started again before the next
	// generation.
	Companion func(ctx context.Context)

	// SkipIntent and SkipReadBack break the delivery protocol on purpose. The
	// fault tests use them to show that they would notice.
	SkipIntent, SkipReadBack bool
}

// Sink drains the partitions it is assigned.
type Sink struct {
	cfg     Config
	source  Source
	store   Store
	log     *slog.Logger
	metrics *Metrics
	budget  *budget
	breaker *breaker
	flushes chan schema.Columns // places for inserts, each with its columns
	turns   chan struct{}       // taken by partitions that read what has piled up
	now     func() time.Time

	mu     sync.Mutex
	joined bool
	status map[int]Status
	parts  int
	full   time.Time // when a block was last full, with more to come
}

// Status is one partition as /status shows it.
type Status struct {
	Partition int    `json:"partition"`
	State     string `json:"state"` // taking_over, running, waiting, stopped
	Next      int64  `json:"next_offset"`
	Lag       int64  `json:"lag_records"`
	Detail    string `json:"detail,omitempty"`
}

// New returns a sink that does nothing until Run.
func New(cfg Config, source Source, store Store, log *slog.Logger, m *Metrics) *Sink {
	if cfg.Flushes <= 0 {
		cfg.Flushes = 2
	}
	if cfg.Remembered <= 0 {
		cfg.Remembered = 250_000
	}
	s := &Sink{
		cfg: cfg, source: source, store: store, log: log, metrics: m,
		budget:  newBudget(cfg.FlushBytes),
		breaker: newBreaker(log, m),
		flushes: make(chan schema.Columns, cfg.Flushes),
		turns:   make(chan struct{}, turns),
		now:     time.Now,
		status:  map[int]Status{},
	}
	for range cfg.Flushes {
		s.flushes <- nil
	}
	return s
}

// Run takes part in the group until ctx ends; then it returns nil. Errors of
// the group are waited out: Kafka keeps what is not drained.
func (s *Sink) Run(ctx context.Context, group Group) error {
	var prober sync.WaitGroup
	prober.Go(func() { s.breaker.probe(ctx, s.store.Ping) })
	defer prober.Wait()
	for {
		gen, err := group.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			s.log.Warn("waiting for the consumer group", "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Second):
			}
			continue
		}
		s.begin(gen)
	}
}

// begin starts the partition loops of a generation. When one of them returns,
// the generation ends and Next hands out another: that is how a loop that is
// not sure of its ownership any more gets out.
func (s *Sink) begin(gen Generation) {
	partitions := gen.Partitions()
	s.mu.Lock()
	s.joined = true
	clear(s.status)
	s.mu.Unlock()
	s.metrics.reset()
	s.log.Info("partitions assigned", "partitions", partitions)
	if len(partitions) == 0 {
		return
	}
	gen.Start(s.watchParts)
	gen.Start(s.watchLag)
	gen.Start(s.watchMerges)
	if s.cfg.Companion != nil && slices.Contains(partitions, 0) {
		gen.Start(func(ctx context.Context) {
			s.cfg.Companion(ctx)
			// Were this to return now, the generation would end for every partition.
			<-ctx.Done()
		})
	}
	for _, id := range partitions {
		p := newPartition(s, id, max(1, s.cfg.Remembered/len(partitions)))
		gen.Start(func(ctx context.Context) {
			err := p.run(ctx, gen)
			switch {
			case err == nil, ctx.Err() != nil, errors.Is(err, context.Canceled):
			case errors.Is(err, batch.ErrFenced):
				p.log.Info("ownership lost; what was not committed is dropped", "error", err)
			default:
				p.log.Warn("partition starts over", "error", err)
				retry.Sleep(ctx, time.Second)
			}
		})
	}
}

// watchParts keeps an eye on how far ClickHouse is behind with merging.
func (s *Sink) watchParts(ctx context.Context) {
	store := s.guarded(nil)
	for {
		if n, err := store.Parts(ctx); err == nil {
			s.mu.Lock()
			s.parts = n
			s.mu.Unlock()
		}
		if !retry.Sleep(ctx, 10*time.Second) {
			return
		}
	}
}

// watchLag asks how far the logs of partitions go on that wait or are stopped: they
// read nothing, and it would not show how much is late.
func (s *Sink) watchLag(ctx context.Context) {
	for retry.Sleep(ctx, 10*time.Second) {
		for _, st := range s.Status() {
			if st.State == "running" {
				continue
			}
			bounds, err := s.source.Bounds(ctx, st.Partition)
			if err != nil {
				continue // the partition's loop says what is wrong
			}
			s.mu.Lock()
			if now := s.status[st.Partition]; now.State == st.State && now.Next == st.Next {
				now.Lag = max(0, bounds.End-st.Next)
				s.status[st.Partition] = now
				s.metrics.partition(now)
			}
			s.mu.Unlock()
		}
	}
}

// Ready returns nil while this process takes part in the work: it has been in
// the group, and not every partition it has is stopped.
func (s *Sink) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.joined {
		return errors.New("waiting for the consumer group")
	}
	for _, st := range s.status {
		if st.State != "stopped" {
			return nil
		}
	}
	if len(s.status) > 0 {
		return errors.New("every partition is stopped; look, then: sluice resume")
	}
	return nil
}

// Status lists the partitions this process has.
func (s *Sink) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Status, 0, len(s.status))
	for _, st := range s.status {
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b Status) int { return a.Partition - b.Partition })
	return out
}

func (s *Sink) setStatus(st Status) {
	s.mu.Lock()
	s.status[st.Partition] = st
	s.mu.Unlock()
	s.metrics.partition(st)
}
