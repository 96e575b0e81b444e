package prove

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Class is a sort of part that faults befall.
type Class string

// The classes: processes, the wires of a pair, and the disk under a spool.
const (
	OnCollector      Class = "collector"
	OnSink           Class = "sink"
	OnBroker         Class = "broker"
	OnClickHouse     Class = "clickhouse"
	OnClient         Class = "client"
	OnCollectorKafka Class = "collector-kafka"
	OnSinkKafka      Class = "sink-kafka"
	OnSinkClickHouse Class = "sink-clickhouse"
	OnSpool          Class = "spool"
	OnInsert         Class = "insert"
)

// Targets are the parts there are, by class. Where a class has none its faults are
// left out.
type Targets map[Class][]string

// act is what a fault does.
type act uint8

const (
	kill act = iota
	pauseProcess
	cutWire
	slowWire
	tearWire
	spoolFault
	tornInsert
)

// faultKind is a kind of fault.
type faultKind struct {
	name     string
	act      act
	class    Class
	from, to time.Duration // how long it lasts; of a kill, until the restart begins
	recovery time.Duration // how long its target is left alone afterwards
	long     bool          // an outage: rare, and as long as Options say
	modes    []string
}

// modeAimed is of a kill that waits for an insert.
const modeAimed = "aimed"

// kinds are all there are.
func kinds() []faultKind {
	const ms, s = time.Millisecond, time.Second
	out := []faultKind{
		{name: "kill-collector", act: kill, class: OnCollector, from: 50 * ms, to: 4 * s, recovery: 2 * s},
		// Aimed: at the moment between an insert and its commit.
		{name: "kill-sink", act: kill, class: OnSink, from: 50 * ms, to: 4 * s, recovery: 4 * s, modes: []string{"", modeAimed}},
		{name: "kill-broker", act: kill, class: OnBroker, from: 50 * ms, to: 4 * s, recovery: 8 * s},
		{name: "kill-clickhouse", act: kill, class: OnClickHouse, from: 50 * ms, to: 4 * s, recovery: 4 * s},
		{name: "outage-broker", act: kill, class: OnBroker, recovery: 10 * s, long: true},
		{name: "outage-clickhouse", act: kill, class: OnClickHouse, recovery: 10 * s, long: true},
		{name: "torn-insert", act: tornInsert, class: OnInsert, from: 8 * s, to: 8 * s, recovery: 6 * s},
		{name: "disk-full", act: spoolFault, class: OnSpool, from: 2 * s, to: 8 * s, recovery: s, modes: []string{"enospc"}},
		{name: "fsync-error", act: spoolFault, class: OnSpool, from: 2 * s, to: 8 * s, recovery: s, modes: []string{"fsync"}},
	}
	for _, c := range []Class{OnCollector, OnSink, OnBroker, OnClickHouse} {
		out = append(out, faultKind{name: "pause-" + string(c), act: pauseProcess, class: c, from: 500 * ms, to: 15 * s, recovery: s})
	}
	for _, c := range []Class{OnClient, OnCollectorKafka, OnSinkKafka, OnSinkClickHouse} {
		out = append(out,
			// Refused: connections end and none is made. Hanging: they stay, and nothing
			// comes through.
			faultKind{name: "cut-" + string(c), act: cutWire, class: c, from: s, to: 12 * s, recovery: s, modes: []string{"refused", "hanging"}},
			faultKind{name: "latency-" + string(c), act: slowWire, class: c, from: 2 * s, to: 10 * s, recovery: s},
			// Answers end in the middle, by an end of the stream or by a reset.
			faultKind{name: "reset-" + string(c), act: tearWire, class: c, from: 2 * s, to: 8 * s, recovery: s, modes: []string{"ended", "reset"}},
		)
	}
	slices.SortFunc(out, func(a, b faultKind) int { return strings.Compare(a.name, b.name) })
	return out
}

// Kinds are the names of all kinds of fault, in order.
func Kinds() []string {
	var names []string
	for _, k := range kinds() {
		names = append(names, k.name)
	}
	return names
}

// Select reads a list of kinds: names separated by commas, where a name may end in
// * for all that begin so; "all" is every kind.
func Select(list string) ([]string, error) {
	if list == "all" {
		return Kinds(), nil
	}
	var out []string
	for pattern := range strings.SplitSeq(list, ",") {
		pattern = strings.TrimSpace(pattern)
		begin, open := strings.CutSuffix(pattern, "*")
		found := false
		for _, name := range Kinds() {
			if name == pattern || open && strings.HasPrefix(name, begin) {
				found = true
				if !slices.Contains(out, name) {
					out = append(out, name)
				}
			}
		}
		if !found {
			return nil, fmt.Errorf("%q is no fault: want all, or some of %s", pattern, strings.Join(Kinds(), ", "))
		}
	}
	slices.Sort(out)
	return out, nil
}

// Fault is one fault of a schedule.
type Fault struct {
	Kind   string        `json:"kind"`
	Target string        `json:"target"`
	At     time.Duration `json:"at_ns"`  // after the run's begin
	For    time.Duration `json:"for_ns"` // until it is mended, or its mending begins
	Mode   string        `json:"mode,omitempty"`
	Amount int64         `json:"amount,omitempty"` // of latency in ms; of bytes until a reset
}

// Rhythm of a schedule.
const (
	shortestGap, longestGap = 1500 * time.Millisecond, 4200 * time.Millisecond
	mostAtOnce              = 4
	lullEvery               = 20 // faults
	lull                    = 10 * time.Second
	outageEvery             = 4 * time.Minute
)

// Plan makes a schedule: which faults befall which targets, when and for how long.
// It is a function of its arguments and of nothing else, so that a seed repeats
// it. Faults overlap, up to four at once, but not on one target. Each kind comes
// once before any comes again, where it fits. The begin of the run stays quiet, to
// compare with; every fault is over when duration is. outage is how long an outage
// lasts; 0: 30 to 60 s, less in a short run.
func Plan(seed uint64, duration time.Duration, names []string, targets Targets, outage time.Duration) []Fault {
	random := rand.New(rand.NewPCG(seed, 0x51_1ce))
	var all []faultKind
	for _, k := range kinds() {
		if slices.Contains(names, k.name) && len(targets[k.class]) > 0 {
			all = append(all, k)
		}
	}
	p := planner{random: random, targets: targets, end: duration, outage: outage, until: map[string]time.Duration{}, next: map[string]time.Duration{}}
	at := quietBegin(duration)
	var deck []faultKind
	for len(all) > 0 && at < duration {
		if len(deck) == 0 {
			deck = slices.Clone(all)
			random.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		// The first of the deck that can be now; the others keep their places.
		placed := -1
		for i, k := range deck {
			if p.place(k, at) {
				placed = i
				break
			}
		}
		if placed >= 0 {
			deck = slices.Delete(deck, placed, placed+1)
			if len(p.plan)%lullEvery == 0 {
				at = max(at, p.busyUntil()) + lull
			}
		} else if len(deck) < len(all) && p.free(at) {
			deck = nil // what is left of it cannot be any more
		}
		at += shortestGap + time.Duration(random.Int64N(int64(longestGap-shortestGap)))
	}
	return p.plan
}

// quietBegin is how long nothing happens at first.
func quietBegin(duration time.Duration) time.Duration {
	return min(30*time.Second, max(duration/10, 5*time.Second))
}

type planner struct {
	random  *rand.Rand
	targets Targets
	end     time.Duration
	outage  time.Duration
	plan    []Fault
	until   map[string]time.Duration // when a target is free again
	next    map[string]time.Duration // when an outage may come again
}

// place puts a fault into the plan if it can be there.
func (p *planner) place(k faultKind, at time.Duration) bool {
	f := Fault{Kind: k.name, At: at}
	var free []string
	for _, t := range p.targets[k.class] {
		if p.until[t] <= at && p.until[resource(k, t)] <= at {
			free = append(free, t)
		}
	}
	running := 0
	for _, other := range p.plan {
		if other.At+other.For > at {
			running++
		}
	}
	if len(free) == 0 || running >= mostAtOnce || p.next[k.name] > at {
		return false
	}
	f.Target = free[p.random.IntN(len(free))]
	switch {
	case !k.long:
		f.For = k.from + time.Duration(p.random.Int64N(int64(k.to-k.from)+1))
	case p.outage > 0:
		f.For = p.outage
	default:
		longest := min(time.Minute, p.end/6)
		f.For = longest/2 + time.Duration(p.random.Int64N(int64(longest/2)+1))
	}
	if len(k.modes) > 0 {
		f.Mode = k.modes[p.random.IntN(len(k.modes))]
	}
	switch k.act {
	case slowWire:
		f.Amount = 50 + p.random.Int64N(750)
	case tearWire:
		f.Amount = 1 + p.random.Int64N(4000)
	}
	if f.At+f.For > p.end {
		return false
	}
	if k.long {
		p.next[k.name] = f.At + f.For + outageEvery
	}
	p.until[f.Target] = f.At + f.For + k.recovery
	p.until[resource(k, f.Target)] = p.until[f.Target]
	p.plan = append(p.plan, f)
	return true
}

// resource is the process or wire that a fault takes for itself: a torn insert is
// a kill of ClickHouse, and a fault under a spool cuts the way to Kafka, so that
// the spool is written to.
func resource(k faultKind, target string) string {
	switch k.act {
	case tornInsert:
		return string(OnClickHouse)
	case spoolFault:
		return target + wireToKafka
	}
	return target
}

// wireToKafka follows a collector's or a sink's name in its wire's.
const wireToKafka = ">kafka"

func (p *planner) busyUntil() (until time.Duration) {
	for _, f := range p.plan {
		until = max(until, f.At+f.For)
	}
	return until
}

// free reports that nothing is on.
func (p *planner) free(at time.Duration) bool {
	for _, u := range p.until {
		if u > at {
			return false
		}
	}
	return true
}
