package ledger

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

var errAway = retry.Mark(errors.New("away"), retry.Transient)

// unsynced does a store's step but for syncing: no test takes the power away, and
// thousands of them wait for a disk.
func unsynced(what string, do func() error) error {
	if strings.HasPrefix(what, "sync ") {
		return nil
	}
	return do()
}

// numbered is the first record of a stamped batch.
func numbered(s batch.Stamp) *batch.Record {
	return &batch.Record{Collector: s.Collector, Epoch: s.Epoch, Seq: s.FirstSeq, ReceivedAt: s.ReceivedAt}
}

// written is one record in the ledger topic.
type written struct {
	batch.LedgerRecord
	appended time.Time
}

// topic is a Log. write, where there is one, decides about each record: whether the
// log takes it, now or later, and what is answered.
type topic struct {
	now   func() time.Time // the broker's clock; nil: time.Now
	write func(ctx context.Context, n int) (take bool, err error)

	mu      sync.Mutex
	away    error // every call's, while it is not nil
	id      string
	next    []int64 // of the batches topic
	asked   int     // calls of Write
	records []written
	late    []batch.LedgerRecord // not taken, but may be yet
}

func (k *topic) set(change func(k *topic)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(k)
}

func (k *topic) Ends(context.Context) (string, []int64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.away != nil {
		return "", nil, k.away
	}
	return k.id, append([]int64(nil), k.next...), nil
}

func (k *topic) Write(ctx context.Context, key string, value []byte) (time.Time, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	if k.away != nil {
		return time.Time{}, k.away
	}
	r, err := batch.DecodeLedgerRecord(value)
	if err != nil {
		return time.Time{}, err
	}
	if r.Key() != key {
		return time.Time{}, errors.New("a record under another's key")
	}
	take := true
	if k.write != nil {
		n := k.asked
		k.mu.Unlock() // it may take its time
		take, err = k.write(ctx, n)
		k.mu.Lock()
	}
	if !take {
		k.late = append(k.late, r)
		return time.Time{}, err
	}
	at := k.append(r)
	if err != nil {
		return time.Time{}, err // errored but persisted
	}
	return at, nil
}

// append puts a record into the log. k.mu is held.
func (k *topic) append(r batch.LedgerRecord) time.Time {
	now := time.Now
	if k.now != nil {
		now = k.now
	}
	w := written{r, now().Truncate(time.Millisecond)} // as brokers keep it
	k.records = append(k.records, w)
	return w.appended
}

func (k *topic) all() []written {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]written(nil), k.records...)
}

// last is the newest record.
func (k *topic) last(t testing.TB) written {
	t.Helper()
	all := k.all()
	require.NotEmpty(t, all)
	return all[len(all)-1]
}

func (k *topic) kinds() []batch.LedgerKind {
	var out []batch.LedgerKind
	for _, r := range k.all() {
		out = append(out, r.Kind)
	}
	return out
}

// disk is a Spool.
type disk struct {
	mu      sync.Mutex
	backlog batch.Backlog
	state   batch.SpoolState
}

func (d *disk) set(b batch.Backlog) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.backlog = b
}

func (d *disk) Backlog() batch.Backlog {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.backlog
}

func (d *disk) State() batch.SpoolState { return d.state }
