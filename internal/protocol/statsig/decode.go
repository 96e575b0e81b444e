package statsig

import (
	"bytes"
	"encoding/base64"
	"errors"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"sluice/internal/protocol"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// decode reads {"events":[…],"statsigMetadata":{…}} or a bare array of events.
// What it makes of the events depends on the list alone, with one exception that
// docs/sdk/statsig.md explains (the stableID of visitors without any other id):
// the rest of the body and the headers differ between attempts.
func decode(req *protocol.Request, b *schema.Batch) error {
	body := req.Body
	if req.Query.Get("se") == "1" || req.Header.Get("Statsig-Encoded") == "1" {
		var err error
		if body, err = unreverse(body); err != nil {
			return err
		}
	}
	d := decoder{body: body, b: b, maxEvents: req.MaxEvents}
	d.r.Reset(body, schema.MaxDepth)
	if err := d.read(); err != nil {
		return err
	}
	b.SDK = d.sdk(req)
	b.SentAt = d.sentAt(req)
	return nil
}

// decoder reads one body into one batch.
type decoder struct {
	r         jsonscan.Reader
	body      []byte
	b         *schema.Batch
	maxEvents int
	sent      int // elements of the event list, noise included

	// Of the event being read.
	attrs   []schema.Attribute
	nested  []schema.Attribute // those of its metadata that are JSON text
	tooMany bool               // there were more

	paths map[string]string // see path

	// Of the envelope.
	sdkType, sdkVersion, stableID, clientTime string
	lookedAhead                               bool
}

func (d *decoder) read() error {
	r := &d.r
	var err error
	switch {
	case len(bytes.TrimLeft(d.body, " \t\r\n")) == 0:
		return empty("the body is empty")
	case r.Kind() == jsonscan.Array:
		err = d.events()
	case r.Kind() == jsonscan.Object:
		err = d.wrapper()
	case !r.Null():
		r.Skip()
		if r.End() == nil {
			err = malformed("want an array of events, or an object with the array `events`")
		}
	}
	if err != nil {
		return err
	}
	if err := r.End(); err != nil {
		return syntaxError(err)
	}
	if d.sent == 0 {
		return empty("there is no event in the body")
	}
	return nil
}

// wrapper reads {"events":[…],"statsigMetadata":{…}}.
func (d *decoder) wrapper() error {
	r := &d.r
	found := false
	r.Object()
	for r.More() {
		switch r.Key() {
		case "events":
			if found {
				return malformed("`events` is there twice")
			}
			found = true
			if r.Null() {
				break
			}
			if k := r.Kind(); k != jsonscan.Array && k != jsonscan.None {
				return malformed("`events` is not an array")
			}
			if err := d.events(); err != nil {
				return err
			}
		case "statsigMetadata":
			d.envelope()
		case "clientTime":
			d.clientTime = d.loose()
		default:
			r.Skip()
		}
	}
	return nil // a syntax error is found by the caller
}

func (d *decoder) events() error {
	d.r.Array()
	for d.r.More() {
		if d.sent++; d.sent > d.maxEvents {
			return &schema.BodyError{Code: schema.BodyTooManyEvents, Detail: "more than " + strconv.Itoa(d.maxEvents) + " events"}
		}
		d.event()
	}
	return nil // a syntax error is found by the caller
}

// envelope reads statsigMetadata. Whatever is odd in there counts as absent: it
// must not cost the events.
func (d *decoder) envelope() {
	r := &d.r
	if r.Kind() != jsonscan.Object {
		r.Skip()
		return
	}
	r.Object()
	for r.More() {
		switch r.Key() {
		case "sdkType":
			d.sdkType = d.loose()
		case "sdkVersion":
			d.sdkVersion = d.loose()
		case "stableID":
			d.stableID = d.loose()
		default:
			r.Skip()
		}
	}
}

// loose reads a string or number; anything else, or one that is faulty, is "".
func (d *decoder) loose() string {
	d.r.ClearFault()
	k, s := d.r.Scalar()
	if d.r.Fault() != jsonscan.NoFault || k != jsonscan.String && k != jsonscan.Number {
		return ""
	}
	return s
}

// deviceID is statsigMetadata.stableID: the id a browser SDK gives the device it
// runs on. Events may need it before the reading has come to it, so the body is
// read ahead, once, and only where there is such an event.
func (d *decoder) deviceID() string {
	if d.stableID != "" || d.lookedAhead {
		return d.stableID
	}
	d.lookedAhead = true
	ahead := decoder{}
	r := &ahead.r
	r.Reset(d.body, schema.MaxDepth)
	if r.Kind() != jsonscan.Object || !r.Object() {
		return ""
	}
	for r.More() {
		if r.Key() == "statsigMetadata" {
			ahead.envelope()
		} else {
			r.Skip()
		}
	}
	d.stableID = ahead.stableID
	return d.stableID
}

// sdk names the SDK and its version, from the body or, where that does not say,
// the headers or the query.
func (d *decoder) sdk(req *protocol.Request) string {
	name, version := d.sdkType, d.sdkVersion
	if name == "" {
		name = first(req.Header.Get("Statsig-Sdk-Type"), req.Query.Get("st"))
	}
	if version == "" {
		version = first(req.Header.Get("Statsig-Sdk-Version"), req.Query.Get("sv"))
	}
	if name == "" {
		return ""
	}
	if version != "" {
		name += "/" + version
	}
	// Beyond that it is not the name of an SDK.
	const most = 256
	if len(name) > most || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
		return ""
	}
	return name
}

// sentAt is the client's clock at this attempt, microseconds since the epoch; 0
// where it does not say.
func (d *decoder) sentAt(req *protocol.Request) int64 {
	us, ok := parseMillis(first(req.Header.Get("Statsig-Client-Time"), req.Query.Get("t"), d.clientTime))
	if !ok {
		return 0
	}
	return us
}

func first(ss ...string) string {
	for _, s := range ss {
		if s != "" {
			return s
		}
	}
	return ""
}

// maxEncoded bounds an encoded body, in bytes as sent: undoing the encoding takes
// memory of its own. Browsers send 100 events at once.
const maxEncoded = 1 << 20

// unreverse undoes the browser SDK's encoding (se=1): base64, back to front, of
// a text of which each character is one byte (btoa takes no others), so what is
// not ASCII comes as Latin-1. A body that is JSON after all is taken as it is.
func unreverse(body []byte) ([]byte, error) {
	if len(body) > 0 && (body[0] == '{' || body[0] == '[') {
		return body, nil
	}
	if len(body) > maxEncoded {
		return nil, protocol.NewProblem(protocol.CodeBodyTooLarge, "an encoded body may have 1 MiB")
	}
	turned := slices.Clone(body)
	slices.Reverse(turned)
	plain := make([]byte, base64.StdEncoding.DecodedLen(len(turned)))
	n, err := base64.StdEncoding.Decode(plain, turned)
	if err != nil {
		return nil, malformed("the body is not the reversed base64 it is said to be")
	}
	plain = plain[:n]
	high := 0
	for _, c := range plain {
		if c >= utf8.RuneSelf {
			high++
		}
	}
	if high == 0 {
		return plain, nil
	}
	out := make([]byte, 0, n+high)
	for _, c := range plain {
		out = utf8.AppendRune(out, rune(c))
	}
	return out, nil
}

func malformed(detail string) error {
	return &schema.BodyError{Code: schema.BodyMalformed, Detail: detail}
}

func empty(detail string) error {
	return &schema.BodyError{Code: schema.BodyEmpty, Detail: detail}
}

func syntaxError(err error) error {
	code := schema.BodyMalformed
	if e := (*jsonscan.Error)(nil); errors.As(err, &e) && e.TooDeep {
		code = schema.BodyTooDeep
	}
	return &schema.BodyError{Code: code, Detail: "not JSON: " + err.Error()}
}
