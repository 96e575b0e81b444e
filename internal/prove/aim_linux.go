package prove

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// canAim is whether a kill can be aimed at the moment between an insert's token and
// its part.
const canAim = true

// aim returns when a file of dir is written to, within microseconds: the kernel
// wakes the reader of an inotify descriptor. false: nothing was, in time.
func aim(ctx context.Context, dir string, within time.Duration) (hit bool, err error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return false, fmt.Errorf("watch %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY); err != nil {
		return false, fmt.Errorf("watch %s: %w", dir, err)
	}
	deadline := time.Now().Add(within)
	for ctx.Err() == nil && time.Now().Before(deadline) {
		const wait = 50 // ms: how soon ctx is looked at
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, wait)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, fmt.Errorf("watch %s: %w", dir, err)
		}
		if n > 0 {
			return true, nil
		}
	}
	return false, nil
}
