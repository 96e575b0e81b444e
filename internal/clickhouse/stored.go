package clickhouse

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"sync/atomic"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// stored is what a client remembers of the table batches so that it need not ask for
// ids that are not there, which nearly all ids are: a Bloom filter of the ids in
// the parts it has read. It answers "not there" only of a state of the table that it
// has read completely after it was asked, so the answer is the one that the table
// would have given then; of every other id the table is asked (docs/adr/0015).
//
// A part never changes, and its name says which inserts (block numbers) it holds:
// one that holds none but those of parts that were read before, as after a merge,
// need not be read. Rows that the table drops stay in the filter until it is made
// anew; they cost a look-up each, and nothing else.
//
// Safe for concurrent use.
type stored struct {
	piece uint64        // pieceRows; less in tests
	busy  chan struct{} // held by whoever reads or changes what is below
	began atomic.Uint64 // readings of the table's state that have begun
	asked atomic.Uint64 // ids asked for
	whole atomic.Bool   // whether the last reading came to its end
	off   atomic.Bool   // whether the table's parts may not be read
	held  atomic.Int64  // bytes of the filter

	ended  uint64 // the last reading that came to its end; all ids were known then
	table  string // its UUID: one that was dropped and made anew is another
	read   spans  // block numbers whose rows are in the filter
	top    int64  // the highest block number seen
	parts  map[string]part
	large  string // the part that is being read piece by piece,
	offset uint64 // and how many of its rows are in the filter
	filter bloom
}

// part is a part of the table.
type part struct {
	first, last int64  // block numbers
	rows        uint64 //
	content     string // a hash of its files
}

const (
	// askAnyway is below how many ids the table is asked outright: reading the
	// list of its parts costs as much as looking up this many.
	askAnyway = 8
	// A filter pays for itself only where many ids are looked up. To read it takes 120
	// ns a row; a look-up takes 10 µs a part (both measured), so as much after a
	// thousandth or two of the rows. The first few thousand are no sign of many; whoever
	// has looked up ten thousand goes on.
	worthFrom   = 10_000
	rowsALookup = 10_000
	// pieceRows is how many rows are read at once, in 0.2 to 0.4 s: what comes is held in
	// memory. One call reads so many pieces at most before it asks the table after all.
	pieceRows = 2_000_000
	pieces    = 16
	// groupRows is how many ids come in one value.
	groupRows = 65_536
)

func newStored() *stored {
	return &stored{piece: pieceRows, busy: make(chan struct{}, 1), parts: map[string]part{}}
}

// unsure returns those of ids that the table may have; all of them while not all of
// its parts have been read, or cannot be.
func (s *stored) unsure(ctx context.Context, c *Client, ids []batch.ID) []batch.ID {
	asked := s.asked.Add(uint64(len(ids)))
	// Of a cluster's replicas each has parts of its own for a while; not tried.
	if len(ids) < askAnyway || asked < worthFrom || s.off.Load() || c.cfg.Cluster != "" {
		return ids
	}
	// A reading that begins from here on sees all that was stored before the call.
	need := s.began.Load() + 1
	if !s.hold(ctx) {
		return ids
	}
	defer func() { <-s.busy }()
	if s.ended < need {
		n := s.began.Add(1)
		complete, more, err := s.refresh(ctx, c, asked)
		for piece := 1; piece < pieces && more && err == nil; piece++ {
			complete, more, err = s.refresh(ctx, c, asked)
		}
		s.whole.Store(complete && err == nil)
		if retry.ClassOf(err) == retry.Permanent {
			s.off.Store(true) // the right to read system.parts, say; the table answers without
		}
		if err != nil || !complete {
			return ids // should nothing else be wrong either, the table's answer says so
		}
		s.ended = n
	}
	unsure := make([]batch.ID, 0, 16)
	for _, id := range ids {
		if s.filter.has(key(id)) {
			unsure = append(unsure, id)
		}
	}
	return unsure
}

// hold waits for its turn. That may be seconds, while a large table is read for the
// first time; to ask the table meanwhile takes as long, and more of the CPU.
func (s *stored) hold(ctx context.Context) bool {
	select {
	case s.busy <- struct{}{}:
		return true
	case <-ctx.Done():
		return false // the look-up that follows says so
	}
}

// refresh reads what the filter lacks, up to a bound, and reports whether it
// lacks nothing any more, or else whether it is worth going on.
func (s *stored) refresh(ctx context.Context, c *Client, asked uint64) (complete, more bool, err error) {
	table, parts, err := s.list(ctx, c)
	if err != nil {
		return false, false, err
	}
	var rows, lacking uint64
	var top int64
	for _, p := range parts {
		rows += p.rows
		top = max(top, p.last)
	}
	if table != s.table || top < s.top || s.replaced(parts) || s.filter.full(rows) {
		s.forget(table, rows)
	}
	s.top = top
	if len(parts) == 0 || asked < rows/rowsALookup || s.filter.tooSmall(rows) {
		return false, false, nil
	}
	known := []string{}
	var large string
	for name, p := range parts {
		switch {
		case s.read.holds(p.first, p.last):
			known = append(known, name)
			continue
		case large == "", p.rows > parts[large].rows:
			large = name
		}
		lacking += p.rows
	}
	s.parts = parts
	if lacking > s.piece && parts[large].rows >= s.piece/8 {
		if _, there := parts[s.large]; there && !s.read.holds(parts[s.large].first, parts[s.large].last) {
			large = s.large // which was begun
		}
		return false, true, s.readPiece(ctx, c, large, parts[large])
	}
	return true, false, s.readOthers(ctx, c, known)
}

// replaced reports whether a part of the same name holds other rows than before:
// block numbers have begun anew.
func (s *stored) replaced(parts map[string]part) bool {
	for name, p := range parts {
		if old, ok := s.parts[name]; ok && old.content != p.content {
			return true
		}
	}
	return false
}

// forget starts an empty filter, for about as many rows.
func (s *stored) forget(table string, rows uint64) {
	s.table, s.read, s.top, s.parts, s.large, s.offset, s.ended = table, nil, 0, map[string]part{}, "", 0, 0
	s.filter = bloom{} // the old one's memory can be used for the new one
	s.filter = newBloom(rows)
	s.held.Store(8 * int64(len(s.filter.words)))
}

// list returns the table's UUID and its parts that have rows, by name.
func (s *stored) list(ctx context.Context, c *Client) (table string, parts map[string]part, err error) {
	parts = map[string]part{}
	var name string
	var p part
	err = c.lookup(ctx, "list the parts of batches", `
SELECT name, min_block_number, max_block_number, rows, hash_of_all_files,
    (SELECT toString(uuid) FROM system.tables WHERE database = ? AND name = 'batches')
FROM system.parts WHERE active AND rows > 0 AND database = ? AND table = 'batches'`, []any{c.database, c.database},
		func(scan func(...any) error) error {
			if err := scan(&name, &p.first, &p.last, &p.rows, &p.content, &table); err != nil {
				return err
			}
			parts[name] = p
			return nil
		})
	return table, parts, err
}

// readOthers reads all parts but the named ones. It is one query, so one state of
// the table: a part that took the place of others since they were listed is read too.
// After it every row of that state is in the filter.
func (s *stored) readOthers(ctx context.Context, c *Client, known []string) error {
	names := map[string]bool{}
	var name string
	err := s.ids(ctx, c, "NOT has(?, _part)", []any{known}, &name, func() { names[name] = true })
	if err != nil {
		return err
	}
	for name := range names {
		first, last, err := blocks(name)
		if err != nil {
			return err
		}
		s.read.add(first, last)
	}
	return nil
}

// readPiece reads some more rows of a large part. Should a merge have replaced it
// meanwhile they do not come, and it is not counted as read.
func (s *stored) readPiece(ctx context.Context, c *Client, name string, p part) error {
	if name != s.large {
		s.large, s.offset = name, 0
	}
	before, want := s.filter.added, min(s.piece, p.rows-s.offset)
	var again string
	err := s.ids(ctx, c, "_part = ? AND _part_offset >= ? AND _part_offset < ?",
		[]any{name, s.offset, s.offset + want}, &again, func() {})
	if err != nil || s.filter.added-before != want {
		return err
	}
	if s.offset += want; s.offset == p.rows {
		s.read.add(p.first, p.last)
		s.large, s.offset = "", 0
	}
	return nil
}

// ids puts the ids of the rows that are meant into the filter. They come as the state
// of groupArray, a count and the numbers one after the other, since a row each costs
// ten times as much.
func (s *stored) ids(ctx context.Context, c *Client, where string, args []any, name *string, each func()) error {
	var state []byte
	return c.lookup(ctx, "read which batches are stored", fmt.Sprintf(`
SELECT _part, CAST(groupArrayState(reinterpretAsUInt64(batch_id)), 'String')
FROM batches WHERE %s GROUP BY _part, intDiv(_part_offset, %d) SETTINGS max_threads = 1`, where, groupRows),
		args, func(scan func(...any) error) error {
			if err := scan(name, &state); err != nil {
				return err
			}
			n, used := binary.Uvarint(state)
			if used <= 0 || uint64(len(state)-used) != 8*n {
				return fmt.Errorf("%d bytes of %d ids of part %s", len(state), n, *name)
			}
			for b := state[used:]; len(b) > 0; b = b[8:] {
				s.filter.add(binary.LittleEndian.Uint64(b))
			}
			each()
			return nil
		})
}

// key is what reinterpretAsUInt64 makes of an id: its first half.
func key(id batch.ID) uint64 { return binary.BigEndian.Uint64(id[:8]) }

var errPartName = errors.New("not the name of a part of an unpartitioned table")

// blocks reads the block numbers from a part's name: all_first_last_level, and
// _version after a mutation.
func blocks(name string) (first, last int64, err error) {
	var level int64
	rest, ok := strings.CutPrefix(name, "all_")
	if ok {
		_, err = fmt.Sscanf(rest, "%d_%d_%d", &first, &last, &level)
	}
	if !ok || err != nil || first > last {
		return 0, 0, fmt.Errorf("%q: %w", name, errPartName)
	}
	return first, last, nil
}

// spans are ranges of block numbers, inclusive, in order and not adjacent.
type spans []struct{ first, last int64 }

// holds reports whether every number from first to last is in one.
func (s spans) holds(first, last int64) bool {
	for _, r := range s {
		if r.first <= first && last <= r.last {
			return true
		}
	}
	return false
}

// add puts the numbers from first to last in. Numbers between two parts belong to
// inserts that are not done yet or came to nothing, so ranges are joined only where
// they touch.
func (s *spans) add(first, last int64) {
	out := make(spans, 0, len(*s)+1)
	at := 0
	for _, r := range *s {
		switch {
		case r.last < first-1:
			out = append(out, r)
			at = len(out)
		case r.first > last+1:
			out = append(out, r)
		default:
			first, last = min(first, r.first), max(last, r.last)
		}
	}
	out = append(out, struct{ first, last int64 }{})
	copy(out[at+1:], out[at:])
	out[at] = struct{ first, last int64 }{first, last}
	*s = out
}

// bloom is a Bloom filter in blocks of a cache line (Putze, Sanders and Singler,
// "Cache-, Hash- and Space-Efficient Bloom Filters", 2007): all bits of a key are in
// one block.
type bloom struct {
	words []uint64
	added uint64
}

const (
	blockWords = 8
	// bytesARow and the largest size decide how many ids are taken for stored that are
	// not: 0.1 % at 16 bits each, 1 % at 10, 2.4 % at 8, 12 % at 5, 74 % at 2 (measured
	// with random ids). 10⁸ ids have 8 bits in the largest filter.
	bytesARow     = 2
	smallestBloom = 1 << 20
	largestBloom  = 96 << 20
	bitsAKey      = 6
)

func newBloom(rows uint64) bloom {
	size := min(max(rows*bytesARow, smallestBloom), largestBloom)
	return bloom{words: make([]uint64, size/8/blockWords*blockWords)}
}

// full reports whether a filter made anew for that many rows would be a better one:
// a larger, or one without most of what the table has dropped since.
func (b *bloom) full(rows uint64) bool {
	size := uint64(len(b.words)) * 8
	return b.added > size && (size < largestBloom/2 || b.added > rows+rows/2)
}

// tooSmall reports whether the largest filter would let most ids pass.
func (b *bloom) tooSmall(rows uint64) bool { return rows > 4*largestBloom }

// place returns the key's block, and its bits in it, 9 bits each.
func (b *bloom) place(key uint64) (block []uint64, marks uint64) {
	// The finalizer of MurmurHash3: some bits of an id are the same in all of them.
	key ^= key >> 33
	key *= 0xff51afd7ed558ccd
	key ^= key >> 33
	key *= 0xc4ceb9fe1a85ec53
	key ^= key >> 33
	at, _ := bits.Mul64(key, uint64(len(b.words)/blockWords))
	return b.words[at*blockWords:][:blockWords], key * 0x9e3779b97f4a7c15
}

func (b *bloom) add(key uint64) {
	block, marks := b.place(key)
	for range bitsAKey {
		block[marks>>61] |= 1 << (marks >> 55 & 63)
		marks <<= 9
	}
	b.added++
}

func (b *bloom) has(key uint64) bool {
	block, marks := b.place(key)
	for range bitsAKey {
		if block[marks>>61]&(1<<(marks>>55&63)) == 0 {
			return false
		}
		marks <<= 9
	}
	return true
}
