package kafka

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

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
