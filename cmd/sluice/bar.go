package main

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// bar shows on a terminal how far something is, and nothing elsewhere.
type bar struct{ shown *progressbar.ProgressBar }

// startBar makes a bar. It is seen from the first set on.
func startBar(w io.Writer, what string) *bar {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return &bar{}
	}
	return &bar{progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowCount(),
		progressbar.OptionShowIts(),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)}
}

// set says that done of total are done.
func (b *bar) set(done, total int64) {
	if b.shown == nil || total <= 0 {
		return
	}
	b.shown.ChangeMax64(total)
	_ = b.shown.Set64(min(done, total-1)) // a full bar would end
}

// end takes the bar away.
func (b *bar) end() {
	if b.shown != nil {
		_ = b.shown.Finish() // of no matter to what was measured
	}
}
