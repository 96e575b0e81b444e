package posthog

import (
	"bytes"
	"encoding/base64"
	"net/url"
	"strings"

	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// decode reads {"api_key":…,"batch":[…]}, {"api_key":…,"event":…} or a bare array of
// events. What it makes of an event depends on the event's own members alone, and
// not on those that differ between attempts (sent_at, the query, headers).
func decode(req *protocol.Request, b *schema.Batch) error {
	_, err := read(req, b, false)
	return err
}

// decodeV1 reads the same, and writes down the result of each event.
func decodeV1(req *protocol.Request, b *schema.Batch) error {
	d, err := read(req, b, true)
	if err != nil {
		return err
	}
	req.Reply = d.results.finish()
	return nil
}

func read(req *protocol.Request, b *schema.Batch, v1 bool) (*decoder, error) {
	body, err := plain(req)
	if err != nil {
		return nil, err
	}
	d := &decoder{Decoder: wire.New(body, req.MaxEvents, b), v1: v1, results: results{size: len(body) / resultsShare}}
	if d.Kind() == jsonscan.Object && single(body) {
		err = d.Whole(d.event)
	} else {
		err = d.Document(d.envelope, d.event)
	}
	if err != nil {
		return nil, err
	}
	b.SDK = wire.SDK(d.lib, d.libVersion)
	if info := req.Header.Get("Posthog-Sdk-Info"); info != "" { // name/version already
		b.SDK = wire.SDK(info, "")
	}
	b.SentAt = d.clock(req)
	return d, nil
}

// single reports whether an object is an event, and not a batch of them.
func single(body []byte) bool {
	if wire.Has(body, "batch") {
		return false
	}
	return wire.Has(body, "event") || wire.Has(body, "properties") || wire.Has(body, "$set") || wire.Has(body, "$set_once")
}

// decoder reads one body into one batch.
type decoder struct {
	*wire.Decoder
	v1      bool
	results results

	lib, libVersion string // the first there is
	sentAt          string
	uncorrected     bool // the sender does not want times moved by its clock
}

// envelope reads {"batch":[…],"sent_at":…}.
func (d *decoder) envelope() error {
	found := false
	for d.More() {
		switch d.Key() {
		case "batch":
			if found {
				return wire.Malformed("`batch` is there twice")
			}
			found = true
			if err := d.Each(d.event); err != nil {
				return err
			}
		case "sent_at":
			d.sentAt = wire.First(d.Loose(), d.sentAt)
		default:
			d.Ignore()
		}
	}
	return nil // a syntax error is found by the caller
}

// sentOnce reports whether an SDK writes the body once for all its attempts, as those
// do that are built on posthog-core: on the first API its sent_at says when the first
// of them was, and taken for this one's would move the events of a clock that is right.
func sentOnce(lib string) bool {
	switch lib {
	case "posthog-node", "posthog-edge", "posthog-react-native", "posthog-js-lite":
		return true
	}
	return false
}

// clock is the client's clock at this attempt, microseconds since the epoch; 0 where
// it does not say.
func (d *decoder) clock(req *protocol.Request) int64 {
	s := req.Header.Get("Posthog-Request-Timestamp")
	if s == "" && !sentOnce(d.lib) {
		s = wire.First(d.sentAt, req.Query.Get("_"))
	}
	us, ok := wire.ParseISO(s)
	if !ok || d.uncorrected {
		return 0
	}
	return us
}

// maxEncoded bounds an encoded body, in bytes as sent: undoing the encoding takes
// memory of its own. Browsers send beacons of 64 KiB at most.
const maxEncoded = 1 << 20

// plain is the body as JSON: as it is or, of a beacon, what is in the form's field
// `data`, in base64 or not.
func plain(req *protocol.Request) ([]byte, error) {
	text := bytes.TrimLeft(req.Body, " \t\r\n")
	if len(text) == 0 || text[0] == '{' || text[0] == '[' {
		return req.Body, nil
	}
	value, form := field(text)
	if !form {
		value = text
	}
	if !form && (req.Query.Get("compression") != "base64" || text[0] != 'e' && text[0] != 'W') { // {" or [ in base64
		return req.Body, nil
	}
	if len(req.Body) > maxEncoded {
		return nil, protocol.NewProblem(protocol.CodeBodyTooLarge, "an encoded body may have 1 MiB")
	}
	s := wire.String(value)
	if form {
		var err error
		if s, err = url.QueryUnescape(s); err != nil {
			return nil, wire.Malformed("the field `data` is not percent-encoded as a form's is")
		}
	}
	s = strings.Trim(s, " \t\r\n")
	if strings.HasPrefix(s, "{") || strings.HasPrefix(s, "[") {
		return []byte(s), nil
	}
	// A + that was not percent-encoded has become a space.
	s = strings.TrimRight(strings.ReplaceAll(s, " ", "+"), "=")
	out, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		return nil, wire.Malformed("the field `data` is neither JSON nor base64")
	}
	return out, nil
}

// field finds the field `data` of a form.
func field(form []byte) (value []byte, ok bool) {
	for len(form) > 0 {
		var pair []byte
		pair, form, _ = bytes.Cut(form, []byte("&"))
		if v, is := bytes.CutPrefix(pair, []byte("data=")); is {
			return v, true
		}
	}
	return nil, false
}
