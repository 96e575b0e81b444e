package audit

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

func (r *rig) receipt(ids ...batch.ID) *Receipt {
	r.t.Helper()
	got, err := FindReceipt(r.t.Context(), ReceiptOptions{Store: real{r.store}, Source: r.source, Partitioner: r.producer}, ids)
	require.NoError(r.t, err)
	return got
}

func TestReceipts(t *testing.T) {
	r := newRig(t)
	now := time.Now().UTC().Truncate(time.Microsecond)
	a := r.collector("a", 7)
	a.report(batch.LedgerOpen, nil)
	b := events("1", 3)
	b.Append()
	b.Reject(schema.CodeMissingField, "unit_id", "unit_id is missing", []byte("{}"))
	one := a.send(a.accept(b, now, 0)...)[0]
	r.drain(schema.Stored, one)
	again := *one
	again.record.Path = batch.Spool
	r.produce(&again)
	r.drain(schema.Duplicate, &again)
	r.progress()

	got := r.receipt(batch.Random(), one.record.BatchID)
	assert.True(t, got.Found())
	assert.Equal(t, ReceiptStored, got.State)
	assert.Equal(t, one.record.BatchID, got.BatchID)
	assert.EqualValues(t, 4, got.Rows)
	require.Len(t, got.Records, 2)
	stored := got.Records[0]
	require.NotNil(t, stored.StoredAt)
	assert.WithinDuration(t, time.Now(), *stored.StoredAt, time.Minute)
	assert.Equal(t, ReceiptRecord{Outcome: "stored", Path: "direct", Collector: a.id, Epoch: 7, Seq: 1, AcceptedAt: now, StoredAt: stored.StoredAt,
		Events: 4, Rejected: 1, Log: r.log, Partition: one.partition, Offset: one.offset}, stored)
	assert.Equal(t, []any{"duplicate", "spool", again.offset}, []any{got.Records[1].Outcome, got.Records[1].Path, got.Records[1].Offset})
	assert.Equal(t, []ReceiptDead{{4, "collector", "missing_field", "", "unit_id is missing"}}, got.Dead)

	// A conflict only.
	other := a.send(a.accept(events("2", 1), now, 0)...)[0]
	r.drain(schema.Conflict, other)
	r.progress()
	got = r.receipt(other.record.BatchID)
	assert.Equal(t, ReceiptRefused, got.State)
	assert.Len(t, got.Dead, 2)
	assert.Zero(t, got.Rows)

	// In Kafka, behind others.
	var waiting []*record
	for _, key := range []string{"3", "4", "5", "6", "7", "8"} {
		waiting = append(waiting, a.send(a.accept(events(key, 2), now, 2)...)...)
	}
	x := waiting[len(waiting)-1]
	got = r.receipt(batch.Random(), x.record.BatchID)
	assert.Equal(t, ReceiptInKafka, got.State)
	assert.True(t, got.Found())
	require.Len(t, got.Records, 2, "two parts")
	last := got.Records[1]
	assert.Equal(t, []any{"waiting", "2-2", a.id, uint64(7), x.record.Seq, x.partition, x.offset, uint32(1)},
		[]any{last.Outcome, last.Part, last.Collector, last.Epoch, last.Seq, last.Partition, last.Offset, last.Events})
	assert.Equal(t, now, last.AcceptedAt)
	assert.Nil(t, last.StoredAt)
	through := int64(-1)
	require.NoError(t, r.store.AllProgress(t.Context(), func(_ string, p int, o int64) {
		if p == x.partition {
			through = o
		}
	}))
	assert.Equal(t, x.offset-through-1, last.Ahead)

	// Nowhere, and who may have it.
	id := batch.Random()
	got = r.receipt(id)
	assert.False(t, got.Found())
	assert.Equal(t, id, got.BatchID)
	assert.Empty(t, got.Spools)
	assert.Contains(t, got.Detail, "no collector says that it holds batches")
	oldest := now
	a.report(batch.LedgerInterval, func(l *batch.LedgerRecord) { l.Pending, l.Oldest = 12, &oldest })
	r.copyLedger()
	got = r.receipt(id)
	assert.False(t, got.Found())
	require.Len(t, got.Spools, 1)
	assert.Equal(t, []any{a.id, uint64(12), now}, []any{got.Spools[0].Collector, got.Spools[0].Pending, got.Spools[0].Oldest.UTC()})
	assert.Contains(t, got.Detail, "spool")

	// Without Kafka what is stored is still told.
	away := ReceiptOptions{Store: real{r.store}, Source: r.source, Partitioner: nowhere{}}
	got, err := FindReceipt(t.Context(), away, []batch.ID{one.record.BatchID})
	require.NoError(t, err)
	assert.Equal(t, ReceiptStored, got.State)
	got, err = FindReceipt(t.Context(), away, []batch.ID{id})
	require.NoError(t, err)
	assert.Contains(t, got.Detail, "Kafka could not be looked at: nowhere")
	_, err = FindReceipt(t.Context(), away, nil)
	assert.Error(t, err)
}

type nowhere struct{}

func (nowhere) Partition(context.Context, batch.ID) (int, error) { return 0, errors.New("nowhere") }
