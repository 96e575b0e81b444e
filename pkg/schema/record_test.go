package schema

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"sluice/pkg/batch"
)

// full is a resolved batch with everything in it.
func full() *Batch {
	b := &Batch{Events: everything(), Count: 8, SDK: "@org/js/1.2", Source: "native", SentAt: 1795503597000000, Project: "grüße",
		ID: batch.ForKey("p", "k"), Digest: batch.Digest{1, 2, 3},
		Rejected: []Rejected{
			{Index: 5, Code: CodeMissingField, Field: "unit_id", Message: "unit_id is missing or empty", Bytes: []byte(`{"a":"` + "\xff" + `"}`), Size: 9},
			{Index: 6, Code: CodeMalformed, Message: "m", Size: 100_000, Bytes: []byte(strings.Repeat("x", MaxRejectedBytes))},
			{Index: 7, Code: CodeInvalidType},
		}}
	b.Resolve(time.Date(2026, 11, 24, 7, 0, 0, 0, time.UTC), limits)
	b.DedupID = b.ID
	return b
}

// part is what a record of r has of b.
func part(b *Batch, r Range) Batch {
	out := seen(b)
	out.DedupID = b.DedupFor(r)
	if r != b.whole() {
		out.Part, out.First, out.Last = true, r.First, r.Last
	}
	out.Events, out.Rejected = nil, nil
	for _, e := range b.Events {
		if r.holds(e.Index) {
			out.Events = append(out.Events, e)
		}
	}
	for _, x := range b.Rejected {
		if r.holds(x.Index) {
			out.Rejected = append(out.Rejected, x)
		}
	}
	return out
}

// recordSize is what AppendRecord makes room for, and what it is then to append.
func recordSize(b *Batch, r Range) int {
	h := header{b: b, r: r, part: r != b.whole(), dedup: b.DedupFor(r)}
	h.name, h.version = splitSDK(tidy(b.SDK, MaxSDKBytes))
	return h.size() + b.contentSize(r)
}

func TestRecordRoundTrip(t *testing.T) {
	g := generic{protoFile(t)}
	for name, b := range map[string]*Batch{
		"everything":   full(),
		"least":        {Count: 1, Events: []Event{{Kind: KindEvent, Name: "n", UnitID: "u", UnitType: "user", ID: batch.EventID(batch.ID{}, 0)}}},
		"only bad":     {Count: 1, Rejected: []Rejected{{Code: CodeInvalidType, Bytes: []byte("1"), Size: 1}}},
		"largest ints": {Count: math.MaxUint32, SentAt: math.MinInt64, ReceivedAt: math.MinInt64, Events: []Event{{Kind: KindEvent, UnitType: "user", Index: math.MaxUint32 - 1, Time: math.MaxInt64, HasTime: true, TimeAdjusted: true, Name: "nnnn", ID: batch.ID{1}}}},
	} {
		for _, r := range []Range{b.whole(), {0, 0}, {0, 3}, {1, 2}, {4, 6}, {5, 7}, {b.Count - 1, b.Count - 1}} {
			if r.Last >= b.Count {
				continue
			}
			t.Run(fmt.Sprintf("%s, %d to %d", name, r.First, r.Last), func(t *testing.T) {
				want := part(b, r)
				value := AppendRecord([]byte("before"), b, r)[len("before"):]
				assert.Equal(t, recordSize(b, r), len(value))
				assert.Equal(t, value, AppendRecord(nil, b, r), "the same bytes every time")

				var got Batch
				require.NoError(t, DecodeRecord(value, &got))
				assert.Equal(t, want, seen(&got))
				assert.Equal(t, value, AppendRecordAs(nil, &got, r, got.DedupID), "and back")

				// The generic implementation reads our bytes …
				m := g.message("Batch")
				require.NoError(t, proto.Unmarshal(value, m))
				assert.Empty(t, m.GetUnknown())
				assert.Equal(t, b.DedupFor(r), batch.ID(get(m, "dedup_id").Bytes()))
				assert.Equal(t, want.Part, has(m, "first_index"))
				assert.Equal(t, want.Part, has(m, "last_index"))
				// … as what it would have written, with the times and ids we leave out.
				again := g.message("Batch")
				generic := g.write(&want, true)
				require.NoError(t, proto.Unmarshal(g.marshal(t, generic), again))
				fillIn(t, m, b)
				assert.True(t, proto.Equal(again, m) || sameText(again, m), "ours %v\ntheirs %v", m, again)

				// We read its bytes.
				var theirs Batch
				require.NoError(t, DecodeRecord(g.marshal(t, again), &theirs))
				for i := range theirs.Events { // it wrote the times that were not sent
					if !want.Events[i].HasTime {
						assert.Equal(t, want.ReceivedAt, theirs.Events[i].Time)
						theirs.Events[i].HasTime = false
					}
				}
				assert.Equal(t, want, seen(&theirs))
			})
		}
	}
}

// fillIn does for a message what batch.proto says about absent fields.
func fillIn(t *testing.T, m interface{ proto.Message }, b *Batch) {
	t.Helper()
	events := get(m.ProtoReflect(), "events").List()
	for i := range events.Len() {
		e := events.Get(i).Message()
		if !has(e, "id") {
			id := batch.EventID(b.ID, uint32(get(e, "index").Uint()))
			set(e, "id", id[:])
		}
	}
}

// sameText compares two messages after a round through the generic encoding,
// which levels the difference between absent and empty.
func sameText(a, b proto.Message) bool {
	o := proto.MarshalOptions{Deterministic: true}
	x, errX := o.Marshal(a)
	y, errY := o.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

func TestRecordLeavesDerivedIDsOut(t *testing.T) {
	b := full()
	with := AppendRecord(nil, b, Range{0, 0})
	assert.Contains(t, string(with), string(b.Events[0].ID[:]), "a client's own id is kept")
	without := AppendRecord(nil, b, Range{1, 1})
	assert.NotContains(t, string(without), string(b.Events[1].ID[:]))
}

func TestRecordKeepsTextWithinBounds(t *testing.T) {
	b := &Batch{Count: 1, SDK: strings.Repeat("é", 200) + "/1", ID: batch.ForKey("p", "k"),
		Rejected: []Rejected{{Code: Code(strings.Repeat("c", 100)), Field: strings.Repeat("f", 100), Message: "x" + strings.Repeat("é", 200)}}}
	var got Batch
	value := AppendRecord(nil, b, b.whole())
	require.NoError(t, DecodeRecord(value, &got))
	assert.Equal(t, strings.Repeat("é", 128), got.SDK)
	assert.Equal(t, strings.Repeat("c", 32), string(got.Rejected[0].Code))
	assert.Equal(t, strings.Repeat("f", 64), got.Rejected[0].Field)
	assert.Equal(t, "x"+strings.Repeat("é", 127), got.Rejected[0].Message)

	b.SDK = "a\xffb\x00c/1"
	require.NoError(t, DecodeRecord(AppendRecord(nil, b, b.whole()), &got))
	assert.Equal(t, "a\ufffdb\ufffdc/1", got.SDK)
	require.NoError(t, proto.Unmarshal(AppendRecord(nil, b, b.whole()), generic{protoFile(t)}.message("Batch")))
}

func TestRecordForReplay(t *testing.T) {
	b := full()
	id := batch.ReplayID(b.ID, 2)
	var got Batch
	require.NoError(t, DecodeRecord(AppendRecordAs(nil, b, Range{2, 2}, id), &got))
	assert.Equal(t, id, got.DedupID)
	assert.Len(t, got.Events, 1)
}

func TestDecodeRecordRefuses(t *testing.T) {
	event := func(parts ...[]byte) []byte { return text(batchEvents, string(join(parts...))) }
	bytes16 := strings.Repeat("x", 16)
	head := func(count uint64) []byte {
		return join(text(batchID, bytes16), text(batchDedupID, bytes16), text(batchDigest, bytes16), number(batchCount, count))
	}
	ok := event(number(eventKind, 1), text(eventExperiment, "e"), text(eventVariant, "v"), text(eventUnitID, "u"))
	bad := text(batchRejected, string(join(number(rejectedIndex, 1), text(rejectedCode, "malformed"))))
	require.NoError(t, DecodeRecord(join(ok, head(2), bad), new(Batch)), "what the cases start from")

	good := AppendRecord(nil, full(), full().whole())
	for name, value := range map[string][]byte{
		"empty":              nil,
		"JSON":               []byte(`{"events":[]}`),
		"text":               []byte("hello, world, this is no record"),
		"no batch_id":        join(ok, text(batchDedupID, bytes16), text(batchDigest, bytes16), number(batchCount, 1)),
		"no dedup_id":        join(ok, text(batchID, bytes16), text(batchDigest, bytes16), number(batchCount, 1)),
		"no digest":          join(ok, text(batchID, bytes16), text(batchDedupID, bytes16), number(batchCount, 1)),
		"short batch_id":     join(ok, head(1), text(batchID, "x")),
		"long dedup_id":      join(ok, head(1), text(batchDedupID, bytes16+"x")),
		"no count":           join(ok, text(batchID, bytes16), text(batchDedupID, bytes16), text(batchDigest, bytes16)),
		"count too low":      join(ok, head(1), bad),
		"count too high":     join(ok, head(1<<32)),
		"count is text":      join(ok, head(1), text(batchCount, "x")),
		"index over count":   join(event(number(eventKind, 1), text(eventUnitID, "uuuu"), number(eventIndex, 1)), head(1)),
		"rejected too":       join(head(1), bad),
		"index too large":    join(event(number(eventKind, 1), number(eventIndex, 1<<40)), head(1)),
		"no kind":            join(event(text(eventExperiment, "e"), text(eventVariant, "v"), text(eventUnitID, "u")), head(1)),
		"kind 3":             join(event(number(eventKind, 3), text(eventUnitID, "u")), head(1)),
		"kind 257":           join(event(number(eventKind, 257), text(eventUnitID, "u")), head(1)),
		"id of 15 bytes":     join(event(number(eventKind, 1), text(eventID, bytes16[1:])), head(1)),
		"first only":         join(ok, head(2), number(batchFirst, 0)),
		"last only":          join(ok, head(2), number(batchLast, 1)),
		"first after last":   join(head(5), number(batchFirst, 3), number(batchLast, 2)),
		"last over count":    join(ok, head(2), number(batchFirst, 0), number(batchLast, 2)),
		"outside the part":   join(ok, head(3), number(batchFirst, 1), number(batchLast, 2)),
		"rejected outside":   join(head(3), bad, number(batchFirst, 2), number(batchLast, 2)),
		"events, no content": join([]byte(strings.Repeat("\x0a\x00", 1000)), head(1000)),
		"bad, no content":    join([]byte(strings.Repeat("\xca\x01\x00", 1000)), head(1000)),
		"event is a number":  join(number(batchEvents, 1), head(1)),
		"sdk broken":         join(ok, head(1), text(batchSDK, "\x0a\x05x")),
		"attribute broken":   join(event(number(eventKind, 1), text(eventAttributes, "\x0a\x05x")), head(1)),
		"size too large":     join(head(2), text(batchRejected, string(join(text(rejectedCode, "malformed"), number(rejectedSize, math.MaxUint64))))),
		"wrong wire type":    join(ok, head(1), number(batchProject, 1)),
		"huge length":        join(ok, head(1), []byte{0x9a, 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}),
		"one byte short":     good[:len(good)-1],
		"garbage after":      join(good, []byte{0xff}),
		"group never ends":   join(good, []byte{0xbb, 0x06}),
	} {
		t.Run(name, func(t *testing.T) {
			assert.Error(t, DecodeRecord(value, new(Batch)))
		})
	}
}

func TestDecodeRecordSkipsWhatIsNew(t *testing.T) {
	b := full()
	value := AppendRecord(nil, b, b.whole())
	value = join(text(900, "later"), value, number(901, 7), double(902, 1), []byte{0xbb, 0x06, 0x08, 0x01, 0xbc, 0x06})
	var got Batch
	require.NoError(t, DecodeRecord(value, &got))
	assert.Equal(t, part(b, b.whole()), seen(&got))
}

// A damaged length in front must not make the reader allocate.
func TestDecodeRecordIsBounded(t *testing.T) {
	value := join([]byte(strings.Repeat("\x0a\x00", 1<<20)), protowire.AppendVarint(protowire.AppendTag(nil, batchCount, protowire.VarintType), math.MaxUint32))
	n := testing.AllocsPerRun(1, func() {
		var b Batch
		if DecodeRecord(value, &b) == nil || cap(b.Events) > 0 {
			t.Fail()
		}
	})
	assert.Less(t, n, 20.0)
}

func FuzzDecodeRecord(f *testing.F) {
	b := full()
	b.Rejected[1].Bytes = []byte("short")
	for _, r := range []Range{b.whole(), {0, 2}, {3, 5}, {6, 7}} {
		f.Add(AppendRecord(nil, b, r))
	}
	g := generic{protoFile(f)}
	f.Add(g.marshal(f, g.write(b, true)))
	f.Fuzz(func(t *testing.T, value []byte) {
		var b Batch
		if DecodeRecord(value, &b) != nil {
			return
		}
		require.LessOrEqual(t, len(b.Events)+len(b.Rejected), int(b.Count))
		// What can be decoded has a head, which says the same.
		h, err := ReadHead(value)
		require.NoError(t, err)
		require.Equal(t, Head{b.Source, len(b.Events), len(b.Rejected), b.Part, b.First, b.Last}, h)
		r := b.whole()
		if b.Part {
			r = Range{b.First, b.Last}
		}
		if b.Count == 0 {
			return
		}
		first := AppendRecordAs(nil, &b, r, b.DedupID)
		var again Batch
		require.NoError(t, DecodeRecord(first, &again))
		require.Equal(t, len(b.Events), len(again.Events))
		require.Equal(t, len(b.Rejected), len(again.Rejected))
		require.Equal(t, string(first), string(AppendRecordAs(nil, &again, r, again.DedupID)))
	})
}

// The length in front of an event is as short as it can be, whatever it is.
func TestEventLengths(t *testing.T) {
	for n := range 300 {
		checkEventLength(t, n)
	}
	for n := 1<<14 - 100; n < 1<<14+100; n++ {
		checkEventLength(t, n)
	}
	checkEventLength(t, 1<<21)
}

func checkEventLength(t *testing.T, n int) {
	b := &Batch{Count: 1, ReceivedAt: 5}
	e := &Event{Kind: KindEvent, Time: 5, UnitID: strings.Repeat("u", n), ID: batch.EventID(batch.ID{}, 0)}
	want := b.appendEvent(appendMessageTag([]byte("before"), batchEvents, b.eventSize(e)), e)
	require.Equal(t, want, b.appendEventMessage([]byte("before"), e), n)
}
