package clickhouse

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestPatienceGrowsToItsMost(t *testing.T) {
	p := newPatience(5*time.Second, 30*time.Second)
	for _, want := range []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second, 30 * time.Second, 30 * time.Second} {
		assert.Equal(t, want, p.limit())
		for range 3 { // tables of one block, say
			p.tooShort(want)
		}
	}
	p.tooShort(5 * time.Second) // of long ago
	assert.Equal(t, 30*time.Second, p.limit())
	assert.Equal(t, 2*time.Minute, newPatience(2*time.Minute, time.Minute).limit(), "the usual limit holds in any case")
}
