package sink

import (
	"context"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// guard is the store behind the breaker, as one partition uses it: while the
// breaker is open every question and every new insert waits (and waiting is
// called, and what it returned when the wait is over), and what becomes of each is told to the breaker.
type guard struct {
	store   Store
	breaker *breaker
	waiting func() (over func())
}

// guarded makes the view of the store for one partition. waiting may be nil.
func (s *Sink) guarded(waiting func() (over func())) guard {
	if waiting == nil {
		waiting = func() func() { return func() {} }
	}
	return guard{store: s.store, breaker: s.breaker, waiting: waiting}
}

// ready waits until ClickHouse may be asked.
func (g guard) ready(ctx context.Context) error { return g.breaker.wait(ctx, g.waiting) }

func (g guard) do(ctx context.Context, request func() error) error {
	return g.breaker.do(ctx, g.waiting, request)
}

func (g guard) OpenInsert(ctx context.Context, t schema.Table, at schema.Position, token string) (in Insert, err error) {
	err = g.do(ctx, func() (err error) { in, err = g.store.OpenInsert(ctx, t, at, token); return err })
	if err != nil {
		return nil, err
	}
	return &guardedInsert{Insert: in, ctx: ctx, breaker: g.breaker}, nil
}

// guardedInsert does not wait for the end of an outage: its rows are not taken any
// more by then.
type guardedInsert struct {
	Insert
	ctx     context.Context // of the insert, from its opening to its end
	breaker *breaker
}

func (i *guardedInsert) Send(rows *schema.Rows) error {
	sent, err := i.breaker.try(i.ctx, func() error { return i.Insert.Send(rows) })
	if !sent {
		i.Close()
	}
	return err
}

func (g guard) Present(ctx context.Context, t schema.Table, at schema.Position, first, last int64, have func(offset int64, index uint32, id batch.ID)) error {
	return g.do(ctx, func() error { return g.store.Present(ctx, t, at, first, last, have) })
}

func (g guard) Highest(ctx context.Context, at schema.Position, from int64) (highest int64, err error) {
	err = g.do(ctx, func() (err error) { highest, err = g.store.Highest(ctx, at, from); return err })
	return highest, err
}

func (g guard) Through(ctx context.Context, at schema.Position) (through int64, err error) {
	err = g.do(ctx, func() (err error) { through, err = g.store.Through(ctx, at); return err })
	return through, err
}

func (g guard) Copies(ctx context.Context, ids []batch.ID, found func(schema.Copy)) error {
	if len(ids) == 0 {
		return nil // nothing is asked, which says nothing about ClickHouse
	}
	return g.do(ctx, func() error { return g.store.Copies(ctx, ids, found) })
}

func (g guard) HasBatch(ctx context.Context, project string, id batch.ID, first, last uint32, at schema.Position) (has bool, err error) {
	err = g.do(ctx, func() (err error) { has, err = g.store.HasBatch(ctx, project, id, first, last, at); return err })
	return has, err
}

func (g guard) MergedEvents(ctx context.Context, t schema.Table, rows []schema.EventRow, found func(row int)) error {
	return g.do(ctx, func() error { return g.store.MergedEvents(ctx, t, rows, found) })
}

func (g guard) MergedDead(ctx context.Context, rows []schema.DeadLetter, found func(row int)) error {
	return g.do(ctx, func() error { return g.store.MergedDead(ctx, rows, found) })
}

func (g guard) Held() int64 { return g.store.Held() }

func (g guard) Parts(ctx context.Context) (n int, err error) {
	err = g.do(ctx, func() (err error) { n, err = g.store.Parts(ctx); return err })
	return n, err
}

func (g guard) PutMergesOff(ctx context.Context, off bool) error {
	return g.do(ctx, func() error { return g.store.PutMergesOff(ctx, off) })
}

func (g guard) RecordStop(ctx context.Context, at schema.Position, reason, detail string, resumeAt int64) error {
	return g.do(ctx, func() error { return g.store.RecordStop(ctx, at, reason, detail, resumeAt) })
}

func (g guard) Resumed(ctx context.Context, at schema.Position) (resumeAt int64, ok bool, err error) {
	err = g.do(ctx, func() (err error) { resumeAt, ok, err = g.store.Resumed(ctx, at); return err })
	return resumeAt, ok, err
}
