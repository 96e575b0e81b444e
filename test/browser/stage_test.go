package browser

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/test/browser/chromium"
	"sluice/test/pipeline"
)

//go:embed pages
var pages embed.FS

// settle is how long rows may take to appear, on a machine that is busy.
const settle = time.Minute

// stage is a pipeline and a browser, which all the tests of SDKs share.
type stage struct {
	*pipeline.Pipeline
	browser   *chromium.Browser
	collector string // URL

	mu    sync.Mutex
	fates map[string]fate // by run
}

func newStage(t *testing.T) *stage {
	t.Helper()
	p := pipeline.New(t)
	c := p.Collector("SLUICE_ALLOW_ANONYMOUS=false", "SLUICE_KEYS_FILE="+keysFile(t))
	p.Sink()
	p.KeepEveryRow()
	return &stage{Pipeline: p, browser: chromium.Start(t), collector: c.URL, fates: map[string]fate{}}
}

// keysFile lets the SDKs in, each with its own way to show a key, and nobody else.
func keysFile(t *testing.T) string {
	t.Helper()
	var keys []map[string]string
	for _, s := range sdks {
		sum := sha256.Sum256([]byte(s.key))
		keys = append(keys, map[string]string{"id": s.key, "project": "browser", "sha256": hex.EncodeToString(sum[:])})
	}
	b, err := json.Marshal(map[string]any{"version": 1, "keys": keys})
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "keys.json")
	require.NoError(t, os.WriteFile(path, b, 0o600))
	return path
}

// visit is one visitor of a page with an SDK: a site of its own, and a front of its
// own before the collector, so that it can be cut off alone.
type visit struct {
	t     *testing.T
	stage *stage
	sdk   sdk
	site  *chromium.Site
	front *front
	who   string // the visitor's id
}

func (s *stage) visit(t *testing.T, k sdk) *visit {
	t.Helper()
	v := &visit{t: t, stage: s, sdk: k, site: chromium.NewSite(t), front: newFront(t, s.collector), who: uuid.NewString()}
	html, err := pages.ReadFile("pages/" + k.page)
	require.NoError(t, err)
	js, err := pages.ReadFile("pages/page.js")
	require.NoError(t, err)
	v.site.Page("/", string(html))
	v.site.Page("/other", "<!doctype html><title>another page</title>")
	v.site.Script("/page.js", string(js))
	script, err := filepath.Abs(k.script)
	require.NoError(t, err)
	require.FileExists(t, script, "install the packages of this folder and build the logger first: make test does")
	v.site.File("/sdk/"+filepath.Base(script), script)
	return v
}

// url of the page; run goes into every name that it logs.
func (v *visit) url(run string, count int) string {
	q := url.Values{"collector": {v.front.URL}, "key": {v.sdk.key}, "run": {run}, "visitor": {v.who}, "options": {v.sdk.options}}
	b, err := json.Marshal(count)
	require.NoError(v.t, err)
	q.Set("count", string(b))
	return v.site.URL + "/?" + q.Encode()
}

// exposure is what a page made its SDK log.
type exposure struct {
	Experiment string `json:"experiment"`
	Variant    string `json:"variant"`
	UnitType   string `json:"unit_type"`
	UnitID     string `json:"unit_id"`
	Rule       string `json:"rule"`
	From       int64  `json:"from"` // the event's time lies between, epoch ms
	To         int64  `json:"to"`
}

func of(run string) string { return "FROM exposures WHERE startsWith(experiment, '" + run + "-')" }

// row is what tells the exposures of a run apart.
type row struct{ Experiment, Variant, UnitType, UnitID, Rule string }

// stored is a row, and the rest of what is checked.
type stored struct {
	row
	at              time.Time
	adjusted        bool
	source, project string
}

func (s *stage) stored(ctx context.Context, run string) (out []stored, err error) {
	rows, err := s.Store.Query(ctx, "SELECT experiment, variant, unit_type, unit_id, rule, time, time_adjusted, source, project "+of(run))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r stored
		if err := rows.Scan(&r.Experiment, &r.Variant, &r.UnitType, &r.UnitID, &r.Rule, &r.at, &r.adjusted, &r.source, &r.project); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// once waits until as many exposures of a run are stored as were logged, and
// requires that they are the ones, each once.
func (v *visit) once(run string, logged []exposure) {
	v.t.Helper()
	want := map[row]exposure{}
	for _, e := range logged {
		want[row{e.Experiment, e.Variant, e.UnitType, e.UnitID, e.Rule}] = e
	}
	require.Len(v.t, want, len(logged), "the page's exposures differ from each other")

	var (
		rows []stored
		err  error
	)
	// Not the pipeline's own Eventually, which would end the parent of this test.
	if !assert.Eventually(v.t, func() bool {
		rows, err = v.stage.stored(v.t.Context(), run)
		return err == nil && len(rows) == len(logged)
	}, settle, 100*time.Millisecond) {
		v.t.Errorf("%d of %d are stored (%v)", len(rows), len(logged), err)
		return
	}
	for _, r := range rows {
		e, ok := want[r.row]
		if !assert.True(v.t, ok, "not logged, or twice: %+v", r) {
			continue
		}
		delete(want, r.row)
		assert.GreaterOrEqual(v.t, r.at.UnixMilli(), e.From, "%+v", r)
		assert.LessOrEqual(v.t, r.at.UnixMilli(), e.To, "%+v", r)
		assert.False(v.t, r.adjusted)
		assert.Equal(v.t, v.sdk.source, r.source)
		assert.Equal(v.t, "browser", r.project)
	}
	assert.Empty(v.t, want, "logged and not stored")
}

// becomes waits for what is to be stored of a run's exposures. The rest is seen at
// the end (checkFates): what comes late is a copy, or was not lost.
func (v *visit) becomes(f fate, run string, logged []exposure) {
	v.t.Helper()
	if f == kept {
		v.once(run, logged)
		if v.t.Failed() {
			for _, r := range v.front.requests(http.MethodPost) {
				v.t.Logf("POST %s: %d, %d bytes, %s", r.url, r.status, len(r.body), r.header.Get("Content-Type"))
			}
		}
	}
	v.stage.mu.Lock()
	defer v.stage.mu.Unlock()
	v.stage.fates[run] = f
}

// checkFates looks at all runs when the pipeline has come to rest.
func (s *stage) checkFates(t *testing.T) {
	s.Settled(settle)
	for run, f := range s.fates {
		n := s.Count("SELECT count() " + of(run))
		assert.Equal(t, s.Count("SELECT uniqExact(experiment, unit_id) "+of(run)), n, "%s: none twice", run)
		switch f {
		case kept:
			assert.Positive(t, n, run)
		case lost:
			assert.Zero(t, n, "%s: the SDK has learned to keep them", run)
		default:
			t.Logf("%s: %d of %d are stored", run, n, perPage)
		}
	}
	assert.Zero(t, s.Count("SELECT count() FROM dead_letters"))
}
