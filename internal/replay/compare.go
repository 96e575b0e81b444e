package replay

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// block is some records of a partition that are compared together.
type block struct {
	at          schema.Position // Offset is not used
	first, last int64           // offsets
	from, until time.Time       // of receipt
	items       []item
	ids         []batch.ID
}

// newBlock makes a block of at least one item.
func newBlock(at schema.Position, items []item) *block {
	b := &block{at: at, items: items}
	b.first, b.last = items[0].delivery.Offset, items[len(items)-1].delivery.Offset
	for i := range items {
		it := &items[i]
		b.ids = append(b.ids, it.delivery.BatchID)
		// Events have the time in the value, everything else that in the header: one
		// and the same, unless somebody else wrote the record.
		times := []time.Time{it.receivedAt()}
		if len(it.batch.Events) > 0 {
			times = append(times, time.UnixMicro(it.batch.ReceivedAt))
		}
		for _, t := range times {
			if b.from.IsZero() || t.Before(b.from) {
				b.from = t
			}
			if t.After(b.until) {
				b.until = t
			}
		}
	}
	b.ids = unique(b.ids)
	return b
}

func unique(ids []batch.ID) []batch.ID {
	slices.SortFunc(ids, func(a, b batch.ID) int { return slices.Compare(a[:], b[:]) })
	return slices.Compact(ids)
}

// want lays out the rows that the tables should have of a block.
func (r *Repairer) want(ctx context.Context, b *block) (out rows, unreadable int64, err error) {
	outcomes := map[spot]schema.Outcome{}
	if err := r.o.Store.Outcomes(ctx, b.ids, b.at, b.first, b.last, func(offset int64, id batch.ID, outcome schema.Outcome) {
		outcomes[spot{offset: offset, batch: id}] = outcome
	}); err != nil {
		return nil, 0, err
	}
	for i := range b.items {
		it := &b.items[i]
		it.outcome = outcomes[spot{offset: it.delivery.Offset, batch: it.delivery.BatchID}]
	}
	if err := r.decide(ctx, b.at, b.items); err != nil {
		return nil, 0, err
	}
	refused := map[spot]bool{}
	if err := r.o.Store.Refused(ctx, b.at, b.first, b.last, b.from, b.until, func(offset int64, index uint32, id batch.ID) {
		refused[spot{offset, index, id}] = true
	}); err != nil {
		return nil, 0, err
	}
	out = newRows()
	for i := range b.items {
		it := &b.items[i]
		if it.broken != nil && it.outcome != schema.Dead {
			unreadable++
			continue
		}
		it.build(out, refused)
		if r.now().Sub(it.delivery.AppendAt) >= r.o.DedupWindow {
			// batches has forgotten it by now, or may have, and was meant to.
			t := out[schema.Batches]
			t.Batches = t.Batches[:len(t.Batches)-1]
		}
	}
	return r.chosen(out), unreadable, nil
}

// chosen leaves what was asked for.
func (r *Repairer) chosen(all rows) rows {
	if r.o.Experiment == "" && r.o.Into == "" {
		return all
	}
	out := newRows()
	like := schema.Exposures
	if r.o.Into != "" {
		like = r.o.Like
	}
	for _, row := range all[like].Events {
		if r.o.Experiment == "" || row.Event.Kind == schema.KindExposure && row.Event.Experiment == r.o.Experiment {
			out[like].Events = append(out[like].Events, row)
		}
	}
	return out
}

// table is where the rows of a table go.
func (r *Repairer) table(like schema.Table) schema.Table {
	if r.o.Into != "" {
		return r.o.Into
	}
	return like
}

// missing returns the rows that the tables do not have.
func (r *Repairer) missing(ctx context.Context, b *block, want rows) (out rows, doubled int64, err error) {
	out = newRows()
	for _, t := range repaired() {
		if want[t].Len() == 0 {
			continue
		}
		there := map[spot]bool{}
		have := func(offset int64, index uint32, id batch.ID) {
			s := spot{offset, index, id}
			if there[s] {
				doubled++
			}
			there[s] = true
		}
		if t == schema.Batches {
			err = r.o.Store.Outcomes(ctx, b.ids, b.at, b.first, b.last, func(offset int64, id batch.ID, _ schema.Outcome) { have(offset, 0, id) })
		} else {
			err = r.o.Store.RowsOf(ctx, r.table(t), b.at, b.first, b.last, b.from, b.until, have)
		}
		if err != nil {
			return nil, 0, err
		}
		m := out[t]
		for _, row := range want[t].Events {
			if !there[spot{row.Offset, row.Event.Index, row.Batch.ID}] {
				m.Events = append(m.Events, row)
			}
		}
		for _, row := range want[t].Dead {
			if !there[spot{row.Offset, row.Index, row.BatchID}] {
				m.Dead = append(m.Dead, row)
			}
		}
		for _, row := range want[t].Batches {
			if !there[spot{row.Offset, 0, row.Record.BatchID}] {
				m.Batches = append(m.Batches, row)
			}
		}
		if out[t], err = r.withoutCopies(ctx, t, m); err != nil {
			return nil, 0, err
		}
	}
	return out, doubled, nil
}

// withoutCopies takes out the rows that the table has from another record, and of
// those that several records of one batch would bring all but the first.
func (r *Repairer) withoutCopies(ctx context.Context, t schema.Table, m *schema.Rows) (*schema.Rows, error) {
	if len(m.Events)+len(m.Dead) == 0 {
		return m, nil
	}
	merged := make([]bool, m.Len())
	if err := r.o.Store.Merged(ctx, r.table(t), t, m, func(row int) { merged[row] = true }); err != nil {
		return nil, err
	}
	left := &schema.Rows{}
	first := map[spot]int64{}
	for i, row := range m.Events {
		s := spot{index: row.Event.Index, batch: row.Batch.ID}
		if offset, ok := first[s]; !merged[i] && (!ok || offset == row.Offset) {
			first[s] = row.Offset
			left.Events = append(left.Events, row)
		}
	}
	seen := map[batch.ID]bool{}
	for i, row := range m.Dead {
		if !merged[i] && !seen[row.ID] {
			seen[row.ID] = true
			left.Dead = append(left.Dead, row)
		}
	}
	return left, nil
}

// count adds what is missing to the report.
func (r *Repairer) count(missing rows, report *Report) int64 {
	t := report.tally()
	for _, table := range repaired() {
		m := missing[table]
		for _, row := range m.Events {
			c := Count{Table: r.table(table), Experiment: row.Event.Experiment, Variant: row.Event.Variant}
			if table == schema.Events {
				c.Experiment, c.Variant = row.Event.Name, ""
			}
			t.add(c, 1)
		}
		for _, row := range m.Dead {
			t.add(Count{Table: table, Reason: row.Stage + "/" + row.Reason}, 1)
		}
		for _, row := range m.Batches {
			t.add(Count{Table: table, Reason: string(row.Outcome)}, 1)
		}
	}
	report.Missing += missing.len()
	return missing.len()
}

// attempts is how many tokens are tried for rows that ClickHouse says it has and
// does not show. It drops other rows under a token it knows, and reports success;
// and killed between writing an insert's token and renaming its part, it drops the
// part and takes the retry for a repeat.
const attempts = 5

// fill inserts rows until the tables have them. After each insert it looks: what
// ClickHouse reported is not taken for true (see attempts).
//
// A crash between two tables: the rows of the first are there, and are found the
// next time. batches comes last, so that no row of it vouches for rows that are not
// there.
func (r *Repairer) fill(ctx context.Context, b *block, missing rows) error {
	looked := true // just now, when missing was found out
	for round := 0; ; round++ {
		err := r.policy.Do(ctx, func(ctx context.Context) error {
			if !looked {
				left, _, err := r.missing(ctx, b, missing)
				if err != nil {
					return err
				}
				missing = left
			}
			if looked = false; round > attempts {
				return nil
			}
			for _, t := range repaired() {
				if missing[t].Len() == 0 {
					continue
				}
				if err := r.o.Store.Fill(ctx, r.table(t), t, b.at, r.token(b, t, missing[t], round), missing[t]); err != nil {
					return err
				}
			}
			return nil
		})
		switch {
		case err != nil:
			return err
		case missing.len() == 0:
			return nil
		case round > attempts:
			return retry.Mark(fmt.Errorf("%d rows: %w", missing.len(), errTorn), retry.Permanent)
		}
	}
}

// token names an insert for ClickHouse's deduplication. At first it follows from the
// rows: whoever inserts the same ones at the same time inserts them once. It is of
// no use twice, since what it named may have been deleted since; so what is still
// missing gets one that nobody has used.
func (r *Repairer) token(b *block, t schema.Table, m *schema.Rows, round int) string {
	h := sha256.New()
	add := func(offset int64, index uint32, id batch.ID) {
		var p [28]byte
		binary.BigEndian.PutUint64(p[:], uint64(offset))
		binary.BigEndian.PutUint32(p[8:], index)
		copy(p[12:], id[:])
		h.Write(p[:]) // a hash never fails
	}
	for _, row := range m.Events {
		add(row.Offset, row.Event.Index, row.Batch.ID)
	}
	for _, row := range m.Dead {
		add(row.Offset, row.Index, row.BatchID)
	}
	for _, row := range m.Batches {
		add(row.Offset, 0, row.Record.BatchID)
	}
	token := fmt.Sprintf("repair/%s/%s/%d/%d-%d/%s/%s", b.at.Log, b.at.Topic, b.at.Partition, b.first, b.last, r.table(t), hex.EncodeToString(h.Sum(nil)[:16]))
	if round > 0 {
		token += fmt.Sprintf("#%d/%s", round, r.run)
	}
	return token
}
