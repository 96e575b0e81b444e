package segment

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// Libraries that keep their batches in files write sentAt when they end the file,
// which may be sent hours later: it is no clock, and must not move the events.
func TestSentAtOfFiles(t *testing.T) {
	for library, want := range map[string]int64{
		"analytics-kotlin": 0, "analytics-swift": 0, "Analytics-CSharp": 0, "analytics-rust": 0, "analytics-php": 0, "analytics-go": 0, "analytics-java": 0,
		"analytics-python": 1_772_600_769_000_000, "analytics-ruby": 1_772_600_769_000_000, "@segment/analytics-react-native": 1_772_600_769_000_000,
	} {
		b := decoded(t, "/v1/b", `{"batch":[{"type":"track","event":"E","userId":"u","timestamp":"2026-03-04T05:06:07Z","context":{"library":{"name":"`+library+`"}}}],
			"sentAt":"2026-03-04T05:06:09.000Z","writeKey":"k"}`)
		assert.Equal(t, want, b.SentAt, library)
	}
}
