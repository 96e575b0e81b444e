package prove

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fakePipeline stores what it acknowledges in a fake ClickHouse at once, but for
// what it loses or doubles.
type fakePipeline struct {
	stack      *Stack
	clickhouse *fakeClickHouse
	traffic    *traffic
	batches    atomic.Uint64
	lose       bool // every 50th batch
	double     bool // every 50th batch
	process    *fakeProcess
}

func startPipeline(t *testing.T, seed uint64) *fakePipeline {
	f, _ := startFakeClickHouse(t)
	f.watermark = []int64{0}
	p := &fakePipeline{clickhouse: f, traffic: newTestTraffic(t, seed, 10), process: &fakeProcess{name: "collector-1"}}
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	w, err := NewWire("client>collector-1", freeAddr(t), strings.TrimPrefix(server.URL, "http://"))
	require.NoError(t, err)
	t.Cleanup(w.Close)
	p.stack = &Stack{Rows: f.at,
		Collectors: []Collector{{Name: "collector-1", Client: w, Process: p.process, Admin: strings.TrimPrefix(server.URL, "http://")}},
		About:      About{Kafka: "a fake", ClickHouse: "another", Programs: "none"},
		Audit:      func(context.Context) (AuditReport, error) { return AuditReport{Ran: true}, nil }}
	return p
}

// ServeHTTP implements http.Handler.
func (p *fakePipeline) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet { // /metrics
		_, _ = w.Write([]byte("# HELP x\nsluice_spool_batches 3\nsluice_other 1\n"))
		return
	}
	var n uint64
	key := r.Header.Get("Idempotency-Key")
	if err := json.Unmarshal([]byte(key[strings.LastIndex(key, "-")+1:]), &n); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	known := false
	p.clickhouse.set(func() {
		for _, row := range p.clickhouse.rows {
			known = known || row.offset == int(n)
		}
	})
	if !known && !(p.lose && n%50 == 3) {
		p.clickhouse.store(p.traffic, n)
		if p.double && n%50 == 3 {
			p.clickhouse.store(p.traffic, n)
		}
	}
	p.clickhouse.set(func() {
		p.clickhouse.watermark = []int64{max(p.clickhouse.watermark[0], time.Now().UnixMicro())}
	})
	p.batches.Add(1)
	acknowledge(w, p.traffic.body(n))
}

func options() Options {
	return Options{Seed: 3, Duration: 2 * time.Second, Rate: 100, Events: 10, Settle: time.Second, Drain: time.Minute, Kinds: Kinds(),
		Plan: []Fault{{Kind: "kill-collector", Target: "collector-1", At: time.Second, For: 100 * time.Millisecond},
			{Kind: "cut-client", Target: "client>collector-1", At: time.Second, For: 100 * time.Millisecond, Mode: "refused"}}}
}

func TestRunOfAWholePipeline(t *testing.T) {
	t.Parallel()
	p := startPipeline(t, 3)
	// The last word of a pipeline that is complete: everything before now.
	stop := time.AfterFunc(2500*time.Millisecond, func() {
		p.clickhouse.set(func() { p.clickhouse.watermark = []int64{time.Now().Add(time.Hour).UnixMicro()} })
	})
	defer stop.Stop()
	opt := options()
	var told atomic.Int64
	opt.Progress = func(Status) { told.Add(1) }
	r, err := Run(t.Context(), p.stack, opt)
	require.NoError(t, err)
	assert.True(t, r.OK, r.Findings())
	assert.Positive(t, told.Load())
	assert.Equal(t, 3, p.clickhouse.merges)
	assert.Greater(t, r.Verdict.Acknowledged, uint64(1000))
	assert.Equal(t, r.Verdict.Sent, r.Verdict.Acknowledged+r.Verdict.Open)
	assert.True(t, r.Settled)
	assert.False(t, r.Stopped)
	assert.Equal(t, Delay{Batches: 100, Spooled: 10, P50: 2 * time.Millisecond, P99: 5 * time.Millisecond, Longest: 9 * time.Millisecond}, r.Delay)
	require.Len(t, r.Survived, 2)
	assert.Equal(t, "cut-client", r.Survived[0].Kind)
	assert.Equal(t, 1, r.Survived[1].Times)
	assert.Contains(t, r.LeftOut, "kill-sink")
	assert.NotContains(t, r.LeftOut, "kill-collector")
	assert.True(t, r.Watermark.CaughtUp)
	assert.Positive(t, r.Watermark.Batches)
	assert.NotEmpty(t, r.Timeline)
	assert.Equal(t, 3.0, r.Timeline[0].Spooled)
	assert.True(t, r.Audit.Ran)
	assert.Equal(t, 2, len(p.process.events())-1, "killed, restarted, and at the end told to go on")

	var text strings.Builder
	require.NoError(t, r.WriteText(&text))
	for _, l := range strings.Split(text.String(), "\n") {
		assert.LessOrEqual(t, utf8.RuneCountInString(l), 80, l)
	}
	assert.Contains(t, text.String(), "Kept: 2 faults, ")
	require.NoError(t, r.WriteMarkdown(&text))
	assert.Contains(t, text.String(), "# Fault run, seed 3")
	assert.Contains(t, text.String(), "| kill-collector | 1 |")
	b, err := json.Marshal(r)
	require.NoError(t, err)
	var back Report
	require.NoError(t, json.Unmarshal(b, &back))
	assert.Equal(t, r.Verdict, back.Verdict)
}

func TestRunOfAPipelineThatLoses(t *testing.T) {
	t.Parallel()
	p := startPipeline(t, 3)
	p.lose = true
	p.clickhouse.noView = true
	r, err := Run(t.Context(), p.stack, options())
	require.NoError(t, err)
	assert.False(t, r.OK)
	assert.Positive(t, r.Verdict.Lost)
	assert.True(t, r.Watermark.Missing)
	var text strings.Builder
	require.NoError(t, r.WriteText(&text))
	assert.Contains(t, text.String(), "NOT KEPT: 2 faults")
	assert.Contains(t, text.String(), "- lost: event ")
}

func TestRunStopsAtTheFirstDouble(t *testing.T) {
	t.Parallel()
	p := startPipeline(t, 3)
	p.double = true
	p.clickhouse.noView = true
	opt := options()
	opt.Duration, opt.StopWhenDoubled, opt.Plan = time.Minute, true, []Fault{}
	r, err := Run(t.Context(), p.stack, opt)
	require.NoError(t, err)
	assert.True(t, r.Stopped)
	assert.Positive(t, r.Verdict.Twice)
	assert.Less(t, r.Duration, time.Minute)
}

func TestRunOfNothing(t *testing.T) {
	p := startPipeline(t, 3)
	opt := options()
	opt.Events = 1001
	_, err := Run(t.Context(), p.stack, opt)
	require.ErrorContains(t, err, "1001 events")
	p.clickhouse.away = true
	_, err = Run(t.Context(), p.stack, options())
	require.ErrorContains(t, err, "stop the merges of exposures")
}

func TestTrials(t *testing.T) {
	ts := trials()
	broken := 0
	for _, tr := range ts {
		if len(tr.CollectorEnv)+len(tr.SinkEnv) > 0 {
			broken++
		}
		for _, f := range tr.plan(allTargets()) {
			k := kindNamed(t, f.Kind)
			assert.Contains(t, allTargets()[k.class], f.Target)
			assert.LessOrEqual(t, f.At+f.For, tr.duration, tr.Name)
		}
	}
	assert.Equal(t, 3, broken)
	assert.Len(t, ts, 4, "and one that is whole")
}

func TestTrialJudges(t *testing.T) {
	for name, tc := range map[string]struct {
		env     []string
		doubled bool
		lose    bool
		double  bool
		right   bool
		says    string
	}{
		"lost and caught":         {[]string{"x"}, false, true, false, true, " lost, 0 doubled"},
		"doubled and caught":      {[]string{"x"}, true, false, true, true, " 0 lost, "},
		"doubled instead of lost": {[]string{"x"}, false, false, true, false, " 0 lost, "},
		"a false alarm":           {nil, false, true, false, false, "lost: event"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startPipeline(t, 3)
			p.lose, p.double, p.clickhouse.noView = tc.lose, tc.double, true
			tr := trial{Broken: Broken{Name: name, SinkEnv: tc.env}, duration: time.Second, settle: 200 * time.Millisecond, doubled: tc.doubled, plan: func(Targets) []Fault { return []Fault{} }}
			stopped := false
			c, err := tr.hold(t.Context(), func(context.Context, Broken) (*Stack, func() error, error) {
				return p.stack, func() error { stopped = true; return nil }, nil
			}, 3, nil)
			require.NoError(t, err)
			assert.True(t, stopped)
			assert.Equal(t, tc.right, c.Right, c.How)
			assert.Equal(t, tc.env != nil, c.Broken)
			assert.Contains(t, c.How, tc.says)
		})
	}
}

func TestSelfTestThatCannotStart(t *testing.T) {
	_, err := SelfTest(t.Context(), func(context.Context, Broken) (*Stack, func() error, error) {
		return nil, nil, errors.New("no port is free")
	}, 1, nil)
	require.ErrorContains(t, err, `pipeline "sink without intent": no port is free`)
}
