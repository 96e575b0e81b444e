package launchdarkly

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/schema"
)

func repeated(s string, n int) string { return strings.TrimSuffix(strings.Repeat(s+",", n), ",") }

// Counters share what is in a summary once. A small body of them must not become
// large records.
func TestCountersShareWhatIsLong(t *testing.T) {
	var contexts []string
	for i := range 200 {
		contexts = append(contexts, fmt.Sprintf(`"k%03d%s":"x"`, i, strings.Repeat("k", 900)))
	}
	const most = 5000
	counters := repeated(`{"count":1}`, most)
	for name, body := range map[string]string{
		"contexts": `[{"kind":"summary","contextKeys":{` + strings.Join(contexts, ",") + `},"features":{"f":{"counters":[` + counters + `]}}}]`,
		"times":    `[{"kind":"summary","startDate":1` + strings.Repeat("0", 12) + "." + strings.Repeat("0", 60<<10) + `,"features":{"f":{"counters":[` + counters + `]}}}]`,
		"flag":     `[{"kind":"summary","features":{"` + strings.Repeat("f", schema.MaxFieldBytes) + `":{"counters":[` + counters + `]}}}]`,
		"no flag":  `[{"kind":"summary","features":{"` + strings.Repeat("f", 256<<10) + `":{"counters":[` + counters + `]}}}]`,
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			var b schema.Batch
			req := request(body)
			runtime.ReadMemStats(&before)
			require.NoError(t, decode(req, &b))
			runtime.ReadMemStats(&after)
			assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20))
			assert.Equal(t, most, len(b.Events)+len(b.Rejected))
			size := 0
			for i := range b.Events {
				e := &b.Events[i]
				size += len(e.UnitID)
				for _, a := range e.Attributes {
					size += len(a.Key) + len(a.Value)
				}
			}
			assert.Less(t, size, 8*len(body)+4<<20)
		})
	}
}

func TestContacts(t *testing.T) {
	b := decoded(t, request(`[{"kind":"feature","key":"f","variation":1,"creationDate":1,"context":{"kind":"user","key":"u","Email":"a@example.com","phone_number":"1","plan":"pro"}},
		{"kind":"feature","key":"f","variation":1,"creationDate":1,"user":{"key":"u","custom":{"e-mail":"a@example.com","ipAddress":"192.0.2.1","plan":"pro"}}},
		{"kind":"custom","key":"c","creationDate":1,"context":{"kind":"user","key":"u"},"data":{"email":"a@example.com","sku":"x"}}]`))
	require.Len(t, b.Events, 3)
	assert.Equal(t, attrs("context.user.plan", "pro"), b.Events[0].Attributes)
	assert.Equal(t, attrs("context.user.plan", "pro"), b.Events[1].Attributes)
	assert.Equal(t, attrs("sku", "x"), b.Events[2].Attributes)
}
