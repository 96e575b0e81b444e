package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func FuzzDecodeJSON(f *testing.F) {
	for _, r := range rejections() {
		if len(r.event) < 1000 {
			f.Add([]byte(`[` + r.event + `,` + good + `]`))
		}
	}
	for body := range bodyErrors() {
		if len(body) < 1000 {
			f.Add([]byte(body))
		}
	}
	f.Add(benchBody()[:1000])
	f.Add([]byte(`{"events":[{"experiment":"e","variant":"v","unit_id":"u","time":1.5,"attributes":{"a":true,"b":null}}],"sent_at":1,"sdk":{"name":"a","version":"b"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		var b Batch
		err := DecodeJSON(body, KindEvent, 20, &b)
		require.Equal(t, before, body)
		checkDecoded(t, &b, err)
		if err == nil && !json.Valid(body) {
			require.NotEmpty(t, b.Rejected, "only inside of an event, at its cost, may there be what is no JSON")
		}
		var e *BodyError
		if errors.As(err, &e) && strings.HasPrefix(e.Detail, "not JSON") {
			require.False(t, json.Valid(body) && utf8.Valid(body), "encoding/json takes it: %s", e.Detail)
		}
	})
}

// checkDecoded holds for whatever a decoder made of whatever it was given.
func checkDecoded(t *testing.T, b *Batch, err error) {
	t.Helper()
	if err != nil {
		var e *BodyError
		require.ErrorAs(t, err, &e)
		require.Contains(t, []string{BodyMalformed, BodyTooDeep, BodyEmpty, BodyTooManyEvents}, e.Code)
		require.True(t, printable(e.Detail), "%q", e.Detail)
		return
	}
	require.Equal(t, int(b.Count), len(b.Events)+len(b.Rejected))
	require.NotZero(t, b.Count)
	indices := map[uint32]bool{}
	for i := range b.Events {
		e := &b.Events[i]
		indices[e.Index] = true
		code, _, _ := e.check()
		require.Empty(t, code)
		for _, s := range []string{e.Experiment, e.Variant, e.Name, e.UnitType, e.UnitID, e.Rule, e.Reason, e.ClientID} {
			require.True(t, ValidText(s))
		}
		for j, a := range e.Attributes {
			require.True(t, ValidText(a.Key) && ValidText(a.Value))
			require.True(t, j == 0 || e.Attributes[j-1].Key < a.Key)
		}
		require.False(t, math.IsNaN(e.Value) || math.IsInf(e.Value, 0))
	}
	for i := range b.Rejected {
		r := &b.Rejected[i]
		indices[r.Index] = true
		require.NotEmpty(t, r.Code)
		require.True(t, printable(r.Message), "%q", r.Message)
		require.True(t, printable(r.Field), "%q", r.Field)
		require.GreaterOrEqual(t, r.Size, len(r.Bytes))
	}
	require.Len(t, indices, int(b.Count))
	require.True(t, ValidText(b.SDK))
	require.GreaterOrEqual(t, b.SentAt, int64(0))
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func FuzzDecodeNDJSON(f *testing.F) {
	for _, r := range rejections() {
		if len(r.event) < 1000 {
			f.Add([]byte(r.event + "\n" + good + "\r\n\n{"))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		var b Batch
		err := DecodeNDJSON(body, KindExposure, 20, &b)
		require.Equal(t, before, body)
		checkDecoded(t, &b, err)
	})
}
