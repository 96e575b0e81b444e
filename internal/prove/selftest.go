package prove

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"
)

// Broken is a pipeline that is broken on purpose, by variables that only programs
// built with -tags faults know; or, where it has none, one that is whole.
type Broken struct {
	Name         string
	CollectorEnv []string
	SinkEnv      []string
}

// Caught is how a pipeline of the self-test was judged.
type Caught struct {
	Name   string        `json:"name"`
	Broken bool          `json:"broken"`
	Right  bool          `json:"right"` // caught if it is broken, acquitted if not
	After  time.Duration `json:"after_ns"`
	How    string        `json:"how"`
}

// trial is a pipeline and the schedule that shows what is wrong with it.
type trial struct {
	Broken
	duration time.Duration
	settle   time.Duration // see Options; 0: 8 s, which will do where no sink is killed
	doubled  bool          // what is wrong shows as rows stored twice; else as rows lost
	plan     func(t Targets) []Fault
}

// Start starts a stack for a pipeline of the self-test, with topics and a database
// that no earlier one had; stop ends it.
type Start func(ctx context.Context, b Broken) (s *Stack, stop func() error, err error)

// SelfTest runs pipelines that are broken on purpose, and a whole one under the
// same faults. Each broken one must be caught, by what its break does, and the
// whole one must not. An error is returned where a pipeline could not be judged.
func SelfTest(ctx context.Context, start Start, seed uint64, progress func(Status)) ([]Caught, error) {
	var out []Caught
	for _, t := range trials() {
		c, err := t.hold(ctx, start, seed, progress)
		if err != nil {
			return out, fmt.Errorf("self-test, pipeline %q: %w", t.Name, err)
		}
		out = append(out, c)
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
	}
	return out, nil
}

func trials() []trial {
	return []trial{
		{
			Broken:   Broken{Name: "sink without intent", SinkEnv: []string{"SLUICE_TEST_SKIP=intent"}},
			duration: 40 * time.Second, doubled: true, plan: killSinks,
		},
		{
			Broken:   Broken{Name: "acknowledged before fsync", CollectorEnv: []string{"SLUICE_TEST_BREAK=ack-before-fsync"}},
			duration: 16 * time.Second, plan: killSpools,
		},
		{
			Broken:   Broken{Name: "spool that skips a record", CollectorEnv: []string{"SLUICE_TEST_BREAK=skip-record"}},
			duration: 14 * time.Second, plan: killSpools,
		},
		{
			Broken:   Broken{Name: "nothing is broken"},
			duration: 16 * time.Second, settle: time.Minute,
			plan: func(t Targets) []Fault {
				return append(killSpools(t), killSinks(t)[:4*len(t[OnSink])]...)
			},
		},
	}
}

// killSinks kills all sinks at once, again and again, when one of them has just
// inserted a block and has not committed it.
func killSinks(t Targets) (plan []Fault) {
	for i := range 12 {
		for _, sink := range t[OnSink] {
			plan = append(plan, Fault{Kind: "kill-sink", Target: sink, Mode: modeAimed,
				At: 3*time.Second + time.Duration(i)*3*time.Second, For: 100 * time.Millisecond})
		}
	}
	return plan
}

// killSpools takes Kafka away from the collectors, so that they spool, and kills
// them meanwhile.
func killSpools(t Targets) (plan []Fault) {
	for _, wire := range t[OnCollectorKafka] {
		plan = append(plan, Fault{Kind: "cut-" + string(OnCollectorKafka), Target: wire, At: 3 * time.Second, For: 9 * time.Second, Mode: "refused"})
	}
	for i := range 4 {
		collectors := t[OnCollector]
		plan = append(plan, Fault{Kind: "kill-collector", Target: collectors[i%len(collectors)],
			At: 6*time.Second + time.Duration(i)*1500*time.Millisecond, For: 200 * time.Millisecond})
	}
	return plan
}

// hold runs one trial.
func (t trial) hold(ctx context.Context, start Start, seed uint64, progress func(Status)) (c Caught, err error) {
	s, stop, err := start(ctx, t.Broken)
	if err != nil {
		return Caught{}, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	s.Audit = nil // what is on trial is this package
	began := time.Now()
	report, err := Run(ctx, s, Options{
		Seed: seed, Duration: t.duration, Rate: 200, Events: 10, Plan: t.plan(s.Targets()),
		Settle: cmp.Or(t.settle, 8*time.Second), Drain: time.Minute, StopWhenDoubled: t.doubled,
		Progress: func(st Status) {
			if progress != nil {
				st.Stage = t.Name + ", " + st.Stage
				progress(st)
			}
		},
	})
	if err != nil {
		return Caught{}, err
	}
	c = Caught{Name: t.Name, Broken: len(t.CollectorEnv)+len(t.SinkEnv) > 0, After: time.Since(began)}
	v := report.Verdict
	c.How = fmt.Sprintf("%d acknowledged, %d lost, %d doubled", v.Acknowledged, v.Lost, v.Doubled+v.Twice)
	switch {
	case !c.Broken:
		c.Right = report.OK
		if !report.OK {
			c.How = fmt.Sprint(report.Findings())
		}
	case t.doubled:
		c.Right = v.Doubled+v.Twice > 0
	default:
		c.Right = v.Lost > 0
	}
	if c.Broken && c.After > time.Minute {
		c.Right = false
		c.How += "; later than after 60 s"
	}
	return c, nil
}
