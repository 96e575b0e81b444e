package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/test/pipeline"
)

// The published Statsig Node SDK, pointed at a collector that cannot take its
// batches twice. Its retries are plain where the first attempt was gzip, and have
// no key: the event list is what names the batch.
func TestStatsigNode(t *testing.T) {
	p := pipeline.New(t)
	c := p.Collector()
	p.Sink()
	target, err := url.Parse(c.URL)
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	var attempts atomic.Int32
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/log_event") && attempts.Add(1) <= 2 {
			http.Error(w, `{"error":"not now"}`, http.StatusServiceUnavailable)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	defer front.Close()

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dir, err := filepath.Abs("../sdk/statsig-node")
	require.NoError(t, err)
	cmd := exec.CommandContext(ctx, "node", filepath.Join(dir, "drive.mjs"), front.URL, "secret-test", "run-1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s\n%s", out, stderr.String())
	require.Greater(t, attempts.Load(), int32(2), "the SDK sent again")
	t.Logf("%d requests", attempts.Load())

	checkExposures(t, p, out)
}

// line is what the driver says it made the SDK log.
type line struct {
	Type       string `json:"type"` // exposure, event, done
	Experiment string `json:"experiment"`
	Variant    string `json:"variant"`
	Name       string `json:"name"`
	UnitType   string `json:"unit_type"`
	UnitID     string `json:"unit_id"`
	Rule       string `json:"rule"`
	From       int64  `json:"from"` // the event's time lies between, epoch ms
	To         int64  `json:"to"`
	Exposures  int    `json:"exposures"` // of done
	Events     int    `json:"events"`
}

// row is what tells the stored exposures apart.
type row struct{ Experiment, Variant, UnitType, UnitID, Rule string }

func checkExposures(t *testing.T, p *pipeline.Pipeline, out []byte) {
	t.Helper()
	want := map[row]line{}
	var done line
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		var l line
		require.NoError(t, json.Unmarshal(lines.Bytes(), &l), lines.Text())
		switch l.Type {
		case "exposure":
			want[row{l.Experiment, l.Variant, l.UnitType, l.UnitID, l.Rule}] = l
		case "done":
			done = l
		}
	}
	require.NoError(t, lines.Err())
	require.Positive(t, done.Exposures)
	require.Len(t, want, done.Exposures, "the driver's exposures differ from each other")

	p.Eventually(done.Exposures, "SELECT count() FROM exposures", settle)
	p.Eventually(done.Events, "SELECT count() FROM events", settle)
	p.Settled(settle)
	assert.Equal(t, done.Exposures, p.Count("SELECT count() FROM exposures"))
	assert.Equal(t, done.Events, p.Count("SELECT count() FROM events"))
	assert.Zero(t, p.Count("SELECT count() FROM dead_letters"))

	rows, err := p.Store.Query(t.Context(), "SELECT experiment, variant, unit_type, unit_id, rule, time, time_adjusted, source, sdk FROM exposures")
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var (
			r           row
			at          time.Time
			adjusted    bool
			source, sdk string
		)
		require.NoError(t, rows.Scan(&r.Experiment, &r.Variant, &r.UnitType, &r.UnitID, &r.Rule, &at, &adjusted, &source, &sdk))
		l, ok := want[r]
		if !assert.True(t, ok, "not logged: %+v", r) {
			continue
		}
		delete(want, r)
		assert.GreaterOrEqual(t, at.UnixMilli(), l.From, "%+v", r)
		assert.LessOrEqual(t, at.UnixMilli(), l.To, "%+v", r)
		assert.False(t, adjusted)
		assert.Equal(t, "statsig", source)
		assert.Contains(t, sdk, "statsig-node")
	}
	require.NoError(t, rows.Err())
	assert.Empty(t, want, "logged and not stored")
}
