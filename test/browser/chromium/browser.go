// Package chromium drives a real Chromium for tests: pages that run published
// SDKs, or Sluice's own logger, as they run for people. Only tests import it.
//
// A test starts a browser, serves pages from a Site, opens them, and asks them in
// JavaScript:
//
//	b := chromium.Start(t)
//	site := chromium.NewSite(t)
//	site.Page("/", `<script>window.answer = async () => 42</script>`)
//	page := b.Open(t, site.URL+"/")
//	n := chromium.Eval[int](page, "answer()")
//	page.Close()
//
// A browser has a profile of its own, which is empty when it starts and removed
// when it ends. Pages of one Site share their storage as long as the browser
// lives, so a page that is closed and opened again is the next session of the same
// visitor; another Site has storage and cookies of its own.
//
// Nothing leaves the machine: only 127.0.0.1, localhost and names below it resolve.
package chromium

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// patience bounds one step in the browser. Steps take milliseconds; what waits for
// SDKs (Eval of a promise) is bounded by it too.
const patience = time.Minute

// Browser is a running Chromium.
type Browser struct {
	t   testing.TB
	ctx context.Context
}

// Start starts a browser that ends with the test. It fails the test where there is
// no Chromium and none can be installed (Find).
func Start(t testing.TB) *Browser {
	t.Helper()
	path, err := Find(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	var output strings.Builder
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.CombinedOutput(&output),
		chromedp.Flag("headless", "new"),
		chromedp.Flag("no-sandbox", true),
		chromedp.Flag("disable-gpu", true),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost, EXCLUDE *.localhost"),
	)
	// The browser closes in order at the end of the test, so its contexts must not
	// end before: t.Context() would kill it.
	allocator, free := chromedp.NewExecAllocator(context.WithoutCancel(t.Context()), options...)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		bounded, done := context.WithTimeout(ctx, 10*time.Second)
		defer done()
		// What does not close in time is killed by free. The tests have what they
		// wanted by then.
		_ = chromedp.Cancel(bounded)
		cancel()
		free()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start %s: %v\n%s", path, err, output.String())
	}
	return &Browser{t: t, ctx: ctx}
}

// Page is a tab in a window of its own, so that it is visible until it is closed
// or left. One goroutine uses a page; several pages can be used at once.
type Page struct {
	t      testing.TB
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	urls   map[network.RequestID]string
	errors []string
}

// Open opens a page and waits until it has loaded. The page belongs to the test t,
// which may be a subtest of the browser's, and is closed with it.
func (b *Browser) Open(t testing.TB, url string) *Page {
	t.Helper()
	p := &Page{t: t, urls: map[network.RequestID]string{}}
	p.ctx, p.cancel = chromedp.NewContext(b.ctx, chromedp.WithListener(p.listen))
	t.Cleanup(p.cancel)
	// The first action's context must live as long as the page.
	if err := chromedp.Do(p.ctx); err != nil {
		t.Fatalf("open a page: %v", err)
	}
	p.Navigate(url)
	return p
}

// Navigate leaves the page for another one, as a person does who follows a link,
// and waits until that has loaded.
func (p *Page) Navigate(url string) {
	p.t.Helper()
	p.do("go to "+url, chromedp.Navigate(url))
}

// Leave evaluates JavaScript that goes to another page, and waits until that has
// loaded.
func (p *Page) Leave(js string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	leave := chromedp.Evaluate[chromedp.Void]("void (" + js + ")")
	if _, err := chromedp.Run(ctx, chromedp.WaitEvent(page.LoadEventFired, nil, leave)); err != nil {
		p.t.Fatalf("leave the page: %s: %v", js, err)
	}
}

// Reload loads the page again, and waits until it has loaded.
func (p *Page) Reload() {
	p.t.Helper()
	p.do("reload", chromedp.Reload())
}

// Run evaluates a JavaScript expression and waits for the promise it may return. An
// exception or a rejected promise fails the test.
func (p *Page) Run(js string) {
	p.t.Helper()
	// The value is thrown away in the page: some cannot be sent.
	p.do(js, chromedp.Evaluate[chromedp.Void]("Promise.resolve("+js+").then(() => {})", chromedp.EvalAwaitPromise))
}

// Eval evaluates a JavaScript expression, waits for the promise it may return, and decodes the
// value. An exception or a rejected promise fails the test.
func Eval[T any](p *Page, js string) T {
	p.t.Helper()
	v, err := TryEval[T](p, js)
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// TryEval is Eval for goroutines that may not end the test.
func TryEval[T any](p *Page, js string) (T, error) {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](js, chromedp.EvalAwaitPromise))
	if err != nil {
		return v, fmt.Errorf("in the page: %s: %w", js, err)
	}
	return v, nil
}

func (p *Page) do(what string, step chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, step); err != nil {
		p.t.Fatalf("in the page: %s: %v\n%s", what, err, strings.Join(p.Errors(), "\n"))
	}
}

// Close closes the tab, as a person does: the page is told that it is hidden, and
// what it sends then is sent.
func (p *Page) Close() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Cancel(ctx); err != nil {
		p.t.Fatalf("close the page: %v", err)
	}
	p.cancel()
}

// Errors are what went wrong in the page so far: errors on its console, uncaught
// exceptions, and requests that failed, were answered 400 or more, or that CORS
// refused. Requests cut off because the page was left are not among them. The
// browser reports them a moment later than the page sees them.
func (p *Page) Errors() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.errors...)
}

func (p *Page) note(format string, args ...any) {
	p.errors = append(p.errors, fmt.Sprintf(format, args...))
}

// listen is told of everything that happens in the page, in order.
func (p *Page) listen(ev any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch ev := ev.(type) {
	case *network.EventRequestWillBeSent:
		p.urls[ev.RequestID] = ev.Request.Method + " " + ev.Request.URL
	case *network.EventResponseReceived:
		if ev.Response.Status >= 400 {
			p.note("request: %s: %d", p.urls[ev.RequestID], ev.Response.Status)
		}
	case *network.EventLoadingFinished:
		delete(p.urls, ev.RequestID)
	case *network.EventLoadingFailed:
		switch {
		case ev.CorsErrorStatus != nil:
			p.note("CORS: %s: %s", p.urls[ev.RequestID], ev.CorsErrorStatus.CorsError)
		case !ev.Canceled && ev.ErrorText != "net::ERR_ABORTED":
			p.note("request: %s: %s", p.urls[ev.RequestID], ev.ErrorText)
		}
		delete(p.urls, ev.RequestID)
	case *runtime.EventExceptionThrown:
		p.note("exception: %v", &chromedp.ExceptionError{ExceptionDetails: ev.ExceptionDetails})
	case *runtime.EventConsoleAPICalled:
		if ev.Type == runtime.ConsoleAPICalledTypeError {
			var words []string
			for _, a := range ev.Args {
				words = append(words, a.Description+string(a.Value))
			}
			p.note("console: %s", strings.Join(words, " "))
		}
	case *log.EventEntryAdded:
		if ev.Entry.Level == log.EntryLevelError {
			p.note("console: %s (%s)", ev.Entry.Text, ev.Entry.URL)
		}
	}
}
