package optimizely

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/schema"
)

// allocated is how many bytes it took to decode a body, and the batch.
func allocated(t *testing.T, body string) (uint64, *schema.Batch) {
	t.Helper()
	var before, after runtime.MemStats
	var b schema.Batch
	req := request(body)
	runtime.ReadMemStats(&before)
	require.NoError(t, decode(req, &b))
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc, &b
}

func repeated(s string, n int) string { return strings.TrimSuffix(strings.Repeat(s+",", n), ",") }

// One event may have many decisions, whose ids are made of its uuid.
func TestManyDecisionsOfALongID(t *testing.T) {
	for name, uuid := range map[string]int{"no id": 256 << 10, "just an id": schema.MaxFieldBytes - 10} {
		body := fmt.Sprintf(`{"visitors":[{"visitor_id":"u","snapshots":[{"decisions":[%s],"events":[{"key":"campaign_activated","timestamp":1,"uuid":%q}]}]}]}`,
			repeated(`{"experiment_id":"1","variation_id":"2"}`, 5000), strings.Repeat("u", uuid))
		n, b := allocated(t, body)
		assert.Less(t, n, uint64(64<<20), name)
		assert.Equal(t, 5000, len(b.Events)+len(b.Rejected), name)
		ids := map[string]bool{}
		for _, e := range b.Events {
			if e.ClientID != "" {
				assert.False(t, ids[e.ClientID], name)
				ids[e.ClientID] = true
			}
		}
	}
}

// A visitor may do many things: what they share is not in each of the records.
func TestManyEventsOfALongVisitor(t *testing.T) {
	id := strings.Repeat("v", schema.MaxFieldBytes)
	_, b := allocated(t, fmt.Sprintf(`{"visitors":[{"visitor_id":%q,"snapshots":[{"events":[%s]}]}]}`, id, repeated(`{"key":"k"}`, 5000)))
	assert.Equal(t, 5000, len(b.Events)+len(b.Rejected))
	assert.Less(t, len(schema.AppendRecord(nil, b, schema.Range{Last: b.Count - 1})), 8<<20)
	require.NotEmpty(t, b.Rejected)
	assert.Equal(t, schema.CodeTooLong, b.Rejected[0].Code)
	assert.Equal(t, "unit_id", b.Rejected[0].Field)

	_, b = allocated(t, fmt.Sprintf(`{"visitors":[{"visitor_id":"u","snapshots":[{"events":[%s]}]}]}`, repeated(`{"key":"k"}`, 5000)))
	assert.Len(t, b.Events, 5000)
}

// What is wrong with an event is found out once, and not for each of its decisions.
func TestManyDecisionsOfABadEvent(t *testing.T) {
	event := `{"key":"campaign_activated","timestamp":"soon","tags":{"a":"` + strings.Repeat(`\u00e4`, 30<<10) + `"}}`
	n, b := allocated(t, fmt.Sprintf(`{"visitors":[{"visitor_id":"u","snapshots":[{"decisions":[%s],"events":[%s]}]}]}`,
		repeated(`{"experiment_id":"1","variation_id":"2"}`, 2000), event))
	require.Len(t, b.Rejected, 2000)
	assert.Equal(t, schema.CodeInvalidTime, b.Rejected[1999].Code)
	assert.Equal(t, "time", b.Rejected[1999].Field)
	assert.Less(t, n, uint64(32<<20), "the text with escapes takes 60 KiB each time it is read")
}

func TestContactsOfVisitors(t *testing.T) {
	b := decoded(t, request(`{"visitors":[{"visitor_id":"u","attributes":[{"key":"E-Mail Address","value":"a@example.com"},{"key":"phoneNumber","value":"1"},
		{"key":"plan","value":"pro"}],"snapshots":[{"events":[{"key":"k","tags":{"email":"a@example.com","client_ip":"192.0.2.1","sku":"x"}}]}]}]}`))
	require.Len(t, b.Events, 1)
	assert.Equal(t, attrs("sku", "x", "visitor.plan", "pro"), b.Events[0].Attributes)
}
