package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/doctor"
	"sluice/internal/embedded"
	"sluice/test/pipeline"
)

func TestDoctorUsage(t *testing.T) {
	for args, says := range map[string]string{
		"--sdk=statsic":                `--sdk="statsic": want one of native, statsig, statsig-js, `,
		"--url=127.0.0.1:8080":         `--url="127.0.0.1:8080": want http://host:port`,
		"--url=ftp://x":                "want http://host:port",
		"--url=http://x/?k=1":          "without a query",
		"--wait=0s":                    "--wait=0s: want 1s to 1h",
		"--wait=soon":                  "--wait",
		"--key=gehe\u00efm":            "--key: want visible ASCII",
		"--output=xml":                 "--output",
		"--clickhouse-dsn=tcp://u:p@x": "want clickhouse://",
		"more":                         "unexpected argument",
	} {
		got := sluice(t, append([]string{"doctor"}, strings.Fields(args)...))
		assert.Equal(t, 2, got.code, args)
		assert.Empty(t, got.stdout, args)
		assert.Contains(t, oneLine(t, got.stderr), says, args)
		assert.NotContains(t, got.stderr, "gehe")
	}
}

func TestDoctorHelpNamesEverySDK(t *testing.T) {
	got := sluice(t, []string{"doctor", "--help"})
	assert.Zero(t, got.code)
	words := strings.FieldsFunc(got.stdout, func(r rune) bool { return strings.ContainsRune(" \n,.", r) })
	for _, name := range append(doctor.Names(), "--sdk=NAME", "--key=KEY", "--url=URL", "--wait=DURATION", `--output="table"`) {
		assert.Contains(t, words, name)
	}
}

// What the doctor says of one pipeline, while it has all it needs and while it has
// not.
func TestDoctor(t *testing.T) {
	p := pipeline.New(t)
	keys := filepath.Join(t.TempDir(), "keys.json")
	added := sluice(t, []string{"keys", "add", "--keys-file=" + keys, "--project=shop", "--scope=exposures"})
	require.Zero(t, added.code, added.stderr)
	key := oneLine(t, added.stdout)
	other := sluice(t, []string{"keys", "add", "--keys-file=" + keys, "--project=shop", "--scope=events"})
	require.Zero(t, other.code, other.stderr)
	migrated := sluice(t, []string{"migrate", "--clickhouse-dsn=" + p.DSN, "--kafka-brokers=" + p.Kafka, "--topic-prefix=" + p.Prefix})
	require.Zero(t, migrated.code, migrated.stderr)
	collector := p.Collector("SLUICE_KEYS_FILE="+keys, "SLUICE_ALLOW_ANONYMOUS=false")

	ask := func(args ...string) (outcome, doctor.Report) {
		got := sluice(t, append([]string{"doctor", "--output=json", "--url=" + collector.URL, "--clickhouse-dsn=" + p.DSN, "--key=" + key}, args...))
		var r doctor.Report
		require.NoError(t, json.Unmarshal([]byte(got.stdout), &r), "%s\n%s", got.stdout, got.stderr)
		assert.NotContains(t, got.stdout+got.stderr, key)
		return got, r
	}

	// Tables and no sink, then all there is.
	got, r := ask("--wait=1s")
	assert.Equal(t, 3, got.code)
	assert.Contains(t, oneLine(t, got.stderr), "neither in exposures nor in dead_letters after 1s")
	assert.Equal(t, doctor.StateMissing, r.Arrival.State)
	if r.Answer.Durable == "kafka" { // it may be new, and slow
		assert.Contains(t, r.Problems[0].What, "no sink has ever stored anything")
	}

	p.Sink()
	for _, name := range []string{"native", "statsig", "launchdarkly", "posthog-v1", "otlp-protobuf"} {
		got, r = ask("--sdk="+name, "--wait=90s")
		assert.Zero(t, got.code, "%s: %s\n%s", name, got.stdout, got.stderr)
		assert.Empty(t, got.stderr)
		assert.Empty(t, r.Problems)
		require.NotNil(t, r.Arrival.Row, name)
		row := r.Arrival.Row
		assert.Equal(t, r.Sent.Exposure.UnitID, row.UnitID)
		assert.Equal(t, r.Sent.Exposure.Variant, row.Variant)
		assert.Equal(t, "shop", row.Project)
		assert.Equal(t, "direct", row.Path)
		assert.True(t, row.StoredAt.After(row.ReceivedAt))
		p.Eventually(1, "SELECT count() FROM exposures WHERE experiment = 'sluice-doctor' AND unit_id = '"+row.UnitID+"'", time.Minute)
	}

	table := sluice(t, []string{"doctor", "--sdk=statsig-js", "--url=" + collector.URL, "--clickhouse-dsn=" + p.DSN, "--key=" + key, "--wait=90s"})
	assert.Zero(t, table.code, table.stderr)
	for _, s := range []string{
		`SDK +statsig-js, like @statsig/js-client`, `Sent +POST http://.*/v1/rgstr\?.*k=\*\*\*\*\*\*`, `Answer +202 after .*"success":true`, `SDK does +nothing more`,
		`Accepted +by Kafka`, `Arrived +in exposures, seen .* s after it was sent; stored`, `project +\(the key's\) +shop`, `variant +test +test`,
		`It arrived as it was sent\.`,
	} {
		assert.Regexp(t, s, table.stdout)
	}
	assert.NotContains(t, table.stdout, key)

	got, r = ask("--sdk=launchdarkly", "--key=sdk-of-nobody")
	assert.Equal(t, 3, got.code)
	assert.Equal(t, 401, r.Answer.Status)
	assert.Equal(t, "unknown_key", r.Answer.Code)
	assert.Equal(t, doctor.Stops, r.Verdict.Does)
	assert.NotContains(t, got.stdout+got.stderr, "sdk-of-nobody")

	got, r = ask("--key=" + oneLine(t, other.stdout))
	assert.Equal(t, 3, got.code)
	assert.Equal(t, "scope_missing", r.Answer.Code)

	got, r = ask("--url=" + collector.URL + "/v1")
	assert.Equal(t, 3, got.code)
	assert.Equal(t, 404, r.Answer.Status)

	nobody, err := embedded.FreeAddr()
	require.NoError(t, err)
	got, r = ask("--url=http://" + nobody)
	assert.Equal(t, 1, got.code)
	assert.Contains(t, oneLine(t, got.stderr), "connection refused")
	assert.Nil(t, r.Answer)
	assert.Contains(t, r.Problems[0].Do, "SLUICE_LISTEN")
	// A database that is not there, asked for without harm to the server.
	got, r = ask("--clickhouse-dsn=" + p.DSN + "_not")
	assert.Equal(t, 1, got.code)
	assert.Contains(t, oneLine(t, got.stderr), "there are no tables of Sluice")
	assert.Contains(t, r.Problems[0].Do, "sluice migrate")
	assert.Equal(t, 1, p.Count("SELECT 1"), "the server lives")
	got, r = ask("--clickhouse-dsn=clickhouse://u:hush@" + nobody + "/x")
	assert.Equal(t, 1, got.code)
	assert.NotContains(t, got.stdout+got.stderr, "hush")
	assert.Contains(t, oneLine(t, got.stderr), "connection refused")
	assert.Equal(t, 202, r.Answer.Status)
}
