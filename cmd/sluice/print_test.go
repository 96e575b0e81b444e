package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "",
		"green":                    "green",
		"grün 緑 😀":                 "grün 緑 😀",
		"a\x1b[31mred\x1b[0m":      "a·[31mred·[0m",
		"\x1b]0;title\a":           "·]0;title·",
		"\u009b31m":                "·31m", // an escape sequence in one character
		"one\r\ntwo\tthree\x00":    "one··two·three·",
		"evil\u202etxt.exe":        "evil·txt.exe", // turns the direction of writing
		"zero\u200bwidth\ufeff":    "zero·width·",
		"not \xff\xfe UTF-8":       "not ·· UTF-8",
		"a replacement \ufffd too": "a replacement · too",
		"no\u00a0break\u2028line":  "no·break·line",
	} {
		assert.Equal(t, want, printable(in), "%q", in)
	}
}

func TestCut(t *testing.T) {
	for _, tc := range []struct {
		in    string
		width int
		want  string
	}{
		{"exactly", 7, "exactly"},
		{"a bit more", 9, "a bit mo…"},
		{"a bit more", 3, "a…"}, // no blank before the dots
		{"緑緑緑", 6, "緑緑緑"},
		{"緑緑緑", 5, "緑緑…"},
		{"緑緑緑", 4, "緑…"}, // half of one is none
		{"e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"},
		{"e\u0301e\u0301e\u0301", 2, "e\u0301…"}, // the accent stays with its letter
		{"", 5, ""},
	} {
		assert.Equal(t, tc.want, cut(tc.in, tc.width), "%q to %d", tc.in, tc.width)
	}
}

func TestWrite(t *testing.T) {
	rows := func(cells ...string) (out [][]string) {
		for _, c := range cells {
			out = append(out, strings.Split(c, "|"))
		}
		return out
	}
	long := strings.Repeat("x", 100)
	for name, tc := range map[string]struct {
		width int
		rows  [][]string
		want  string
	}{
		"aligned": {80, rows("ID|N", "a|1", "long one|22"), "" +
			"ID        N\n" +
			"a         1\n" +
			"long one  22\n"},
		"wide": {80, rows("ID|N", "緑|1", "e\u0301|2", "😀😀|3"), "" +
			"ID    N\n" +
			"緑    1\n" +
			"e\u0301     2\n" +
			"😀😀  3\n"},
		"escapes": {80, rows("ID|N", "\x1b[2J|1", "a\nb|2"), "" +
			"ID    N\n" +
			"·[2J  1\n" +
			"a·b   2\n"},
		"no trailing blanks": {80, rows("A|B", "1|", "22|"), "A   B\n1\n22\n"},
		"empty cells":        {80, rows("A|B|C", "||3"), "A  B  C\n      3\n"},
		"long cell":          {80, rows("A|B", long+"|1"), "A" + strings.Repeat(" ", 49) + "B\n" + strings.Repeat("x", 47) + "…  1\n"},
		"narrow":             {10, rows("A|B", "abcdefgh|ijk"), "A…\nabcdefgh…\n"},
		"header only":        {80, rows("A|B"), "A  B\n"},
		"nothing":            {80, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			require.NoError(t, write(&b, tc.width, tc.rows))
			assert.Equal(t, tc.want, b.String())
		})
	}
}

// What nobody can read is not written out, however much of it there is.
func TestMarksWithoutEnd(t *testing.T) {
	var b strings.Builder
	require.NoError(t, write(&b, 80, [][]string{{"a" + strings.Repeat("\u0301", 1<<20), "b"}}))
	assert.Less(t, b.Len(), 2048)
}

// Every line keeps to the width, whatever is in it.
func TestNoLineIsWider(t *testing.T) {
	var b strings.Builder
	cell := strings.Repeat("緑x", 30)
	require.NoError(t, write(&b, 79, [][]string{{"A", "B", "C"}, {cell, cell, cell}}))
	for line := range strings.Lines(b.String()) {
		columns := 0
		for _, r := range strings.TrimSuffix(line, "\n") {
			if columns++; r == '緑' {
				columns++
			}
		}
		assert.LessOrEqual(t, columns, 79, line)
	}
}

func TestJSONOrTable(t *testing.T) {
	var b strings.Builder
	v := []map[string]string{{"id": "a\x1b"}}
	require.NoError(t, output{Output: "json"}.print(&b, v, []string{"ID"}, [][]string{{"a\x1b"}}))
	assert.JSONEq(t, `[{"id":"a\u001b"}]`, b.String())
	assert.NotContains(t, b.String(), "\x1b")
	b.Reset()
	require.NoError(t, output{Output: "table"}.print(&b, v, []string{"ID"}, [][]string{{"a\x1b"}}))
	assert.Equal(t, "ID\na·\n", b.String())
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errBroken }

var errBroken = errors.New("broken pipe")

func TestWriteErrorIsReturned(t *testing.T) {
	assert.ErrorIs(t, write(brokenPipe{}, 80, [][]string{{"A"}}), errBroken)
}

func TestQuoted(t *testing.T) {
	for in, want := range map[string]string{
		"examples/events.ndjson":         "examples/events.ndjson",
		"@my folder/a.json":              "'@my folder/a.json'",
		"it's":                           `'it'\''s'`,
		"":                               "''",
		"$(rm -rf x); `y` \"z\"":         "'$(rm -rf x); `y` \"z\"'",
		"http://127.0.0.1:8080/v1/x":     "http://127.0.0.1:8080/v1/x",
		"http://127.0.0.1:8080/v1/x?k=&": "'http://127.0.0.1:8080/v1/x?k=&'",
	} {
		assert.Equal(t, want, quoted(in))
	}
}

func TestAddresses(t *testing.T) {
	for addr, want := range map[string]struct {
		url  string
		mine bool
	}{
		"127.0.0.1:8080": {"127.0.0.1:8080", true},
		"localhost:8080": {"localhost:8080", true},
		"[::1]:8080":     {"[::1]:8080", true},
		":8080":          {"127.0.0.1:8080", false},
		"0.0.0.0:8080":   {"127.0.0.1:8080", false},
		"[::]:8080":      {"[::1]:8080", false},
		"10.1.2.3:8080":  {"10.1.2.3:8080", false},
	} {
		assert.Equal(t, want.url, reachable(addr))
		assert.Equal(t, want.mine, loopback(addr), addr)
	}
}
