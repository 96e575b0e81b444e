package prove

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// Report is what a run came to.
type Report struct {
	OK       bool          `json:"ok"`
	Seed     uint64        `json:"seed"`
	Began    time.Time     `json:"began"`
	Duration time.Duration `json:"duration_ns"` // of the traffic
	Drained  time.Duration `json:"drained_ns"`  // how long was waited then
	Settled  bool          `json:"settled"`     // whether everything stood still in the end
	Rate     float64       `json:"rate_batches_per_second"`
	Events   int           `json:"events_per_batch"`
	About    About         `json:"about"`
	// LeftOut are the kinds of fault that were asked for and had nothing to befall.
	LeftOut []string `json:"left_out,omitempty"`
	Stopped bool     `json:"stopped"` // before its time: found what it was looking for, or was interrupted

	Verdict   Verdict         `json:"verdict"`
	Delay     Delay           `json:"delay"`
	Requests  Requests        `json:"requests"`
	Phases    []PhaseReport   `json:"phases"`
	CatchUps  []CatchUp       `json:"catch_ups,omitempty"`
	Watermark WatermarkReport `json:"watermark"`
	Audit     AuditReport     `json:"audit"`
	Survived  []KindReport    `json:"survived"`
	// Died are services that ended by themselves; WrongAnswers what a collector may
	// not answer; Trouble what kept the proof from being one.
	Died         []string      `json:"died,omitempty"`
	WrongAnswers []string      `json:"wrong_answers,omitempty"`
	Trouble      []string      `json:"trouble,omitempty"`
	Faults       []FaultReport `json:"faults"`
	Timeline     []Sample      `json:"timeline"`
}

// Delay is the time from a batch's receipt to its rows, of all that are stored.
type Delay struct {
	Batches int64         `json:"batches"`
	Spooled int64         `json:"spooled"` // of them, that came by way of a spool
	P50     time.Duration `json:"p50_ns"`
	P99     time.Duration `json:"p99_ns"`
	Longest time.Duration `json:"longest_ns"`
}

// Requests counts what was sent and what came back.
type Requests struct {
	Sent    uint64 `json:"sent"`
	Refused uint64 `json:"refused"` // 503 or 429, with Retry-After
	Failed  uint64 `json:"failed"`  // no answer
	Resent  uint64 `json:"resent"`  // acknowledged batches that were sent again on purpose
	Spooled uint64 `json:"spooled"` // acknowledged from a spool
	Unsent  uint64 `json:"unsent"`  // batches that were due and never begun: all senders were busy
}

// CatchUp is how the backlog of an outage was worked off.
type CatchUp struct {
	Kind string        `json:"kind"`
	Took time.Duration `json:"took_ns"`
	// Rows stored meanwhile, and how many times as many as came in.
	Rows         int64   `json:"rows"`
	TimesArrival float64 `json:"times_arrival"`
}

// KindReport is what was survived of one kind of fault.
type KindReport struct {
	Kind   string        `json:"kind"`
	Times  int           `json:"times"`
	Failed int           `json:"failed,omitempty"` // could not be done
	Total  time.Duration `json:"total_ns"`
	Notes  []string      `json:"notes,omitempty"`
}

// AuditReport is what the pipeline's own audit said.
type AuditReport struct {
	// Ran is false where there is no such verb, or it failed; Error says why.
	Ran      bool            `json:"ran"`
	Found    bool            `json:"found"` // it exited with 3
	Error    string          `json:"error,omitempty"`
	Findings json.RawMessage `json:"findings,omitempty"`
}

// Survived counts the faults that were done.
func (r *Report) survivedFaults() (n int) {
	for _, k := range r.Survived {
		n += k.Times
	}
	return n
}

// summarise fills in what follows from the rest.
func (r *Report) summarise() {
	by := map[string]*KindReport{}
	var names []string
	for _, f := range r.Faults {
		k := by[f.Kind]
		if k == nil {
			k = &KindReport{Kind: f.Kind}
			by[f.Kind] = k
			names = append(names, f.Kind)
		}
		if f.Error != "" {
			k.Failed++
			continue
		}
		k.Times++
		k.Total += f.Ended - f.Began
		if f.Note != "" && !slices.Contains(k.Notes, f.Note) {
			k.Notes = append(k.Notes, f.Note)
		}
	}
	slices.SortFunc(names, strings.Compare)
	r.Survived = nil
	for _, n := range names {
		r.Survived = append(r.Survived, *by[n])
	}
	r.OK = !r.Verdict.Bad() && !r.Watermark.Bad() && !r.Audit.Found && len(r.Died)+len(r.WrongAnswers)+len(r.Trouble) == 0
}

// Findings are, in words, why the run is not ok.
func (r *Report) Findings() []string {
	out := slices.Clone(r.Verdict.Examples)
	out = append(out, r.Watermark.Examples...)
	if r.Audit.Found {
		out = append(out, "sluice audit has findings")
	}
	for _, d := range r.Died {
		out = append(out, "ended by itself: "+d)
	}
	for _, a := range r.WrongAnswers {
		out = append(out, "a wrong answer: "+a)
	}
	return append(out, r.Trouble...)
}
