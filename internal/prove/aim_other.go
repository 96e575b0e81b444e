//go:build !linux

package prove

import (
	"context"
	"errors"
	"time"
)

const canAim = false

// aim needs the kernel to tell of writes as they happen.
func aim(context.Context, string, time.Duration) (bool, error) {
	return false, errors.ErrUnsupported
}
