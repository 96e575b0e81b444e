package prove

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// FaultReport is a fault as it was.
type FaultReport struct {
	Fault
	Began time.Duration `json:"began_ns"` // after the run's begin
	Ended time.Duration `json:"ended_ns"` // when its target served again
	// Note says what came of it, where that is not certain beforehand.
	Note string `json:"note,omitempty"`
	// Error is why it could not be done: it counts as none.
	Error string `json:"error,omitempty"`
}

// injector carries out a schedule.
type injector struct {
	stack  *Stack
	rows   *rows
	phases *phases
	began  time.Time
	// after is called when an outage is over; it returns when what had waited is
	// delivered.
	after func(ctx context.Context, kind string)

	parts map[string]*part
	wires map[string]*Wire
	locks map[string]lock // of parts and wires, by name

	mu   sync.Mutex
	done []FaultReport
	died []string
}

// part is a process of the stack. Whoever ends, stops or starts it holds its lock.
type part struct {
	name string
	p    Process
	down bool // it was killed and has to be started
}

// lock is a mutex that can be waited for with a context.
type lock chan struct{}

// try takes the lock, unless ctx ends first.
func (l lock) try(ctx context.Context) bool {
	select {
	case l <- struct{}{}:
		if ctx.Err() == nil {
			return true
		}
		l.unlock() // both were there
	case <-ctx.Done():
	}
	return false
}

func (l lock) unlock() { <-l }

func newInjector(s *Stack, r *rows, ph *phases, began time.Time) *injector {
	in := &injector{stack: s, rows: r, phases: ph, began: began, parts: map[string]*part{}, wires: s.wires(), locks: map[string]lock{},
		after: func(context.Context, string) {}}
	for name, p := range s.processes() {
		in.parts[name] = &part{name: name, p: p}
		in.locks[name] = make(lock, 1)
	}
	for name := range in.wires {
		in.locks[name] = make(lock, 1)
	}
	return in
}

// run carries out the plan and returns when everything that it broke is mended.
// When ctx ends, what is on is mended at once and the rest is left out.
func (in *injector) run(ctx context.Context, plan []Fault) {
	var wg sync.WaitGroup
	for _, f := range plan {
		if !pause(ctx, time.Until(in.began.Add(f.At))) {
			break
		}
		wg.Go(func() { in.one(ctx, f) })
	}
	wg.Wait()
}

// one carries out a fault.
func (in *injector) one(ctx context.Context, f Fault) {
	var kind faultKind
	for _, k := range kinds() {
		if k.name == f.Kind {
			kind = k
		}
	}
	// Not before what else is done to the same part or wire is over.
	l := in.locks[in.needs(kind, f)]
	if !l.try(ctx) {
		return
	}
	r := FaultReport{Fault: f, Began: time.Since(in.began)}
	end := in.phases.begin(f.Kind, time.Now())
	note, err := in.do(ctx, kind, f)
	end(time.Now())
	l.unlock()
	r.Ended, r.Note = time.Since(in.began), note
	if err != nil {
		r.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	in.mu.Lock()
	in.done = append(in.done, r)
	in.mu.Unlock()
	if kind.long && err == nil {
		in.after(ctx, f.Kind)
	}
}

// needs is what a fault is done to: one part or one wire, so there is no order of
// locks to keep.
func (in *injector) needs(k faultKind, f Fault) string {
	switch k.act {
	case tornInsert:
		return string(OnClickHouse)
	case spoolFault:
		return in.collector(f.Target).Kafka.Name
	}
	return f.Target
}

func (in *injector) collector(name string) Collector {
	i := slices.IndexFunc(in.stack.Collectors, func(c Collector) bool { return c.Name == name })
	return in.stack.Collectors[i]
}

func (in *injector) do(ctx context.Context, k faultKind, f Fault) (note string, err error) {
	switch k.act {
	case kill:
		if f.Mode != modeAimed || in.stack.ClickHouse == nil || !canAim {
			return "", in.kill(ctx, in.parts[f.Target], f.For)
		}
		note, err = in.aim(ctx, longestAim)
		return note, errors.Join(err, in.kill(ctx, in.parts[f.Target], f.For))
	case pauseProcess:
		p := in.parts[f.Target].p
		if err := p.Pause(); err != nil {
			return "", err
		}
		pause(ctx, f.For)
		return "", p.Resume()
	case cutWire:
		w := in.wires[f.Target]
		if err := breakWire(w, f); err != nil {
			return "", err
		}
		pause(ctx, f.For)
		return "", w.heal()
	case slowWire, tearWire:
		w := in.wires[f.Target]
		err := w.add(toxicsOf(k, f)...)
		if err == nil {
			pause(ctx, f.For)
		}
		return "", errors.Join(err, w.heal())
	case spoolFault:
		return "", in.spool(ctx, f)
	case tornInsert:
		return in.torn(ctx, f)
	}
	return "", fmt.Errorf("%s: nobody knows how", f.Kind)
}

func breakWire(w *Wire, f Fault) error {
	if f.Mode != "hanging" {
		return w.cut()
	}
	silence := func(stream string) toxic {
		return toxic{Type: "timeout", Name: "silent-" + stream, Stream: stream, Toxicity: 1, Attributes: map[string]int64{"timeout": 0}}
	}
	return w.add(silence("upstream"), silence("downstream"))
}

// toxicsOf are what slows or tears a wire.
func toxicsOf(k faultKind, f Fault) []toxic {
	switch {
	case k.act == slowWire:
		slow := func(stream string) toxic {
			return toxic{Type: "latency", Name: "slow-" + stream, Stream: stream, Toxicity: 1,
				Attributes: map[string]int64{"latency": f.Amount / 2, "jitter": f.Amount / 4}}
		}
		return []toxic{slow("upstream"), slow("downstream")}
	case f.Mode == "reset":
		// A connection is reset a while after the first byte of an answer; not every
		// one, so that some work is done that others have to be told apart from.
		return []toxic{{Type: "reset_peer", Name: "reset", Stream: "downstream", Toxicity: 0.6,
			Attributes: map[string]int64{"timeout": f.Amount / 10}}}
	}
	return []toxic{{Type: "limit_data", Name: "limit", Stream: "downstream", Toxicity: 0.6,
		Attributes: map[string]int64{"bytes": f.Amount}}}
}

// kill ends a process, leaves it down for a while and starts it again.
func (in *injector) kill(ctx context.Context, p *part, down time.Duration) error {
	if err := p.p.Kill(); err != nil {
		return err
	}
	p.down = true
	pause(ctx, down)
	return p.start()
}

// start starts what was killed. Not under the run's context: what was broken is
// mended, whoever loses patience.
func (p *part) start() error {
	var err error
	for range 3 {
		if err = p.p.Restart(context.Background()); err == nil {
			p.down = false
			return nil
		}
	}
	return fmt.Errorf("%s does not start again: %w", p.name, err)
}

// spool gives the disk under a collector's spool a fault, and cuts the collector
// off from Kafka, so that it needs its spool.
func (in *injector) spool(ctx context.Context, f Fault) error {
	c := in.collector(f.Target)
	if err := os.WriteFile(c.SpoolFault, []byte(f.Mode), 0o644); err != nil {
		return err
	}
	err := c.Kafka.cut()
	if err == nil {
		pause(ctx, f.For)
	}
	// First the disk: what is spooled while Kafka is still away must be kept.
	return errors.Join(err, os.WriteFile(c.SpoolFault, nil, 0o644), c.Kafka.heal())
}

// torn kills ClickHouse when it has just written the token of an insert and has
// not named its part yet: what is sent again then is taken for a repeat.
func (in *injector) torn(ctx context.Context, f Fault) (note string, err error) {
	if note, err = in.aim(ctx, f.For); err != nil {
		return "", err
	}
	return note, in.kill(ctx, in.parts[string(OnClickHouse)], 200*time.Millisecond)
}

// longestAim is how long a kill waits for its moment at most.
const longestAim = 3 * time.Second

// aim returns when ClickHouse has just written the token of an insert into
// exposures, or when none came in time.
func (in *injector) aim(ctx context.Context, within time.Duration) (note string, err error) {
	var dir string
	err = in.rows.each(ctx, "SELECT data_paths[1] FROM system.tables WHERE database = currentDatabase() AND name = 'exposures'", 1, func(cells []string) error {
		dir = cells[0] + "/deduplication_logs"
		return nil
	})
	if err != nil {
		return "", err
	}
	hit, err := aim(ctx, dir, within)
	if err != nil {
		return "", err
	}
	if !hit {
		return "nothing was inserted", nil
	}
	return "at an insert's token", nil
}

// supervise starts again what ends by itself, and notes it, until ctx ends.
func (in *injector) supervise(ctx context.Context) {
	for pause(ctx, 250*time.Millisecond) {
		for _, p := range in.parts {
			select {
			case in.locks[p.name] <- struct{}{}:
			default:
				continue // somebody is at it
			}
			if err := p.p.Err(); err != nil && !p.down {
				in.mu.Lock()
				in.died = append(in.died, fmt.Sprintf("%s after %.1f s: %v", p.name, time.Since(in.began).Seconds(), err))
				in.mu.Unlock()
				p.down = true
				_ = p.start() // mend reports one that does not
			}
			in.locks[p.name].unlock()
		}
	}
}

// mend makes sure that everything works: what is down is started, what is stopped
// goes on, wires are whole and disks in order.
func (in *injector) mend() error {
	var errs []error
	for name, w := range in.wires {
		in.locks[name] <- struct{}{}
		errs = append(errs, w.heal())
		in.locks[name].unlock()
	}
	for _, c := range in.stack.Collectors {
		if c.SpoolFault != "" {
			errs = append(errs, os.WriteFile(c.SpoolFault, nil, 0o644))
		}
	}
	for _, p := range in.parts {
		in.locks[p.name] <- struct{}{}
		errs = append(errs, p.p.Resume())
		if p.down {
			errs = append(errs, p.start())
		}
		in.locks[p.name].unlock()
	}
	return errors.Join(errs...)
}

// report is what was done so far, in order, and who ended by itself.
func (in *injector) report() (done []FaultReport, died []string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	done = slices.Clone(in.done)
	slices.SortFunc(done, func(a, b FaultReport) int { return int(a.Began - b.Began) })
	return done, slices.Clone(in.died)
}
