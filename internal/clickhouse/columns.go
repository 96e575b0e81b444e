package clickhouse

import (
	"encoding/binary"
	"math"
	"math/bits"
	"strings"

	"github.com/ClickHouse/ch-go/proto"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// inputColumn is one column of a block that is sent on a wire.
type inputColumn struct {
	name string
	columnData
}

// columnData is a column as the native format has it: laid out while rows are added,
// so that sending it is writing its bytes.
type columnData interface {
	typ() string
	rows() int
	encode(piece func([]byte))
	reset()
}

// keptColumn is what a column keeps of its memory from one block to the next, in
// bytes: enough for strings of 64 bytes in each row of the largest block. Rarer ones
// need not be paid for until the process ends.
const keptColumn = 32 << 20

func emptied(p []byte) []byte {
	if cap(p) > keptColumn {
		return nil
	}
	return p[:0]
}

// fixed is a column of values of one size.
type fixed struct {
	of   string
	size int
	data []byte
}

func (c *fixed) typ() string               { return c.of }
func (c *fixed) rows() int                 { return len(c.data) / c.size }
func (c *fixed) encode(piece func([]byte)) { piece(c.data) }
func (c *fixed) reset()                    { c.data = emptied(c.data) }

func (c *fixed) u8(v uint8)   { c.data = append(c.data, v) }
func (c *fixed) u32(v uint32) { c.data = binary.LittleEndian.AppendUint32(c.data, v) }
func (c *fixed) u64(v uint64) { c.data = binary.LittleEndian.AppendUint64(c.data, v) }

func (c *fixed) bool(v bool) {
	if v {
		c.u8(1)
	} else {
		c.u8(0)
	}
}

// id adds a UUID: two 64-bit numbers, each with its lowest byte first.
func (c *fixed) id(id *batch.ID) {
	c.u64(binary.BigEndian.Uint64(id[:8]))
	c.u64(binary.BigEndian.Uint64(id[8:]))
}

// text is a column of strings.
type text struct {
	data []byte
	n    int
}

func (c *text) typ() string               { return "String" }
func (c *text) rows() int                 { return c.n }
func (c *text) encode(piece func([]byte)) { piece(c.data) }
func (c *text) reset()                    { c.data, c.n = emptied(c.data), 0 }

func (c *text) add(s string) {
	c.data = appendText(c.data, s)
	c.n++
}

func appendText(p []byte, s string) []byte {
	if n := len(s); n < 0x80 {
		p = append(p, byte(n))
	} else {
		p = binary.AppendUvarint(p, uint64(n))
	}
	return append(p, s...)
}

// words is a LowCardinality(String) column: a dictionary, and for each row the number
// of its word in it, in as few bytes as the last number needs.
type words struct {
	known map[string]uint32
	list  []string // the words, by number
	dict  []byte   // the words, as in a column of strings
	width int      // bytes of a number: 1, 2 or 4
	keys  []byte
	n     int
	// The word added last: runs of one word, which columns that are the same for a
	// whole batch consist of, need no look-up.
	last    string
	lastKey uint32
}

// What the format says before a dictionary (ClickHouse's SerializationLowCardinality):
// that it comes with the block, and is all there is; then a number for how wide the
// keys are.
const (
	wordsVersion = 1
	wordsFlags   = 1<<9 | 1<<10
)

func newWords() *words {
	w := &words{known: map[string]uint32{}}
	w.reset()
	return w
}

func (c *words) typ() string { return "LowCardinality(String)" }
func (c *words) rows() int   { return c.n }

func (c *words) reset() {
	if len(c.known) > 1<<14 {
		c.known, c.list = map[string]uint32{}, nil
	}
	clear(c.known)
	clear(c.list)
	c.list = append(c.list[:0], "")
	c.known[""] = 0 // the dictionary's first entry is the type's default
	c.dict = append(emptied(c.dict), 0)
	c.keys, c.width, c.n = emptied(c.keys), 1, 0
	c.last, c.lastKey = "", 0
}

func (c *words) key(s string) uint32 {
	if s == c.last {
		return c.lastKey
	}
	k, ok := c.known[s]
	if !ok {
		s = strings.Clone(s) // it may be part of a record's memory
		k = uint32(len(c.known))
		c.known[s] = k
		c.list = append(c.list, s)
		c.dict = appendText(c.dict, s)
		if k == 1<<8 || k == 1<<16 {
			c.widen()
		}
	}
	c.last, c.lastKey = c.list[k], k
	return k
}

// widen doubles the width of the keys there are.
func (c *words) widen() {
	wide := make([]byte, 0, 2*len(c.keys)+4096)
	for i := 0; i < len(c.keys); i += c.width {
		if c.width == 1 {
			wide = append(wide, c.keys[i], 0)
		} else {
			wide = append(wide, c.keys[i], c.keys[i+1], 0, 0)
		}
	}
	c.keys, c.width = wide, 2*c.width
}

func (c *words) add(s string) {
	k := c.key(s)
	c.n++
	switch c.width {
	case 1:
		c.keys = append(c.keys, byte(k))
	case 2:
		c.keys = binary.LittleEndian.AppendUint16(c.keys, uint16(k))
	default:
		c.keys = binary.LittleEndian.AppendUint32(c.keys, k)
	}
}

func (c *words) encode(piece func([]byte)) {
	piece(binary.LittleEndian.AppendUint64(nil, wordsVersion))
	c.encodeBody(piece)
}

func (c *words) encodeBody(piece func([]byte)) {
	if c.n == 0 {
		return
	}
	head := binary.LittleEndian.AppendUint64(nil, wordsFlags|uint64(bits.TrailingZeros(uint(c.width))))
	piece(binary.LittleEndian.AppendUint64(head, uint64(len(c.known))))
	piece(c.dict)
	piece(binary.LittleEndian.AppendUint64(nil, uint64(c.n)))
	piece(c.keys)
}

// pairs is the Map(LowCardinality(String), String) column of the attributes.
type pairs struct {
	ends   fixed // after each row, how many pairs there are
	keys   *words
	values text
}

func (c *pairs) typ() string { return "Map(LowCardinality(String), String)" }
func (c *pairs) rows() int   { return c.ends.rows() }
func (c *pairs) reset()      { c.ends.reset(); c.keys.reset(); c.values.reset() }

func (c *pairs) add(list []schema.Attribute) {
	for i := range list {
		c.keys.add(list[i].Key)
		c.values.add(list[i].Value)
	}
	c.ends.u64(uint64(c.keys.n))
}

func (c *pairs) encode(piece func([]byte)) {
	piece(binary.LittleEndian.AppendUint64(nil, wordsVersion))
	c.ends.encode(piece)
	c.keys.encodeBody(piece)
	c.values.encode(piece)
}

// maybe is a Nullable(Float64) column.
type maybe struct {
	nulls  []byte
	values fixed
}

func (c *maybe) typ() string               { return "Nullable(Float64)" }
func (c *maybe) rows() int                 { return len(c.nulls) }
func (c *maybe) encode(piece func([]byte)) { piece(c.nulls); c.values.encode(piece) }
func (c *maybe) reset()                    { c.nulls = emptied(c.nulls); c.values.reset() }

func (c *maybe) add(v float64, has bool) {
	if !has {
		c.nulls, v = append(c.nulls, 1), 0
	} else {
		c.nulls = append(c.nulls, 0)
	}
	c.values.u64(math.Float64bits(v))
}

// eventTable is the columns of exposures or of events.
type eventTable struct {
	columns []inputColumn // in the order of columns(table), which is the insert's

	project, experiment, variant, rule, reason, name *words
	unitType, source, sdk, log, topic                *words
	value                                            *maybe
	unitID                                           *text
	time, received, adjusted, index                  *fixed
	eventID, batchID, partition, offset              *fixed
	attributes                                       *pairs
}

// The types that exposures and events have in the migrations. A time is in UTC there,
// which is a matter of how it is shown.
func newEventTable(t schema.Table) *eventTable {
	const micros = "DateTime64(6, 'UTC')"
	e := &eventTable{
		project: newWords(), unitType: newWords(), source: newWords(), sdk: newWords(), log: newWords(), topic: newWords(),
		unitID: &text{}, attributes: &pairs{ends: fixed{size: 8}, keys: newWords()},
		time: &fixed{of: micros, size: 8}, received: &fixed{of: micros, size: 8},
		adjusted: &fixed{of: "Bool", size: 1}, index: &fixed{of: "UInt32", size: 4},
		eventID: &fixed{of: "UUID", size: 16}, batchID: &fixed{of: "UUID", size: 16},
		partition: &fixed{of: "UInt32", size: 4}, offset: &fixed{of: "UInt64", size: 8},
	}
	data := map[string]columnData{
		"project": e.project, "unit_type": e.unitType, "unit_id": e.unitID, "time": e.time, "received_at": e.received,
		"attributes": e.attributes, "time_adjusted": e.adjusted, "event_id": e.eventID, "batch_id": e.batchID,
		"batch_index": e.index, "source": e.source, "sdk": e.sdk, "log": e.log, "topic": e.topic,
		"partition": e.partition, "offset": e.offset,
	}
	if t == schema.Exposures {
		e.experiment, e.variant, e.rule, e.reason = newWords(), newWords(), newWords(), newWords()
		data["experiment"], data["variant"], data["rule"], data["reason"] = e.experiment, e.variant, e.rule, e.reason
	} else {
		e.name, e.value = newWords(), &maybe{values: fixed{size: 8}}
		data["name"], data["value"] = e.name, e.value
	}
	for _, name := range columns(t) {
		e.columns = append(e.columns, inputColumn{name, data[name]})
	}
	return e
}

func (t *eventTable) reset() {
	for i := range t.columns {
		t.columns[i].reset()
	}
}

func (t *eventTable) rows() int { return t.offset.rows() }

func (t *eventTable) add(at *schema.Position, b *schema.Batch, e *schema.Event, offset int64) {
	if t.name == nil {
		t.experiment.add(e.Experiment)
		t.variant.add(e.Variant)
		t.rule.add(e.Rule)
		t.reason.add(e.Reason)
	} else {
		t.name.add(e.Name)
		t.value.add(e.Value, e.HasValue)
	}
	t.project.add(b.Project)
	t.unitType.add(e.UnitType)
	t.unitID.add(e.UnitID)
	t.time.u64(uint64(e.Time))
	t.received.u64(uint64(b.ReceivedAt))
	t.attributes.add(e.Attributes)
	t.adjusted.bool(e.TimeAdjusted)
	t.eventID.id(&e.ID)
	t.batchID.id(&b.ID)
	t.index.u32(e.Index)
	t.source.add(b.Source)
	t.sdk.add(b.SDK)
	t.log.add(at.Log)
	t.topic.add(at.Topic)
	t.partition.u32(uint32(at.Partition))
	t.offset.u64(uint64(offset))
}

// expects reports whether a server's columns have the types that these are laid out
// for. A table that somebody has changed is written by way of clickhouse-go, which
// converts.
func (t *eventTable) expects(types proto.ColInfoInput) bool {
	if len(types) != len(t.columns) {
		return false
	}
	for i := range types {
		if types[i].Name != t.columns[i].name || string(types[i].Type) != t.columns[i].typ() {
			return false
		}
	}
	return true
}

// Columns is the exposures and events of one block as they are sent: laid out while
// their records are decoded, without a copy in between. It is used again and again,
// and keeps its memory. Not safe for concurrent use.
type Columns struct {
	at     schema.Position
	tables [2]*eventTable // exposures, events
}

// NewColumns returns empty columns for a partition's rows, or nil where one of the
// tables is not as the migrations made it: then rows are sent.
func (c *Client) NewColumns() schema.Columns {
	if c.changed[0].Load() || c.changed[1].Load() {
		return nil
	}
	return &Columns{tables: [2]*eventTable{newEventTable(schema.Exposures), newEventTable(schema.Events)}}
}

// Reset empties the columns for rows of a partition.
func (c *Columns) Reset(at schema.Position) {
	c.at = at
	for _, t := range c.tables {
		t.reset()
	}
}

// Append adds the events of a record. It keeps nothing of the batch's memory.
func (c *Columns) Append(b *schema.Batch, offset int64) {
	for i := range b.Events {
		e := &b.Events[i]
		t := c.tables[0]
		if e.Kind == schema.KindEvent {
			t = c.tables[1]
		}
		t.add(&c.at, b, e, offset)
	}
}

// Rows is how many rows a table gets.
func (c *Columns) Rows(t schema.Table) int {
	if et := c.table(t); et != nil {
		return et.rows()
	}
	return 0
}

func (c *Columns) table(t schema.Table) *eventTable {
	switch t {
	case schema.Exposures:
		return c.tables[0]
	case schema.Events:
		return c.tables[1]
	}
	return nil
}
