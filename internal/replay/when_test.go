package replay

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

func TestOffsetsByTime(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	minute := func(n int) time.Time { return start.Add(time.Duration(n) * time.Minute) }
	log := &fakeLog{start: 2}
	for i := range 48 { // two a minute, and none at every tenth offset
		if i%10 == 9 {
			log.records = append(log.records, nil)
			continue
		}
		log.records = append(log.records, &batch.Delivery{Offset: int64(i), AppendAt: minute(i / 2)})
	}
	log.fail = 2
	synctest.Test(t, func(t *testing.T) {
		r := NewRepairer(repairOptions(log, newTables()))
		for name, tt := range map[string]struct {
			since, until time.Time
			first, last  int64
		}{
			"all":             {time.Time{}, time.Time{}, 2, 47},
			"since":           {minute(7), time.Time{}, 14, 47},
			"between":         {minute(7), minute(9), 14, 17},
			"between records": {minute(7).Add(time.Second), minute(9).Add(-time.Second), 16, 17},
			"a hole":          {minute(5), minute(10), 9, 18},
			"before all":      {minute(-5), minute(-4), 2, 1},
			"after all":       {minute(100), time.Time{}, 48, 47},
			"until the end":   {minute(23), minute(100), 46, 47},
			"nothing between": {minute(7).Add(time.Second), minute(7).Add(2 * time.Second), 16, 15},
		} {
			first, last, err := r.Offsets(t.Context(), 0, tt.since, tt.until)
			require.NoError(t, err)
			assert.Equal(t, tt.first, first, name)
			assert.Equal(t, tt.last, last, name)
		}
	})
}
