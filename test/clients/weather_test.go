package clients

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/test/pipeline"
)

const settle = 3 * time.Minute

// A run is what a logger has to do: count exposures of the experiment id at rate a
// second, variants a and b by turns, unit ids <id>-u0, <id>-u1 and so on.
type run struct {
	endpoints   []string
	key         string
	id          string
	count, rate int
}

// A logger logs a run, and returns when it says that everything is acknowledged. It
// fails the test when it says that something is not. It is called by the goroutine
// of a subtest.
type logger struct {
	name string
	log  func(ctx context.Context, t *testing.T, r run)
}

// A change of the weather: at is counted from when the loggers begin.
type change struct {
	at   time.Duration
	what string
	do   func(context.Context) error
}

// throughBadWeather has all the loggers log at the same time, to a collector that is
// down for the first 30 s and then killed twice, and a second one that is there
// between. Whatever the loggers logged is in ClickHouse, each exposure once.
func throughBadWeather(t *testing.T, loggers []logger) {
	const count, rate = 10_000, 200 // 50 s
	p := pipeline.New(t)
	p.Sink()
	first, second := p.Collector(), p.Collector()
	p.KeepEveryRow()
	down := func(s *pipeline.Service) func(context.Context) error {
		return func(context.Context) error { return s.Kill() }
	}
	up := func(s *pipeline.Service) func(context.Context) error { return s.Restart }
	require.NoError(t, first.Kill())
	require.NoError(t, second.Kill())

	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	weather := make(chan error, 1)
	go func() {
		weather <- play(ctx, t.Logf, []change{
			{12 * time.Second, "the second comes up", up(second)},
			{22 * time.Second, "and is killed: nobody is there", down(second)},
			{30 * time.Second, "the first comes up", up(first)},
			{36 * time.Second, "and is killed: nobody is there", down(first)},
			{40 * time.Second, "the second comes up", up(second)},
			{43 * time.Second, "the first comes up", up(first)},
			{46 * time.Second, "the second is killed", down(second)},
			{49 * time.Second, "the first is killed: nobody is there", down(first)},
			{53 * time.Second, "the first comes up", up(first)},
			{56 * time.Second, "the second comes up", up(second)},
		})
	}()
	id := func(l logger) string { return "weather-" + l.name }
	// All of them at the same time, however few tests may run in parallel.
	var wg sync.WaitGroup
	for _, l := range loggers {
		wg.Go(func() {
			t.Run(l.name, func(t *testing.T) {
				begun := time.Now()
				l.log(ctx, t, run{[]string{first.URL, second.URL}, "slk_any", id(l), count, rate})
				t.Logf("all acknowledged after %v", time.Since(begun).Round(100*time.Millisecond))
			})
		})
	}
	wg.Wait()
	require.NoError(t, <-weather)

	for _, l := range loggers {
		of := fmt.Sprintf(" FROM exposures WHERE experiment = '%s'", id(l))
		p.Eventually(count, "SELECT uniqExact(unit_id)"+of, settle)
	}
	p.Settled(settle) // what comes late would be a copy
	for _, l := range loggers {
		of := fmt.Sprintf(" FROM exposures WHERE experiment = '%s'", id(l))
		final := fmt.Sprintf(" FROM exposures FINAL WHERE experiment = '%s'", id(l))
		assert.Equal(t, count, p.Count("SELECT count()"+of), l.name)
		assert.Equal(t, count, p.Count("SELECT uniqExact(unit_id)"+of), l.name)
		assert.Equal(t, count, p.Count("SELECT count()"+final), "%s, FINAL", l.name)
		assert.Equal(t, count, p.Count("SELECT uniqExact(unit_id)"+final), "%s, FINAL", l.name)
		assert.Equal(t, count/2, p.Count("SELECT countIf(variant = 'a')"+of), l.name)
		assert.Zero(t, p.Count("SELECT countIf(time_adjusted)"+of), l.name)
		assert.Positive(t, p.Count("SELECT countIf(received_at > time + INTERVAL 5 SECOND)"+of), "%s: it was out in the weather", l.name)
	}
	assert.Zero(t, p.Count("SELECT count() FROM dead_letters"))
	assert.Zero(t, p.Count("SELECT count() FROM events"), "nothing was reported as dropped")
	t.Logf("records of the batches topic that were copies: %d of %d",
		p.Count("SELECT countIf(outcome = 'duplicate') FROM batches"), p.Count("SELECT count() FROM batches"))
}

// play makes the changes when their time comes. Time passing is what the loggers
// are tried by; there is no condition to wait for.
func play(ctx context.Context, logf func(string, ...any), changes []change) error {
	begun := time.Now()
	for _, c := range changes {
		select {
		case <-time.After(time.Until(begun.Add(c.at))):
		case <-ctx.Done():
			return fmt.Errorf("before %q: %w", c.what, context.Cause(ctx))
		}
		logf("%v: %s", c.at, c.what)
		if err := c.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
	}
	return nil
}
