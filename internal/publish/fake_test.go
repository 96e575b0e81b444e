package publish

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// fakeKafka is a topic in memory that does what the test says. A batch's
// partition is the first byte of its id, as far as
// there are so many.
type fakeKafka struct {
	mu       sync.Mutex
	answer   func(ctx context.Context, partition int, records []batch.Record) error // nil: at once, done
	probe    error
	leaders  []int
	log      map[int][]batch.Record
	requests [][]batch.Record
	inFlight map[int]int
	most     int // of one partition at once
	probes   int
}

func newFakeKafka(leaders ...int) *fakeKafka {
	return &fakeKafka{leaders: leaders, log: map[int][]batch.Record{}, inFlight: map[int]int{}}
}

var errNotThere = retry.Mark(errors.New("no such topic"), retry.Transient)

func (k *fakeKafka) Partition(_ context.Context, id batch.ID) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.leaders == nil {
		return 0, errNotThere
	}
	return int(id[0]) % len(k.leaders), nil
}

func (k *fakeKafka) Leaders() []int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.leaders
}

func (k *fakeKafka) Probe(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.probes++
	return k.probe
}

func (k *fakeKafka) Produce(ctx context.Context, partition int, records []batch.Record) (int64, time.Time, error) {
	k.mu.Lock()
	answer := k.answer
	k.requests = append(k.requests, slices.Clone(records))
	k.inFlight[partition]++
	k.most = max(k.most, k.inFlight[partition])
	k.mu.Unlock()
	var err error
	if answer != nil {
		err = answer(ctx, partition, records)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.inFlight[partition]--
	base := int64(len(k.log[partition]))
	if err == nil {
		k.log[partition] = append(k.log[partition], records...)
	}
	return base, time.Time{}, err
}

// persist writes records whatever the answer is.
func (k *fakeKafka) persist(partition int, records []batch.Record) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.log[partition] = append(k.log[partition], records...)
}

func (k *fakeKafka) set(answer func(ctx context.Context, partition int, records []batch.Record) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.answer = answer
}

func (k *fakeKafka) setProbe(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.probe = err
}

func (k *fakeKafka) setLeaders(leaders ...int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.leaders = leaders
}

func (k *fakeKafka) stored(partition int) []uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []uint64
	for _, r := range k.log[partition] {
		out = append(out, r.Seq)
	}
	return out
}

func (k *fakeKafka) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.requests)
}

func (k *fakeKafka) probed() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.probes
}

// Answers.

var errDown = retry.Mark(io.ErrUnexpectedEOF, retry.Transient)

func failing(context.Context, int, []batch.Record) error { return errDown }

// hanging answers when ctx ends, as a stopped broker does.
func hanging(ctx context.Context, _ int, _ []batch.Record) error {
	<-ctx.Done()
	class := retry.Transient
	if ctx.Err() == context.Canceled {
		class = retry.Shutdown
	}
	return retry.Mark(ctx.Err(), class)
}

func slow(d time.Duration) func(context.Context, int, []batch.Record) error {
	return func(ctx context.Context, partition int, records []batch.Record) error {
		if !retry.Sleep(ctx, d) {
			return hanging(ctx, partition, records)
		}
		return nil
	}
}

type refusedError struct {
	error
	at []int
}

func (e refusedError) Refused() []int { return e.at }

type movedError struct{ error }

func (e movedError) Unwrap() error { return e.error }
func (movedError) Moved()          {}

func refusing(at ...int) error {
	return refusedError{retry.Mark(errors.New("record too large"), retry.Permanent), at}
}

func record(partition, seq int) batch.Record {
	return batch.Record{BatchID: batch.ID{byte(partition), byte(seq), byte(seq >> 8)}, Seq: uint64(seq), Value: []byte("value")}
}

func newPublisher(t testing.TB, o Options) *Publisher {
	p, err := New(o)
	require.NoError(t, err)
	return p
}

func shut(t testing.TB, p *Publisher) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	assert.NoError(t, p.Close(ctx))
}

// resend asserts that an error tells its sender to come back, and when.
func resend(t testing.TB, err error, class retry.Class) {
	t.Helper()
	require.Error(t, err)
	assert.Equal(t, class, retry.ClassOf(err), "%v", err)
	assert.GreaterOrEqual(t, retry.After(err), time.Second)
	assert.Less(t, retry.After(err), time.Minute)
}

// publishAll publishes one record each, at once, and returns the errors.
func publishAll(ctx context.Context, p *Publisher, records ...batch.Record) []error {
	errs := make([]error, len(records))
	var wg sync.WaitGroup
	for i, r := range records {
		wg.Go(func() { _, errs[i] = p.Publish(ctx, []batch.Record{r}) })
	}
	wg.Wait()
	return errs
}
