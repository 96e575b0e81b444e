package segment

import (
	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// decode reads {"batch":[…],"sentAt":…}, a bare array of calls or, where single says
// of which type, one call by itself. What it makes of a call depends on its own
// members alone, and not on those that differ between attempts: sentAt, _metadata.
func decode(req *protocol.Request, b *schema.Batch, single string) error {
	d := decoder{Decoder: wire.New(req.Body, req.MaxEvents, b), single: single}
	var err error
	if single != "" && d.Kind() == jsonscan.Object && !wire.Has(req.Body, "batch") {
		err = d.Whole(d.event)
	} else {
		err = d.Document(d.envelope, d.event)
	}
	if err != nil {
		return err
	}
	b.SDK = wire.SDK(d.library, d.version)
	if us, ok := wire.ParseISO(d.sentAt); ok && !sentOnce(d.library) {
		b.SentAt = us
	}
	return nil
}

// sentOnce reports whether a library writes the body once for all its attempts: its
// sentAt says when the first of them was, and taken for this one's would move the
// events of a clock that is right. Those for servers spread their attempts over a
// minute; those for phones keep the body in a file, for hours where there is no net.
func sentOnce(library string) bool {
	switch library {
	case "analytics-go", "analytics-java", "analytics-php",
		"analytics-kotlin", "analytics-swift", "Analytics-CSharp", "analytics-csharp", "analytics-rust":
		return true
	}
	return false
}

// decoder reads one body into one batch.
type decoder struct {
	*wire.Decoder
	single string
	traits []schema.Attribute // of the call being read

	library, version string // the first there is
	sentAt           string
}

// envelope reads {"batch":[…],"sentAt":…,"context":{…}}.
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
		case "sentAt":
			d.sentAt = wire.First(d.Loose(), d.sentAt)
		case "context":
			d.context()
		default:
			d.Ignore()
		}
	}
	return nil // a syntax error is found by the caller
}

// context reads which library it was. All else in there is about the person's
// device and place, or repeats traits, and is not kept. What is odd in there does
// not matter.
func (d *decoder) context() {
	if d.library != "" || d.Kind() != jsonscan.Object {
		d.Ignore()
		return
	}
	d.Reader.Object()
	for d.More() {
		if d.Key() != "library" || d.Kind() != jsonscan.Object {
			d.Ignore()
			continue
		}
		d.Reader.Object()
		for d.More() {
			switch d.Key() {
			case "name":
				d.library = d.Loose()
			case "version":
				d.version = d.Loose()
			default:
				d.Ignore()
			}
		}
	}
	d.ClearFault()
}
