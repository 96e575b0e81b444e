package replay

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// Protocol is how events that came by another protocol than the native API are
// read.
type Protocol struct {
	// Decode reads one event, as its sender wrote it, into an empty batch: as the
	// batch's only event, or as its only rejected one.
	Decode func(raw []byte, b *schema.Batch) error
	// Places are where the protocol has what the native API calls otherwise, by
	// field: unit_id → user.userID. They help a Fix of a field; not every field has
	// one.
	Places map[string]string
}

// nativeSource is the source of events that came by the native API.
const nativeSource = "native"

// The reasons of dead letters that are not codes of validation.
const (
	reasonUndecodable = "undecodable" // a whole record
	reasonRefused     = "refused"     // an event that ClickHouse did not take
	reasonKeyReused   = "key_reused"
)

// replaySDK marks rows of which the sender's SDK is not known any more.
const replaySDK = "sluice-replay"

// lost is one event of a dead letter as it would be sent again.
type lost struct {
	letter   *schema.DeadLetter
	project  string
	source   string
	sdk      string
	received int64 // microseconds since the Unix epoch

	// identity is its record's batch id and dedup id: a function of where the event
	// was lost, so that however often it is sent again, it is the same batch.
	identity batch.ID
	// own is its event id where its sender gave none.
	own   batch.ID
	event schema.Event

	experiment string // as found, before repairs
	problem    string // a code: it is not valid; empty: it is
	detail     string

	// Of an event in a record that could not be read: where it is, and the record's
	// digest. The sender may have sent the batch again, and then it is stored.
	at     place
	digest batch.Digest
	record bool
}

// place is an event of a batch.
type place struct {
	batch batch.ID
	index uint32
}

// reader reads dead letters.
type reader struct {
	fixes     []Fix
	protocols map[string]Protocol
	limits    schema.Limits
	recordMax int
}

// The problems beside the codes of validation.
const (
	problemCut        = "cut_short"      // only the beginning of the event was kept
	problemUnreadable = "unreadable"     // nothing can be made of the bytes
	problemSource     = "unknown_source" // no decoder for the protocol it came by
)

// read returns the events of a dead letter: one, or those of a whole record.
func (rd *reader) read(l *schema.DeadLetter) []*lost {
	if l.Stage == schema.StageSink && l.Reason != reasonRefused {
		return rd.readRecord(l)
	}
	x := &lost{letter: l, project: l.Project, source: l.Source, sdk: replaySDK, received: l.ReceivedAt}
	if l.Stage == schema.StageConflict {
		// By the letter and not by batch and index: several batches under one key have
		// events at one index. The event of the batch that was stored has the id that
		// follows from batch and index.
		x.identity = batch.ReplayID(l.ID, l.Index)
		x.own = batch.EventID(x.identity, 0)
	} else {
		x.identity = batch.ReplayID(l.BatchID, l.Index)
		x.own = batch.EventID(l.BatchID, l.Index)
	}
	rd.readEvent(x, l.Reason, l.Field, l.Bytes, l.Size)
	return []*lost{x}
}

// readRecord reads a record that could not be read when it came.
func (rd *reader) readRecord(l *schema.DeadLetter) []*lost {
	var b schema.Batch
	if err := schema.DecodeRecord(l.Bytes, &b); err != nil {
		return []*lost{{letter: l, project: l.Project, source: l.Source, identity: batch.ReplayID(l.BatchID, l.Index),
			problem: problemUnreadable, detail: err.Error()}}
	}
	sdk := b.SDK
	if sdk == "" {
		sdk = replaySDK
	}
	var out []*lost
	received := b.ReceivedAt
	if received <= 0 {
		received = l.ReceivedAt
	}
	one := func(index uint32, own batch.ID) *lost {
		x := &lost{letter: l, project: b.Project, source: b.Source, sdk: sdk, received: received,
			identity: batch.ReplayID(b.ID, index), own: own, at: place{b.ID, index}, digest: b.Digest, record: true}
		out = append(out, x)
		return x
	}
	for i := range b.Events {
		e := &b.Events[i]
		x := one(e.Index, e.ID)
		x.event, x.experiment = *e, e.Experiment
		rd.repair(x)
	}
	for i := range b.Rejected {
		r := &b.Rejected[i]
		x := one(r.Index, batch.EventID(b.ID, r.Index))
		rd.readEvent(x, string(r.Code), r.Field, r.Bytes, r.Size)
	}
	return out
}

// readEvent reads one event as it is kept in a dead letter: in the native API's JSON
// where the pipeline wrote it down itself, else as its sender did.
func (rd *reader) readEvent(x *lost, reason, field string, raw []byte, size int) {
	written := reason == reasonKeyReused || reason == reasonRefused || reason == string(schema.CodeTooLarge)
	if !written && size > len(raw) {
		// Of protobuf the beginning may well be an event too, and another one.
		x.problem, x.detail = problemCut, "only the beginning of the event was kept"
		return
	}
	var b schema.Batch
	var err error
	switch {
	case written || x.source == nativeSource:
		err = rd.native(x, reason, field, raw, &b)
	case rd.protocols[x.source].Decode == nil:
		x.problem, x.detail = problemSource, "events of "+strings.ToValidUTF8(x.source, "?")+" cannot be read"
		return
	default:
		err = rd.foreign(rd.protocols[x.source], raw, &b)
	}
	switch {
	case err != nil && reason == string(schema.CodeTooLarge):
		x.problem, x.detail = problemCut, "only the beginning of the event was kept"
	case err != nil:
		x.problem, x.detail = problemUnreadable, err.Error()
	case len(b.Events) == 1:
		x.event = b.Events[0]
		if x.experiment == "" {
			x.experiment = x.event.Experiment
		}
		if written && x.event.ClientID == batch.EventID(x.letter.BatchID, x.letter.Index).String() {
			x.event.ClientID = "" // the pipeline's own
		}
		rd.repair(x)
	case len(b.Rejected) == 1:
		x.problem, x.detail = string(b.Rejected[0].Code), b.Rejected[0].Message
	default:
		x.problem, x.detail = problemUnreadable, "there is no event in it"
	}
}

// native reads an event of the native API, JSON or protobuf, repaired.
func (rd *reader) native(x *lost, reason, field string, raw []byte, b *schema.Batch) error {
	text := bytes.TrimLeft(raw, " \t\r\n")
	json := len(text) > 0 && text[0] == '{'
	if !json {
		r := jsonscan.NewReader(raw, schema.MaxDepth)
		r.Skip()
		json = r.End() == nil
	}
	if json {
		x.experiment, _ = member(raw, "experiment")
	}
	var err error
	for i := range rd.fixes {
		if json {
			raw, err = rd.fixes[i].inJSON(raw)
		} else {
			raw, err = rd.fixes[i].inProto(raw)
		}
		if err != nil {
			return err
		}
	}
	var kind schema.Kind
	switch absent := reason == string(schema.CodeMissingField); {
	case absent && field == "name":
		kind = schema.KindEvent // nothing else is refused for that
	case absent && (field == "experiment" || field == "variant"):
		kind = schema.KindExposure
	case json:
		kind = jsonKind(raw)
	default:
		kind = protoKind(raw)
	}
	if json {
		return schema.DecodeJSON(slices.Concat([]byte("["), raw, []byte("]")), kind, 1, b)
	}
	return schema.DecodeProto(protoBatch(raw), kind, 1, b)
}

// jsonKind guesses the kind of an event that names none: the endpoint it was sent
// to is not known any more.
func jsonKind(raw []byte) schema.Kind {
	for _, name := range []string{"experiment", "variant"} {
		if _, has := member(raw, name); has {
			return schema.KindExposure
		}
	}
	if _, has := member(raw, "name"); has {
		return schema.KindEvent
	}
	return schema.KindExposure
}

// foreign reads an event of another protocol, repaired where that has a place for
// it.
func (rd *reader) foreign(p Protocol, raw []byte, b *schema.Batch) error {
	for _, f := range rd.fixes {
		if f.field != "" {
			path, ok := p.Places[f.field]
			if !ok {
				continue
			}
			f = Fix{path: strings.Split(path, "."), value: f.value}
		}
		var err error
		if raw, err = f.inBody(raw); err != nil {
			return err
		}
	}
	return p.Decode(raw, b)
}

// repair applies the fixes to an event that was read. Those that had to be applied
// before change nothing any more.
func (rd *reader) repair(x *lost) {
	for i := range rd.fixes {
		rd.fixes[i].apply(&x.event)
	}
}

func validText(e *schema.Event) bool {
	for _, s := range []string{e.Experiment, e.Variant, e.Name, e.UnitType, e.UnitID, e.Rule, e.Reason, e.ClientID} {
		if !schema.ValidText(s) {
			return false
		}
	}
	return !slices.ContainsFunc(e.Attributes, func(a schema.Attribute) bool { return !schema.ValidText(a.Key) || !schema.ValidText(a.Value) })
}

// record makes the record that an event travels in: a batch of one, of which
// everything but the event itself follows from where it was lost. It validates
// the event; a problem is set where that fails.
func (rd *reader) record(x *lost) batch.Record {
	adjusted := x.event.TimeAdjusted
	b := schema.Batch{Project: x.project, Source: x.source, SDK: x.sdk, ID: x.identity, DedupID: x.identity}
	e := b.Append()
	attributes := x.event.Attributes
	*e = x.event
	e.Index, e.Attributes = 0, nil
	b.SetAttributes(e, slices.Clone(attributes))
	if !validText(e) { // a record is not held to that when it is read
		b.Reject(schema.CodeInvalidString, "", "a string that is not UTF-8, or with a NUL character", nil)
	} else if b.Check(nil) {
		b.RejectOversized(rd.recordMax)
	}
	if len(b.Rejected) > 0 {
		x.problem, x.detail = string(b.Rejected[0].Code), b.Rejected[0].Message
		return batch.Record{}
	}
	b.ComputeDigest()
	// As of then: a time is clamped against the moment the event was received, and
	// what counts events by their receipt finds it where it belongs.
	received := time.UnixMicro(x.received)
	b.Resolve(received, rd.limits)
	e = &b.Events[0]
	e.TimeAdjusted = e.TimeAdjusted || adjusted
	if e.ClientID == "" {
		e.ID = x.own
	}
	return batch.Record{
		BatchID: x.identity, DedupID: x.identity, Digest: b.Digest, Project: x.project, Path: batch.Direct,
		Value: schema.AppendRecord(nil, &b, schema.Range{}), Events: 1, ReceivedAt: received,
	}
}
