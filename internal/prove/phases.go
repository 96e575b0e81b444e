package prove

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
)

// The phases beside the faults.
const (
	phaseAll   = "all"
	phaseWarm  = "warm-up" // connections and caches come to be; counts nowhere else
	phaseQuiet = "quiet"
	phaseAfter = "after " // of an outage: what waited is delivered beside live traffic
)

// phases tells the faults' times apart: how long acknowledgements took, and how
// many were refused, while nothing was wrong and during each kind of fault. A
// batch that was due, waited for or answered while several faults were on counts
// in each. Safe for concurrent use.
type phases struct {
	mu     sync.Mutex
	spans  []span // in the order of their begins
	byName map[string]*phase
}

type span struct {
	name       string
	began, end time.Time // end is zero while it lasts
}

type phase struct {
	hist    histogram
	refused uint64
}

func newPhases() *phases { return &phases{byName: map[string]*phase{}} }

// begin starts a span, and ends it when the function it returns is called.
func (p *phases) begin(name string, now time.Time) (end func(time.Time)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := len(p.spans)
	p.spans = append(p.spans, span{name: name, began: now})
	return func(now time.Time) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.spans[i].end = now
	}
}

// on are the spans that [from, to] touches, each name once.
func (p *phases) on(from, to time.Time) []string {
	var names []string
	for i := len(p.spans) - 1; i >= 0; i-- {
		s := p.spans[i]
		if s.began.Before(to) && (s.end.IsZero() || s.end.After(from)) && !slices.Contains(names, s.name) {
			names = append(names, s.name)
		}
	}
	switch {
	case slices.Contains(names, phaseWarm):
		return []string{phaseWarm}
	case len(names) == 0:
		return []string{phaseQuiet}
	}
	return names
}

func (p *phases) of(name string) *phase {
	if p.byName[name] == nil {
		p.byName[name] = &phase{}
	}
	return p.byName[name]
}

// acked counts a batch that was due at from and acknowledged at to. From due, not
// from when it was sent: what a stalled sender could not send has waited too.
func (p *phases) acked(from, to time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range append(p.on(from, to), phaseAll) {
		p.of(name).hist.add(to.Sub(from))
	}
}

// refused counts a 503.
func (p *phases) refused(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range append(p.on(at, at.Add(1)), phaseAll) {
		p.of(name).refused++
	}
}

// active are the faults that are on, for people.
func (p *phases) active() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for _, s := range p.spans {
		if s.end.IsZero() && s.name != phaseWarm && !strings.HasPrefix(s.name, phaseAfter) {
			names = append(names, s.name)
		}
	}
	return names
}

// PhaseReport is how acknowledgements went in one phase.
type PhaseReport struct {
	Name     string        `json:"name"`
	Batches  uint64        `json:"batches"`
	Refused  uint64        `json:"refused"`
	AckP50   time.Duration `json:"ack_p50_ns"`
	AckP99   time.Duration `json:"ack_p99_ns"`
	AckMax   time.Duration `json:"ack_max_ns"`
	Duration time.Duration `json:"duration_ns"` // of quiet: what no other phase touches
}

// report lists the phases: all, quiet, the others by name.
func (p *phases) report(began, end time.Time) []PhaseReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	lasted := map[string]time.Duration{}
	for _, s := range p.spans {
		p.of(s.name)
		until := s.end
		if until.IsZero() {
			until = end
		}
		lasted[s.name] += until.Sub(s.began)
	}
	lasted[phaseAll] = end.Sub(began)
	lasted[phaseQuiet] = uncovered(p.spans, began, end)
	p.of(phaseQuiet)
	p.of(phaseAll)
	var out []PhaseReport
	for name, ph := range p.byName {
		out = append(out, PhaseReport{Name: name, Batches: ph.hist.n, Refused: ph.refused, Duration: lasted[name],
			AckP50: ph.hist.quantile(0.5), AckP99: ph.hist.quantile(0.99), AckMax: ph.hist.max})
	}
	rank := map[string]int{phaseAll: -2, phaseQuiet: -1, phaseWarm: 1}
	slices.SortFunc(out, func(a, b PhaseReport) int {
		return cmp.Or(cmp.Compare(rank[a.Name], rank[b.Name]), strings.Compare(a.Name, b.Name))
	})
	return out
}

// uncovered is how much of [began, end] no span touches. spans are in the order of
// their begins.
func uncovered(spans []span, began, end time.Time) time.Duration {
	var quiet time.Duration
	at := began
	for _, s := range spans {
		if s.began.After(at) {
			quiet += min(s.began.Sub(at), max(0, end.Sub(at)))
		}
		if s.end.IsZero() {
			return quiet
		}
		if s.end.After(at) {
			at = s.end
		}
	}
	return quiet + max(0, end.Sub(at))
}
