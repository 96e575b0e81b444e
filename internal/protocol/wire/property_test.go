package wire

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/schema"
)

func TestProperty(t *testing.T) {
	long := `[` + strings.Repeat(`1,`, schema.MaxAttributeValue/2) + `1]`
	b := new(schema.Batch)
	d := New([]byte(`[{"a":1,"b":"","c":null,"d":{"x":[true]},"e":`+long+`,"at":"2026-01-02T03:04:05"}]`), 10, b)
	require.NoError(t, d.Document(nil, func() {
		e := schema.Event{Kind: schema.KindEvent, Name: "n", UnitID: "u"}
		for d.More() {
			if name := d.Key(); name == "at" {
				e.Time, e.HasTime = d.ISOTime("time")
			} else {
				d.Property(name)
			}
		}
		d.Add(&e)
	}))
	require.Len(t, b.Events, 1)
	assert.Equal(t, []schema.Attribute{{Key: "a", Value: "1"}, {Key: "b"}, {Key: "d", Value: `{"x":[true]}`}}, b.Events[0].Attributes)
	assert.True(t, b.Events[0].HasTime)
}

func TestParseISO(t *testing.T) {
	for s, want := range map[string]int64{
		"1970-01-01T00:00:01Z": 1_000_000, "1970-01-01T00:00:01": 1_000_000, "1970-01-01 00:00:01.5": 1_500_000,
		"1970-01-01T01:00:01+0100": 1_000_000, "1970-01-01T00:00:01.25-0000": 1_250_000, "1500": 1_500_000,
		"1970-01-01T00:00:01+00:00": 1_000_000,
	} {
		us, ok := ParseISO(s)
		assert.True(t, ok, s)
		assert.Equal(t, want, us, s)
	}
	for _, s := range []string{"", "soon", "1970-01-01", "1970-01-01T00:00", "1970-01-01T00:00:01+01", "1970-13-01T00:00:01", "1970-01-01T00:00:01 UTC"} {
		_, ok := ParseISO(s)
		assert.False(t, ok, s)
	}
}

func TestPersonalNames(t *testing.T) {
	for _, s := range []string{"email", "E-Mail", "user_email", "$ip", "ip_address", "$raw_user_agent", "userAgent", "phoneNumber", "Password"} {
		assert.True(t, Contact(s) && Identity(s), s)
	}
	for _, s := range []string{"name", "First Name", "lastName", "address", "avatar", "birthday"} {
		assert.True(t, !Contact(s) && Identity(s), s)
	}
	for _, s := range []string{"", "plan", "zipped", "email_opt_in_of_the_account", "ship", "$host", "名前"} {
		assert.False(t, Contact(s) || Identity(s), s)
	}
	assert.Zero(t, testing.AllocsPerRun(10, func() { Identity("First_Name") }))
}
