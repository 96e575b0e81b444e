package faults

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// watcher reports the next write to a file of a folder, within microseconds: the
// kernel wakes the reader of an inotify descriptor.
type watcher struct{ fd int }

func watchWrites(t *testing.T, dir string) *watcher {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	require.NoError(t, err)
	_, err = unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY)
	require.NoError(t, err, dir)
	return &watcher{fd}
}

func (w *watcher) wait(t *testing.T) {
	t.Helper()
	var event [4096]byte
	for {
		_, err := unix.Read(w.fd, event[:])
		if err == unix.EINTR {
			continue
		}
		require.NoError(t, err)
		return
	}
}

func (w *watcher) close() { _ = unix.Close(w.fd) }
