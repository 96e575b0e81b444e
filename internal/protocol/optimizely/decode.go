package optimizely

import (
	"encoding/json"
	"slices"
	"strconv"

	"sluice/internal/protocol"
	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// decode reads {"visitors":[…],"client_name":…}, or a bare array of visitors. What
// it makes of the visitors depends on them alone.
func decode(req *protocol.Request, b *schema.Batch) error {
	d := decoder{Decoder: wire.New(req.Body, req.MaxEvents, b), most: req.MaxEvents}
	var name, version string
	found := false
	err := d.Document(func() error {
		for d.More() {
			switch d.Key() {
			case "visitors":
				if found {
					return wire.Malformed("`visitors` is there twice")
				}
				found = true
				if err := d.Each(d.visitor); err != nil {
					return err
				}
			case "client_name":
				name = d.Loose()
			case "client_version":
				version = d.Loose()
			default:
				d.Ignore()
			}
		}
		return nil
	}, d.visitor)
	if err != nil {
		return err
	}
	b.SDK = wire.SDK(name, version)
	return d.err
}

// decoder reads one body into one batch.
type decoder struct {
	*wire.Decoder
	most int   // events
	err  error // why the body is refused although it can be read

	// Of the visitor being read.
	id             string
	attrs          []schema.Attribute
	attrsSize      int
	idRaw, attrRaw []byte // as sent
	drafts         []draft
	pending        []schema.Attribute // the drafts'
}

// Fields of which each may come once in what has them.
const (
	seenID = 1 << iota
	seenAttributes
	seenSnapshots
	seenTime
	seenExperiment
	seenVariation
	seenValue
)

// full reports whether there are as many events as there may be; if so, the body
// is going to be refused.
func (d *decoder) full() bool {
	if int(d.Batch.Count) >= d.most {
		d.tooMany()
	}
	return d.err != nil
}

func (d *decoder) tooMany() {
	if d.err == nil {
		d.err = &schema.BodyError{Code: schema.BodyTooManyEvents, Detail: "more than " + strconv.Itoa(d.most) + " events"}
	}
}

// visitor reads one element: who it was, and what they saw and did. Members come
// in any order, so what was done becomes events when all of it was read.
func (d *decoder) visitor() {
	d.id, d.attrs, d.attrsSize, d.idRaw, d.attrRaw = "", d.attrs[:0], 0, nil, nil
	d.drafts, d.pending = d.drafts[:0], d.pending[:0]
	start := d.Mark()
	failed := !d.members(true)
	if d.Err() != nil || d.err != nil {
		return
	}
	if !failed && d.id != "" && len(d.attrs) <= schema.MaxAttributes {
		d.finish(nil)
		return
	}
	// Whatever the visitor did, nobody did it. Read again what was wrong.
	d.Rewind(start)
	d.Part()
	d.members(false)
	if d.id == "" {
		d.Fail(schema.CodeMissingField, "unit_id", "visitor_id is missing or empty")
	}
	d.Fail(schema.CodeTooMany, "attributes", "more than 256 attributes")
	if d.full() {
		return
	}
	d.Add(&schema.Event{})
	rejected := d.Batch.Rejected
	why := rejected[len(rejected)-1]
	if !slices.ContainsFunc(d.drafts, func(dr draft) bool { return dr.becomes() }) {
		return
	}
	// Each event is a dead letter of its own, instead of the visitor.
	d.Batch.Rejected = rejected[:len(rejected)-1]
	d.Batch.Count--
	d.finish(&why)
}

// members reads the members of a visitor, and reports whether they may be right.
// Reading the snapshots makes the Decoder forget what was wrong with the others, so
// it is called again without them where it reports false.
func (d *decoder) members(snapshots bool) (sound bool) {
	sound = true
	seen := 0
	once := func(bit int, name string) {
		if snapshots {
			d.Part()
			sound = sound && seen&bit == 0
			seen |= bit
		} else {
			d.Once(uint32(bit), name)
		}
	}
	for d.More() {
		switch d.Key() {
		case "visitor_id":
			once(seenID, "unit_id")
			d.Kind()
			from := d.Offset()
			d.id = d.ID("unit_id")
			d.idRaw = d.Since(from)
			sound = sound && !d.Failed()
		case "attributes":
			once(seenAttributes, "attributes")
			d.Kind()
			from := d.Offset()
			d.attributes()
			d.attrRaw = d.Since(from)
			d.attrs = append(d.attrs, d.Attrs...)
			sound = sound && !d.Failed()
		case "snapshots":
			once(seenSnapshots, "snapshots")
			switch k := d.Kind(); {
			case k == jsonscan.Null:
				d.Null()
			case k != jsonscan.Array:
				sound = false
				d.Skip()
				d.Fail(schema.CodeInvalidType, "snapshots", "snapshots has the wrong type")
			case snapshots:
				d.Array()
				for d.More() {
					d.snapshot()
				}
			default:
				d.Ignore()
			}
		default:
			d.Ignore()
		}
	}
	return sound
}

// attributes reads [{"key":…,"value":…}]. What has a name with $opt_ tells the
// backend what to do, or is the browser's user agent, and is not kept.
func (d *decoder) attributes() {
	if d.Null() {
		return
	}
	if !d.Array() {
		d.Settle("attributes")
		return
	}
	for d.More() {
		if !d.Object() {
			d.Settle("attributes")
			continue
		}
		var key, entity, value string
		keep := true
		for d.More() {
			switch d.Key() {
			case "key":
				key = d.Text("attributes")
			case "entity_id":
				entity = d.Text("attributes")
			case "value":
				keep = d.Kind() != jsonscan.Null
				value = d.JSON("attributes")
			default:
				d.Ignore()
			}
		}
		if key = wire.First(key, entity); key == "" || value == "" || !keep || personal(key) {
			continue
		}
		d.Put(d.Path("visitor.", key), value)
		d.attrsSize += len(key) + len(value) + 32 // for what lists them
	}
}

// shared adds the visitor's attributes to an event. Events that share more than
// there is to share, beyond all visitors of an SDK, go without.
func (d *decoder) shared() {
	if len(d.attrs) > 0 && d.Repeat(d.attrsSize) {
		d.Attrs = append(d.Attrs, d.attrs...)
	}
}

// alone makes a visitor of a snapshot something of which was rejected, so that it
// can be read again by itself.
func (d *decoder) alone(snapshot []byte) []byte {
	if !d.Repeat(len(d.idRaw) + len(d.attrRaw) + len(snapshot)) {
		return snapshot
	}
	out := []byte{'{'}
	if len(d.idRaw) > 0 {
		out = append(append(append(out, `"visitor_id":`...), d.idRaw...), ',')
	}
	if len(d.attrRaw) > 0 {
		out = append(append(append(out, `"attributes":`...), d.attrRaw...), ',')
	}
	out = append(append(out, `"snapshots":[`...), snapshot...)
	return append(out, "]}"...)
}

// piece makes a snapshot of a decision, an event, or both. The event's uuid becomes
// id: that of the decision, where it is not the first one to have the event.
func (d *decoder) piece(decision, event []byte, id string) []byte {
	out := []byte{'{'}
	if decision != nil {
		out = append(append(append(out, `"decisions":[`...), decision...), ']')
		if event == nil || !d.Repeat(len(event)) {
			return append(out, '}')
		}
		out = append(out, ',')
	}
	out = append(out, `"events":[`...)
	if name, err := json.Marshal(id); err == nil && id != "" {
		// Of two members with one name the last counts. There is one: the uuid.
		out = append(append(append(append(out, event[:len(event)-1]...), `,"uuid":`...), name...), '}')
	} else {
		out = append(out, event...)
	}
	return append(out, "]}"...)
}
