package prove

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestPhases(t *testing.T) {
	zero := time.UnixMicro(0)
	at := func(s float64) time.Time { return zero.Add(time.Duration(s * float64(time.Second))) }
	p := newPhases()
	endWarm := p.begin(phaseWarm, at(0))
	p.acked(at(0.5), at(0.7))
	endWarm(at(1))
	p.acked(at(2), at(2.1)) // quiet
	endKill := p.begin("kill-sink", at(3))
	p.acked(at(2.9), at(3.5)) // was due before, and waited into it
	endCut := p.begin("cut-client", at(4))
	assert.Equal(t, []string{"kill-sink", "cut-client"}, p.active())
	p.acked(at(4.5), at(4.6)) // both
	p.refused(at(4.6))
	endKill(at(5))
	assert.Equal(t, []string{"cut-client"}, p.active())
	p.acked(at(4.9), at(5.5)) // both: it was due while the first was on
	p.acked(at(5.5), at(5.7)) // the second alone
	endCut(at(6))
	p.begin(phaseAfter+"outage", at(8))
	assert.Empty(t, p.active(), "what comes after an outage is none")
	p.acked(at(7), at(7.5)) // quiet

	got := map[string]PhaseReport{}
	var names []string
	for _, r := range p.report(at(0), at(10)) {
		names = append(names, r.Name)
		got[r.Name] = r
	}
	assert.Equal(t, []string{phaseAll, phaseQuiet, phaseAfter + "outage", "cut-client", "kill-sink", phaseWarm}, names)
	for name, want := range map[string]struct {
		batches, refused uint64
		lasted           time.Duration
	}{
		phaseAll:              {7, 1, 10 * time.Second},
		phaseQuiet:            {2, 0, 4 * time.Second}, // 1 to 3, 6 to 8
		phaseWarm:             {1, 0, time.Second},
		"kill-sink":           {3, 1, 2 * time.Second},
		"cut-client":          {3, 1, 2 * time.Second},
		phaseAfter + "outage": {0, 0, 2 * time.Second},
	} {
		assert.Equal(t, want.batches, got[name].Batches, name)
		assert.Equal(t, want.refused, got[name].Refused, name)
		assert.Equal(t, want.lasted, got[name].Duration, name)
	}
	assert.Equal(t, 600*time.Millisecond, got["kill-sink"].AckMax, "from when it was due")
	assert.Equal(t, 500*time.Millisecond, got[phaseQuiet].AckMax)
}

func TestUncovered(t *testing.T) {
	zero := time.UnixMicro(0)
	at := func(s int) time.Time { return zero.Add(time.Duration(s) * time.Second) }
	for name, tc := range map[string]struct {
		spans []span
		want  time.Duration
	}{
		"nothing":      {nil, 10 * time.Second},
		"overlapping":  {[]span{{"a", at(1), at(5)}, {"b", at(2), at(3)}, {"c", at(4), at(6)}}, 5 * time.Second},
		"one for ever": {[]span{{"a", at(1), at(2)}, {"b", at(4), time.Time{}}}, 3 * time.Second},
		"past the end": {[]span{{"a", at(9), at(20)}, {"b", at(30), at(31)}}, 9 * time.Second},
		"all of it":    {[]span{{"a", at(0), at(20)}}, 0},
	} {
		assert.Equal(t, tc.want, uncovered(tc.spans, at(0), at(10)), name)
	}
}
