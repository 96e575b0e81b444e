package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestHelpOfEveryVerb(t *testing.T) {
	for verb, says := range map[string][]string{
		"":             {"Exit codes: 0 done, 1 failed, 2 usage", "up", "migrate", "resume", "keys add", "keys enable"},
		"up":           {"--examples", "--once", "SLUICE_UP_DIR", "SLUICE_LISTEN", "SLUICE_KEYS_FILE"},
		"migrate":      {"SLUICE_CLICKHOUSE_DSN", "SLUICE_KAFKA_BROKERS", "SLUICE_TOPIC_PREFIX"},
		"resume":       {"--partition=NUMBER", "--all", "--at=OFFSET", "--yes", "--output"},
		"keys":         {"keys add", "keys list", "keys disable", "keys enable"},
		"keys add":     {"--project", "--scope", "--rate", "--burst", "--prefix", "--output", "SLUICE_KEYS_FILE"},
		"keys list":    {"--output", "SLUICE_KEYS_FILE"},
		"keys disable": {"<id>", "SLUICE_KEYS_FILE"},
		"keys enable":  {"<id>", "SLUICE_KEYS_FILE"},
	} {
		got := sluice(t, append(strings.Fields(verb), "--help"))
		assert.Zero(t, got.code, verb)
		assert.Empty(t, got.stderr, verb)
		for _, s := range says {
			assert.Contains(t, got.stdout, s, verb)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		args string
		says string
		env  []string
	}{
		"no verb":               {"", `expected one of "up"`, nil},
		"unknown verb":          {"drop", "drop", nil},
		"unknown variable":      {"migrate", "SLUICE_UP_DIRR is not a setting", []string{"SLUICE_UP_DIRR=x"}},
		"bad address":           {"up --listen=x", `SLUICE_LISTEN="x"`, nil},
		"an open collector":     {"up", "SLUICE_KEYS_FILE or SLUICE_ALLOW_ANONYMOUS=true", []string{"SLUICE_LISTEN=:8080"}},
		"bad prefix":            {"migrate --topic-prefix=a/b", "SLUICE_TOPIC_PREFIX", nil},
		"bad DSN":               {"migrate", "SLUICE_CLICKHOUSE_DSN=******: want clickhouse://", []string{"SLUICE_CLICKHOUSE_DSN=tcp://u:hush@x"}},
		"half of SASL":          {"migrate --kafka-sasl-username=u", "SLUICE_KAFKA_SASL_USERNAME", nil},
		"resume: no number":     {"resume --partition=x", `--partition="x"`, nil},
		"resume: negative":      {"resume --partition=-1", "--partition=-1", nil},
		"resume: negative at":   {"resume --partition=1 --at=-1", "--at=-1", nil},
		"resume: at alone":      {"resume --at=7", "want --partition with it", nil},
		"resume: at and all":    {"resume --all --at=7", "want --partition with it", nil},
		"resume: all and one":   {"resume --all --partition=1", "want one of them", nil},
		"resume: yes to what":   {"resume --yes", "want --partition or --all with it", nil},
		"resume: output":        {"resume --output=xml", "--output", nil},
		"keys: no file":         {"keys list", "SLUICE_KEYS_FILE is not set", nil},
		"keys add: no file":     {"keys add --project=p", "SLUICE_KEYS_FILE is not set", nil},
		"keys disable: no file": {"keys disable k", "SLUICE_KEYS_FILE is not set", nil},
		"keys enable: no file":  {"keys enable k", "SLUICE_KEYS_FILE is not set", nil},
		"keys add: no project":  {"keys add --keys-file=f", "--project", nil},
		"keys add: scope":       {"keys add --keys-file=f --project=p --scope=all", "--scope", nil},
		"keys add: rate":        {"keys add --keys-file=f --project=p --rate=fast", "--rate", nil},
		"keys disable: which":   {"keys disable --keys-file=f", "<id>", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := sluice(t, strings.Fields(tc.args), tc.env...)
			assert.Equal(t, 2, got.code)
			assert.Empty(t, got.stdout)
			line := oneLine(t, got.stderr)
			assert.True(t, strings.HasPrefix(line, "sluice: "), line)
			assert.Contains(t, line, tc.says)
			assert.NotContains(t, line, "hush")
		})
	}
}

// What went wrong after the command line was understood.
func TestFailures(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken.json")
	require.NoError(t, os.WriteFile(broken, []byte("{"), 0o600))
	for args, says := range map[string]string{
		"resume --clickhouse-dsn=clickhouse://127.0.0.1:1/x":                  "connection refused",
		"migrate --clickhouse-dsn=clickhouse://u:hush@127.0.0.1:1/x":          "connection refused",
		"keys list --keys-file=" + filepath.Join(dir, "nowhere.json"):         "nowhere.json",
		"keys list --keys-file=" + broken:                                     "broken.json",
		"keys add --project=p --keys-file=" + broken:                          "broken.json",
		"keys add --project=p --prefix=a.b --keys-file=" + dir + "/new.json":  "prefix",
		"keys disable nobody --keys-file=" + filepath.Join(dir, "other.json"): "",
	} {
		got := sluice(t, strings.Fields(args))
		assert.Equal(t, 1, got.code, args)
		assert.Empty(t, got.stdout, args)
		assert.Contains(t, oneLine(t, got.stderr), says, args)
		assert.NotContains(t, got.stderr, "hush", args)
	}
}

type listedKey struct {
	ID, Project string
	Scopes      []string
	Rate        float64
	Burst       int
	Disabled    bool
	Created     string
}

func TestKeysRoundTrip(t *testing.T) {
	file := "SLUICE_KEYS_FILE=" + filepath.Join(t.TempDir(), "keys.json")
	list := func() (keys []listedKey) {
		got := sluice(t, []string{"keys", "list", "--output", "json"}, file)
		require.Zero(t, got.code, got.stderr)
		assert.NotContains(t, got.stdout, "null", "a list is a list")
		require.NoError(t, json.Unmarshal([]byte(got.stdout), &keys))
		return keys
	}

	got := sluice(t, []string{"keys", "add", "--project", "shop", "--id", "web", "--scope", "exposures", "--rate", "1000", "--burst", "5000", "--prefix", "secret-"}, file)
	require.Zero(t, got.code, got.stderr)
	key := oneLine(t, got.stdout)
	assert.True(t, strings.HasPrefix(key, "secret-slk_"), "only the key is on standard output: a script takes it from there")
	assert.Contains(t, oneLine(t, got.stderr), "the only time the key web is shown")

	got = sluice(t, []string{"keys", "add", "--project", "shop", "--output", "json"}, file)
	require.Zero(t, got.code, got.stderr)
	var made map[string]string
	require.NoError(t, json.Unmarshal([]byte(got.stdout), &made))
	assert.Equal(t, "shop", made["project"])
	assert.True(t, strings.HasPrefix(made["key"], "slk_"))
	assert.NotEqual(t, key, made["key"])

	keys := list()
	require.Len(t, keys, 2)
	assert.Equal(t, made["id"], keys[1].ID, "a name that was made up is told")
	keys[0].Created = ""
	assert.Equal(t, listedKey{ID: "web", Project: "shop", Scopes: []string{"exposures"}, Rate: 1000, Burst: 5000}, keys[0])

	got = sluice(t, []string{"keys", "add", "--project", "shop", "--id", "web"}, file)
	assert.Equal(t, 1, got.code)
	assert.Contains(t, oneLine(t, got.stderr), `"web"`)

	got = sluice(t, []string{"keys", "disable", "web"}, file)
	assert.Zero(t, got.code)
	assert.Contains(t, oneLine(t, got.stdout), "web is disabled")
	assert.True(t, list()[0].Disabled)

	got = sluice(t, []string{"keys", "list"}, file)
	assert.Zero(t, got.code)
	lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
	require.Len(t, lines, 3)
	assert.Equal(t, []string{"ID", "PROJECT", "STATE", "SCOPES", "RATE", "CREATED", "(UTC)"}, strings.Fields(lines[0]))
	assert.Equal(t, []string{"web", "shop", "disabled", "exposures", "1000/s"}, strings.Fields(lines[1])[:5])
	assert.Equal(t, []string{"shop", "active", "all", "unlimited"}, strings.Fields(lines[2])[1:5])
	for _, secret := range []string{key, made["key"]} {
		assert.NotContains(t, got.stdout, secret)
	}

	got = sluice(t, []string{"keys", "enable", "web"}, file)
	assert.Zero(t, got.code)
	assert.Contains(t, oneLine(t, got.stdout), "web is enabled")
	assert.False(t, list()[0].Disabled)

	got = sluice(t, []string{"keys", "disable", "nobody"}, file)
	assert.Equal(t, 1, got.code)
	assert.Contains(t, oneLine(t, got.stderr), `"nobody"`)
}
