package amplitude

import (
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"sluice/internal/protocol"
)

// Looking for a key must not take memory of its own for whatever somebody sends.
func TestKeyOfALargeForm(t *testing.T) {
	for name, body := range map[string]string{
		"one field":   "api_key=k&event=" + strings.Repeat("%7B", 3<<20),
		"many fields": "api_key=k&event=x" + strings.Repeat("&a=", 3<<20),
	} {
		req := &protocol.Request{Body: []byte(body)}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		assert.Empty(t, bodyKey(req), name)
		runtime.ReadMemStats(&after)
		assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20), name)
	}
}
