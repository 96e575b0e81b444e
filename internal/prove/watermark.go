package prove

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

// How often the watermark is asked for, and the most batches that are looked for
// after one answer: what is more waits for the next.
const (
	askEvery = 100 * time.Millisecond
	askBatch = 1000
)

// WatermarkReport is what was seen of delivery_watermark.
type WatermarkReport struct {
	Missing bool   `json:"missing"` // there is no such view: nothing of the below was checked
	Asked   uint64 `json:"asked"`   // times it answered
	Batches uint64 `json:"batches"` // acknowledged batches that were looked for when it had passed them
	Back    uint64 `json:"back"`    // times it went back
	Ahead   uint64 `json:"ahead"`   // batches it had passed that were not there
	// Longest is the longest it lay behind the clock while it was asked.
	Longest time.Duration `json:"longest_behind_ns"`
	// CaughtUp is whether in the end it passed the last acknowledgement.
	CaughtUp bool     `json:"caught_up"`
	HeldBy   string   `json:"held_by,omitempty"` // who holds it back in the end, if not
	Examples []string `json:"examples,omitempty"`
}

// Bad reports whether the watermark was wrong.
func (w WatermarkReport) Bad() bool { return w.Back+w.Ahead > 0 }

// watermark asks for complete_until all the time, and holds it to its word: what
// was acknowledged before it is queryable now. Used by one goroutine.
type watermark struct {
	rows    *rows
	book    *book
	traffic *traffic
	now     func() time.Time

	// passed is set while the watermark has passed the last acknowledgement, and for
	// good where there is no watermark.
	passed atomic.Bool

	report WatermarkReport
	last   int64  // the newest value, in µs since 1970
	early  []want // that have been passed and were not looked for yet
}

// want is a batch that has to be there.
type want struct {
	batch uint64
	ids   map[string]bool // of one event a table
}

func newWatermark(r *rows, b *book, t *traffic) *watermark {
	return &watermark{rows: r, book: b, traffic: t, now: time.Now}
}

// run asks until ctx ends or there is no such view. ClickHouse may be away.
func (w *watermark) run(ctx context.Context) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		if err := w.ask(ctx); errors.Is(err, errNoTable) {
			w.report.Missing = true
			w.passed.Store(true)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ask reads the watermark once and looks for the batches it has passed. What is
// looked for after it was read and is not there was not there when it was read.
func (w *watermark) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	value := int64(0)
	err := w.rows.each(ctx, "SELECT toUnixTimestamp64Micro(toDateTime64(complete_until, 6)), held_by FROM delivery_watermark", 2, func(cells []string) error {
		if cells[0] == `\N` {
			return nil // no collector is known yet
		}
		if _, err := fmt.Sscan(cells[0], &value); err != nil {
			return fmt.Errorf("complete_until %q: %w", cells[0], err)
		}
		w.report.HeldBy = cells[1]
		return nil
	})
	if err != nil {
		return err
	}
	if value <= 0 && w.last == 0 {
		return nil // nobody has looked yet
	}
	w.report.Asked++
	if value < w.last {
		w.report.Back++
		w.example(w.report.Back, "the watermark went back from %s to %s", clock(w.last), clock(value))
	}
	w.last = value
	w.report.Longest = max(w.report.Longest, w.now().Sub(time.UnixMicro(value)))
	_, _, last := w.book.totals()
	w.report.CaughtUp = time.UnixMicro(value).After(last)
	w.passed.Store(w.report.CaughtUp)
	return w.check(ctx)
}

func (w *watermark) check(ctx context.Context) error {
	batches, _ := w.book.before(w.last, askBatch-len(w.early))
	for _, n := range batches {
		w.early = append(w.early, w.want(n))
	}
	if len(w.early) == 0 {
		return nil
	}
	// Once more without the bound on the receive time, which is there to read few
	// rows: a copy that was received long before the acknowledgement counts.
	_, from := w.book.state(w.early[0].batch)
	for _, where := range []string{fmt.Sprintf("received_at >= fromUnixTimestamp64Micro(%d) AND ", from-30_000_000), ""} {
		if err := w.look(ctx, where); err != nil {
			return err // the same batches again next time
		}
		if len(w.early) == 0 {
			return nil
		}
	}
	for _, missing := range w.early {
		w.report.Ahead++
		_, at := w.book.state(missing.batch)
		w.example(w.report.Ahead, "the watermark was at %s, and batch %d (key %s), acknowledged at %s, was not there",
			clock(w.last), missing.batch, w.traffic.key(missing.batch), clock(at))
	}
	w.report.Batches += uint64(len(w.early))
	w.early = nil
	return nil
}

// want names one event of a batch in every table it has rows in: a block brings
// all rows of a batch into a table at once, or none.
func (w *watermark) want(batch uint64) want {
	out := want{batch: batch, ids: map[string]bool{}}
	var have [bad]bool
	for i := range w.traffic.events {
		if k := w.traffic.kindOf(batch, i); k != bad && !have[k] {
			have[k] = true
			out.ids[w.traffic.mint.id(batch, i).String()] = true
		}
	}
	return out
}

// look takes out of early the batches that are all there.
func (w *watermark) look(ctx context.Context, where string) error {
	var list []string
	for _, e := range w.early {
		for id := range e.ids {
			list = append(list, "'"+id+"'")
		}
	}
	in := where + "event_id IN (" + strings.Join(list, ",") + ")"
	there := map[string]bool{}
	err := w.rows.each(ctx, "SELECT event_id FROM exposures WHERE "+in+" UNION ALL SELECT event_id FROM events WHERE "+in, 1, func(cells []string) error {
		there[cells[0]] = true
		return nil
	})
	if err != nil {
		return err
	}
	left := w.early[:0]
	for _, e := range w.early {
		for id := range e.ids {
			if there[id] {
				delete(e.ids, id)
			}
		}
		if len(e.ids) > 0 {
			left = append(left, e)
		} else {
			w.report.Batches++
		}
	}
	w.early = left
	return nil
}

func (w *watermark) example(n uint64, format string, args ...any) {
	if n <= mostExamples {
		w.report.Examples = append(w.report.Examples, fmt.Sprintf(format, args...))
	}
}

// clock writes an instant in µs since 1970.
func clock(us int64) string { return time.UnixMicro(us).UTC().Format("15:04:05.000000") }
