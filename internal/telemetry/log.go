// Package telemetry is what a process shows of itself: its log, its metrics, and
// the admin server that answers for its health.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/term"
)

// NewLogger returns a logger that writes to w from level on. format is "text",
// "json", or "auto": text where w is a terminal, else JSON; anything else is
// taken for auto. Every record is one line, whatever is in it: what came from
// outside cannot break the line or drive a terminal.
func NewLogger(w io.Writer, level slog.Leveler, format string) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if format == "text" || format != "json" && isTerminal(w) {
		// The text handler quotes whatever is not printable by itself.
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(printable{w}, options))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// printable writes JSON with every character escaped that is not printable. JSON
// itself asks for less: it lets through U+009B, which to some terminals is the
// start of an escape sequence, and the marks that turn the direction of writing.
// Outside of strings JSON has none of these, so what comes out is the same JSON.
type printable struct{ w io.Writer }

func hidden(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }

func (p printable) Write(line []byte) (int, error) {
	clean := line
	for i := 0; i < len(line); {
		r, size := utf8.DecodeRune(line[i:])
		if hidden(r) {
			clean = escape(line, i)
			break
		}
		i += size
	}
	if _, err := p.w.Write(clean); err != nil {
		return 0, err
	}
	return len(line), nil
}

// escape copies a line whose first character to be escaped is at from.
func escape(line []byte, from int) []byte {
	out := append(make([]byte, 0, len(line)+64), line[:from]...)
	for i := from; i < len(line); {
		r, size := utf8.DecodeRune(line[i:])
		switch {
		case !hidden(r):
			out = append(out, line[i:i+size]...)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		i += size
	}
	return out
}
