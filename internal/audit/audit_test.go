package audit

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/replay"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// Whatever may happen to a batch that is kept raises no alarm.
func TestNoFalseAlarm(t *testing.T) {
	r := newRig(t)
	now := time.Now()
	a := r.collector("a", 1)
	a.report(batch.LedgerOpen, nil)
	plain := a.send(a.accept(events("plain", 3), now, 0)...)
	r.drain(schema.Stored, plain...)
	// A copy, and one through the spool of a copy's number.
	again := *plain[0]
	r.produce(&again)
	r.drain(schema.Duplicate, &again)
	r.drain(schema.Duplicate, a.send(a.accept(events("plain", 3), now, 0)...)...)
	r.drain(schema.Conflict, a.send(a.accept(events("plain", 2), now, 0)...)...)
	// A batch in parts.
	r.drain(schema.Stored, a.send(a.accept(events("parts", 9), now, 4)...)...)
	// One event twice in a batch, and in two batches: they merge.
	for _, key := range []string{"x", "y"} {
		b := events(key, 4)
		for i := range b.Events {
			b.Events[i].UnitID = "same"
			if i != 1 {
				b.Events[i].ClientID = "event"
			}
		}
		r.drain(schema.Stored, a.send(a.accept(b, now, 0)...)...)
	}
	r.exec("OPTIMIZE TABLE exposures FINAL")
	r.exec("OPTIMIZE TABLE events FINAL")
	// Events that were rejected, and one that ClickHouse refused.
	b := events("rejected", 2)
	b.Append()
	b.Reject(schema.CodeMissingField, "unit_id", "missing", []byte("{}"))
	r.drain(schema.Stored, a.send(a.accept(b, now, 0)...)...)
	refused := a.send(a.accept(events("refused", 2), now, 0)...)[0]
	kept := refused.batch.Events
	r.insert(schema.DeadLetters, refused.partition, &schema.Rows{Dead: []schema.DeadLetter{{ID: batch.Random(), Project: "p", BatchID: refused.record.BatchID,
		Index: kept[0].Index, Stage: schema.StageSink, Reason: "refused", ReceivedAt: now.UnixMicro(), Offset: refused.offset}}})
	refused.batch.Events = kept[1:]
	r.drain(schema.Stored, refused)
	// A record nobody can read.
	dead := a.accept(events("dead", 1), now, 0)[0]
	a.send(dead)
	r.row(schema.Dead, dead, 0, 0)
	// Answered with an error, and in Kafka nevertheless; and not there.
	a.voids = []batch.SeqRange{{First: a.seq + 1, Last: a.seq + 3}}
	r.drain(schema.Stored, a.send(a.accept(events("void", 1), now, 0)...)...)
	a.accept(events("void 2", 1), now, 0)
	a.accept(events("void 3", 1), now, 0)
	// In the spool.
	a.accept(events("spooled", 1), now, 0)
	oldest := now
	a.report(batch.LedgerInterval, func(l *batch.LedgerRecord) { l.Pending, l.Oldest, l.CompleteUntil = 1, &oldest, oldest })
	// Killed: some are in Kafka that no record speaks of, and one was never acknowledged.
	a.seq++
	r.drain(schema.Stored, a.send(a.accept(events("tail", 1), now, 0)...)...)
	restarted := r.collector("a", 2)
	restarted.report(batch.LedgerOpen, func(l *batch.LedgerRecord) { l.Pending, l.Oldest, l.CompleteUntil = 1, &oldest, oldest })
	// A start that did nothing, and one that ended.
	idle := r.collector("idle", 3)
	idle.report(batch.LedgerOpen, nil)
	idle.report(batch.LedgerClose, nil)
	r.progress()
	for range 2 {
		report := r.audit(nil)
		assert.Empty(t, report.Findings)
		assert.EqualValues(t, 1, kinds(report.Notes)[Waiting], "%+v", report.Notes)
		assert.EqualValues(t, 1, kinds(report.Notes)[Unproven], "%+v", report.Notes)
		assert.EqualValues(t, 2, report.Checked.Collectors)
		assert.NotZero(t, report.Checked.Reread, "what merged was looked at")
		r.copyLedger() // from the table as from the topic
	}
	for _, since := range []time.Duration{time.Nanosecond, time.Minute} {
		report := r.audit(func(o *Options) { o.Since = time.Now().Add(-since) })
		assert.Empty(t, report.Findings)
	}
}

func TestSinksBehind(t *testing.T) {
	r := newRig(t)
	a := r.collector("a", 1)
	a.report(batch.LedgerOpen, nil)
	for _, key := range []string{"1", "2", "3"} {
		a.send(a.accept(events(key, 1), time.Now(), 0)...)
	}
	a.report(batch.LedgerInterval, nil)
	report := r.audit(nil)
	assert.Empty(t, report.Findings)
	assert.EqualValues(t, 3, kinds(report.Notes)[Waiting])
}

func TestRowDeletedInBatches(t *testing.T) {
	r := newRig(t)
	a := r.collector("a", 1)
	a.report(batch.LedgerOpen, nil)
	var all []*record
	for _, key := range []string{"1", "2", "3", "4", "5", "6"} {
		all = append(all, a.send(a.accept(events(key, 2), time.Now(), 0)...)...)
	}
	r.drain(schema.Stored, all...)
	a.report(batch.LedgerInterval, nil)
	r.progress()
	require.Empty(t, r.audit(nil).Findings)
	gone := all[3]
	r.exec("ALTER TABLE batches DELETE WHERE seq = 4 SETTINGS mutations_sync = 2")
	report := r.audit(nil)
	require.Len(t, report.Findings, 1)
	l := report.Findings[0]
	assert.Equal(t, Line{Kind: Lost, Collector: a.id.String(), Epoch: 1, FirstSeq: 4, LastSeq: 4, BatchID: gone.record.BatchID.String(),
		Log: r.log, Partition: gone.partition, Offset: gone.offset, Count: 1, Detail: l.Detail}, l)
	assert.Equal(t, []Range{{gone.partition, gone.offset, gone.offset}}, Repairs(report, r.log))
	assert.Empty(t, Repairs(report, "another log"))

	n, err := Repair(t.Context(), r.repairer(), report, r.log, nil)
	require.NoError(t, err)
	assert.EqualValues(t, 1, n)
	assert.Empty(t, r.audit(nil).Findings)
}

func (r *rig) repairer() Repairer {
	return realRepairer{replay.NewRepairer(replay.Options{Log: r.source, Store: r.store, Topic: r.topic, DedupWindow: 720 * time.Hour})}
}

func TestRowsDeletedInExposures(t *testing.T) {
	r := newRig(t)
	a := r.collector("a", 1)
	a.report(batch.LedgerOpen, nil)
	first := a.send(a.accept(events("1", 50), time.Now(), 0)...)[0]
	second := a.send(a.accept(events("2", 3), time.Now(), 2)...)
	r.drain(schema.Stored, first)
	r.drain(schema.Stored, second...)
	a.report(batch.LedgerInterval, nil)
	r.progress()
	require.Empty(t, r.audit(nil).Findings)
	r.exec("ALTER TABLE exposures DELETE WHERE unit_id IN ('1-u3', '1-u4', '2-u2') SETTINGS mutations_sync = 2")
	r.exec("ALTER TABLE events DELETE WHERE unit_id = '2-u' SETTINGS mutations_sync = 2")
	report := r.audit(nil)
	assert.Equal(t, map[Kind]uint64{Torn: 4}, kinds(report.Findings))
	byOffset := map[string]Line{}
	for _, l := range report.Findings {
		byOffset[l.BatchID] = l
	}
	assert.Equal(t, []uint32{3, 4}, byOffset[first.record.BatchID.String()].Indices)
	assert.Equal(t, first.offset, byOffset[first.record.BatchID.String()].Offset)
	assert.Equal(t, []uint32{2, 3}, byOffset[second[1].record.BatchID.String()].Indices)
	assert.Equal(t, second[1].offset, byOffset[second[1].record.BatchID.String()].Offset)
	assert.EqualValues(t, 3, byOffset[second[1].record.BatchID.String()].FirstSeq)
	n, err := Repair(t.Context(), r.repairer(), report, r.log, nil)
	require.NoError(t, err)
	assert.EqualValues(t, 4, n)
	assert.Empty(t, r.audit(nil).Findings)

	// Without the record nobody can tell what is missing from what has merged.
	r.exec("ALTER TABLE exposures DELETE WHERE unit_id = '1-u7' SETTINGS mutations_sync = 2")
	r.exec("ALTER TABLE batches UPDATE events = events WHERE 1 SETTINGS mutations_sync = 2")
	report = r.audit(func(o *Options) { o.Source = otherLog{r.source} })
	assert.Empty(t, report.Findings)
	assert.Equal(t, uint64(1), kinds(report.Notes)[Unproven])
}

// otherLog is a topic that was made again.
type otherLog struct{ Source }

func (otherLog) Log(context.Context) (string, error) { return "another log", nil }

func TestDoubled(t *testing.T) {
	r := newRig(t)
	a := r.collector("a", 1)
	a.report(batch.LedgerOpen, nil)
	one := a.send(a.accept(events("1", 3), time.Now(), 0)...)[0]
	r.drain(schema.Stored, one)
	// The same batch again, as if its events had other ids.
	two := a.send(a.accept(events("1", 3), time.Now(), 0)...)[0]
	for i := range two.batch.Events {
		two.batch.Events[i].ID = batch.Random()
	}
	r.drain(schema.Stored, two)
	a.report(batch.LedgerInterval, nil)
	r.progress()
	report := r.audit(nil)
	doubled := []Line{}
	for _, l := range report.Findings {
		if l.Kind == Doubled {
			doubled = append(doubled, l)
		}
	}
	require.Len(t, doubled, 1)
	assert.Equal(t, one.record.BatchID.String(), doubled[0].BatchID)
	assert.EqualValues(t, 4, doubled[0].Count)
}

// What the ledger says was acknowledged and never came anywhere.
func TestLostBeforeKafka(t *testing.T) {
	r := newRig(t)
	a := r.collector("a", 1)
	a.report(batch.LedgerOpen, nil)
	r.drain(schema.Stored, a.send(a.accept(events("1", 1), time.Now(), 0)...)...)
	a.accept(events("2", 1), time.Now(), 0)
	a.accept(events("3", 1), time.Now(), 0)
	r.drain(schema.Stored, a.send(a.accept(events("4", 1), time.Now(), 0)...)...)
	a.accept(events("5", 1), time.Now(), 0)
	pending := uint64(3)
	report := func() *Report {
		a.report(batch.LedgerInterval, func(l *batch.LedgerRecord) { l.Pending = pending })
		return r.audit(nil)
	}
	r.progress()
	got := report()
	assert.Empty(t, got.Findings)
	assert.EqualValues(t, 3, kinds(got.Notes)[Waiting])
	pending = 2
	got = report()
	assert.EqualValues(t, 2, kinds(got.Notes)[Waiting])
	require.Len(t, got.Findings, 2)
	assert.Contains(t, got.Findings[0].Detail, "of the 3 missing batches of this collector 1 are lost")
	pending = 0
	got = report()
	assert.Zero(t, kinds(got.Notes)[Waiting])
	require.Len(t, got.Findings, 2)
	for i, want := range [][2]uint64{{2, 3}, {5, 5}} {
		l := got.Findings[i]
		assert.Equal(t, Lost, l.Kind)
		assert.Equal(t, a.id.String(), l.Collector)
		assert.EqualValues(t, 1, l.Epoch)
		assert.Equal(t, want, [2]uint64{l.FirstSeq, l.LastSeq})
		assert.Equal(t, -1, l.Partition)
	}
}

func TestSpoolDeletedByHand(t *testing.T) {
	for name, pending := range map[string]uint64{"told of": 3, "not told of": 0} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			a := r.collector("a", 1)
			a.report(batch.LedgerOpen, nil)
			for range pending {
				a.accept(events("x", 1), time.Now(), 0)
			}
			a.report(batch.LedgerInterval, func(l *batch.LedgerRecord) { l.Pending = pending })
			b := r.collector("b", 1) // ended in order
			b.report(batch.LedgerClose, nil)
			silent := func(o *Options) { o.SilentAfter, o.Grace = time.Nanosecond, time.Nanosecond }
			assert.Empty(t, r.audit(nil).Findings, "it may speak yet")
			report := r.audit(silent)
			require.Len(t, report.Findings, 1)
			l := report.Findings[0]
			assert.Equal(t, SilentSpool, l.Kind)
			assert.Equal(t, a.id.String(), l.Collector)
			assert.Equal(t, pending, l.Count)
			assert.Contains(t, l.Detail, "sluice audit --retire "+a.id.String())

			// Given up: nothing to find any more.
			_, _, err := Retirement(t.Context(), r.options(), b.id, "o", "why", r.log, nil)
			assert.ErrorIs(t, err, ErrRefused)
			_, _, err = Retirement(t.Context(), r.options(), batch.Random(), "o", "why", r.log, nil)
			assert.ErrorIs(t, err, ErrRefused)
			_, _, err = Retirement(t.Context(), r.options(), a.id, "o", "why", r.log, nil)
			assert.ErrorContains(t, err, "stop it first")
			record := batch.LedgerRecord{Kind: batch.LedgerRetire, Collector: a.id, Epoch: 1, Number: a.number, At: time.Now(), Pending: pending, By: "o", Reason: "disk burnt"}
			r.write(&record)
			report = r.audit(silent)
			assert.Empty(t, report.Findings)
			assert.Equal(t, "by o: disk burnt", func() string {
				for _, l := range report.Notes {
					if l.Kind == GivenUp {
						return l.Detail
					}
				}
				return ""
			}())
			_, _, err = Retirement(t.Context(), r.options(), a.id, "o", "why", r.log, nil)
			assert.ErrorContains(t, err, "gave collector")
		})
	}
}

func TestDamagedSpool(t *testing.T) {
	r := newRig(t)
	a := r.collector("a", 1)
	a.report(batch.LedgerOpen, nil)
	a.accept(events("1", 1), time.Now(), 0)
	from := time.Now()
	a.report(batch.LedgerInterval, func(l *batch.LedgerRecord) { l.Lost, l.LostFrom = 1, &from })
	report := r.audit(nil)
	assert.Equal(t, map[Kind]uint64{Lost: 1, DamagedSpool: 1}, kinds(report.Findings))
	record, means, err := Retirement(t.Context(), r.options(), a.id, "o", "bad sector", r.log, []int64{4, 0})
	require.NoError(t, err)
	assert.Contains(t, means, "The collector goes on.")
	assert.Equal(t, map[int]int64{0: 3, 1: -1}, record.Offsets)
	assert.Equal(t, []any{batch.LedgerRetire, uint64(1), a.number, uint64(1), "o", "bad sector", r.log},
		[]any{record.Kind, record.Epoch, record.Number, record.Lost, record.By, record.Reason, record.Log})
	r.write(&record)
	a.report(batch.LedgerInterval, func(l *batch.LedgerRecord) { l.Lost, l.LostFrom = 1, &from })
	assert.Empty(t, r.audit(nil).Findings)
	a.report(batch.LedgerInterval, func(l *batch.LedgerRecord) { l.Lost, l.LostFrom = 2, &from })
	assert.Equal(t, map[Kind]uint64{DamagedSpool: 1}, kinds(r.audit(nil).Findings), "one more")
}

// An operator let a partition pass over records that Kafka had deleted.
func TestPassedOver(t *testing.T) {
	r := newRig(t)
	a := r.collector("a", 1)
	a.report(batch.LedgerOpen, nil)
	var all []*record
	for i := 0; len(all) < 6; i++ {
		x := a.accept(events(string(rune('a'+i)), 1), time.Now(), 0)[0]
		if r.produce(x); x.partition != 0 {
			a.seq--
			continue
		}
		all = append(all, x)
		a.offsets[0] = x.offset
	}
	r.drain(schema.Stored, all[:2]...)
	r.drain(schema.Stored, all[4:]...)
	delete(r.ends, 1)
	r.progress()
	at := schema.Position{Log: r.log, Topic: r.topic, Partition: 0, Offset: 2}
	require.NoError(t, r.store.RecordStop(t.Context(), at, "deleted", "x", 4))
	stops, err := r.store.Stops(t.Context(), r.topic)
	require.NoError(t, err)
	require.NoError(t, r.store.Resume(t.Context(), stops[0], "o"))
	report := r.audit(nil)
	assert.Empty(t, report.Findings, "nobody has said that they were acknowledged")
	assert.EqualValues(t, 2, kinds(report.Notes)[Skipped])
	a.report(batch.LedgerInterval, nil)
	assert.Equal(t, map[Kind]uint64{Lost: 2}, kinds(r.audit(nil).Findings), "now they have")
}

// batches forgets after the dedup window: what is older is not missed.
func TestExpired(t *testing.T) {
	r := newRig(t)
	a := r.collector("a", 1)
	// It began long before the window, and its opening is not known.
	a.seq = 100
	a.report(batch.LedgerInterval, nil)
	report := r.audit(nil)
	assert.Empty(t, report.Findings, "whatever there was may have expired")
	kept := a.send(a.accept(events("1", 1), time.Now(), 0)...)
	a.accept(events("2", 1), time.Now(), 0)
	kept = append(kept, a.send(a.accept(events("3", 1), time.Now(), 0)...)...)
	r.drain(schema.Stored, kept...)
	r.progress()
	a.report(batch.LedgerInterval, nil)
	report = r.audit(nil)
	require.Len(t, report.Findings, 1)
	assert.EqualValues(t, 102, report.Findings[0].FirstSeq, "and what is not, is")
}

func TestKafkaAway(t *testing.T) {
	r := newRig(t)
	a := r.collector("a", 1)
	a.report(batch.LedgerOpen, nil)
	r.drain(schema.Stored, a.send(a.accept(events("1", 1), time.Now(), 0)...)...)
	a.report(batch.LedgerInterval, nil)
	r.progress()
	r.copyLedger()
	r.client.Close()
	report := r.audit(func(o *Options) { o.SilentAfter, o.Grace = time.Nanosecond, time.Second })
	assert.Empty(t, report.Findings, "nobody can be heard")
	assert.EqualValues(t, 2, kinds(report.Notes)[Unproven])
	r.exec("ALTER TABLE batches DELETE WHERE seq = 1 SETTINGS mutations_sync = 2")
	report = r.audit(nil)
	assert.NotEmpty(t, report.Findings)
}
