package main

import (
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/config"
	"sluice/internal/replay"
	"sluice/pkg/schema"
)

// parseReplay reads a command line as the tool does.
func parseReplay(t *testing.T, args ...string) (*replays, error) {
	t.Helper()
	var c struct {
		Process config.Process `embed:""`
		Replay  replays        `cmd:""`
	}
	_, err := config.Parse(&c, config.Program{Name: "sluice"}, append([]string{"replay"}, args...), nil, io.Discard, io.Discard)
	return &c.Replay, err
}

func TestReplayFlags(t *testing.T) {
	r, err := parseReplay(t, "--dead", "--reason=a,b", "--reason=c", "--stage=sink", "--stage=conflict", "--project=p", "--set=rule=a,b", "--set", "attributes.x=y=z",
		"--id=5f0f4b6e-0c39-4f60-9d2e-d1a1f3c2b4a5,00000000-0000-0000-0000-000000000001", "--since=2026-01-31", "--until=2026-02-01 12:30", "--yes")
	require.NoError(t, err)
	assert.Equal(t, []string{"a", "b", "c"}, r.Reason)
	assert.Equal(t, []string{"sink", "conflict"}, r.Stage)
	assert.Equal(t, []string{"rule=a,b", "attributes.x=y=z"}, r.Set)
	ids, err := r.ids()
	require.NoError(t, err)
	assert.Len(t, ids, 2)
	assert.Equal(t, time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC), r.Since.UTC())
	assert.Equal(t, time.Date(2026, 2, 1, 12, 30, 0, 0, time.UTC), r.Until.UTC())
	assert.Equal(t, []any{720 * time.Hour, time.Hour, config.Bytes(900 << 10)}, []any{r.TimePast, r.TimeFuture, r.RecordMax}, "as the collectors")

	r, err = parseReplay(t, "--since=90m", "--partition=0")
	require.NoError(t, err)
	assert.WithinDuration(t, time.Now().Add(-90*time.Minute), r.Since.Time, time.Minute)
	assert.Zero(t, *r.Partition)
	r, err = parseReplay(t, "--since=2026-01-31T12:00:00+02:00", "--into=x", "--kind=event", "--yes")
	require.NoError(t, err)
	assert.Equal(t, 10, r.Since.UTC().Hour())
}

func TestReplayRefusesFlags(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		says string
	}{
		"nothing":             {nil, "want --dead, or --since=TIME"},
		"no time":             {[]string{"--since=soon"}, "want a time such as"},
		"in the future":       {[]string{"--since=-2h"}, "want a time such as"},
		"upside down":         {[]string{"--since=1h", "--until=2h"}, "--until: want a time after --since"},
		"both":                {[]string{"--dead", "--into=x"}, "--dead and --into"},
		"partition":           {[]string{"--dead", "--partition=1"}, "--partition"},
		"negative":            {[]string{"--since=1h", "--partition=-1"}, "--partition=-1"},
		"reason":              {[]string{"--since=1h", "--reason=x"}, "--reason: want --dead with it"},
		"set":                 {[]string{"--since=1h", "--set=unit_id=x"}, "--set: want --dead with it"},
		"set what":            {[]string{"--dead", "--set=x"}, "want field=value"},
		"stage":               {[]string{"--dead", "--stage=x"}, "--stage"},
		"id":                  {[]string{"--dead", "--id=x"}, `--id="x"`},
		"yes and no":          {[]string{"--dead", "--yes", "--dry-run"}, "--yes and --dry-run"},
		"no dry run":          {[]string{"--since=1h", "--into=x", "--dry-run"}, "--dry-run"},
		"kind":                {[]string{"--since=1h", "--kind=event"}, "--kind: want --into with it"},
		"experiment of what":  {[]string{"--since=1h", "--kind=event", "--into=x", "--experiment=e"}, "--experiment"},
		"records as no topic": {[]string{"--dead", "--record-max-bytes=2MiB"}, "SLUICE_RECORD_MAX_BYTES=2MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseReplay(t, tc.args...)
			require.ErrorContains(t, err, tc.says)
			assert.Equal(t, 2, config.ExitCode(err))
		})
	}
}

// Every protocol's dead letters can be read, and repaired where --set has a name for it.
func TestReplayProtocols(t *testing.T) {
	list := protocols()
	require.Contains(t, list, "statsig")
	p := list["statsig"]
	var b schema.Batch
	require.NoError(t, p.Decode([]byte(`{"eventName":"statsig::gate_exposure","metadata":{"gate":"g","gateValue":"true"},"time":1}`), &b))
	require.Len(t, b.Rejected, 1)
	assert.Equal(t, "unit_id", b.Rejected[0].Field)
	b = schema.Batch{}
	require.NoError(t, p.Decode([]byte(`{"eventName":"statsig::gate_exposure","metadata":{"gate":"g","gateValue":"true"},"user":{"userID":"u"}}`), &b))
	require.Len(t, b.Events, 1)
	assert.Equal(t, []string{"g", "true", "u"}, []string{b.Events[0].Experiment, b.Events[0].Variant, b.Events[0].UnitID})
	assert.Error(t, p.Decode([]byte(`{"eventName":"a"},{"eventName":"b"}`), &b), "one letter is one event")
	for field, place := range p.Places {
		_, err := replay.ParseFix("body." + place + "=1")
		assert.NoError(t, err)
		_, err = replay.ParseFix(field + "=1")
		assert.NoError(t, err)
	}
}
