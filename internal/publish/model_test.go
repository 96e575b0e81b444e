package publish

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sony/gobreaker/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// The model: publishers, brokers and a disk do whatever a seed says, for a while,
// with crashes in between. Then all is well again, and everything that was
// acknowledged has to be in Kafka.

// mode is what a broker does with a request.
type mode int

const (
	up mode = iota
	down
	hung   // answers nothing until it is up again, and then what it had before too
	unsure // writes, and says that it did not
	sluggish
	flaky // fails every other
	modes
)

// cluster is a topic on several brokers.
type cluster struct {
	mu       sync.Mutex
	rnd      *rand.Rand
	modes    map[int]mode
	changed  chan struct{} // closed when a mode changes
	leaders  []int
	seen     []int // what clients believe
	log      map[int][]batch.Record
	requests int
}

func newCluster(rnd *rand.Rand, leaders ...int) *cluster {
	return &cluster{rnd: rnd, modes: map[int]mode{}, changed: make(chan struct{}), leaders: leaders, log: map[int][]batch.Record{}}
}

func (k *cluster) change(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
	close(k.changed)
	k.changed = make(chan struct{})
}

func (k *cluster) Partition(_ context.Context, id batch.ID) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.rnd.IntN(100) == 0 || k.seen == nil && k.anyUp() {
		k.seen = k.leaders
	}
	if k.seen == nil {
		return 0, errNotThere
	}
	return int(id[0]) % len(k.seen), nil
}

func (k *cluster) anyUp() bool {
	return len(k.leaders) > 0 && slices.ContainsFunc(k.leaders, func(l int) bool { return l > 0 && k.modes[l] == up })
}

func (k *cluster) Leaders() []int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.seen
}

func (k *cluster) Probe(ctx context.Context) error {
	for {
		k.mu.Lock()
		ok, changed := k.anyUp(), k.changed
		wait := !ok && slices.ContainsFunc(k.leaders, func(l int) bool { return k.modes[l] == hung })
		if ok {
			k.seen = k.leaders
		}
		k.mu.Unlock()
		if ok {
			return nil
		}
		if !wait {
			return errDown
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return hanging(ctx, 0, nil)
		}
	}
}

// refusable are the records that no broker takes.
func refusable(r *batch.Record) bool { return r.Project == "bad" }

func (k *cluster) write(partition int, records []batch.Record) int64 {
	base := int64(len(k.log[partition]))
	k.log[partition] = append(k.log[partition], records...)
	return base
}

func (k *cluster) Produce(ctx context.Context, partition int, records []batch.Record) (int64, time.Time, error) {
	k.mu.Lock()
	k.requests++
	n := k.requests
	took := time.Duration(k.rnd.IntN(4000)) * time.Microsecond
	believed := -1
	if partition < len(k.seen) {
		believed = k.seen[partition]
	}
	k.mu.Unlock()
	for {
		k.mu.Lock()
		m, changed := k.modes[believed], k.changed
		k.mu.Unlock()
		switch m {
		case down:
			return 0, time.Time{}, errDown
		case hung:
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				// Half of them are in its buffers, and are written when it goes on.
				if n%2 == 0 {
					go k.later(believed, partition, records)
				}
				return 0, time.Time{}, hanging(ctx, partition, records)
			}
		case sluggish:
			took = time.Duration(100+n%13*100) * time.Millisecond
		}
		if !retry.Sleep(ctx, took) {
			return 0, time.Time{}, hanging(ctx, partition, records)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		var bad []int
		for i := range records {
			if refusable(&records[i]) {
				bad = append(bad, i)
			}
		}
		switch {
		case partition >= len(k.leaders) || k.leaders[partition] != believed:
			k.seen = k.leaders
			return 0, time.Time{}, movedError{errDown}
		case bad != nil && n%2 == 0:
			return 0, time.Time{}, refusing(bad...)
		case bad != nil:
			return 0, time.Time{}, refusing()
		case m == flaky && n%2 == 0:
			return 0, time.Time{}, errDown
		}
		base := k.write(partition, records)
		if m == unsure {
			return 0, time.Time{}, errDown
		}
		return base, time.Time{}, nil
	}
}

// later writes what a hung broker had when it goes on.
func (k *cluster) later(broker, partition int, records []batch.Record) {
	for {
		k.mu.Lock()
		if k.modes[broker] != hung {
			if partition < len(k.leaders) && k.leaders[partition] == broker && !slices.ContainsFunc(records, func(r batch.Record) bool { return refusable(&r) }) {
				k.write(partition, records)
			}
			k.mu.Unlock()
			return
		}
		changed := k.changed
		k.mu.Unlock()
		<-changed
	}
}

// model is one run.
type model struct {
	t     *testing.T
	rnd   *rand.Rand
	k     *cluster
	s     *fakeSpool
	l     *fakeLedger
	p     *Publisher
	seq   int
	given []batch.Record

	mu    sync.Mutex
	acked map[key]batch.Durable
}

func (m *model) start() {
	m.p = newPublisher(m.t, Options{Producer: m.k, Spool: m.s, Ledger: m.l, OpenFor: 2 * time.Second, ProbeEvery: 500 * time.Millisecond,
		ProduceTimeout: 4 * time.Second, GroupRecords: 8, LaneBytes: 16 << 10, QueueBytes: 48 << 10, DrainBytesPerSecond: 256 << 10, GroupBytes: 4 << 10,
		rescanAfter: time.Hour}) // the safety net hides what it has to catch
}

// records makes a batch.
func (m *model) records() []batch.Record {
	var out []batch.Record
	partition := m.rnd.IntN(8)
	for range 1 + m.rnd.IntN(8)/6 {
		m.seq++
		r := record(partition, m.seq)
		if m.rnd.IntN(3) == 0 {
			partition = m.rnd.IntN(8)
		}
		if m.rnd.IntN(200) == 0 {
			r.Project = "bad"
		}
		out = append(out, r)
	}
	m.given = append(m.given, out...)
	return out
}

// load publishes until it is told to stop.
func (m *model) load(wg *sync.WaitGroup, d time.Duration) {
	end := time.Now().Add(d)
	for time.Now().Before(end) {
		records := m.records()
		timeout := 5 * time.Second
		if m.rnd.IntN(50) == 0 {
			timeout = time.Duration(m.rnd.IntN(300)) * time.Millisecond
		}
		p := m.p
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(m.t.Context(), timeout)
			defer cancel()
			where, err := p.Publish(ctx, records)
			if err != nil {
				return
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			for i := range records {
				m.acked[keyOf(&records[i])] = where
			}
		})
		retry.Sleep(m.t.Context(), time.Duration(m.rnd.IntN(20000))*time.Microsecond)
	}
}

// upset changes one thing.
func (m *model) upset(wg *sync.WaitGroup) {
	switch m.rnd.IntN(12) {
	case 0, 1, 2, 3, 4:
		m.k.change(func() { m.k.modes[1+m.rnd.IntN(3)] = mode(m.rnd.IntN(int(modes))) })
	case 5:
		m.k.change(func() {
			all := mode(m.rnd.IntN(int(modes)))
			m.k.modes = map[int]mode{1: all, 2: all, 3: all}
		})
	case 6, 7:
		m.k.change(func() {
			leaders := slices.Clone(m.k.leaders)
			if len(leaders) > 0 {
				leaders[m.rnd.IntN(len(leaders))] = m.rnd.IntN(5) - 1
			}
			for i := range leaders {
				if leaders[i] == 0 {
					leaders[i] = -1
				}
			}
			if m.rnd.IntN(4) == 0 && len(leaders) < 8 {
				leaders = append(leaders, 1+m.rnd.IntN(3))
			}
			m.k.leaders = leaders
		})
	case 8:
		m.s.set(func(s *fakeSpool) {
			s.err, s.ready, s.late, s.unread, s.unaside = nil, nil, nil, nil, nil
			switch m.rnd.IntN(5) {
			case 0:
				s.err = errDisk
			case 1:
				s.err, s.ready = errDisk, errDisk
			case 2:
				s.late = errDisk
			case 3:
				s.unread = errDisk
			case 4:
				s.unaside = errDisk
			}
		})
	case 9, 10:
		m.s.set(func(s *fakeSpool) {
			s.sync = time.Duration(m.rnd.IntN(400)) * time.Millisecond
			s.err, s.ready, s.late, s.unread, s.unaside = nil, nil, nil, nil, nil
		})
	case 11:
		// The process ends, at once or in order, and another starts.
		ctx, cancel := context.WithTimeout(m.t.Context(), time.Duration(m.rnd.IntN(3))*500*time.Millisecond)
		_ = m.p.Close(ctx)
		cancel()
		wg.Wait()
		back := uint64(none)
		if m.rnd.IntN(2) == 0 && m.s.next > 20 {
			back = m.s.next - 20
		}
		m.s = m.s.reopened(back)
		m.start()
	}
}

func TestModel(t *testing.T) {
	seeds := 25
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(uint64(seed), 1))
				m := &model{t: t, rnd: rnd, k: newCluster(rand.New(rand.NewPCG(uint64(seed), 2)), 1, 2, 3, 1, 2), s: newFakeSpool(), l: newFakeLedger(), acked: map[key]batch.Durable{}}
				m.s.book = m.l
				m.start()
				var wg sync.WaitGroup
				for range 60 {
					m.load(&wg, time.Duration(rnd.IntN(1500))*time.Millisecond)
					m.upset(&wg)
				}
				m.heal()
				m.load(&wg, time.Second)
				wg.Wait()
				m.verify()
			})
		})
	}
}

// heal makes all well again.
func (m *model) heal() {
	m.s.set(func(s *fakeSpool) {
		s.err, s.ready, s.late, s.unread, s.unaside, s.sync = nil, nil, nil, nil, nil, 0
	})
	m.k.change(func() {
		m.k.modes = map[int]mode{}
		leaders := slices.Clone(m.k.leaders)
		for i := range leaders {
			leaders[i] = 1 + i%3
		}
		m.k.leaders = leaders
	})
}

func (m *model) verify() {
	t := m.t
	retry.Sleep(t.Context(), 2*time.Minute)
	// One record each finds out that brokers are back for which nothing was spooled.
	for partition := range 8 {
		m.seq++
		where, err := m.p.Publish(t.Context(), []batch.Record{record(partition, m.seq)})
		require.NoError(t, err)
		assert.Equal(t, batch.InKafka, where)
	}
	require.NoError(t, m.p.Ready())
	synctest.Wait()
	for _, seq := range m.s.pending() {
		// What the disk kept although it said no has no number to go back to: only
		// looking through all of the spool again finds it.
		assert.Equal(t, []string{"void"}, m.l.of(int(seq)), "%d waits", seq)
	}
	assert.Zero(t, m.p.drain.held.len(), "held")
	assert.Zero(t, m.p.queued.Load(), "queued bytes")
	assert.False(t, m.s.early, "removed before Kafka had it")
	for _, leader := range []int{1, 2, 3} {
		if b := m.p.breakers.get(leader); b != nil {
			assert.Equal(t, gobreaker.StateClosed, b.cb.State())
		}
	}
	shut(t, m.p)
	m.l.check(t)

	stored := map[key]int{}
	for _, records := range m.k.log {
		for i := range records {
			stored[keyOf(&records[i])]++
		}
	}
	aside := map[key]bool{}
	for i := range m.given {
		if k := keyOf(&m.given[i]); refusable(&m.given[i]) && m.acked[k] == batch.InSpool {
			aside[k] = true
		}
	}
	assert.GreaterOrEqual(t, len(m.s.asides), len(aside))
	for k, where := range m.acked {
		if stored[k] == 0 && !aside[k] {
			assert.Fail(t, "lost", "%d was acknowledged in %s: %v", k.seq, where, m.l.told[k])
		}
	}
	for i := range m.given {
		k := keyOf(&m.given[i])
		told := m.l.told[k]
		if !assert.NotEmpty(t, told, "%d", k.seq) {
			continue
		}
		if slices.Contains(told, "kafka") {
			assert.NotZero(t, stored[k], "%d is said to be in Kafka", k.seq)
		}
		if m.acked[k] != "" {
			assert.NotEqual(t, "void", told[0], "%d was acknowledged", k.seq)
		}
		for _, at := range m.l.where[k] {
			var partition, offset int
			_, err := fmt.Sscanf(at, "%d/%d", &partition, &offset)
			require.NoError(t, err)
			assert.Equal(t, k, keyOf(&m.k.log[partition][offset]))
		}
	}
	assert.NotEmpty(t, m.acked)
}
