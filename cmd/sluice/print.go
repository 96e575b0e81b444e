package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rivo/uniseg"
	"golang.org/x/term"
)

const (
	defaultWidth = 120     // where there is no terminal
	longestCell  = 48      // columns of the terminal
	longestText  = 1 << 10 // bytes that are looked at: marks take no column
	gap          = "  "
)

// table writes rows under a header, aligned and cut to the terminal's width.
func table(w io.Writer, header []string, rows [][]string) error {
	return write(w, terminalWidth(w), append([][]string{header}, rows...))
}

// terminalWidth is how many columns a line on w may have.
func terminalWidth(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 20 {
			return n
		}
	}
	return defaultWidth
}

// write aligns by what a terminal shows: an ideograph takes two columns, a
// combining mark none.
func write(w io.Writer, width int, rows [][]string) error {
	var widest []int
	shown := make([][]string, len(rows))
	for i, row := range rows {
		for j, text := range row {
			cell := cut(printable(text[:min(len(text), longestText)]), longestCell)
			shown[i] = append(shown[i], cell)
			if j == len(widest) {
				widest = append(widest, 0)
			}
			widest[j] = max(widest[j], uniseg.StringWidth(cell))
		}
	}
	for _, row := range shown {
		var line strings.Builder
		for j, cell := range row {
			if j > 0 {
				line.WriteString(gap)
			}
			line.WriteString(cell)
			line.WriteString(strings.Repeat(" ", widest[j]-uniseg.StringWidth(cell)))
		}
		if _, err := fmt.Fprintln(w, cut(strings.TrimRight(line.String(), " "), width)); err != nil {
			return err
		}
	}
	return nil
}

// printable makes visible what may come from anybody: whatever could drive a
// terminal, break the line or turn the direction of writing becomes a dot.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '·'
		}
		return r
	}, s)
}

// cut shortens a text to so many columns of a terminal, between characters as
// people see them.
func cut(s string, width int) string {
	if uniseg.StringWidth(s) <= width {
		return s
	}
	used, end := 0, 0
	for g := uniseg.NewGraphemes(s); g.Next(); {
		if used += g.Width(); used > width-1 {
			break
		}
		_, end = g.Positions()
	}
	return strings.TrimRight(s[:end], " ") + "…"
}
