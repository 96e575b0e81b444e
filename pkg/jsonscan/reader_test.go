package jsonscan

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// value reads whatever comes next the way encoding/json does with UseNumber.
func value(r *Reader) any {
	switch r.Kind() {
	case Null:
		r.Null()
		return nil
	case Bool:
		return r.Bool()
	case Number:
		return json.Number(r.Number())
	case String:
		return r.Text()
	case Array:
		out := []any{}
		r.Array()
		for r.More() {
			out = append(out, value(r))
		}
		return out
	case Object:
		out := map[string]any{}
		r.Object()
		for r.More() {
			k := r.Key()
			out[k] = value(r)
		}
		return out
	}
	return nil
}

func TestValues(t *testing.T) {
	for name, in := range map[string]string{
		"null": `null`, "true": ` true `, "false": "\tfalse\r\n", "zero": `0`, "minus zero": `-0`,
		"integer": `-120`, "decimal": `0.25`, "exponents": `[1e3,1E+3,1.5e-3,0e0]`, "smallest": `1e-400`,
		"empty string": `""`, "string": `"abc"`, "long string": `"` + strings.Repeat("0123456789", 30) + `"`,
		"DEL is no control character": "\"\x7f\"",
		"escapes":                     `"\"\\\/\b\f\n\r\t\u0041\u00e9\u20AC"`, "pair": `"\ud83d\ude00"`,
		"UTF-8": `"grüße, 世界 😀"`, "UTF-8 and escapes": `"é\n世"`,
		"noncharacters": `"\uffff\ufffe"`,
		"empty array":   `[ ]`, "empty object": `{ }`, "nested": `{"a":[1,{"b":[]}],"c":{"d":null}}`,
		"escaped key": `{"\u0061b":1}`, "key twice": `{"a":1,"a":2}`,
		"white space": " { \"a\" : [ 1 , 2 ] , \"b\" : { } } ",
		"largest":     `[9223372036854775807,-9223372036854775808,1.7976931348623157e308]`,
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReader([]byte(in), 32)
			got := value(r)
			require.NoError(t, r.End())
			assert.Equal(t, NoFault, r.Fault())
			d := json.NewDecoder(strings.NewReader(in))
			d.UseNumber()
			var want any
			require.NoError(t, d.Decode(&want))
			assert.Equal(t, want, got)
		})
	}
}

func TestSyntaxErrors(t *testing.T) {
	for in, offset := range map[string]int{
		``: 0, ` `: 1, `nul`: 0, `nulL`: 0, `truefalse`: 4, `tru`: 0, `True`: 0, `'a'`: 0,
		`{`: 1, `[`: 1, `}`: 0, `]`: 0, `[1`: 2, `[1,`: 3, `[1,]`: 3, `[,1]`: 1, `[1 2]`: 3, `[1}`: 2,
		`{"a"`: 4, `{"a":`: 5, `{"a":1`: 6, `{"a":1,`: 7, `{"a":1,}`: 7, `{,}`: 1, `{a:1}`: 1, `{"a" 1}`: 5,
		`{"a":1]`: 6, `{1:2}`: 1, `{"a":1 "b":2}`: 7, `{"a":1,,"b":2}`: 7,
		`01`: 1, `-`: 0, `+1`: 0, `.5`: 0, `1.`: 2, `1.e3`: 2, `1e`: 2, `1e+`: 3, `-a`: 1, `0x10`: 1, `1_000`: 1, `--1`: 1,
		`Nan`: 0, `Inf`: 0, `-NaN`: 1, `-Inf`: 1, `NaNa`: 3,
		`"`: 0, `"abc`: 0, `"\`: 1, `"\x41"`: 1, `"\u12"`: 1, `"\u12g4"`: 1, `"\U0041"`: 1,
		"\"a\nb\"": 2, "\"\x00\"": 1, "\"\x1f\"": 1, "\"0123456789\tabcdef\"": 11,
		`[] []`: 3, `{} x`: 3, `1 2`: 2, `null,`: 4, "\ufeff[]": 0, "[]\x00": 2,
		"[\x0b1]": 1, "[\u00a01]": 1, "[1]//": 3, "[/**/1]": 1, "\xff": 0,
		strings.Repeat("[", 33): 32, strings.Repeat("[", 10_000): 32, strings.Repeat(`{"a":`, 33): 160,
	} {
		name := in
		if len(name) > 40 {
			name = name[:40] + "…"
		}
		t.Run(name, func(t *testing.T) {
			for how, read := range map[string]func(*Reader){
				"value": func(r *Reader) { value(r) },
				"skip":  func(r *Reader) { r.Skip() },
			} {
				r := NewReader([]byte(in), 32)
				read(r)
				err := r.End()
				var e *Error
				require.ErrorAs(t, err, &e, how)
				assert.Equal(t, offset, e.Offset, how)
				assert.Equal(t, len(in) > 32, e.TooDeep, how)
				assert.Nil(t, r.Skip(), how)
				assert.Equal(t, None, r.Kind(), how)
				assert.False(t, r.More(), how)
				assert.Equal(t, err, r.End(), "the first error stays")
			}
		})
	}
}

func TestDepth(t *testing.T) {
	for depth, ok := range map[int]bool{1: true, 31: true, 32: true, 33: false} {
		in := strings.Repeat(`[`, depth) + strings.Repeat(`]`, depth)
		r := NewReader([]byte(in), 32)
		r.Skip()
		assert.Equal(t, ok, r.End() == nil, "arrays, depth %d", depth)
		in = strings.Repeat(`{"a":[`, depth/2+1) + strings.Repeat(`]}`, depth/2+1)
		r = NewReader([]byte(in), 1<<20)
		r.Skip()
		assert.NoError(t, r.End(), "limit of the Reader is %d", MaxDepth)
	}
	r := NewReader([]byte(strings.Repeat(`[`, 1000)), 1000)
	r.Skip()
	var e *Error
	require.ErrorAs(t, r.End(), &e)
	assert.True(t, e.TooDeep)
	assert.Equal(t, MaxDepth, e.Offset)
}

// Each input is one element between two good ones, which it must not cost.
func TestFaults(t *testing.T) {
	for in, want := range map[string]Fault{
		"\"\xff\"": InvalidUTF8, "\"abcdefgh\xc3\"": InvalidUTF8, "\"\xed\xa0\x80\"": InvalidUTF8, "\"\xc0\xaf\"": InvalidUTF8,
		"\"\xff\\n\"": InvalidUTF8, "{\"\xff\":1}": InvalidUTF8,
		`"\ud800"`: LoneSurrogate, `"\udc00"`: LoneSurrogate, `"\ud800a"`: LoneSurrogate, `"\ud800\u0041"`: LoneSurrogate,
		`"\ud800\ud800"`: LoneSurrogate, `"\ude00\ud83d"`: LoneSurrogate, `{"\ud800":1}`: LoneSurrogate,
		`"\ud800\n"`: LoneSurrogate, `"\u0000"`: NUL, `"a\u0000\ud800"`: NUL,
		`NaN`: NotFinite, `Infinity`: NotFinite, `-Infinity`: NotFinite, `[1,NaN]`: NotFinite,
		`1e999`: OutOfRange, `-1e999`: OutOfRange, `1.5e400`: OutOfRange, `9223372036854775808`: OutOfRange,
		`-9223372036854775809`: OutOfRange, strings.Repeat("9", 400): OutOfRange, strings.Repeat("9", 400) + ".5": OutOfRange,
		`{"a":1e999,"b":"\u0000"}`: OutOfRange,
	} {
		t.Run(want.String(), func(t *testing.T) {
			body := []byte(`["before",` + in + `,"after"]`)
			r := NewReader(body, 32)
			require.True(t, r.Array())
			require.True(t, r.More())
			assert.Equal(t, "before", r.Text())
			require.True(t, r.More())
			r.Kind()
			start, m := r.Offset(), r.Mark()
			value(r)
			assert.Equal(t, want, r.Fault())
			assert.Equal(t, in, string(body[start:r.Offset()]))
			r.Rewind(m)
			assert.Equal(t, in, string(r.Skip()))
			r.ClearFault()
			require.True(t, r.More())
			assert.Equal(t, "after", r.Text())
			assert.False(t, r.More())
			require.NoError(t, r.End())
			assert.Equal(t, NoFault, r.Fault())
		})
	}
}

// The range of a number that nobody reads does not matter.
func TestSkipLeavesNumbersAlone(t *testing.T) {
	r := NewReader([]byte(`[1e999,99999999999999999999]`), 32)
	r.Skip()
	require.NoError(t, r.End())
	assert.Equal(t, NoFault, r.Fault())
}

func TestWrongType(t *testing.T) {
	values := []string{`null`, `true`, `1`, `"s"`, `[1,"\u0000"]`, `{"a":[]}`}
	for name, read := range map[string]func(*Reader){
		"Object": func(r *Reader) { assert.False(t, r.Object()) },
		"Array":  func(r *Reader) { assert.False(t, r.Array()) },
		"Text":   func(r *Reader) { assert.Empty(t, r.Text()) },
		"Number": func(r *Reader) { assert.Empty(t, r.Number()) },
		"Float":  func(r *Reader) { assert.Zero(t, r.Float()) },
		"Int":    func(r *Reader) { assert.Zero(t, r.Int()) },
		"Bool":   func(r *Reader) { assert.False(t, r.Bool()) },
		"Scalar": func(r *Reader) { _, s := r.Scalar(); assert.Empty(t, s) },
	} {
		own := map[string][]Kind{"Object": {Object}, "Array": {Array}, "Text": {String}, "Number": {Number}, "Float": {Number},
			"Int": {Number}, "Bool": {Bool}, "Scalar": {Null, Bool, Number, String}}[name]
		for _, v := range values {
			r := NewReader([]byte(`{"k":`+v+`,"next":7}`), 32)
			r.Object()
			r.More()
			r.Key()
			if isOneOf(r.Kind(), own) {
				continue
			}
			read(r)
			assert.Equal(t, WrongType, r.Fault(), "%s of %s", name, v)
			require.True(t, r.More())
			assert.Equal(t, "next", r.Key())
			assert.Equal(t, int64(7), r.Int())
			assert.False(t, r.More())
			assert.NoError(t, r.End())
		}
	}
}

func isOneOf(k Kind, ks []Kind) bool {
	for _, o := range ks {
		if k == o {
			return true
		}
	}
	return false
}

func TestNumbers(t *testing.T) {
	for in, want := range map[string]struct {
		float  float64
		int    int64
		faulty Fault // of Int
	}{
		`0`: {0, 0, NoFault}, `-1`: {-1, -1, NoFault}, `1795487185225`: {1795487185225, 1795487185225, NoFault},
		`9223372036854775807`:  {math.MaxInt64, math.MaxInt64, NoFault},
		`-9223372036854775808`: {math.MinInt64, math.MinInt64, NoFault},
		`1.5`:                  {1.5, 0, WrongType}, `1e3`: {1000, 0, WrongType}, `1e-999`: {0, 0, WrongType},
	} {
		r := NewReader([]byte(in), 32)
		assert.Equal(t, want.float, r.Float(), in)
		assert.Equal(t, NoFault, r.Fault(), in)
		assert.NoError(t, r.End())
		r.Reset([]byte(in), 32)
		assert.Equal(t, want.int, r.Int(), in)
		assert.Equal(t, want.faulty, r.Fault(), in)
		assert.NoError(t, r.End())
	}
	for in, want := range map[string]Fault{`NaN`: NotFinite, `9223372036854775808`: OutOfRange} {
		r := NewReader([]byte(in), 32)
		assert.Zero(t, r.Int())
		assert.Equal(t, want, r.Fault())
		assert.NoError(t, r.End())
	}
}

func TestScalar(t *testing.T) {
	for in, want := range map[string]struct {
		kind Kind
		text string
	}{
		`"a\n"`: {String, "a\n"}, `1.50`: {Number, "1.50"}, `true`: {Bool, "true"}, `false`: {Bool, "false"}, `null`: {Null, ""},
	} {
		r := NewReader([]byte(in), 32)
		k, s := r.Scalar()
		assert.Equal(t, want.kind, k)
		assert.Equal(t, want.text, s)
		assert.Equal(t, NoFault, r.Fault())
		assert.NoError(t, r.End())
	}
}

// Strings with escapes must not share memory that is written again.
func TestStringsStay(t *testing.T) {
	var body bytes.Buffer
	var want []string
	body.WriteByte('[')
	for i := range 3000 {
		if i > 0 {
			body.WriteByte(',')
		}
		body.WriteString(`"\u0041` + strconv.Itoa(i) + `"`)
		want = append(want, "A"+strconv.Itoa(i))
	}
	body.WriteByte(']')
	r := NewReader(body.Bytes(), 32)
	read := func() (out []string) {
		r.Array()
		for r.More() {
			out = append(out, r.Text())
		}
		require.NoError(t, r.End())
		return out
	}
	first := read()
	r.Reset(body.Bytes(), 32)
	second := read()
	assert.Equal(t, want, first)
	assert.Equal(t, want, second)
}

func TestErrorHoldsNothingOfTheInput(t *testing.T) {
	r := NewReader([]byte("\x1b[31mred"), 32)
	r.Skip()
	assert.EqualError(t, r.End(), "want a value at offset 0")
}

// FuzzReader compares with encoding/json: the same texts are accepted, and
// they hold the same values.
func FuzzReader(f *testing.F) {
	for _, s := range []string{
		`{"a":[1,2.5e3,{"b":null}],"c":"\u00e9\ud83d\ude00","d":true}`, `[]`, `"\ud800"`, `NaN`, `-Infinity`, `1e999`,
		"\"\xff\"", `[1,]`, `{"a":1,"a":2}`, `"0123456789abcdef\n"`, ` [ "x" , -0 ] `, `01`, strings.Repeat("[", 70), "\"\x7f\xc3\xa9\"",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		r := NewReader(body, 32)
		got := value(r)
		err := r.End()
		fault := r.Fault()

		s := NewReader(body, 32)
		raw := s.Skip()
		serr := s.End()
		require.Equal(t, err == nil, serr == nil, "Skip and reading differ")
		require.Equal(t, before, body, "the body was changed")

		var e *Error
		if errors.As(err, &e) {
			if e.TooDeep {
				return
			}
			require.False(t, json.Valid(body), "encoding/json takes it: %v", err)
			return
		}
		require.Equal(t, bytes.Trim(body, " \t\r\n"), raw)
		if fault == NotFinite || s.Fault() == NotFinite {
			require.False(t, json.Valid(body))
			return
		}
		if !json.Valid(body) {
			// A fault may stand in front of a NaN further on.
			require.NotEqual(t, NoFault, fault, "encoding/json refuses it")
			require.True(t, bytes.Contains(body, []byte("NaN")) || bytes.Contains(body, []byte("Infinity")))
			return
		}
		if fault != NoFault {
			return
		}
		require.True(t, utf8.Valid(body), "invalid UTF-8 outside a string")
		d := json.NewDecoder(bytes.NewReader(body))
		d.UseNumber()
		var want any
		require.NoError(t, d.Decode(&want))
		require.Equal(t, want, got)
	})
}

func BenchmarkSkip(b *testing.B) {
	body := []byte(`{"experiment":"checkout_button_color","variant":"treatment","unit_id":"user-000123","unit_type":"user",` +
		`"time":"2026-11-24T06:59:57.123Z","rule":"rule_42","reason":"targeted","event_id":"5f0f4b6e-0c39-4f60-9d2e-d1a1f3c2b4a5",` +
		`"attributes":{"country":"DE","platform":"ios","app_version":"4.12.0","logged_in":true}}`)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	var r Reader
	for b.Loop() {
		r.Reset(body, 32)
		r.Skip()
		if r.End() != nil {
			b.Fatal(r.End())
		}
	}
}

// The quick way through a string and the one for every string agree, wherever in it
// something special stands.
func TestStringsBothWays(t *testing.T) {
	for _, special := range []string{"", `"`, `\n`, `\`, `\u00e9`, `\ud800`, "\x00", "\x1f", "\x7f", "\x80", "\xff", "é", "\u2028"} {
		for n := range 26 {
			for at := range n + 1 {
				text := strings.Repeat("a", at) + special + strings.Repeat("b", n-at)
				for _, body := range []string{`"` + text + `"`, `"` + text + `", "and more"`, `"` + text} {
					for _, keep := range []bool{true, false} {
						quick, any := NewReader([]byte(body), 1), NewReader([]byte(body), 1)
						require.Equal(t, any.scanAnyString(keep), quick.scanString(keep), "%q", body)
						require.Equal(t, any.Err(), quick.Err(), "%q", body)
						require.Equal(t, any.Fault(), quick.Fault(), "%q", body)
						require.Equal(t, any.Offset(), quick.Offset(), "%q", body)
					}
				}
			}
		}
	}
}

func TestAgain(t *testing.T) {
	r := NewReader([]byte(`[{ "name" : 1},{ "name" : 2},{"name":3}]`), 2)
	require.True(t, r.Array() && r.More() && r.Object() && r.More())
	start := r.Offset()
	assert.Equal(t, "name", r.Key())
	raw := r.Since(start)
	assert.Equal(t, `"name" :`, string(raw))
	assert.EqualValues(t, 1, r.Int())
	assert.False(t, r.More())
	require.True(t, r.More() && r.Object() && r.More())
	assert.True(t, r.Again(raw))
	assert.EqualValues(t, 2, r.Int())
	assert.False(t, r.More())
	require.True(t, r.More() && r.Object() && r.More())
	assert.False(t, r.Again(raw), "written otherwise")
	assert.Equal(t, "name", r.Key())
	assert.EqualValues(t, 3, r.Int())
	assert.False(t, r.More())
	assert.False(t, r.More())
	require.NoError(t, r.End())
	assert.False(t, r.Again(raw), "the end")
}
