package launchdarkly

import (
	"slices"
	"strings"

	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// context reads whom an event is about: one context, or several under their kinds.
func (d *decoder) context() {
	d.Within = "context"
	defer func() { d.Within = "" }()
	if !d.Object() {
		d.Settle("context")
		return
	}
	kind := wire.First(d.Find("kind"), schema.DefaultUnitType) // one without a kind is a user of old
	if kind != "multi" {
		d.members(kind, false)
		return
	}
	for d.More() {
		name := d.Key()
		if name == "kind" {
			d.Ignore()
		} else if d.Object() {
			d.members(name, false)
		}
		d.Settle("context")
	}
}

// user reads a user from before there were contexts, whose own attributes are in
// `custom`.
func (d *decoder) user() {
	d.Within = "user"
	defer func() { d.Within = "" }()
	if d.Object() {
		d.members(schema.DefaultUnitType, true)
	}
	d.Settle("user")
}

// contextKeys reads {"kind":"key"}.
func (d *decoder) contextKeys() {
	if d.Object() {
		for d.More() {
			kind := d.Key()
			d.meet(kind, d.ID("unit_id"))
		}
	}
	d.Settle("contextKeys")
}

// members reads one context: its key, and as attributes what is flat and may be
// told about it. Names, e-mail addresses, IP addresses and what was redacted are
// never kept.
func (d *decoder) members(kind string, ofOld bool) {
	d.redacted, d.hideAll = d.redacted[:0], false
	prefix := "context.user."
	if kind != schema.DefaultUnitType {
		prefix = d.Path(attrContexts, kind+".")
	}
	first := len(d.Attrs)
	for d.More() {
		switch name := d.Key(); name {
		case "key":
			d.meet(kind, d.ID("unit_id"))
		case "_meta":
			d.meta()
		case "kind", "name", "firstName", "lastName", "email", "ip", "avatar", "secondary", "userAgent":
			d.Ignore()
		case "privateAttrs":
			d.hide()
		case "custom":
			if ofOld {
				d.custom(prefix)
				continue
			}
			fallthrough
		default:
			if wire.Contact(name) {
				d.Ignore()
			} else {
				d.Member(d.Path(prefix, name), wire.LeaveOut)
			}
		}
	}
	if d.hideAll {
		d.Attrs = d.Attrs[:first]
		return
	}
	if len(d.redacted) == 0 {
		return
	}
	kept := d.Attrs[:first]
	for _, a := range d.Attrs[first:] {
		if !slices.Contains(d.redacted, a.Key[len(prefix):]) {
			kept = append(kept, a)
		}
	}
	d.Attrs = kept
}

// custom reads a user's own attributes.
func (d *decoder) custom(prefix string) {
	if !d.Object() {
		d.Settle(d.Within)
		return
	}
	for d.More() {
		if name := d.Key(); wire.Contact(name) {
			d.Ignore()
		} else {
			d.Member(d.Path(prefix, name), wire.LeaveOut)
		}
	}
}

// meta reads which attributes of a context were redacted, or should have been.
func (d *decoder) meta() {
	if d.Kind() != jsonscan.Object {
		d.Ignore()
		return
	}
	d.Reader.Object()
	for d.More() {
		switch d.Key() {
		case "redactedAttributes", "privateAttributes":
			d.hide()
		default:
			d.Ignore()
		}
	}
}

// hide notes a list of attributes that must not be kept: names, or references like
// "/a~1b" for a name with a slash in it.
func (d *decoder) hide() {
	if d.Kind() != jsonscan.Array {
		d.Ignore()
		return
	}
	d.Array()
	for d.More() {
		name := d.Loose()
		if ref, ok := strings.CutPrefix(name, "/"); ok {
			name = strings.ReplaceAll(strings.ReplaceAll(ref, "~1", "/"), "~0", "~")
		}
		if name == "" {
			continue
		}
		if len(d.redacted) == schema.MaxAttributes {
			d.hideAll = true
			continue
		}
		d.redacted = append(d.redacted, name)
	}
}

// meet notes a context the event is about.
func (d *decoder) meet(kind, key string) {
	if key == "" || kind == "" {
		return
	}
	if len(d.contexts) == schema.MaxAttributes {
		d.Fail(schema.CodeTooMany, "context", "more than 256 contexts")
		return
	}
	d.contexts = append(d.contexts, context{kind, key})
}

// unit makes the event one about the user, else about the first of its contexts by
// kind; the keys of the others become attributes.
func (d *decoder) unit(ev *schema.Event) {
	for _, c := range d.contexts {
		if ev.UnitID == "" || c.kind == schema.DefaultUnitType && ev.UnitType != c.kind || c.kind < ev.UnitType && ev.UnitType != schema.DefaultUnitType {
			ev.UnitType, ev.UnitID = c.kind, c.key
		}
	}
	for _, c := range d.contexts {
		if c.kind != ev.UnitType {
			d.Put(d.Path(attrContexts, c.kind+".key"), c.key)
		}
	}
}
