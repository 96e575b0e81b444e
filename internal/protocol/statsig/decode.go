package statsig

import (
	"encoding/base64"
	"slices"

	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
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
	d := decoder{Decoder: wire.New(body, req.MaxEvents, b), body: body}
	if err := d.read(); err != nil {
		return err
	}
	// Some send what failed again among newer events (node-core; js-client in the
	// next session), and none names its events.
	b.IdentifyEvents()
	b.SDK = d.sdk(req)
	b.SentAt = d.sentAt(req)
	return nil
}

// decoder reads one body into one batch.
type decoder struct {
	*wire.Decoder
	body   []byte
	nested []schema.Attribute // those of the event's metadata that are JSON text

	// Of the envelope.
	sdkType, sdkVersion, stableID, clientTime string
	lookedAhead                               bool
}

func (d *decoder) read() error { return d.Document(d.wrapper, d.event) }

// wrapper reads {"events":[…],"statsigMetadata":{…}}.
func (d *decoder) wrapper() error {
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
		case "statsigMetadata":
			d.envelope()
		case "clientTime":
			d.clientTime = d.Loose()
		default:
			d.Skip()
		}
	}
	return nil // a syntax error is found by the caller
}

// envelope reads statsigMetadata. Whatever is odd in there counts as absent: it
// must not cost the events.
func (d *decoder) envelope() {
	if d.Kind() != jsonscan.Object {
		d.Skip()
		return
	}
	d.Reader.Object()
	for d.More() {
		switch d.Key() {
		case "sdkType":
			d.sdkType = d.Loose()
		case "sdkVersion":
			d.sdkVersion = d.Loose()
		case "stableID":
			d.stableID = d.Loose()
		default:
			d.Skip()
		}
	}
}

// deviceID is statsigMetadata.stableID: the id a browser SDK gives the device it
// runs on. Events may need it before the reading has come to it, so the body is
// read ahead, once, and only where there is such an event.
func (d *decoder) deviceID() string {
	if d.stableID != "" || d.lookedAhead {
		return d.stableID
	}
	d.lookedAhead = true
	d.stableID = wire.Member(d.body, "statsigMetadata", "stableID")
	return d.stableID
}

// sdk names the SDK and its version, from the body or, where that does not say,
// the headers or the query.
func (d *decoder) sdk(req *protocol.Request) string {
	name, version := d.sdkType, d.sdkVersion
	if name == "" {
		name = wire.First(req.Header.Get("Statsig-Sdk-Type"), req.Query.Get("st"))
	}
	if version == "" {
		version = wire.First(req.Header.Get("Statsig-Sdk-Version"), req.Query.Get("sv"))
	}
	return wire.SDK(name, version)
}

// sentAt is the client's clock at this attempt, microseconds since the epoch; 0
// where it does not say. The Go SDK makes its request once for all attempts
// (measured with 1.35.1: the same after 11 s, and it waits up to hours): taken for
// the time of this one, it would move the events by how long they waited.
func (d *decoder) sentAt(req *protocol.Request) int64 {
	if wire.First(req.Header.Get("Statsig-Sdk-Type"), d.sdkType) == "go-sdk" {
		return 0
	}
	us, ok := schema.ParseEpochMillis(wire.First(req.Header.Get("Statsig-Client-Time"), req.Query.Get("t"), d.clientTime))
	if !ok {
		return 0
	}
	return us
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
		return nil, wire.Malformed("the body is not the reversed base64 it is said to be")
	}
	return wire.Latin1(plain[:n]), nil
}
