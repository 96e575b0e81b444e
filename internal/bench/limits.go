package bench

import "fmt"

// Limit is what a figure should not pass, or should reach.
type Limit struct {
	Most  bool // Bound is the most; else the least
	Bound float64
}

// Met reports whether a value keeps within the limit.
func (l Limit) Met(v float64) bool {
	if l.Most {
		return v <= l.Bound
	}
	return v >= l.Bound
}

func (l Limit) String() string {
	if l.Most {
		return fmt.Sprintf("≤ %v", l.Bound)
	}
	return fmt.Sprintf("≥ %v", l.Bound)
}

// LimitOf is the limit of a figure that has one. They hold on two cores with
// everything on them; docs/benchmarks.md says where they come from.
func LimitOf(name string) (Limit, bool) {
	for suffix, l := range vendorLimits {
		for _, p := range Others() {
			if name == "collector/"+p+suffix {
				return l, true
			}
		}
	}
	l, ok := limits[name]
	return l, ok
}

func most(v float64) Limit  { return Limit{true, v} }
func least(v float64) Limit { return Limit{false, v} }

var (
	vendorLimits = map[string]Limit{"/of-native": most(3)}
	limits       = map[string]Limit{
		"collector/native/of-read":        most(6.5),
		"collector/native/of-ceilings":    most(1.4),
		"collector/gzip/more-than-native": most(0.7),
		"collector/one/of-read":           most(2),
		"collector/spool/of-native":       most(1.3),
		"collector/spool/rate-of-native":  least(0.7),
		"collector/open-100k/p50":         most(5),
		"collector/open-100k/p99":         most(20),
		"collector/stall/longest":         most(300), // SLUICE_ACK_TIMEOUT, 250 ms, and 50 ms
		"sink/catch-up":                   most(1.1),
		"sink/catch-up/with-clickhouse":   most(2.3),
		"sink/catch-up/rate":              least(450_000),
		"sink/catch-up/memory":            most(512),
		"kafka-engine/of-sink":            least(1.5),
		"both/rate":                       least(250_000),
	}
)
