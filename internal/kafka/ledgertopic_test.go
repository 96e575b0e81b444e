package kafka

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

func writeLedger(t testing.TB, l *LedgerTopic, key, value string) time.Time {
	t.Helper()
	at, err := l.Write(t.Context(), key, []byte(value))
	require.NoError(t, err)
	return at
}

func ledgerOffsets(entries []LedgerEntry) []int64 {
	out := make([]int64, len(entries))
	for i := range entries {
		out[i] = entries[i].Offset
	}
	return out
}

func TestLedgerWriteAndRead(t *testing.T) {
	c := testClient(t)
	l := c.NewLedger(testTopics(t, c, 2))
	start := time.Now().Truncate(time.Millisecond)
	var times []time.Time
	for i := range 3 {
		times = append(times, writeLedger(t, l, fmt.Sprint("key", i), fmt.Sprint("value", i)))
	}
	large := strings.Repeat("ledger ", 20_000)
	times = append(times, writeLedger(t, l, "large", large), writeLedger(t, l, "empty", ""))

	entries, next, err := l.Read(t.Context(), 0, time.Second)
	require.NoError(t, err)
	require.Len(t, entries, 5)
	assert.Equal(t, int64(5), next)
	for i, e := range entries {
		assert.Equal(t, int64(i), e.Offset)
		assert.True(t, times[i].Equal(e.At), "the time that Write returned is the broker's: %s, %s", times[i], e.At)
		assert.WithinRange(t, e.At, start, time.Now())
	}
	assert.Equal(t, "key1", entries[1].Key)
	assert.Equal(t, "value1", string(entries[1].Value))
	assert.Equal(t, large, string(entries[3].Value))
	assert.NotNil(t, entries[4].Value, "an empty value is not a tombstone")

	entries, next, err = l.Read(t.Context(), 3, time.Second)
	require.NoError(t, err)
	assert.Equal(t, []int64{3, 4}, ledgerOffsets(entries))
	assert.Equal(t, int64(5), next)

	entries, next, err = l.Read(t.Context(), 5, 50*time.Millisecond)
	require.NoError(t, err)
	assert.Empty(t, entries, "nothing yet")
	assert.Equal(t, int64(5), next)

	_, _, err = l.Read(t.Context(), 6, 50*time.Millisecond)
	classOf(t, retry.Permanent, err)
	assert.ErrorIs(t, err, batch.ErrOffsetGone, "it is another log")
}

func TestLedgerReadWaits(t *testing.T) {
	c := testClient(t)
	l := c.NewLedger(testTopics(t, c, 1))
	done := make(chan error, 1)
	go func() {
		_, err := l.Write(context.WithoutCancel(t.Context()), "k", []byte("v"))
		done <- err
	}()
	entries, next, err := l.Read(t.Context(), 0, 20*time.Second)
	require.NoError(t, err)
	require.NoError(t, <-done)
	assert.Equal(t, []int64{0}, ledgerOffsets(entries))
	assert.Equal(t, int64(1), next)
}

func TestLedgerReadGoesOnAtTheStart(t *testing.T) {
	c := testClient(t)
	prefix := testTopics(t, c, 1)
	l := c.NewLedger(prefix)
	for i := range 5 {
		writeLedger(t, l, fmt.Sprint(i), "x")
	}
	// Kafka deletes records of a topic that is only compacted on nobody's word.
	setTopic(t, c, Topics(prefix).Ledger, "cleanup.policy", "compact,delete")
	deleteRecords(t, c, Topics(prefix).Ledger, 0, 3)
	entries, next, err := l.Read(t.Context(), 1, time.Second)
	require.NoError(t, err)
	assert.Equal(t, []int64{3, 4}, ledgerOffsets(entries))
	assert.Equal(t, int64(5), next)

	deleteRecords(t, c, Topics(prefix).Ledger, 0, 5)
	entries, next, err = l.Read(t.Context(), 0, 50*time.Millisecond)
	require.NoError(t, err)
	assert.Empty(t, entries)
	assert.Equal(t, int64(5), next, "says that it has gone on")
	_, _, err = l.Read(t.Context(), 6, 50*time.Millisecond)
	assert.ErrorIs(t, err, batch.ErrOffsetGone)
}

// The marker of a transaction's end takes an offset, as what was compacted does.
func TestLedgerReadGoesOverGaps(t *testing.T) {
	c := testClient(t)
	prefix := testTopics(t, c, 1)
	l := c.NewLedger(prefix)
	transaction(t, c, Topics(prefix).Ledger, 2)
	awaitEnd(t, c.NewSource(Topics(prefix).Ledger), 0, 3)
	entries, next, err := l.Read(t.Context(), 2, 50*time.Millisecond)
	require.NoError(t, err)
	assert.Empty(t, entries)
	assert.Equal(t, int64(3), next, "over what is no record")
	writeLedger(t, l, "k", "v")
	entries, next, err = l.Read(t.Context(), 0, time.Second)
	require.NoError(t, err)
	assert.Equal(t, []int64{0, 1, 3}, ledgerOffsets(entries))
	assert.Equal(t, int64(4), next)
}

func TestReadEntries(t *testing.T) {
	at := func(offset int64, edit func(*kmsg.RecordBatch)) func(*kmsg.RecordBatch) {
		return func(b *kmsg.RecordBatch) {
			b.FirstOffset = offset
			if edit != nil {
				edit(b)
			}
		}
	}
	flipped := func(b []byte) []byte { b[len(b)-1] ^= 1; return b }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	wide := at(10, func(b *kmsg.RecordBatch) { b.LastOffsetDelta = 9 })             // its last seven are compacted away
	empty := at(20, func(b *kmsg.RecordBatch) { b.LastOffsetDelta = 4 })            // all of it is
	control := at(25, func(b *kmsg.RecordBatch) { b.Attributes |= attrControl })    // never was a record
	stamped := at(40, func(b *kmsg.RecordBatch) { b.Attributes |= attrAppendTime }) // by the broker
	for name, tt := range map[string]struct {
		src  []byte
		from int64
		want []int64
		next int64
		fail bool
	}{
		"nothing":        {nil, 7, nil, 7, false},
		"plain":          {rawBatch(3, at(10, nil)), 10, []int64{10, 11, 12}, 13, false},
		"from inside":    {rawBatch(3, at(10, nil)), 12, []int64{12}, 13, false},
		"hole after":     {rawBatch(3, wide), 10, []int64{10, 11, 12}, 20, false},
		"in the hole":    {rawBatch(3, wide), 15, nil, 20, false},
		"hole before":    {rawBatch(2, at(30, nil)), 20, []int64{30, 31}, 32, false},
		"all gone":       {rawBatch(0, empty), 20, nil, 25, false},
		"control":        {rawBatch(1, control), 25, nil, 26, false},
		"several":        {join(rawBatch(3, wide), rawBatch(0, empty), rawBatch(1, control), rawBatch(1, stamped)), 11, []int64{11, 12, 40}, 41, false},
		"before it":      {join(rawBatch(3, at(0, nil)), rawBatch(3, at(10, nil))), 11, []int64{11, 12}, 13, false},
		"cut short":      {join(rawBatch(3, at(10, nil)), rawBatch(3, at(13, nil))[:40]), 10, []int64{10, 11, 12}, 13, false},
		"first cut":      {rawBatch(3, at(10, nil))[:70], 10, nil, 10, true},
		"checksum":       {flipped(rawBatch(3, at(10, nil))), 10, nil, 10, true},
		"format":         {rawBatch(1, func(b *kmsg.RecordBatch) { b.Magic = 1 }), 0, nil, 0, true},
		"too few":        {rawBatch(1, func(b *kmsg.RecordBatch) { b.NumRecords = 2 }), 0, nil, 0, true},
		"no offset":      {rawBatch(1, at(-5, nil)), 0, nil, 0, true},
		"last offset":    {rawBatch(1, at(math.MaxInt64, nil)), 0, nil, 0, true},
		"negative count": {rawBatch(1, func(b *kmsg.RecordBatch) { b.NumRecords = -1 }), 0, nil, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, next, err := readEntries(tt.src, tt.from)
			assert.Equal(t, tt.next, next)
			if tt.fail {
				require.ErrorIs(t, err, errBatch)
				assert.Empty(t, got)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, tt.want, append([]int64(nil), ledgerOffsets(got)...))
			for _, e := range got {
				want := int64(2000) // of the batch, where the broker stamps
				if e.Offset < 40 {
					want = 1000 + (e.Offset-10)%10
				}
				assert.Equal(t, want, e.At.UnixMilli(), "offset %d", e.Offset)
				assert.Equal(t, "k", e.Key)
			}
		})
	}
}

func FuzzReadEntries(f *testing.F) {
	f.Add(rawBatch(3, nil), int64(1))
	f.Add(rawBatch(0, func(b *kmsg.RecordBatch) { b.LastOffsetDelta = 4 }), int64(0))
	f.Add(rawBatch(1, func(b *kmsg.RecordBatch) { b.FirstOffset = math.MaxInt64 }), int64(0))
	f.Add([]byte("short"), int64(0))
	f.Fuzz(func(t *testing.T, src []byte, from int64) {
		if from < 0 {
			return
		}
		got, next, err := readEntries(src, from)
		if err != nil {
			require.Empty(t, got)
			require.Equal(t, from, next)
			return
		}
		require.GreaterOrEqual(t, next, from, "never goes back")
		for _, e := range got {
			require.GreaterOrEqual(t, e.Offset, from)
			require.Less(t, e.Offset, next)
		}
	})
}

func TestLedgerEnds(t *testing.T) {
	c := testClient(t)
	prefix := testTopics(t, c, 3)
	l, p := c.NewLedger(prefix), c.NewProducer(Topics(prefix).Batches)
	id, next, err := l.Ends(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []int64{0, 0, 0}, next)
	want, err := c.Log(t.Context(), prefix)
	require.NoError(t, err)
	assert.Equal(t, want, id)
	own, err := l.ID(t.Context())
	require.NoError(t, err)
	assert.NotEqual(t, id, own, "the ledger topic is another log")
	assert.Regexp(t, `^[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{22}$`, own)

	// Whatever was acknowledged before the call lies below, without a pause.
	for range 20 {
		for partition := range 3 {
			base := produce(t, p, partition, testRecords(partition+1, 10))
			_, next, err := l.Ends(t.Context())
			require.NoError(t, err)
			require.Equal(t, base+int64(partition+1), next[partition])
		}
	}

	// Partitions that are added count as soon as something can be written there.
	addPartitions(t, c, Topics(prefix).Batches, 5)
	require.NoError(t, retry.Policy{Attempts: 20}.Do(t.Context(), func(ctx context.Context) error {
		_, _, err := p.Produce(ctx, 4, testRecords(1, 10))
		return err
	}))
	require.NoError(t, retry.Policy{Attempts: 20}.Do(t.Context(), func(ctx context.Context) error {
		_, next, err = l.Ends(ctx) // a leader that is new may not answer yet
		return err
	}))
	require.Len(t, next, 5)
	assert.Equal(t, int64(1), next[4])
}

// A leader that was deposed, and one whose successor is asked with its term, do not
// answer for the log.
func TestLedgerEndsGoByTheTerm(t *testing.T) {
	c := testClient(t)
	l := c.NewLedger(testTopics(t, c, 1))
	terms, err := l.leaders(t.Context())
	require.NoError(t, err)
	require.Len(t, terms, 1)
	for _, epoch := range []int32{terms[0].epoch + 1, terms[0].epoch - 1} {
		_, err = l.end(t.Context(), 0, term{terms[0].leader, epoch})
		if epoch < 0 {
			continue // none: not compared
		}
		classOf(t, retry.Transient, c.classify(err))
	}
	_, err = l.end(t.Context(), 0, terms[0])
	assert.NoError(t, err)
	_, err = l.end(t.Context(), 0, term{terms[0].leader + 100, terms[0].epoch})
	classOf(t, retry.Transient, c.classify(err))
}

func TestMergeTerms(t *testing.T) {
	answer := func(code int16, partitions ...kmsg.MetadataResponseTopicPartition) *kmsg.MetadataResponse {
		return &kmsg.MetadataResponse{Topics: []kmsg.MetadataResponseTopic{{ErrorCode: code, Partitions: partitions}}}
	}
	part := func(id, leader, epoch int32) kmsg.MetadataResponseTopicPartition {
		return kmsg.MetadataResponseTopicPartition{Partition: id, Leader: leader, LeaderEpoch: epoch}
	}
	terms, err := mergeTerms(nil, answer(0, part(1, 7, 3), part(0, 6, 5)))
	require.NoError(t, err)
	assert.Equal(t, []term{{6, 5}, {7, 3}}, terms)
	terms, err = mergeTerms(terms, answer(0, part(0, 9, 4), part(1, 8, 4), part(2, 1, 0)))
	require.NoError(t, err)
	assert.Equal(t, []term{{6, 5}, {8, 4}, {1, 0}}, terms, "the newest of each, and what one did not know of")
	terms, err = mergeTerms(terms, answer(0, part(0, 6, 5)))
	require.NoError(t, err)
	assert.Len(t, terms, 3, "one that is behind takes nothing away")
	for name, bad := range map[string]*kmsg.MetadataResponse{
		"no topic": {}, "unknown": answer(3), "none": answer(0), "hole": answer(0, part(5, 1, 1)), "negative": answer(0, part(-1, 1, 1)),
	} {
		_, err := mergeTerms(nil, bad)
		assert.Error(t, err, name)
	}
}

func TestLedgerOfNoTopic(t *testing.T) {
	c := testClient(t)
	l := c.NewLedger("t-" + batch.Random().String())
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := l.Write(ctx, "k", []byte("v"))
	classOf(t, retry.Transient, err)
	_, _, err = l.Ends(ctx)
	classOf(t, retry.Transient, err)
	_, _, err = l.Read(ctx, 0, 10*time.Millisecond)
	classOf(t, retry.Transient, err)
	_, err = l.ID(ctx)
	classOf(t, retry.Transient, err)
}

func TestLedgerCancelledAndClosed(t *testing.T) {
	c := testClient(t)
	l := c.NewLedger(testTopics(t, c, 1))
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	_, _, err := l.Read(ctx, 0, time.Minute)
	classOf(t, retry.Shutdown, err)
	_, err = l.Write(ctx, "k", nil)
	classOf(t, retry.Shutdown, err)

	other := testClient(t)
	closed := other.NewLedger("t-closed")
	other.Close()
	_, err = closed.Write(t.Context(), "k", nil)
	classOf(t, retry.Shutdown, err)
	_, _, err = closed.Ends(t.Context())
	classOf(t, retry.Shutdown, err)
}

// Errored but persisted: the record is there, and nobody has heard of it.
func TestLedgerWriteWithoutAnAnswer(t *testing.T) {
	c, p := throughProxy(t)
	direct := testClient(t)
	prefix := testTopics(t, direct, 1)
	l := c.NewLedger(prefix)
	// A write whose answer is lost. The client may have to dial for it, where the
	// connection of the write before is not back yet: then it is not even sent.
	first, log := int64(0), direct.NewSource(Topics(prefix).Ledger)
	arrived := func() bool {
		bounds, err := log.Bounds(t.Context(), 0)
		return err == nil && bounds.End == first+1
	}
	for !arrived() && first < 10 {
		first++
		require.NoError(t, retry.Policy{Attempts: 10}.Do(t.Context(), func(ctx context.Context) error {
			_, err := l.Write(ctx, "first", []byte("1"))
			return err
		}))
		p.mode.Store(muted)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_, err := l.Write(ctx, "second", []byte("2"))
		cancel()
		classOf(t, retry.Transient, err)
		p.mode.Store(healthy)
		p.cut()
		for range 100 {
			if arrived() || !retry.Sleep(t.Context(), 10*time.Millisecond) {
				break
			}
		}
	}
	require.NoError(t, retry.Policy{Attempts: 10}.Do(t.Context(), func(ctx context.Context) error {
		_, err := l.Write(ctx, "third", []byte("3"))
		return err
	}))
	entries, _, err := direct.NewLedger(prefix).Read(t.Context(), 0, time.Second)
	require.NoError(t, err)
	require.Len(t, entries, int(first)+2)
	assert.Equal(t, "second", entries[first].Key)
}

func TestLedgerTopicWithWritersTimes(t *testing.T) {
	c := testClient(t)
	prefix := testTopics(t, c, 1)
	setTopic(t, c, Topics(prefix).Ledger, "message.timestamp.type", "CreateTime")
	_, err := c.NewLedger(prefix).Write(t.Context(), "k", []byte("v"))
	classOf(t, retry.Permanent, err)
	assert.ErrorContains(t, err, "LogAppendTime")
}

// setTopic changes one setting of a topic and waits until the broker goes by it.
func setTopic(t testing.TB, c *Client, topic, name, value string) {
	t.Helper()
	k := c.open([]string{topic})
	defer c.release(k)
	res, err := k.IncrementalAlterConfigs(t.Context(), &kafkago.IncrementalAlterConfigsRequest{
		Resources: []kafkago.IncrementalAlterConfigsRequestResource{{
			ResourceType: kafkago.ResourceTypeTopic, ResourceName: topic,
			Configs: []kafkago.IncrementalAlterConfigsRequestConfig{{Name: name, Value: value, ConfigOperation: kafkago.ConfigOperationSet}},
		}}})
	require.NoError(t, err)
	require.NoError(t, res.Resources[0].Error)
	require.Eventually(t, func() bool { return topicSettings(t, c, topic)[name] == value }, 10*time.Second, 10*time.Millisecond)
}

func addPartitions(t testing.TB, c *Client, topic string, n int32) {
	t.Helper()
	k := c.open([]string{topic})
	defer c.release(k)
	res, err := k.CreatePartitions(t.Context(), &kafkago.CreatePartitionsRequest{
		Topics: []kafkago.TopicPartitionsConfig{{Name: topic, Count: n}}})
	require.NoError(t, err)
	require.NoError(t, res.Errors[topic])
}
