package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/kafka"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
	"sluice/test/pipeline"
)

// replayed is what sluice replay prints as JSON, whatever it did.
type replayed struct {
	DryRun  bool `json:"dry_run"`
	Letters int  `json:"letters"`
	Valid   int  `json:"valid"`
	Sent    int  `json:"sent"`

	Records  int `json:"records"`
	Rows     int `json:"rows"`
	Missing  int `json:"missing"`
	Inserted int `json:"inserted"`
	Gone     int `json:"gone"`
	Pending  int `json:"pending"`
	Doubled  int `json:"doubled"`
	Counts   []struct {
		Table, Stage, Reason, Experiment, Variant, Result string
		Rows, Events                                      int
	} `json:"counts"`
	Comparison []struct {
		Experiment, Variant string
		Original, Shadow    int
	} `json:"comparison"`
}

// results adds up the events of --dead by what becomes of them.
func (r replayed) results() map[string]int {
	out := map[string]int{}
	for _, c := range r.Counts {
		out[c.Result] += c.Events
	}
	return out
}

// tables adds up the missing rows by table.
func (r replayed) tables() map[string]int {
	out := map[string]int{}
	for _, c := range r.Counts {
		out[c.Table] += c.Rows
	}
	return out
}

func replayCommand(t *testing.T, p *pipeline.Pipeline, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(p.Bin, "sluice"), append([]string{"replay", "--output=json"}, args...)...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "SLUICE_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "SLUICE_KAFKA_BROKERS="+p.Kafka, "SLUICE_CLICKHOUSE_DSN="+p.DSN, "SLUICE_TOPIC_PREFIX="+p.Prefix)
	return cmd
}

// runReplay runs the tool and returns what it printed.
func runReplay(t *testing.T, p *pipeline.Pipeline, args ...string) replayed {
	t.Helper()
	cmd := replayCommand(t, p, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Run(), stderr.String())
	var out replayed
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &out), stdout.String())
	return out
}

func execute(t *testing.T, p *pipeline.Pipeline, statement string) {
	t.Helper()
	require.NoError(t, p.Store.Exec(t.Context(), statement))
}

// contentsOf is a hash of what a table has, in whatever parts.
func contentsOf(p *pipeline.Pipeline, table string) int {
	return p.Count("SELECT sum(cityHash64(*)) FROM (SELECT * EXCEPT (stored_at, dead_at) APPLY toString FROM " + table + " FINAL)")
}

// sendAs sends a body with a key, and requires that it is accepted.
func sendAs(t *testing.T, c *pipeline.Service, path, key, body string) accepted {
	t.Helper()
	a, err := pipeline.Post(t.Context(), c.URL+path, []byte(body), map[string]string{"Idempotency-Key": key})
	require.NoError(t, err)
	require.Contains(t, []int{http.StatusAccepted, http.StatusUnprocessableEntity}, a.Status, string(a.Body))
	var out accepted
	require.NoError(t, json.Unmarshal(a.Body, &out), string(a.Body))
	return out
}

func TestDeadLetterReplayedTwice(t *testing.T) {
	p := pipeline.New(t)
	c, sink := p.Collector(), p.Sink()
	sent := sendAs(t, c, "/v1/exposures", "k", `[{"experiment":"e","variant":"v","unit_id":"u0"},`+
		`{"experiment":"e","variant":"v","time":"2020-01-02T03:04:05Z","attributes":{"n":7}},`+
		`{"Experiment":"e","variant":"w","unit_id":"u2","event_id":"mine"},7]`)
	p.Eventually(3, "SELECT count() FROM dead_letters", settle)
	id, err := batch.ParseID(sent.BatchID)
	require.NoError(t, err)

	// Nothing can be done about them as they are.
	dry := runReplay(t, p, "--dead")
	assert.True(t, dry.DryRun)
	assert.Equal(t, map[string]int{"missing_field": 1, "misspelled_field": 1, "invalid_type": 1}, dry.results())
	fix := []string{"--dead", "--reason=missing_field,misspelled_field", "--set=unit_id=u9", "--set=experiment=e"}
	dry = runReplay(t, p, fix...)
	assert.Equal(t, map[string]int{"replay": 2}, dry.results())
	assert.Zero(t, dry.Sent)
	assert.Equal(t, 1, p.Count("SELECT count() FROM batches"), "a dry run sends nothing")

	// Twice while no sink runs, so that nobody can know yet; the last time repaired
	// in another way.
	require.NoError(t, sink.Stop(t.Context()))
	for range 2 {
		assert.Equal(t, 2, runReplay(t, p, append(fix, "--yes")...).Sent)
	}
	assert.Equal(t, 2, runReplay(t, p, append(fix, "--yes", "--set=variant=other")...).Sent)
	p.Sink()
	p.Eventually(7, "SELECT count() FROM batches", settle)
	assert.Equal(t, 3, p.Count("SELECT countIf(outcome = 'stored') FROM batches"))
	assert.Equal(t, 2, p.Count("SELECT countIf(outcome = 'duplicate') FROM batches"))
	assert.Equal(t, 2, p.Count("SELECT countIf(outcome = 'conflict') FROM batches"))
	assert.Equal(t, 3, p.Count("SELECT count() FROM exposures"), "each once, also without FINAL")

	// The ids they would have had: of the batch and the index, or of their own.
	assert.Equal(t, 1, p.Count(fmt.Sprintf(`SELECT count() FROM exposures AS e JOIN exposures AS o ON e.experiment = o.experiment
WHERE o.unit_id = 'u0' AND e.unit_id = 'u9' AND e.variant = 'v' AND e.event_id = '%s' AND e.time = e.received_at - INTERVAL 30 DAY AND e.time_adjusted
AND e.attributes['n'] = '7' AND e.batch_id = '%s' AND e.received_at = o.received_at AND e.project = 'default' AND e.source = 'native'`,
		batch.EventID(id, 1), batch.ReplayID(id, 1))))
	assert.Equal(t, 1, p.Count(fmt.Sprintf("SELECT count() FROM exposures WHERE event_id = '%s' AND variant = 'w' AND batch_id = '%s'",
		batch.ClientEventID("default", "mine"), batch.ReplayID(id, 2))))

	// Now everybody knows.
	assert.Equal(t, map[string]int{"already_replayed": 2}, runReplay(t, p, append(fix, "--yes")...).results())
	assert.Equal(t, map[string]int{"replayed_otherwise": 2}, runReplay(t, p, append(fix, "--yes", "--set=variant=other")...).results())
	assert.Equal(t, map[string]int{"replayed_otherwise": 2}, runReplay(t, p, "--dead", "--stage=conflict", "--yes").results())
	assert.Equal(t, 7, p.Count("SELECT count() FROM batches"), "and nothing more was sent")
	assert.Equal(t, 3, p.Count("SELECT count() FROM exposures"))
}

// Batches under one key that was used for all of them: each event becomes one.
func TestConflictsReplayed(t *testing.T) {
	p := pipeline.New(t)
	a, b, c := p.Collector(), p.Collector(), p.Collector()
	p.Sink()
	for i, s := range []*pipeline.Service{a, b, c} {
		sendAs(t, s, "/v1/exposures", "same", fmt.Sprintf(`[{"experiment":"e","variant":"v","unit_id":"u%d"},{"experiment":"e","variant":"v","unit_id":"w%d","event_id":"own-%d"}]`, i, i, i))
	}
	p.Eventually(4, "SELECT count() FROM dead_letters", settle)
	assert.Equal(t, 4, runReplay(t, p, "--dead", "--stage=conflict", "--yes").Sent)
	p.Eventually(6, "SELECT count() FROM exposures", settle)
	assert.Equal(t, 6, p.Count("SELECT uniqExact(event_id) FROM exposures"))
	assert.Equal(t, 6, p.Count("SELECT uniqExact(unit_id) FROM exposures"))
	assert.Equal(t, 3, p.Count("SELECT count() FROM exposures WHERE event_id IN ("+
		fmt.Sprintf("'%s','%s','%s'", batch.ClientEventID("default", "own-0"), batch.ClientEventID("default", "own-1"), batch.ClientEventID("default", "own-2"))+")"))
	assert.Equal(t, map[string]int{"already_replayed": 4}, runReplay(t, p, "--dead", "--yes").results())
}

// A record whose headers somebody has lost is kept whole, and is whole again.
func TestUndecodableRecordReplayed(t *testing.T) {
	p := pipeline.New(t)
	p.Sink()
	client, err := kafka.Open(kafka.Config{Brokers: []string{p.Kafka}})
	require.NoError(t, err)
	defer client.Close()
	b := schema.Batch{Project: "p", Source: "native", SDK: "go/1", ID: batch.ForKey("p", "broken")}
	require.NoError(t, schema.DecodeJSON([]byte(`[{"experiment":"e","variant":"v","unit_id":"u"},{"name":"paid","unit_id":"u","kind":"event","value":3},{"variant":"v"}]`), schema.KindExposure, 10, &b))
	b.ComputeDigest()
	at := time.Now().Add(-time.Hour).Truncate(time.Second)
	b.Resolve(at, schema.Limits{Past: time.Hour, Future: time.Hour})
	record := batch.Record{BatchID: b.ID, DedupID: b.ID, Digest: b.Digest, Project: "p", Path: "by hand", // which is neither direct nor spool
		ReceivedAt: at, Value: schema.AppendRecord(nil, &b, schema.Range{First: 0, Last: 2})}
	producer := client.NewProducer(p.Prefix + ".batches")
	partition, err := producer.Partition(t.Context(), b.ID)
	require.NoError(t, err)
	_, _, err = producer.Produce(t.Context(), partition, []batch.Record{record})
	require.NoError(t, err)
	p.Eventually(1, "SELECT count() FROM dead_letters WHERE stage = 'sink' AND reason = 'undecodable'", settle)

	assert.Equal(t, map[string]int{"replay": 2, "missing_field": 1}, runReplay(t, p, "--dead", "--stage=sink").results())
	assert.Equal(t, 1, runReplay(t, p, "--dead", "--stage=sink", "--experiment=e", "--yes").Sent)
	got := runReplay(t, p, "--dead", "--stage=sink", "--set=experiment=e", "--set=unit_id=u", "--yes")
	assert.Equal(t, 1, got.Letters)
	p.Eventually(2, "SELECT count() FROM exposures FINAL", settle)
	p.Eventually(1, "SELECT count() FROM events FINAL", settle)
	assert.Equal(t, 2, p.Count(fmt.Sprintf("SELECT count() FROM exposures FINAL WHERE event_id IN ('%s', '%s') AND sdk = 'go/1' AND received_at = fromUnixTimestamp(%d)",
		batch.EventID(b.ID, 0), batch.EventID(b.ID, 2), at.Unix())))
	assert.Equal(t, 1, p.Count("SELECT count() FROM events WHERE name = 'paid' AND value = 3"))
}

// sendMixture sends a mixture of batches: with events of both kinds, rejected ones, copies,
// conflicts, and one in parts.
func sendMixture(t *testing.T, p *pipeline.Pipeline) {
	t.Helper()
	a, b := p.Collector("SLUICE_RECORD_MAX_BYTES=32KiB"), p.Collector("SLUICE_RECORD_MAX_BYTES=32KiB")
	for i := range 60 {
		body := fmt.Sprintf(`[{"experiment":"exp-%d","variant":"a","unit_id":"u%d"},{"experiment":"exp-%d","variant":"b","unit_id":"w%d","event_id":"%d"},`+
			`{"kind":"event","name":"paid","unit_id":"u%d","value":%d},{"variant":"b"}]`, i%3, i, i%3, i, i, i, i)
		sendAs(t, a, "/v1/exposures", fmt.Sprint("key-", i), body)
		if i%5 == 0 {
			sendAs(t, b, "/v1/exposures", fmt.Sprint("key-", i), body)
		}
		if i%10 == 3 {
			sendAs(t, b, "/v1/exposures", fmt.Sprint("key-", i), `[{"experiment":"exp-9","variant":"x","unit_id":"u"}]`)
		}
	}
	large := string(exposures(800, "green", 100))
	sendAs(t, a, "/v1/exposures", "large", large)
	sendAs(t, b, "/v1/exposures", "large", large)
	p.Eventually(60+12+6, "SELECT count() FROM batches WHERE part = ''", settle)
	p.Eventually(120+800, "SELECT count() FROM exposures", settle)
	p.Settled(settle)
}

func TestRowsDeletedByHandComeBack(t *testing.T) {
	p := pipeline.New(t)
	p.Sink()
	sendMixture(t, p)
	tables := []string{"exposures", "events", "dead_letters", "batches"}
	whole, count := map[string]int{}, map[string]int{}
	for _, table := range tables {
		whole[table] = contentsOf(p, table)
		count[table] = p.Count("SELECT count() FROM " + table)
	}
	same := func(msg string) {
		t.Helper()
		for _, table := range tables {
			assert.Equal(t, whole[table], contentsOf(p, table), "%s: %s", table, msg)
			assert.Equal(t, count[table], p.Count("SELECT count() FROM "+table), "%s: %s, also without FINAL", table, msg)
		}
	}
	got := runReplay(t, p, "--since=1h", "--yes")
	assert.Zero(t, got.Missing, "%+v", got)
	assert.Equal(t, count["batches"], got.Records)
	same("nothing was missing")

	const sync = " SETTINGS mutations_sync = 2"
	remove := func(n int) {
		t.Helper()
		execute(t, p, "ALTER TABLE exposures DELETE WHERE experiment = 'exp-1' OR unit_id LIKE 'u1%'"+sync)
		execute(t, p, "ALTER TABLE events DELETE WHERE unit_id LIKE '%3'"+sync)
		execute(t, p, "ALTER TABLE dead_letters DELETE WHERE stage = 'conflict' OR batch_id IN (SELECT batch_id FROM batches WHERE cityHash64(batch_id) % 3 = 0)"+sync)
		// Of first records and of copies, also of batches whose events are gone.
		execute(t, p, fmt.Sprintf("ALTER TABLE batches DELETE WHERE outcome = 'conflict' OR cityHash64(batch_id, offset) %% 3 = %d", n)+sync)
	}
	left := func(table string) int { return count[table] - p.Count("SELECT count() FROM "+table) }
	for n := range 3 {
		remove(n)
		missing := map[string]int{}
		for _, table := range tables {
			missing[table] = left(table)
			require.NotZero(t, missing[table], table)
		}
		dry := runReplay(t, p, "--since=1h")
		assert.True(t, dry.DryRun)
		assert.Equal(t, missing, dry.tables())
		assert.Equal(t, missing["exposures"], left("exposures"), "a dry run inserts nothing")
		assert.Equal(t, missing["exposures"], runReplay(t, p, "--since=1h", "--dry-run").tables()["exposures"])

		part := runReplay(t, p, "--since=1h", "--experiment=exp-1", "--yes")
		assert.Equal(t, map[string]int{"exposures": 40}, part.tables(), "one experiment only")
		got := runReplay(t, p, "--since=1h", "--yes")
		assert.Equal(t, got.Missing, got.Inserted)
		assert.Equal(t, missing["exposures"]-40, got.tables()["exposures"])
		same(fmt.Sprint("repaired, round ", n))
	}
	assert.Zero(t, runReplay(t, p, "--since=1h", "--yes").Missing)
	assert.Zero(t, runReplay(t, p, "--since=1h", "--partition=0", "--yes").Missing)
	same("again")

	// Everything at once: what a record was has to be decided anew.
	for _, table := range tables {
		execute(t, p, "TRUNCATE TABLE "+table)
	}
	assert.Equal(t, p.Count("SELECT count() FROM batches"), 0)
	runReplay(t, p, "--since=1h", "--yes")
	same("from nothing")
}

// A sink that goes on beside it is not disturbed, and what it has yet to store is
// left to it.
func TestRepairBesideARunningSink(t *testing.T) {
	p := pipeline.New(t)
	c := p.Collector()
	sink := p.Sink()
	p.KeepEveryRow()
	load := pipeline.StartLoad(t, []string{c.URL}, 4, 20, 5*time.Millisecond)
	for round := range 3 {
		was := p.Count("SELECT count() FROM batches")
		require.Eventually(t, func() bool { return p.Count("SELECT count() FROM batches") > was+100 }, settle, 50*time.Millisecond)
		execute(t, p, fmt.Sprintf("ALTER TABLE exposures DELETE WHERE experiment = 'exp-%d' SETTINGS mutations_sync = 2", round))
		got := runReplay(t, p, "--since=1h", "--yes")
		assert.NotZero(t, got.Inserted)
	}
	load.Stop()
	load.AllOnce(p, settle)
	assert.Zero(t, sink.Metric(t, "sluice_sink_insert_errors_total"), "no insert of the sink was cancelled")
	assert.Zero(t, sink.Metric(t, "sluice_sink_alarms_total"))
}

func TestRepairIsInterruptedAndGoesOn(t *testing.T) {
	p := pipeline.New(t)
	c := p.Collector()
	p.Sink()
	for i := range 300 {
		sendAs(t, c, "/v1/exposures", fmt.Sprint("key-", i), string(exposures(100, fmt.Sprint("v", i%5), 200)))
	}
	p.Eventually(30_000, "SELECT count() FROM exposures", settle)
	p.Settled(settle)
	p.KeepEveryRow()
	whole := contentsOf(p, "exposures")
	execute(t, p, "TRUNCATE TABLE exposures")
	cmd := replayCommand(t, p, "--since=1h", "--yes")
	require.NoError(t, cmd.Start())
	// At the first rows it is killed; partitions are repaired one after another.
	require.Eventually(t, func() bool { return p.Count("SELECT count() FROM exposures") > 0 }, settle, time.Millisecond)
	killed := cmd.Process.Kill()
	require.True(t, killed == nil || errors.Is(killed, os.ErrProcessDone), killed)
	_ = cmd.Wait()
	then := p.Count("SELECT count() FROM exposures")
	got := runReplay(t, p, "--since=1h", "--yes")
	t.Logf("killed at %d rows; then %d were missing", then, got.Missing)
	assert.Equal(t, 30_000, then+got.Inserted)
	assert.Equal(t, 30_000, p.Count("SELECT count() FROM exposures"), "none twice")
	assert.Equal(t, whole, contentsOf(p, "exposures"))
}

// What ClickHouse refuses is among the dead letters, so it is not missing; and once it
// is not refused any more it can be sent again.
func TestRefusedEventReplayed(t *testing.T) {
	p := pipeline.New(t)
	c := p.Collector()
	p.Sink()
	execute(t, p, "ALTER TABLE exposures ADD CONSTRAINT sound CHECK unit_id != 'u77'")
	sendAs(t, c, "/v1/exposures", "k", string(exposures(1000, "green", 0)))
	p.Eventually(999, "SELECT count() FROM exposures", settle)
	p.Eventually(1, "SELECT count() FROM dead_letters WHERE stage = 'sink' AND reason = 'refused'", settle)
	p.Settled(settle)
	assert.Zero(t, runReplay(t, p, "--since=1h", "--yes").Missing)
	execute(t, p, "ALTER TABLE batches DELETE WHERE 1 SETTINGS mutations_sync = 2")
	assert.Equal(t, map[string]int{"batches": 1}, runReplay(t, p, "--since=1h", "--yes").tables())
	assert.Equal(t, 1, p.Count("SELECT count() FROM batches WHERE events = 999 AND rejected = 1"), "as the sink counts them")

	execute(t, p, "ALTER TABLE exposures DROP CONSTRAINT sound")
	assert.Zero(t, runReplay(t, p, "--since=1h", "--yes").Missing, "it is a person's to say that it is wanted again")
	assert.Equal(t, 1, runReplay(t, p, "--dead", "--reason=refused", "--yes").Sent)
	p.Eventually(2, "SELECT count() FROM batches", settle)
	assert.Equal(t, map[string]int{"already_replayed": 1}, runReplay(t, p, "--dead", "--reason=refused", "--yes").results())
	assert.Equal(t, 1000, p.Count("SELECT count() FROM exposures"))
	assert.Equal(t, 1000, p.Count("SELECT uniqExact(event_id) FROM exposures"), "under the id it would have had")
	assert.Equal(t, 1, p.Count("SELECT count() FROM exposures AS a JOIN exposures AS b ON a.experiment = b.experiment WHERE a.unit_id = 'u77' AND b.unit_id = 'u78'"+
		" AND substring(toString(a.event_id), 1, 24) = substring(toString(b.event_id), 1, 24)"))
}

func TestShadowTable(t *testing.T) {
	p := pipeline.New(t)
	p.Sink()
	sendMixture(t, p)
	total := func(r replayed) (original, shadow int) {
		for _, c := range r.Comparison {
			original, shadow = original+c.Original, shadow+c.Shadow
		}
		return original, shadow
	}
	got := runReplay(t, p, "--since=1h", "--into=copy")
	original, shadow := total(got)
	assert.Equal(t, []int{920, 920}, []int{original, shadow})
	assert.Equal(t, 920, got.Inserted)
	assert.Len(t, got.Comparison, 7)
	assert.Equal(t, contentsOf(p, "exposures"), contentsOf(p, "copy"))
	assert.Equal(t, 920, p.Count("SELECT count() FROM copy"), "also without FINAL")

	// What is there already stays, and what is not is filled in.
	execute(t, p, "ALTER TABLE copy DELETE WHERE experiment = 'exp-2' SETTINGS mutations_sync = 2")
	assert.Equal(t, 40, runReplay(t, p, "--since=1h", "--into=copy").Inserted)
	assert.Equal(t, contentsOf(p, "exposures"), contentsOf(p, "copy"))

	runReplay(t, p, "--since=1h", "--into=copy_of_events", "--kind=event")
	assert.Equal(t, contentsOf(p, "events"), contentsOf(p, "copy_of_events"))

	// A difference is shown.
	execute(t, p, "ALTER TABLE exposures DELETE WHERE experiment = 'exp-0' AND variant = 'a' SETTINGS mutations_sync = 2")
	got = runReplay(t, p, "--since=1h", "--into=copy")
	assert.Equal(t, "exp-0", got.Comparison[0].Experiment)
	assert.Equal(t, []int{0, 20}, []int{got.Comparison[0].Original, got.Comparison[0].Shadow})
	original, shadow = total(got)
	assert.Equal(t, []int{900, 920}, []int{original, shadow})

	for name, says := range map[string]string{"exposures": "own tables", "batches": "is not like exposures", "a-b": "want a name"} {
		cmd := replayCommand(t, p, "--since=1h", "--into="+name)
		out, err := cmd.CombinedOutput()
		assert.Error(t, err)
		assert.Contains(t, string(out), says)
	}
}
