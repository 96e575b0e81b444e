package sink

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// memoryStore is a ClickHouse in memory, with the rules the sink relies on: an
// insert is one block, there or not; a token that a table knows is taken for a
// repeat; a second door cancels the first; some rows are refused for what is in
// them. Nothing merges, so what is stored twice is seen twice.
type memoryStore struct {
	mu     sync.Mutex
	rows   map[schema.Table]*schema.Rows
	tokens map[string]bool
	doors  map[string]*memoryInsert
	// refuses says which events a table does not take.
	refuses func(t schema.Table, e *schema.Event) bool
	// fault is asked once for each insert that is sent: an error before its rows are
	// stored, or after, or after half of them were (errHalf: a block of two months).
	fault func(t schema.Table, rows int) (before, after error)
	// away makes every call wait for hang and fail; but pings answer where pong is set.
	away error
	hang time.Duration
	// mergesOff is what was said about merges, unless mayNotAlter.
	mergesOff   []bool
	mayNotAlter error
	pong        bool
	pings       int   // while it was away
	asked       int   // everything else, while it was away
	sent        []int // how many rows each insert into exposures and events had
	noBatch     bool
	noDead      bool
}

var errAway = retry.Mark(errors.New("dial: connection refused"), retry.Transient)

func newMemoryStore() *memoryStore {
	s := &memoryStore{rows: map[schema.Table]*schema.Rows{}, tokens: map[string]bool{}, doors: map[string]*memoryInsert{}}
	for _, t := range schema.Tables() {
		s.rows[t] = &schema.Rows{}
	}
	return s
}

// errHalf says, for what is in the rows, that half of them are stored.
var errHalf = retry.Mark(memoryContentError{errors.New("the second month is refused")}, retry.Permanent)

type memoryContentError struct{ error }

func (memoryContentError) Content() {}

// call is the beginning of every request.
func (s *memoryStore) call(ctx context.Context) error {
	s.mu.Lock()
	away, hang := s.away, s.hang
	if away != nil {
		s.asked++
	}
	s.mu.Unlock()
	if away != nil && !retry.Sleep(ctx, hang) {
		return ctx.Err()
	}
	if away != nil {
		return away
	}
	return ctx.Err()
}

func (s *memoryStore) set(away error, hang time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away, s.hang, s.asked, s.pings = away, hang, 0, 0
}

// inserts is how many rows each insert into exposures and events had.
func (s *memoryStore) inserts() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]int(nil), s.sent...)
}

func (s *memoryStore) calls() (asked, pings int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked, s.pings
}

func (s *memoryStore) Ping(ctx context.Context) error {
	s.mu.Lock()
	if s.away != nil {
		s.pings++
		s.asked--
	}
	pong := s.pong
	s.mu.Unlock()
	err := s.call(ctx)
	if pong {
		return nil
	}
	return err
}

type memoryInsert struct {
	s     *memoryStore
	ctx   context.Context
	table schema.Table
	token string
	over  bool
}

func (s *memoryStore) OpenInsert(ctx context.Context, t schema.Table, at schema.Position, token string) (Insert, error) {
	if err := s.call(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	door := fmt.Sprint(t, at.Partition)
	if d := s.doors[door]; d != nil {
		d.over = true
	}
	d := &memoryInsert{s: s, ctx: ctx, table: t, token: fmt.Sprint(t, at.Partition, token)}
	s.doors[door] = d
	return d, nil
}

// memoryColumns keeps copies of the rows.
type memoryColumns struct {
	rows map[schema.Table][]schema.EventRow
}

func (s *memoryStore) NewColumns() schema.Columns { return &memoryColumns{} }

func (c *memoryColumns) Reset(schema.Position)   { c.rows = map[schema.Table][]schema.EventRow{} }
func (c *memoryColumns) Rows(t schema.Table) int { return len(c.rows[t]) }

func (c *memoryColumns) Append(b *schema.Batch, offset int64) {
	own := *b
	own.Events = append([]schema.Event(nil), b.Events...)
	for i := range own.Events {
		e := &own.Events[i]
		e.Attributes = append([]schema.Attribute(nil), e.Attributes...)
		t := schema.Exposures
		if e.Kind == schema.KindEvent {
			t = schema.Events
		}
		c.rows[t] = append(c.rows[t], schema.EventRow{Batch: &own, Event: e, Offset: offset})
	}
}

func (i *memoryInsert) Close() {
	i.s.mu.Lock()
	defer i.s.mu.Unlock()
	i.over = true
}

func (i *memoryInsert) Send(rows *schema.Rows) error {
	if rows.Laid != nil {
		laid := *rows
		laid.Events, laid.Laid, laid.LaidRows = rows.Laid.(*memoryColumns).rows[i.table], nil, 0
		rows = &laid
	}
	if err := i.s.call(i.ctx); err != nil {
		return err
	}
	i.s.mu.Lock()
	defer i.s.mu.Unlock()
	s := i.s
	if i.over {
		return errors.New("query was cancelled")
	}
	i.over = true
	var before, after error
	if s.fault != nil {
		before, after = s.fault(i.table, rows.Len())
	}
	if before != nil {
		return before
	}
	if i.table == schema.Exposures || i.table == schema.Events {
		s.sent = append(s.sent, rows.Len())
	}
	for _, r := range rows.Events {
		if s.refuses != nil && s.refuses(i.table, r.Event) {
			return retry.Mark(memoryContentError{fmt.Errorf("%d rows of %s: %q violates c", rows.Len(), i.table, r.Event.Variant)}, retry.Permanent)
		}
	}
	if s.noDead && i.table == schema.DeadLetters || s.noBatch && i.table == schema.Batches {
		return retry.Mark(memoryContentError{fmt.Errorf("%s takes nothing", i.table)}, retry.Permanent)
	}
	if !s.tokens[i.token] {
		s.tokens[i.token] = true
		have := s.rows[i.table]
		n := len(rows.Events)
		if errors.Is(after, errHalf) {
			n /= 2
		}
		have.Events = append(have.Events, rows.Events[:n]...)
		have.Dead = append(have.Dead, rows.Dead...)
		have.Batches = append(have.Batches, rows.Batches...)
		have.Progress = append(have.Progress, rows.Progress...)
	}
	return after
}

func (s *memoryStore) Present(ctx context.Context, t schema.Table, _ schema.Position, first, last int64, have func(int64, uint32, batch.ID)) error {
	if err := s.call(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	report := func(offset int64, index uint32, id batch.ID) {
		if first <= offset && offset <= last {
			have(offset, index, id)
		}
	}
	rows := s.rows[t]
	for _, r := range rows.Events {
		report(r.Offset, r.Event.Index, r.Batch.ID)
	}
	for _, r := range rows.Dead {
		report(r.Offset, r.Index, r.BatchID)
	}
	for _, r := range rows.Batches {
		report(r.Offset, 0, r.Record.BatchID)
	}
	for _, r := range rows.Progress {
		if r.Through >= last {
			have(last, 0, batch.ID{})
			break
		}
	}
	return nil
}

func (s *memoryStore) Highest(ctx context.Context, at schema.Position, from int64) (int64, error) {
	highest := int64(-1)
	for _, t := range []schema.Table{schema.Exposures, schema.Events, schema.DeadLetters, schema.Batches} {
		err := s.Present(ctx, t, at, from, 1<<62, func(offset int64, _ uint32, _ batch.ID) { highest = max(highest, offset) })
		if err != nil {
			return -1, err
		}
	}
	return highest, nil
}

func (s *memoryStore) Through(ctx context.Context, _ schema.Position) (int64, error) {
	if err := s.call(ctx); err != nil {
		return -1, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	through := int64(-1)
	for _, r := range s.rows[schema.ProgressTab].Progress {
		through = max(through, r.Through)
	}
	return through, nil
}

func (s *memoryStore) Copies(ctx context.Context, ids []batch.ID, found func(schema.Copy)) error {
	if err := s.call(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := map[batch.ID]bool{}
	for _, id := range ids {
		wanted[id] = true
	}
	for _, r := range s.rows[schema.Batches].Batches {
		if wanted[r.Record.BatchID] && r.Outcome == schema.Stored {
			found(schema.Copy{BatchID: r.Record.BatchID, Digest: r.Record.Digest, Last: whole.last, Log: testLog, Offset: r.Offset})
		}
	}
	return nil
}

func (s *memoryStore) HasBatch(ctx context.Context, _ string, _ batch.ID, _, _ uint32, _ schema.Position) (bool, error) {
	return false, s.call(ctx)
}

func (s *memoryStore) MergedEvents(ctx context.Context, t schema.Table, rows []schema.EventRow, found func(int)) error {
	if err := s.call(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	there := map[[4]string]bool{}
	key := func(r *schema.EventRow) [4]string {
		return [4]string{r.Batch.Project, r.Event.Experiment + r.Event.Name, r.Event.UnitID, r.Event.ID.String()}
	}
	for i := range s.rows[t].Events {
		there[key(&s.rows[t].Events[i])] = true
	}
	for i := range rows {
		if there[key(&rows[i])] {
			found(i)
		}
	}
	return nil
}

func (s *memoryStore) MergedDead(ctx context.Context, rows []schema.DeadLetter, found func(int)) error {
	if err := s.call(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	there := map[[2]string]bool{}
	for _, r := range s.rows[schema.DeadLetters].Dead {
		there[[2]string{r.ID.String(), r.Stage + r.Reason}] = true
	}
	for i, r := range rows {
		if there[[2]string{r.ID.String(), r.Stage + r.Reason}] {
			found(i)
		}
	}
	return nil
}

func (s *memoryStore) PutMergesOff(ctx context.Context, off bool) error {
	if err := s.call(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mayNotAlter != nil {
		return s.mayNotAlter
	}
	s.mergesOff = append(s.mergesOff, off)
	return nil
}

func (s *memoryStore) Held() int64 { return 0 }

func (s *memoryStore) Parts(ctx context.Context) (int, error) { return 1, s.call(ctx) }

func (s *memoryStore) RecordStop(ctx context.Context, _ schema.Position, _, _ string, _ int64) error {
	return s.call(ctx)
}

func (s *memoryStore) Resumed(ctx context.Context, _ schema.Position) (int64, bool, error) {
	return 0, false, s.call(ctx)
}

// take is a copy of what is stored.
func (s *memoryStore) take() map[schema.Table]schema.Rows {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[schema.Table]schema.Rows{}
	for t, r := range s.rows {
		out[t] = schema.Rows{Events: append([]schema.EventRow(nil), r.Events...), Dead: append([]schema.DeadLetter(nil), r.Dead...),
			Batches: append([]schema.BatchRow(nil), r.Batches...), Progress: append([]schema.Progress(nil), r.Progress...)}
	}
	return out
}

// memoryDead is a dead topic in memory.
type memoryDead struct {
	mu      sync.Mutex
	letters map[string][]memoryLetter
	writes  int
	fault   func() (before, after error)
}

type memoryLetter struct {
	value   string
	headers map[string]string
}

func (d *memoryDead) Write(_ context.Context, key, value []byte, headers map[string]string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var before, after error
	if d.fault != nil {
		before, after = d.fault()
	}
	if before != nil {
		return before
	}
	if d.letters == nil {
		d.letters = map[string][]memoryLetter{}
	}
	d.writes++
	d.letters[string(key)] = append(d.letters[string(key)], memoryLetter{string(value), headers})
	return after
}

// life lets a sink do so many steps that others can see (inserts, commits, letters)
// and then is its kill -9: the last one happens or not, and nothing after it.
type life struct {
	mu    sync.Mutex
	steps int // left; negative: it lives on
	last  bool
	end   context.CancelFunc
	dead  bool
}

var errKilled = errors.New("killed")

func (l *life) over() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

// step does what others can see, or not.
func (l *life) step(do func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		return errKilled
	}
	if l.steps == 0 {
		l.dead = true
		l.end()
		if l.last {
			_ = do()
		}
		return errKilled
	}
	l.steps--
	return do()
}

type mortalStore struct {
	Store
	life *life
}

func (s mortalStore) OpenInsert(ctx context.Context, t schema.Table, at schema.Position, token string) (in Insert, err error) {
	err = s.life.step(func() error { in, err = s.Store.OpenInsert(ctx, t, at, token); return err })
	if err != nil {
		return nil, err
	}
	return mortalInsert{in, s.life}, nil
}

type mortalInsert struct {
	Insert
	life *life
}

func (i mortalInsert) Send(rows *schema.Rows) error {
	return i.life.step(func() error { return i.Insert.Send(rows) })
}

type mortalDead struct {
	DeadLetters
	life *life
}

func (d mortalDead) Write(ctx context.Context, key, value []byte, headers map[string]string) error {
	return d.life.step(func() error { return d.DeadLetters.Write(ctx, key, value, headers) })
}

type mortalGroup struct {
	Group
	life *life
}

func (g mortalGroup) Next(ctx context.Context) (Generation, error) {
	gen, err := g.Group.Next(ctx)
	if err != nil {
		return nil, err
	}
	return mortalGeneration{gen, g.life}, nil
}

type mortalGeneration struct {
	Generation
	life *life
}

func (g mortalGeneration) Commit(ctx context.Context, partition int, offset int64, metadata string) error {
	return g.life.step(func() error { return g.Generation.Commit(ctx, partition, offset, metadata) })
}

const testLog = "cluster/log1"

var _ Store = (*memoryStore)(nil)

// rig is a sink on a log and a store that are both in memory, for tests whose clock
// is synctest's.
type rig struct {
	t      *testing.T
	log    *memoryLog
	source Source // the log, or what stands before it
	store  *memoryStore
	dead   *memoryDead
	cfg    Config
}
