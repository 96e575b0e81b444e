package posthog

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/schema"
)

// SDKs that write sent_at once for all attempts have no clock to correct times by.
func TestSentAtOfAllAttempts(t *testing.T) {
	for lib, want := range map[string]int64{
		"posthog-node": 0, "posthog-react-native": 0, "posthog-android": 1_772_600_769_000_000, "posthog-ios": 1_772_600_769_000_000,
	} {
		var b schema.Batch
		require.NoError(t, decode(request(`{"api_key":"k","sent_at":"2026-03-04T05:06:09.000Z","batch":[{"event":"e","distinct_id":"u","properties":{"$lib":"`+lib+`"}}]}`), &b))
		assert.Equal(t, want, b.SentAt, lib)
	}
}

// The key may be anywhere, and is looked for before anybody is known: once, whatever
// the body is.
func TestKeysInOrder(t *testing.T) {
	for body, want := range map[string]string{
		`{"batch":[{"token":"g","api_key":"f","properties":{"token":"e"}}],"properties":{"token":"d"},"$token":"c","token":"b","api_key":"a"}`: "a",
		`{"batch":[{"token":"g","api_key":"f","properties":{"token":"e"}}],"properties":{"token":"d"},"$token":"c","token":"b","api_key":""}`:  "b",
		`{"batch":[{"token":"g","api_key":"f","properties":{"token":"e"}}],"properties":{"token":"d"},"$token":"c"}`:                           "c",
		`{"batch":[{"token":"g","api_key":"f","properties":{"token":"e"}}],"properties":{"token":"d"}}`:                                        "d",
		`{"batch":[{"token":"g","api_key":"f","properties":{"token":"e"}},{"properties":{"token":"x"}}]}`:                                      "e",
		`{"batch":[{"token":"g","api_key":"f","properties":[]},7]}`:                                                                            "f",
		`{"batch":[{"token":"g"}],"api_key":{"a":1}}`:                                                                                          "g",
		`[{"event":"e","properties":{"a":[1],"token":"k"}},{"properties":{"token":"x"}}]`:                                                      "k",
		`{"api_key":"first","api_key":"second"}`:                                                                                               "first", `{"token":7}`: "7", `{"batch":"api_key"}`: "", `{"batch":[]}`: "", `[]`: "", `7`: "",
		`{"batch":[{"properties":{"token":`: "", `{"api_key":"a","batch":[{`: "a", `{"api_key":true,"token":"\ud800"}`: "", `{"batch":[[{"token":"x"}]]}`: "",
	} {
		assert.Equal(t, want, bodyKey(request(body)), body)
	}
}
