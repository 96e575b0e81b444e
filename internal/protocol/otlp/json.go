package otlp

import (
	"errors"
	"math"
	"strconv"
	"strings"

	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// maxDepth is how deep a body may be nested. Each level of a value costs four of
// JSON, so the limit of other protocols would be reached by ordinary logs.
const maxDepth = jsonscan.MaxDepth

// Fields of a record of which each may come once.
const (
	seenTime = 1 << iota
	seenObserved
	seenName
	seenAttributes
)

// decodeJSON reads OTLP/JSON. Members are taken in snake_case too, which is how some
// encoders write them.
func decodeJSON(req *protocol.Request, b *schema.Batch) error {
	// There are fewer records than bytes.
	d := decoder{Decoder: wire.New(req.Body, len(req.Body), b)}
	d.Most = req.MaxEvents
	d.Reset(req.Body, maxDepth)
	if err := d.Document(d.envelope, d.record); err != nil {
		var be *schema.BodyError
		if !errors.As(err, &be) || be.Code != schema.BodyEmpty || !d.entered {
			return err
		}
		// A request without a record is a success, as OTLP has it.
	}
	if d.over {
		return d.TooMany()
	}
	d.finish(req)
	return nil
}

// envelope reads {"resourceLogs":[…]}.
func (d *decoder) envelope() error {
	found, other := false, false
	for d.More() {
		switch d.Key() {
		case "resourceLogs", "resource_logs":
			found = true
			if err := d.elements(d.resourceLogs); err != nil {
				return err
			}
		default:
			other = true
			d.Ignore()
		}
	}
	d.entered = found || !other // else it is something else's
	return nil
}

// elements walks over an array of objects, each of which read enters. Null is as
// good as an empty array.
func (d *decoder) elements(read func() error) error {
	switch d.Kind() {
	case jsonscan.Null:
		d.Null()
		return nil
	case jsonscan.Array:
	case jsonscan.None:
		return nil // a syntax error is found by the caller
	default:
		return wire.Malformed("what holds log records is not an array")
	}
	d.Array()
	for d.More() {
		switch d.Kind() {
		case jsonscan.Object:
			d.Reader.Object()
			if err := read(); err != nil {
				return err
			}
		case jsonscan.Null:
			d.Null()
		case jsonscan.None:
			return nil
		default:
			return wire.Malformed("what holds log records is not an object")
		}
	}
	return nil
}

// resourceLogs reads the records of one resource, which is looked for first: nothing
// says that it comes before them.
func (d *decoder) resourceLogs() error {
	d.service = ""
	known := false
	for d.More() {
		switch d.Key() {
		case "resource":
			d.resource()
			known = true
		case "scopeLogs", "scope_logs":
			if !known {
				d.findResource()
				known = true
			}
			if err := d.elements(d.scopeLogs); err != nil {
				return err
			}
		default:
			d.Ignore()
		}
	}
	return nil
}

func (d *decoder) findResource() {
	m := d.Mark()
	d.Ignore()
	for d.More() {
		if d.Key() == "resource" {
			d.resource()
			break
		}
		d.Ignore()
	}
	d.Rewind(m)
}

func (d *decoder) resource() {
	if d.Kind() != jsonscan.Object {
		d.Ignore()
		return
	}
	d.Reader.Object()
	for d.More() {
		if d.Key() == "attributes" {
			d.attributes(nil)
		} else {
			d.Ignore()
		}
	}
	d.ClearFault()
}

func (d *decoder) scopeLogs() error {
	for d.More() {
		switch d.Key() {
		case "scope":
			d.readScope()
		case "logRecords", "log_records":
			if err := d.Each(d.record); err != nil {
				return err
			}
		default:
			d.Ignore()
		}
	}
	return nil
}

func (d *decoder) readScope() {
	if d.scope != "" || d.Kind() != jsonscan.Object {
		d.Ignore()
		return
	}
	d.Reader.Object()
	for d.More() {
		switch d.Key() {
		case "name":
			d.scope = d.Loose()
		case "version":
			d.scopeVersion = d.Loose()
		default:
			d.Ignore()
		}
	}
}

// record reads one log record.
func (d *decoder) record() {
	var e draft
	observed, number := "", false
	for d.More() {
		switch d.Key() {
		case "timeUnixNano", "time_unix_nano":
			d.Once(seenTime, "time")
			e.nanos = d.nanos(d.timeText())
		case "observedTimeUnixNano", "observed_time_unix_nano":
			d.Once(seenObserved, "time")
			observed, number = d.timeText()
		case "eventName", "event_name":
			d.Once(seenName, "name")
			e.name = d.Text("name")
		case "attributes":
			d.Once(seenAttributes, "attributes")
			d.attributes(&e)
		case "traceId", "trace_id":
			e.trace = hexID(d.Loose(), 32)
		case "spanId", "span_id":
			e.span = hexID(d.Loose(), 16)
		case "body":
			d.Kind()
			start := d.Offset()
			d.Ignore()
			e.json = d.Since(start)
		default:
			d.Ignore()
		}
	}
	if e.nanos == 0 { // else nobody asks
		e.observed = d.nanos(observed, number)
	}
	ev, ok := d.event(&e)
	switch {
	case ok && d.full():
		d.over = true
	case ok:
		d.Add(&ev)
	case d.Err() == nil:
		d.Drop()
	}
}

// hexID is an id of n hexadecimal digits; not one of zeros, which stands for none.
func hexID(s string, n int) string {
	if len(s) != n || strings.Trim(s, "0123456789abcdefABCDEF") != "" || strings.Trim(s, "0") == "" {
		return ""
	}
	return s
}

// timeText reads a time, text or a number.
func (d *decoder) timeText() (s string, number bool) {
	k, s := d.Scalar()
	if k == jsonscan.Bool {
		s = noTime
	}
	if d.Fault() == jsonscan.OutOfRange { // no time, but a number
		d.ClearFault()
		s = noTime
	}
	d.Settle("time")
	return s, k == jsonscan.Number
}

// noTime is no time.
const noTime = "?"

// nanos is a time in nanoseconds since the epoch; "" and 0 are none.
func (d *decoder) nanos(s string, number bool) uint64 {
	if s == "" {
		return 0
	}
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		return n
	}
	// A number that went through a double, which is good to a microsecond.
	if v, ok := wire.Numeric(s, number); ok && v >= 0 && v < math.MaxInt64 {
		return 1000 * uint64(math.Round(v/1000))
	}
	d.Fail(schema.CodeInvalidTime, "time", "time must be nanoseconds since the Unix epoch")
	return 0
}

// attributes reads [{"key":…,"value":{…}}] of a record, or of a resource where e is
// nil.
func (d *decoder) attributes(e *draft) {
	if d.Null() {
		return
	}
	if !d.Array() {
		d.Settle("attributes")
		return
	}
	for d.More() {
		if d.Null() {
			continue
		}
		if !d.Reader.Object() {
			d.Settle("attributes")
			continue
		}
		key, v := "", text{}
		for d.More() {
			switch d.Key() {
			case "key":
				_, key = d.Scalar()
			case "value":
				v = d.value()
			default:
				d.Ignore()
			}
		}
		d.Settle("attributes")
		d.put(e, key, v)
	}
}
