package jsonscan

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
	"unsafe"
)

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// special marks the bytes of w that a string's scan has to look at: the quote,
// the backslash, control characters, and those with a bit of high set (highs:
// not ASCII). Only the lowest mark is sure: a borrow may mark bytes above it.
func special(w, high uint64) uint64 {
	quote := w ^ ones*'"'
	back := w ^ ones*'\\'
	return ((quote-ones)&^quote|(back-ones)&^back|(w-ones*0x20)&^w)&highs | w&high
}

// next returns the place of the first byte from i on that special marks, or
// len(buf).
func next(buf []byte, i int, high uint64) int {
	for ; i+8 <= len(buf); i += 8 {
		if m := special(binary.LittleEndian.Uint64(buf[i:]), high); m != 0 {
			return i + bits.TrailingZeros64(m)>>3
		}
	}
	for ; i < len(buf); i++ {
		if c := buf[i]; c == '"' || c == '\\' || c < 0x20 || c&byte(high) != 0 {
			break
		}
	}
	return i
}

// scanString reads a string; the next byte is its opening quote. It returns ""
// for one with a fault, and where keep is false. Nearly all strings are ASCII without
// an escape, and are found here.
func (r *Reader) scanString(keep bool) string {
	buf, start := r.buf, r.pos+1
	for i := start; i+8 <= len(buf); i += 8 {
		w := binary.LittleEndian.Uint64(buf[i:])
		// As special does. What is not ASCII is marked in any case here, so the
		// subtractions need not spare it.
		m := (((w ^ ones*'"') - ones) | ((w ^ ones*'\\') - ones) | (w - ones*0x20) | w) & highs
		if m == 0 {
			continue
		}
		if i += bits.TrailingZeros64(m) >> 3; buf[i] == '"' {
			r.pos = i + 1
			if !keep {
				return ""
			}
			return unsafe.String(&buf[start], i-start)
		}
		break
	}
	return r.scanAnyString(keep)
}

// scanAnyString is scanString for every string there is.
func (r *Reader) scanAnyString(keep bool) string {
	start := r.pos + 1
	high := uint64(highs)
	escaped := false
	fault := NoFault
	for i := start; ; {
		i = next(r.buf, i, high)
		if i >= len(r.buf) {
			r.fail("the text ends inside a string")
			return ""
		}
		switch c := r.buf[i]; {
		case c == '"':
			r.pos = i + 1
			if high == 0 && !utf8.Valid(r.buf[start:i]) {
				fault = InvalidUTF8
			}
			if fault != NoFault {
				r.note(fault)
				return ""
			}
			if !keep {
				return ""
			}
			if escaped {
				return r.unescape(start, i)
			}
			return r.piece(start, i)
		case c >= 0x80:
			high = 0 // noted; from here on only what ends the string matters
		case c == '\\':
			escaped = true
			n, f := escape(r.buf[i:])
			if n == 0 {
				r.pos = i
				r.fail("want an escape sequence")
				return ""
			}
			if fault == NoFault {
				fault = f
			}
			i += n
		default:
			r.pos = i
			r.fail("a control character inside a string")
			return ""
		}
	}
}

// escape returns the length of the escape sequence that b starts with, both
// halves of a surrogate pair together, and what is wrong with its content; 0 for
// one that is not in the grammar.
func escape(b []byte) (int, Fault) {
	if len(b) < 2 {
		return 0, NoFault
	}
	if b[1] != 'u' {
		if simple[b[1]] == 0 {
			return 0, NoFault
		}
		return 2, NoFault
	}
	v := hex4(b)
	switch {
	case v < 0:
		return 0, NoFault
	case v == 0:
		return 6, NUL
	case v < 0xD800 || v > 0xDFFF:
		return 6, NoFault
	case v < 0xDC00:
		if low := hex4(b[6:]); low >= 0xDC00 && low <= 0xDFFF {
			return 12, NoFault
		}
	}
	return 6, LoneSurrogate
}

// hex4 is the value of the \uXXXX that b starts with, or -1.
func hex4(b []byte) rune {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	var v rune
	for _, c := range b[2:6] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		v = v<<4 | rune(c)
	}
	return v
}

// simple is what the two-byte escape sequences stand for.
var simple = [256]byte{
	'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t',
}

// Memory for unescaped strings is taken in chunks, so that a body full of them
// costs few allocations, and a short one little memory.
const (
	firstChunk   = 256
	largestChunk = 32 << 10
)

// unescape copies body[from:to], which scanString has found without fault, with
// its escape sequences resolved. That never makes it longer.
func (r *Reader) unescape(from, to int) string {
	if cap(r.arena)-len(r.arena) < to-from {
		size := min(max(firstChunk, 2*cap(r.arena)), largestChunk)
		r.arena = make([]byte, 0, max(size, to-from))
	}
	dst := r.arena
	start := len(dst)
	src := r.buf[from:to]
	for i := 0; i < len(src); {
		c := src[i]
		switch {
		case c != '\\':
			dst = append(dst, c)
			i++
		case src[i+1] != 'u':
			dst = append(dst, simple[src[i+1]])
			i += 2
		default:
			v := hex4(src[i:])
			i += 6
			if v >= 0xD800 && v <= 0xDBFF {
				v = (v-0xD800)<<10 + (hex4(src[i:]) - 0xDC00) + 0x10000
				i += 6
			}
			dst = utf8.AppendRune(dst, v)
		}
	}
	r.arena = dst
	out := dst[start:]
	return unsafe.String(unsafe.SliceData(out), len(out))
}
