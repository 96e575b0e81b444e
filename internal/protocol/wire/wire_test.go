package wire

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/schema"
)

// decode reads {"events":[{"id","x","y","at","n","props"}]} or a bare array.
func decode(body string, most int, b *schema.Batch) error {
	d := New([]byte(body), most, b)
	event := func() {
		e := schema.Event{Kind: schema.KindExposure}
		for d.More() {
			switch d.Key() {
			case "id":
				d.Once(1, "unit_id")
				e.UnitID = d.ID("unit_id")
			case "x":
				e.Experiment = d.Text("experiment")
			case "y":
				e.Variant = d.JSON("variant")
			case "at":
				e.Time, e.HasTime = d.Time("time")
			case "n":
				v, rest, ok := d.Number("value")
				if ok {
					e.Value, e.HasValue = v, true
				} else if rest != "" {
					d.Put("value", rest)
				}
			case "props":
				d.Flat("p.", AsText)
			case "own":
				d.Flat("", LeaveOut)
			case "noise":
				d.Ignore()
				d.Drop()
				for d.More() {
					d.Key()
					d.Ignore()
				}
				return
			default:
				d.Ignore()
			}
		}
		e.Reason = d.Take("reason")
		d.Add(&e)
	}
	return d.Document(func() error {
		for d.More() {
			switch d.Key() {
			case "events":
				if err := d.Each(event); err != nil {
					return err
				}
			case "sdk":
				b.SDK = SDK(d.Loose(), "1")
			default:
				d.Ignore()
			}
		}
		return nil
	}, event)
}

func TestDecoder(t *testing.T) {
	const good = `{"id":"u","x":"e","y":"v","at":1000}`
	for name, tt := range map[string]struct {
		event string
		code  schema.Code
		field string
		attrs []schema.Attribute
	}{
		"good":                       {event: good},
		"numbers as text":            {event: `{"id":7,"x":1,"y":true,"at":"1970-01-01T00:00:01Z"}`},
		"nested as text":             {event: `{"id":7,"x":1,"y":{"a":[1]},"at":"1000"}`},
		"no time":                    {event: `{"id":7,"x":1,"y":2,"at":null}`},
		"attributes":                 {event: `{"id":"u","x":"e","y":"v","props":{"b":1,"a":"s","c":[1,2],"d":null,"a":"t"}}`, attrs: []schema.Attribute{{Key: "p.a", Value: "t"}, {Key: "p.b", Value: "1"}, {Key: "p.c", Value: "[1,2]"}}},
		"only flat":                  {event: `{"id":"u","x":"e","y":"v","own":{"b":1,"c":[1,2],"d":"","reason":"because"}}`, attrs: []schema.Attribute{{Key: "b", Value: "1"}}},
		"PHP's empty map":            {event: `{"id":"u","x":"e","y":"v","props":[]}`},
		"null map":                   {event: `{"id":"u","x":"e","y":"v","props":null}`},
		"text for a number":          {event: `{"id":"u","x":"e","y":"v","n":"007"}`, attrs: []schema.Attribute{{Key: "value", Value: "007"}}},
		"bad inside what is ignored": {event: `{"id":"u","x":"e","y":"v","other":"\ud800"}`},
		"a list for a map":           {event: `{"id":"u","x":"e","y":"v","props":[1]}`, code: schema.CodeInvalidType, field: "attributes"},
		"id true":                    {event: `{"id":true,"x":"e","y":"v"}`, code: schema.CodeInvalidType, field: "unit_id"},
		"id twice":                   {event: `{"id":"u","id":"u","x":"e","y":"v"}`, code: schema.CodeDuplicateField, field: "unit_id"},
		"experiment a list":          {event: `{"id":"u","x":["e"],"y":"v"}`, code: schema.CodeInvalidType, field: "experiment"},
		"no experiment":              {event: `{"id":"u","x":null,"y":"v"}`, code: schema.CodeMissingField, field: "experiment"},
		"bad time":                   {event: `{"id":"u","x":"e","y":"v","at":"soon"}`, code: schema.CodeInvalidTime, field: "time"},
		"time true":                  {event: `{"id":"u","x":"e","y":"v","at":true}`, code: schema.CodeInvalidType, field: "time"},
		"time a list":                {event: `{"id":"u","x":"e","y":"v","at":[]}`, code: schema.CodeInvalidType, field: "time"},
		"lone surrogate":             {event: `{"id":"\ud800","x":"e","y":"v"}`, code: schema.CodeInvalidString, field: "unit_id"},
		"huge number":                {event: `{"id":1e999,"x":"e","y":"v"}`, code: schema.CodeInvalidNumber, field: "unit_id"},
		"no object":                  {event: `7`, code: schema.CodeInvalidType},
		"many attributes":            {event: `{"id":"u","x":"e","y":"v","props":{` + strings.Repeat(`"a":1,`, 2*maxMembers) + `"b":1}}`, code: schema.CodeTooMany, field: "attributes"},
	} {
		t.Run(name, func(t *testing.T) {
			b := new(schema.Batch)
			require.NoError(t, decode(`{"sdk":"s","events":[`+good+`,`+tt.event+`,`+good+`]}`, 3, b))
			assert.Equal(t, uint32(3), b.Count)
			assert.Equal(t, "s/1", b.SDK)
			if tt.code != "" {
				require.Len(t, b.Rejected, 1)
				assert.Equal(t, tt.code, b.Rejected[0].Code, b.Rejected[0].Message)
				assert.Equal(t, tt.field, b.Rejected[0].Field)
				assert.Equal(t, uint32(1), b.Rejected[0].Index)
				assert.Equal(t, tt.event, string(b.Rejected[0].Bytes))
				assert.Len(t, b.Events, 2, "neighbours are kept")
				return
			}
			require.Empty(t, b.Rejected)
			require.Len(t, b.Events, 3)
			assert.Equal(t, tt.attrs, b.Events[1].Attributes)
			assert.Equal(t, uint32(1), b.Events[1].Index)
			for _, e := range b.Events {
				if e.HasTime {
					assert.Equal(t, int64(1_000_000), e.Time)
				}
			}
		})
	}
}

func TestBodies(t *testing.T) {
	for body, code := range map[string]string{
		"":                                schema.BodyEmpty,
		" \n":                             schema.BodyEmpty,
		"null":                            schema.BodyEmpty,
		"{}":                              schema.BodyEmpty,
		"[]":                              schema.BodyEmpty,
		`{"events":null}`:                 schema.BodyEmpty,
		`7`:                               schema.BodyMalformed,
		`"x"`:                             schema.BodyMalformed,
		`{"events":7}`:                    schema.BodyMalformed,
		`{"events":[{"id":"u"}`:           schema.BodyMalformed,
		`{"events":[{"id":"u"}]} x`:       schema.BodyMalformed,
		`[{"id":}]`:                       schema.BodyMalformed,
		`[{},{},{},{}]`:                   schema.BodyTooManyEvents,
		strings.Repeat("[", 100):          schema.BodyTooDeep,
		`{"a":` + strings.Repeat("[", 99): schema.BodyTooDeep,
	} {
		var err *schema.BodyError
		require.ErrorAs(t, decode(body, 3, new(schema.Batch)), &err, body)
		assert.Equal(t, code, err.Code, body)
	}
	b := new(schema.Batch)
	require.NoError(t, decode(`[{"noise":1,"id":"u"},{"noise":{}}]`, 3, b))
	assert.Equal(t, uint32(2), b.Dropped)
	assert.Zero(t, b.Count)
}

func TestMember(t *testing.T) {
	for _, tt := range []struct {
		body string
		path []string
		want string
	}{
		{`{"api_key":"k","x":`, []string{"api_key"}, "k"},
		{`{"x":["api_key",{}],"api_key":12}`, []string{"api_key"}, "12"},
		{`[{"properties":{"token":"k"}},7]`, []string{"properties", "token"}, "k"},
		{`{"batch":[{"writeKey":"k"}]}`, []string{"batch", "writeKey"}, "k"},
		{`{"batch":[]}`, []string{"batch", "writeKey"}, ""},
		{`{"api_key":true}`, []string{"api_key"}, ""},
		{`{"api_key":"\ud800"}`, []string{"api_key"}, ""},
		{`{"api_key":{}}`, []string{"api_key"}, ""},
		{`{"api_key":`, []string{"api_key"}, ""},
		{`{"a":{"b":1},"b":2}`, []string{"b"}, "2"},
		{`7`, []string{"api_key"}, ""},
		{``, []string{"api_key"}, ""},
		{`[[{"a":1}]]`, []string{"a"}, ""},
	} {
		assert.Equal(t, tt.want, Member([]byte(tt.body), tt.path...), tt.body)
	}
	assert.True(t, Has([]byte(`{"visitors":[]}`), "visitors"))
	assert.False(t, Has([]byte(`{"events":[]}`), "visitors"))
	assert.False(t, Has([]byte(`{"visitors":`), "visitors"))
}

func TestNumeric(t *testing.T) {
	for s, want := range map[string]bool{
		"1": true, "-1.5": true, "1e3": true, "0": true, "007": false, "": false, "1.": false, "x": false, "1e9999": false,
		"1234567890123456": false, "Infinity": false, "+1": false, "0x10": false,
	} {
		_, ok := Numeric(s, false)
		assert.Equal(t, want, ok, s)
	}
	v, ok := Numeric("1234567890123456789", true)
	assert.True(t, ok)
	assert.InDelta(t, 1234567890123456789, v, 1e3)
}

func TestLatin1(t *testing.T) {
	assert.Equal(t, "plain", string(Latin1([]byte("plain"))))
	assert.Equal(t, "Grüße", string(Latin1([]byte("Gr\xfc\xdfe"))))
}

func FuzzDecoder(f *testing.F) {
	f.Add(`{"events":[{"id":"u","x":"e","y":"v","props":{"a":1}}]}`)
	f.Add(`[{"noise":1},7,{"id":true}]`)
	f.Fuzz(func(t *testing.T, body string) {
		b, again := new(schema.Batch), new(schema.Batch)
		err := decode(body, 100, b)
		if err != nil {
			var e *schema.BodyError
			require.ErrorAs(t, err, &e)
			return
		}
		assert.Equal(t, int(b.Count), len(b.Events)+len(b.Rejected))
		for _, e := range b.Events {
			assert.True(t, schema.ValidText(e.UnitID) && schema.ValidText(e.Variant) && schema.ValidText(e.Experiment))
			for _, a := range e.Attributes {
				assert.True(t, schema.ValidText(a.Key) && schema.ValidText(a.Value))
			}
		}
		require.NoError(t, decode(body, 100, again))
		b.ComputeDigest()
		again.ComputeDigest()
		assert.Equal(t, b.Digest, again.Digest)
		Member([]byte(body), "id")
	})
}
