package replay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// fakeLetters is dead_letters and batches in memory.
type fakeLetters struct {
	letters []schema.DeadLetter
	stored  []schema.Copy
	replays map[batch.ID]bool
	fail    int // so many questions fail first
}

func (f *fakeLetters) failing() error {
	if f.fail > 0 {
		f.fail--
		return errors.New("no answer")
	}
	return nil
}

func (f *fakeLetters) chosen(d DeadFilter) (out []schema.DeadLetter) {
	for _, l := range f.letters {
		if len(d.Reasons) == 0 || slices.Contains(d.Reasons, l.Reason) {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b schema.DeadLetter) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
	return out
}

func (f *fakeLetters) DeadLetters(_ context.Context, d DeadFilter, after schema.DeadLetter, limit int, _ int64) (out []schema.DeadLetter, err error) {
	for _, l := range f.chosen(d) {
		if len(out) < min(limit, 2) && l.ID.String() > after.ID.String() {
			out = append(out, l)
		}
	}
	return out, f.failing()
}

func (f *fakeLetters) CountDead(_ context.Context, d DeadFilter) (int64, error) {
	return int64(len(f.chosen(d))), f.failing()
}

func (f *fakeLetters) Copies(_ context.Context, ids []batch.ID, found func(schema.Copy)) error {
	for _, c := range f.stored {
		if slices.Contains(ids, c.BatchID) {
			found(c)
		}
	}
	return f.failing()
}

func (f *fakeLetters) Replayed(_ context.Context, ids []batch.ID, found func(batch.ID)) error {
	for id := range f.replays {
		if slices.Contains(ids, id) {
			found(id)
		}
	}
	return f.failing()
}

// fakeProducer keeps what was produced.
type fakeProducer struct {
	mu      sync.Mutex
	records []batch.Record
	// produced is called before each; its error is what Produce returns, after the
	// records were kept if it is errUnsure.
	produced func(n int) error
	calls    int
}

var errUnsure = errors.New("no answer, though it was done")

func (*fakeProducer) Partition(_ context.Context, id batch.ID) (int, error) {
	return int(id[15]) % 3, nil
}

func (f *fakeProducer) Produce(_ context.Context, partition int, records []batch.Record) (int64, time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	var err error
	if f.produced != nil {
		err = f.produced(f.calls)
	}
	if err == nil || errors.Is(err, errUnsure) {
		f.records = append(f.records, records...)
	}
	return 0, time.Time{}, err
}

func (f *fakeProducer) unique() map[batch.ID]batch.Digest {
	out := map[batch.ID]batch.Digest{}
	for _, r := range f.records {
		out[r.DedupID] = r.Digest
	}
	return out
}

// someLetters are n letters without a unit, of two experiments.
func someLetters(n int) (out []schema.DeadLetter) {
	for i := range n {
		l := collectorLetter("missing_field", "unit_id", fmt.Sprintf(`{"experiment":"e%d","variant":"v"}`, i%2))
		l.Index = uint32(i)
		l.ID = batch.DeadLetterID(l.BatchID, batch.Digest{1}, l.Index, l.Stage)
		out = append(out, l)
	}
	return out
}

func deadOptions(t testing.TB, set ...string) DeadOptions {
	return DeadOptions{Fixes: fixes(t, set...), RecordMax: 64 << 10, Limits: schema.Limits{Past: time.Hour, Future: time.Hour}}
}

func TestDead(t *testing.T) {
	seven := collectorLetter("invalid_type", "", "7")
	seven.ID = batch.ID{0xff}
	letters := &fakeLetters{letters: append(someLetters(7), seven)}
	producer := &fakeProducer{}
	o := deadOptions(t, "unit_id=u")
	var told [][2]int64
	o.Progress = func(done, total int64) { told = append(told, [2]int64{done, total}) }
	o.DryRun = true
	dry, err := Dead(t.Context(), letters, producer, o)
	require.NoError(t, err)
	assert.Empty(t, producer.records)
	assert.Equal(t, [2]int64{8, 8}, told[len(told)-1])
	assert.Len(t, told, 4, "two letters at a time here")

	o.DryRun = false
	got, err := Dead(t.Context(), letters, producer, o)
	require.NoError(t, err)
	assert.Equal(t, int64(7), got.Sent)
	assert.Len(t, producer.unique(), 7)
	got.Sent = 0
	assert.Equal(t, dry, got)
	assert.Equal(t, DeadReport{Letters: 8, Events: 8, Valid: 7, Counts: []DeadCount{
		{Stage: "collector", Reason: "missing_field", Experiment: "e0", Variant: "v", Result: ResultReplay, Events: 4},
		{Stage: "collector", Reason: "missing_field", Experiment: "e1", Variant: "v", Result: ResultReplay, Events: 3},
		{Stage: "collector", Reason: "invalid_type", Result: problemUnreadable, Events: 1},
	}, Example: dry.Example}, got)
	assert.Contains(t, dry.Example, "is not a JSON object")

	// What is stored is not sent again, nor repaired in another way.
	for id, digest := range producer.unique() {
		letters.stored = append(letters.stored, schema.Copy{BatchID: id, Digest: digest})
	}
	producer.records = nil
	for set, result := range map[string]string{"unit_id=u": ResultAlready, "unit_id=w": ResultOtherFix} {
		o := deadOptions(t, set)
		o.Filter.Reasons = []string{"missing_field"}
		o.Experiment = "e1"
		got, err := Dead(t.Context(), letters, producer, o)
		require.NoError(t, err)
		assert.Equal(t, []DeadCount{{Stage: "collector", Reason: "missing_field", Experiment: "e1", Variant: "v", Result: result, Events: 3}}, got.Counts)
		assert.Equal(t, []int64{7, 3, 0, 0}, []int64{got.Letters, got.Events, got.Valid, got.Sent})
	}
	assert.Empty(t, producer.records)
}

// A conflict of an event that was repaired twice is not sent under another name.
func TestDeadConflictOfAReplay(t *testing.T) {
	l := collectorLetter(reasonKeyReused, "", `{"kind":"exposure","experiment":"e","variant":"v","unit_id":"u"}`)
	l.Stage = schema.StageConflict
	letters := &fakeLetters{letters: []schema.DeadLetter{l}, replays: map[batch.ID]bool{l.BatchID: true}}
	producer := &fakeProducer{}
	got, err := Dead(t.Context(), letters, producer, deadOptions(t))
	require.NoError(t, err)
	assert.Equal(t, ResultOtherFix, got.Counts[0].Result)
	letters.replays = nil
	got, err = Dead(t.Context(), letters, producer, deadOptions(t))
	require.NoError(t, err)
	assert.Equal(t, int64(1), got.Sent)
}

// A batch that could not be read and was sent again by its sender is stored.
func TestDeadRecordThatCameAgain(t *testing.T) {
	b := schema.Batch{Project: "p", ID: batch.ForKey("p", "k"), Digest: batch.Digest{9}}
	require.NoError(t, schema.DecodeJSON([]byte(`[{"experiment":"e","variant":"v","unit_id":"u"},{"experiment":"e","variant":"v","unit_id":"u"}]`), schema.KindExposure, 9, &b))
	b.Resolve(received, schema.Limits{})
	value := schema.AppendRecord(nil, &b, schema.Range{First: 0, Last: 1})
	letters := &fakeLetters{letters: []schema.DeadLetter{{ID: batch.ID{1}, Stage: schema.StageSink, Reason: reasonUndecodable, Bytes: value, Size: len(value)}}}
	for name, tt := range map[string]struct {
		copy schema.Copy
		sent int64
	}{
		"all":          {schema.Copy{BatchID: b.ID, Digest: batch.Digest{9}, Last: 1}, 0},
		"the other":    {schema.Copy{BatchID: b.ID, Digest: batch.Digest{9}, First: 1, Last: 1}, 1},
		"another body": {schema.Copy{BatchID: b.ID, Digest: batch.Digest{8}, Last: 1}, 2},
	} {
		letters.stored = []schema.Copy{tt.copy}
		got, err := Dead(t.Context(), letters, &fakeProducer{}, deadOptions(t))
		require.NoError(t, err)
		assert.Equal(t, tt.sent, got.Sent, name)
	}
}

// Kafka that answers late, not at all, or lies about it: each event has one identity,
// and is there.
func TestDeadUnsure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		producer := &fakeProducer{produced: func(n int) error {
			switch n % 3 {
			case 0:
				return errors.New("no answer")
			case 1:
				return errUnsure
			}
			return nil
		}}
		letters := &fakeLetters{letters: someLetters(20), fail: 5}
		got, err := Dead(t.Context(), letters, producer, deadOptions(t, "unit_id=u"))
		require.NoError(t, err)
		assert.Equal(t, int64(20), got.Sent)
		assert.Len(t, producer.unique(), 20)
		assert.Greater(t, len(producer.records), 20)
	})
}

type refusal struct{ error }

func (refusal) Refused() []int { return []int{0} }

func TestDeadStops(t *testing.T) {
	letters := &fakeLetters{letters: someLetters(20)}
	t.Run("refused", func(t *testing.T) {
		producer := &fakeProducer{produced: func(n int) error {
			if n > 3 {
				return retry.Mark(refusal{errors.New("too large")}, retry.Permanent)
			}
			return nil
		}}
		got, err := Dead(t.Context(), letters, producer, deadOptions(t, "unit_id=u"))
		assert.ErrorContains(t, err, "refused")
		assert.Equal(t, int64(len(producer.records)), got.Sent, "what was done is told")
	})
	t.Run("interrupted, and again", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		producer := &fakeProducer{}
		producer.produced = func(n int) error {
			if n == 4 {
				cancel()
				return retry.Mark(context.Canceled, retry.Shutdown)
			}
			return nil
		}
		_, err := Dead(ctx, letters, producer, deadOptions(t, "unit_id=u"))
		assert.ErrorIs(t, err, context.Canceled)
		assert.Less(t, len(producer.unique()), 20)
		producer.produced = nil
		_, err = Dead(t.Context(), letters, producer, deadOptions(t, "unit_id=u"))
		require.NoError(t, err)
		assert.Len(t, producer.unique(), 20)
	})
	t.Run("ClickHouse stays away", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, err := Dead(t.Context(), &fakeLetters{fail: 1000}, &fakeProducer{}, deadOptions(t))
			assert.ErrorContains(t, err, "after 8 attempts")
		})
	})
}

func TestTallyIsBounded(t *testing.T) {
	c := newTally(func(DeadCount) DeadCount { return DeadCount{Experiment: others} })
	for i := range mostCounts + 10 {
		c.add(DeadCount{Experiment: fmt.Sprint(i)}, 1)
	}
	c.add(DeadCount{Experiment: "3"}, 1)
	assert.Len(t, c.counts, mostCounts+1)
	assert.Equal(t, int64(10), c.counts[DeadCount{Experiment: others}])
	assert.Equal(t, int64(2), c.counts[DeadCount{Experiment: "3"}])
}
