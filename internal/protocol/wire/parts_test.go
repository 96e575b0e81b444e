package wire

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/schema"
)

// decodeParts reads [{"parts":[{"id","a"}]}], an event each part.
func decodeParts(body string, b *schema.Batch) error {
	d := New([]byte(body), 10, b)
	return d.Document(nil, func() {
		for d.More() {
			if d.Key() != "parts" || !d.Array() {
				d.Ignore()
				continue
			}
			for d.More() {
				d.Part()
				e := schema.Event{Kind: schema.KindEvent, Name: "n"}
				d.Kind()
				from := d.Offset()
				d.Object()
				for d.More() {
					switch d.Key() {
					case "id":
						e.UnitID = d.ID("unit_id")
					default:
						d.Flat("", AsText)
					}
				}
				if !d.AddPart(&e) {
					d.RawPart(append(append([]byte(`{"parts":[`), d.Since(from)...), ']', '}'))
				}
			}
		}
	})
}

func TestParts(t *testing.T) {
	b := new(schema.Batch)
	many := `{"id":"m","a":{` + strings.Repeat(`"x":1,`, 2*maxMembers) + `"y":1}}`
	require.NoError(t, decodeParts(`[{"parts":[{"id":"u","a":{"k":1}},{"id":[]},{"id":"v"},{"id":""},`+many+`,{"id":"w"}]},{"parts":[]}]`, b))
	assert.Equal(t, uint32(6), b.Count)
	assert.Equal(t, uint32(1), b.Dropped)
	require.Len(t, b.Events, 3)
	assert.Equal(t, []schema.Attribute{{Key: "k", Value: "1"}}, b.Events[0].Attributes)
	assert.Empty(t, b.Events[1].Attributes)
	require.Len(t, b.Rejected, 3)
	assert.Equal(t, []schema.Code{schema.CodeInvalidType, schema.CodeMissingField, schema.CodeTooMany},
		[]schema.Code{b.Rejected[0].Code, b.Rejected[1].Code, b.Rejected[2].Code})
	assert.Equal(t, `{"parts":[{"id":[]}]}`, string(b.Rejected[0].Bytes))
	assert.Equal(t, uint32(1), b.Rejected[0].Index)

	var err *schema.BodyError
	require.ErrorAs(t, decodeParts(`[{"parts":[{"id":"u"},{"id":`, new(schema.Batch)), &err)
}

func TestRepeat(t *testing.T) {
	d := New(make([]byte, 100), 1, new(schema.Batch))
	assert.True(t, d.Repeat(1<<20))
	assert.False(t, d.Repeat(401))
	assert.True(t, d.Repeat(400))
	assert.False(t, d.Repeat(1))
}

func TestFind(t *testing.T) {
	for body, want := range map[string]string{
		`{"a":1,"kind":"x","b":2}`: "x", `{"kind":7}`: "", `{}`: "", `{"kind":"\ud800","kind":"y"}`: "", `{"o":"\ud800","kind":"x"}`: "x",
	} {
		d := New([]byte(body), 1, new(schema.Batch))
		require.True(t, d.Reader.Object())
		assert.Equal(t, want, d.Find("kind"), body)
		assert.Zero(t, d.Fault())
		n := 0
		for d.More() {
			d.Key()
			d.Skip()
			n++
		}
		require.NoError(t, d.End(), body)
		assert.Equal(t, strings.Count(body, ":"), n, body)
	}
}
