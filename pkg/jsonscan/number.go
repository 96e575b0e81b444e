package jsonscan

import (
	"math"
	"strconv"
)

// shape is what a number is written as.
type shape uint8

const (
	broken     shape = iota // a syntax error, noted
	integer                 // digits only
	decimal                 // with a fraction
	scientific              // with an exponent
	notFinite               // NaN, Infinity, -Infinity
)

// scanNumber reads a number, whose first byte is known to start one.
func (r *Reader) scanNumber() (string, shape) {
	buf, i := r.buf, r.pos
	start := i
	if buf[i] == '-' {
		i++
	}
	switch {
	case i >= len(buf):
		r.fail("the text ends inside a number")
		return "", broken
	case buf[i] == '0':
		i++
	case '1' <= buf[i] && buf[i] <= '9':
		i = digits(buf, i+1)
	case buf[i] == 'I':
		r.pos = i
		return "", r.word("Infinity")
	case buf[i] == 'N' && i == start:
		return "", r.word("NaN")
	default:
		r.pos = i
		r.fail("want a digit")
		return "", broken
	}
	s := integer
	if i < len(buf) && buf[i] == '.' {
		s = decimal
		end := digits(buf, i+1)
		if end == i+1 {
			r.pos = end
			r.fail("want a digit after the decimal point")
			return "", broken
		}
		i = end
	}
	if i < len(buf) && buf[i]|0x20 == 'e' {
		s = scientific
		i++
		if i < len(buf) && (buf[i] == '+' || buf[i] == '-') {
			i++
		}
		end := digits(buf, i)
		if end == i {
			r.pos = end
			r.fail("want a digit in the exponent")
			return "", broken
		}
		i = end
	}
	r.pos = i
	return r.piece(start, i), s
}

func (r *Reader) word(w string) shape {
	if !r.literal(w) {
		return broken
	}
	return notFinite
}

// digits returns the place of the first byte from i on that is no digit.
func digits(buf []byte, i int) int {
	for i < len(buf) && '0' <= buf[i] && buf[i] <= '9' {
		i++
	}
	return i
}

// inRange checks that a number of that shape can be kept: an integer in 64 bits,
// signed, and any other as a double. Numbers too small for a double are zero.
func inRange(s string, sh shape) Fault {
	switch sh {
	case notFinite:
		return NotFinite
	case integer:
		if len(s) < len("9223372036854775807") {
			return NoFault
		}
		if _, err := strconv.ParseInt(s, 10, 64); err != nil {
			return OutOfRange
		}
	case decimal:
		if len(s) <= 308 { // 1e308 has 309 digits and is a double
			return NoFault
		}
		fallthrough
	case scientific:
		if v, _ := strconv.ParseFloat(s, 64); math.IsInf(v, 0) {
			return OutOfRange
		}
	}
	return NoFault
}
