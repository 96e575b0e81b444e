package schema

import (
	"math"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// protoFile compiles the published description of a record, so that the codec
// is held against it and not against itself.
func protoFile(t testing.TB) protoreflect.FileDescriptor {
	t.Helper()
	c := protocompile.Compiler{Resolver: &protocompile.SourceResolver{ImportPaths: []string{"../../proto"}}}
	files, err := c.Compile(t.Context(), "sluice/v1/batch.proto")
	require.NoError(t, err)
	return files[0]
}

// generic reads and writes messages through the generic implementation.
type generic struct{ file protoreflect.FileDescriptor }

func (g generic) message(name string) *dynamicpb.Message {
	return dynamicpb.NewMessage(g.file.Messages().ByName(protoreflect.Name(name)))
}

func set(m protoreflect.Message, name string, v any) {
	m.Set(m.Descriptor().Fields().ByName(protoreflect.Name(name)), protoreflect.ValueOf(v))
}

func get(m protoreflect.Message, name string) protoreflect.Value {
	return m.Get(m.Descriptor().Fields().ByName(protoreflect.Name(name)))
}

func has(m protoreflect.Message, name string) bool {
	return m.Has(m.Descriptor().Fields().ByName(protoreflect.Name(name)))
}

// write makes the generic message of a batch as a client or, with collector, as
// a collector would send it.
func (g generic) write(b *Batch, collector bool) *dynamicpb.Message {
	m := g.message("Batch")
	events := m.Mutable(m.Descriptor().Fields().ByName("events")).List()
	for i := range b.Events {
		e := &b.Events[i]
		x := events.AppendMutable().Message()
		set(x, "kind", protoreflect.EnumNumber(e.Kind))
		for _, f := range []struct{ name, value string }{
			{"experiment", e.Experiment}, {"variant", e.Variant}, {"unit_id", e.UnitID}, {"unit_type", e.UnitType},
			{"rule", e.Rule}, {"reason", e.Reason}, {"event_id", e.ClientID}, {"name", e.Name},
		} {
			set(x, f.name, f.value)
		}
		if e.HasTime {
			set(x, "time_us", e.Time)
		}
		if e.HasValue {
			set(x, "value", e.Value)
		}
		attributes := x.Mutable(x.Descriptor().Fields().ByName("attributes")).Map()
		for _, a := range e.Attributes {
			attributes.Set(protoreflect.ValueOf(a.Key).MapKey(), protoreflect.ValueOf(a.Value))
		}
		if collector {
			set(x, "index", e.Index)
			set(x, "id", e.ID[:])
			set(x, "time_adjusted", e.TimeAdjusted)
		}
	}
	if b.SDK != "" {
		sdk := m.Mutable(m.Descriptor().Fields().ByName("sdk")).Message()
		name, version := splitSDK(b.SDK)
		set(sdk, "name", name)
		set(sdk, "version", version)
	}
	set(m, "sent_at_us", b.SentAt)
	if !collector {
		return m
	}
	set(m, "batch_id", b.ID[:])
	set(m, "dedup_id", b.DedupID[:])
	set(m, "digest", b.Digest[:])
	set(m, "project", b.Project)
	set(m, "source", b.Source)
	set(m, "received_at_us", b.ReceivedAt)
	set(m, "count", b.Count)
	if b.Part {
		set(m, "first_index", b.First)
		set(m, "last_index", b.Last)
	}
	rejected := m.Mutable(m.Descriptor().Fields().ByName("rejected")).List()
	for _, r := range b.Rejected {
		x := rejected.AppendMutable().Message()
		set(x, "index", r.Index)
		set(x, "code", string(r.Code))
		set(x, "field", r.Field)
		set(x, "message", r.Message)
		set(x, "bytes", r.Bytes)
		set(x, "size", uint64(r.Size))
	}
	return m
}

func (g generic) marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	out, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	require.NoError(t, err)
	return out
}

// everything holds every field a client can send, in both kinds of event.
func everything() []Event {
	return []Event{
		{Kind: KindExposure, Experiment: "exp", Variant: "b", UnitID: "u-1", UnitType: "device", HasTime: true, Time: 1795503597123456,
			Rule: "r", Reason: "why", ClientID: "id-1", Attributes: []Attribute{{"", "empty"}, {"a", ""}, {"grüße", "世界"}}},
		{Kind: KindEvent, Index: 1, Name: "paid", UnitID: "u-2", HasValue: true, Value: -1.5, HasTime: true, Time: math.MinInt64},
		{Kind: KindEvent, Index: 2, Name: "paid", UnitID: "u-3", HasValue: true},
		{Kind: KindExposure, Index: 3, Experiment: "e", Variant: "v", UnitID: strings.Repeat("u", 300), HasTime: true},
		{Kind: KindExposure, Index: 4, Experiment: "e", Variant: "v", UnitID: "u"},
	}
}

func TestDecodeProto(t *testing.T) {
	g := generic{protoFile(t)}
	want := &Batch{Events: everything(), Count: 5, SDK: "sluice-go/1.0", SentAt: 1795503597000000}
	body := g.marshal(t, g.write(want, false))
	var b Batch
	require.NoError(t, DecodeProto(body, KindExposure, 5, &b))
	assert.Equal(t, *want, seen(&b))

	t.Run("what a collector sets is ignored", func(t *testing.T) {
		full := *want
		full.Count, full.Project, full.Part, full.First, full.Last = 77, "other", true, 3, 4
		full.Rejected = []Rejected{{Index: 9, Code: CodeMalformed}}
		full.Events = everything()
		for i := range full.Events {
			full.Events[i].Index, full.Events[i].TimeAdjusted, full.Events[i].ID = 40, true, [16]byte{1}
		}
		var b Batch
		require.NoError(t, DecodeProto(g.marshal(t, g.write(&full, true)), KindExposure, 5, &b))
		assert.Equal(t, *want, seen(&b))
	})
	t.Run("default kind", func(t *testing.T) {
		m := g.message("Batch")
		e := m.Mutable(m.Descriptor().Fields().ByName("events")).List().AppendMutable().Message()
		set(e, "name", "n")
		set(e, "unit_id", "u")
		var b Batch
		require.NoError(t, DecodeProto(g.marshal(t, m), KindEvent, 5, &b))
		assert.Equal(t, []Event{{Kind: KindEvent, Name: "n", UnitID: "u"}}, b.Events)
	})
}

// Fields of a request, written by hand.
func text(num protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, num, protowire.BytesType), s)
}
func number(num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), v)
}
func double(num protowire.Number, v float64) []byte {
	return protowire.AppendFixed64(protowire.AppendTag(nil, num, protowire.Fixed64Type), math.Float64bits(v))
}
func join(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func protoExposure(more ...[]byte) []byte {
	return join(append([][]byte{text(eventExperiment, "e"), text(eventVariant, "v"), text(eventUnitID, "u")}, more...)...)
}

func protoRejections() map[string]struct {
	event []byte
	code  Code
	field string
} {
	type r = struct {
		event []byte
		code  Code
		field string
	}
	var many []byte
	for i := range MaxAttributes + 1 {
		many = append(many, text(eventAttributes, string(join(text(1, string(rune('Ā'+i))), text(2, "v"))))...)
	}
	return map[string]r{
		"empty":                 {nil, CodeMissingField, "experiment"},
		"no unit":               {join(text(eventExperiment, "e"), text(eventVariant, "v")), CodeMissingField, "unit_id"},
		"empty unit":            {protoExposure(text(eventUnitID, "")), CodeMissingField, "unit_id"},
		"kind 3":                {protoExposure(number(eventKind, 3)), CodeInvalidKind, "kind"},
		"kind -1":               {protoExposure(number(eventKind, math.MaxUint64)), CodeInvalidKind, "kind"},
		"kind is text":          {protoExposure(text(eventKind, "exposure")), CodeInvalidType, "kind"},
		"experiment a number":   {protoExposure(number(eventExperiment, 1)), CodeInvalidType, "experiment"},
		"time a double":         {protoExposure(double(eventTime, 1)), CodeInvalidType, "time"},
		"value a varint":        {protoExposure(number(eventValue, 1)), CodeInvalidType, "value"},
		"attributes a number":   {protoExposure(number(eventAttributes, 1)), CodeInvalidType, "attributes"},
		"key a number":          {protoExposure(text(eventAttributes, string(number(1, 1)))), CodeInvalidType, "attributes"},
		"NaN":                   {protoExposure(double(eventValue, math.NaN())), CodeInvalidNumber, "value"},
		"Infinity":              {protoExposure(double(eventValue, math.Inf(-1))), CodeInvalidNumber, "value"},
		"no UTF-8":              {protoExposure(text(eventRule, "\xff")), CodeInvalidString, "rule"},
		"encoded surrogate":     {protoExposure(text(eventRule, "\xed\xa0\x80")), CodeInvalidString, "rule"},
		"NUL":                   {protoExposure(text(eventReason, "\x00")), CodeInvalidString, "reason"},
		"attribute, no UTF-8":   {protoExposure(text(eventAttributes, string(text(2, "\xff")))), CodeInvalidString, "attributes"},
		"attribute, NUL":        {protoExposure(text(eventAttributes, string(text(1, "\x00")))), CodeInvalidString, "attributes"},
		"too long":              {protoExposure(text(eventUnitType, strings.Repeat("x", MaxFieldBytes+1))), CodeTooLong, "unit_type"},
		"key too long":          {protoExposure(text(eventAttributes, string(text(1, strings.Repeat("x", MaxAttributeKey+1))))), CodeTooLong, "attributes"},
		"value too long":        {protoExposure(text(eventAttributes, string(text(2, strings.Repeat("x", MaxAttributeValue+1))))), CodeTooLong, "attributes"},
		"too many attributes":   {protoExposure(many), CodeTooMany, "attributes"},
		"cut short":             {protoExposure([]byte{0x0a, 5, 'x'}), CodeMalformed, ""},
		"lone tag":              {protoExposure([]byte{0x0a}), CodeMalformed, ""},
		"field 0":               {protoExposure([]byte{0x00, 0x00}), CodeMalformed, ""},
		"endless varint":        {protoExposure([]byte{0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}), CodeMalformed, ""},
		"wire type 7":           {protoExposure([]byte{0x0f, 0}), CodeMalformed, ""},
		"group that never ends": {protoExposure([]byte{0x0b}), CodeMalformed, ""},
		"end of no group":       {protoExposure([]byte{0x0c}), CodeMalformed, ""},
		"huge length":           {protoExposure([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}), CodeMalformed, ""},
		"broken attribute":      {protoExposure(text(eventAttributes, "\x0a\x05x")), CodeMalformed, ""},
	}
}

func TestDecodeProtoRejects(t *testing.T) {
	for name, tt := range protoRejections() {
		t.Run(name, func(t *testing.T) {
			good := text(batchEvents, string(protoExposure()))
			var b Batch
			require.NoError(t, DecodeProto(join(good, text(batchEvents, string(tt.event)), good), KindExposure, 3, &b))
			require.Len(t, b.Events, 2)
			assert.Equal(t, uint32(2), b.Events[1].Index)
			assert.Equal(t, "u", b.Events[1].UnitID)
			require.Len(t, b.Rejected, 1)
			assertRejected(t, b.Rejected[0], tt.code, tt.field, string(tt.event))
		})
	}
}

func TestDecodeProtoTakesWhatProtobufTakes(t *testing.T) {
	for name, tt := range map[string]struct {
		event []byte
		want  Event
	}{
		"last value counts": {protoExposure(text(eventUnitID, "u2"), number(eventTime, 1), number(eventTime, 2)),
			Event{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u2", HasTime: true, Time: 2}},
		"unknown fields": {protoExposure(text(100, "x"), number(101, 1), double(102, 1), []byte{0xbb, 0x06, 0x08, 0x01, 0xbc, 0x06}),
			Event{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u"}},
		"last entry counts": {protoExposure(text(eventAttributes, string(join(text(1, "k"), text(2, "1")))), text(eventAttributes, string(text(1, "a"))),
			text(eventAttributes, string(join(text(2, "2"), text(1, "k"), text(3, "?"))))),
			Event{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u", Attributes: []Attribute{{"a", ""}, {"k", "2"}}}},
		"long tag and length": {protoExposure([]byte{0xba, 0x80, 0x00, 0x81, 0x00, 'r'}),
			Event{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u", Rule: "r"}},
		"default kind explicitly": {protoExposure(number(eventKind, 2), number(eventKind, 0)),
			Event{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u"}},
	} {
		t.Run(name, func(t *testing.T) {
			var b Batch
			require.NoError(t, DecodeProto(text(batchEvents, string(tt.event)), KindExposure, 3, &b))
			assert.Empty(t, b.Rejected)
			require.Len(t, b.Events, 1)
			assert.Equal(t, tt.want, b.Events[0])
		})
	}
}

func TestDecodeProtoBodyErrors(t *testing.T) {
	e := text(batchEvents, string(protoExposure()))
	for name, tt := range map[string]struct {
		body []byte
		code string
	}{
		"empty":           {nil, BodyEmpty},
		"no event":        {text(batchSDK, string(text(sdkName, "n"))), BodyEmpty},
		"cut short":       {e[:len(e)-1], BodyMalformed},
		"JSON":            {[]byte(`[` + good + `]`), BodyMalformed},
		"events a number": {number(batchEvents, 1), BodyMalformed},
		"sdk broken":      {join(e, text(batchSDK, "\x0a\x05x")), BodyMalformed},
		"sent_at text":    {join(e, text(batchSentAt, "x")), BodyMalformed},
		"garbage after":   {join(e, []byte{0xff}), BodyMalformed},
		"too many":        {join(e, e, e, e), BodyTooManyEvents},
	} {
		t.Run(name, func(t *testing.T) {
			err := DecodeProto(tt.body, KindExposure, 3, new(Batch))
			var be *BodyError
			require.ErrorAs(t, err, &be)
			assert.Equal(t, tt.code, be.Code, be.Detail)
		})
	}
}

func TestDecodeProtoSDK(t *testing.T) {
	e := text(batchEvents, string(protoExposure()))
	for want, sdk := range map[string][]byte{
		"n/1": join(text(sdkName, "n"), text(sdkVersion, "1")), "n": text(sdkName, "n"), "/1": text(sdkVersion, "1"), "": text(sdkName, "\xff"),
	} {
		var b Batch
		require.NoError(t, DecodeProto(join(e, text(batchSDK, string(sdk)), number(batchSentAt, math.MaxUint64)), KindExposure, 3, &b))
		assert.Equal(t, want, b.SDK)
		assert.Zero(t, b.SentAt, "a negative clock is none")
	}
}

func FuzzDecodeProto(f *testing.F) {
	for _, r := range protoRejections() {
		if len(r.event) < 1000 {
			f.Add(join(text(batchEvents, string(protoExposure())), text(batchEvents, string(r.event))))
		}
	}
	g := generic{protoFile(f)}
	f.Add(g.marshal(f, g.write(&Batch{Events: everything(), SDK: "a/b", SentAt: 5}, false)))
	f.Fuzz(func(t *testing.T, body []byte) {
		var b Batch
		err := DecodeProto(body, KindExposure, 20, &b)
		checkDecoded(t, &b, err)
		if err != nil || len(b.Rejected) > 0 {
			return
		}
		// What passes is what the generic implementation reads, too.
		m := g.message("Batch")
		if proto.Unmarshal(body, m) != nil {
			return // it is stricter about what is ignored here
		}
		events := get(m, "events").List()
		require.Equal(t, events.Len(), len(b.Events))
		for i := range b.Events {
			sameEvent(t, &b.Events[i], events.Get(i).Message(), KindExposure)
		}
	})
}

// sameEvent compares what a client sends.
func sameEvent(t *testing.T, e *Event, m protoreflect.Message, def Kind) {
	t.Helper()
	kind := Kind(get(m, "kind").Enum())
	if kind == KindUnspecified {
		kind = def
	}
	require.Equal(t, kind, e.Kind)
	for name, v := range map[string]string{
		"experiment": e.Experiment, "variant": e.Variant, "unit_id": e.UnitID, "unit_type": e.UnitType,
		"rule": e.Rule, "reason": e.Reason, "event_id": e.ClientID, "name": e.Name,
	} {
		require.Equal(t, get(m, name).String(), v, name)
	}
	require.Equal(t, has(m, "time_us"), e.HasTime)
	if e.HasTime {
		require.Equal(t, get(m, "time_us").Int(), e.Time)
	}
	require.Equal(t, has(m, "value"), e.HasValue)
	require.Equal(t, get(m, "value").Float(), e.Value)
	attributes := get(m, "attributes").Map()
	require.Equal(t, attributes.Len(), len(e.Attributes))
	for _, a := range e.Attributes {
		require.Equal(t, attributes.Get(protoreflect.ValueOf(a.Key).MapKey()).String(), a.Value)
	}
}
