package schema

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

// testdata/digest.json was not written by this package.
func TestDigestVectors(t *testing.T) {
	raw, err := os.ReadFile("testdata/digest.json")
	require.NoError(t, err)
	var v struct {
		Digest []struct {
			Name           string
			Kind           string `json:"default_kind"`
			Body, Encoding string
			Digest         string
		}
	}
	require.NoError(t, json.Unmarshal(raw, &v))
	require.NotEmpty(t, v.Digest)
	for _, x := range v.Digest {
		kind := KindExposure
		if x.Kind == "event" {
			kind = KindEvent
		}
		var b Batch
		require.NoError(t, DecodeJSON([]byte(x.Body), kind, 10, &b))
		b.ComputeDigest()
		assert.Equal(t, x.Digest, b.Digest.String(), x.Name)
		encoding, err := hex.DecodeString(x.Encoding)
		require.NoError(t, err)
		sum := sha256.Sum256(encoding)
		assert.Equal(t, x.Digest, hex.EncodeToString(sum[:16]), x.Name)
	}
}

// The example in the documentation is the first vector.
func TestDigestExampleIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/identity.md")
	require.NoError(t, err)
	assert.Contains(t, string(doc), `[`+good+`]`)
	assert.Contains(t, string(doc), digestOf(decode(t, `[`+good+`]`)).String())
}

func digestOf(b *Batch) batch.Digest {
	b.ComputeDigest()
	return b.Digest
}

func TestDigestIsIndependent(t *testing.T) {
	want := digestOf(decode(t, `[{"experiment":"e","variant":"v","unit_id":"u","time":"2026-11-24T06:59:57.5Z","attributes":{"a":"1","b":true}},`+
		`{"kind":"event","name":"n","unit_id":"u","value":2}]`))
	for name, body := range map[string]string{
		"order of keys": `[{"attributes":{"b":true,"a":"1"},"unit_id":"u","time":"2026-11-24T06:59:57.5Z","variant":"v","experiment":"e"},` +
			`{"value":2,"unit_id":"u","name":"n","kind":"event"}]`,
		"ways to write": "[ {\"experiment\":\"\\u0065\",\n\"variant\":\"v\",\"kind\":\"exposure\",\"unit_id\":\"u\",\"time\":1795503597500,\"rule\":null,\"rest\":[1]," +
			"\"attributes\":{\"a\":1,\"b\":true,\"a\":\"1\"}},{\"kind\":\"event\",\"name\":\"n\",\"unit_id\":\"u\",\"value\":2.0,\"event_id\":\"\"}]",
		"envelope": `{"sdk":{"name":"x"},"sent_at":5,"events":[{"experiment":"e","variant":"v","unit_id":"u","time":"2026-11-24T07:59:57.5+01:00","attributes":{"a":"1","b":"true"}},` +
			`{"kind":"event","name":"n","unit_id":"u","value":2e0}]}`,
	} {
		b := decode(t, body)
		assert.Equal(t, want, digestOf(b), name)
		b.Project, b.Source, b.ReceivedAt, b.ID = "p", "s", 7, batch.Random()
		assert.Equal(t, want, digestOf(b), name)
	}
	var nd Batch
	require.NoError(t, DecodeNDJSON([]byte(`{"experiment":"e","variant":"v","unit_id":"u","time":1795503597500,"attributes":{"a":"1","b":"true"}}`+"\n"+
		`{"kind":"event","name":"n","unit_id":"u","value":2}`), KindExposure, 10, &nd))
	assert.Equal(t, want, digestOf(&nd), "NDJSON")

	g := generic{protoFile(t)}
	var p Batch
	require.NoError(t, DecodeProto(g.marshal(t, g.write(&nd, false)), KindExposure, 10, &p))
	assert.Equal(t, want, digestOf(&p), "protobuf")
}

// Whatever a client can send makes a difference.
func TestDigestCovers(t *testing.T) {
	seen := map[batch.Digest]string{}
	add := func(name string, b *Batch) {
		d := digestOf(b)
		other, taken := seen[d]
		assert.False(t, taken, "%s and %s", name, other)
		seen[d] = name
	}
	base := func() *Batch {
		return &Batch{Count: 2, Events: []Event{{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u"}},
			Rejected: []Rejected{{Index: 1, Code: CodeMissingField, Bytes: []byte("{}"), Size: 2}}}
	}
	add("base", base())
	for name, change := range map[string]func(b *Batch, e *Event){
		"count":           func(b *Batch, e *Event) { b.Count = 3 },
		"kind":            func(b *Batch, e *Event) { e.Kind = KindEvent },
		"index":           func(b *Batch, e *Event) { e.Index = 1 },
		"experiment":      func(b *Batch, e *Event) { e.Experiment = "x" },
		"border":          func(b *Batch, e *Event) { e.Experiment, e.Variant = "ev", "" },
		"variant":         func(b *Batch, e *Event) { e.Variant = "x" },
		"name":            func(b *Batch, e *Event) { e.Name = "x" },
		"unit_type":       func(b *Batch, e *Event) { e.UnitType = "user" },
		"unit_id":         func(b *Batch, e *Event) { e.UnitID = "x" },
		"rule":            func(b *Batch, e *Event) { e.Rule = "x" },
		"reason":          func(b *Batch, e *Event) { e.Reason = "x" },
		"event_id":        func(b *Batch, e *Event) { e.ClientID = "x" },
		"time 0":          func(b *Batch, e *Event) { e.HasTime = true },
		"time":            func(b *Batch, e *Event) { e.HasTime, e.Time = true, 1 },
		"value 0":         func(b *Batch, e *Event) { e.HasValue = true },
		"value":           func(b *Batch, e *Event) { e.HasValue, e.Value = true, 1 },
		"value -0":        func(b *Batch, e *Event) { e.HasValue, e.Value = true, math.Copysign(0, -1) },
		"attribute":       func(b *Batch, e *Event) { e.Attributes = []Attribute{{"a", "b"}} },
		"attribute key":   func(b *Batch, e *Event) { e.Attributes = []Attribute{{"ab", ""}} },
		"two attributes":  func(b *Batch, e *Event) { e.Attributes = []Attribute{{"a", "b"}, {"c", ""}} },
		"no event":        func(b *Batch, e *Event) { b.Events = nil },
		"nothing bad":     func(b *Batch, e *Event) { b.Rejected = nil },
		"bad index":       func(b *Batch, e *Event) { b.Rejected[0].Index = 0 },
		"bad size":        func(b *Batch, e *Event) { b.Rejected[0].Size = 3 },
		"bad bytes":       func(b *Batch, e *Event) { b.Rejected[0].Bytes = []byte("[]") },
		"long":            func(b *Batch, e *Event) { e.Attributes = []Attribute{{"a", strings.Repeat("x", 60_000)}} },
		"long, other end": func(b *Batch, e *Event) { e.Attributes = []Attribute{{"a", strings.Repeat("x", 59_999) + "y"}} },
		"long bytes":      func(b *Batch, e *Event) { b.Rejected[0].Bytes = []byte(strings.Repeat("x", 60_000)) },
	} {
		b := base()
		change(b, &b.Events[0])
		add(name, b)
	}
	// What does not come from the client makes none.
	b := base()
	b.Rejected[0].Code, b.Rejected[0].Field, b.Rejected[0].Message = CodeTooLong, "f", "m"
	b.Events[0].ID, b.Dropped, b.SDK, b.SentAt = batch.Random(), 5, "x", 9
	assert.Equal(t, "base", seen[digestOf(b)])
}

// The encoding, written out by hand, whatever the lengths are.
func TestDigestEncoding(t *testing.T) {
	for _, n := range []int{0, 1, 100, digestBuffer - 60, digestBuffer - 1, digestBuffer, digestBuffer + 1, 3*digestBuffer + 7, 60_000} {
		b := &Batch{Count: 2, Events: []Event{{Kind: KindEvent, Index: 0, Name: strings.Repeat("n", n), UnitID: "u", Attributes: []Attribute{{strings.Repeat("k", n/2), strings.Repeat("v", n)}}}},
			Rejected: []Rejected{{Index: 1, Bytes: []byte(strings.Repeat("r", n)), Size: n}}}
		var e []byte
		u32 := func(v int) { e = append(e, byte(v>>24), byte(v>>16), byte(v>>8), byte(v)) }
		text := func(s string) { u32(len(s)); e = append(e, s...) }
		text("sluice/digest/1")
		u32(2)
		u32(1)
		u32(0)
		e = append(e, 2, 0)
		for _, s := range []string{"", "", strings.Repeat("n", n), "", "u", "", "", ""} {
			text(s)
		}
		u32(1)
		text(strings.Repeat("k", n/2))
		text(strings.Repeat("v", n))
		u32(1)
		u32(1)
		u32(0)
		u32(n)
		text(strings.Repeat("r", n))
		sum := sha256.Sum256(e)
		assert.Equal(t, batch.Digest(sum[:16]), digestOf(b), n)
	}
}
