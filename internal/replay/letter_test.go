package replay

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

var received = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// collectorLetter is a dead letter as the sink files what a collector rejected.
func collectorLetter(reason, field, raw string) schema.DeadLetter {
	id := batch.ForKey("p", "k")
	return schema.DeadLetter{ID: batch.DeadLetterID(id, batch.Digest{1}, 3, schema.StageCollector), Project: "p", BatchID: id, Index: 3,
		Stage: schema.StageCollector, Reason: reason, Field: field, Bytes: []byte(raw), Size: len(raw), Source: "native", ReceivedAt: received.UnixMicro()}
}

func testReader(t testing.TB, set ...string) *reader {
	return &reader{fixes: fixes(t, set...), recordMax: 64 << 10, limits: schema.Limits{Past: time.Hour, Future: time.Hour},
		protocols: map[string]Protocol{"other": {
			Places: map[string]string{"unit_id": "who.id"},
			Decode: func(raw []byte, b *schema.Batch) error {
				_, has := member(raw, "who")
				if strings.Contains(string(raw), "broken") {
					return errors.New("broken")
				}
				e := b.Append()
				*e = schema.Event{Kind: schema.KindExposure, Experiment: "e", Variant: "v"}
				if has {
					e.UnitID = string(raw)
				}
				b.Check(raw)
				return nil
			}}}}
}

// one reads a letter with one event and makes its record.
func one(t *testing.T, rd *reader, l schema.DeadLetter) (*lost, batch.Record, schema.Batch) {
	t.Helper()
	list := rd.read(&l)
	require.Len(t, list, 1)
	var r batch.Record
	var b schema.Batch
	if list[0].problem == "" {
		if r = rd.record(list[0]); list[0].problem == "" {
			require.NoError(t, schema.DecodeRecord(r.Value, &b))
		}
	}
	return list[0], r, b
}

func TestRecordOfAReplayedEvent(t *testing.T) {
	l := collectorLetter("missing_field", "unit_id", `{"experiment":"e","variant":"v","time":1000,"attributes":{"n":7,"b":true}}`)
	_, r, b := one(t, testReader(t, "unit_id=u"), l)
	want := batch.ReplayID(l.BatchID, 3)
	assert.Equal(t, want, r.BatchID)
	assert.Equal(t, want, r.DedupID)
	assert.Equal(t, []batch.ID{want, want}, []batch.ID{b.ID, b.DedupID})
	assert.Equal(t, r.Digest, b.Digest)
	assert.Zero(t, r.Collector)
	assert.Zero(t, r.Epoch)
	assert.Zero(t, r.Seq)
	assert.Equal(t, batch.Direct, r.Path)
	assert.True(t, received.Equal(r.ReceivedAt))
	assert.Equal(t, received.UnixMicro(), b.ReceivedAt)
	assert.Equal(t, []string{"p", "native", replaySDK}, []string{b.Project, b.Source, b.SDK})
	require.Len(t, b.Events, 1)
	assert.False(t, b.Part)
	e := b.Events[0]
	assert.Equal(t, batch.EventID(l.BatchID, 3), e.ID, "as if it had passed")
	assert.Equal(t, received.Add(-time.Hour).UnixMicro(), e.Time, "clamped against its receipt")
	assert.True(t, e.TimeAdjusted)
	assert.Equal(t, []schema.Attribute{{Key: "b", Value: "true"}, {Key: "n", Value: "7"}}, e.Attributes)

	// The same again is the same; with another repair it is not.
	_, again, _ := one(t, testReader(t, "unit_id=u"), l)
	assert.Equal(t, r, again)
	_, other, _ := one(t, testReader(t, "unit_id=w"), l)
	assert.Equal(t, r.DedupID, other.DedupID)
	assert.NotEqual(t, r.Digest, other.Digest)
}

func TestReadLetters(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for name, tt := range map[string]struct {
		letter  schema.DeadLetter
		set     []string
		problem string // or, where there is none:
		check   func(e schema.Event) bool
	}{
		"not mended":                  {collectorLetter("missing_field", "unit_id", `{"experiment":"e","variant":"v"}`), nil, "missing_field", nil},
		"mended in part":              {collectorLetter("missing_field", "experiment", `{}`), []string{"experiment=e"}, "missing_field", nil},
		"valid by itself now":         {collectorLetter("too_long", "rule", `{"experiment":"e","variant":"v","unit_id":"u"}`), nil, "", func(e schema.Event) bool { return e.UnitID == "u" }},
		"an exposure, it seems":       {collectorLetter("invalid_type", "unit_id", `{"experiment":"e","variant":"v","name":"n","unit_id":7}`), []string{"unit_id=7"}, "", func(e schema.Event) bool { return e.Kind == schema.KindExposure }},
		"a custom event, it seems":    {collectorLetter("invalid_type", "unit_id", `{"name":"n","unit_id":7}`), []string{"unit_id=7"}, "", func(e schema.Event) bool { return e.Kind == schema.KindEvent && e.UnitID == "7" }},
		"a custom event, as was said": {collectorLetter("missing_field", "name", `{"unit_id":"u","experiment":"e"}`), []string{"name=n"}, "", func(e schema.Event) bool { return e.Kind == schema.KindEvent }},
		"of the kind it says":         {collectorLetter("missing_field", "unit_id", `{"kind":"event","name":"n","experiment":"e"}`), []string{"unit_id=u"}, "", func(e schema.Event) bool { return e.Kind == schema.KindEvent }},
		"of the kind that is set":     {collectorLetter("invalid_kind", "kind", `{"kind":"x","name":"n","unit_id":"u"}`), []string{"kind=event"}, "", func(e schema.Event) bool { return e.Kind == schema.KindEvent }},
		"duplicate field":             {collectorLetter("duplicate_field", "variant", `{"experiment":"e","variant":"v","variant":"w","unit_id":"u"}`), []string{"variant=v"}, "", func(e schema.Event) bool { return e.Variant == "v" }},
		"bad text":                    {collectorLetter("invalid_string", "variant", "{\"experiment\":\"e\",\"variant\":\"\xff\",\"unit_id\":\"u\"}"), []string{"variant=v"}, "", func(e schema.Event) bool { return e.Variant == "v" }},
		"no object":                   {collectorLetter("invalid_type", "", `7`), nil, "invalid_type", nil},
		"no object, repaired":         {collectorLetter("invalid_type", "", `7`), []string{"unit_id=u"}, problemUnreadable, nil},
		"not JSON":                    {collectorLetter("malformed", "", `{"a":`), nil, problemUnreadable, nil},
		"two":                         {collectorLetter("malformed", "", `{"experiment":"e","variant":"v","unit_id":"u"},{"experiment":"e","variant":"v","unit_id":"u"}`), nil, problemUnreadable, nil},
		"nothing":                     {collectorLetter("malformed", "", ``), nil, "missing_field", nil},
		"protobuf":                    {collectorLetter("missing_field", "unit_id", string(protoEvent(2, "e", 3, "v"))), []string{"unit_id=u"}, "", func(e schema.Event) bool { return e.UnitID == "u" && e.Experiment == "e" }},
		"protobuf, a custom event":    {collectorLetter("missing_field", "unit_id", string(protoEvent(11, "n"))), []string{"unit_id=u"}, "", func(e schema.Event) bool { return e.Kind == schema.KindEvent }},
		"too large":                   {collectorLetter("too_large", "", `{"kind":"exposure","experiment":"e","variant":"v","unit_id":"u","attributes":{"a":"`+long+`"}}`), nil, "", func(e schema.Event) bool { return len(e.Attributes[0].Value) == 5000 }},
		"too large still":             {collectorLetter("too_large", "", `{"kind":"exposure","experiment":"e","variant":"v","unit_id":"u","attributes":{"a":"`+strings.Repeat(long, 13)+`","b":"`+long+`"}}`), nil, "too_large", nil},
		"too large, and cut":          {collectorLetter("too_large", "", `{"kind":"exposure","experiment":"e","variant":"v","unit_id":"u","attr`), nil, problemCut, nil},
		"unknown source":              {func() schema.DeadLetter { l := collectorLetter("missing_field", "", `{}`); l.Source = "x"; return l }(), nil, problemSource, nil},
		"another protocol, not mended": {func() schema.DeadLetter {
			l := collectorLetter("missing_field", "unit_id", `{}`)
			l.Source = "other"
			return l
		}(), nil, "missing_field", nil},
		"another protocol, broken": {func() schema.DeadLetter {
			l := collectorLetter("missing_field", "unit_id", `{"broken":1}`)
			l.Source = "other"
			return l
		}(), nil, problemUnreadable, nil},
		"another protocol, by place": {func() schema.DeadLetter {
			l := collectorLetter("missing_field", "unit_id", `{}`)
			l.Source = "other"
			return l
		}(), []string{"body.who=u", "rule=r"}, "", func(e schema.Event) bool { return e.UnitID == `{"who":"u"}` && e.Rule == "r" }},
		"another protocol, by field": {func() schema.DeadLetter {
			l := collectorLetter("missing_field", "unit_id", `{}`)
			l.Source = "other"
			return l
		}(), []string{"unit_id=u"}, "", func(e schema.Event) bool { return e.UnitID == "u" }},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.letter.Reason == "too_large" {
				tt.letter.Size = 2 << 20 // what it might take in a record
			}
			x, _, b := one(t, testReader(t, tt.set...), tt.letter)
			assert.Equal(t, tt.problem, x.problem, x.detail)
			if tt.problem != "" {
				assert.NotEmpty(t, x.detail)
				return
			}
			require.Len(t, b.Events, 1)
			assert.True(t, tt.check(b.Events[0]), "%+v", b.Events[0])
		})
	}
	// The beginning of a protobuf message may well be a message.
	cut := collectorLetter("too_long", "rule", string(protoEvent(2, "e", 3, "v", 4, "u")))
	cut.Size++
	x, _, _ := one(t, testReader(t), cut)
	assert.Equal(t, problemCut, x.problem)
}

// A conflict, and what ClickHouse refused, are kept in the native API's JSON, with an
// event id that may be the pipeline's own.
func TestEventIDs(t *testing.T) {
	id := batch.ForKey("p", "k")
	letter := func(stage, reason, client string) schema.DeadLetter {
		e := schema.Event{Kind: schema.KindExposure, Experiment: "e", Variant: "v", UnitID: "u", UnitType: "user", Time: received.UnixMicro(),
			ClientID: client, ID: batch.EventID(id, 3)}
		if client != "" {
			e.ID = batch.ClientEventID("p", client)
		}
		l := collectorLetter(reason, "", string(schema.AppendEventJSON(nil, &e)))
		l.Stage, l.ID, l.Source = stage, batch.DeadLetterID(id, batch.Digest{2}, 3, stage), "other"
		return l
	}
	for name, tt := range map[string]struct {
		letter          schema.DeadLetter
		identity, event batch.ID
	}{
		"conflict": {letter(schema.StageConflict, reasonKeyReused, ""),
			batch.ReplayID(batch.DeadLetterID(id, batch.Digest{2}, 3, schema.StageConflict), 3),
			batch.EventID(batch.ReplayID(batch.DeadLetterID(id, batch.Digest{2}, 3, schema.StageConflict), 3), 0)},
		"conflict, its own id": {letter(schema.StageConflict, reasonKeyReused, "mine"),
			batch.ReplayID(batch.DeadLetterID(id, batch.Digest{2}, 3, schema.StageConflict), 3), batch.ClientEventID("p", "mine")},
		"refused":             {letter(schema.StageSink, reasonRefused, ""), batch.ReplayID(id, 3), batch.EventID(id, 3)},
		"refused, its own id": {letter(schema.StageSink, reasonRefused, "mine"), batch.ReplayID(id, 3), batch.ClientEventID("p", "mine")},
	} {
		t.Run(name, func(t *testing.T) {
			x, r, b := one(t, testReader(t), tt.letter)
			require.Empty(t, x.problem, x.detail)
			assert.Equal(t, tt.identity, r.DedupID)
			assert.Equal(t, tt.event, b.Events[0].ID)
			assert.Equal(t, received.UnixMicro(), b.Events[0].Time)
		})
	}
}

func TestReadRecord(t *testing.T) {
	b := schema.Batch{Project: "q", Source: "native", SDK: "go/1", ID: batch.ForKey("q", "k")}
	require.NoError(t, schema.DecodeJSON([]byte(`[{"experiment":"e","variant":"v","unit_id":"u","time":5},{"kind":"event","name":"n","unit_id":"u","event_id":"x"},{"variant":"v"}]`), schema.KindExposure, 9, &b))
	b.ComputeDigest()
	b.Resolve(received, schema.Limits{Past: time.Hour, Future: time.Hour})
	value := schema.AppendRecord(nil, &b, schema.Range{First: 0, Last: 2})
	l := schema.DeadLetter{Stage: schema.StageSink, Reason: reasonUndecodable, Bytes: value, Size: len(value), ReceivedAt: received.Add(time.Minute).UnixMicro()}

	rd := testReader(t, "experiment=f", "unit_id=w")
	list := rd.read(&l)
	require.Len(t, list, 3)
	for i, x := range list {
		r := rd.record(x)
		require.Empty(t, x.problem)
		var got schema.Batch
		require.NoError(t, schema.DecodeRecord(r.Value, &got))
		assert.Equal(t, batch.ReplayID(b.ID, uint32(i)), r.BatchID)
		assert.Equal(t, []string{"q", "go/1"}, []string{got.Project, got.SDK})
		assert.Equal(t, received.UnixMicro(), got.ReceivedAt, "by the record, not by who set it aside")
		assert.Equal(t, "w", got.Events[0].UnitID)
		assert.True(t, x.record)
	}
	assert.Equal(t, batch.EventID(b.ID, 0), list[0].own)
	assert.Equal(t, "e", list[0].experiment, "as it was")

	rd = testReader(t)
	var first schema.Batch
	list = rd.read(&l)
	require.NoError(t, schema.DecodeRecord(rd.record(list[0]).Value, &first))
	assert.True(t, first.Events[0].TimeAdjusted, "still")
	assert.Equal(t, b.Events[0].Time, first.Events[0].Time)
	assert.Equal(t, "missing_field", list[2].problem)

	b.Events[0].Rule = "\xff"
	l.Bytes = schema.AppendRecord(nil, &b, schema.Range{First: 0, Last: 2})
	list = rd.read(&l)
	rd.record(list[0])
	assert.Equal(t, "invalid_string", list[0].problem)
	rd = testReader(t, "rule=r")
	list = rd.read(&l)
	rd.record(list[0])
	assert.Empty(t, list[0].problem)

	l.Bytes = []byte("{}")
	list = rd.read(&l)
	require.Len(t, list, 1)
	assert.Equal(t, problemUnreadable, list[0].problem)
}

func FuzzReadLetter(f *testing.F) {
	f.Add([]byte(`{"experiment":"e"}`), "missing_field", "unit_id", "native", "collector")
	f.Add(protoEvent(2, "e", 4, "u"), "missing_field", "variant", "native", "collector")
	f.Add([]byte{0x0a, 0}, reasonUndecodable, "", "", "sink")
	f.Fuzz(func(t *testing.T, raw []byte, reason, field, source, stage string) {
		rd := testReader(t, "unit_id=u", "attributes.a=b")
		l := schema.DeadLetter{Stage: stage, Reason: reason, Field: field, Source: source, Bytes: raw, Size: len(raw), ReceivedAt: received.UnixMicro()}
		for _, x := range rd.read(&l) {
			if x.problem != "" {
				continue
			}
			r := rd.record(x)
			if x.problem == "" {
				var b schema.Batch
				require.NoError(t, schema.DecodeRecord(r.Value, &b))
				require.Len(t, b.Events, 1)
			}
		}
	})
}
