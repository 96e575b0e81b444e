package browser

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"sluice/test/browser/chromium"
	"sluice/test/pipeline"
)

// Sluice's logger in a page that is reloaded in the middle, while none of its
// collectors is there. They come back one after the other.
func TestLoggerReloaded(t *testing.T) {
	const count, rate, run = 1000, 250, "reloaded" // reloaded after 2 s
	const opening = 2 * time.Second                // of the browser and the page
	p := pipeline.New(t)
	c := p.Collector()
	p.Sink()
	p.KeepEveryRow()
	first, second := newFront(t, c.URL), newFront(t, c.URL)
	for f, after := range map[*front]time.Duration{first: 4 * time.Second, second: 3 * time.Second} {
		f.down()
		timer := time.AfterFunc(after+opening, f.up)
		defer timer.Stop()
	}

	ctx, cancel := context.WithTimeout(t.Context(), settle)
	defer cancel()
	chromium.RunLogger(ctx, t, []string{first.URL, second.URL}, "slk_any", run, count, rate)

	of := " FROM exposures WHERE experiment = '" + run + "'"
	p.Eventually(count, "SELECT count()"+of, settle)
	p.Settled(settle)
	assert.Equal(t, count, p.Count("SELECT count()"+of))
	assert.Equal(t, count, p.Count("SELECT uniqExact(unit_id)"+of))
	assert.Equal(t, count/2, p.Count("SELECT countIf(variant = 'b')"+of))
}
