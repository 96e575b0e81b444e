package otlp

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol"
	"sluice/pkg/schema"
)

// A resource is in the body once: what its records have of it must not make large
// records of a small body.
func TestLongServiceName(t *testing.T) {
	const records = 5000
	service := strings.Repeat("s", 60<<10)
	one := `{"eventName":"e","timeUnixNano":"1","attributes":[{"key":"user.id","value":{"stringValue":"u"}}]}`
	pb := field(recordName, "e") + field(recordAttributes, attr("user.id", str("u")))
	for mediaType, body := range map[string]string{
		typeJSON: fmt.Sprintf(`{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":%q}}]},"scopeLogs":[{"logRecords":[%s]}]}]}`,
			service, strings.TrimSuffix(strings.Repeat(one+",", records), ",")),
		typeProtobuf: field(requestResourceLogs, field(resourceLogsResource, field(resourceAttributes, attr("service.name", str(service))))+
			field(resourceLogsScopeLogs, strings.Repeat(field(scopeLogsRecords, pb), records))),
	} {
		b := decoded(t, mediaType, body)
		require.Len(t, b.Events, records)
		size := 0
		for _, e := range b.Events {
			for _, a := range e.Attributes {
				size += len(a.Value)
			}
		}
		assert.Less(t, size, 4*len(body)+2<<20, mediaType)
		assert.Positive(t, size, mediaType)
	}
}

// The lines of a log do not count: nothing of them is kept, and evaluations among
// them must not be refused for their sake.
func TestManyLines(t *testing.T) {
	const most = 3
	flag := `{"eventName":"feature_flag.evaluation","attributes":[{"key":"feature_flag.key","value":{"stringValue":"f"}},` +
		`{"key":"feature_flag.result.variant","value":{"stringValue":"on"}},{"key":"feature_flag.context.id","value":{"stringValue":"u"}}]}`
	flagPB := field(recordName, evaluation) + field(recordAttributes, attr("feature_flag.key", str("f"))) +
		field(recordAttributes, attr("feature_flag.result.variant", str("on"))) + field(recordAttributes, attr("feature_flag.context.id", str("u")))
	for flags, refused := range map[int]bool{2: false, most: false, most + 1: true} {
		records := strings.Repeat(`{"body":{"stringValue":"a line"}},`, 2*most) + strings.Repeat(flag+",", flags)
		pb := []string{}
		for range 2 * most {
			pb = append(pb, field(recordBody, str("a line")))
		}
		for range flags {
			pb = append(pb, flagPB)
		}
		for mediaType, body := range map[string]string{
			typeJSON:     `{"resourceLogs":[{"scopeLogs":[{"logRecords":[` + strings.TrimSuffix(records, ",") + `]}]}]}`,
			typeProtobuf: logs(pb...),
		} {
			req := request(mediaType, body)
			req.MaxEvents = most
			var b schema.Batch
			err := decode(req, &b)
			if refused {
				var be *schema.BodyError
				require.ErrorAs(t, err, &be, mediaType)
				assert.Equal(t, protocol.CodeTooManyEvents, be.Code)
				continue
			}
			require.NoError(t, err, mediaType)
			assert.Len(t, b.Events, flags)
			assert.Equal(t, uint32(2*most), b.Dropped)
		}
	}
}

// What is no record counts: it is kept among the dead letters.
func TestManyNumbers(t *testing.T) {
	req := request(typeJSON, `[`+strings.TrimSuffix(strings.Repeat("7,", 100_000), ",")+`]`)
	var b schema.Batch
	var be *schema.BodyError
	require.ErrorAs(t, decode(req, &b), &be)
	assert.Equal(t, protocol.CodeTooManyEvents, be.Code)
	assert.LessOrEqual(t, len(b.Rejected), req.MaxEvents+1)
}
