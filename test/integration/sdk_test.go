package integration

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/test/pipeline"
)

// published is a published SDK that its driver in test/sdk points at a collector.
type published struct {
	name   string // the project of its key, and what its names begin with
	driver string // below the folder of this package
	env    []string
	key    string
	source string
	sdk    string // what the sdk column begins with

	// How the SDK takes bad weather, measured.
	resends int  // how often it sends events again at least; 0: three times or more
	once    bool // everything is sent as one batch at the end
	quits   bool // after a connection that broke off without an answer it sends nothing again
	mixes   bool // sends events again among newer ones: copies of them are one through FINAL
}

func sdks() []published {
	const npm = "../sdk/"
	return []published{
		{name: "statsig-node", driver: npm + "statsig-node/drive.mjs", key: "secret-slk_k9x2m5dw", source: "statsig", sdk: "statsig-node/6.5.2"},
		{name: "statsig-js", driver: npm + "statsig-js/drive.mjs", key: "client-slk_3uqd0v2c", source: "statsig", sdk: "javascript-client/3.33.5"},
		{name: "statsig-core", driver: npm + "statsig-core/drive.mjs", key: "secret-slk_s8zk1m4f", source: "statsig", sdk: "statsig-server-core-node/0.23.2", mixes: true},
		// It sends a batch twice at most, a second apart.
		{name: "launchdarkly-node", driver: npm + "launchdarkly-node/drive.mjs", key: "sdk-7f7c2b1e-55aa-4cf0-9c5d-0d8a1b6f2e11", source: "launchdarkly", sdk: "NodeJSClient/9.13.7", resends: 1},
		{name: "segment-node", driver: npm + "segment-node/drive.mjs", key: "slk_wq7n5x0a", source: "segment", sdk: "@segment/analytics-node/3.1.0"},
		{name: "posthog-node", driver: npm + "posthog-node/drive.mjs", key: "phc_slk_e2v9t6yb", source: "posthog", sdk: "posthog-node/5.70.0"},
		{name: "posthog-node-v1", driver: npm + "posthog-node/drive.mjs", env: []string{"POSTHOG_CAPTURE_MODE=v1"}, key: "phc_slk_h4r8p3kd", source: "posthog", sdk: "posthog-node/5.70.0"},
		{name: "amplitude-node", driver: npm + "amplitude-node/drive.mjs", key: "slk_j6m1c9gw", source: "amplitude", sdk: "amplitude-node-ts/1.5.73", quits: true, mixes: true},
		// It sends a batch three times at most.
		{name: "optimizely-node", driver: npm + "optimizely-node/drive.mjs", key: "21468570738", source: "optimizely", sdk: "node-sdk/6.6.1", resends: 2},
		{name: "otlp-json", driver: npm + "otlp-node/drive.mjs", key: "slk_b5d8f2lz", source: "otlp", sdk: "OTel-OTLP-Exporter-JavaScript/0.223.1"},
		{name: "otlp-protobuf", driver: npm + "otlp-node/drive.mjs", env: []string{"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"}, key: "slk_y3k7s0qx", source: "otlp", sdk: "OTel-OTLP-Exporter-JavaScript/0.223.1"},
		{name: "openfeature", driver: "../../clients/js/drive-openfeature.mjs", key: "slk_n1t4v8mc", source: "native", sdk: "sluice-js/", once: true},
	}
}

// keysFile writes a file with the key of each SDK, each for a project of its own.
func keysFile(t *testing.T, all []published) string {
	t.Helper()
	type entry struct {
		ID      string    `json:"id"`
		Project string    `json:"project"`
		SHA256  string    `json:"sha256"`
		Created time.Time `json:"created"`
	}
	file := struct {
		Version int     `json:"version"`
		Keys    []entry `json:"keys"`
	}{Version: 1}
	for _, s := range all {
		sum := sha256.Sum256([]byte(s.key))
		file.Keys = append(file.Keys, entry{ID: s.name, Project: s.name, SHA256: hex.EncodeToString(sum[:]), Created: time.Now()})
	}
	text, err := json.Marshal(file)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "keys.json")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	return path
}

// withKeys is what a collector needs to let in those of the file only.
func withKeys(file string) []string {
	return []string{"SLUICE_ALLOW_ANONYMOUS=false", "SLUICE_KEYS_FILE=" + file}
}

// atOnce is how many drivers run at the same time.
const atOnce = 3

// sdkUsers is how many users a driver makes up, each with one exposure and, but for
// the logger of this project, one custom event.
const sdkUsers = 20

// driven is how a driver's run went.
type driven struct {
	stdout, stderr bytes.Buffer
	err            error
}

// complaint is what the driver said was wrong.
func (d *driven) complaint() string {
	said := d.stderr.String()
	return said[max(0, len(said)-1000):]
}

// drive runs a driver to its end. Without a pause the SDK sends when everything is
// logged, else as it goes.
func (s published) drive(ctx context.Context, url string, users, pause int) *driven {
	d := &driven{}
	path, err := filepath.Abs(s.driver)
	if err != nil {
		d.err = err
		return d
	}
	args := []string{path, url, s.key, s.name, fmt.Sprint(users)}
	if !s.once {
		args = append(args, fmt.Sprint(pause))
	}
	cmd := exec.CommandContext(ctx, "node", args...)
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Stdout, cmd.Stderr = &d.stdout, &d.stderr
	d.err = cmd.Run()
	return d
}

// The published SDKs, each with its own way of showing its key, in fair weather.
func TestSDKs(t *testing.T) {
	all := sdks()
	p := pipeline.New(t)
	c := p.Collector(withKeys(keysFile(t, all))...)
	p.Sink()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	runs := make([]*driven, len(all))
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, s := range all {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			runs[i] = s.drive(ctx, c.URL, sdkUsers, 0)
		})
	}
	wg.Wait()
	p.Settled(settle)
	for i, s := range all {
		t.Run(s.name, func(t *testing.T) {
			checkDelivered(t, p, s, runs[i])
		})
	}
	assert.Zero(t, p.Count("SELECT count() FROM batches WHERE outcome != 'stored'"))
}

// sent is a line of a driver.
type sent struct {
	line
	GivenUp    int               `json:"given_up"` // of done: what the SDK gave up, by its own account
	Reason     string            `json:"reason"`
	Value      *float64          `json:"value"`
	Attributes map[string]string `json:"attributes"`
}

// said are a driver's lines, by what tells them apart.
type said struct {
	exposures map[row]sent
	events    map[row]sent // experiment: the name
	done      sent
}

func parseLines(t *testing.T, out []byte) said {
	t.Helper()
	s := said{exposures: map[row]sent{}, events: map[row]sent{}}
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		var l sent
		require.NoError(t, json.Unmarshal(lines.Bytes(), &l), lines.Text())
		switch l.Type {
		case "exposure":
			s.exposures[row{l.Experiment, l.Variant, l.UnitType, l.UnitID, l.Rule}] = l
		case "event":
			s.events[row{Experiment: l.Name, UnitType: l.UnitType, UnitID: l.UnitID}] = l
		case "done":
			s.done = l
		}
	}
	require.NoError(t, lines.Err())
	require.Len(t, s.exposures, s.done.Exposures, "the driver's exposures differ from each other")
	require.Len(t, s.events, s.done.Events)
	return s
}

// checkDelivered compares what a driver logged with what is stored, without FINAL:
// each once, and nothing else.
func checkDelivered(t *testing.T, p *pipeline.Pipeline, s published, d *driven) {
	t.Helper()
	require.NoError(t, d.err, "%s", d.complaint())
	want := parseLines(t, d.stdout.Bytes())
	require.Positive(t, want.done.Exposures)
	checkStored(t, p, s, want, "")
	assert.Zero(t, p.Count("SELECT count() FROM dead_letters WHERE project = '"+s.name+"'"), "dead letters")
	assert.Zero(t, p.Count("SELECT count() FROM batches WHERE outcome = 'conflict' AND project = '"+s.name+"'"), "conflicts")
}

// checkStored compares what is stored, in tables read with final (" FINAL", or
// nothing).
func checkStored(t *testing.T, p *pipeline.Pipeline, s published, want said, final string) {
	t.Helper()
	checkStoredExposures(t, p, s, want.exposures, final)
	checkStoredEvents(t, p, s, want.events, final)
}

func checkStoredExposures(t *testing.T, p *pipeline.Pipeline, s published, want map[row]sent, final string) {
	t.Helper()
	rows, err := p.Store.Query(t.Context(), "SELECT experiment, variant, unit_type, unit_id, rule, reason, time, time_adjusted, source, sdk FROM exposures"+final+" WHERE project = '"+s.name+"'")
	require.NoError(t, err)
	defer rows.Close()
	times := map[row]int{}
	for rows.Next() {
		var (
			r                   row
			at                  time.Time
			adjusted            bool
			reason, source, sdk string
		)
		require.NoError(t, rows.Scan(&r.Experiment, &r.Variant, &r.UnitType, &r.UnitID, &r.Rule, &reason, &at, &adjusted, &source, &sdk))
		l, ok := want[r]
		if !assert.True(t, ok, "not logged: %+v", r) {
			continue
		}
		times[r]++
		assert.GreaterOrEqual(t, at.UnixMilli(), l.From, "%+v", r)
		assert.LessOrEqual(t, at.UnixMilli(), l.To, "%+v", r)
		assert.False(t, adjusted)
		assert.Equal(t, s.source, source)
		assert.True(t, strings.HasPrefix(sdk, s.sdk), "sdk %q", sdk)
		if l.Reason != "" {
			assert.Equal(t, l.Reason, reason)
		}
	}
	require.NoError(t, rows.Err())
	checkOnce(t, "exposures", want, times)
}

// checkStoredEvents looks for the events that the driver logged. What SDKs log by
// themselves besides is not its concern.
func checkStoredEvents(t *testing.T, p *pipeline.Pipeline, s published, want map[row]sent, final string) {
	t.Helper()
	name := "" // each driver logs events of one name
	for r := range want {
		name = r.Experiment
	}
	rows, err := p.Store.Query(t.Context(), "SELECT name, unit_type, unit_id, value, attributes, time, time_adjusted, source FROM events"+final+" WHERE project = '"+s.name+"' AND name = '"+name+"'")
	require.NoError(t, err)
	defer rows.Close()
	times := map[row]int{}
	for rows.Next() {
		var (
			r          row
			value      *float64
			attributes map[string]string
			at         time.Time
			adjusted   bool
			source     string
		)
		require.NoError(t, rows.Scan(&r.Experiment, &r.UnitType, &r.UnitID, &value, &attributes, &at, &adjusted, &source))
		l, ok := want[r]
		if !assert.True(t, ok, "not logged: %+v", r) {
			continue
		}
		times[r]++
		assert.Equal(t, l.Value, value, "%+v", r)
		assert.Subset(t, attributes, l.Attributes, "%+v", r)
		assert.GreaterOrEqual(t, at.UnixMilli(), l.From, "%+v", r)
		assert.LessOrEqual(t, at.UnixMilli(), l.To, "%+v", r)
		assert.False(t, adjusted)
		assert.Equal(t, s.source, source)
	}
	require.NoError(t, rows.Err())
	checkOnce(t, "events", want, times)
}

func checkOnce(t *testing.T, what string, want map[row]sent, times map[row]int) {
	t.Helper()
	var missing, double []string
	for r := range want {
		switch n := times[r]; {
		case n == 0:
			missing = append(missing, r.UnitID)
		case n > 1:
			double = append(double, r.UnitID)
		}
	}
	assert.Empty(t, missing, "%s not stored", what)
	assert.Empty(t, double, "%s stored too often", what)
}
