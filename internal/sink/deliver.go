package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// attempts is how many fresh tokens are tried for rows that ClickHouse says it
// has and does not show: killed between writing an insert's token and renaming
// its part, it drops the part and takes the retry for a repeat.
const attempts = 5

var errTorn = errors.New("rows are still missing after every retry")

// deliver brings a block into ClickHouse. When it returns nil every row of the
// block is there. It waits out what is transient for as long as the partition
// is owned: Kafka keeps the records.
func (p *partition) deliver(ctx context.Context, gen Generation, b *block) error {
	start := p.s.now()
	for {
		if err := p.retry(ctx, "look up earlier copies", func() error { return p.decide(ctx, b) }); err != nil {
			return err
		}
		if b.first <= p.horizon {
			if b.read(nil, &p.scratch) {
				break
			}
			continue
		}
		err := p.flushing(ctx, func(columns schema.Columns) error { return p.write(ctx, gen, b, columns) })
		switch {
		case err == nil:
			p.s.metrics.inserted(b.written, p.s.now().Sub(start))
			return nil
		case errors.Is(err, errUnread):
			continue
		case errors.Is(err, batch.ErrFenced) || ctx.Err() != nil:
			return err
		}
		p.s.metrics.insertErrors.Inc()
		if t := refusing(err); t != "" && !p.s.cfg.SkipReadBack {
			b.hunt = newHunt(t, b.build(nil)[t].Events, err)
		} else {
			p.log.Warn("insert is unsure; reading back", "first", b.first, "last", b.last, "error", err)
			if !retry.Sleep(ctx, 200*time.Millisecond) {
				return ctx.Err()
			}
		}
		break
	}
	return p.retry(ctx, "heal", func() error {
		return p.flushing(ctx, func(schema.Columns) (err error) {
			// Events one by one take several times the memory that the budget was charged
			// for; so no more blocks have them than there are places for inserts.
			defer func() {
				if b.hunt == nil {
					b.forget()
				}
			}()
			rows := b.build(nil)
			if len(b.refused) == 0 { // else it was counted before any of them was known
				b.events = rows[schema.Exposures].Len() + rows[schema.Events].Len()
			}
			// Unless the protocol is broken on purpose, unsure means: look first.
			if p.s.cfg.SkipReadBack {
				return p.insert(ctx, gen, b, rows, p.token(b))
			}
			err = p.heal(ctx, gen, b)
			if retry.ClassOf(err) == retry.Permanent {
				b.refused, b.hunt = nil, nil // when it is tried again it may be mended
			}
			return err
		})
	})
}

// errUnread says that a record of the block cannot be read, which was not known when
// the block was decided.
var errUnread = errors.New("a record cannot be read")

// write inserts a block that is not there yet, its events in columns if nothing speaks
// against it.
func (p *partition) write(ctx context.Context, gen Generation, b *block, columns schema.Columns) error {
	if !b.plain() {
		columns = nil
	}
	if columns != nil {
		columns.Reset(p.at)
	}
	if !b.read(columns, &p.scratch) {
		return errUnread
	}
	rows := b.build(columns)
	b.events = rows[schema.Exposures].Len() + rows[schema.Events].Len()
	b.written = b.events + rows[schema.DeadLetters].Len() + rows[schema.Batches].Len() + rows[schema.ProgressTab].Len()
	return p.insert(ctx, gen, b, rows, p.token(b))
}

// flushing runs one attempt while it holds one of the process's places for
// inserts, with the columns that belong to the place (nil where the store has none).
// Nobody waits for anything else while holding one: a partition that cannot go on does
// not keep the others from it.
func (p *partition) flushing(ctx context.Context, attempt func(schema.Columns) error) error {
	select {
	case columns := <-p.s.flushes:
		if columns == nil {
			columns = p.s.store.NewColumns()
		}
		err := attempt(columns)
		if err != nil {
			columns = nil // the tables may have changed
		}
		p.s.flushes <- columns
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// token names the inserts of a block for ClickHouse's deduplication. A block that
// an earlier owner was about to insert keeps its token; for every other one it has
// never been used: ClickHouse drops other rows under a token it knows, and reports
// success.
func (p *partition) token(b *block) string {
	if i := p.intent; i.Token != "" && i.First == b.first && i.Last == b.last {
		return i.Token
	}
	return p.freshToken(b)
}

func (p *partition) freshToken(b *block) string {
	return fmt.Sprintf("%s/%s/%d/%d-%d/%s", p.at.Log, p.at.Topic, p.at.Partition, b.first, b.last, p.own)
}

// insert opens the inserts of the tables that have rows, commits the block's
// intent, and sends.
func (p *partition) insert(ctx context.Context, gen Generation, b *block, rows map[schema.Table]*schema.Rows, token string) error {
	doors, err := p.open(ctx, gen, b, rows, token)
	if err != nil {
		return err
	}
	defer closeAll(doors)
	for _, t := range schema.Tables() {
		if door := doors[t]; door != nil {
			if err := door.Send(rows[t]); err != nil {
				return named(t, err)
			}
			p.s.metrics.rows.WithLabelValues(string(t)).Add(float64(rows[t].Len()))
		}
	}
	return nil
}

// open opens the inserts of a block and then commits its intent. The order is
// what shuts out a paused process: it cannot have a door open once a later owner
// has opened its own, and it learns from the refused commit that it must not
// send.
func (p *partition) open(ctx context.Context, gen Generation, b *block, rows map[schema.Table]*schema.Rows, token string) (map[schema.Table]Insert, error) {
	doors := map[schema.Table]Insert{}
	for _, t := range schema.Tables() {
		if rows[t] == nil || rows[t].Len() == 0 {
			continue
		}
		door, err := p.store.OpenInsert(ctx, t, p.at, token)
		if err != nil {
			closeAll(doors)
			return nil, err
		}
		doors[t] = door
	}
	if p.s.cfg.SkipIntent {
		return doors, nil
	}
	// A crash before this commit: nothing was sent, the offset is the old one. A
	// crash after it: the next owner knows which block to read back.
	i := intent{Log: p.at.Log, First: b.first, Last: b.last, Token: p.token(b)}
	if err := gen.Commit(ctx, p.at.Partition, b.first, i.String()); err != nil {
		closeAll(doors)
		return nil, fmt.Errorf("commit the intent %d to %d: %w", b.first, b.last, err)
	}
	return doors, nil
}

func closeAll(doors map[schema.Table]Insert) {
	for _, d := range doors {
		d.Close()
	}
}

// heal makes a block complete of which any part may be there. It shuts the doors,
// so that nothing sent before can still arrive; then each round reads back, in
// every table, which rows are there, and inserts the others: first under the
// block's own token, so that an insert that did arrive after all makes this one a
// repeat; then, for rows that the token claims and the table does not have, under
// tokens of their own. It returns nil after a round that found nothing missing.
//
// Where ClickHouse refuses what is in the rows of a table, a round goes into finding
// out which ones; the next one expects them in dead_letters.
//
// No insert is open while it reads: that may take longer than the server waits
// for an insert's rows.
func (p *partition) heal(ctx context.Context, gen Generation, b *block) error {
	p.s.metrics.readBacks.Inc()
	if err := p.shutDoors(ctx); err != nil {
		return err
	}
	searches := 0
	for round := 0; round <= attempts+1; {
		missing, total, err := p.compare(ctx, b)
		if err != nil {
			return err
		}
		if total == 0 {
			return nil
		}
		if b.hunt != nil {
			b.hunt.keep(missing[b.hunt.table].Events)
			if err := p.search(ctx, gen, b, b.hunt); err != nil {
				return err
			}
			b.hunt = nil
			continue
		}
		token := p.token(b)
		if round > 0 {
			token = fmt.Sprintf("%s#%d", p.freshToken(b), round)
		}
		err = p.insert(ctx, gen, b, missing, token)
		t := refusing(err)
		switch {
		case err == nil:
			p.healed(b, total, round)
			round++
		case t == "":
			return err
		case searches > attempts: // once a table, and again for rows that were torn meanwhile
			return err
		default:
			searches++
			b.hunt = newHunt(t, missing[t].Events, err)
		}
	}
	p.s.metrics.alarm("torn")
	return retry.Mark(fmt.Errorf("block %d to %d: %w", b.first, b.last, errTorn), retry.Permanent)
}

func (p *partition) healed(b *block, rows, round int) {
	kind := "unsure"
	if round > 0 {
		kind = "torn"
	}
	p.s.metrics.healed.WithLabelValues(kind).Add(float64(rows))
	p.log.Info("rows were missing and were inserted", "first", b.first, "last", b.last, "rows", rows, "kind", kind, "round", round)
}

// compare reads back which rows of the block each table does not have, and how
// many these are together. Events that an earlier owner has put into dead_letters
// because ClickHouse refuses them are refused, not missing.
func (p *partition) compare(ctx context.Context, b *block) (map[schema.Table]*schema.Rows, int, error) {
	there := map[schema.Table]map[place]int{}
	for _, t := range schema.Tables() {
		var err error
		if there[t], err = p.present(ctx, t, b.first, b.last); err != nil {
			return nil, 0, err
		}
	}
	missing := map[schema.Table]*schema.Rows{}
	total := 0
	rows := b.build(nil)
	for _, t := range schema.Tables() {
		m, err := p.missing(ctx, t, rows[t], there[t])
		if err != nil {
			return nil, 0, err
		}
		if len(m.Events) > 0 {
			known, err := p.knownRefused(ctx, b, m.Events, there[schema.DeadLetters])
			if err != nil {
				return nil, 0, err
			}
			if known {
				m.Events = slices.DeleteFunc(m.Events, func(r schema.EventRow) bool { return b.isRefused(&r) })
				rows = b.build(nil) // the tables that come after these expect it
			}
		}
		missing[t] = m
		total += m.Len()
	}
	return missing, total, nil
}

// present reads back which rows of the given offsets a table has.
func (p *partition) present(ctx context.Context, t schema.Table, first, last int64) (map[place]int, error) {
	there := map[place]int{}
	twice := 0
	err := p.store.Present(ctx, t, p.at, first, last, func(offset int64, index uint32, id batch.ID) {
		k := place{offset, index, id}
		there[k]++
		if there[k] > 1 {
			twice++
		}
	})
	if err != nil {
		return nil, err
	}
	if twice > 0 && t != schema.ProgressTab {
		// They collapse when parts merge and count once through FINAL; but no way
		// through this code stores a row twice, so somebody should look.
		p.s.metrics.alarm("stored_twice")
		p.log.Error("rows are stored twice", "table", t, "rows", twice, "first", first, "last", last)
	}
	return there, nil
}

// missing returns the rows that the table does not have, knowing what it has at
// their offsets.
func (p *partition) missing(ctx context.Context, t schema.Table, rows *schema.Rows, there map[place]int) (*schema.Rows, error) {
	out := &schema.Rows{}
	for _, r := range rows.Events {
		if there[placeOf(&r)] == 0 {
			out.Events = append(out.Events, r)
		}
	}
	for _, r := range rows.Dead {
		if there[place{r.Offset, r.Index, r.BatchID}] == 0 {
			out.Dead = append(out.Dead, r)
		}
	}
	for _, r := range rows.Batches {
		if there[place{r.Offset, 0, r.Record.BatchID}] == 0 {
			out.Batches = append(out.Batches, r)
		}
	}
	for _, r := range rows.Progress {
		if there[place{offset: r.Through}] == 0 {
			out.Progress = append(out.Progress, r)
		}
	}
	var err error
	// A row that merged with a copy of itself is not missing.
	if out.Events, err = without(out.Events, func(found func(int)) error {
		return p.store.MergedEvents(ctx, t, out.Events, found)
	}); err != nil {
		return nil, err
	}
	if out.Dead, err = without(out.Dead, func(found func(int)) error {
		return p.store.MergedDead(ctx, out.Dead, found)
	}); err != nil {
		return nil, err
	}
	return out, nil
}

// without returns the rows that look does not report.
func without[R any](rows []R, look func(found func(row int)) error) ([]R, error) {
	if len(rows) == 0 {
		return nil, nil
	}
	gone := make([]bool, len(rows))
	if err := look(func(row int) { gone[row] = true }); err != nil {
		return nil, err
	}
	var left []R
	for i := range rows {
		if !gone[i] {
			left = append(left, rows[i])
		}
	}
	return left, nil
}

// retry repeats until it works or the partition is not owned any more. What is
// permanent is our fault or an operator's, not the data's: it is repeated too,
// slowly and with an alarm, because nothing is lost by waiting.
func (p *partition) retry(ctx context.Context, what string, fn func() error) error {
	transient := retry.Policy{Min: 200 * time.Millisecond, Max: 5 * time.Second}
	for attempt := 0; ; attempt++ {
		err := fn()
		if err == nil || errors.Is(err, batch.ErrFenced) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		wait := transient.Wait(attempt, err)
		if retry.ClassOf(err) == retry.Permanent {
			p.s.metrics.alarm("permanent")
			wait = 10 * time.Second
			p.log.Error("cannot go on until this is mended", "doing", what, "error", err)
		} else {
			p.log.Warn("trying again", "doing", what, "error", err, "in", wait)
		}
		p.endTurn() // what is in trouble holds up no other
		p.status("waiting", what+": "+err.Error())
		if !retry.Sleep(ctx, wait) {
			return ctx.Err()
		}
	}
}
