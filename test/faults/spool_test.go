package faults

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/test/pipeline"
)

// smallSpool makes segments of 2 MiB, so that a few hundred batches fill several.
var smallSpool = []string{"SLUICE_SPOOL_MAX_BYTES=32MiB", "SLUICE_SPOOL_MIN_FREE_BYTES=1MiB", "SLUICE_MAX_BODY_BYTES=1MiB"}

// fat is one batch of one event of about 30 KB, and the event's id.
func fat(n int) (key string, id uuid.UUID, body []byte) {
	id = uuid.NewSHA1(uuid.NameSpaceOID, fmt.Appendf(nil, "fat-%d", n))
	attributes := map[string]string{}
	for i := range 30 {
		attributes[fmt.Sprintf("a%02d", i)] = strings.Repeat(string(rune('a'+(n+i)%26)), 1000)
	}
	body, _ = json.Marshal([]map[string]any{{"experiment": "e", "variant": "v", "unit_id": fmt.Sprint(n), "event_id": id, "attributes": attributes}})
	return fmt.Sprintf("fat-%d", n), id, body
}

// accepted sends a batch once and reports whether it was taken.
func accepted(t *testing.T, c *pipeline.Service, n int) (durable string, status int, retryAfter string) {
	t.Helper()
	key, _, body := fat(n)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.URL+"/v1/exposures", bytes.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", key)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	var a struct{ Durable string }
	_ = json.NewDecoder(resp.Body).Decode(&a) // a refusal has another shape
	return a.Durable, resp.StatusCode, resp.Header.Get("Retry-After")
}

// storedIDs are the events ClickHouse has.
func storedIDs(t *testing.T, p *pipeline.Pipeline) map[uuid.UUID]int {
	t.Helper()
	rows, err := p.Store.Query(t.Context(), "SELECT event_id, count() FROM exposures GROUP BY event_id")
	require.NoError(t, err)
	defer rows.Close()
	out := map[uuid.UUID]int{}
	for rows.Next() {
		var id uuid.UUID
		var n uint64
		require.NoError(t, rows.Scan(&id, &n))
		out[id] = int(n)
	}
	require.NoError(t, rows.Err())
	return out
}

// A damaged spool: the collector starts, what is intact is delivered, and what is
// not is counted: by the collector's metric, by sluice spool verify, by the audit.
func TestDamagedSpool(t *testing.T) {
	s := startServers(t)
	const batches = 300
	segments := func(t *testing.T, dir string) []string {
		found, err := filepath.Glob(filepath.Join(dir, "segments", "*"))
		require.NoError(t, err)
		found = slices.DeleteFunc(found, func(f string) bool {
			st, err := os.Stat(f)
			return err != nil || st.IsDir() || st.Size() < 500_000
		})
		slices.Sort(found)
		require.Greater(t, len(found), 2, "segments")
		return found
	}
	change := func(t *testing.T, file string, do func(b []byte) []byte) {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, do(b), 0o644))
	}
	for _, c := range []struct {
		name       string
		damage     func(t *testing.T, dir string)
		least, max int // events lost
	}{
		{"torn tail", func(t *testing.T, dir string) {
			all := segments(t, dir)
			change(t, all[len(all)-1], func(b []byte) []byte { return append(b, b[len(b)/2:len(b)/2+5000]...) })
		}, 0, 0},
		{"flipped bit", func(t *testing.T, dir string) {
			change(t, segments(t, dir)[1], func(b []byte) []byte { b[len(b)/2] ^= 4; return b })
		}, 1, 1},
		{"missing file", func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(segments(t, dir)[1]))
		}, 20, 120},
		{"half a segment", func(t *testing.T, dir string) {
			change(t, segments(t, dir)[1], func(b []byte) []byte { return b[:len(b)/2] })
		}, 10, 80},
		{"block of zeros", func(t *testing.T, dir string) {
			change(t, segments(t, dir)[1], func(b []byte) []byte { clear(b[len(b)/2 : len(b)/2+4096]); return b })
		}, 1, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pipeline.On(t, s.kafka.Addr(), "clickhouse://"+s.clickhouse.Addr()+"/damaged_"+strings.ReplaceAll(c.name, " ", "_"))
			dir := filepath.Join(t.TempDir(), "spool")
			col := p.Collector(append(slices.Clone(smallSpool), "SLUICE_SPOOL_DIR="+dir)...)
			require.NoError(t, s.kafka.Kill())
			for n := range batches {
				durable, status, _ := accepted(t, col, n)
				require.Equal(t, http.StatusAccepted, status)
				require.Equal(t, "spool", durable)
			}
			require.NoError(t, col.Kill())
			c.damage(t, dir)

			require.NoError(t, col.Restart(t.Context()), "the collector starts with a damaged spool")
			require.NoError(t, s.kafka.Restart(t.Context()))
			p.Sink()
			require.Eventually(t, func() bool { return col.Metric(t, "sluice_spool_batches") == 0 }, settle, 100*time.Millisecond, "drained")
			p.Settled(settle)
			stored := storedIDs(t, p)
			lost := 0
			for n := range batches {
				_, id, _ := fat(n)
				switch stored[id] {
				case 0:
					lost++
				case 1:
				default:
					assert.Fail(t, "stored twice", "batch %d", n)
				}
			}
			t.Logf("%d lost", lost)
			assert.GreaterOrEqual(t, lost, c.least)
			assert.LessOrEqual(t, lost, c.max, "only what was damaged")
			assert.Equal(t, float64(lost), col.Metric(t, "sluice_spool_lost_records"))

			verify := exec.CommandContext(t.Context(), filepath.Join(p.Bin, "sluice"), "spool", "verify", dir, "--output", "json")
			out, err := verify.Output()
			var report struct{ Lost int }
			require.NoError(t, json.Unmarshal(out, &report), "%s", out)
			assert.Equal(t, lost, report.Lost)
			if lost > 0 {
				require.Error(t, err)
				assert.Equal(t, 3, verify.ProcessState.ExitCode())
			}
			// The collector has told the ledger, and a sink has copied that.
			p.Eventually(1, "SELECT count() > 0 AND argMax(pending, version) = 0 AND max(lost) = "+strconv.Itoa(lost)+" FROM ledger WHERE entry = 'newest'", settle)
			audit := exec.CommandContext(t.Context(), filepath.Join(p.Bin, "sluice"), "audit", "--wait", "20s", "--output", "json",
				"--clickhouse-dsn", p.DSN, "--kafka-brokers", p.Kafka, "--topic-prefix", p.Prefix)
			out, err = audit.Output()
			if lost > 0 {
				assert.Equal(t, 3, audit.ProcessState.ExitCode(), "%s", out)
				assert.Contains(t, string(out), "damaged_spool")
			} else {
				assert.NoError(t, err, "%s", out)
			}
		})
	}
}

// A spool that is full, or whose disk is, refuses and says when to come back;
// nothing is evicted, and it goes on by itself.
func TestFullSpool(t *testing.T) {
	s := startServers(t)
	for _, c := range []struct {
		name string
		fill func(t *testing.T, fault string, send func() int)
		free func(t *testing.T, fault string)
	}{
		{"its own limit", func(t *testing.T, _ string, send func() int) {
			for send() == http.StatusAccepted { // until it is full
			}
		}, func(t *testing.T, _ string) { require.NoError(t, s.kafka.Restart(t.Context())) }},
		{"no space on the disk", func(t *testing.T, fault string, _ func() int) {
			require.NoError(t, os.WriteFile(fault, []byte("enospc"), 0o644))
		}, func(t *testing.T, fault string) { require.NoError(t, os.Remove(fault)) }},
		{"fsync fails", func(t *testing.T, fault string, _ func() int) {
			require.NoError(t, os.WriteFile(fault, []byte("fsync"), 0o644))
		}, func(t *testing.T, fault string) { require.NoError(t, os.Remove(fault)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pipeline.On(t, s.kafka.Addr(), "clickhouse://"+s.clickhouse.Addr()+"/full_"+strings.ReplaceAll(c.name, " ", "_"))
			fault := filepath.Join(t.TempDir(), "fault")
			col := p.Collector(append(slices.Clone(smallSpool), "SLUICE_TEST_SPOOL_FAULT="+fault)...)
			require.NoError(t, s.kafka.Kill())
			n, acked := 0, map[uuid.UUID]bool{}
			send := func() int {
				_, id, _ := fat(n)
				_, status, after := accepted(t, col, n)
				n++
				if status == http.StatusAccepted {
					acked[id] = true
				} else {
					require.Equal(t, http.StatusServiceUnavailable, status)
					assert.NotEmpty(t, after, "Retry-After")
				}
				return status
			}
			for range 20 {
				require.Equal(t, http.StatusAccepted, send())
			}
			c.fill(t, fault, send)
			waiting := len(acked)
			for range 20 {
				require.Equal(t, http.StatusServiceUnavailable, send())
			}
			assert.Equal(t, float64(waiting), col.Metric(t, "sluice_spool_batches"), "nothing is evicted")
			c.free(t, fault)
			require.Eventually(t, func() bool { return send() == http.StatusAccepted }, settle, 100*time.Millisecond, "it goes on by itself")
			require.NoError(t, s.kafka.Restart(t.Context()))
			p.Sink()
			require.Eventually(t, func() bool {
				rows, err := p.Store.Query(t.Context(), "SELECT toUInt64(count()) FROM exposures FINAL")
				if err != nil {
					return false
				}
				defer rows.Close()
				var have uint64
				return rows.Next() && rows.Scan(&have) == nil && int(have) >= len(acked)
			}, settle, 200*time.Millisecond)
			stored := storedIDs(t, p)
			for id := range acked {
				assert.Equal(t, 1, stored[id], "stored once")
			}
		})
	}
}
