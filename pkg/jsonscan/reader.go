// Package jsonscan reads JSON from a complete body in one pass, without
// reflection and, where it can, without allocating.
//
// It tells two kinds of error apart. A syntax error means that nothing after it
// can be trusted: it ends the reading of the whole body (Err). A fault is wrong
// content in a place whose end is known (a string that is not UTF-8, a number
// that no double holds): the reader notes it (Fault) and goes on, so that it
// costs one element of an array and not its neighbours.
//
// The grammar is RFC 8259, strictly: one value, nothing after it, no comments,
// no leading zeros, no control characters in strings. Beyond the grammar, lone
// surrogates and NUL in strings are faults, since neither survives in other
// systems. NaN, Infinity and -Infinity, which some encoders write for numbers
// they should have refused, are faults and not syntax errors.
//
// Strings without escapes alias the body (unsafe.String), the others share
// memory the Reader allocates: both live on after the Reader, the former only
// as long as the body is neither changed nor used again.
package jsonscan

import (
	"bytes"
	"strconv"
	"unsafe"
)

// MaxDepth is the highest depth limit a Reader can have.
const MaxDepth = 64

// Reader reads one JSON text. Values are read in the order of the text: see what
// comes next with Kind, then read it with the method that belongs to it, or Skip
// it. Containers are walked like this:
//
//	if r.Object() {
//		for r.More() {
//			switch r.Key() {
//			case "name":
//				name = r.Text()
//			default:
//				r.Skip()
//			}
//		}
//	}
//
// Every time More returns true, exactly one value must be read (in an object
// after its Key). After a syntax error all methods return zero values and More
// returns false, so loops end by themselves; look at Err, or End, then.
//
// A method that is asked for another kind of value than comes next skips that
// value and notes WrongType. Faults do not stop anything: the first one since
// ClearFault is kept until asked for.
//
// A Reader is not safe for concurrent use. The zero Reader is an empty input.
type Reader struct {
	buf      []byte
	pos      int
	nesting  uint64 // one bit for each open container, innermost lowest: 1 is an object
	depth    int
	maxDepth int
	first    bool // a container was entered and nothing of it read
	fault    Fault
	err      *Error
	arena    []byte // memory of strings with escapes
}

// NewReader returns a Reader of body. Values nested deeper than maxDepth (1 to
// MaxDepth; a bare array of numbers has depth 1) are a syntax error.
func NewReader(body []byte, maxDepth int) *Reader {
	r := new(Reader)
	r.Reset(body, maxDepth)
	return r
}

// Reset makes r read body from its start. Strings read before stay valid.
func (r *Reader) Reset(body []byte, maxDepth int) {
	*r = Reader{buf: body, maxDepth: min(maxDepth, MaxDepth), arena: r.arena}
}

// Err returns the syntax error that ended the reading, an *Error, or nil.
func (r *Reader) Err() error {
	if r.err == nil {
		return nil // not a nil *Error in an error
	}
	return r.err
}

// End checks that nothing follows but white space, and returns the first syntax
// error, an *Error, or nil. Call it when the outermost value has been read.
func (r *Reader) End() error {
	r.space()
	if r.err == nil && (r.pos < len(r.buf) || r.depth > 0) {
		r.fail("something after the value")
	}
	return r.Err()
}

// Fault returns the first fault since the last ClearFault.
func (r *Reader) Fault() Fault { return r.fault }

// ClearFault forgets a fault.
func (r *Reader) ClearFault() { r.fault = NoFault }

// Offset is how many bytes have been read. Directly after Kind it is where the
// next value starts, directly after a value was read, where that ended.
func (r *Reader) Offset() int { return r.pos }

// Since returns the bytes from an earlier Offset up to the present one: those of
// a value, if it is called directly after it was read. They alias the body. It
// returns nil after a syntax error.
func (r *Reader) Since(offset int) []byte {
	if r.err != nil {
		return nil
	}
	return r.buf[offset:r.pos:r.pos]
}

// Mark is a place in the input to come back to.
type Mark struct {
	pos, depth int
	nesting    uint64
	first      bool
}

// Mark returns the present place.
func (r *Reader) Mark() Mark { return Mark{r.pos, r.depth, r.nesting, r.first} }

// Rewind goes back to a place of the same input, for instance to the start of an
// element that turned out to be bad, to Skip it as a whole. A fault stays until
// cleared; after a syntax error Rewind does nothing.
func (r *Reader) Rewind(m Mark) {
	if r.err == nil {
		r.pos, r.depth, r.nesting, r.first = m.pos, m.depth, m.nesting, m.first
	}
}

// Kind returns the kind of the next value without reading it.
func (r *Reader) Kind() Kind {
	if r.pos < len(r.buf) {
		if k := kinds[r.buf[r.pos]]; k != None {
			return k
		}
	}
	return r.kindBehindSpace()
}

func (r *Reader) kindBehindSpace() Kind {
	r.space()
	if r.pos < len(r.buf) {
		if k := kinds[r.buf[r.pos]]; k != None {
			return k
		}
		r.fail("want a value")
		return None
	}
	r.fail("the text ends where a value should be")
	return None
}

// kinds tells the kind of a value by its first byte.
var kinds = [256]Kind{
	'n': Null, 't': Bool, 'f': Bool, '"': String, '[': Array, '{': Object, '-': Number,
	'0': Number, '1': Number, '2': Number, '3': Number, '4': Number,
	'5': Number, '6': Number, '7': Number, '8': Number, '9': Number,
	'N': Number, 'I': Number, // NaN, Infinity
}

// Object enters the next value if it is an object.
func (r *Reader) Object() bool {
	if r.Kind() != Object {
		r.mismatch()
		return false
	}
	return r.enter(1)
}

// Array enters the next value if it is an array.
func (r *Reader) Array() bool {
	if r.Kind() != Array {
		r.mismatch()
		return false
	}
	return r.enter(0)
}

func (r *Reader) enter(object uint64) bool {
	if r.depth >= r.maxDepth {
		r.fail("nested too deeply")
		r.err.TooDeep = true
		return false
	}
	r.pos++
	r.depth++
	r.nesting = r.nesting<<1 | object
	r.first = true
	return true
}

// More reports whether the container entered last has another element, and
// leaves it when it has not.
func (r *Reader) More() bool {
	r.space()
	if r.pos >= len(r.buf) || r.depth == 0 {
		r.fail("the text ends inside an array or object")
		return false
	}
	first := r.first
	r.first = false
	end := byte(']')
	if r.nesting&1 != 0 {
		end = '}'
	}
	switch c := r.buf[r.pos]; {
	case c == end:
		r.pos++
		r.depth--
		r.nesting >>= 1
		return false
	case first:
		return true
	case c == ',':
		r.pos++
		return true
	}
	r.fail("want a comma or the end of the array or object")
	return false
}

// Key reads the name of the next member of an object.
func (r *Reader) Key() string { return r.key(true) }

func (r *Reader) key(keep bool) string {
	r.space()
	if r.pos >= len(r.buf) || r.buf[r.pos] != '"' {
		r.fail("want a string as the name of a member")
		return ""
	}
	s := r.scanString(keep)
	if r.pos < len(r.buf) && r.buf[r.pos] == ':' {
		r.pos++
		return s
	}
	r.space()
	if r.pos >= len(r.buf) || r.buf[r.pos] != ':' {
		r.fail("want a colon")
		return ""
	}
	r.pos++
	return s
}

// Again reads what comes next if it is, byte for byte, what was read before: the
// bytes that Since returned for one name of a member, white space and colon included.
// Objects of one array mostly have the same names in the same order, and to compare
// them takes less time than to read them. After false nothing was read.
func (r *Reader) Again(raw []byte) bool {
	if !bytes.HasPrefix(r.buf[r.pos:], raw) {
		return false
	}
	r.pos += len(raw)
	return true
}

// Text reads a string.
func (r *Reader) Text() string {
	if r.Kind() != String {
		r.mismatch()
		return ""
	}
	return r.scanString(true)
}

// Null reads a null if one comes next, and reports whether it did.
func (r *Reader) Null() bool {
	if r.Kind() != Null {
		return false
	}
	return r.literal("null")
}

// Bool reads a truth value.
func (r *Reader) Bool() bool {
	if r.Kind() != Bool {
		r.mismatch()
		return false
	}
	if r.buf[r.pos] == 't' {
		return r.literal("true")
	}
	r.literal("false")
	return false
}

// Number reads a number and returns its text.
func (r *Reader) Number() string {
	if r.Kind() != Number {
		r.mismatch()
		return ""
	}
	s, shape := r.scanNumber()
	if f := inRange(s, shape); f != NoFault {
		r.note(f)
		return ""
	}
	return s
}

// Float reads a number as a double.
func (r *Reader) Float() float64 {
	if r.Kind() != Number {
		r.mismatch()
		return 0
	}
	s, shape := r.scanNumber()
	if f := inRange(s, shape); f != NoFault || s == "" {
		r.note(f)
		return 0
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		r.note(OutOfRange)
		return 0
	}
	return v
}

// Int reads an integer. One that is written with a fraction or an exponent
// counts as WrongType.
func (r *Reader) Int() int64 {
	if r.Kind() != Number {
		r.mismatch()
		return 0
	}
	s, shape := r.scanNumber()
	switch {
	case shape == broken:
		return 0
	case shape == notFinite:
		r.note(NotFinite)
		return 0
	case shape != integer:
		r.note(WrongType)
		return 0
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		r.note(OutOfRange)
		return 0
	}
	return v
}

// Scalar reads a string, number, truth value or null and returns its kind and
// its text: that of the string, "" for null, and the JSON text of the others.
// Arrays and objects are the wrong type.
func (r *Reader) Scalar() (Kind, string) {
	switch k := r.Kind(); k {
	case String:
		return k, r.scanString(true)
	case Number:
		return k, r.Number()
	case Bool:
		if r.Bool() {
			return k, "true"
		}
		return k, "false"
	case Null:
		r.literal("null")
		return k, ""
	case None:
		return None, ""
	default:
		r.mismatch()
		return k, ""
	}
}

// Skip reads a value of any kind and returns its bytes, which alias the body.
// Strings are checked as if they had been asked for; of numbers only the syntax
// counts. It returns nil after a syntax error.
func (r *Reader) Skip() []byte {
	r.space()
	start := r.pos
	r.skip()
	return r.Since(start)
}

func (r *Reader) skip() {
	switch r.Kind() {
	case String:
		r.scanString(false)
	case Number:
		if _, shape := r.scanNumber(); shape == notFinite {
			r.note(NotFinite)
		}
	case Null:
		r.literal("null")
	case Bool:
		r.Bool()
	case Array:
		if r.enter(0) {
			for r.More() {
				r.skip()
			}
		}
	case Object:
		if r.enter(1) {
			for r.More() {
				r.key(false)
				r.skip()
			}
		}
	}
}

// mismatch skips a value nobody wanted. Faults inside it come after its type.
func (r *Reader) mismatch() {
	if r.err == nil {
		r.note(WrongType)
		r.skip()
	}
}

func (r *Reader) note(f Fault) {
	if r.fault == NoFault {
		r.fault = f
	}
}

// fail ends the reading. What was read last stays where it is; what comes next
// finds the end of the input.
func (r *Reader) fail(reason string) {
	if r.err == nil {
		r.err = &Error{Offset: r.pos, Reason: reason}
	}
	r.pos = len(r.buf)
}

// space passes over white space, of which there mostly is none.
func (r *Reader) space() {
	if r.pos < len(r.buf) && r.buf[r.pos] <= ' ' {
		r.allSpace()
	}
}

func (r *Reader) allSpace() {
	for r.pos < len(r.buf) {
		switch r.buf[r.pos] {
		case ' ', '\n', '\t', '\r':
			r.pos++
		default:
			return
		}
	}
}

func (r *Reader) literal(s string) bool {
	if len(r.buf)-r.pos < len(s) || string(r.buf[r.pos:r.pos+len(s)]) != s {
		r.fail("want " + s)
		return false
	}
	r.pos += len(s)
	return true
}

// piece is a part of the body as a string.
func (r *Reader) piece(from, to int) string {
	b := r.buf[from:to]
	return unsafe.String(unsafe.SliceData(b), len(b))
}
