package config

import (
	"bytes"
	"flag"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestReferenceIsCurrent(t *testing.T) {
	const path = "../../docs/settings.md"
	want, err := Reference()
	require.NoError(t, err)
	if flag.Lookup("update").Value.String() == "true" {
		require.NoError(t, os.WriteFile(path, want, 0o644))
	}
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	// Not the two texts: they are long, and git shows the difference after -update.
	assert.True(t, bytes.Equal(want, got), "docs/settings.md is not what the structs say: go test ./internal/config -update")
}

// What users were promised, by name and default. Where programs differ: the
// collector's first, then the sink's, then the tool's (sluice up listens on
// loopback only).
func TestContract(t *testing.T) {
	settings, err := Settings()
	require.NoError(t, err)
	defaults := map[string]string{}
	for _, s := range settings {
		defaults[s.Env] = s.Default
		assert.NotEmpty(t, s.Help, s.Env)
		assert.NotEmpty(t, s.Unit, s.Env)
		assert.NotEmpty(t, s.Wrong, s.Env)
		assert.NotEmpty(t, s.Group, s.Env)
	}
	for env, def := range map[string]string{
		"SLUICE_LISTEN": ":8080 / 127.0.0.1:8080", "SLUICE_ADMIN_LISTEN": "127.0.0.1:8081 / 127.0.0.1:8082",
		"SLUICE_KAFKA_BROKERS": "127.0.0.1:9092", "SLUICE_KAFKA_TLS": "false",
		"SLUICE_KAFKA_SASL_MECHANISM": "", "SLUICE_KAFKA_SASL_USERNAME": "", "SLUICE_KAFKA_SASL_PASSWORD": "",
		"SLUICE_TOPIC_PREFIX": "sluice", "SLUICE_TOPIC_PARTITIONS": "12", "SLUICE_TOPIC_REPLICATION": "0",
		"SLUICE_KEYS_FILE": "", "SLUICE_ALLOW_ANONYMOUS": "false",
		"SLUICE_SPOOL_DIR": "./.sluice/spool", "SLUICE_SPOOL_MAX_BYTES": "10GiB",
		"SLUICE_ACK_TIMEOUT": "250ms", "SLUICE_MAX_BODY_BYTES": "10MiB", "SLUICE_MAX_EVENTS": "10000",
		"SLUICE_RECORD_MAX_BYTES": "900KiB", "SLUICE_DEDUP_WINDOW": "720h",
		"SLUICE_TIME_PAST_LIMIT": "720h", "SLUICE_TIME_FUTURE_LIMIT": "1h",
		"SLUICE_SPOOL_MIN_FREE_BYTES": "1GiB", "SLUICE_DRAIN_BYTES_PER_SECOND": "32MiB", "SLUICE_LEDGER_INTERVAL": "1s",
		"SLUICE_CLICKHOUSE_DSN": "clickhouse://127.0.0.1:9000/sluice", "SLUICE_CLICKHOUSE_CLUSTER": "",
		"SLUICE_SINK_GROUP": "sluice-sink", "SLUICE_SINK_FLUSH_ROWS": "500000", "SLUICE_SINK_FLUSH_BYTES": "256MiB",
		"SLUICE_SINK_FLUSH_INTERVAL": "1s", "SLUICE_SINK_FLUSH_INTERVAL_MAX": "10s",
	} {
		got, ok := defaults[env]
		assert.True(t, ok, env)
		assert.Equal(t, def, got, env)
	}
}
