package launchdarkly

import (
	"encoding/base64"
	"strconv"
	"strings"

	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// decode reads an array of events, or one event: a diagnostic event that failed is
// sent again to where the others go, as it is. What it makes of them depends on the
// body alone.
func decode(req *protocol.Request, b *schema.Batch) error {
	b.SDK = sdk(req)
	return read(req.Body, req.MaxEvents, b)
}

// decodePixel reads events from the query: d, base64 of JSON in the alphabet for URLs.
func decodePixel(req *protocol.Request, b *schema.Batch) error {
	body, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(req.Query.Get("d"), "="))
	if err != nil {
		return wire.Malformed("d is not base64 for URLs")
	}
	return read(body, req.MaxEvents, b)
}

// decoder reads one body into one batch.
type decoder struct {
	*wire.Decoder
	most     int   // events
	err      error // why the body is refused although it can be read
	contexts []context
	redacted []string // attributes of the context being read
	hideAll  bool     // of which there are more than anybody lists
}

// context is one of those an event is about: what LaunchDarkly calls a kind and a
// key is a unit's type and id here.
type context struct{ kind, key string }

// noiseShare is how many elements there may be for each event that is kept. Index
// events, of which nothing is kept, can be as many as the others, and the SDK's
// buffer holds 10,000 of all kinds: they must not have a payload refused.
const noiseShare = 4

func read(body []byte, most int, b *schema.Batch) error {
	d := decoder{Decoder: wire.New(body, noiseShare*most, b), most: most}
	d.Most = most
	read := func() error { return d.Document(nil, d.event) }
	if d.Kind() == jsonscan.Object {
		read = func() error { return d.Whole(d.event) }
	}
	if err := read(); err != nil {
		return err
	}
	return d.err
}

// full reports whether there are as many events as there may be; if so, the body
// is going to be refused.
func (d *decoder) full() bool {
	if int(d.Batch.Count) >= d.most && d.err == nil {
		d.err = &schema.BodyError{Code: schema.BodyTooManyEvents,
			Detail: "more than " + strconv.Itoa(d.most) + " events, counters of summaries included"}
	}
	return d.err != nil
}

// add adds the event that was read.
func (d *decoder) add(e *schema.Event) {
	if !d.full() {
		d.Add(e)
	}
}

// sdk names the SDK and its version. Only a browser's own User-Agent has spaces in
// it, and that is nobody's business.
func sdk(req *protocol.Request) string {
	v := wire.First(req.Header.Get("X-Launchdarkly-User-Agent"), req.Header.Get("User-Agent"))
	if strings.ContainsAny(v, " ();") || strings.HasPrefix(v, "Mozilla/") {
		return ""
	}
	name, version, _ := strings.Cut(v, "/")
	return wire.SDK(name, version)
}
