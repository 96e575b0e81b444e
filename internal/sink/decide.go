package sink

import (
	"context"
	"math"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// span is a range of original indices of a batch, inclusive.
type span struct{ first, last uint32 }

// whole covers every index: the span of a batch that was not split.
var whole = span{0, math.MaxUint32}

func spanOf(b *schema.Head) span {
	if b.Part {
		return span{b.First, b.Last}
	}
	return whole
}

// claim is what the stored records of one batch have settled: which events the
// batch has (by digest), and which of them are stored.
type claim struct {
	digest batch.Digest
	span   span   // of the first record
	more   []span // of the others; most batches have none
}

func (c *claim) covers(index uint32) bool {
	if c.span.first <= index && index <= c.span.last {
		return true
	}
	for _, s := range c.more {
		if s.first <= index && index <= s.last {
			return true
		}
	}
	return false
}

// coversAll reports whether nothing of s is left to store. Spans of one batch
// are nested or disjoint, or of copies with the same events and so the same
// halves: looking for the lowest index that is not covered ends quickly.
func (c *claim) coversAll(s span) bool {
	at := uint64(s.first)
	for at <= uint64(s.last) {
		end := at
		for _, o := range append([]span{c.span}, c.more...) {
			if uint64(o.first) <= at && at <= uint64(o.last) {
				end = max(end, uint64(o.last)+1)
			}
		}
		if end == at {
			return false
		}
		at = end
	}
	return true
}

// with returns a claim that has s too, without changing c: a block may be
// decided again.
func (c *claim) with(s span) *claim {
	more := append(append(make([]span, 0, len(c.more)+1), c.more...), s)
	return &claim{digest: c.digest, span: c.span, more: more}
}

// remembered is a bounded window of claims, the oldest forgotten first. It
// belongs to one partition loop and dies with it: the next owner learns from
// ClickHouse, as does this one about what it has forgotten. A claim in it is
// complete: everything that this partition's log held before.
type remembered struct {
	known map[batch.ID]*claim
	order []batch.ID // a ring
	next  int
	limit int
}

func newRemembered(limit int) *remembered {
	return &remembered{known: map[batch.ID]*claim{}, limit: max(limit, 1)}
}

func (r *remembered) put(id batch.ID, c *claim) {
	if _, ok := r.known[id]; !ok {
		if len(r.order) < r.limit {
			r.order = append(r.order, id)
		} else {
			delete(r.known, r.order[r.next])
			r.order[r.next] = id
			r.next = (r.next + 1) % len(r.order)
		}
	}
	r.known[id] = c
}

// forget empties the window: the log behind it is another one, or goes on
// elsewhere.
func (r *remembered) forget() { *r = *newRemembered(r.limit) }

// decide settles what each record of a block is. The answer depends on the log
// alone (of the records of a batch the lowest offset counts), so whoever repeats
// the block decides the same. See docs/adr/0006 for the rules.
func (p *partition) decide(ctx context.Context, b *block) error {
	claims := map[batch.ID]*claim{} // of what was stored before the record at hand
	var ask []batch.ID
	for i := range b.items {
		id := b.items[i].delivery.BatchID
		if id.IsZero() {
			continue // its headers could not be read
		}
		if _, asked := claims[id]; asked {
			continue
		}
		claims[id] = p.seen.known[id]
		if claims[id] == nil {
			ask = append(ask, id)
		}
	}
	lowest := map[batch.ID]int64{}
	err := p.store.Copies(ctx, ask, func(c schema.Copy) {
		offset := int64(-1) // of another partition or log: earlier than all of this one
		if c.Log == p.at.Log && c.Partition == p.at.Partition {
			if c.Offset >= b.first {
				return // the record itself, or a later copy: this block decides
			}
			offset = c.Offset
		}
		s := span{c.First, c.Last}
		known := claims[c.BatchID]
		if known == nil {
			claims[c.BatchID] = &claim{digest: c.Digest, span: s}
			lowest[c.BatchID] = offset
			return
		}
		next := known.with(s)
		if offset < lowest[c.BatchID] {
			next.digest = c.Digest
			lowest[c.BatchID] = offset
		}
		claims[c.BatchID] = next
	})
	p.s.budget.beside(p.store.Held())
	if err != nil {
		return err
	}
	for i := range b.items {
		it := &b.items[i]
		d := &it.delivery
		s := spanOf(&it.head)
		it.earlier = claims[d.BatchID]
		switch {
		case it.broken != nil:
			it.outcome = schema.Dead
			continue
		case it.earlier == nil:
			old, err := p.stored(ctx, it)
			if err != nil {
				return err
			}
			if old {
				it.outcome = schema.Duplicate
				continue
			}
			it.outcome = schema.Stored
			claims[d.BatchID] = &claim{digest: d.Digest, span: s}
		case it.earlier.digest != d.Digest:
			it.outcome = schema.Conflict
		case it.earlier.coversAll(s):
			it.outcome = schema.Duplicate
		default:
			it.outcome = schema.Stored
			claims[d.BatchID] = it.earlier.with(s)
		}
	}
	b.claims = claims
	return nil
}

// stored asks the data itself about a record that is older than the dedup
// window: batches may have forgotten its first copy.
func (p *partition) stored(ctx context.Context, it *item) (bool, error) {
	d := &it.delivery
	if d.ReceivedAt.IsZero() || p.s.now().Sub(d.ReceivedAt) < p.s.cfg.DedupWindow {
		return false, nil
	}
	at := p.at
	at.Offset = d.Offset
	s := spanOf(&it.head)
	return p.store.HasBatch(ctx, d.Project, d.BatchID, s.first, s.last, at)
}

// remember keeps what a delivered block decided.
func (p *partition) remember(b *block) {
	for id, c := range b.claims {
		if c != nil {
			p.seen.put(id, c)
		}
	}
}
