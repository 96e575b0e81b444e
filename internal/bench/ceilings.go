package bench

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"sluice/pkg/schema"
)

// Ceiling is what one of the bare parts did in a process of its own.
type Ceiling struct {
	Events  int64   `json:"events"`
	Seconds float64 `json:"seconds"`
	CPU     float64 `json:"cpu_seconds"` // of the process, while it measured
}

// Cost is in CPU-s/M.
func (c Ceiling) Cost() float64 { return cost(c.CPU, c.Events) }

func cost(cpu float64, events int64) float64 {
	if events == 0 {
		return 0
	}
	return cpu / float64(events) * 1e6
}

// timed measures this process while do runs, which returns how many events it did.
func timed(do func() (int64, error)) (Ceiling, error) {
	cpu, begin := ownCPU(), time.Now()
	n, err := do()
	return Ceiling{Events: n, Seconds: time.Since(begin).Seconds(), CPU: (ownCPU() - cpu).Seconds()}, err
}

// ServeReading is the ceiling of any collector in Go: a net/http server that reads
// bodies, inflates those in gzip, and answers 202. It serves until ctx ends.
func ServeReading(ctx context.Context, addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("--listen %s: %w", addr, err)
	}
	buffers := sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}
	inflaters := sync.Pool{New: func() any { return new(gzip.Reader) }}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			z := inflaters.Get().(*gzip.Reader)
			defer inflaters.Put(z)
			if z.Reset(body) != nil {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			body = z
		}
		for {
			if _, err := body.Read(*buf); err != nil {
				break
			}
		}
		w.WriteHeader(http.StatusAccepted)
	})}
	context.AfterFunc(ctx, func() { _ = server.Close() }) // nothing that it holds counts
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Scan decodes native requests for a while, on one core.
func Scan(d time.Duration, w Workload) (Ceiling, error) {
	w.Protocol, w.Encoding = Native, "none"
	g, err := newGenerator(w)
	if err != nil {
		return Ceiling{}, err
	}
	templates, err := g.templates(64, 2)
	if err != nil {
		return Ceiling{}, err
	}
	bodies := make([][]byte, len(templates))
	for i, t := range templates {
		bodies[i] = bodyOf(t)
	}
	var b schema.Batch
	decode := func(d time.Duration) (n int64, err error) {
		for begin := time.Now(); time.Since(begin) < d; {
			for _, body := range bodies {
				b.Reset()
				if err := schema.DecodeJSON(body, schema.KindExposure, 10_000, &b); err != nil {
					return n, err
				}
				n += int64(len(b.Events))
			}
		}
		return n, nil
	}
	if _, err := decode(d / 10); err != nil {
		return Ceiling{}, err
	}
	return timed(func() (int64, error) { return decode(d) })
}

// bodyOf is a request's body.
func bodyOf(t *template) []byte {
	for i := range t.wire {
		if string(t.wire[i:i+4]) == "\r\n\r\n" {
			return t.wire[i+4:]
		}
	}
	return nil
}

// Sync appends blocks to a file for a while, from many goroutines that share their
// fdatasyncs, each waiting for the one after its append. An event is one append.
func Sync(d time.Duration, dir string, writers, size int) (c Ceiling, err error) {
	f, err := os.Create(filepath.Join(dir, "fsync-ceiling"))
	if err != nil {
		return Ceiling{}, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	block := make([]byte, size)
	for i := range block {
		block[i] = byte(i * 7)
	}
	appends := make(chan chan error, writers)
	var done atomic.Int64
	var wg sync.WaitGroup
	return timed(func() (int64, error) {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		var committer sync.WaitGroup
		committer.Go(func() {
			for first := range appends {
				group := []chan error{first}
				for more := true; more; {
					select {
					case next, ok := <-appends:
						if more = ok; ok {
							group = append(group, next)
						}
					default:
						more = false
					}
				}
				var err error
				for range group {
					if _, werr := f.Write(block); werr != nil {
						err = werr
					}
				}
				err = errors.Join(err, fdatasync(f))
				for _, g := range group {
					g <- err
				}
			}
		})
		var failed atomic.Pointer[error]
		for range writers {
			wg.Go(func() {
				answer := make(chan error, 1)
				for ctx.Err() == nil {
					appends <- answer
					if err := <-answer; err != nil {
						failed.Store(&err)
						return
					}
					done.Add(1)
				}
			})
		}
		wg.Wait()
		close(appends)
		committer.Wait()
		if err := failed.Load(); err != nil {
			return done.Load(), *err
		}
		return done.Load(), nil
	})
}
