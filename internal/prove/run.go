package prove

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Options say how a pipeline is put to the proof.
type Options struct {
	Seed     uint64
	Duration time.Duration // of the traffic
	Kinds    []string      // of faults; see Select
	Rate     float64       // batches a second
	Events   int           // a batch, 1 to 1000
	InFlight int           // batches that are sent at once at most; 0: 512
	Outage   time.Duration // how long an outage lasts; 0: see Plan
	Plan     []Fault       // instead of one made from Seed and Kinds
	// Drain is how long is waited at most for what is on its way when the traffic has
	// ended; 0: 5 minutes. Settle is how long nothing may move before what is missing
	// by then counts as lost; 0: 60 s. A group whose member was killed while it joined
	// stands still for its rebalance time-out, 30 s.
	Drain, Settle time.Duration
	// StopWhenDoubled ends the traffic as soon as a row is there twice.
	StopWhenDoubled bool
	// Progress is told how far the run is, a few times a second; nil: nobody.
	Progress func(Status)
}

// Status is how far a run is.
type Status struct {
	Stage        string // "sending", "draining", "checking"
	Elapsed, Of  time.Duration
	Acknowledged uint64 // batches
	Refused      uint64
	Faults       int // done
	Planned      int
	Active       []string
}

// warm is how long connections and caches have to come to be.
const warm = 3 * time.Second

// run is one run of a proof.
type run struct {
	stack *Stack
	opt   Options
	began time.Time

	traffic   *traffic
	book      *book
	phases    *phases
	rows      *rows
	checker   *checker
	senders   *senders
	watermark *watermark
	injector  *injector
	sampler   *sampler

	mu       sync.Mutex
	stage    string
	catchUps []CatchUp
}

// Run puts a stack to the proof and reports what came of it. When ctx ends the
// traffic stops, and what was sent until then is judged. An error is returned
// where nothing could be judged, with what is known.
func Run(ctx context.Context, s *Stack, opt Options) (*Report, error) {
	r, err := newRun(s, opt)
	if err != nil {
		return nil, err
	}
	defer r.senders.close()
	defer r.rows.close()
	if err := r.keepEveryRow(ctx); err != nil {
		return nil, err
	}
	return r.run(ctx)
}

func newRun(s *Stack, opt Options) (*run, error) {
	if opt.InFlight == 0 {
		opt.InFlight = 512
	}
	if opt.Drain == 0 {
		opt.Drain = 5 * time.Minute
	}
	if opt.Settle == 0 {
		opt.Settle = time.Minute
	}
	if opt.Plan == nil {
		opt.Plan = Plan(opt.Seed, opt.Duration, opt.Kinds, s.Targets(), opt.Outage)
	}
	if opt.Events < 1 || opt.Events > maxEvents {
		return nil, fmt.Errorf("%d events a batch: want 1 to %d", opt.Events, maxEvents)
	}
	t, err := newTraffic(opt.Seed, opt.Events)
	if err != nil {
		return nil, err
	}
	r := &run{stack: s, opt: opt, traffic: t, book: newBook(time.Now), phases: newPhases(), rows: newRows(s.Rows), stage: "sending"}
	var urls []string
	for _, c := range s.Collectors {
		urls = append(urls, "http://"+c.Client.Addr())
	}
	r.checker = &checker{traffic: t, book: r.book, rows: r.rows}
	r.senders = newSenders(t, r.book, r.phases, urls, opt.Rate, opt.InFlight)
	r.watermark = newWatermark(r.rows, r.book, t)
	return r, nil
}

// keepEveryRow stops the merges of the tables that are counted: a merge would
// remove a row that was stored twice, and the proof with it.
func (r *run) keepEveryRow(ctx context.Context) error {
	for _, table := range tables {
		err := r.rows.each(ctx, "ALTER TABLE "+table+" MODIFY SETTING "+
			"max_bytes_to_merge_at_max_space_in_pool = 1, max_bytes_to_merge_at_min_space_in_pool = 1, "+
			"parts_to_delay_insert = 1000000, parts_to_throw_insert = 1000000, max_parts_in_total = 1000000", 0, nil)
		if err != nil {
			return fmt.Errorf("stop the merges of %s: %w", table, err)
		}
	}
	return nil
}

func (r *run) run(ctx context.Context) (*Report, error) {
	r.began = time.Now()
	r.injector = newInjector(r.stack, r.rows, r.phases, r.began)
	r.injector.after = r.caughtUp
	r.sampler = &sampler{stack: r.stack, checker: r.checker, senders: r.senders, phases: r.phases, began: r.began,
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2}}}

	// What is asked and watched goes on to the end, whoever loses patience.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var aside sync.WaitGroup
	defer aside.Wait()
	defer stop() // before the wait: defers run from the last
	watched, unwatch := context.WithCancel(background)
	defer unwatch()
	aside.Go(func() { r.watermark.run(watched) })
	aside.Go(func() { r.sampler.run(background) })
	aside.Go(func() { r.injector.supervise(background) })
	aside.Go(func() { r.tell(background) })

	sending, enough := context.WithTimeout(ctx, r.opt.Duration)
	defer enough()
	endWarm := r.phases.begin(phaseWarm, r.began)
	aside.Go(func() { pause(background, warm); endWarm(time.Now()) })
	if r.opt.StopWhenDoubled {
		aside.Go(func() { r.lookForDoubles(sending, enough) })
	}
	// The answers that are out when the traffic ends get a while to come in.
	answers, giveUp := context.WithCancel(background)
	defer giveUp()
	var senders sync.WaitGroup
	senders.Go(func() { r.senders.run(answers, sending) })
	r.injector.run(sending, r.opt.Plan)
	<-sending.Done()
	sent := time.Since(r.began)

	report := r.header()
	report.Duration, report.Stopped = sent, sent < r.opt.Duration-time.Second
	var trouble []string
	if err := r.injector.mend(); err != nil {
		trouble = append(trouble, fmt.Sprintf("not everything that was broken works again: %v", err))
	}
	giveUpAt := time.AfterFunc(15*time.Second, giveUp)
	senders.Wait()
	giveUpAt.Stop()
	r.setStage("draining")
	end := time.Now()
	verdict, settled, err := r.drain(context.WithoutCancel(ctx))
	report.Drained, report.Settled = time.Since(end), settled
	report.Verdict = verdict
	report.Phases = r.phases.report(r.began, end)
	if err != nil {
		trouble = append(trouble, fmt.Sprintf("what is stored could not be read: %v", err))
	}
	r.setStage("checking")
	if err := r.delay(background, &report.Delay); err != nil {
		trouble = append(trouble, fmt.Sprintf("delays could not be read: %v", err))
	}
	if !verdict.Bad() {
		r.watermarkCatchesUp(background)
	}
	unwatch()
	if acked := verdict.Acknowledged; acked == 0 && err == nil {
		trouble = append(trouble, "nothing was acknowledged, so nothing is proven")
	}
	if r.stack.Audit != nil {
		if report.Audit, err = r.stack.Audit(background); err != nil {
			report.Audit.Error = err.Error()
		}
	}
	stop()
	aside.Wait()
	report.Watermark = r.watermark.report
	if w := report.Watermark; !w.Missing && !w.CaughtUp && !verdict.Bad() {
		trouble = append(trouble, fmt.Sprintf("everything is stored, and the watermark does not pass it; it is held by %q", w.HeldBy))
	}
	report.Faults, report.Died = r.injector.report()
	report.WrongAnswers = r.senders.wrongAnswers()
	report.Trouble = append(report.Trouble, trouble...)
	report.Timeline, report.CatchUps = r.sampler.all(), r.catchUps
	report.Requests = Requests{Sent: r.senders.sent.Load(), Refused: r.senders.refused.Load(), Failed: r.senders.failed.Load(),
		Resent: r.senders.resent.Load(), Spooled: r.senders.spooled.Load(), Unsent: r.senders.unsent.Load()}
	report.summarise()
	return report, nil
}

func (r *run) header() *Report {
	report := &Report{Seed: r.opt.Seed, Began: r.began.UTC(), Rate: r.opt.Rate, Events: r.opt.Events, About: r.stack.About}
	targets := r.stack.Targets()
	for _, k := range kinds() {
		if slices.Contains(r.opt.Kinds, k.name) && len(targets[k.class]) == 0 {
			report.LeftOut = append(report.LeftOut, k.name)
		}
	}
	return report
}

// drain waits until every acknowledged event is stored, or nothing moves any more,
// and judges. The verdict counts when it was reached while everything stood still.
func (r *run) drain(ctx context.Context) (v Verdict, settled bool, err error) {
	_, acked, _ := r.book.totals()
	enough := int64(acked) * int64(r.traffic.events)
	deadline := time.Now().Add(r.opt.Drain)
	var last level
	still := time.Now()
	judged := false
	for {
		now, lookErr := r.checker.level(ctx)
		switch {
		case lookErr != nil:
			err = lookErr
			still = time.Now()
		case now != last:
			last, still, judged = now, time.Now(), false
		}
		quiet := time.Since(still)
		// A full count when all seems to be there, and when nothing moves any more.
		if lookErr == nil && (quiet >= r.opt.Settle || now.rows >= enough && quiet >= 3*time.Second && !judged) {
			if v, err = r.checker.judge(ctx); err == nil {
				judged = true
				if v.Lost == 0 || quiet >= r.opt.Settle {
					return v, true, nil
				}
			}
		}
		if time.Now().After(deadline) {
			if !judged {
				v, err = r.checker.judge(ctx)
			}
			return v, false, err
		}
		if !pause(ctx, 500*time.Millisecond) {
			return v, false, ctx.Err()
		}
	}
}

// delay asks how long batches took from their receipt to their rows, by the
// servers' clocks.
func (r *run) delay(ctx context.Context, d *Delay) error {
	n, err := r.rows.numbers(ctx, `SELECT count(), countIf(path = 'spool'), ifNotFinite(toInt64(quantileExact(0.5)(us)), 0), ifNotFinite(toInt64(quantileExact(0.99)(us)), 0), max(us)
FROM (SELECT path, toInt64(toUnixTimestamp64Micro(stored_at) - toUnixTimestamp64Micro(received_at)) AS us FROM batches WHERE outcome = 'stored')`, 5)
	if err != nil {
		return err
	}
	*d = Delay{Batches: n[0], Spooled: n[1], P50: time.Duration(n[2]) * time.Microsecond,
		P99: time.Duration(n[3]) * time.Microsecond, Longest: time.Duration(n[4]) * time.Microsecond}
	return nil
}

// watermarkCatchesUp gives the watermark a while to pass the last
// acknowledgement: all is stored.
func (r *run) watermarkCatchesUp(ctx context.Context) {
	for range 120 {
		if r.watermark.passed.Load() || !pause(ctx, 500*time.Millisecond) {
			return
		}
	}
}

// lookForDoubles calls found as soon as a row is there twice.
func (r *run) lookForDoubles(ctx context.Context, found func()) {
	for pause(ctx, 2*time.Second) {
		var v Verdict
		if err := r.checker.twice(ctx, &v); err == nil && v.Twice > 0 {
			found()
			return
		}
	}
}

// caughtUp is called when an outage is over, and returns when what had waited for
// its end is delivered, or after five minutes.
func (r *run) caughtUp(ctx context.Context, kind string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	began := time.Now()
	end := r.phases.begin(phaseAfter+kind, began)
	defer func() { end(time.Now()) }()
	first := Sample{Rows: -1}
	for pause(ctx, time.Second) {
		s, ok := r.sampler.last()
		if !ok || s.Rows < 0 {
			continue
		}
		if first.Rows < 0 {
			first = s
			continue
		}
		// In step with the arrivals again: less than three seconds' worth waits.
		if float64(s.Rows) < (float64(s.Acknowledged)-3*r.opt.Rate)*float64(r.opt.Events) {
			continue
		}
		c := CatchUp{Kind: kind, Took: time.Since(began), Rows: s.Rows - first.Rows}
		if seconds := float64(s.Second - first.Second); seconds > 0 {
			c.TimesArrival = float64(c.Rows) / seconds / (r.opt.Rate * float64(r.opt.Events))
		}
		r.mu.Lock()
		r.catchUps = append(r.catchUps, c)
		r.mu.Unlock()
		return
	}
}

func (r *run) setStage(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stage = s
}

// tell reports progress until ctx ends.
func (r *run) tell(ctx context.Context) {
	if r.opt.Progress == nil {
		return
	}
	for pause(ctx, 200*time.Millisecond) {
		done, _ := r.injector.report()
		_, acked, _ := r.book.totals()
		r.mu.Lock()
		s := Status{Stage: r.stage, Elapsed: time.Since(r.began), Of: r.opt.Duration, Acknowledged: acked,
			Refused: r.senders.refused.Load(), Faults: len(done), Planned: len(r.opt.Plan), Active: r.phases.active()}
		r.mu.Unlock()
		r.opt.Progress(s)
	}
}
