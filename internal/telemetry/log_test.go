package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What a sender may try: a line of its own, colours, another writing direction,
// the one-character form of ESC [, private and unassigned characters, broken
// UTF-8.
const hostile = "a\r\n{\"level\":\"INFO\"}\n\x1b[31mred\x1b]0;title\a\u009b2J\u202eetirw\u2066\u2028\u2029\u0000\u007f\ue000\U000e0041\xff\"\\ é 漢"

func TestOneLineWhateverIsInIt(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			var b bytes.Buffer
			log := NewLogger(&b, slog.LevelInfo, format)
			log.With("with", hostile).WithGroup("g").Info(hostile, "plain", hostile,
				"error", errors.New(hostile), "list", []string{hostile}, "map", map[string]string{hostile: hostile})
			line, rest, _ := strings.Cut(b.String(), "\n")
			assert.Empty(t, rest)
			assert.True(t, utf8.ValidString(line))
			for _, r := range line {
				require.True(t, unicode.IsPrint(r), "%q in %s", r, line)
			}
		})
	}
}

// Escaping changes how the JSON is written, not what it says.
func TestJSONKeepsItsMeaning(t *testing.T) {
	var escaped, plain bytes.Buffer
	drop := &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}
	slog.New(slog.NewJSONHandler(printable{&escaped}, drop)).Info("m", "v", hostile)
	slog.New(slog.NewJSONHandler(&plain, drop)).Info("m", "v", hostile)
	assert.NotEqual(t, plain.String(), escaped.String())
	var a, b map[string]any
	require.NoError(t, json.Unmarshal(escaped.Bytes(), &a))
	require.NoError(t, json.Unmarshal(plain.Bytes(), &b))
	assert.Equal(t, b, a)
}

func TestFormat(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	log := NewLogger(w, slog.LevelWarn, "auto")
	log.Info("not this")
	log.Warn("this", "n", 1)
	require.NoError(t, w.Close())
	text, err := io.ReadAll(r)
	require.NoError(t, err)
	var line struct {
		Level, Msg string
		N          int
	}
	require.NoError(t, json.Unmarshal(text, &line), "a pipe is no terminal: JSON")
	assert.Equal(t, "WARN this 1", line.Level+" "+line.Msg+" "+string(rune('0'+line.N)))

	var b bytes.Buffer
	NewLogger(&b, slog.LevelInfo, "text").Info("x")
	assert.Contains(t, b.String(), "level=INFO msg=x")
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestWriterErrors(t *testing.T) {
	_, err := printable{failing{}}.Write([]byte("x\n"))
	require.ErrorIs(t, err, io.ErrClosedPipe)
	n, err := printable{io.Discard}.Write([]byte("\u009b\n"))
	require.NoError(t, err)
	assert.Equal(t, 3, n, "the caller's bytes, not what they became")
}

func FuzzPrintable(f *testing.F) {
	f.Add(hostile)
	f.Fuzz(func(t *testing.T, s string) {
		before, err := json.Marshal(s)
		require.NoError(t, err)
		var b bytes.Buffer
		_, err = printable{&b}.Write(before)
		require.NoError(t, err)
		for _, r := range b.String() {
			require.True(t, unicode.IsPrint(r))
		}
		var want, got string
		require.NoError(t, json.Unmarshal(before, &want))
		require.NoError(t, json.Unmarshal(b.Bytes(), &got))
		require.Equal(t, want, got)
	})
}

func BenchmarkJSONLog(b *testing.B) {
	log := NewLogger(io.Discard, slog.LevelInfo, "json")
	b.ReportAllocs()
	for b.Loop() {
		log.Info("batch accepted", "project", "default", "events", 100)
	}
}
