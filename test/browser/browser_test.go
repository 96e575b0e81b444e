// Package browser tests Sluice with what runs in people's browsers: published SDKs
// and Sluice's own logger, in a real Chromium, against real collectors. Pages and
// collectors are on different origins.
package browser

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/test/browser/chromium"
)

// sdk is what is tested, and what it was measured to do.
type sdk struct {
	name    string
	page    string // below pages
	script  string // the SDK's build for browsers
	source  string
	key     string
	options string // more settings, JSON

	preflight bool // it asks before it sends
	leaving   fate // of what was just logged, when the page is left
	few       int  // at most so many are logged just then; 0: all
	offline   fate // of what was logged while the collector was away, when the page is closed
	// putAway makes the SDK put away what it could not send, where it does that only
	// when told to; the page is closed then. Empty: the page is closed at once.
	putAway string
}

// fate is what becomes of exposures.
type fate string

const (
	kept   fate = "each is stored once"
	lost   fate = "the SDK loses them"
	unsure fate = "the SDK may lose them"
)

var sdks = []sdk{
	{
		name: "statsig js-client", page: "statsig.html", source: "statsig", key: "client-browser",
		script:    "node_modules/@statsig/js-client/build/statsig-js-client.min.js",
		preflight: true,
		// A beacon, and that is all: one that fails counts as sent.
		leaving: kept,
		// Only shutdown() writes to localStorage, when it has tried four times, in 7 s.
		// The next session sends it.
		offline: kept,
		putAway: "client.shutdown()",
	},
	{
		name: "statsig js-client, compressed", page: "statsig.html", source: "statsig", key: "client-browser-gzip",
		script:    "node_modules/@statsig/js-client/build/statsig-js-client.min.js",
		options:   `{"logEventCompressionMode":"f"}`,
		preflight: true,
		leaving:   kept,
		// Nobody calls shutdown() in a page that a person closes.
		offline: lost,
	},
	{
		name: "launchdarkly js-client", page: "launchdarkly.html", source: "launchdarkly", key: "env-browser",
		script:    "node_modules/launchdarkly-js-client-sdk/dist/ldclient.min.js",
		preflight: true,
		// It would send with a synchronous XHR, which Chrome no longer lets it, and
		// calls that success.
		leaving: lost,
		// One resend at once, from memory.
		offline: lost,
	},
	{
		name: "launchdarkly js-client, disableSyncEventPost", page: "launchdarkly.html", source: "launchdarkly", key: "env-browser-async",
		script:    "node_modules/launchdarkly-js-client-sdk/dist/ldclient.min.js",
		options:   `{"disableSyncEventPost":true}`,
		preflight: true,
		// An XHR like any other, of a page that is being left: Chrome lets it end if it
		// keeps the page for the way back.
		leaving: unsure,
		offline: lost,
	},
	{
		name: "posthog-js", page: "posthog.html", source: "posthog", key: "phc_browser",
		script:  "node_modules/posthog-js/dist/array.js",
		leaving: kept,
		// Resends from memory, for a quarter of an hour; a last beacon when the page is
		// closed.
		offline: lost,
	},
	{
		name: "posthog-js, disable_compression", page: "posthog.html", source: "posthog", key: "phc_browser_plain",
		script:    "node_modules/posthog-js/dist/array.js",
		options:   `{"disable_compression":true}`,
		preflight: true,
		leaving:   kept,
		// Browsers take 64 KiB for the time after the page, and an uncompressed exposure
		// is 4 KB. What is over it is sent like anything else and cut off with the page.
		few:     8,
		offline: lost,
	},
	{
		name: "sluice", page: "sluice.html", source: "native", key: "slk_browser",
		script:    "../../clients/js/dist/sluice.global.js",
		preflight: true,
		leaving:   kept,
		offline:   kept,
	},
}

const perPage = 20

func TestSDKs(t *testing.T) {
	s := newStage(t)
	// All at once: they mostly wait.
	t.Run("sdks", func(t *testing.T) {
		for i, k := range sdks {
			letter := string(rune('a' + i))
			t.Run(k.name+"/flush", func(t *testing.T) {
				t.Parallel()
				s.visit(t, k).flushes("flush-" + letter)
			})
			t.Run(k.name+"/leave", func(t *testing.T) {
				t.Parallel()
				s.visit(t, k).leaves("leave-" + letter)
			})
			t.Run(k.name+"/offline", func(t *testing.T) {
				t.Parallel()
				s.visit(t, k).goesOffline("offline-" + letter)
			})
		}
	})
	s.checkFates(t)
}

// flushes logs twice and lets the SDK send each time.
func (v *visit) flushes(run string) {
	p := v.stage.browser.Open(v.t, v.url(run, perPage))
	logged := chromium.Eval[[]exposure](p, "log(0, 10)")
	p.Run("flush()")
	v.once(run, logged)
	logged = append(logged, chromium.Eval[[]exposure](p, "log(10, 20)")...)
	p.Run("flush()")
	v.becomes(kept, run, logged)
	assert.Empty(v.t, p.Errors())
	assert.Equal(v.t, v.sdk.preflight, v.front.checkPreflights() > 0, "asks before it sends")
	for _, r := range v.front.requests(http.MethodPost) {
		assert.Less(v.t, r.status, 300, r.url)
		assert.True(v.t, allows(r), r.url)
	}
}

// leaves logs and goes to another page in the same breath.
func (v *visit) leaves(run string) {
	count := perPage
	if v.sdk.few > 0 {
		count = v.sdk.few
	}
	p := v.stage.browser.Open(v.t, v.url(run, count))
	p.Leave(`log().then(rows => { localStorage.logged = JSON.stringify(rows); location.href = "/other"; })`)
	logged := chromium.Eval[[]exposure](p, "JSON.parse(localStorage.logged)")
	require.Len(v.t, logged, count)
	v.becomes(v.sdk.leaving, run, logged)
	assert.Empty(v.t, p.Errors())
	v.front.checkPreflights()
}

// goesOffline logs while the collector's port is closed, closes the page, and comes
// back in a new one when the port is open.
func (v *visit) goesOffline(run string) {
	v.front.down()
	p := v.stage.browser.Open(v.t, v.url(run, perPage))
	logged := chromium.Eval[[]exposure](p, "log()")
	if v.sdk.putAway != "" {
		p.Run(v.sdk.putAway)
	}
	p.Close()
	v.front.up()
	again := v.stage.browser.Open(v.t, v.url(run+"again", 1))
	more := chromium.Eval[[]exposure](again, "log()")
	again.Run("flush()")
	v.becomes(kept, run+"again", more)
	v.becomes(v.sdk.offline, run, logged)
	assert.Empty(v.t, again.Errors())
}
