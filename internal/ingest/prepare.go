package ingest

import (
	"bytes"
	"errors"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// bench is what it takes to turn one body into records: decoders and a
// batch. The work on it waits for nothing but a processor, so there is one a
// processor; more would only hold more memory.
type bench struct {
	inflater
	batch schema.Batch
	value []byte // where a record is laid out before it gets memory of just its size
}

// keptValue is the largest such memory that is used again, in bytes.
const keptValue = 256 << 10

func (c *Collector) newBench() *bench {
	return &bench{inflater: inflater{buffers: c.buffers, limit: c.limits.MaxBody}}
}

func (c *Collector) setBenches() {
	n := runtime.GOMAXPROCS(0)
	c.benches = make(chan *bench, n)
	for range n {
		c.benches <- c.newBench()
	}
}

// prepare turns a body into what is published, or into what it is a copy of. It
// frees the body as soon as nothing refers to it.
func (c *Collector) prepare(eps []*protocol.Endpoint, req *protocol.Request, enc coding, wire *buffer, in *intake) (p *protocol.Problem) {
	b := <-c.benches
	sound := false
	defer func() {
		if !sound { // a panic: who knows in what state it left the bench
			b = c.newBench()
		}
		c.benches <- b
	}()

	// Which of several protocols it is for shows only then: none has bodies that start
	// like gzip and are not.
	if enc == identity && looksGzipped(wire.b) && slices.ContainsFunc(eps, func(ep *protocol.Endpoint) bool { return ep.MagicGzip }) {
		enc = gzipped
	}
	body := wire
	if enc != identity {
		plain, err := b.inflate(enc, wire.b, in.held)
		if err != nil {
			sound = true
			return damaged(err)
		}
		wire.free()
		body = plain
		defer plain.free()
	}
	req.Body = body.b
	if p = c.identified(eps, req, in); p == nil {
		p = c.encode(in.ep, req, b, in)
	}
	// The batch's strings alias the body: it has to go first. Nothing of either is
	// held while the records are published.
	b.batch.Reset()
	req.Body = nil
	wire.free()
	sound = true
	return p
}

func damaged(err error) *protocol.Problem {
	switch {
	case errors.Is(err, errTooLarge):
		return protocol.NewProblem(protocol.CodeBodyTooLarge, "the body is too large once decompressed")
	case errors.Is(err, errOverloaded):
		return overloaded()
	}
	return protocol.NewProblem(protocol.CodeBadEncoding, "the body is not what Content-Encoding says").Because(err)
}

// encode decodes the body, finds out which batch it is, and unless that one is
// known already, stamps it and encodes it into records.
func (c *Collector) encode(ep *protocol.Endpoint, req *protocol.Request, on *bench, in *intake) *protocol.Problem {
	b := &on.batch
	decoded := decodedBound(req.MediaType, req.Body, req.MaxEvents)
	if err := in.held.take(decoded); err != nil {
		return unread(err)
	}
	defer in.held.give(decoded)
	if err := ep.Decode(req, b); err != nil {
		return undecoded(err)
	}
	if int64(b.Count) > int64(req.MaxEvents) {
		return protocol.NewProblem(protocol.CodeTooManyEvents, "the batch has too many events")
	}
	in.dropped = int(b.Dropped)
	in.result.BodyBytes, in.result.Reply = len(req.Body), req.Reply
	if err := in.held.take(int64(cap(req.Reply))); err != nil {
		return unread(err)
	}
	if b.Count == 0 {
		return nil
	}
	if wait := charge(in.limiter, int(b.Count)); wait > 0 {
		return overRate(wait)
	}
	b.Project, b.Source = in.grant.Project, ep.Source
	b.RejectOversized(c.limits.RecordMax)
	b.ComputeDigest()
	in.digest = b.Digest
	if p := c.identify(ep, req, b, in); p != nil {
		return p
	}
	in.result.Accepted = len(b.Events)
	if in.attempt != nil && !in.first {
		return nil
	}

	// The most that is yet to come: what is published, and the answer. Charged
	// before the ledger is asked, since a number that is given and not published is
	// one more the ledger has to list.
	listed := answerSize(b.Rejected)
	in.size = int64(len(req.Body)) + recordOverhead*int64(b.Count)
	if err := in.held.take(in.size + listed); err != nil {
		return c.fail(in, unread(err))
	}
	in.describe(b, ep.AcceptRejected)

	ranges := b.Split(c.limits.RecordMax)
	stamp := c.ledger.Accept(len(ranges))
	if stamp.FirstSeq == 0 { // since it was asked, at admission, it has changed its mind
		return c.fail(in, notDurable(c.ledger.Ready()))
	}
	// A crash from here on leaves the numbers without a record; they are above what
	// the ledger's last record calls settled, so they are unproven, not lost. If only
	// this request comes to nothing, take withdraws them.
	in.stamp, in.given = stamp, len(ranges)
	b.Resolve(stamp.ReceivedAt, c.limits.Time)
	if in.records = in.one[:]; len(ranges) != 1 {
		in.records = make([]batch.Record, len(ranges))
	}
	var size int64
	for i, r := range ranges {
		on.value = schema.AppendRecord(on.value[:0], b, r)
		in.records[i] = batch.Record{
			BatchID: b.ID, DedupID: b.DedupFor(r), Digest: b.Digest, Project: b.Project,
			Collector: stamp.Collector, Epoch: stamp.Epoch, Seq: stamp.FirstSeq + uint64(i),
			Path: batch.Direct, Traceparent: in.trace, Value: bytes.Clone(on.value), ReceivedAt: stamp.ReceivedAt,
			Events: eventsIn(b, r),
		}
		size += int64(in.records[i].Size())
	}
	if cap(on.value) > keptValue {
		on.value = nil
	}
	in.held.settle(size - in.size)
	in.size = size
	return nil
}

// undecoded is what to refuse a body for that is broken as a whole.
func undecoded(err error) *protocol.Problem {
	var p *protocol.Problem
	var body *schema.BodyError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &body):
		return protocol.NewProblem(body.Code, strings.Clone(body.Detail))
	}
	return protocol.NewProblem(protocol.CodeMalformed, "the body cannot be read").Because(err)
}

// identify gives the batch its identity and begins, or joins, an attempt at it.
// A batch that no copy can be told from gets a random one, and no attempt.
func (c *Collector) identify(ep *protocol.Endpoint, req *protocol.Request, b *schema.Batch, in *intake) *protocol.Problem {
	key := ""
	if ep.IdempotencyKey != nil {
		var p *protocol.Problem
		if key, p = ep.IdempotencyKey(req, b); p != nil {
			return p
		}
	}
	switch {
	case key != "":
		b.ID = batch.ForKey(b.Project, key)
	case b.Repeatable():
		b.ID = batch.ForContent(b.Project, b.Digest)
	default:
		b.ID = batch.Random()
		in.result.BatchID = b.ID
		return nil
	}
	in.result.BatchID = b.ID
	in.attempt, in.done, in.first = c.recent.begin(b.ID, b.Digest)
	return nil
}

// describe keeps what the answer says of the batch, in memory of its own.
func (in *intake) describe(b *schema.Batch, acceptRejected bool) {
	if len(b.Rejected) == 0 && len(b.Events) > 0 {
		return
	}
	rejected := make([]schema.Rejected, len(b.Rejected))
	for i, r := range b.Rejected {
		rejected[i] = schema.Rejected{Index: r.Index, Code: schema.Code(strings.Clone(string(r.Code))),
			Field: strings.Clone(r.Field), Message: strings.Clone(r.Message), Size: r.Size}
	}
	if len(b.Events) > 0 || acceptRejected {
		in.result.Rejected = rejected
		return
	}
	in.refusal = protocol.NewProblem(protocol.CodeAllRejected, "every event was rejected")
	in.refusal.BatchID, in.refusal.Rejected = b.ID, rejected
}

// eventsIn counts the events, rejected ones included, in one part of the batch: a
// part is consecutive indices of the batch as sent.
func eventsIn(b *schema.Batch, r schema.Range) int {
	return int(r.Last-r.First) + 1
}

// recordOverhead is what an event may take up in a record beyond its bytes in
// the body: its index, its id, the reason it was rejected for.
const recordOverhead = 64

// answerSize estimates what a list of rejected events takes up while it is being
// answered: as a list, and as JSON.
func answerSize(rs []schema.Rejected) int64 {
	return 2 * listCost(rs)
}

// decodedBound estimates, from above, what a body takes up once it is decoded:
// an attribute of a few bytes becomes two strings of 16 bytes each, and text with
// escapes is copied. It counts the characters without which there is no event
// and no attribute, which is far quicker than decoding.
func decodedBound(mediaType string, body []byte, maxEvents int) int64 {
	const event, attribute = int64(unsafe.Sizeof(schema.Event{})), int64(unsafe.Sizeof(schema.Attribute{}))
	count := func(c byte) int64 { return int64(bytes.Count(body, []byte{c})) }
	if strings.Contains(mediaType, "protobuf") {
		// Every message of an attribute begins with one of these: in sluice.v1 field
		// 10, with an OTLP log record field 6; or has a key, which is field 1.
		attributes := max(count(0x0a), count(0x52), count(0x32))
		return event*min(count(0x0a), int64(maxEvents)) + attribute*attributes
	}
	if text := bytes.TrimLeft(body, " \t\r\n"); len(text) > 0 && text[0] != '{' && text[0] != '[' {
		// Not JSON yet, but in base64 perhaps: copied twice, and six bytes for every
		// four of an attribute like "a":1.
		return 8 * int64(len(body))
	}
	var copied int64
	if bytes.IndexByte(body, '\\') >= 0 {
		copied = int64(len(body))
	}
	return event*min(count('{'), int64(maxEvents)) + attribute*count(':') + copied
}
