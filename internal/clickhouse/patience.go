package clickhouse

import (
	"sync/atomic"
	"time"
)

// patience is a time limit that doubles, up to a most, each time it turned out
// too short: on a machine that is too slow for the usual limit the same work
// would otherwise run into it again and again, for ever. Safe for concurrent use.
type patience struct {
	most time.Duration
	now  atomic.Int64
}

func newPatience(usual, most time.Duration) *patience {
	p := &patience{most: max(usual, most)}
	p.now.Store(int64(usual))
	return p
}

func (p *patience) limit() time.Duration { return time.Duration(p.now.Load()) }

// tooShort says that limit was not enough. Several that say so of the same limit
// double it once.
func (p *patience) tooShort(limit time.Duration) {
	p.now.CompareAndSwap(int64(limit), int64(min(2*limit, p.most)))
}
