package spool

import (
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Bounds of what is written, so that a reader never has to believe a length.
const (
	maxValueBytes  = 64 << 20
	maxAppendBytes = 256 << 20
	// groupBytes is how much one write and fsync may carry; a larger Append goes
	// alone. It is also what waits in memory while the write before it runs.
	groupBytes = 4 << 20

	minSegmentBytes = 64 << 10
	maxSegmentBytes = 256 << 20
	// segmentsAtLeast is into how many segments a full spool is cut at least: space
	// comes back a segment at a time.
	segmentsAtLeast = 16
)

// Options are how a spool is kept. Every zero field gets its default.
type Options struct {
	FS           FS    // default: the operating system's files
	MaxBytes     int64 // on disk, of everything the spool keeps; default 10 GiB
	MinFree      int64 // free bytes that are left on the disk; default none
	SegmentBytes int64 // of one file; default 64 MiB; at most MaxBytes/16
	Now          func() time.Time
	Log          *slog.Logger
	Registerer   prometheus.Registerer
}

func (o *Options) defaults() error {
	if o.MaxBytes < 0 || o.MinFree < 0 || o.SegmentBytes < 0 {
		return errors.New("spool: sizes are not negative")
	}
	if o.FS == nil {
		o.FS = osFS{}
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 10 << 30
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 64 << 20
	}
	o.SegmentBytes = min(max(min(o.SegmentBytes, o.MaxBytes/segmentsAtLeast), minSegmentBytes), maxSegmentBytes)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Registerer == nil {
		o.Registerer = prometheus.NewRegistry()
	}
	return nil
}
