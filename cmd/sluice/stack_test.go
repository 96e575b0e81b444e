package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/embedded"
	"sluice/test/pipeline"
)

// How long anything may take that a test waits for, and how often it looks.
const (
	patience = 90 * time.Second
	tick     = 50 * time.Millisecond
)

// place is where a stack of sluice up lives: a directory and six addresses. It
// stays the same over restarts.
type place struct {
	dir                                            string
	kafka, native, http, listen, collector, sinkAt string
}

func newPlace(t *testing.T) place {
	t.Helper()
	p := place{dir: filepath.Join(t.TempDir(), "up")}
	taken := map[string]bool{}
	for _, addr := range []*string{&p.kafka, &p.native, &p.http, &p.listen, &p.collector, &p.sinkAt} {
		for *addr == "" || taken[*addr] {
			var err error
			*addr, err = embedded.FreeAddr()
			require.NoError(t, err)
		}
		taken[*addr] = true
	}
	return p
}

func (p place) env() []string {
	return []string{
		"SLUICE_UP_DIR=" + p.dir,
		"SLUICE_UP_KAFKA_LISTEN=" + p.kafka,
		"SLUICE_UP_CLICKHOUSE_LISTEN=" + p.native,
		"SLUICE_UP_CLICKHOUSE_HTTP_LISTEN=" + p.http,
		"SLUICE_LISTEN=" + p.listen,
		"SLUICE_UP_COLLECTOR_ADMIN_LISTEN=" + p.collector,
		"SLUICE_UP_SINK_ADMIN_LISTEN=" + p.sinkAt,
	}
}

func (p place) url() string { return "http://" + p.listen }

// pipeline looks at the stack from outside.
func (p place) pipeline(t *testing.T) *pipeline.Pipeline {
	return pipeline.On(t, p.kafka, "clickhouse://"+p.native+"/sluice")
}

// free waits until nobody listens on any of the addresses: the last threads of a
// process that was killed may hold them for a moment longer.
func (p place) free(t *testing.T) {
	t.Helper()
	for _, addr := range []string{p.kafka, p.native, p.http, p.listen, p.collector, p.sinkAt} {
		assert.Eventually(t, func() bool {
			return embedded.CheckPort(embedded.Endpoint{Addr: addr}) == nil
		}, patience, tick, addr)
	}
}

// running is a sluice up in a process of its own.
type running struct {
	cmd            *exec.Cmd
	stdout, stderr transcript
	done           chan struct{} // closed when the process has ended
}

// startUp starts sluice up at a place.
func startUp(t *testing.T, p place, args ...string) *running {
	t.Helper()
	return startUpWith(t, p, nil, args...)
}

func startUpWith(t *testing.T, p place, env []string, args ...string) *running {
	t.Helper()
	r := &running{done: make(chan struct{})}
	// Not tied to the test's context: how it ends is what the tests are about.
	r.cmd = command(context.Background(), t, append([]string{"up"}, args...), append(p.env(), env...))
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	require.NoError(t, r.cmd.Start())
	go func() {
		defer close(r.done)
		_ = r.cmd.Wait() // ProcessState has the exit code
	}()
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill() // it may be gone
		<-r.done
		if t.Failed() {
			t.Logf("sluice up wrote:\n%s\n%s", r.stdout.String(), r.stderr.String())
			for _, name := range []string{"sink", "collector"} {
				log, _ := os.ReadFile(filepath.Join(p.dir, "log", name+".log"))
				t.Logf("end of the log of %s:\n%s", name, log[max(0, len(log)-4000):])
			}
		}
	})
	return r
}

// await waits until the process has written a text to standard output.
func (r *running) await(t *testing.T, text string) {
	t.Helper()
	r.awaitIn(t, &r.stdout, text)
}

func (r *running) awaitIn(t *testing.T, in *transcript, text string) {
	t.Helper()
	require.Eventually(t, func() bool {
		if strings.Contains(in.String(), text) {
			return true
		}
		select {
		case <-r.done:
			return true
		default:
			return false
		}
	}, patience, 10*time.Millisecond, "waiting for %q", text)
	require.Contains(t, in.String(), text)
}

// exit waits for the end of the process and returns its exit code.
func (r *running) exit(t *testing.T) int {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		require.Fail(t, "sluice up does not end")
	}
	return r.cmd.ProcessState.ExitCode()
}

// ready waits until everything is up.
func (r *running) ready(t *testing.T) {
	t.Helper()
	r.await(t, "Ctrl-C ends it.")
}

// transcript is what a process wrote so far.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Write(p)
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

// child is a process that sluice up has started.
type child struct {
	pid  int
	args string
}

// children are the living processes below pid.
func children(t *testing.T, pid int) []child {
	t.Helper()
	below := processes(t)
	var all []child
	for parents := []int{pid}; len(parents) > 0; parents = parents[1:] {
		for _, c := range below[parents[0]] {
			all = append(all, c)
			parents = append(parents, c.pid)
		}
	}
	return all
}

// processes are all that live, by parent. One that is dead and not yet reaped
// does not.
func processes(t *testing.T) map[int][]child {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ps", "-A", "-o", "pid=", "-o", "ppid=", "-o", "stat=", "-o", "args=").Output()
	require.NoError(t, err)
	all := map[int][]child{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 4 || strings.HasPrefix(f[2], "Z") {
			continue
		}
		pid, err := strconv.Atoi(f[0])
		require.NoError(t, err)
		parent, err := strconv.Atoi(f[1])
		require.NoError(t, err)
		all[parent] = append(all[parent], child{pid, strings.Join(f[3:], " ")})
	}
	return all
}

// gone waits until none of the processes lives.
func gone(t *testing.T, list []child) {
	t.Helper()
	require.NotEmpty(t, list)
	var left []child
	require.Eventually(t, func() bool {
		left = nil
		for _, kids := range processes(t) {
			for _, c := range kids {
				for _, was := range list {
					if c == was {
						left = append(left, c)
					}
				}
			}
		}
		return len(left) == 0
	}, patience, tick, "still there: %v", &left)
}

// one is the child whose command line has a text in it.
func one(t *testing.T, list []child, text string) child {
	t.Helper()
	for _, c := range list {
		if strings.Contains(c.args, text) {
			return c
		}
	}
	require.Fail(t, "no such child", "%q in %v", text, list)
	return child{}
}

func kill(t *testing.T, pid int) {
	t.Helper()
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
}
