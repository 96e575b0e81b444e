package watermark

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/pkg/batch"
)

var errAway = errors.New("away")

// topic is a ledger topic in memory.
type topic struct {
	id      string
	entries []Entry
	end     int64
	away    bool
	most    int // entries a Read returns; 0: all
}

func (l *topic) ID(context.Context) (string, error) {
	if l.away {
		return "", errAway
	}
	return l.id, nil
}

func (l *topic) Bounds(context.Context) (batch.Bounds, error) {
	if l.away {
		return batch.Bounds{}, errAway
	}
	return batch.Bounds{End: l.end}, nil
}

func (l *topic) Read(_ context.Context, from int64, _ time.Duration) ([]Entry, int64, error) {
	if l.away {
		return nil, from, errAway
	}
	var out []Entry
	next := l.end
	for _, e := range l.entries {
		if e.Offset < from {
			continue
		}
		if l.most > 0 && len(out) == l.most {
			next = out[len(out)-1].Offset + 1
			break
		}
		out = append(out, e)
	}
	return out, next, nil
}

func (l *topic) append(key string, value []byte, at time.Time) {
	l.entries = append(l.entries, Entry{Offset: l.end, At: at, Key: key, Value: value})
	l.end++
}

func (l *topic) write(r batch.LedgerRecord, at time.Time) {
	value, err := r.Encode()
	if err != nil {
		panic(err)
	}
	l.append(r.Key(), value, at)
}

// compact removes records that have a later one of their key.
func (l *topic) compact(keep func() bool) {
	last := map[string]int64{}
	for _, e := range l.entries {
		last[e.Key] = e.Offset
	}
	l.entries = slices.DeleteFunc(l.entries, func(e Entry) bool { return last[e.Key] != e.Offset && !keep() })
}

// tables are ClickHouse's in memory: of the rows of a key one stays, as their
// engines say.
type tables struct {
	ledger       map[string]Row
	completeness map[string]Standing
	stored       progress
	// fault is asked before each insert: whether it is stored, and what is said of it.
	fault func() (stored bool, err error)
	late  []func() // inserts that are stored some time later
}

func newTables() *tables {
	return &tables{ledger: map[string]Row{}, completeness: map[string]Standing{}, stored: progress{}}
}

func (t *tables) insert(do func()) error {
	if t.fault == nil {
		do()
		return nil
	}
	stored, err := t.fault()
	if stored {
		do()
	} else if err != nil {
		t.late = append(t.late, do)
	}
	return err
}

func (t *tables) CopiedTo(_ context.Context, ledger string) (int64, error) {
	top := int64(-1)
	for _, r := range t.ledger {
		if r.Ledger == ledger {
			top = max(top, r.Offset)
		}
	}
	return top, nil
}

func (t *tables) LedgerRows(_ context.Context, ledger, topic string, row func(Row)) error {
	cluster, _, _ := strings.Cut(ledger, ".")
	var rows []Row
	for _, r := range t.ledger {
		if r.Topic == topic && strings.HasPrefix(r.Ledger, cluster+".") {
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, func(a, b Row) int {
		x, y := a.Ledger == ledger, b.Ledger == ledger
		if x != y {
			if x {
				return 1
			}
			return -1
		}
		if !x {
			if d := a.At.Compare(b.At); d != 0 {
				return d
			}
		}
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), strings.Compare(a.Entry, b.Entry))
	})
	for _, r := range rows {
		row(r)
	}
	return nil
}

func (t *tables) InsertLedger(_ context.Context, rows []Row) error {
	rows = slices.Clone(rows)
	return t.insert(func() {
		for _, r := range rows {
			k := strings.Join([]string{r.Record.Collector.String(), r.Record.Key(), r.Entry, r.Record.Log}, "|")
			if was, ok := t.ledger[k]; !ok || was.Version <= r.Version {
				t.ledger[k] = r
			}
		}
	})
}

func (t *tables) CompletenessRows(_ context.Context, ledgersOnly bool, row func(Standing)) error {
	for _, r := range t.completeness {
		if !ledgersOnly || r.Collector.IsZero() {
			row(r)
		}
	}
	return nil
}

func (t *tables) InsertCompleteness(_ context.Context, rows []Standing) error {
	rows = slices.Clone(rows)
	return t.insert(func() {
		for _, r := range rows {
			k := r.Ledger + "|" + r.Collector.String()
			if was, ok := t.completeness[k]; !ok || !r.CompleteUntil.Before(was.CompleteUntil) {
				t.completeness[k] = r
			}
		}
	})
}

func (t *tables) AllProgress(_ context.Context, found func(string, int, int64)) error {
	for log, partitions := range t.stored {
		for p, through := range partitions {
			found(log, p, through)
		}
	}
	return nil
}

// whole is the row the view delivery_watermark shows.
func (t *tables) whole() Standing { return t.completeness["|"+batch.ID{}.String()] }

func newCopier(l Ledger, s Store) *Copier {
	return New(Config{Topic: "t.ledger"}, l, s, slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()))
}
