package doctor

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// Does is what an SDK does with a batch after an answer.
type Does string

// What an SDK may do.
const (
	Done  Does = "done"  // it is delivered, as far as the SDK knows
	Again Does = "again" // it sends the batch again
	Drops Does = "drops" // it throws the batch away
	Stops Does = "stops" // it throws the batch away, and sends nothing more until its process restarts
)

// Verdict is what an SDK makes of an answer.
type Verdict struct {
	Does Does   `json:"does"`
	Why  string `json:"why"`
}

// Answer is what came back.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

func (a *Answer) ok() bool { return a.Status/100 == 2 }

func (a *Answer) is(statuses ...int) bool { return slices.Contains(statuses, a.Status) }

// member returns a member of the body, if that is a JSON object.
func (a *Answer) member(name string, into any) bool {
	var all map[string]json.RawMessage
	return json.Unmarshal(a.Body, &all) == nil && all[name] != nil && json.Unmarshal(all[name], into) == nil
}

// refusal is the stable code of an error, and what it says for people; empty where
// there is none. Most protocols answer with the native problem; Amplitude's has the
// code as its reason, OTLP's has both in its message.
func (a *Answer) refusal() (code, detail string) {
	if a.member("code", &code) {
		a.member("detail", &detail)
		return code, detail
	}
	if a.member("reason", &code) {
		a.member("error", &detail)
		return code, detail
	}
	var message string
	a.member("message", &message)
	code, detail, _ = strings.Cut(message, ": ")
	if strings.Trim(code, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return "", message
	}
	return code, detail
}

func done(why string) Verdict { return Verdict{Done, why} }

// byStatus is the verdict of an SDK that looks at nothing but the status: 2xx is
// done, again lists what it sends again for besides 5xx, rest is what it does at
// anything else.
func byStatus(a *Answer, rest Does, again ...int) Verdict {
	switch {
	case a.ok():
		return done("2xx")
	case a.Status >= 500 || a.is(again...):
		return Verdict{Again, fmt.Sprintf("at %d it sends again", a.Status)}
	}
	return Verdict{rest, fmt.Sprintf("%d is final for it", a.Status)}
}

// judgeNative: what looks as if the key or the address were wrong may be put right,
// so the batch is kept.
func judgeNative(a *Answer) Verdict {
	var id string
	switch {
	case a.ok() && a.member("batch_id", &id):
		return done("2xx with a batch_id")
	case a.is(400, 413, 415, 422):
		return Verdict{Drops, fmt.Sprintf("%d is final for a batch of one event", a.Status)}
	case a.is(408, 429) || a.Status >= 500:
		return Verdict{Again, fmt.Sprintf("at %d it sends again, not sooner than Retry-After says", a.Status)}
	}
	return Verdict{Again, "it keeps the batch and comes back slowly, until the key or the address is put right or the batch expires"}
}

func judgeStatsig(a *Answer) Verdict {
	switch {
	case a.ok() && !json.Valid(a.Body):
		return done("2xx; but the body is not JSON, which the python and go SDKs take for a failure")
	case a.ok():
		return done("2xx")
	}
	return Verdict{Again, "statsig-node sends again at anything but 2xx; python and go only at 408, 500, 502, 503, 504, 522, 524 and 599"}
}

func judgeStatsigJS(a *Answer) Verdict { return byStatus(a, Drops, 408) }

func judgeStatsigCore(a *Answer) Verdict {
	var success bool
	switch {
	case a.is(400, 403, 405, 413, 429, 501):
		return Verdict{Drops, fmt.Sprintf("%d is final for it", a.Status)}
	case !a.ok():
		return Verdict{Again, fmt.Sprintf("at %d it sends again", a.Status)}
	case !json.Valid(a.Body):
		return Verdict{Again, "2xx, but the body is not JSON: it takes that for a failure"}
	case a.member("success", &success) && !success:
		return Verdict{Again, `2xx, but the body says "success":false`}
	}
	return done("2xx with JSON")
}

func judgeLaunchDarkly(a *Answer) Verdict {
	switch {
	case a.ok():
		return done("2xx")
	case a.is(400, 408, 429) || a.Status >= 500:
		return Verdict{Again, fmt.Sprintf("at %d it sends again, once and within a second, and then drops the batch", a.Status)}
	case a.is(413):
		return Verdict{Drops, "413 is final for it; the python and browser SDKs stop at it"}
	}
	return Verdict{Stops, fmt.Sprintf("%d stops it: it sends no event any more until its process restarts", a.Status)}
}

func judgeSegment(a *Answer) Verdict { return byStatus(a, Drops, 408, 410, 429, 460) }

func judgePostHog(a *Answer) Verdict {
	if a.ok() && !a.is(200) {
		return Verdict{Again, fmt.Sprintf("%d: the python SDK wants exactly 200, and sends again at any other", a.Status)}
	}
	return byStatus(a, Drops, 408, 429)
}

// judgePostHogV1 looks at what the answer says about each event. One that is not
// listed counts as delivered.
func judgePostHogV1(a *Answer) Verdict {
	if !a.ok() {
		if a.is(404, 408, 429, 500, 502, 503, 504) {
			return Verdict{Again, fmt.Sprintf("at %d it sends again", a.Status)}
		}
		return Verdict{Drops, fmt.Sprintf("%d is final for it", a.Status)}
	}
	var results map[string]struct{ Result string }
	if !a.member("results", &results) {
		return Verdict{Done, "2xx; but there are no results in the body, and it cannot know which events were taken"}
	}
	for _, r := range results { // one event was sent
		switch r.Result {
		case "retry":
			return Verdict{Again, "the result of the event is retry"}
		case "drop":
			return Verdict{Drops, "the result of the event is drop"}
		}
	}
	return done("2xx, and the result of the event is ok")
}

func judgePostHogJS(a *Answer) Verdict {
	switch {
	case a.is(200):
		return done("200")
	case a.Status/100 == 4:
		return Verdict{Drops, "any 4xx is final for it, 429 too"}
	}
	return Verdict{Again, "it sends again at anything but 200 and 4xx, from memory, as long as the page is open"}
}

// judgeAmplitude: the code in the body goes before the status.
func judgeAmplitude(a *Answer) Verdict {
	code, in := a.Status, "status"
	if a.member("code", &code) {
		in = "code in the body"
	}
	say := fmt.Sprintf("%s %d", in, code)
	switch {
	case code/100 == 2:
		return done(say)
	case code == 413:
		return Verdict{Again, say + ": it sends again, fewer events at a time"}
	case code == 429 || code/100 != 4:
		return Verdict{Again, say + ": it sends again, a bounded number of times"}
	}
	return Verdict{Drops, say + ": it throws away the events that the answer names, or a single one"}
}

func judgeOptimizely(a *Answer) Verdict {
	if a.ok() {
		return done("2xx")
	}
	return Verdict{Again, "node and browsers send a batch three times at most and then drop it; the other SDKs never send again; with a dispatcher of your own, that decides"}
}

func judgeOTLP(a *Answer) Verdict {
	var partial struct {
		Rejected json.RawMessage `json:"rejectedLogRecords"`
	}
	switch {
	case a.ok() && (a.member("partialSuccess", &partial) && strings.Trim(string(partial.Rejected), `"0`) != "" || rejectedRecords(a.Body)):
		return Verdict{Drops, "the answer says that the record was rejected"}
	case a.ok():
		return done("2xx")
	case a.Status/100 == 3:
		return Verdict{Drops, fmt.Sprintf("%d: no exporter follows it, and one counts it as success", a.Status)}
	case a.is(429, 502, 503, 504):
		return Verdict{Again, fmt.Sprintf("at %d it sends again, not sooner than Retry-After says", a.Status)}
	}
	return Verdict{Drops, fmt.Sprintf("%d is final for it", a.Status)}
}

func judgeGrowthBook(a *Answer) Verdict {
	if a.ok() {
		return done("it looks at no answer")
	}
	return Verdict{Drops, "it looks at no answer and sends nothing again"}
}

func judgeEppo(a *Answer) Verdict {
	var failed []string
	switch {
	case !a.ok():
		return Verdict{Again, fmt.Sprintf("at %d it sends again", a.Status)}
	case !json.Valid(a.Body):
		return Verdict{Again, "2xx, but the body is not JSON: it takes that for a failure"}
	case a.member("failed_events", &failed) && len(failed) > 0:
		return Verdict{Again, "the answer lists the event in failed_events"}
	}
	return done("2xx with JSON, and no failed_events")
}
