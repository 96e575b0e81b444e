package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"sluice/pkg/batch"
)

// Topic is where records are written to.
type Topic interface {
	// Partition is where a batch's records go.
	Partition(ctx context.Context, id batch.ID) (int, error)
	// Produce writes records to a partition and returns when they are there.
	Produce(ctx context.Context, partition int, records []batch.Record) (int64, time.Time, error)
}

// Filler writes to a topic what collectors would write, at a fraction of their cost.
type Filler struct {
	g       *generator
	topic   Topic
	records [][]*recordTemplate // by worker
	next    atomic.Uint64
	events  atomic.Int64
}

const (
	fillers   = 4
	fillGroup = 32 // records a request; their compressed size stays below a MiB
	// fillPause is how long records gather in an open loop, as they do in collectors.
	fillPause = 20 * time.Millisecond
)

// NewFiller prepares records of a native workload without an encoding.
func NewFiller(topic Topic, w Workload) (*Filler, error) {
	w.Protocol, w.Encoding = Native, "none"
	g, err := newGenerator(w)
	if err != nil {
		return nil, err
	}
	f := &Filler{g: g, topic: topic}
	f.next.Store(rand.Uint64N(1<<24) << 24)
	for i := range fillers {
		t, err := g.recordTemplates(max(2, min(64, 1600/g.Events)), uint64(i+2))
		if err != nil {
			return nil, err
		}
		f.records = append(f.records, t)
	}
	return f, nil
}

// Events is how many events were written so far.
func (f *Filler) Events() int64 { return f.events.Load() }

// Fill writes at least so many events, rounded up to whole records, and returns how
// many: at a rate, in events a second, or as fast as it goes (0). It ends early,
// without an error, when ctx does.
func (f *Filler) Fill(ctx context.Context, events int64, rate float64) (int64, error) {
	wanted := (events + int64(f.g.Events) - 1) / int64(f.g.Events)
	var taken, written atomic.Int64
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	begin := time.Now()
	var wg sync.WaitGroup
	for _, templates := range f.records {
		wg.Go(func() {
			w := &fillWorker{f: f, templates: templates, waiting: map[int][]batch.Record{}, written: &written}
			for {
				n := taken.Add(1)
				if n > wanted || ctx.Err() != nil {
					break
				}
				if rate > 0 {
					due := begin.Add(time.Duration(float64(n) * float64(f.g.Events) / rate * float64(time.Second)))
					if time.Since(w.flushed) > fillPause {
						if err := w.flush(ctx); err != nil {
							cancel(err)
							return
						}
					}
					if d := time.Until(due); d > 0 {
						time.Sleep(d)
					}
				}
				if err := w.add(ctx); err != nil {
					cancel(err)
					return
				}
			}
			// What is begun is finished, so that what was written is known.
			if err := w.flush(context.WithoutCancel(ctx)); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return written.Load(), fmt.Errorf("fill the topic: %w", err)
	}
	return written.Load(), nil
}

type fillWorker struct {
	f         *Filler
	templates []*recordTemplate
	at        int
	waiting   map[int][]batch.Record // by partition
	free      [][]byte
	flushed   time.Time
	written   *atomic.Int64
}

func (w *fillWorker) add(ctx context.Context) error {
	t := w.templates[w.at]
	w.at = (w.at + 1) % len(w.templates)
	var value []byte
	if n := len(w.free); n > 0 {
		value, w.free = w.free[n-1], w.free[:n-1]
	}
	r := t.stamped(w.f.g, w.f.next.Add(1), value)
	p, err := w.f.topic.Partition(ctx, r.BatchID)
	if err != nil {
		return err
	}
	w.waiting[p] = append(w.waiting[p], r)
	if len(w.waiting[p]) < fillGroup {
		return nil
	}
	return w.produce(ctx, p)
}

func (w *fillWorker) flush(ctx context.Context) error {
	for p := range w.waiting {
		if err := w.produce(ctx, p); err != nil {
			return err
		}
	}
	w.flushed = time.Now()
	return nil
}

// produceTimeout is far beyond what a Kafka that works takes.
const produceTimeout = 30 * time.Second

func (w *fillWorker) produce(ctx context.Context, p int) error {
	records := w.waiting[p]
	if len(records) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), produceTimeout)
	defer cancel()
	if _, _, err := w.f.topic.Produce(ctx, p, records); err != nil {
		return err
	}
	for i := range records {
		w.free = append(w.free, records[i].Value)
		w.f.events.Add(int64(records[i].Events))
		w.written.Add(int64(records[i].Events))
	}
	w.waiting[p] = records[:0]
	return nil
}
