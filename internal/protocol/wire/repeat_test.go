package wire

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/schema"
)

func TestRepeatText(t *testing.T) {
	d := New([]byte(`[]`), 1, new(schema.Batch))
	for d.Repeat(100_000) {
	}
	assert.False(t, d.RepeatText(strings.Repeat("x", 60_000)))
	assert.True(t, d.RepeatText("an ordinary name"), "whatever others used up")
}

func TestProperties(t *testing.T) {
	var b schema.Batch
	body := `[{"p":{"e-mail":"a@example.com","a":1,"b":{"c":[]},"long":["` + strings.Repeat("x", schema.MaxAttributeValue) + `"]},"q":null,"r":[]}]`
	d := New([]byte(body), 1, &b)
	require.NoError(t, d.Document(nil, func() {
		for d.More() {
			d.Properties(d.Key() + ".")
		}
		code, _, _ := d.Why()
		assert.Empty(t, code)
		d.Fail(schema.CodeUnmappable, "f", "m")
		code, field, message := d.Why()
		assert.Equal(t, []string{"unmappable", "f", "m"}, []string{string(code), field, message})
		assert.Equal(t, []schema.Attribute{{Key: "p.a", Value: "1"}, {Key: "p.b", Value: `{"c":[]}`}}, d.Attrs)
		d.Drop()
	}))
}

// Elements that are noise may be more than events.
func TestMost(t *testing.T) {
	for body, ok := range map[string]bool{`[{},{},{},{},{}]`: true, `[7,7,7,7]`: false, `[{},7,{},7,{}]`: true, `[{},{},{},{},{},{},{},{},{},{},{}]`: false} {
		var b schema.Batch
		d := New([]byte(body), 10, &b)
		d.Most = 2
		err := d.Document(nil, func() {
			for d.More() {
				d.Key()
				d.Ignore()
			}
		})
		if ok {
			assert.NoError(t, err, body)
			continue
		}
		var be *schema.BodyError
		require.ErrorAs(t, err, &be, body)
		assert.Equal(t, schema.BodyTooManyEvents, be.Code)
	}
}
