package prove

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fakeProcess notes what is done to it, and when.
type fakeProcess struct {
	name  string
	began time.Time

	mu       sync.Mutex
	log      []string
	ended    error // by itself
	restarts int   // that fail before one succeeds
}

func (p *fakeProcess) did(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, fmt.Sprintf("%.1f %s %s", time.Since(p.began).Seconds(), what, p.name))
}

func (p *fakeProcess) Kill() error   { p.did("kill"); return nil }
func (p *fakeProcess) Pause() error  { p.did("pause"); return nil }
func (p *fakeProcess) Resume() error { p.did("resume"); return nil }
func (p *fakeProcess) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

func (p *fakeProcess) Restart(context.Context) error {
	p.mu.Lock()
	p.restarts--
	failed := p.restarts >= 0
	if !failed {
		p.ended = nil
	}
	p.mu.Unlock()
	if failed {
		p.did("fail to restart")
		return errors.New("port is taken")
	}
	p.did("restart")
	return nil
}

func (p *fakeProcess) events() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.log)
}

func newTestInjector(names ...string) (*injector, map[string]*fakeProcess) {
	s := &Stack{}
	fakes := map[string]*fakeProcess{}
	began := time.Now()
	for _, n := range names {
		p := &fakeProcess{name: n, began: began}
		fakes[n] = p
		switch n {
		case "broker":
			s.Broker = p
		case "clickhouse":
			s.ClickHouse = p
		default:
			s.Sinks = append(s.Sinks, Sink{Name: n, Process: p})
		}
	}
	return newInjector(s, nil, newPhases(), began), fakes
}

func TestInjectorKeepsToTheSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, p := newTestInjector("sink-1", "broker")
		var after []string
		in.after = func(_ context.Context, kind string) { after = append(after, kind) }
		in.run(t.Context(), []Fault{
			{Kind: "kill-sink", Target: "sink-1", At: 1 * time.Second, For: 500 * time.Millisecond},
			{Kind: "pause-broker", Target: "broker", At: 1200 * time.Millisecond, For: 2 * time.Second},
			{Kind: "pause-sink", Target: "sink-1", At: 4 * time.Second, For: time.Second},
			{Kind: "outage-broker", Target: "broker", At: 5 * time.Second, For: 10 * time.Second},
		})
		assert.Equal(t, []string{"1.0 kill sink-1", "1.5 restart sink-1", "4.0 pause sink-1", "5.0 resume sink-1"}, p["sink-1"].events())
		assert.Equal(t, []string{"1.2 pause broker", "3.2 resume broker", "5.0 kill broker", "15.0 restart broker"}, p["broker"].events())
		assert.Equal(t, []string{"outage-broker"}, after)
		done, died := in.report()
		assert.Empty(t, died)
		require.Len(t, done, 4)
		for _, f := range done {
			assert.Equal(t, f.At, f.Began)
			assert.Equal(t, f.At+f.For, f.Ended)
			assert.Empty(t, f.Error)
		}
	})
}

// Two faults of one process come one after the other, however long the first one
// takes.
func TestFaultsOfOneTargetDoNotMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, p := newTestInjector("sink-1")
		in.run(t.Context(), []Fault{
			{Kind: "pause-sink", Target: "sink-1", At: 1 * time.Second, For: 5 * time.Second},
			{Kind: "kill-sink", Target: "sink-1", At: 2 * time.Second, For: time.Second},
		})
		assert.Equal(t, []string{"1.0 pause sink-1", "6.0 resume sink-1", "6.0 kill sink-1", "7.0 restart sink-1"}, p["sink-1"].events())
	})
}

func TestInterruptedRunMendsWhatItBroke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, p := newTestInjector("sink-1", "broker")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		in.run(ctx, []Fault{
			{Kind: "outage-broker", Target: "broker", At: time.Second, For: time.Hour},
			{Kind: "pause-sink", Target: "sink-1", At: time.Second, For: time.Hour},
			{Kind: "kill-sink", Target: "sink-1", At: 2 * time.Second, For: time.Hour}, // waits for its target
			{Kind: "kill-sink", Target: "sink-1", At: time.Minute, For: time.Hour},
		})
		assert.Equal(t, []string{"1.0 kill broker", "3.0 restart broker"}, p["broker"].events())
		assert.Equal(t, []string{"1.0 pause sink-1", "3.0 resume sink-1"}, p["sink-1"].events())
	})
}

func TestWhatDoesNotStartIsMended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, p := newTestInjector("sink-1")
		p["sink-1"].restarts = 4
		in.run(t.Context(), []Fault{{Kind: "kill-sink", Target: "sink-1", At: time.Second, For: time.Second}})
		done, _ := in.report()
		require.Len(t, done, 1)
		assert.Contains(t, done[0].Error, "sink-1 does not start again: port is taken")
		require.NoError(t, in.mend(), "the fifth time it does")
		assert.Equal(t, "2.0 restart sink-1", p["sink-1"].events()[len(p["sink-1"].events())-1])
		p["sink-1"].restarts = 100
		in.parts["sink-1"].down = true
		assert.ErrorContains(t, in.mend(), "does not start again")
	})
}

func TestWhoEndsByItselfIsStartedAndNoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, p := newTestInjector("sink-1")
		ctx, cancel := context.WithCancel(t.Context())
		go in.supervise(ctx)
		pause(ctx, time.Second)
		p["sink-1"].mu.Lock()
		p["sink-1"].ended = errors.New("exit status 2")
		p["sink-1"].mu.Unlock()
		pause(ctx, time.Second)
		cancel()
		synctest.Wait()
		_, died := in.report()
		require.Len(t, died, 1)
		assert.Contains(t, died[0], "sink-1 after 1.")
		assert.Contains(t, died[0], "exit status 2")
		assert.Len(t, p["sink-1"].events(), 1, "one restart")
	})
}

// The disk under a spool fails while its collector is cut off from Kafka.
func TestSpoolFault(t *testing.T) {
	file := filepath.Join(t.TempDir(), "fault")
	w := newTestWire(t)
	s := &Stack{Collectors: []Collector{{Name: "collector-1", Process: &fakeProcess{}, Kafka: w, SpoolFault: file}}}
	assert.Equal(t, []string{"collector-1"}, s.Targets()[OnSpool])
	in := newInjector(s, nil, newPhases(), time.Now())
	done := make(chan struct{})
	go func() {
		defer close(done)
		in.run(t.Context(), []Fault{{Kind: "disk-full", Target: "collector-1", For: time.Second, Mode: "enospc"}})
	}()
	require.Eventually(t, func() bool {
		b, err := os.ReadFile(file)
		return err == nil && string(b) == "enospc"
	}, time.Minute, time.Millisecond)
	<-done
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Empty(t, b)
	works(t, w)
	faults, _ := in.report()
	require.Len(t, faults, 1)
	assert.Empty(t, faults[0].Error)
}

func TestTargetsAreWhatThereIs(t *testing.T) {
	a, b := &Wire{Name: "services>kafka"}, &Wire{Name: "client>collector-1"}
	s := &Stack{
		Collectors: []Collector{{Name: "collector-1", Kafka: a, Client: b}, {Name: "collector-2", Kafka: a}},
		Sinks:      []Sink{{Name: "sink-1", Kafka: a}},
	}
	assert.Equal(t, Targets{
		OnCollector: {"collector-1", "collector-2"}, OnSink: {"sink-1"}, OnClient: {"client>collector-1"},
		OnCollectorKafka: {"services>kafka"}, OnSinkKafka: {"services>kafka"},
	}, s.Targets())
	s.ClickHouse = &fakeProcess{}
	assert.Equal(t, []string{"clickhouse"}, s.Targets()[OnClickHouse])
	assert.Equal(t, canAim, len(s.Targets()[OnInsert]) == 1)
}
