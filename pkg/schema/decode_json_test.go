package schema

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const good = `{"experiment":"e","variant":"v","unit_id":"u"}`

// seen is b without the memory it works with, to be compared.
func seen(b *Batch) Batch {
	out := *b
	out.slab, out.digested = nil, false
	return out
}

func decode(t *testing.T, body string) *Batch {
	t.Helper()
	b := new(Batch)
	require.NoError(t, DecodeJSON([]byte(body), KindExposure, 1000, b))
	return b
}

func TestDecodeJSON(t *testing.T) {
	for name, tt := range map[string]struct {
		body string
		want []Event
	}{
		"least": {`[` + good + `]`, []Event{{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u"}}},
		"everything": {`[{"kind":"exposure","experiment":"exp","variant":"b","unit_id":"u-1","unit_type":"device",
			"time":"2026-11-24T06:59:57.123Z","rule":"r","reason":"why","event_id":"id-1",
			"attributes":{"s":"text","n":1.50,"t":true,"f":false,"nothing":null,"":"empty key"}}]`,
			[]Event{{Kind: KindExposure, Experiment: "exp", Variant: "b", UnitID: "u-1", UnitType: "device", HasTime: true, Time: 1795503597123000,
				Rule: "r", Reason: "why", ClientID: "id-1",
				Attributes: []Attribute{{"", "empty key"}, {"f", "false"}, {"n", "1.50"}, {"s", "text"}, {"t", "true"}}}}},
		"both kinds": {`[` + good + `,{"kind":"event","name":"paid","unit_id":"u","value":-1.5e2}]`,
			[]Event{{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u"},
				{Kind: KindEvent, Index: 1, Name: "paid", UnitID: "u", HasValue: true, Value: -150}}},
		"null is absent": {`[{"experiment":"e","variant":"v","unit_id":"u","kind":null,"unit_type":null,"time":null,"rule":null,"reason":null,
			"event_id":null,"attributes":null,"name":null,"value":null}]`,
			[]Event{{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u"}}},
		"empty attributes": {`[{"experiment":"e","variant":"v","unit_id":"u","attributes":{}}]`,
			[]Event{{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u"}}},
		"unknown fields": {`[{"a":[1,{"b":[]}],"experiment":"e","experiments":1e999,"variant":"v","unit_id":"u","unitId":"x","z":null,"z":1}]`,
			[]Event{{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u"}}},
		"last attribute wins": {`[{"experiment":"e","variant":"v","unit_id":"u","attributes":{"b":1,"a":2,"b":3,"c":4,"c":null,"d":null,"d":5}}]`,
			[]Event{{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u", Attributes: []Attribute{{"a", "2"}, {"b", "3"}, {"d", "5"}}}}},
		"escaped names": {`[{"\u0065xperiment":"\u0065","variant":"\ud83d\ude00","unit_id":"\"\n","attributes":{"\u0061":"\/"}}]`,
			[]Event{{Kind: KindExposure, Experiment: "e", Variant: "😀", UnitID: "\"\n", Attributes: []Attribute{{"a", "/"}}}}},
		"epoch milliseconds": {`[{"experiment":"e","variant":"v","unit_id":"u","time":1795503597123.5}]`,
			[]Event{{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u", HasTime: true, Time: 1795503597123500}}},
		"time 0": {`[{"experiment":"e","variant":"v","unit_id":"u","time":0}]`,
			[]Event{{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u", HasTime: true}}},
		"absurd times": {`[{"experiment":"e","variant":"v","unit_id":"u","time":"0001-01-01T00:00:00Z"},
			{"experiment":"e","variant":"v","unit_id":"u","time":"9999-12-31T23:59:59Z"},
			{"experiment":"e","variant":"v","unit_id":"u","time":9223372036854775807},
			{"experiment":"e","variant":"v","unit_id":"u","time":-1e300}]`,
			[]Event{{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u", HasTime: true, Time: -62135596800000000},
				{Kind: KindExposure, Index: 1, Experiment: "e", Variant: "v", UnitID: "u", HasTime: true, Time: 253402300799000000},
				{Kind: KindExposure, Index: 2, Experiment: "e", Variant: "v", UnitID: "u", HasTime: true, Time: math.MaxInt64},
				{Kind: KindExposure, Index: 3, Experiment: "e", Variant: "v", UnitID: "u", HasTime: true, Time: math.MinInt64}}},
		"control characters": {`[{"experiment":"e","variant":"v","unit_id":"\r\n\u001b[31m"}]`,
			[]Event{{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "\r\n\x1b[31m"}}},
		"depth of 32": {`[{"experiment":"e","variant":"v","unit_id":"u","x":` + strings.Repeat("[", 30) + strings.Repeat("]", 30) + `}]`,
			[]Event{{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u"}}},
		"white space": {" [ " + good + "\r\n]\t", []Event{{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u"}}},
	} {
		t.Run(name, func(t *testing.T) {
			b := decode(t, tt.body)
			assert.Equal(t, tt.want, b.Events)
			assert.Empty(t, b.Rejected)
			assert.Equal(t, uint32(len(tt.want)), b.Count)
		})
	}
}

func TestDecodeJSONDefaultKind(t *testing.T) {
	var b Batch
	require.NoError(t, DecodeJSON([]byte(`[{"name":"n","unit_id":"u"},`+good+`,{"kind":"exposure","experiment":"e","variant":"v","unit_id":"u"}]`), KindEvent, 10, &b))
	require.Len(t, b.Events, 2)
	assert.Equal(t, KindEvent, b.Events[0].Kind)
	assert.Equal(t, KindExposure, b.Events[1].Kind)
	require.Len(t, b.Rejected, 1)
	assert.Equal(t, "name", b.Rejected[0].Field)
}

func TestDecodeJSONEnvelope(t *testing.T) {
	for name, tt := range map[string]struct {
		body   string
		sdk    string
		sentAt int64
	}{
		"events":            {`{"events":[` + good + `]}`, "", 0},
		"all":               {`{"sdk":{"name":"js","version":"1.2"},"sent_at":1795503597123,"events":[` + good + `]}`, "js/1.2", 1795503597123000},
		"any order":         {`{"events":[` + good + `],"sent_at":"2026-11-24T06:59:57.123Z","sdk":{"version":"1","name":"a/b"}}`, "a/b/1", 1795503597123000},
		"no version":        {`{"sdk":{"name":"js"},"events":[` + good + `]}`, "js", 0},
		"unknown fields":    {`{"x":{"events":[]},"events":[` + good + `],"y":["\ud800",1e999]}`, "", 0},
		"useless clock":     {`{"events":[` + good + `],"sent_at":"yesterday"}`, "", 0},
		"clock of no type":  {`{"events":[` + good + `],"sent_at":{"a":1}}`, "", 0},
		"clock before 1970": {`{"events":[` + good + `],"sent_at":-5}`, "", 0},
		"clock out of range": {`{"events":[` + good + `],"sent_at":1e999}`,
			"", 0},
		"useless sdk":             {`{"events":[` + good + `],"sdk":"js 1"}`, "", 0},
		"sdk of the wrong types":  {`{"events":[` + good + `],"sdk":{"name":1,"version":[],"more":null}}`, "", 0},
		"sdk with half a pair":    {`{"events":[` + good + `],"sdk":{"name":"\ud800","version":"1"}}`, "", 0},
		"nulls":                   {`{"events":[` + good + `],"sdk":null,"sent_at":null}`, "", 0},
		"bad last event, good id": {`{"events":[` + good + `,{"unit_id":"` + "\xff" + `"}],"sdk":{"name":"n"}}`, "n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := decode(t, tt.body)
			assert.Len(t, b.Events, 1)
			assert.Equal(t, tt.sdk, b.SDK)
			assert.Equal(t, tt.sentAt, b.SentAt)
		})
	}
}

// rejections are events, in JSON, that cost themselves and nothing else.
func rejections() map[string]struct {
	event string
	code  Code
	field string
} {
	type r = struct {
		event string
		code  Code
		field string
	}
	with := func(member string) string { return strings.Replace(good, "{", "{"+member+",", 1) }
	many := func(n int) string {
		var s strings.Builder
		for i := range n {
			fmt.Fprintf(&s, `%q:1,`, fmt.Sprint("k", i))
		}
		return `"attributes":{` + strings.TrimSuffix(s.String(), ",") + `}`
	}
	out := map[string]r{
		"null":                {`null`, CodeInvalidType, ""},
		"number":              {`1`, CodeInvalidType, ""},
		"array":               {`[1,[2]]`, CodeInvalidType, ""},
		"string":              {`"s"`, CodeInvalidType, ""},
		"NaN":                 {`NaN`, CodeInvalidType, ""},
		"empty object":        {`{}`, CodeMissingField, "experiment"},
		"no variant":          {`{"experiment":"e","unit_id":"u"}`, CodeMissingField, "variant"},
		"no unit":             {`{"experiment":"e","variant":"v"}`, CodeMissingField, "unit_id"},
		"null unit":           {`{"experiment":"e","variant":"v","unit_id":null}`, CodeMissingField, "unit_id"},
		"empty unit":          {`{"experiment":"e","variant":"v","unit_id":""}`, CodeMissingField, "unit_id"},
		"event without name":  {`{"kind":"event","experiment":"e","variant":"v","unit_id":"u"}`, CodeMissingField, "name"},
		"unit is a number":    {`{"experiment":"e","variant":"v","unit_id":7}`, CodeInvalidType, "unit_id"},
		"unit is an array":    {`{"experiment":"e","variant":"v","unit_id":["u"]}`, CodeInvalidType, "unit_id"},
		"other kind":          {with(`"kind":"Exposure"`), CodeInvalidKind, "kind"},
		"empty kind":          {with(`"kind":""`), CodeInvalidKind, "kind"},
		"kind is a number":    {with(`"kind":1`), CodeInvalidType, "kind"},
		"time is text":        {with(`"time":"yesterday"`), CodeInvalidTime, "time"},
		"time in a string":    {with(`"time":"1795503597123"`), CodeInvalidTime, "time"},
		"time is empty":       {with(`"time":""`), CodeInvalidTime, "time"},
		"time is true":        {with(`"time":true`), CodeInvalidType, "time"},
		"time 1e999":          {with(`"time":1e999`), CodeInvalidNumber, "time"},
		"time beyond 2^63":    {with(`"time":9223372036854775808`), CodeInvalidNumber, "time"},
		"value is text":       {with(`"value":"1"`), CodeInvalidType, "value"},
		"value 1e999":         {with(`"value":1e999`), CodeInvalidNumber, "value"},
		"value NaN":           {with(`"value":NaN`), CodeInvalidNumber, "value"},
		"value -Infinity":     {with(`"value":-Infinity`), CodeInvalidNumber, "value"},
		"value beyond 2^63":   {with(`"value":-9223372036854775809`), CodeInvalidNumber, "value"},
		"NaN, unknown":        {with(`"x":[NaN]`), CodeInvalidNumber, ""},
		"attributes, array":   {with(`"attributes":[]`), CodeInvalidType, "attributes"},
		"attributes, text":    {with(`"attributes":"a=b"`), CodeInvalidType, "attributes"},
		"nested object":       {with(`"attributes":{"a":1,"b":{"c":"\u0000"}}`), CodeInvalidType, "attributes"},
		"nested array":        {with(`"attributes":{"b":[]}`), CodeInvalidType, "attributes"},
		"attribute 1e999":     {with(`"attributes":{"b":1e999}`), CodeInvalidNumber, "attributes"},
		"attribute over 2^63": {with(`"attributes":{"b":18446744073709551616}`), CodeInvalidNumber, "attributes"},
		"NUL":                 {with(`"rule":"a\u0000b"`), CodeInvalidString, "rule"},
		"NUL in a key":        {with(`"attributes":{"\u0000":1}`), CodeInvalidString, "attributes"},
		"half a pair":         {with(`"reason":"\ud83d"`), CodeInvalidString, "reason"},
		"half a pair, value":  {with(`"attributes":{"a":"\udc00"}`), CodeInvalidString, "attributes"},
		"half a pair, name":   {with(`"\ud800":1`), CodeInvalidString, ""},
		"half a pair, kind":   {with(`"kind":"\ud800"`), CodeInvalidString, "kind"},
		"half a pair, time":   {with(`"time":"\ud800"`), CodeInvalidString, "time"},
		"no UTF-8":            {with("\"unit_type\":\"\xff\""), CodeInvalidString, "unit_type"},
		"no UTF-8, unknown":   {with("\"x\":{\"y\":\"\xc3\"}"), CodeInvalidString, ""},
		"twice":               {with(`"unit_id":"u"`), CodeDuplicateField, "unit_id"},
		"twice, null":         {with(`"variant":null`), CodeDuplicateField, "variant"},
		"attributes twice":    {with(`"attributes":{},"attributes":{}`), CodeDuplicateField, "attributes"},
		"other case":          {`{"Experiment":"e","variant":"v","unit_id":"u"}`, CodeMisspelledField, "experiment"},
		"other case, more":    {with(`"UNIT_TYPE":null`), CodeMisspelledField, "unit_type"},
		"key too long":        {with(`"attributes":{"` + strings.Repeat("k", MaxAttributeKey+1) + `":1}`), CodeTooLong, "attributes"},
		"value too long":      {with(`"attributes":{"k":"` + strings.Repeat("v", MaxAttributeValue+1) + `"}`), CodeTooLong, "attributes"},
		"number too long":     {with(`"attributes":{"k":0.` + strings.Repeat("1", MaxAttributeValue) + `}`), CodeTooLong, "attributes"},
		"number of 1 MB":      {with(`"value":` + strings.Repeat("9", 1<<20)), CodeInvalidNumber, "value"},
		"too many attributes": {with(many(MaxAttributes + 1)), CodeTooMany, "attributes"},
		"too many repeated":   {with(many(MaxAttributes*4) + `,"rule":"\ud800"`), CodeTooMany, "attributes"},
	}
	for f := fieldNone + 1; f < fieldCount; f++ {
		switch f {
		case fieldKind, fieldTime, fieldAttributes, fieldValue:
			continue
		}
		e := map[string]string{"experiment": "e", "variant": "v", "unit_id": "u"}
		e[fieldNames[f]] = strings.Repeat("x", MaxFieldBytes+1)
		raw, _ := json.Marshal(e)
		out["too long: "+fieldNames[f]] = r{string(raw), CodeTooLong, fieldNames[f]}
	}
	return out
}

func TestDecodeJSONRejects(t *testing.T) {
	for name, tt := range rejections() {
		t.Run(name, func(t *testing.T) {
			b := decode(t, `{"events":[`+good+`, `+tt.event+` ,`+good+`]}`)
			require.Len(t, b.Events, 2)
			assert.Equal(t, Event{Kind: KindExposure, Experiment: "e", Variant: "v", UnitID: "u"}, b.Events[0])
			assert.Equal(t, Event{Kind: KindExposure, Index: 2, Experiment: "e", Variant: "v", UnitID: "u"}, b.Events[1])
			assert.Equal(t, uint32(3), b.Count)
			require.Len(t, b.Rejected, 1)
			assertRejected(t, b.Rejected[0], tt.code, tt.field, tt.event)

			// The same in a line of its own.
			n := new(Batch)
			require.NoError(t, DecodeNDJSON([]byte(good+"\n"+tt.event+"\r\n\n"+good), KindExposure, 3, n))
			assert.Equal(t, seen(b), seen(n))
		})
	}
}

func assertRejected(t *testing.T, r Rejected, code Code, field, event string) {
	t.Helper()
	assert.Equal(t, code, r.Code, r.Message)
	assert.Equal(t, field, r.Field, r.Message)
	assert.Equal(t, uint32(1), r.Index)
	assert.Equal(t, len(event), r.Size)
	assert.Equal(t, event[:min(len(event), MaxRejectedBytes)], string(r.Bytes))
	assert.Equal(t, len(r.Bytes), cap(r.Bytes))
	assert.NotEmpty(t, r.Message)
	assert.LessOrEqual(t, len(r.Message), maxReasonMessage)
	assert.LessOrEqual(t, len(r.Code), maxReasonCode)
}

func TestDecodeJSONLimitsAreInclusive(t *testing.T) {
	var attrs strings.Builder
	for i := range MaxAttributes {
		fmt.Fprintf(&attrs, `,%q:"v"`, fmt.Sprintf("k%03d", MaxAttributes-i))
	}
	field := strings.Repeat("x", MaxFieldBytes)
	b := decode(t, `[{"experiment":"`+field+`","variant":"`+field+`","unit_id":"`+field+`","attributes":{"`+
		strings.Repeat("k", MaxAttributeKey)+`":"`+strings.Repeat("v", MaxAttributeValue)+`"}},
		{"experiment":"e","variant":"v","unit_id":"u","attributes":{`+attrs.String()[1:]+`}}]`)
	assert.Empty(t, b.Rejected)
	require.Len(t, b.Events, 2)
	require.Len(t, b.Events[1].Attributes, MaxAttributes)
	assert.Equal(t, "k001", b.Events[1].Attributes[0].Key)
	assert.Equal(t, "k256", b.Events[1].Attributes[255].Key)
}

// bodyErrors are bodies that are refused as a whole.
func bodyErrors() map[string]string {
	return map[string]string{
		``: BodyEmpty, ` `: BodyEmpty, "\r\n\t": BodyEmpty, `null`: BodyEmpty, ` null `: BodyEmpty, `{}`: BodyEmpty, `[]`: BodyEmpty,
		`{"events":[]}`: BodyEmpty, `{"events":null}`: BodyEmpty, `{"Events":[` + good + `]}`: BodyEmpty, good: BodyEmpty,
		`{"sdk":{"name":"x"}}`: BodyEmpty,
		`[`:                    BodyMalformed, `{`: BodyMalformed, `nul`: BodyMalformed, `true`: BodyMalformed, `1`: BodyMalformed, `"x"`: BodyMalformed,
		`NaN`: BodyMalformed, `x`: BodyMalformed, "\xff": BodyMalformed, "\x00": BodyMalformed, "\x1f\x8b\x08": BodyMalformed,
		`[` + good: BodyMalformed, `[` + good + `,]`: BodyMalformed, `[` + good + `]]`: BodyMalformed, `[` + good + `] []`: BodyMalformed,
		`[] x`: BodyMalformed, `{} {}`: BodyMalformed, `null null`: BodyMalformed, "\ufeff[" + good + "]": BodyMalformed,
		`[` + good + ` ` + good + `]`: BodyMalformed, `[{"unit_id":"u" "variant":"v"}]`: BodyMalformed, `[{"unit_id":u}]`: BodyMalformed,
		"[{\"unit_id\":\"a\nb\"}]": BodyMalformed, "[{\"unit_id\":\"a\x00b\"}]": BodyMalformed, `[{"unit_id":"\x"}]`: BodyMalformed,
		`[{"unit_id":01}]`: BodyMalformed, `[{"x":nan}]`: BodyMalformed, `[{"unit_id":1,}]`: BodyMalformed, `[{'a':1}]`: BodyMalformed,
		`[{"unit_id":7,"x":]}]`: BodyMalformed, `[{"attributes":{"a":[}}]`: BodyMalformed, `[{"x":tru}]`: BodyMalformed,
		`{"events":{}}`: BodyMalformed, `{"events":"x"}`: BodyMalformed, `{"events":5}`: BodyMalformed, `{"events":}`: BodyMalformed,
		`{"events":[` + good + `],"events":[]}`: BodyMalformed, `{"sdk":null,"sdk":null,"events":[` + good + `]}`: BodyMalformed,
		`{"events":[` + good + `],"x":NaN}`: BodyMalformed, "{\"events\":[" + good + "],\"x\":\"\xff\"}": BodyMalformed,
		`{"events":[` + good + `]`: BodyMalformed, `{"sdk":{"name":},"events":[]}`: BodyMalformed, `{"sent_at":1.}`: BodyMalformed,
		strings.Repeat("[", 33): BodyTooDeep, strings.Repeat("[", 10_000): BodyTooDeep, strings.Repeat(`{"a":`, 10_000): BodyTooDeep,
		`{"events":` + strings.Repeat("[", 10_000):                          BodyTooDeep,
		`[{"x":` + strings.Repeat("[", 31) + strings.Repeat("]", 31) + `}]`: BodyTooDeep,
		`[` + strings.Repeat(good+",", 10) + good + `]`:                     BodyTooManyEvents,
		`[` + strings.Repeat("1,", 100_000) + `1]`:                          BodyTooManyEvents,
		`{"events":[` + strings.Repeat(good+",", 10) + good + `]}`:          BodyTooManyEvents,
	}
}

func TestDecodeJSONBodyErrors(t *testing.T) {
	for body, code := range bodyErrors() {
		t.Run(clip(body, 60), func(t *testing.T) {
			err := DecodeJSON([]byte(body), KindExposure, 10, new(Batch))
			var e *BodyError
			require.ErrorAs(t, err, &e)
			assert.Equal(t, code, e.Code, e.Detail)
			assert.NotEmpty(t, e.Detail)
		})
	}
}

func TestDecodeJSONTakesExactlyTheMost(t *testing.T) {
	var b Batch
	require.NoError(t, DecodeJSON([]byte(`[`+strings.Repeat(good+",", 9)+good+`]`), KindExposure, 10, &b))
	assert.Len(t, b.Events, 10)
}

func TestDecodeNDJSON(t *testing.T) {
	var b Batch
	require.NoError(t, DecodeNDJSON([]byte("\n"+good+"\r\n  \n{\"unit_id\":\n"+good+"] \n[]\n"+strings.Repeat("[", 40)+"\n\t"+good), KindExposure, 10, &b))
	require.Len(t, b.Events, 2)
	assert.Equal(t, uint32(0), b.Events[0].Index)
	assert.Equal(t, uint32(5), b.Events[1].Index)
	assert.Equal(t, uint32(6), b.Count)
	require.Len(t, b.Rejected, 4)
	for i, want := range []struct {
		code Code
		raw  string
	}{
		{CodeMalformed, `{"unit_id":`}, {CodeMalformed, good + `]`}, {CodeInvalidType, `[]`}, {CodeMalformed, strings.Repeat("[", 40)},
	} {
		assert.Equal(t, want.code, b.Rejected[i].Code)
		assert.Equal(t, want.raw, string(b.Rejected[i].Bytes))
		assert.Equal(t, uint32(i+1), b.Rejected[i].Index)
	}
}

func TestDecodeNDJSONBodyErrors(t *testing.T) {
	for body, code := range map[string]string{
		"": BodyEmpty, "\n\r\n \t": BodyEmpty, "{": BodyMalformed, "x\ny\n": BodyMalformed, "\xff\xfe": BodyMalformed,
		strings.Repeat("[", 50): BodyMalformed, strings.Repeat(good+"\n", 11): BodyTooManyEvents, strings.Repeat("x\n", 100_000): BodyTooManyEvents,
	} {
		err := DecodeNDJSON([]byte(body), KindExposure, 10, new(Batch))
		var e *BodyError
		require.ErrorAs(t, err, &e, "%.20q", body)
		assert.Equal(t, code, e.Code)
	}
	// One line that is JSON is enough, even if it is no event.
	require.NoError(t, DecodeNDJSON([]byte("x\n1\n"), KindExposure, 10, new(Batch)))
}

func TestResetKeepsNothing(t *testing.T) {
	var b Batch
	for _, body := range []string{
		`{"events":[{"experiment":"e","variant":"v","unit_id":"u","attributes":{"a":1,"b":2}},{"unit_id":1}],"sent_at":5,"sdk":{"name":"n"}}`,
		`[` + good + `,{"experiment":"e","variant":"v","unit_id":"u","time":5,"attributes":{"c":3}},null]`,
		`[` + good + `]`,
	} {
		b.Reset()
		assert.Equal(t, Batch{Events: []Event{}, Rejected: []Rejected{}}, Batch{Events: append([]Event{}, b.Events...), Rejected: append([]Rejected{}, b.Rejected...),
			Count: b.Count, SDK: b.SDK, SentAt: b.SentAt, ID: b.ID, Digest: b.Digest, Project: b.Project, digested: b.digested})
		require.NoError(t, DecodeJSON([]byte(body), KindExposure, 10, &b))
		fresh := decode(t, body)
		assert.Equal(t, fresh.Events, b.Events)
		assert.ElementsMatch(t, fresh.Rejected, b.Rejected)
	}
	b.Reset()
	for _, e := range b.Events[:cap(b.Events)] {
		assert.Equal(t, Event{}, e)
	}
	for _, a := range b.slab[:cap(b.slab)] {
		assert.Equal(t, Attribute{}, a)
	}
	big := Batch{Events: make([]Event, keptEvents+1), Rejected: make([]Rejected, keptEvents+1), slab: make([]Attribute, keptAttributes+1)}
	big.Reset()
	assert.Nil(t, big.Events)
	assert.Nil(t, big.Rejected)
	assert.Nil(t, big.slab)
}

// What a batch's events point to must not move or be shared when the memory for
// attributes runs out.
func TestAttributesStayApart(t *testing.T) {
	var body strings.Builder
	body.WriteByte('[')
	for i := range 3000 {
		fmt.Fprintf(&body, `{"experiment":"e","variant":"v","unit_id":"u","attributes":{`)
		for j := range i % 40 {
			fmt.Fprintf(&body, `"k%02d":%d,`, j, i)
		}
		fmt.Fprintf(&body, `"last":%d}},`, i)
	}
	var b Batch
	for range 2 {
		b.Reset()
		require.NoError(t, DecodeJSON([]byte(strings.TrimSuffix(body.String(), ",")+"]"), KindExposure, 3000, &b))
		for i, e := range b.Events {
			require.Len(t, e.Attributes, i%40+1)
			for _, a := range e.Attributes {
				require.Equal(t, fmt.Sprint(i), a.Value)
			}
		}
	}
}

func TestSetAttributes(t *testing.T) {
	var b Batch
	e := b.Append()
	b.SetAttributes(e, []Attribute{{"b", "1"}, {"a", "2"}, {"b", "3"}, {"c", "4"}, {"a", "5"}})
	assert.Equal(t, []Attribute{{"a", "5"}, {"b", "3"}, {"c", "4"}}, e.Attributes)
	b.SetAttributes(e, nil)
	assert.Empty(t, e.Attributes)
}

func TestAppendCheckReject(t *testing.T) {
	var b Batch
	e := b.Append()
	e.Kind, e.Experiment, e.Variant, e.UnitID = KindExposure, "e", "v", "u"
	assert.True(t, b.Check([]byte("raw")))
	b.Append()
	assert.False(t, b.Check([]byte("raw")))
	b.Append().Kind = KindEvent
	b.Reject(CodeUnmappable, "event", "nothing to map it to", []byte("x"))
	assert.Len(t, b.Events, 1)
	assert.Equal(t, []Rejected{
		{Index: 1, Code: CodeInvalidKind, Field: "kind", Message: msgKind, Bytes: []byte("raw"), Size: 3},
		{Index: 2, Code: CodeUnmappable, Field: "event", Message: "nothing to map it to", Bytes: []byte("x"), Size: 1},
	}, b.Rejected)
	assert.Equal(t, uint32(3), b.Count)
}

func TestDecodeJSONAllocations(t *testing.T) {
	body := benchBody()
	assert.InDelta(t, 295*100, len(body), 300)
	var b Batch
	n := testing.AllocsPerRun(20, func() {
		b.Reset()
		if err := DecodeJSON(body, KindExposure, 100, &b); err != nil {
			t.Fatal(err)
		}
	})
	assert.Less(t, n, 10.0)
}
