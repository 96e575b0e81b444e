package client

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Options of a Logger. The zero value of a field is its default.
type Options struct {
	// Endpoints are the collectors' base URLs, the preferred one first:
	// http or https, with a path if a proxy wants one. 1 to 16.
	Endpoints []string
	// Key is the write key. Empty: none is sent.
	Key string

	BatchEvents   int           // events in a batch; 100, at most 5,000
	BatchBytes    int           // bytes of events in a batch; 256 KiB, at most 8 MiB. A larger event is sent alone
	FlushInterval time.Duration // oldest an incomplete batch gets; 1 s
	QueueEvents   int           // events in memory; 10,000
	QueueBytes    int           // bytes of events in memory; 32 MiB
	// MaxAge is how long a batch is tried: 7 days, at most 28, since a batch is
	// recognised as a copy for 30 days (the sinks' SLUICE_DEDUP_WINDOW).
	MaxAge         time.Duration
	RequestTimeout time.Duration // one attempt; 10 s
	RetryBase      time.Duration // bound of the first wait after a failure; 500 ms
	RetryCap       time.Duration // bound of every wait; 30 s
	Concurrency    int           // requests at a time; 4
	GzipAbove      int           // compress bodies over so many bytes; 0: never

	// Dir is where batches are kept that could not be sent. It is made if it is
	// not there. What is in it is sent with Key: one directory for each project.
	// Empty: nowhere.
	Dir         string
	DirMaxBytes int64 // bytes kept there; 64 MiB

	// HTTP sends the requests, with redirects left alone; nil: a client of the
	// Logger's own.
	HTTP *http.Client
	// OnError is told of what went wrong: failed attempts, dropped events, faults of
	// the disk. It is called from the goroutine that sends, one call at a time, and
	// holds it up: return soon, and do not call Flush or Close. Events are not
	// named one by one.
	OnError func(error)

	files files // tests replace the file system
}

const (
	mostEndpoints  = 16
	mostEvents     = 5000
	mostBatchBytes = 8 << 20
	longestAge     = 28 * 24 * time.Hour

	// A collector cuts batches into records of 900 KiB (SLUICE_RECORD_MAX_BYTES) and
	// rejects an event that does not fit into one.
	maxEventBytes = 900 << 10
)

// check fills in the defaults. Its error names the option.
func (o *Options) check() error {
	if n := len(o.Endpoints); n < 1 || n > mostEndpoints {
		return fmt.Errorf("client: Endpoints has %d entries; give 1 to %d", n, mostEndpoints)
	}
	for _, e := range o.Endpoints {
		if err := checkEndpoint(e); err != nil {
			return fmt.Errorf("client: Endpoints: %w", err)
		}
	}
	if strings.ContainsFunc(o.Key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("client: Key has a character that is not visible ASCII")
	}
	for _, f := range []struct {
		name string
		v    *int
		def  int
		most int // 0: any
	}{
		{"BatchEvents", &o.BatchEvents, 100, mostEvents},
		{"BatchBytes", &o.BatchBytes, 256 << 10, mostBatchBytes},
		{"QueueEvents", &o.QueueEvents, 10_000, 0},
		{"QueueBytes", &o.QueueBytes, 32 << 20, 0},
		{"Concurrency", &o.Concurrency, 4, 64},
		{"GzipAbove", &o.GzipAbove, 0, 0},
	} {
		if *f.v == 0 {
			*f.v = f.def
		}
		if *f.v < 0 || f.most > 0 && *f.v > f.most {
			return fmt.Errorf("client: %s is %d; give 0 for the default, or 1 to %d", f.name, *f.v, f.most)
		}
	}
	for _, f := range []struct {
		name string
		v    *time.Duration
		def  time.Duration
	}{
		{"FlushInterval", &o.FlushInterval, time.Second},
		{"MaxAge", &o.MaxAge, 7 * 24 * time.Hour},
		{"RequestTimeout", &o.RequestTimeout, 10 * time.Second},
		{"RetryBase", &o.RetryBase, 500 * time.Millisecond},
		{"RetryCap", &o.RetryCap, 30 * time.Second},
	} {
		if *f.v == 0 {
			*f.v = f.def
		}
		if *f.v < 0 {
			return fmt.Errorf("client: %s is %v; give a positive duration", f.name, *f.v)
		}
	}
	if o.MaxAge > longestAge {
		return fmt.Errorf("client: MaxAge is %v; a batch is known to the sinks for 30 days, give at most %v", o.MaxAge, longestAge)
	}
	if o.DirMaxBytes == 0 {
		o.DirMaxBytes = 64 << 20
	}
	if o.DirMaxBytes < 0 {
		return fmt.Errorf("client: DirMaxBytes is %d; give a positive number", o.DirMaxBytes)
	}
	if o.files == nil {
		o.files = osFiles{}
	}
	return nil
}

func checkEndpoint(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return err
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%q does not begin with http:// or https://", s)
	case u.Host == "":
		return fmt.Errorf("%q has no host", s)
	case u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return fmt.Errorf("%q: give only scheme, host and path", u.Redacted())
	}
	return nil
}
