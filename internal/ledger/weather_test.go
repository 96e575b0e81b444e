package ledger

import (
	"slices"
	"time"

	"sluice/pkg/batch"
)

// weather is what changes around the collector. m.mu is held.
func (m *model) weather() {
	now := time.Now()
	m.log.set(func(k *topic) {
		switch {
		case m.calm:
		case m.chance(4):
			k.away = errAway
		case m.chance(15):
			k.away = nil
		}
		if len(k.late) > 0 && m.chance(10) { // what was given up comes through
			i := m.rng.IntN(len(k.late))
			r := k.late[i]
			k.late = slices.Delete(k.late, i, i+1)
			k.append(r)
			m.say("late %s %d of epoch %x", r.Kind, r.Number, r.Epoch)
		}
		if k.away == nil {
			k.append(batch.LedgerRecord{Kind: batch.LedgerInterval, Collector: other, At: now, CompleteUntil: now.Add(time.Hour)})
		}
	})
	switch {
	case m.calm:
	case m.chance(3):
		m.turnClock()
	case m.chance(1) && len(m.next) < 12:
		m.next = append(m.next, 0)
	}
}

// aftermath is what a process leaves: requests on their way that arrive or do not, a
// spool that has forgotten what it removed last, or worse. m.mu is held.
func (m *model) aftermath() {
	for _, it := range m.flying {
		if m.chance(30) {
			m.deliver(it)
		}
		it.spooled = m.chance(20)
	}
	m.flying = nil
	for _, it := range m.removed {
		if m.chance(20) && !m.calm {
			it.spooled = true
		}
	}
	m.removed = nil
	for _, it := range m.items {
		if it.spooled && !m.calm && m.chance(2) {
			it.spooled, it.lost = false, true
			m.backlog.Lost++
			if at := it.rec.ReceivedAt; m.backlog.LostFrom.IsZero() || at.Before(m.backlog.LostFrom) {
				m.backlog.LostFrom = at
			}
		}
	}
	if !m.calm {
		m.turnClock()
	}
}

// turnClock sets the collector's clock, which stays within a minute of the broker's.
func (m *model) turnClock() {
	skew := m.skew.Load() + int64(m.rng.IntN(20_000)-10_000)*int64(time.Millisecond)
	m.skew.Store(max(-int64(time.Minute), min(skew, int64(time.Minute))))
}
