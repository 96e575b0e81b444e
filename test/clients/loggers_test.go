package clients

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/client"
	"sluice/test/browser/chromium"
)

func TestThroughBadWeather(t *testing.T) {
	throughBadWeather(t, []logger{
		{"go", inProcess},
		{"node", inNode},
		{"chromium", inChromium},
	})
}

// inProcess is the Go logger. In the middle it is closed and a new one goes on, on
// the same directory.
func inProcess(ctx context.Context, t *testing.T, r run) {
	dir := t.TempDir()
	open := func() *client.Logger {
		l, err := client.New(client.Options{Endpoints: r.endpoints, Key: r.key, Dir: dir, GzipAbove: 4 << 10})
		require.NoError(t, err)
		return l
	}
	l := open()
	tick := time.NewTicker(time.Second / time.Duration(r.rate))
	defer tick.Stop()
	begun := time.Now()
	adopted := uint64(0)
	for i := 0; i < r.count; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			require.NoError(t, context.Cause(ctx))
		}
		// As many as are due: a busy machine swallows ticks.
		for due := min(r.count, int(time.Since(begun).Seconds()*float64(r.rate))); i < due; i++ {
			if i == r.count/2 {
				s := closed(ctx, t, l)
				l = open()
				adopted = l.Stats().Adopted
				t.Logf("closed with %d batches on disk, after %d requests", s.Stored, s.Attempts)
			}
			l.Exposure(client.Exposure{Experiment: r.id, Variant: [2]string{"a", "b"}[i%2], UnitID: fmt.Sprintf("%s-u%d", r.id, i)})
		}
	}
	require.NoError(t, l.Flush(ctx))
	for s := l.Stats(); s.Waiting+s.Stored > 0; s = l.Stats() {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			require.NoError(t, context.Cause(ctx), "%+v", s)
		}
	}
	s := closed(ctx, t, l)
	assert.Positive(t, adopted, "the second session found batches of the first")
	assert.Zero(t, s.Stored)
	t.Logf("%+v", s)
}

// closed closes a logger and requires that nothing is lost by it.
func closed(ctx context.Context, t *testing.T, l *client.Logger) client.Stats {
	t.Helper()
	require.NoError(t, l.Close(ctx))
	s := l.Stats()
	require.Zero(t, s.Dropped(), "%+v", s)
	require.Zero(t, s.Invalid+s.Rejected+s.Damaged+s.AfterClose, "%+v", s)
	require.Zero(t, s.Waiting)
	return s
}

// inNode is the JavaScript logger in Node.
func inNode(ctx context.Context, t *testing.T, r run) {
	drive, err := filepath.Abs("../../clients/js/drive.mjs")
	require.NoError(t, err)
	cmd := exec.CommandContext(ctx, "node", drive, strings.Join(r.endpoints, ","), r.key, r.id,
		strconv.Itoa(r.count), strconv.Itoa(r.rate), t.TempDir())
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	said := errs.String()
	require.NoError(t, err, "%s\n%s", out.String(), said[max(0, len(said)-4000):])
	t.Logf("%s", strings.TrimSpace(out.String()))
}

// inChromium is the JavaScript logger in a page that is reloaded in the middle.
func inChromium(ctx context.Context, t *testing.T, r run) {
	chromium.RunLogger(ctx, t, r.endpoints, r.key, r.id, r.count, r.rate)
}
