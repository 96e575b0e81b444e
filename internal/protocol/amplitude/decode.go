package amplitude

import (
	"bytes"
	"net/url"

	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// decode reads {"api_key":…,"events":[…],"client_upload_time":…}, a bare array of
// events, or the form of the first API. What it makes of an event depends on its own
// members alone.
func decode(req *protocol.Request, b *schema.Batch) error {
	body, form := req.Body, parseForm(req.Body)
	if form.ok {
		body = form.events
		req.Reply = []byte("success")
	}
	d := decoder{Decoder: wire.New(body, req.MaxEvents, b)}
	var err error
	if form.ok && d.Kind() == jsonscan.Object {
		err = d.Whole(d.event)
	} else {
		err = d.Document(d.envelope, d.event)
	}
	if err != nil {
		return err
	}
	b.SDK = wire.SDK(d.library, "")
	if us, ok := wire.ParseISO(wire.First(d.sentAt, form.sentAt)); ok {
		b.SentAt = us
	}
	return nil
}

// form is a body of the first API: api_key=…&event=…, or as its browser library
// wrote it, client=…&e=….
type form struct {
	ok          bool
	key, sentAt string
	events      []byte // JSON: one event, or an array of them
}

// maxForm bounds a form, in bytes as sent: undoing its encoding takes memory of its
// own, also for somebody whose key is not known yet.
const maxForm = 1 << 20

// parseForm reads a form; JSON is none.
func parseForm(body []byte) form {
	text := bytes.TrimLeft(body, " \t\r\n")
	if len(text) == 0 || len(text) > maxForm || text[0] == '{' || text[0] == '[' || !bytes.Contains(text, []byte("=")) {
		return form{}
	}
	q, err := url.ParseQuery(string(text))
	if err != nil {
		return form{}
	}
	events := wire.First(q.Get("event"), q.Get("e"))
	return form{
		ok:     events != "",
		key:    wire.First(q.Get("api_key"), q.Get("client")),
		sentAt: q.Get("upload_time"),
		events: []byte(events),
	}
}

// decoder reads one body into one batch.
type decoder struct {
	*wire.Decoder
	person []schema.Attribute // properties of the person or group, of the event being read

	library string // the first there is
	sentAt  string
}

// envelope reads the members beside the events.
func (d *decoder) envelope() error {
	found := false
	for d.More() {
		switch d.Key() {
		case "events":
			if found {
				return wire.Malformed("`events` is there twice")
			}
			found = true
			if err := d.Each(d.event); err != nil {
				return err
			}
		case "client_upload_time":
			d.sentAt = wire.First(d.Loose(), d.sentAt)
		default:
			d.Ignore()
		}
	}
	return nil // a syntax error is found by the caller
}
