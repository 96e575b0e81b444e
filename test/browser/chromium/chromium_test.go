package chromium

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPage(t *testing.T) {
	b := Start(t)
	site := NewSite(t)
	site.Page("/", `<!doctype html><script>
		const visits = Number(localStorage.getItem("visits") ?? 0) + 1;
		localStorage.setItem("visits", visits);
		addEventListener("pagehide", () => navigator.sendBeacon("/left", String(visits)));
	</script>`)
	left := make(chan string, 10)
	site.Handle("/left", func(w http.ResponseWriter, r *http.Request) {
		body := make([]byte, 10)
		n, _ := r.Body.Read(body)
		left <- string(body[:n])
	})
	site.Page("/other", `<!doctype html>`)

	p := b.Open(t, site.URL+"/")
	assert.Equal(t, 1, Eval[int](p, "visits"))
	assert.Equal(t, "visible", Eval[string](p, "document.visibilityState"))
	p.Reload()
	assert.Equal(t, "1", <-left)
	assert.Equal(t, 2, Eval[int](p, "Promise.resolve(visits)"), "the storage outlives the page")
	p.Navigate(site.URL + "/other")
	assert.Equal(t, "2", <-left)
	p.Navigate(site.URL + "/")
	p.Close()
	assert.Equal(t, "3", <-left, "a closed page still sends its beacon")
	again := b.Open(t, site.URL+"/")
	assert.Equal(t, 4, Eval[int](again, "visits"), "the next session finds what the last one kept")
	assert.Empty(t, again.Errors())

	other := NewSite(t)
	other.Page("/", `<!doctype html>`)
	q := b.Open(t, other.URL+"/")
	assert.Equal(t, 0, Eval[int](q, "localStorage.length"), "another site, another storage")
	_, err := TryEval[int](q, `Promise.reject(new Error("no"))`)
	require.ErrorContains(t, err, "no")
}

// What goes wrong in a page must be noticed, and nothing may reach beyond this
// machine.
func TestErrors(t *testing.T) {
	b := Start(t)
	site := NewSite(t)
	site.Page("/", `<!doctype html>`)
	strict := httptest.NewServer(http.NotFoundHandler()) // answers without a word about CORS
	defer strict.Close()

	for name, tc := range map[string]struct{ js, want string }{
		"console":   {`console.error("broken", 7)`, "broken"},
		"exception": {`new Promise(done => setTimeout(() => { setTimeout(done, 0); throw new Error("uncaught") }))`, "uncaught"},
		"cors":      {`fetch("` + strict.URL + `").catch(() => 0)`, "CORS: GET " + strict.URL},
		"preflight": {`fetch("` + strict.URL + `", {method: "POST", headers: {"X-A": "1"}}).catch(() => 0)`, "CORS: POST " + strict.URL},
		"not found": {`fetch("/nothing")`, "404"},
		"refused":   {`fetch("http://127.0.0.1:1/").catch(() => 0)`, "request: GET http://127.0.0.1:1/"},
		"elsewhere": {`fetch("http://example.com/").catch(() => 0)`, "net::ERR_NAME_NOT_RESOLVED"},
	} {
		t.Run(name, func(t *testing.T) {
			p := b.Open(t, site.URL+"/")
			p.Run(tc.js)
			require.Eventually(t, func() bool { return strings.Contains(strings.Join(p.Errors(), "\n"), tc.want) },
				10*time.Second, 20*time.Millisecond, "%s", tc.want)
		})
	}
}
