package schema

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

// sized is a batch of n events of the sizes given, in turn; 0 is a rejected one.
func sized(n int, sizes ...int) *Batch {
	b := &Batch{Project: "p", ID: batch.ForKey("p", fmt.Sprint(n, sizes)), SDK: "sdk/1", Source: "native"}
	for i := range n {
		e := b.Append()
		s := sizes[i%len(sizes)]
		if s == 0 {
			b.Reject(CodeMissingField, "unit_id", "unit_id is missing or empty", []byte(`{"experiment":"e"}`))
			continue
		}
		*e = Event{Kind: KindExposure, Index: e.Index, Experiment: "e", Variant: "v", UnitID: fmt.Sprint("u", i),
			Attributes: []Attribute{{"a", strings.Repeat("x", s)}}}
	}
	return b
}

func TestSplit(t *testing.T) {
	for name, tt := range map[string]struct {
		b    *Batch
		max  int
		want []Range
	}{
		"nothing":             {&Batch{}, 1000, nil},
		"fits":                {sized(10, 100), 900 << 10, []Range{{0, 9}}},
		"one, too large":      {sized(1, 5000), 4000, []Range{{0, 0}}},
		"in two":              {sized(10, 1000), headerBound + 6000, []Range{{0, 4}, {5, 9}}},
		"in halves of halves": {sized(10, 1000), headerBound + 3800, []Range{{0, 2}, {3, 4}, {5, 7}, {8, 9}}},
		"heavy at the end":    {sized(8, 10, 10, 10, 10, 10, 10, 10, 5000), headerBound + 5150, []Range{{0, 3}, {4, 5}, {6, 6}, {7, 7}}},
		"no room at all":      {sized(3, 100), 10, []Range{{0, 0}, {1, 1}, {2, 2}}},
		"rejected count too":  {sized(10, 0), headerBound + 5*(rejectedBound+18), []Range{{0, 4}, {5, 9}}},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, tt.want, tt.b.Split(tt.max))
		})
	}
}

// Whatever the batch and the limit: the ranges cover it, in order, each record
// fits, copies split alike, and ranges of two limits never cross.
func TestSplitProperties(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		n := 1 + rng.IntN(200)
		sizes := make([]int, 1+rng.IntN(10))
		for i := range sizes {
			sizes[i] = rng.IntN(2000)
		}
		make := func(now time.Time, sent int64, sdk string) *Batch {
			b := sized(n, sizes...)
			b.SentAt, b.SDK = sent, sdk
			for i := range b.Events {
				e := &b.Events[i]
				e.HasTime, e.Time = i%2 == 0, now.UnixMicro()-int64(i)*1e12
				if i%3 == 0 {
					e.ClientID = fmt.Sprint("id", i)
				}
			}
			return b
		}
		most := headerBound + rejectedBound + 4000 + rng.IntN(100_000)
		now := time.Date(2026, 11, 24, 7, 0, 0, 0, time.UTC)
		b := make(now, 0, "")
		ranges := b.Split(most)
		next := uint32(0)
		for _, r := range ranges {
			require.Equal(t, next, r.First)
			require.LessOrEqual(t, r.First, r.Last)
			next = r.Last + 1
		}
		require.Equal(t, b.Count, next)

		// A copy that came another way, at another time, and is asked after Resolve.
		copied := make(now, now.Add(-30*time.Hour).UnixMicro(), strings.Repeat("s", 4000))
		copied.Project, copied.Source = strings.Repeat("p", 500), "statsig"
		copied.Resolve(time.Date(2262, 1, 1, 0, 0, 0, 0, time.UTC), Limits{Past: 1, Future: 1})
		require.Equal(t, ranges, copied.Split(most))
		for _, r := range ranges {
			require.LessOrEqual(t, len(AppendRecord(nil, copied, r)), most)
		}

		for _, r := range ranges {
			for _, o := range b.Split(most / (1 + rng.IntN(5))) {
				apart := r.Last < o.First || o.Last < r.First
				nested := r.First <= o.First && o.Last <= r.Last || o.First <= r.First && r.Last <= o.Last
				require.True(t, apart || nested, "%v and %v", r, o)
			}
		}
	}
}

func TestDedupFor(t *testing.T) {
	b := sized(10, 10)
	assert.Equal(t, b.ID, b.DedupFor(Range{0, 9}))
	assert.Equal(t, batch.PartID(b.ID, 0, 4), b.DedupFor(Range{0, 4}))
	assert.Equal(t, batch.PartID(b.ID, 5, 9), b.DedupFor(Range{5, 9}))
}

// The bounds have to hold for what is as large as it can be.
func TestBoundsHold(t *testing.T) {
	long := strings.Repeat("é", MaxFieldBytes/2)
	b := &Batch{Project: strings.Repeat("p", 1024), Source: strings.Repeat("s", 64), SDK: strings.Repeat("s", 300), SentAt: -1,
		ID: batch.ForKey("p", "k")}
	for range 3 {
		b.Append()
	}
	b.Count = 1<<32 - 1
	b.Rejected = []Rejected{{Index: 1<<32 - 2, Code: Code(strings.Repeat("c", 100)), Field: strings.Repeat("f", 100), Message: strings.Repeat("m", 1000),
		Bytes: make([]byte, MaxRejectedBytes), Size: 1<<63 - 1}}
	b.Events[0] = Event{Kind: KindEvent, Index: 1<<32 - 2, HasTime: true, Time: -1, HasValue: true, Value: 1, Experiment: long, Variant: long, Name: long,
		UnitType: long, UnitID: long, Rule: long, Reason: long, ClientID: long, Attributes: []Attribute{{"", ""}, {long, long}}}
	b.Events[1] = Event{Kind: KindExposure, Index: 1<<32 - 2}
	b.Events[2] = Event{Kind: KindExposure, Index: 1<<32 - 2, ClientID: "c"}
	b.Resolve(time.UnixMicro(-5e15), Limits{})
	for i := range b.Events {
		e := &b.Events[i]
		e.TimeAdjusted = true
		n := b.eventSize(e)
		assert.LessOrEqual(t, 1+5+n, e.bound(), i)
	}
	r := &b.Rejected[0]
	assert.LessOrEqual(t, len(appendRejected(nil, r)), r.bound())
	only := *b
	only.Events, only.Rejected = nil, nil
	assert.LessOrEqual(t, len(AppendRecord(nil, &only, Range{0, 1<<32 - 3})), headerBound)
}

func TestRejectOversized(t *testing.T) {
	limit := headerBound + 2000
	b := sized(6, 100, 5000, 0)
	want := digestOf(sized(6, 100, 5000, 0))
	b.RejectOversized(limit)
	assert.Len(t, b.Events, 2)
	for _, e := range b.Events[:cap(b.Events)][len(b.Events):] {
		assert.Equal(t, Event{}, e, "nothing left behind")
	}
	var indices []uint32
	for _, r := range b.Rejected {
		indices = append(indices, r.Index)
	}
	assert.Equal(t, []uint32{1, 2, 4, 5}, indices)
	r := b.Rejected[0]
	assert.Equal(t, CodeTooLarge, r.Code)
	assert.Contains(t, string(r.Bytes), `{"kind":"exposure","experiment":"e","variant":"v","unit_id":"u1","attributes":{"a":"xxx`)
	assert.Greater(t, r.Size, 5000)
	assert.Equal(t, uint32(6), b.Count)

	// The digest is that of the batch as sent, whatever the limit and the order.
	assert.Equal(t, want, b.Digest)
	b.ComputeDigest()
	assert.Equal(t, want, b.Digest)
	other := sized(6, 100, 5000, 0)
	other.ComputeDigest()
	other.RejectOversized(limit)
	assert.Equal(t, want, other.Digest)
	assert.Equal(t, b.Rejected, other.Rejected)
	lax := sized(6, 100, 5000, 0)
	lax.RejectOversized(900 << 10)
	lax.ComputeDigest()
	assert.Equal(t, want, lax.Digest)
	assert.Len(t, lax.Events, 4)

	b.Resolve(time.Unix(1e9, 0), limits)
	for _, r := range b.Split(limit) {
		assert.LessOrEqual(t, len(AppendRecord(nil, b, r)), limit)
	}
	b.Reset()
	require.NoError(t, DecodeJSON([]byte(`[`+good+`]`), KindExposure, 10, b))
	b.ComputeDigest()
	assert.NotEqual(t, want, b.Digest, "Reset forgets")
}

// Escapes can make JSON six times as long as the text: what is kept is bounded
// while it is written, not after.
func TestRejectOversizedIsBounded(t *testing.T) {
	b := &Batch{}
	e := b.Append()
	*e = Event{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u"}
	for i := range MaxAttributes {
		e.Attributes = append(e.Attributes, Attribute{fmt.Sprintf("%03d", i), strings.Repeat("\x01", MaxAttributeValue)})
	}
	raw := appendEventJSON(nil, e, MaxRejectedBytes)
	assert.Less(t, len(raw), MaxRejectedBytes+7*MaxAttributeValue)
	b.RejectOversized(900 << 10)
	require.Len(t, b.Rejected, 1)
	assert.Len(t, b.Rejected[0].Bytes, MaxRejectedBytes)
	assert.Greater(t, b.Rejected[0].Size, MaxAttributes*MaxAttributeValue)
}

// A rejected event alone fits any record it is put into.
func TestRejectOversizedCutsRejected(t *testing.T) {
	b := &Batch{}
	b.Append()
	b.Reject(CodeInvalidType, "", "m", make([]byte, MaxRejectedBytes))
	want := digestOf(&Batch{Count: 1, Rejected: b.Rejected})
	b.RejectOversized(headerBound + rejectedBound + 1000)
	assert.Len(t, b.Rejected[0].Bytes, 1000)
	assert.Equal(t, MaxRejectedBytes, b.Rejected[0].Size)
	assert.Equal(t, want, b.Digest)
	b.RejectOversized(1)
	assert.Empty(t, b.Rejected[0].Bytes)
}
