package kafka

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/pkg/batch"
)

// A record's headers, all text. proto/sluice/v1/batch.proto documents them for
// other consumers.
const (
	headerProject     = "project"
	headerCollector   = "collector"   // UUID
	headerEpoch       = "epoch"       // decimal
	headerSeq         = "seq"         // decimal
	headerDedupID     = "dedup-id"    // UUID
	headerDigest      = "digest"      // 32 hex digits
	headerPath        = "path"        // direct, spool
	headerReceivedAt  = "received-at" // microseconds since the Unix epoch, decimal
	headerTraceparent = "traceparent" // only where the request had one
	headerContentType = "content-type"

	contentType = "application/x-protobuf"
	headerCount = 10
)

// encoder lays out a request's records with a handful of allocations for all of
// them: one for the headers, one for their text.
type encoder struct {
	records []protocol.Record
	headers []protocol.Header
	text    []byte
}

// textBytes is enough for the headers' values of one record without project and
// traceparent: three ids, a digest, four numbers and two words.
const textBytes = 3*36 + 32 + 4*20 + 32

func newEncoder(records []batch.Record) *encoder {
	size := 0
	for i := range records {
		size += textBytes + len(records[i].Project) + len(records[i].Traceparent)
	}
	return &encoder{
		records: make([]protocol.Record, 0, len(records)),
		headers: make([]protocol.Header, 0, headerCount*len(records)),
		text:    make([]byte, 0, size),
	}
}

// value keeps what was appended to the text from a mark on. Should the text have
// been moved to a larger array, what was kept before stays where it was.
func (e *encoder) value(from int) []byte { return e.text[from:len(e.text):len(e.text)] }

func (e *encoder) str(key, s string) {
	from := len(e.text)
	e.text = append(e.text, s...)
	e.headers = append(e.headers, protocol.Header{Key: key, Value: e.value(from)})
}

func (e *encoder) id(key string, id batch.ID) { e.str(key, id.String()) }

func (e *encoder) num(key string, n uint64) {
	from := len(e.text)
	e.text = strconv.AppendUint(e.text, n, 10)
	e.headers = append(e.headers, protocol.Header{Key: key, Value: e.value(from)})
}

func (e *encoder) add(r *batch.Record) {
	from := len(e.text)
	e.text = append(e.text, r.BatchID.String()...)
	key := e.value(from)
	first := len(e.headers)
	e.str(headerProject, r.Project)
	e.id(headerCollector, r.Collector)
	e.num(headerEpoch, r.Epoch)
	e.num(headerSeq, r.Seq)
	e.id(headerDedupID, r.DedupID)
	e.str(headerDigest, r.Digest.String())
	e.str(headerPath, string(r.Path))
	if !r.ReceivedAt.IsZero() {
		e.str(headerReceivedAt, strconv.FormatInt(r.ReceivedAt.UnixMicro(), 10))
	}
	if r.Traceparent != "" {
		e.str(headerTraceparent, r.Traceparent)
	}
	e.str(headerContentType, contentType)
	value := r.Value
	if value == nil {
		value = []byte{} // a null value would be a tombstone
	}
	e.records = append(e.records, protocol.Record{
		Key:     protocol.NewBytes(key),
		Value:   protocol.NewBytes(value),
		Headers: e.headers[first:len(e.headers):len(e.headers)],
	})
}

func encode(records []batch.Record) protocol.RecordReader {
	e := newEncoder(records)
	for i := range records {
		e.add(&records[i])
	}
	return protocol.NewRecordReader(e.records...)
}

// decode reads a record's key and headers into d. What cannot be read is named
// in d.Bad, and everything else is set all the same; the value is kept as it is,
// a reference to the buffer it came in. Headers nobody knows are passed over; of
// a header that comes twice the last one counts, as it does for Kafka's own
// consumers.
func decode(d *batch.Delivery, key, value []byte, headers []kmsg.Header) {
	d.Value = value
	var bad []error
	fail := func(what string, err error) { bad = append(bad, fmt.Errorf("%s: %w", what, err)) }
	var err error
	if d.BatchID, err = batch.ParseID(string(key)); err != nil {
		fail("key", err)
	}
	var found [headerCount]bool
	for i := range headers {
		h := &headers[i]
		err = nil
		n := -1
		switch h.Key {
		case headerProject:
			n, d.Project = 0, string(h.Value)
		case headerCollector:
			n = 1
			d.Collector, err = batch.ParseID(string(h.Value))
		case headerEpoch:
			n = 2
			d.Epoch, err = number(h.Value, math.MaxUint64)
		case headerSeq:
			n = 3
			d.Seq, err = number(h.Value, math.MaxUint64)
		case headerDedupID:
			n = 4
			d.DedupID, err = batch.ParseID(string(h.Value))
		case headerDigest:
			n = 5
			d.Digest, err = batch.ParseDigest(string(h.Value))
		case headerPath:
			n = 6
			switch p := batch.Path(h.Value); p {
			case batch.Direct, batch.Spool:
				d.Path = p
			default:
				err = fmt.Errorf("%q is neither %q nor %q", cut(h.Value), batch.Direct, batch.Spool)
			}
		case headerReceivedAt:
			var us uint64
			if us, err = number(h.Value, maxReceivedAt); err == nil {
				d.ReceivedAt = time.UnixMicro(int64(us))
			}
		case headerTraceparent:
			d.Traceparent = string(h.Value)
		}
		if n >= 0 {
			found[n] = true
		}
		if err != nil {
			fail("header "+h.Key, err)
		}
	}
	for n, name := range required {
		if !found[n] {
			fail("header "+name, errMissing)
		}
	}
	if len(bad) > 0 {
		d.Bad = fmt.Errorf("record %d: %w", d.Offset, errors.Join(bad...))
	}
}

// maxReceivedAt is the end of the year 9999: beyond it ClickHouse has no times.
const maxReceivedAt = 253_402_300_799_999_999

var (
	errMissing = errors.New("missing")
	errNumber  = errors.New("not a decimal number in range")

	// required in this order: the numbers in decode.
	required = [...]string{headerProject, headerCollector, headerEpoch, headerSeq, headerDedupID, headerDigest, headerPath}
)

func number(b []byte, most uint64) (uint64, error) {
	n, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil || n > most {
		return 0, fmt.Errorf("%q: %w", cut(b), errNumber)
	}
	return n, nil
}

// cut keeps an error message short whatever somebody put into a header.
func cut(b []byte) []byte { return b[:min(len(b), 64)] }
