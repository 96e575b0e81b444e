package sink

import "time"

const (
	// A block below this many rows is as cheap as it gets to wait for: below it
	// latency counts, above it ClickHouse's cost a row does (measured: 5 times
	// as much at 10,000 rows a block as at 500,000).
	smallBlock = 1_000
	// Parts beyond this say that merging falls behind; ClickHouse itself slows
	// inserts down from 1,000 and refuses them from 3,000 parts a partition.
	manyParts = 300
)

// rate is the arrival rate of a partition, smoothed over the last blocks.
type rate struct {
	perSecond float64
	last      time.Time
}

func (r *rate) add(rows int, now time.Time) {
	if !r.last.IsZero() {
		if d := now.Sub(r.last).Seconds(); d > 0 {
			r.perSecond += (float64(rows)/d - r.perSecond) / 4
		}
	}
	r.last = now
}

// age is how long a block may grow: the idle interval while blocks are small,
// in proportion to their size above that, the maximum where ClickHouse does not
// keep up with merging.
func (p *partition) age() time.Duration {
	idle, most := p.s.cfg.FlushInterval, p.s.cfg.FlushIntervalMax
	p.s.mu.Lock()
	parts := p.s.parts
	p.s.mu.Unlock()
	if parts > manyParts {
		return most
	}
	rows := p.rate.perSecond * idle.Seconds()
	if rows <= smallBlock {
		return idle
	}
	return min(most, time.Duration(float64(idle)*rows/smallBlock))
}
