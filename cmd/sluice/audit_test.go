package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/audit"
	"sluice/pkg/batch"
	"sluice/test/pipeline"
)

func TestAuditRefusesFlags(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"reason alone":  {[]string{"--reason=x"}, "--reason: want --retire with it"},
		"no reason":     {[]string{"--retire=x"}, "--retire: want --reason with it"},
		"empty reason":  {[]string{"--retire=x", "--reason= "}, "--retire: want --reason with it"},
		"retire repair": {[]string{"--retire=x", "--reason=y", "--repair"}, "--retire: want neither"},
		"long reason":   {[]string{"--retire=x", "--reason=" + strings.Repeat("x", 1001)}, "--reason: want at most 1000 bytes"},
		"since":         {[]string{"--since=yesterday"}, "want a time such as"},
		"wait":          {[]string{"--wait=2h"}, "--wait=2h0m0s: want 0s to 1h"},
		"wait negative": {[]string{"--wait=-1s"}, "want 0s to 1h"},
		"silent":        {[]string{"--silent-after=1ms"}, "--silent-after=1ms: want 1s to 720h"},
		"neither":       {[]string{"x"}, "unexpected argument"},
	} {
		t.Run(name, func(t *testing.T) {
			got := sluice(t, append([]string{"audit"}, tt.args...))
			assert.Equal(t, 2, got.code, got.stderr)
			assert.Contains(t, oneLine(t, got.stderr), tt.want)
		})
	}
	got := sluice(t, []string{"receipt", strings.Repeat("k", 257)})
	assert.Equal(t, 2, got.code)
	assert.Contains(t, oneLine(t, got.stderr), "want a key of 1 to 256 characters")
}

// found is what the audit prints as JSON.
type found struct {
	Findings []struct {
		Kind      string
		Collector string
		Epoch     uint64
		FirstSeq  uint64 `json:"first_seq"`
		BatchID   string `json:"batch_id"`
		Partition int
		Offset    int64
		Count     uint64
	}
	Checked struct{ Batches, Events, Numbers uint64 }
	Counts  map[string]uint64
	Notes   []struct{ Kind, Detail string }

	Repaired *int64 `json:"repaired_rows"`
}

// The whole of it, from outside: what was sent is receipted and found in order; what
// is deleted by hand is found, and brought back.
func TestAuditAndReceipt(t *testing.T) {
	p := pipeline.New(t)
	env := []string{"SLUICE_KAFKA_BROKERS=" + p.Kafka, "SLUICE_CLICKHOUSE_DSN=" + p.DSN, "SLUICE_TOPIC_PREFIX=" + p.Prefix}
	spool := filepath.Join(t.TempDir(), "spool")
	collector := p.Collector("SLUICE_SPOOL_DIR=" + spool)
	sink := p.Sink()
	const batches = 30
	for n := range batches {
		body := fmt.Sprintf(`[{"experiment":"e","variant":"v","unit_id":"a%d"},{"experiment":"e","variant":"v","unit_id":"b%d"},{"experiment":"e","variant":"v"}]`, n, n)
		a, err := pipeline.Post(t.Context(), collector.URL+"/v1/exposures", []byte(body), map[string]string{"Idempotency-Key": fmt.Sprint("key-", n)})
		require.NoError(t, err)
		require.Equal(t, http.StatusAccepted, a.Status, "%s", a.Body)
	}
	p.Eventually(batches, "SELECT count() FROM batches", patience)
	now := time.Now().UTC()
	require.Eventually(t, func() bool {
		return p.Count(fmt.Sprintf("SELECT toUnixTimestamp64Micro(complete_until) > %d FROM delivery_watermark", now.UnixMicro())) == 1
	}, patience, tick, "the watermark passes what was sent")
	p.Eventually(1, "SELECT collectors FROM delivery_watermark", patience)
	p.Eventually(1, "SELECT count() FROM delivery_watermark_collectors WHERE state = 'open'", patience)
	assert.Positive(t, sink.Metric(t, "sluice_ledger_records_total"))

	look := func(code int, args ...string) (f found) {
		t.Helper()
		got := sluice(t, append([]string{"audit", "--output", "json"}, args...), env...)
		require.Equal(t, code, got.code, "%s%s", got.stdout, got.stderr)
		require.NoError(t, json.Unmarshal([]byte(got.stdout), &f))
		return f
	}
	f := look(0)
	assert.Empty(t, f.Findings)
	assert.EqualValues(t, batches, f.Checked.Batches)
	assert.EqualValues(t, 2*batches, f.Checked.Events)
	assert.EqualValues(t, batches, f.Checked.Numbers)
	text := sluice(t, []string{"audit"}, env...)
	assert.Zero(t, text.code)
	assert.Contains(t, text.stdout, "Nothing is lost, torn or doubled.")

	// Receipts, by key and by id.
	type receipt struct {
		State   string
		BatchID string `json:"batch_id"`
		Rows    int
		Records []struct {
			Outcome, Path string
			Seq           uint64
			Events        int
			Rejected      int
		}
		Dead []struct{ Index int } `json:"dead_letters"`
	}
	id := batch.ForKey("default", "key-7")
	for _, arg := range []string{"key-7", id.String(), strings.ToUpper(id.String())} {
		got := sluice(t, []string{"receipt", arg, "--output", "json"}, env...)
		require.Zero(t, got.code, got.stderr)
		var r receipt
		require.NoError(t, json.Unmarshal([]byte(got.stdout), &r))
		assert.Equal(t, []any{"stored", id.String(), 2, 1, 1}, []any{r.State, r.BatchID, r.Rows, len(r.Records), len(r.Dead)})
		assert.Equal(t, []any{"stored", 2, 1}, []any{r.Records[0].Outcome, r.Records[0].Events, r.Records[0].Rejected})
		assert.Contains(t, []string{"direct", "spool"}, r.Records[0].Path) // as Kafka was in time or not
	}
	got := sluice(t, []string{"receipt", "key-7"}, env...)
	assert.Zero(t, got.code)
	assert.Contains(t, got.stdout, "Batch "+id.String()+": stored\n")
	assert.Contains(t, got.stdout, "2 rows in exposures and events\n")
	assert.Contains(t, got.stdout, "missing_field")
	got = sluice(t, []string{"receipt", "key-7", "--project", "other"}, env...)
	assert.Equal(t, 3, got.code)
	assert.Contains(t, got.stdout, ": not known\n")
	assert.Contains(t, oneLine(t, got.stderr), "no such batch is known")

	// By hand: a row of batches, and rows of exposures.
	gone := batch.ForKey("default", "key-3")
	require.NoError(t, p.Store.Exec(t.Context(), "ALTER TABLE batches DELETE WHERE batch_id = toUUID('"+gone.String()+"') SETTINGS mutations_sync = 2"))
	require.NoError(t, p.Store.Exec(t.Context(), "ALTER TABLE exposures DELETE WHERE unit_id = 'b5' SETTINGS mutations_sync = 2"))
	f = look(3)
	require.Len(t, f.Findings, 2)
	assert.Equal(t, map[string]uint64{"lost": 1, "torn": 1}, map[string]uint64{f.Findings[0].Kind: 1, f.Findings[1].Kind: 1})
	assert.Equal(t, gone.String(), f.Findings[0].BatchID)
	assert.NotZero(t, f.Findings[0].FirstSeq)
	assert.Equal(t, batch.ForKey("default", "key-5").String(), f.Findings[1].BatchID)
	text = sluice(t, []string{"audit", "--since", "1h"}, env...)
	assert.Equal(t, 3, text.code)
	assert.Contains(t, oneLine(t, text.stderr), "the audit has findings: lost 1, torn 1")
	assert.Contains(t, text.stdout, "batch "+gone.String())
	f = look(0, "--repair")
	assert.Empty(t, f.Findings)
	require.NotNil(t, f.Repaired)
	assert.EqualValues(t, 2, *f.Repaired)
	assert.Equal(t, 2*batches, p.Count("SELECT count() FROM exposures FINAL"))
	f = look(0, "--repair")
	assert.EqualValues(t, 0, *f.Repaired)

	// A collector that is there is not given up, nor one that nobody knows.
	var collectorID string
	require.NoError(t, func() error {
		content, err := os.ReadFile(filepath.Join(spool, "collector-id"))
		collectorID = strings.TrimSpace(string(content))
		return err
	}())
	retire := func(code int, id string) outcome {
		t.Helper()
		got := sluice(t, []string{"audit", "--retire", id, "--reason", "the disk burnt"}, env...)
		require.Equal(t, code, got.code, "%s%s", got.stdout, got.stderr)
		return got
	}
	assert.Contains(t, retire(1, collectorID).stderr, "stop it first")
	assert.Contains(t, retire(1, batch.Random().String()).stderr, "is in the ledger")
	assert.Contains(t, retire(1, "x.y").stderr, "neither a collector's id")

	// Killed, and its directory deleted: found once it is silent, and given up.
	require.NoError(t, collector.Kill())
	require.NoError(t, os.RemoveAll(spool))
	require.Eventually(t, func() bool {
		return p.Count("SELECT max(appended_at) < now64(6) - INTERVAL 12 SECOND FROM ledger") == 1
	}, patience, tick)
	f = look(3, "--silent-after", "2s")
	require.Len(t, f.Findings, 1)
	assert.Equal(t, []any{"silent_spool", collectorID}, []any{f.Findings[0].Kind, f.Findings[0].Collector})
	p.Eventually(1, "SELECT held_by = toUUID('"+collectorID+"') FROM delivery_watermark", patience)
	assert.Contains(t, retire(0, collectorID).stdout, "The watermark does not wait for collector "+collectorID)
	p.Eventually(1, "SELECT count() FROM delivery_watermark_collectors WHERE state = 'retired' AND endsWith(why, 'the disk burnt')", patience)
	p.Eventually(0, "SELECT collectors FROM delivery_watermark", patience)
	f = look(0, "--silent-after", "2s")
	assert.Equal(t, uint64(1), f.Counts["given_up"])
	assert.Contains(t, retire(1, collectorID).stderr, "gave collector")
}

func TestNameOf(t *testing.T) {
	for want, l := range map[string]string{
		"lost collector c epoch 7 seq 3 batch b partition 1 offset 9: gone": `{"kind":"lost","collector":"c","epoch":7,"first_seq":3,"last_seq":3,"batch_id":"b","partition":1,"offset":9,"count":1,"detail":"gone"}`,
		"lost collector c epoch 7 seq 3 to 5: gone":                         `{"kind":"lost","collector":"c","epoch":7,"first_seq":3,"last_seq":5,"partition":-1,"offset":-1,"detail":"gone"}`,
		"torn batch b partition 0 offset 0 events 1,2: gone":                `{"kind":"torn","batch_id":"b","partition":0,"offset":0,"indices":[1,2],"detail":"gone"}`,
		"held: why": `{"kind":"held","partition":-1,"offset":-1,"detail":"why"}`,
	} {
		assert.Equal(t, want, nameOf(lineOf(t, l)))
	}
}

func lineOf(t *testing.T, text string) (l audit.Line) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(text), &l))
	return l
}
