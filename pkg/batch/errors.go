package batch

import "errors"

var (
	// ErrFenced means the partition has another owner, or may have: whatever was
	// prepared under this ownership must be dropped, not retried.
	ErrFenced = errors.New("partition is owned by another member or generation")
	// ErrOffsetGone means the offset asked for is not in the log: retention
	// deleted it, or the log is not the one it was committed for.
	ErrOffsetGone = errors.New("offset is not in the log")
)
