package sink

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// Refused events are the data's fault as long as they are few: at most this many,
// or at most one in refusedShare of the block. More than that is ours (a table that
// was changed, say): then nothing is put aside, and the partition waits.
const (
	refusedFew   = 10
	refusedShare = 100
)

var errTooManyRefused = errors.New("ClickHouse refuses too much for it to be the events' fault; nothing was put aside")

// refusal says which table did not take what is in a block's rows.
type refusal struct {
	table schema.Table
	err   error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// named turns the error of an insert into a refusal if it is one. dead_letters,
// batches and progress hold what the sink writes itself: what they refuse cannot be
// put aside, and is a permanent error like any other.
func named(t schema.Table, err error) error {
	var content interface {
		error
		Content()
	}
	if (t == schema.Exposures || t == schema.Events) && errors.As(err, &content) {
		return &refusal{table: t, err: err}
	}
	return err
}

// refusing is the table that refused its rows, or "".
func refusing(err error) schema.Table {
	var r *refusal
	if errors.As(err, &r) {
		return r.table
	}
	return ""
}

func (b *block) refuse(r *schema.EventRow, why string) {
	if b.refused == nil {
		b.refused = map[place]string{}
	}
	b.refused[placeOf(r)] = why
}

func (b *block) isRefused(r *schema.EventRow) bool {
	_, ok := b.refused[placeOf(r)]
	return ok
}

// hunt is the search for the events of a block that one table refuses. It lives as
// long as the block is being delivered, so that an outage in the middle of it costs
// the piece at hand and not what was found out before.
type hunt struct {
	table   schema.Table
	pieces  []piece // all that is left of the rows that were refused together
	said    string  // the last refusal
	inserts int
	found   int
}

// piece is rows of a block that are to be inserted together or, if ClickHouse has
// refused that, in halves.
type piece struct {
	rows    []schema.EventRow // one at least
	refused string            // what it said of exactly these rows, "" if nothing yet
}

func newHunt(t schema.Table, rows []schema.EventRow, err error) *hunt {
	return &hunt{table: t, pieces: []piece{{rows, err.Error()}}, said: err.Error()}
}

// search finds the events that ClickHouse refuses among rows of one table that it
// refused together, and stores the others. It halves what is refused, between two
// records as long as there is more than one and then between two events, until an
// event is alone: about 2·log2(rows) inserts for each guilty event, the largest
// first.
//
// Each piece goes in under a token of its own, its door open before the ownership
// is checked. A refusal is an error, and an error does not say what is stored: so
// before anything refused is sent again or given up it is read back, once for all
// pieces of one size. A crash at any point leaves what the next owner's reading
// back tells it: rows that are there, and the rest to be searched again with the
// same result.
//
// The pieces have been read back when it begins, and have to be again after an
// error.
func (p *partition) search(ctx context.Context, gen Generation, b *block, h *hunt) error {
	for len(h.pieces) > 0 {
		// There is a guilty event at least in each piece that was refused.
		if n := len(b.refused) + h.refusedPieces(); p.tooMany(b, n) {
			p.s.metrics.alarm("refused")
			return retry.Mark(fmt.Errorf("%w: %d or more of %d events of block %d to %d; the last one: %s",
				errTooManyRefused, n, b.events, b.first, b.last, bounded(h.said)), retry.Permanent)
		}
		todo := h.next(b)
		h.pieces = nil
		for i := range todo {
			refused, err := p.insertPiece(ctx, gen, b, h.table, todo[i].rows)
			h.inserts++
			if err != nil {
				h.pieces = append(h.pieces, todo[i:]...)
				return err
			}
			if refused != "" {
				h.said = refused
				h.pieces = append(h.pieces, piece{todo[i].rows, refused})
			}
		}
		if err := p.readBack(ctx, h); err != nil {
			return err
		}
	}
	if h.found > 0 {
		p.log.Warn("ClickHouse refuses events; they go to dead_letters", "table", h.table, "events", h.found,
			"first", b.first, "last", b.last, "inserts", h.inserts, "last_error", bounded(h.said))
	}
	return nil
}

func (h *hunt) refusedPieces() (n int) {
	for _, one := range h.pieces {
		if one.refused != "" {
			n++
		}
	}
	return n
}

// next gives up the events that were refused alone, and lists what to insert.
func (h *hunt) next(b *block) []piece {
	var todo []piece
	for _, one := range h.pieces {
		switch {
		case one.refused == "":
			todo = append(todo, one)
		case len(one.rows) == 1:
			b.refuse(&one.rows[0], one.refused)
			h.found++
		default:
			left, right := halves(one.rows)
			todo = append(todo, piece{rows: left}, piece{rows: right})
		}
	}
	return todo
}

// insertPiece inserts some rows of a block by themselves. It returns what
// ClickHouse said if it refused them for what is in them.
func (p *partition) insertPiece(ctx context.Context, gen Generation, b *block, t schema.Table, rows []schema.EventRow) (refused string, err error) {
	p.pieces++
	p.s.metrics.pieces.Inc()
	token := fmt.Sprintf("%s/%d", p.freshToken(b), p.pieces)
	err = p.insert(ctx, gen, b, map[schema.Table]*schema.Rows{t: {Events: rows}}, token)
	if refusing(err) != "" {
		return err.Error(), nil
	}
	return "", err
}

// readBack takes out of a hunt what the table has in spite of its refusal.
func (p *partition) readBack(ctx context.Context, h *hunt) error {
	if len(h.pieces) == 0 {
		return nil
	}
	first, last := h.pieces[0].rows[0].Offset, int64(0)
	all := &schema.Rows{}
	for _, one := range h.pieces {
		first, last = min(first, one.rows[0].Offset), max(last, one.rows[len(one.rows)-1].Offset)
		all.Events = append(all.Events, one.rows...)
	}
	there, err := p.present(ctx, h.table, first, last)
	if err != nil {
		return err
	}
	missing, err := p.missing(ctx, h.table, all, there)
	if err != nil {
		return err
	}
	if len(missing.Events) < len(all.Events) {
		h.keep(missing.Events)
	}
	return nil
}

// keep takes out of the hunt whatever is not among the missing rows.
func (h *hunt) keep(missing []schema.EventRow) {
	lacks := make(map[place]bool, len(missing))
	for i := range missing {
		lacks[placeOf(&missing[i])] = true
	}
	pieces := h.pieces
	h.pieces = nil
	for _, one := range pieces {
		left := piece{refused: one.refused}
		for i := range one.rows {
			if lacks[placeOf(&one.rows[i])] {
				left.rows = append(left.rows, one.rows[i])
			} else {
				left.refused = "" // that was said of other rows too
			}
		}
		if len(left.rows) > 0 {
			h.pieces = append(h.pieces, left)
		}
	}
}

// halves cuts rows in two, as near to the middle as possible: between two records,
// or within the one there is. There are two rows at least.
func halves(rows []schema.EventRow) (left, right []schema.EventRow) {
	mid := len(rows) / 2
	before, after := mid, mid
	for before > 0 && rows[before-1].Offset == rows[before].Offset {
		before--
	}
	for after < len(rows) && rows[after].Offset == rows[after-1].Offset {
		after++
	}
	switch {
	case before == 0 && after == len(rows): // one record
	case before == 0 || after < len(rows) && after-mid < mid-before:
		mid = after
	default:
		mid = before
	}
	return rows[:mid], rows[mid:]
}

// tooMany reports whether so many refused events of a block are not the events'
// fault. Blocks before it of which nothing was taken count as if they were of this
// one: where all is refused that must not go unnoticed because blocks are small.
func (p *partition) tooMany(b *block, refused int) bool {
	n := p.refusedInRow + refused
	return n > refusedFew && n*refusedShare > p.refusedInRow+b.events
}

// count keeps in mind what a delivered block says about the next ones.
func (p *partition) count(b *block) {
	switch {
	case len(b.refused) < b.events:
		p.refusedInRow = 0
	default:
		p.refusedInRow += len(b.refused)
	}
}

// knownRefused marks the missing events that dead_letters has as refused. It reports
// whether there are any.
func (p *partition) knownRefused(ctx context.Context, b *block, missing []schema.EventRow, there map[place]int) (bool, error) {
	var rows []*schema.EventRow
	var letters []schema.DeadLetter
	for i := range missing {
		r := &missing[i]
		it := &b.items[r.Offset-b.first]
		if there[place{r.Offset, r.Event.Index, it.delivery.BatchID}] > 0 {
			rows, letters = append(rows, r), append(letters, it.refused(r.Event, ""))
		}
	}
	if len(letters) == 0 {
		return false, nil
	}
	// What is there at these places may be letters of another kind.
	found := false
	err := p.store.MergedDead(ctx, letters, func(i int) {
		b.refuse(rows[i], "")
		found = true
	})
	return found, err
}

// forward writes the block's dead letters to their topic. A crash after it repeats
// it: the same letters under the same keys.
func (p *partition) forward(ctx context.Context, b *block) error {
	if p.s.cfg.Dead == nil {
		return nil
	}
	for _, l := range b.setAside() {
		headers := map[string]string{
			"project": l.Project, "batch-id": l.BatchID.String(), "batch-index": strconv.FormatUint(uint64(l.Index), 10),
			"reason": l.Reason, "stage": l.Stage,
			"log": p.at.Log, "partition": strconv.Itoa(p.at.Partition), "offset": strconv.FormatInt(l.Offset, 10),
		}
		err := p.retry(ctx, "write to the dead topic", func() error {
			err := p.s.cfg.Dead.Write(ctx, []byte(l.ID.String()), l.Bytes, headers)
			if err != nil {
				return fmt.Errorf("dead letter %s: %w", l.ID, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
