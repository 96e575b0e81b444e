package prove

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestBook(t *testing.T) {
	now := time.UnixMicro(1000)
	b := newBook(func() time.Time { return now })
	for n := range uint64(5) {
		assert.Equal(t, n, b.begin())
	}
	b.ack(3)
	now = time.UnixMicro(2000)
	b.ack(1)
	b.ack(3) // again: the first one counts
	now = time.UnixMicro(1500)
	b.ack(0) // the clock went back: the queue stays in order
	begun, at := b.state(3)
	assert.True(t, begun)
	assert.EqualValues(t, 1000, at)
	_, at = b.state(0)
	assert.EqualValues(t, 2000, at)
	begun, at = b.state(4)
	assert.True(t, begun)
	assert.Zero(t, at)
	begun, _ = b.state(5)
	assert.False(t, begun)

	got, more := b.before(1000, 10)
	assert.Empty(t, got)
	assert.False(t, more)
	got, more = b.before(2001, 2)
	assert.Equal(t, []uint64{3, 1}, got)
	assert.True(t, more)
	got, more = b.before(2001, 2)
	assert.Equal(t, []uint64{0}, got)
	assert.False(t, more)
	begunAll, acked, last := b.totals()
	assert.EqualValues(t, 5, begunAll)
	assert.EqualValues(t, 3, acked)
	assert.Equal(t, time.UnixMicro(2000), last)
	assert.Equal(t, []int64{2000, 2000, 0, 1000, 0}, b.copied())
}
