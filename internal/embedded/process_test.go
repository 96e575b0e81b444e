package embedded

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func shell(t *testing.T, body string) command {
	return command{name: "server", path: "/bin/sh", args: []string{"-c", body}, log: filepath.Join(t.TempDir(), "log")}
}

func TestEndIsReportedWithTheLogsLastLines(t *testing.T) {
	p, err := start(shell(t, "seq 1000; echo out of luck >&2; exit 7"))
	require.NoError(t, err)
	<-p.done
	assert.ErrorContains(t, p.err, "exit status 7")
	assert.ErrorContains(t, p.err, "1000\nout of luck")
	assert.ErrorContains(t, p.err, p.log)
	assert.NotContains(t, p.err.Error(), "\n900\n")

	p, err = start(shell(t, "kill -9 $$"))
	require.NoError(t, err)
	<-p.done
	assert.ErrorContains(t, p.err, "signal: killed")
	assert.ErrorContains(t, p.err, "is empty")
}

func TestEndWhileWaitingForAnAnswer(t *testing.T) {
	p, err := start(shell(t, "echo no; exit 3"))
	require.NoError(t, err)
	_, err = started(t.Context(), p, func(context.Context) error { return os.ErrDeadlineExceeded })
	assert.ErrorContains(t, err, "exit status 3")
}

func TestNoAnswerEndsTheChild(t *testing.T) {
	p, err := start(shell(t, "exec sleep 1000"))
	require.NoError(t, err)
	_, err = started(shortly(t), p, func(context.Context) error { return os.ErrDeadlineExceeded })
	require.ErrorIs(t, err, context.DeadlineExceeded)
	<-p.done
}

func TestStopKillsWhoDoesNotListen(t *testing.T) {
	c := shell(t, `trap "" TERM; echo ready; while :; do sleep 1; done`)
	p, err := start(c)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return tail(c.log) == "ready" }, time.Minute, time.Millisecond)
	require.NoError(t, p.stop(shortly(t)))
	<-p.done
	assert.NoError(t, p.err, "it was asked to")
	assert.NoError(t, p.stop(t.Context()), "once more")
	assert.NoError(t, p.kill())
}

func TestStopEndsAPausedChild(t *testing.T) {
	p, err := start(shell(t, "exec sleep 1000"))
	require.NoError(t, err)
	require.NoError(t, p.signal(syscall.SIGSTOP))
	require.NoError(t, p.stop(t.Context()))
}

func TestRun(t *testing.T) {
	assert.NoError(t, run(t.Context(), shell(t, "exit 0")))
	assert.ErrorContains(t, run(t.Context(), shell(t, "echo why; exit 1")), "why")
	assert.ErrorIs(t, run(shortly(t), shell(t, "exec sleep 1000")), context.DeadlineExceeded)
	assert.ErrorIs(t, run(t.Context(), command{name: "x", path: "/does/not/exist", log: t.TempDir() + "/log"}), os.ErrNotExist)
}

func TestWatchingShellEndsWithItsChild(t *testing.T) {
	p, err := start(shell(t, "exec sleep 1000"))
	require.NoError(t, err)
	unwatch, err := watch(p.proc.Pid)
	require.NoError(t, err)
	require.NoError(t, p.kill())
	unwatch()
}

// The child holds a lock that is free only when it is gone.
func TestChildDiesWithItsParent(t *testing.T) {
	for _, role := range []string{"parent", "watched"} {
		t.Run(role, func(t *testing.T) {
			dir := t.TempDir()
			parent, _ := perform(t, role, dir, "")
			_, err := lockFile(shortly(t), filepath.Join(dir, "child"), func() {})
			require.ErrorIs(t, err, context.DeadlineExceeded, "the child holds it")
			kill(parent)
			lock, err := lockFile(t.Context(), filepath.Join(dir, "child"), func() {})
			require.NoError(t, err)
			assert.NoError(t, lock.Close())
		})
	}
}

func TestDataDirectoryIsLocked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "data")
	lock, err := lockData(t.Context(), dir)
	require.NoError(t, err)
	_, err = lockData(shortly(t), dir)
	require.ErrorIs(t, err, ErrInUse)
	assert.ErrorContains(t, err, dir)
	require.NoError(t, lock.Close())
	lock, err = lockData(t.Context(), dir)
	require.NoError(t, err)
	assert.NoError(t, lock.Close())
}
