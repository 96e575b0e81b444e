package faults

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// aimVariable names the process to kill, for the child that does it.
const aimVariable = "SLUICE_TEST_AIM"

// killAtWrite kills a process at a write to a file of a folder of a table's, while
// the table has a part that was not given its name yet, within microseconds: the kernel wakes the reader of an inotify descriptor. That is a
// process of its own with nothing else to do; here the load generator would often
// have the processors first.
func killAtWrite(t *testing.T, pid int, dir string) {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), exe, dir)
	cmd.Env = append(os.Environ(), fmt.Sprint(aimVariable, "=", pid), "GOMAXPROCS=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// aimMain is the child of killAtWrite. It reports whether this process is one.
func aimMain() (code int, child bool) {
	v := os.Getenv(aimVariable)
	if v == "" {
		return 0, false
	}
	if err := aim(v, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
	return 0, true
}

func aim(victim, dir string) error {
	pid, err := strconv.Atoi(victim)
	if err != nil {
		return err
	}
	// Sooner than others, where that is allowed.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -20)
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	var event [4096]byte
	for {
		_, err := unix.Read(fd, event[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		// Stopped first: where the part has its name already, the kill would be an
		// ordinary one, and the next write is waited for.
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			return err
		}
		unnamed, err := filepath.Glob(filepath.Join(filepath.Dir(dir), "tmp_insert_*"))
		if err != nil {
			return err
		}
		if len(unnamed) > 0 {
			return unix.Kill(pid, unix.SIGKILL)
		}
		if err := unix.Kill(pid, unix.SIGCONT); err != nil {
			return err
		}
	}
}
