package bench

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/uuid"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// Insert writes rows of native requests into a database's exposures, in blocks, with
// ch-go's columns: from decoded batches, whose repeating texts are numbered already,
// into columns, compressed by lz4, over HTTP. The rows have ids that no others have.
// The first block, in which memory grows, is written besides and not measured.
func Insert(ctx context.Context, store ClickHouse, blocks, rows int, w Workload) (Ceiling, error) {
	w.Protocol, w.Encoding = Native, "none"
	g, err := newGenerator(w)
	if err != nil {
		return Ceiling{}, err
	}
	templates, err := g.recordTemplates(max(2, min(64, 1600/g.Events)), 2)
	if err != nil {
		return Ceiling{}, err
	}
	table := newExposures()
	batches := make([]numbered, len(templates))
	for i, t := range templates {
		if err := schema.DecodeRecord(t.record.Value, &batches[i].Batch); err != nil {
			return Ceiling{}, err
		}
		table.number(&batches[i])
	}
	var n uint64
	block := func() error {
		for table.reset(); table.offset.Rows() < rows; {
			n++
			table.append(g, &batches[n%uint64(len(batches))], n)
		}
		return table.insert(ctx, store)
	}
	if err := block(); err != nil {
		return Ceiling{}, err
	}
	first := n
	return timed(func() (int64, error) {
		for range blocks {
			if err := block(); err != nil {
				return 0, err
			}
		}
		return int64(n-first) * int64(g.Events), nil
	})
}

// words is a LowCardinality(String) column of texts that are known ahead.
type words struct {
	proto.ColLowCardinalityRaw
	texts   proto.ColStr
	numbers map[string]int
}

func newWords() *words {
	w := &words{numbers: map[string]int{}}
	w.Index, w.Key = &w.texts, proto.KeyUInt16
	return w
}

// number is that of a text, which it gets now if it is new.
func (w *words) number(text string) int {
	n, ok := w.numbers[text]
	if !ok {
		n = len(w.numbers)
		w.numbers[text] = n
		w.texts.Append(text)
	}
	return n
}

// attributes is the Map column.
type attributes struct {
	ends   proto.ColUInt64
	keys   *words
	values proto.ColStr
}

func (a *attributes) Type() proto.ColumnType {
	return proto.ColumnTypeMap.Sub(a.keys.Type(), a.values.Type())
}
func (a *attributes) Rows() int                   { return a.ends.Rows() }
func (a *attributes) EncodeState(b *proto.Buffer) { a.keys.EncodeState(b) }
func (a *attributes) EncodeColumn(b *proto.Buffer) {
	a.ends.EncodeColumn(b)
	a.keys.EncodeColumn(b)
	a.values.EncodeColumn(b)
}
func (a *attributes) WriteColumn(w *proto.Writer) { w.ChainBuffer(a.EncodeColumn) }

// numbered is a batch with the numbers of its events' texts.
type numbered struct {
	schema.Batch
	events [][5]int // experiment, variant, rule, reason, unit type
	keys   [][]int  // of the attributes
}

// exposures are the columns of the table.
type exposures struct {
	project, experiment, variant, rule, reason, unitType, source, sdk, log, topic *words
	unitID                                                                        proto.ColStr
	time, received                                                                proto.ColDateTime64Raw
	attributes                                                                    attributes
	adjusted                                                                      proto.ColBool
	eventID, batchID                                                              proto.ColUUID
	index, partition                                                              proto.ColUInt32
	offset                                                                        proto.ColUInt64

	input proto.Input
	query string
	buf   proto.Buffer
	body  bytes.Buffer
	out   *compress.Writer
}

func newExposures() *exposures {
	e := &exposures{out: compress.NewWriter(compress.LevelZero, compress.LZ4)}
	for _, w := range e.words() {
		*w = newWords()
	}
	e.attributes.keys = newWords()
	for _, t := range []*proto.ColDateTime64Raw{&e.time, &e.received} {
		t.WithPrecision(proto.PrecisionMicro).WithLocation(time.UTC)
	}
	e.input = proto.Input{
		{Name: "project", Data: e.project}, {Name: "experiment", Data: e.experiment}, {Name: "variant", Data: e.variant}, {Name: "rule", Data: e.rule},
		{Name: "reason", Data: e.reason}, {Name: "unit_type", Data: e.unitType}, {Name: "unit_id", Data: &e.unitID}, {Name: "time", Data: &e.time},
		{Name: "received_at", Data: &e.received}, {Name: "attributes", Data: &e.attributes}, {Name: "time_adjusted", Data: &e.adjusted},
		{Name: "event_id", Data: &e.eventID}, {Name: "batch_id", Data: &e.batchID}, {Name: "batch_index", Data: &e.index}, {Name: "source", Data: e.source},
		{Name: "sdk", Data: e.sdk}, {Name: "log", Data: e.log}, {Name: "topic", Data: e.topic}, {Name: "partition", Data: &e.partition}, {Name: "offset", Data: &e.offset},
	}
	names := make([]string, len(e.input))
	for i, c := range e.input {
		names[i] = "`" + c.Name + "`"
	}
	e.query = "exposures (" + strings.Join(names, ", ") + ") FORMAT Native"
	return e
}

func (e *exposures) words() []**words {
	return []**words{&e.project, &e.experiment, &e.variant, &e.rule, &e.reason, &e.unitType, &e.source, &e.sdk, &e.log, &e.topic}
}

func (e *exposures) number(b *numbered) {
	e.project.number(b.Project)
	e.source.number(b.Source)
	e.sdk.number(b.SDK)
	e.log.number("ceiling")
	e.topic.number("ceiling")
	for i := range b.Events {
		v := &b.Events[i]
		b.events = append(b.events, [5]int{e.experiment.number(v.Experiment), e.variant.number(v.Variant), e.rule.number(v.Rule), e.reason.number(v.Reason), e.unitType.number(v.UnitType)})
		keys := make([]int, len(v.Attributes))
		for j, a := range v.Attributes {
			keys[j] = e.attributes.keys.number(a.Key)
		}
		b.keys = append(b.keys, keys)
	}
}

// reset empties the columns and keeps the texts' numbers.
func (e *exposures) reset() {
	for _, w := range append(e.words(), &e.attributes.keys) {
		(*w).Keys16.Reset()
	}
	e.attributes.ends.Reset()
	e.attributes.values.Reset()
	for _, c := range e.input {
		switch c.Data.(type) {
		case *words, *attributes:
		case proto.Resettable:
			c.Data.(proto.Resettable).Reset()
		}
	}
}

func (e *exposures) append(g *generator, b *numbered, n uint64) {
	id := batch.Random()
	for i := range b.Events {
		v, numbers := &b.Events[i], &b.events[i]
		for j, w := range [...]*words{e.experiment, e.variant, e.rule, e.reason, e.unitType} {
			w.AppendKey(numbers[j])
		}
		for _, w := range [...]*words{e.project, e.source, e.sdk, e.log, e.topic} {
			w.AppendKey(0)
		}
		e.unitID.Buf = append(e.unitID.Buf, "user-"...)
		e.unitID.Buf = append(e.unitID.Buf, g.unitAt(n, i)...)
		e.unitID.Pos = append(e.unitID.Pos, proto.Position{Start: len(e.unitID.Buf) - unitDigits - len("user-"), End: len(e.unitID.Buf)})
		e.time.AppendRaw(proto.DateTime64(v.Time))
		e.received.AppendRaw(proto.DateTime64(b.ReceivedAt))
		for j, a := range v.Attributes {
			e.attributes.keys.AppendKey(b.keys[i][j])
			e.attributes.values.Append(a.Value)
		}
		e.attributes.ends.Append(uint64(e.attributes.values.Rows()))
		e.adjusted.Append(v.TimeAdjusted)
		e.eventID.Append(uuid.UUID(batch.EventID(id, v.Index)))
		e.batchID.Append(uuid.UUID(id))
		e.index.Append(v.Index)
		e.partition.Append(0)
		e.offset.Append(n)
	}
}

// frame is how much is compressed at once.
const frame = 1 << 20

func (e *exposures) insert(ctx context.Context, store ClickHouse) error {
	e.buf.Reset()
	b := proto.Block{Columns: len(e.input), Rows: e.offset.Rows()}
	if err := b.EncodeRawBlock(&e.buf, 0, e.input); err != nil {
		return err
	}
	e.body.Reset()
	for rest := e.buf.Buf; len(rest) > 0; {
		part := rest[:min(frame, len(rest))]
		rest = rest[len(part):]
		if err := e.out.Compress(part); err != nil {
			return err
		}
		e.body.Write(e.out.Data)
	}
	// A block that is not collapsed while it is inserted costs a fifth (measured).
	settings := url.Values{"decompress": {"1"}, "max_insert_block_size": {"2000000"}, "optimize_on_insert": {"0"}}
	_, err := store.post(ctx, fmt.Sprintf("INSERT INTO %s.%s", store.Database, e.query), settings, bytes.NewReader(e.body.Bytes()))
	return err
}
