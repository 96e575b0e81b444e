package chromium

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

//go:embed logger.html
var loggerPage string

// LoggerScript is the build of Sluice's logger for pages with a script tag.
func LoggerScript() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("look for the logger: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if filepath.Dir(dir) == dir {
			return "", errors.New("look for the logger: not in a checkout")
		}
		dir = filepath.Dir(dir)
	}
	path := filepath.Join(dir, "clients", "js", "dist", "sluice.global.js")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the logger is not built: npm ci && npm run build in clients/js: %w", err)
	}
	return path, nil
}

// RunLogger logs count exposures with Sluice's logger in a page, rate a second:
// experiment run, variants a and b by turns, unit_id run-u0, run-u1 and so on. In
// the middle the page is reloaded, as people do, and goes on where it was. It
// returns when the logger says that everything is acknowledged, and fails the test
// if it says that something was dropped, or when ctx ends. The logger may hold count
// exposures in memory, and 4 Mi characters in storage while the page is reloaded:
// about 15,000 exposures.
//
// It is called by the test's goroutine or by a subtest's.
func RunLogger(ctx context.Context, t testing.TB, endpoints []string, key, run string, count, rate int) {
	t.Helper()
	script, err := LoggerScript()
	if err != nil {
		t.Fatal(err)
	}
	site := NewSite(t)
	site.Page("/", loggerPage)
	site.File("/sluice.global.js", script)
	q := url.Values{
		"endpoints": {strings.Join(endpoints, ",")}, "key": {key}, "run": {run},
		"count": {strconv.Itoa(count)}, "rate": {strconv.Itoa(rate)},
	}
	p := Start(t).Open(t, site.URL+"/?"+q.Encode())
	state := func() loggerState {
		t.Helper()
		return Eval[loggerState](p, "state()")
	}
	p.until(ctx, func() bool { return state().Logged >= count/2 }, state)
	p.Reload()
	p.until(ctx, func() bool { return state().Done }, state)
	if s := state(); s.Dropped > 0 {
		t.Fatalf("the logger dropped %d exposures: %s", s.Dropped, s.Stats)
	}
}

// loggerState is what the page says.
type loggerState struct {
	Logged  int             `json:"logged"`  // exposures given to the logger, in this page and the ones before
	Done    bool            `json:"done"`    // all are logged, and nothing waits to be acknowledged
	Dropped int             `json:"dropped"` // exposures that the logger or a collector gave up, in this page and the ones before
	Stats   json.RawMessage `json:"stats"`   // the logger's own words
}

// until asks the page until it is so, or ctx ends.
func (p *Page) until(ctx context.Context, so func() bool, state func() loggerState) {
	p.t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-ctx.Done():
			s := state()
			p.t.Fatalf("the page is not done: %d logged, %s: %v\n%s", s.Logged, s.Stats, ctx.Err(), strings.Join(p.Errors(), "\n"))
		case <-tick.C:
		}
	}
}
