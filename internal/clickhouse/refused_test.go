package clickhouse

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// Rows that a changed table refuses: what is in them is told from what is wrong with
// the table.
func TestRefusedForWhatIsInTheRows(t *testing.T) {
	for name, tt := range map[string]struct {
		change  string
		content bool
		code    int32 // 0: the client refuses
	}{
		"constraint":         {"ADD CONSTRAINT c CHECK variant != 'poison'", true, 469},
		"throwIf":            {"ADD COLUMN x UInt8 MATERIALIZED throwIf(variant = 'poison')", true, 395},
		"number":             {"ADD COLUMN x UInt8 MATERIALIZED toUInt8(variant)", true, 6},
		"empty number":       {"ADD COLUMN x UInt8 MATERIALIZED toUInt8(attributes['none'])", true, 32},
		"float":              {"ADD COLUMN x Float64 MATERIALIZED toFloat64(variant)", true, 72},
		"date":               {"ADD COLUMN x Date MATERIALIZED toDate(variant)", true, 38},
		"time":               {"ADD COLUMN x DateTime MATERIALIZED toDateTime(variant)", true, 41},
		"too long":           {"ADD COLUMN x FixedString(2) MATERIALIZED toFixedString(variant, 2)", true, 131},
		"enum":               {"ADD COLUMN x Enum8('b' = 1) MATERIALIZED variant", true, 691},
		"null":               {"ADD COLUMN x UInt8 MATERIALIZED toUInt8OrNull(variant)", true, 349},
		"uuid":               {"ADD COLUMN x UUID MATERIALIZED toUUID(variant)", true, 376},
		"bool":               {"ADD COLUMN x Bool MATERIALIZED variant", true, 467},
		"array":              {"ADD COLUMN x Array(UInt8) MATERIALIZED variant", true, 130},
		"base64":             {"ADD COLUMN x String MATERIALIZED base64Decode(variant)", true, 117},
		"ipv4":               {"ADD COLUMN x IPv4 MATERIALIZED toIPv4(variant)", true, 675},
		"ipv6":               {"ADD COLUMN x IPv6 MATERIALIZED toIPv6(variant)", true, 676},
		"division":           {"ADD COLUMN x Int64 MATERIALIZED intDiv(1, length(variant) - 6)", true, 153},
		"column of an enum":  {"MODIFY COLUMN variant Enum8('b' = 1)", true, 0},
		"column of 3 bytes":  {"MODIFY COLUMN variant FixedString(3)", true, 0},
		"column of a number": {"MODIFY COLUMN rule UInt8", false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t)
			require.NoError(t, c.Exec(t.Context(), "ALTER TABLE exposures "+tt.change))
			rows := exposures(0, 2)
			rows.Events[1].Event.Variant = "poison"
			in, err := c.OpenInsert(t.Context(), schema.Exposures, place, "t")
			require.NoError(t, err)
			err = in.Send(rows)
			require.Error(t, err)
			assert.Equal(t, retry.Permanent, retry.ClassOf(err), "%v", err)
			var content interface {
				error
				Content()
			}
			assert.Equal(t, tt.content, errors.As(err, &content), "%v", err)
			assert.Equal(t, tt.code, serverCode(err), "%v", err)
			assert.Zero(t, count(t, c, "SELECT count() FROM exposures"))
			assert.NoError(t, c.Ping(t.Context()), "the pool is whole")
		})
	}
}

// What is wrong with the query is not what is in the rows, whatever its code.
func TestQueryErrorIsNotContent(t *testing.T) {
	c := open(t)
	_, err := c.Query(t.Context(), "SELECT toUInt8('x')")
	require.Error(t, err)
	var content interface {
		error
		Content()
	}
	assert.False(t, errors.As(err, &content), "%v", err)

	require.NoError(t, c.Exec(t.Context(), "ALTER TABLE exposures DROP COLUMN rule"))
	_, err = c.OpenInsert(t.Context(), schema.Exposures, place, "t")
	assert.Equal(t, retry.Permanent, retry.ClassOf(err), "%v", err)
	assert.False(t, errors.As(err, &content), "%v", err)
}
