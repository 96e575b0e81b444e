package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// span is consecutive numbers, both inclusive.
type span struct{ first, last uint64 }

const (
	// chunksAtOnce are listed with one query: 8 KiB of memory each.
	chunksAtOnce = 1024
	// maxSpans bounds what is kept by name of one series; more is counted.
	maxSpans = 10_000
)

// gaps are the numbers of one series that are not there.
type gaps struct {
	spans []span
	count uint64
}

func (g *gaps) add(s span) {
	g.count += s.last - s.first + 1
	if n := len(g.spans); n > 0 && g.spans[n-1].last+1 == s.first {
		g.spans[n-1].last = s.last
	} else if n < maxSpans {
		g.spans = append(g.spans, s)
	}
}

// take takes one number out and reports whether it was there.
func (g *gaps) take(n uint64) bool {
	i, ok := slices.BinarySearchFunc(g.spans, n, func(s span, n uint64) int {
		switch {
		case s.last < n:
			return -1
		case s.first > n:
			return 1
		}
		return 0
	})
	if !ok {
		return false
	}
	s := g.spans[i]
	g.count--
	switch {
	case s.first == s.last:
		g.spans = slices.Delete(g.spans, i, i+1)
	case s.first == n:
		g.spans[i].first++
	case s.last == n:
		g.spans[i].last--
	default:
		g.spans = slices.Insert(g.spans, i+1, span{n + 1, s.last})
		g.spans[i].last = n - 1
	}
	return true
}

// wanted is the numbers of one series that should be there: first to last, less
// those that may be missing.
type wanted struct {
	span
	except []span // in order, disjoint
}

// excepted is how many of s may be missing.
func (w *wanted) excepted(s span) (n uint64) {
	for _, e := range w.except {
		if first, last := max(e.first, s.first), min(e.last, s.last); first <= last {
			n += last - first + 1
		}
	}
	return n
}

// normal puts spans in order and joins those that overlap.
func normal(list []span) []span {
	slices.SortFunc(list, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	out := list[:0]
	for _, s := range list {
		if n := len(out); n > 0 && s.first <= out[n-1].last {
			out[n-1].last = max(out[n-1].last, s.last)
		} else if s.first <= s.last {
			out = append(out, s)
		}
	}
	return out
}

// compare finds the gaps of series, given what is wanted of each and what its
// chunks count. Only chunks in which the counts leave a doubt are listed.
func (a *auditor) compare(ctx context.Context, what string, want map[Series]*wanted, chunks map[Series]map[uint64]uint64,
	list func(context.Context, []Chunk, func(Series, uint64)) error) (map[Series]*gaps, error) {
	var doubt []Chunk
	for s, w := range want {
		if w.first > w.last {
			continue
		}
		for index := w.first / ChunkSize; index <= w.last/ChunkSize; index++ {
			part := chunkPart(w, index)
			whole := part.first == index*ChunkSize && part.last == index*ChunkSize+ChunkSize-1
			// A count says something only of a chunk that is wanted whole.
			if whole && chunks[s][index] == ChunkSize || w.excepted(part) == part.last-part.first+1 {
				continue
			}
			doubt = append(doubt, Chunk{Series: s, Index: index})
		}
	}
	slices.SortFunc(doubt, func(x, y Chunk) int {
		return cmp.Or(slices.Compare(x.Collector[:], y.Collector[:]), cmp.Compare(x.Epoch, y.Epoch), cmp.Compare(x.Log, y.Log),
			cmp.Compare(x.Partition, y.Partition), cmp.Compare(x.Index, y.Index))
	})
	out := map[Series]*gaps{}
	for i := 0; i < len(doubt); i += chunksAtOnce {
		a.progress(what, int64(i), int64(len(doubt)))
		some := doubt[i:min(i+chunksAtOnce, len(doubt))]
		have := make(map[Series]map[uint64]*chunkBits, len(some))
		var ask []Chunk
		for _, k := range some {
			if have[k.Series] == nil {
				have[k.Series] = map[uint64]*chunkBits{}
			}
			have[k.Series][k.Index] = &chunkBits{}
			if chunks[k.Series][k.Index] > 0 {
				ask = append(ask, k)
			}
		}
		if len(ask) > 0 {
			err := list(ctx, ask, func(s Series, number uint64) {
				if b := have[s][number/ChunkSize]; b != nil {
					b.set(number % ChunkSize)
				}
			})
			if err != nil {
				return nil, err
			}
		}
		for _, k := range some {
			w := want[k.Series]
			missing := have[k.Series][k.Index].missing(k.Index, chunkPart(w, k.Index), w.except)
			for _, s := range missing {
				if out[k.Series] == nil {
					out[k.Series] = &gaps{}
				}
				out[k.Series].add(s)
			}
		}
	}
	return out, nil
}

func chunkPart(w *wanted, index uint64) span {
	return span{max(w.first, index*ChunkSize), min(w.last, index*ChunkSize+ChunkSize-1)}
}

// chunkBits is which numbers of a chunk are there.
type chunkBits [ChunkSize / 64]uint64

func (b *chunkBits) set(n uint64) { b[n/64] |= 1 << (n % 64) }

// missing lists the numbers of part that are neither set nor excepted.
func (b *chunkBits) missing(index uint64, part span, except []span) (out []span) {
	base := index * ChunkSize
	for _, e := range except {
		for n := max(e.first, part.first); n <= min(e.last, part.last) && n >= part.first; n++ {
			b.set(n - base)
		}
	}
	for n := part.first; n <= part.last; {
		word := ^b[(n-base)/64] >> (n % 64)
		if word == 0 {
			n += 64 - n%64
			continue
		}
		n += uint64(bits.TrailingZeros64(word))
		first := n
		for n <= part.last && b[(n-base)/64]>>(n%64)&1 == 0 {
			n++
		}
		if first <= part.last {
			out = append(out, span{first, n - 1})
		}
	}
	return out
}

// counted is what the chunks of one series say together.
type counted struct {
	chunks            map[uint64]uint64
	old, fresh        uint64
	lastOld, firstNew uint64
}

func gather(into map[Series]*counted, k Chunk) {
	c := into[k.Series]
	if c == nil {
		c = &counted{chunks: map[uint64]uint64{}}
		into[k.Series] = c
	}
	c.chunks[k.Index] = k.Count
	if k.Old > 0 {
		c.old += k.Old
		c.lastOld = max(c.lastOld, k.LastOld)
	}
	if k.New > 0 {
		if c.fresh == 0 || k.FirstNew < c.firstNew {
			c.firstNew = k.FirstNew
		}
		c.fresh += k.New
	}
}

// lowest is the first number of a series that must be there, given that all of it
// or only what is newer is kept. Numbers grow with time.
func (c *counted) lowest(first uint64, kept bool) (uint64, bool) {
	switch {
	case c != nil && c.old > 0:
		return c.lastOld + 1, true
	case kept:
		return first, true
	case c != nil && c.fresh > 0:
		return c.firstNew, true
	}
	return 0, false // whatever there was may have expired
}

func chunksOf(all map[Series]*counted) map[Series]map[uint64]uint64 {
	out := make(map[Series]map[uint64]uint64, len(all))
	for s, c := range all {
		out[s] = c.chunks
	}
	return out
}

// numbers finds the numbers of each epoch that batches does not have.
func (a *auditor) numbers(ctx context.Context) (map[Series]*gaps, error) {
	all := map[Series]*counted{}
	a.progress("counting batches", 0, 1)
	if err := a.o.Store.SeqChunks(ctx, a.from, func(k Chunk) { gather(all, k) }); err != nil {
		return nil, err
	}
	want := map[Series]*wanted{}
	for _, c := range a.book.collectors {
		for id, e := range c.epochs {
			if e.record.Settled == 0 || e.heard.Before(a.from) {
				continue
			}
			s := Series{Collector: c.id, Epoch: id}
			first, ok := all[s].lowest(1, !e.opened.IsZero() && e.opened.After(a.kept))
			if !ok {
				continue
			}
			w := &wanted{span: span{first, e.record.Settled}}
			for _, v := range e.record.Voids {
				w.except = append(w.except, span{v.First, v.Last})
			}
			w.except = normal(w.except)
			want[s] = w
			a.report.Checked.Epochs++
			if first <= w.last {
				a.report.Checked.Numbers += w.last - first + 1
			}
		}
	}
	return a.compare(ctx, "looking for missing batches", want, chunksOf(all), a.o.Store.Seqs)
}

// offsets finds the offsets that are stored according to progress and of which
// batches has no row.
func (a *auditor) offsets(ctx context.Context) (map[Series]*gaps, error) {
	all := map[Series]*counted{}
	a.progress("counting records", 0, 1)
	if err := a.o.Store.OffsetChunks(ctx, a.o.Topic, a.from, func(k Chunk) { gather(all, k) }); err != nil {
		return nil, err
	}
	passedOver := map[Series][]span{}
	err := a.o.Store.Skipped(ctx, a.o.Topic, func(s Series, first, last uint64) {
		passedOver[s] = append(passedOver[s], span{first, last})
	})
	if err != nil {
		return nil, err
	}
	// A log that no collector named before what is kept cannot have lost rows to age.
	begun := map[string]time.Time{}
	for _, c := range a.book.collectors {
		for _, e := range c.epochs {
			at := e.opened // zero: before anybody remembers
			if was, ok := begun[e.record.Log]; !ok || at.Before(was) {
				begun[e.record.Log] = at
			}
		}
	}
	want := map[Series]*wanted{}
	for log, partitions := range a.stored {
		for p, through := range partitions {
			s := Series{Log: log, Partition: p}
			if all[s] == nil && log != a.log {
				continue // a log of another topic, or long gone
			}
			at, named := begun[log]
			first, ok := all[s].lowest(0, named && at.After(a.kept))
			if !ok || through < 0 {
				continue
			}
			w := &wanted{span: span{first, uint64(through)}, except: normal(passedOver[s])}
			want[s] = w
			if first <= w.last {
				a.report.Checked.Offsets += w.last - first + 1
			}
			for _, e := range w.except {
				if e.last < first {
					continue
				}
				l := line(Skipped)
				l.Log, l.Partition, l.Offset, l.Count = log, p, int64(e.first), e.last-e.first+1
				l.Detail = fmt.Sprintf("offsets %d to %d were passed over when an operator resumed the partition", e.first, e.last)
				a.report.note(l)
			}
		}
	}
	list := func(ctx context.Context, chunks []Chunk, found func(Series, uint64)) error {
		return a.o.Store.Offsets(ctx, a.o.Topic, chunks, found)
	}
	return a.compare(ctx, "looking for missing records", want, chunksOf(all), list)
}

// name reads the records at offsets that batches does not have again from Kafka, so
// that they can be called by their names, and takes them out of the missing numbers.
func (a *auditor) name(ctx context.Context, holes, missing map[Series]*gaps) error {
	for _, s := range sortedSeries(holes) {
		for _, g := range holes[s].spans {
			for offset := g.first; offset <= g.last; offset++ {
				if a.report.Counts[Lost] >= MaxLines {
					// There is no room for more names.
					l := line(Lost)
					l.Log, l.Partition, l.Offset, l.Count = s.Log, s.Partition, int64(offset), g.last-offset+1
					l.Detail = "batches has no row of them"
					a.report.find(l)
					break
				}
				l := line(Lost)
				l.Log, l.Partition, l.Offset, l.Count = s.Log, s.Partition, int64(offset), 1
				d, err := a.fetch(ctx, s, int64(offset))
				switch {
				case err != nil && retry.ClassOf(err) == retry.Shutdown:
					return err
				case err != nil:
					l.Detail = fmt.Sprintf("batches has no row of this record, and it cannot be read again: %v", err)
				default:
					l.Detail = "batches has no row of this record; Kafka still has it"
					if d.Bad == nil {
						l.Collector, l.Epoch, l.FirstSeq, l.LastSeq, l.BatchID = d.Collector.String(), d.Epoch, d.Seq, d.Seq, d.BatchID.String()
						if m := missing[Series{Collector: d.Collector, Epoch: d.Epoch}]; m != nil {
							m.take(d.Seq)
						}
					}
				}
				a.report.find(l)
			}
		}
	}
	return nil
}

var errNotThere = errors.New("the record is not in Kafka any more")

// fetch reads one record again.
func (a *auditor) fetch(ctx context.Context, s Series, offset int64) (*batch.Delivery, error) {
	if s.Log != a.log {
		return nil, errNotThere
	}
	var got *batch.Delivery
	policy := retry.Policy{Attempts: 3}
	err := policy.Do(ctx, func(ctx context.Context) error {
		list, _, err := a.o.Source.Fetch(ctx, s.Partition, offset, 1, time.Second)
		if errors.Is(err, batch.ErrOffsetGone) {
			return retry.Mark(errNotThere, retry.Permanent)
		}
		if err != nil {
			return err
		}
		if len(list) == 0 || list[0].Offset != offset {
			return retry.Mark(errNotThere, retry.Permanent)
		}
		got = &list[0]
		return nil
	})
	a.report.Checked.Reread++
	return got, err
}

func sortedSeries(m map[Series]*gaps) []Series {
	out := make([]Series, 0, len(m))
	for s := range m {
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y Series) int {
		return cmp.Or(slices.Compare(x.Collector[:], y.Collector[:]), cmp.Compare(x.Epoch, y.Epoch), cmp.Compare(x.Log, y.Log), cmp.Compare(x.Partition, y.Partition))
	})
	return out
}

// settle says what the missing numbers of each collector are.
func (a *auditor) settle(missing map[Series]*gaps) {
	byCollector := map[batch.ID][]Series{}
	for _, s := range sortedSeries(missing) {
		if missing[s].count > 0 {
			byCollector[s.Collector] = append(byCollector[s.Collector], s)
		}
	}
	for _, c := range a.book.sorted() {
		series := byCollector[c.id]
		if len(series) == 0 {
			continue
		}
		total := uint64(0)
		for _, s := range series {
			total += missing[s].count
		}
		pending, up := c.newest.Pending, uint64(0)
		if c.gone() {
			pending = 0
		}
		if c.retired != nil {
			up = c.retired.Pending + c.retired.Lost
		}
		l := line(Waiting)
		l.Collector, l.Epoch = c.id.String(), c.newest.Epoch
		if !a.passed(c) {
			l.Count = total
			l.Detail = "they are in Kafka, and the sinks are behind: " + a.behind(c)
			a.report.note(l)
			continue
		}
		if l.Count = min(total, pending); l.Count > 0 {
			l.Detail = "they wait in its spool"
			if c.newest.Oldest != nil {
				l.Detail += ", the oldest received " + stamp(*c.newest.Oldest)
			}
			a.report.note(l)
		}
		rest := total - l.Count
		if l.Count = min(rest, up); l.Count > 0 {
			l.Kind = GivenUp
			l.Detail = fmt.Sprintf("by %s: %s", c.retired.By, c.retired.Reason)
			a.report.note(l)
		}
		rest -= l.Count
		if rest == 0 {
			continue
		}
		for _, s := range series {
			for _, g := range missing[s].spans {
				l := line(Lost)
				l.Collector, l.Epoch, l.FirstSeq, l.LastSeq = c.id.String(), s.Epoch, g.first, g.last
				l.Count = g.last - g.first + 1
				l.Detail = "acknowledged, and neither in batches nor in the spool"
				if rest < total {
					l.Detail = fmt.Sprintf("of the %d missing batches of this collector %d are lost; which, nobody can tell before the others have arrived", total, rest)
				}
				a.report.find(l)
			}
		}
	}
}

// behind says where the sinks are behind a collector's newest record.
func (a *auditor) behind(c *account) string {
	for p, offset := range c.newest.Offsets {
		if through := a.through(c.newest.Log, p); through < offset {
			return fmt.Sprintf("partition %d is stored through offset %d of %d", p, through, offset)
		}
	}
	return "they have caught up since"
}
