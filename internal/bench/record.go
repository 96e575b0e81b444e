package bench

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// project is whose events the benchmark sends.
const project = "bench"

// recordTemplate is the Kafka record that a collector makes of one native request,
// and where in it is what differs each time.
type recordTemplate struct {
	record batch.Record
	ids    []int // of the batch's id and dedup id
	units  []int
	events []int // of the last six bytes of the events' ids
	text   []int // of the same as digits: event_id as the client sent it
}

// recordTemplates are n records with different events, of requests without an
// encoding.
func (g *generator) recordTemplates(n int, seed uint64) ([]*recordTemplate, error) {
	requests, err := g.templates(n, seed)
	if err != nil {
		return nil, err
	}
	collector := batch.Random()
	out := make([]*recordTemplate, n)
	for i, t := range requests {
		_, body, _ := bytes.Cut(t.wire, []byte("\r\n\r\n"))
		// Marks again, as text and, for what becomes 16 bytes, as digits that no other
		// id ends with.
		mark := fmt.Sprintf("%012x", 0xf0f1f2f3f4f5)
		head := len(t.wire) - len(body)
		for _, at := range t.units {
			copy(body[at-head:], unitMark)
		}
		for _, at := range t.events {
			copy(body[at-head:], mark)
		}
		var b schema.Batch
		if err := schema.DecodeJSON(body, schema.KindExposure, 10_000, &b); err != nil {
			return nil, err
		}
		if len(b.Events) != g.Events {
			return nil, fmt.Errorf("%d of %d events of a request are accepted", len(b.Events), g.Events)
		}
		b.ComputeDigest()
		b.Project, b.Source, b.ID = project, "native", batch.Random()
		now := time.Now()
		b.ReceivedAt = now.UnixMicro()
		b.Resolve(now, schema.Limits{Past: 720 * time.Hour, Future: time.Hour})
		value := schema.AppendRecord(nil, &b, schema.Range{First: 0, Last: b.Count - 1})
		r := &recordTemplate{record: batch.Record{
			Project: project, Collector: collector, Epoch: 1, Path: batch.Direct, Digest: b.Digest, Value: value, Events: g.Events, ReceivedAt: now,
		}}
		r.ids = places(value, string(b.ID[:]))
		r.units = places(value, unitMark)
		r.events = places(value, string([]byte{0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5}))
		r.text = places(value, mark)
		if len(r.ids) != 2 || len(r.units) != g.Events || len(r.events) != g.Events || len(r.text) != g.Events {
			return nil, fmt.Errorf("a record has %d batch ids, %d units, %d and %d event ids", len(r.ids), len(r.units), len(r.events), len(r.text))
		}
		out[i] = r
	}
	return out, nil
}

// stamped is record number n, with a value of its own.
func (t *recordTemplate) stamped(g *generator, n uint64, value []byte) batch.Record {
	r := t.record
	_, _ = rand.Read(r.BatchID[:]) // never fails
	r.BatchID[6] = r.BatchID[6]&0x0f | 0x80
	r.BatchID[8] = r.BatchID[8]&0x3f | 0x80
	r.DedupID, r.Seq = r.BatchID, n
	r.Value = append(value[:0], t.record.Value...)
	for _, at := range t.ids {
		copy(r.Value[at:], r.BatchID[:])
	}
	for i, at := range t.units {
		copy(r.Value[at:], g.unitAt(n, i))
	}
	var id [8]byte
	binary.BigEndian.PutUint64(id[:], n)
	digits := fmt.Appendf(nil, "%012x", n&(1<<48-1))
	for i, at := range t.events {
		copy(r.Value[at:], id[2:])
		copy(r.Value[t.text[i]:], digits)
	}
	return r
}
