package ledger

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/embedded/teststack"
	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

func TestMain(m *testing.M) {
	// The other process of TestOneCollectorADirectory.
	if dir := os.Getenv("LEDGER_TEST_OPEN"); dir != "" {
		_, err := Open(dir, slog.New(slog.DiscardHandler))
		fmt.Print(err)
		os.Exit(0)
	}
	os.Exit(teststack.Main(m, teststack.NeedKafka, teststack.CheckLeaks))
}

// clock is set by the test.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = t
}

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// open opens a ledger and, where it may not begin without, its account in a log of
// its own, whose clock is behind everything.
func open(t testing.TB, dir string, c *clock) (*Ledger, *bytes.Buffer) {
	var log bytes.Buffer
	l, err := Open(dir, textLog(&log), WithClock(c.now))
	require.NoError(t, err)
	begin(t, l)
	return l, &log
}

func textLog(to io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(to, nil)) }

func begin(t testing.TB, l *Ledger) {
	if l.Ready() != nil {
		require.NoError(t, l.report(t.Context(), &topic{now: func() time.Time { return time.Time{} }}, &disk{}, batch.LedgerOpen))
		l.heard.Store(nil) // the machine's clock alone, from here on
	}
	require.NoError(t, l.Ready())
}

func at(l *Ledger) time.Time { return l.Accept(1).ReceivedAt.UTC() }

func TestAccept(t *testing.T) {
	c := &clock{t: noon}
	l, _ := open(t, "", c)
	first := l.Accept(3)
	assert.Equal(t, uint64(1), first.FirstSeq)
	assert.True(t, noon.Equal(first.ReceivedAt))
	assert.Equal(t, l.Collector(), first.Collector)
	assert.Equal(t, l.Epoch(), first.Epoch)
	assert.False(t, first.Collector.IsZero())
	assert.NotZero(t, first.Epoch)
	assert.LessOrEqual(t, first.Epoch, uint64(1<<63-1))
	assert.Equal(t, uint64(4), l.Accept(1).FirstSeq)
	assert.Equal(t, uint64(5), l.Accept(0).FirstSeq, "a batch has at least one record")
	assert.Equal(t, uint64(6), l.Accept(1).FirstSeq)

	c.set(noon.Add(-time.Hour))
	assert.Equal(t, noon, at(l), "held while the clock is behind")
	c.set(noon.Add(time.Millisecond))
	assert.Equal(t, noon.Add(time.Millisecond), at(l))
	require.NoError(t, l.Close())
}

func TestAcceptConcurrently(t *testing.T) {
	l, err := Open(t.TempDir(), nil)
	require.NoError(t, err)
	defer l.Close()
	begin(t, l)
	const workers, each = 8, 1000
	stamps := make([][]batch.Stamp, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				stamps[w] = append(stamps[w], l.Accept(i%3+1))
			}
		})
	}
	wg.Wait()
	byFirst := map[uint64]batch.Stamp{}
	sizes := map[uint64]int{}
	for w := range workers {
		for i, s := range stamps[w] {
			byFirst[s.FirstSeq], sizes[s.FirstSeq] = s, i%3+1
		}
	}
	require.Len(t, byFirst, workers*each)
	next, last := uint64(1), time.Time{}
	for range byFirst {
		s, ok := byFirst[next]
		require.True(t, ok, "a gap, or an overlap, at %d", next)
		assert.False(t, s.ReceivedAt.Before(last), "a higher number never has an earlier time")
		next, last = next+uint64(sizes[next]), s.ReceivedAt
	}
}

func TestRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b") // made where missing
	c := &clock{t: noon}
	l, _ := open(t, dir, c)
	id, epoch := l.Collector(), l.Epoch()
	require.Equal(t, noon, at(l))
	require.NoError(t, l.Close())

	c.set(noon.Add(-time.Hour)) // set back while the collector was down
	l, log := open(t, dir, c)
	assert.Equal(t, id, l.Collector())
	assert.NotEqual(t, epoch, l.Epoch())
	assert.Equal(t, uint64(1), l.Accept(1).FirstSeq)
	assert.Equal(t, noon, at(l), "an orderly end leaves the last stamp, no reserve")
	assert.Empty(t, log.String())
	require.NoError(t, l.Close())
}

// kill -9: nothing is written at the end.
func TestRestartAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		l, err := Open(dir, nil)
		require.NoError(t, err)
		begin(t, l)
		var last time.Time
		for range 100 {
			last = l.Accept(1).ReceivedAt
			retry.Sleep(t.Context(), 333*time.Millisecond)
		}
		crash(l)
		earlier := &clock{t: time.Now().Add(-time.Hour)}
		again, _ := open(t, dir, earlier)
		defer again.Close()
		got := again.Accept(1).ReceivedAt
		assert.False(t, got.Before(last), "%s is before %s", got, last)
		assert.LessOrEqual(t, got.Sub(last), reserve+renew, "and not far ahead")
	})
}

// A clock that is ahead of the brokers' does not put receive times ahead, also not
// when it is set while Kafka is away: time goes on as it is measured.
func TestClockAheadOfTheBrokers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ahead := 15 * time.Second
		l, err := Open("", nil, WithClock(func() time.Time { return time.Now().Add(ahead) }))
		require.NoError(t, err)
		require.NoError(t, l.report(t.Context(), &topic{now: time.Now}, &disk{}, batch.LedgerOpen))
		retry.Sleep(t.Context(), ahead) // that record still had the wrong time
		for range 3 {
			assert.WithinDuration(t, time.Now(), l.Accept(1).ReceivedAt, 0)
			retry.Sleep(t.Context(), time.Minute)
			ahead += time.Hour
		}
		ahead = -time.Minute
		last := l.Accept(1).ReceivedAt
		assert.WithinDuration(t, time.Now().Add(-time.Minute), last, 0, "one that is behind counts")
		retry.Sleep(t.Context(), time.Second)
		ahead = 0
		assert.WithinDuration(t, time.Now(), l.Accept(1).ReceivedAt, 0)
		require.NoError(t, l.Close())
	})
}

// A Kafka that answers late does not put receive times back by as much, and one
// whose every answer is late is still heard of.
func TestSlowAnswersTellLittleOfTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := Open("", nil)
		require.NoError(t, err)
		slow := time.Duration(0)
		// The broker's time of a record is that of the request's beginning.
		log := &lateTopic{delay: &slow}
		require.NoError(t, l.report(t.Context(), log, &disk{}, batch.LedgerOpen))
		slow = 5 * time.Second
		require.NoError(t, l.report(t.Context(), log, &disk{}, batch.LedgerInterval))
		assert.WithinDuration(t, time.Now(), l.Accept(1).ReceivedAt, 0)
		retry.Sleep(t.Context(), runsAlike)
		require.NoError(t, l.report(t.Context(), log, &disk{}, batch.LedgerInterval))
		retry.Sleep(t.Context(), time.Minute)
		assert.WithinDuration(t, time.Now().Add(-slow), l.Accept(1).ReceivedAt, 0)
		require.NoError(t, l.Close())
	})
}

// lateTopic appends at once and answers after a while.
type lateTopic struct {
	topic
	delay *time.Duration
}

func (k *lateTopic) Write(ctx context.Context, _ string, _ []byte) (time.Time, error) {
	at := time.Now()
	retry.Sleep(ctx, *k.delay)
	return at, nil
}

// The clock leaps ahead, and the process dies before that is reserved on disk; the
// next one has the right time again.
func TestRestartAfterALeap(t *testing.T) {
	dir := t.TempDir()
	c := &clock{t: noon}
	l, _ := open(t, dir, c)
	c.set(noon.Add(time.Hour))
	leapt := at(l)
	assert.Equal(t, noon.Add(reserve), leapt, "as far as is reserved")
	require.NoError(t, l.extend(nil))
	assert.Equal(t, noon.Add(time.Hour), at(l), "and on, once more is")
	crash(l)
	c.set(noon)
	l, _ = open(t, dir, c)
	assert.False(t, at(l).Before(noon.Add(time.Hour)))
	crash(l)
}

// crash leaves the disk as it is and lets go of everything, as the end of a
// process does.
func crash(l *Ledger) {
	close(l.stop)
	<-l.done
	l.store.close()
}

func TestOneCollectorADirectory(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir, &clock{t: noon})
	_, err := Open(dir, slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, ErrInUse)
	assert.ErrorContains(t, err, "SLUICE_SPOOL_DIR "+dir)

	other := exec.Command(os.Args[0])
	other.Env = append(os.Environ(), "LEDGER_TEST_OPEN="+dir)
	out, err := other.Output()
	require.NoError(t, err)
	assert.Contains(t, string(out), ErrInUse.Error())

	require.NoError(t, l.Close())
	out, err = func() ([]byte, error) {
		other := exec.Command(os.Args[0])
		other.Env = append(os.Environ(), "LEDGER_TEST_OPEN="+dir)
		return other.Output()
	}()
	require.NoError(t, err)
	assert.Equal(t, "<nil>", string(out), "the lock goes with its holder, however it ends")
	l, _ = open(t, dir, &clock{t: noon})
	require.NoError(t, l.Close())
}

// A clock that was far ahead in an earlier run must not hold receive times there,
// nor let the same collector's times go back.
func TestClockWasFarAhead(t *testing.T) {
	dir := t.TempDir()
	c := &clock{t: noon.AddDate(24, 0, 0)}
	l, _ := open(t, dir, c)
	id := l.Collector()
	at(l)
	require.NoError(t, l.Close())
	c.set(noon)
	l, log := open(t, dir, c)
	assert.Equal(t, noon, at(l))
	assert.NotEqual(t, id, l.Collector())
	assert.Contains(t, log.String(), "level=WARN")
	id = l.Collector()
	require.NoError(t, l.Close())
	l, _ = open(t, dir, c)
	assert.Equal(t, id, l.Collector())
	require.NoError(t, l.Close())
}

// While it runs, a clock that is set back costs a warning.
func TestClockIsSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &clock{t: noon}
		l, log := open(t, t.TempDir(), c)
		at(l)
		c.set(noon.Add(-noticeable))
		retry.Sleep(t.Context(), 3*renew)
		synctest.Wait()
		assert.Empty(t, log.String())
		c.set(noon.Add(-time.Hour))
		retry.Sleep(t.Context(), 3*renew)
		synctest.Wait()
		assert.Equal(t, noon, at(l))
		assert.Equal(t, 1, strings.Count(log.String(), "level=WARN"))
		require.NoError(t, l.Close())
	})
}

func TestUnusableDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	_, err := Open(file, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "SLUICE_SPOOL_DIR "+file)
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, stateFile), 0o755))
	_, err = Open(dir, slog.New(slog.DiscardHandler))
	require.Error(t, err)
	require.NoError(t, os.Remove(filepath.Join(dir, stateFile)))
	l, _ := open(t, dir, &clock{t: noon}) // the failed start has let go of the lock
	require.NoError(t, l.Close())
}

// A disk that fails while the collector runs costs a warning, once, and no stamp.
func TestDiskFailsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		l, err := Open(t.TempDir(), textLog(&log))
		require.NoError(t, err)
		begin(t, l)
		l.store.line.Close()
		retry.Sleep(t.Context(), 10*renew)
		assert.WithinDuration(t, time.Now(), l.Accept(1).ReceivedAt, 0)
		assert.Error(t, l.Close())
		assert.Equal(t, 1, strings.Count(log.String(), "level=WARN"))
	})
}
