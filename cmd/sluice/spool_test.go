package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/config"
	"sluice/internal/embedded/teststack"
	"sluice/internal/kafka"
	"sluice/internal/spool"
	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// spoolVerb runs a verb of spool in this process.
func spoolVerb(t *testing.T, environ []string, args ...string) (stdout string, err error) {
	t.Helper()
	var c struct {
		Process config.Process `embed:""`
		Spool   spools         `cmd:""`
	}
	var out bytes.Buffer
	parsed, err := config.Parse(&c, config.Program{Name: "sluice"}, append([]string{"spool"}, args...), environ, &out, &out)
	require.NoError(t, err)
	err = parsed.Run(&tool{ctx: t.Context(), process: c.Process, environ: environ, stdout: &out, stderr: &bytes.Buffer{}})
	return out.String(), err
}

// spooledBatch is a batch of two events, one of which was rejected, as a collector
// spools it.
func spooledBatch(n int) batch.Record {
	at := time.UnixMicro(1_700_000_000_000_000).Add(time.Duration(n) * time.Second)
	b := schema.Batch{Project: "shop", Source: "native", ID: batch.ForKey("shop", fmt.Sprint(n)), ReceivedAt: at.UnixMicro(), SDK: "js/1.0"}
	e := b.Append()
	e.Kind, e.Experiment, e.Variant, e.UnitID = schema.KindExposure, "exp-a", "v1", fmt.Sprintf("user-%d", n)
	b.Check(nil)
	b.Append()
	b.Reject(schema.CodeMissingField, "unit_id", "required", []byte(`{"experiment":"x"}`))
	b.DedupID = b.ID
	b.ComputeDigest()
	b.Resolve(at, schema.Limits{Past: time.Hour, Future: time.Hour})
	return batch.Record{BatchID: b.ID, DedupID: b.ID, Digest: b.Digest, Project: "shop", Collector: batch.ForKey("c", "1"), Epoch: 7, Seq: uint64(n),
		Path: batch.Spool, Value: schema.AppendRecord(nil, &b, schema.Range{First: 0, Last: 1}), Events: 1, ReceivedAt: at}
}

// spoolOf makes a spool directory with records 1 to n; 3 and 4 are removed, and 5
// was refused by Kafka.
func spoolOf(t *testing.T, n int) (dir string) {
	dir = t.TempDir()
	s, err := spool.Open(dir, spool.Options{SegmentBytes: 64 << 10})
	require.NoError(t, err)
	for i := 1; i <= n; i++ {
		_, err := s.Append(t.Context(), []batch.Record{spooledBatch(i)})
		require.NoError(t, err)
	}
	s.Remove(3, 4)
	if n >= 5 {
		require.NoError(t, s.SetAside(5, errors.New("too large")))
	}
	require.NoError(t, s.Close())
	return dir
}

func lines(t *testing.T, text string) (out []spooled) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	for dec.More() {
		var s spooled
		require.NoError(t, dec.Decode(&s))
		out = append(out, s)
	}
	return out
}

func TestSpoolLooksAtIt(t *testing.T) {
	dir := spoolOf(t, 400)
	env := []string{"SLUICE_SPOOL_DIR=" + dir}

	out, err := spoolVerb(t, env, "ls", "--output", "json")
	require.NoError(t, err)
	var report spool.Report
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	assert.Equal(t, uint64(397), report.Records)
	assert.Equal(t, batch.SpoolIntact, report.State)
	require.Greater(t, len(report.Segments), 1)
	assert.Equal(t, spooledBatch(400).ReceivedAt, report.Segments[len(report.Segments)-1].Newest.Local())
	assert.NotContains(t, out, "null")

	out, err = spoolVerb(t, nil, "ls", dir)
	require.NoError(t, err)
	assert.Contains(t, out, "WAITING")
	assert.Contains(t, out, "397 records wait")
	assert.Contains(t, out, "1 acknowledged records are lost or set aside")

	out, err = spoolVerb(t, env, "dump")
	require.NoError(t, err)
	got := lines(t, out)
	require.Len(t, got, 397)
	first := got[0]
	assert.Equal(t, spooledBatch(1).BatchID, first.BatchID)
	assert.Equal(t, spooledBatch(1).ReceivedAt, first.ReceivedAt.Local())
	require.Len(t, first.Events, 1)
	assert.Contains(t, string(first.Events[0]), `"unit_id":"user-1"`)
	require.Len(t, first.Rejected, 1)
	assert.Equal(t, `{"experiment":"x"}`, string(first.Rejected[0].Bytes))
	assert.Empty(t, first.Value)

	out, err = spoolVerb(t, env, "dump", "--raw")
	require.NoError(t, err)
	got = lines(t, out)
	assert.Equal(t, spooledBatch(1).Value, got[0].Value)
	assert.Empty(t, got[0].Events)

	out, err = spoolVerb(t, env, "dump", "--refused")
	require.NoError(t, err)
	got = lines(t, out)
	require.Len(t, got, 1)
	assert.Equal(t, uint64(5), got[0].Number)

	_, err = spoolVerb(t, nil, "ls", filepath.Join(dir, "nowhere"))
	assert.Equal(t, 1, config.ExitCode(err))
	assert.ErrorIs(t, err, os.ErrNotExist)
}

// exits3 reports whether the tool exits with 3 for an error.
func exits3(err error) bool {
	var problem interface{ ExitCode() int }
	return errors.As(err, &problem) && problem.ExitCode() == 3
}

func TestSpoolVerify(t *testing.T) {
	dir := spoolOf(t, 4)
	out, err := spoolVerb(t, nil, "verify", dir)
	require.NoError(t, err)
	assert.Contains(t, out, "2 records wait")

	dir = spoolOf(t, 400)
	_, err = spoolVerb(t, nil, "verify", dir)
	assert.True(t, exits3(err), "a batch that Kafka refused goes to nobody")

	names, err := filepath.Glob(filepath.Join(dir, "segments", "*.seg"))
	require.NoError(t, err)
	b, err := os.ReadFile(names[0])
	require.NoError(t, err)
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(names[0], b, 0o600))
	require.NoError(t, os.Remove(names[1]))

	out, err = spoolVerb(t, nil, "verify", dir, "--output", "json")
	assert.True(t, exits3(err))
	var report spool.Report
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	require.Len(t, report.Findings, 2)
	assert.Equal(t, batch.SpoolDamaged, report.State)
	one, missing := report.Findings[0], report.Findings[1]
	assert.Equal(t, spool.BadRecord, one.Kind)
	assert.Equal(t, filepath.Join("segments", filepath.Base(names[0])), one.File)
	assert.LessOrEqual(t, one.Offset, int64(len(b)/2))
	assert.Greater(t, one.Offset+one.Length, int64(len(b)/2))
	assert.Equal(t, uint64(1), one.Lost)
	assert.Equal(t, spool.MissingSegment, missing.Kind)
	assert.Greater(t, missing.Lost, uint64(100))

	out, err = spoolVerb(t, nil, "verify", dir)
	assert.True(t, exits3(err))
	assert.Contains(t, out, filepath.Base(names[0]))
	assert.Contains(t, out, "missing")

	// The rest can be had all the same.
	out, err = spoolVerb(t, nil, "dump", dir)
	require.NoError(t, err)
	assert.Len(t, lines(t, out), int(400-3-one.Lost-missing.Lost))
}

// drainedTopic is a topic in memory.
type drainedTopic struct {
	records []batch.Record
	refuse  func(*batch.Record) bool
	down    int // so many calls fail
}

func (d *drainedTopic) Partition(context.Context, batch.ID) (int, error) { return 0, nil }

func (d *drainedTopic) Produce(_ context.Context, _ int, records []batch.Record) (int64, time.Time, error) {
	if d.down > 0 {
		d.down--
		return 0, time.Time{}, retry.Mark(errors.New("no broker"), retry.Transient)
	}
	for i := range records {
		if d.refuse != nil && d.refuse(&records[i]) {
			return 0, time.Time{}, refusedRecords{errors.New("message too large")}
		}
	}
	d.records = append(d.records, records...)
	return 0, time.Now(), nil
}

type refusedRecords struct{ error }

func (refusedRecords) Refused() []int { return nil }

func TestSpoolSends(t *testing.T) {
	dir := spoolOf(t, 200)
	synctest.Test(t, func(t *testing.T) {
		topic := &drainedTopic{down: 3, refuse: func(r *batch.Record) bool { return r.Seq == 77 }}
		s := &sender{to: topic, bar: &bar{}}
		err := s.spool(t.Context(), &tool{ctx: t.Context(), stderr: &bytes.Buffer{}}, dir)
		assert.True(t, exits3(err), "%v", err)
		assert.Equal(t, drained{Sent: 196, Bytes: s.done.Bytes, Refused: 1, Lost: 1}, s.done)
		seen := map[uint64]bool{}
		for i := range topic.records {
			r := topic.records[i]
			require.Equal(t, spooledBatch(int(r.Seq)), r)
			seen[r.Seq] = true
		}
		assert.Len(t, seen, 196)

		// Mended: what was refused goes, too.
		topic = &drainedTopic{refuse: func(r *batch.Record) bool { return r.Seq == 5 }}
		s = &sender{to: topic, bar: &bar{}}
		err = s.refused(t.Context(), dir)
		assert.True(t, exits3(err))
		assert.Equal(t, uint64(1), s.done.Sent)
		assert.Equal(t, uint64(1), s.done.Waiting)
		s = &sender{to: &drainedTopic{}, bar: &bar{}}
		require.NoError(t, s.refused(t.Context(), dir))
		assert.Equal(t, uint64(1), s.done.Sent)
		s = &sender{to: &drainedTopic{}, bar: &bar{}}
		require.NoError(t, s.refused(t.Context(), dir))
		assert.Zero(t, s.done.Sent)

		// Kafka stays away.
		s = &sender{to: &drainedTopic{down: 1 << 30}, bar: &bar{}, patience: time.Minute}
		dir := spoolOf(t, 3)
		err = s.spool(t.Context(), &tool{ctx: t.Context(), stderr: &bytes.Buffer{}}, dir)
		assert.ErrorContains(t, err, "no broker")
		assert.Equal(t, uint64(2), s.done.Waiting)
	})
}

func TestSpoolDrain(t *testing.T) {
	dir := spoolOf(t, 4)
	brokers, prefix := teststack.Kafka(t), teststack.Prefix(t)
	client, err := kafka.Open(kafka.Config{Brokers: []string{brokers}, ClientID: "test"})
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, client.EnsureTopics(t.Context(), prefix, 3, 1))
	env := []string{"SLUICE_SPOOL_DIR=" + dir, "SLUICE_KAFKA_BROKERS=" + brokers, "SLUICE_TOPIC_PREFIX=" + prefix}

	unlock, err := spool.Lock(dir)
	require.NoError(t, err)
	_, err = spoolVerb(t, env, "drain")
	assert.ErrorContains(t, err, "collector is running")
	assert.Equal(t, 1, config.ExitCode(err))
	require.NoError(t, unlock())

	out, err := spoolVerb(t, env, "drain", "--output", "json")
	require.NoError(t, err)
	var got drained
	require.NoError(t, json.Unmarshal([]byte(out), &got))
	assert.Equal(t, uint64(2), got.Sent)
	assert.Zero(t, got.Waiting)
	out, err = spoolVerb(t, env, "ls")
	require.NoError(t, err)
	assert.Contains(t, out, "0 records wait")
	out, err = spoolVerb(t, env, "drain")
	require.NoError(t, err)
	assert.Contains(t, out, "0 records are in Kafka")

	_, err = spoolVerb(t, env, "drain", filepath.Join(dir, "nowhere"))
	assert.ErrorIs(t, err, os.ErrNotExist)
}
