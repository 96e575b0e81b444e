package jsonscan

import "strconv"

// Kind is the kind of a JSON value.
type Kind uint8

// The kinds. None means that there is no value: the input ended, or there was a
// syntax error.
const (
	None Kind = iota
	Null
	Bool
	Number
	String
	Array
	Object
)

// Fault is what is wrong with content whose syntax is right.
type Fault uint8

// The faults.
const (
	NoFault       Fault = iota
	InvalidUTF8         // a string is not UTF-8
	LoneSurrogate       // half of a surrogate pair
	NUL                 // U+0000 in a string
	NotFinite           // NaN, Infinity or -Infinity
	OutOfRange          // an integer outside 64 bits (signed), or a number too large for a double
	WrongType           // a value of another kind than was asked for
)

// String says what is wrong, in words that fit after "a string with …".
func (f Fault) String() string {
	switch f {
	case NoFault:
		return "no fault"
	case InvalidUTF8:
		return "invalid UTF-8"
	case LoneSurrogate:
		return "a lone surrogate"
	case NUL:
		return "a NUL character"
	case NotFinite:
		return "a number that is not finite"
	case OutOfRange:
		return "a number out of range"
	}
	return "a value of the wrong type"
}

// Error is a syntax error. Its text holds nothing of the input.
type Error struct {
	Offset  int // of the byte at fault, from 0
	Reason  string
	TooDeep bool // correct so far, but nested deeper than allowed
}

func (e *Error) Error() string {
	return e.Reason + " at offset " + strconv.Itoa(e.Offset)
}
