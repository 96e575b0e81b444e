package embedded

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// note writes a line to somebody who waits.
func note(w io.Writer, format string, args ...any) {
	if w == nil {
		return
	}
	_, _ = fmt.Fprintf(w, format+"\n", args...) // who cannot be told is not told
}

// unit is what an amount of progress counts.
type unit uint8

const (
	byteUnit unit = iota
	fileUnit
)

func (u unit) format(n int64) string {
	if u == fileUnit {
		return fmt.Sprintf("%d files fetched", n)
	}
	return fmt.Sprintf("%d MB", n/1_000_000)
}

// follow shows how far something is until the function it returns is called: a bar
// on a terminal, elsewhere a line every 5 s. measure is called from one goroutine,
// a few times a second. total is what measure reaches in the end; 0: not known.
func follow(w io.Writer, what string, u unit, total int64, measure func() int64) (stop func()) {
	if w == nil {
		return func() {}
	}
	var bar *progressbar.ProgressBar
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		limit := total
		if limit == 0 {
			limit = -1
		}
		bar = progressbar.NewOptions64(limit,
			progressbar.OptionSetWriter(w),
			progressbar.OptionSetDescription(what),
			progressbar.OptionShowBytes(u == byteUnit),
			progressbar.OptionShowCount(),
			progressbar.OptionSetPredictTime(false),
			progressbar.OptionClearOnFinish(),
		)
	} else {
		note(w, "%s …", what)
	}
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		began, told := time.Now(), time.Now()
		for tick := time.NewTicker(250 * time.Millisecond); ; {
			select {
			case <-ended:
				tick.Stop()
				if bar != nil {
					_ = bar.Finish() // of no matter to what was measured
				}
				note(w, "%s: %s in %.1f s", what, u.format(measure()), time.Since(began).Seconds())
				return
			case <-tick.C:
			}
			n := measure()
			if total > 0 {
				n = min(n, total-1) // a full bar would end
			}
			if bar != nil {
				_ = bar.Set64(n)
			} else if time.Since(told) >= 5*time.Second {
				told = time.Now()
				if total > 0 {
					note(w, "%s: %s of %s", what, u.format(n), u.format(total))
				} else {
					note(w, "%s: %s", what, u.format(n))
				}
			}
		}
	}()
	return func() {
		close(ended)
		<-done
	}
}
