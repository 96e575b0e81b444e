package ledger

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

func TestEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		before func(d *desk)
		closes bool
	}{
		"nothing accepted": {func(*desk) {}, true},
		"all settled": {func(d *desk) {
			d.l.InKafka(numbered(d.l.Accept(1)), 0, 1)
			d.l.Void(numbered(d.l.Accept(1)))
		}, true},
		"in flight": {func(d *desk) { d.l.Accept(1) }, false},
		"spooled": {func(d *desk) {
			d.spool.set(batch.Backlog{Records: 1, Oldest: time.Now()})
			d.l.Spooled(numbered(d.l.Accept(1)))
		}, false},
		"lost": {func(d *desk) { d.spool.set(batch.Backlog{Lost: 1, LostFrom: time.Now()}) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(t)
				d.start()
				pass(t, 5*time.Second)
				tt.before(d)
				l := d.l
				took, err := d.stop()
				require.NoError(t, err)
				assert.Zero(t, took)
				assert.Error(t, l.Ready())
				assert.Equal(t, retry.Shutdown, retry.ClassOf(l.Ready()))
				assert.Zero(t, l.Accept(1), "nothing can be acknowledged after the end")
				assert.Equal(t, tt.closes, d.log.last(t).Kind == batch.LedgerClose, "%v", d.log.kinds())
				assert.Equal(t, 1, strings.Count(strings.Join(kindStrings(d.log), " "), "open"))
				if !tt.closes {
					assert.Equal(t, batch.LedgerInterval, d.log.last(t).Kind)
				}

				// After a close the next start is that of a new id.
				d.log.set(func(k *topic) { k.away = errAway })
				id := l.Collector()
				l = d.start()
				assert.Equal(t, id, l.Collector())
				assert.Equal(t, tt.closes, l.Ready() != nil)
				d.log.set(func(k *topic) { k.away = nil })
				pass(t, 10*time.Second)
				assert.NoError(t, l.Ready())
				_, _ = d.stop()
			})
		})
	}
}

func kindStrings(k *topic) []string {
	var out []string
	for _, kind := range k.kinds() {
		out = append(out, string(kind))
	}
	return out
}

// Where the last record is not taken the closing one is not tried: the next start
// must not have to wait for Kafka.
func TestEndWithoutKafka(t *testing.T) {
	for name, tt := range map[string]struct {
		write   func(ctx context.Context, n int) (bool, error)
		patient bool // takes all the time there is
	}{
		"refuses": {func(context.Context, int) (bool, error) { return false, errAway }, false},
		"hangs": {func(ctx context.Context, _ int) (bool, error) {
			<-ctx.Done()
			return false, retry.Mark(ctx.Err(), retry.Transient)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(t)
				l := d.start(WithPatience(2 * time.Second))
				l.InKafka(numbered(l.Accept(1)), 0, 1)
				pass(t, 3500*time.Millisecond)
				d.log.set(func(k *topic) { k.write = tt.write })
				took, err := d.stop()
				require.Error(t, err)
				assert.LessOrEqual(t, took, 2*time.Second)
				if tt.patient {
					assert.Equal(t, 2*time.Second, took)
				}
				assert.NotContains(t, d.log.kinds(), batch.LedgerClose)

				d.log.set(func(k *topic) { k.write, k.away = nil, errAway })
				l = d.start()
				assert.NoError(t, l.Ready(), "as after a kill")
				d.log.set(func(k *topic) { k.away = nil })
				_, _ = d.stop()
			})
		})
	}
}

// Run is told to end while a write hangs: it is waited for, within the patience,
// and what comes after it knows of it.
func TestEndDuringAWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		release := make(chan struct{})
		d.log.write = func(ctx context.Context, n int) (bool, error) {
			if n == 2 {
				<-release
			}
			return true, nil
		}
		d.start()
		pass(t, 2*time.Second) // the second one hangs
		d.cancel()
		pass(t, time.Second)
		close(release)
		require.NoError(t, <-d.done)
		require.NoError(t, d.l.Close())
		assert.Equal(t, []batch.LedgerKind{batch.LedgerOpen, batch.LedgerInterval, batch.LedgerInterval, batch.LedgerClose}, d.log.kinds())
	})
}

// The closing record gets there and nobody hears of it, or it gets there long after
// the collector has opened again.
func TestEndUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, persisted := range []bool{true, false} {
			d := newDesk(t)
			d.start()
			d.log.set(func(k *topic) {
				k.write = func(context.Context, int) (bool, error) {
					if marked(t, d.dir) == closed {
						return persisted, errAway
					}
					return true, nil
				}
			})
			pass(t, time.Second)
			took, err := d.stop()
			require.Error(t, err)
			assert.LessOrEqual(t, took, 5*time.Second)

			d.log.set(func(k *topic) { k.write, k.away = nil, errAway })
			l := d.start()
			assert.Error(t, l.Ready(), "somebody may have been told that it ended")
			d.log.set(func(k *topic) { k.away = nil })
			pass(t, 10*time.Second)
			assert.NoError(t, l.Ready())
			for _, r := range d.log.late {
				assert.Equal(t, batch.LedgerClose, r.Kind)
				assert.True(t, r.At.Before(d.log.last(t).At))
			}
			_, _ = d.stop()
		}
	})
}

func marked(t *testing.T, dir string) phase {
	t.Helper()
	line, err := os.ReadFile(filepath.Join(dir, stateFile))
	require.NoError(t, err)
	s, _, err := parseState(line)
	require.NoError(t, err)
	return s.phase
}

// A new id that ends before it could open has acknowledged nothing. If it may be
// known all the same, it says so.
func TestEndBeforeTheOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.log.away = errAway
		d.start()
		pass(t, time.Minute)
		took, err := d.stop()
		require.NoError(t, err)
		assert.Zero(t, took)
		assert.Zero(t, d.log.asked, "the ends could not be had")

		d.log.away = nil
		d.log.write = func(_ context.Context, n int) (bool, error) {
			if n <= 3 {
				return true, errAway
			}
			return true, nil
		}
		d.start()
		_, err = d.stop()
		require.NoError(t, err)
		assert.Equal(t, batch.LedgerClose, d.log.last(t).Kind)
		assert.Equal(t, batch.LedgerOpen, d.log.all()[0].Kind)
	})
}

// A known id that never saw Kafka in its life still tries to leave its account.
func TestEndOpensWhereNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		l := d.start()
		l.Accept(1)
		pass(t, time.Second)
		_, _ = d.stop()
		d.log.set(func(k *topic) { k.away = errAway })
		l = d.start()
		l.Spooled(numbered(l.Accept(1)))
		d.spool.set(batch.Backlog{Records: 1, Oldest: time.Now()})
		pass(t, time.Minute)
		before := len(d.log.all())
		d.log.set(func(k *topic) { k.away = nil })
		_, err := d.stop()
		require.NoError(t, err)
		assert.Equal(t, []batch.LedgerKind{batch.LedgerOpen, batch.LedgerInterval}, d.log.kinds()[before:])
		assert.Equal(t, uint64(1), d.log.last(t).Settled)
	})
}
