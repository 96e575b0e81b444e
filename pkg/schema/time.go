package schema

import (
	"math"
	"strconv"
	"strings"
)

// ParseTime reads an RFC 3339 time of the years 0000 to 9999, with any offset,
// as microseconds since the Unix epoch. Further digits of a second are cut off.
// As that RFC allows, "t" and "z" may be small, a space may stand for the "T",
// and the second may be 60 (the next minute's first).
func ParseTime(s string) (us int64, ok bool) {
	if len(s) < len("2006-01-02T15:04:05Z") || s[4] != '-' || s[7] != '-' || s[13] != ':' || s[16] != ':' ||
		(s[10]|0x20 != 't' && s[10] != ' ') {
		return 0, false
	}
	century, year := two(s, 0), two(s, 2)
	month, day := two(s, 5), two(s, 8)
	hour, minute, second := two(s, 11), two(s, 14), two(s, 17)
	if century|year|month|day|hour|minute|second < 0 {
		return 0, false
	}
	year += 100 * century
	if month < 1 || month > 12 || day < 1 || day > daysIn(year, month) || hour > 23 || minute > 59 || second > 60 {
		return 0, false
	}
	i := len("2006-01-02T15:04:05")
	fraction := int64(0)
	if s[i] == '.' {
		i++
		start := i
		for scale := int64(100_000); i < len(s) && '0' <= s[i] && s[i] <= '9'; i++ {
			fraction += int64(s[i]-'0') * scale
			scale /= 10
		}
		if i == start || i == len(s) {
			return 0, false
		}
	}
	offset := 0 // minutes east
	switch rest := s[i:]; {
	case rest[0]|0x20 == 'z' && len(rest) == 1:
	case (rest[0] == '+' || rest[0] == '-') && len(rest) == len("+00:00") && rest[3] == ':':
		h, m := two(rest, 1), two(rest, 4)
		if h|m < 0 || h > 23 || m > 59 {
			return 0, false
		}
		if offset = h*60 + m; rest[0] == '-' {
			offset = -offset
		}
	default:
		return 0, false
	}
	minutes := int64(daysSinceEpoch(year, month, day))*24*60 + int64(hour*60+minute-offset)
	return (minutes*60+int64(second))*1_000_000 + fraction, true
}

// two is the number in the two digits at s[i:], or negative.
func two(s string, i int) int {
	a, b := s[i]-'0', s[i+1]-'0'
	if a > 9 || b > 9 {
		return -1
	}
	return int(a)*10 + int(b)
}

func daysIn(year, month int) int {
	switch month {
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	case 4, 6, 9, 11:
		return 30
	}
	return 31
}

// daysSinceEpoch counts the days from 1970-01-01 to a date of the Gregorian
// calendar, years 0 and later. The year is taken to begin in March, so that the
// leap day is its last and the months before it follow one formula: 153 days in
// every five months.
func daysSinceEpoch(year, month, day int) int {
	if month <= 2 {
		year--
		month += 12
	}
	year += 400 // no negative numbers to divide: January of the year 0 is in the year before
	return 365*year + year/4 - year/100 + year/400 + (153*(month-3)+2)/5 + day - 1 - (719_468 + 146_097)
}

// ParseEpochMillis reads a JSON number, milliseconds since the Unix epoch, as
// microseconds. Further digits are cut off; what does not fit becomes the
// nearest int64. ok is false for what is no number.
func ParseEpochMillis(s string) (us int64, ok bool) {
	digits := s
	negative := strings.HasPrefix(s, "-")
	if negative {
		digits = s[1:]
	}
	const most = math.MaxInt64 / 1000 // from here on there may be no room for the fraction
	v := int64(0)
	i := 0
	for ; i < len(digits) && '0' <= digits[i] && digits[i] <= '9'; i++ {
		if v = v*10 + int64(digits[i]-'0'); v >= most {
			return inexactMillis(s)
		}
	}
	if i == 0 {
		return 0, false
	}
	v *= 1000
	if i < len(digits) {
		if digits[i] != '.' || i+1 == len(digits) {
			return inexactMillis(s)
		}
		scale := int64(100)
		for i++; i < len(digits); i++ {
			if digits[i] < '0' || digits[i] > '9' {
				return inexactMillis(s)
			}
			v += int64(digits[i]-'0') * scale
			scale /= 10
		}
	}
	if negative {
		v = -v
	}
	return v, true
}

// inexactMillis reads numbers with an exponent, and those beyond all clocks.
func inexactMillis(s string) (int64, bool) {
	// ParseFloat knows numbers that JSON does not: hexadecimal, 1_000, Inf.
	if strings.Trim(s, "+-.0123456789eE") != "" {
		return 0, false
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil && !math.IsInf(v, 0) {
		return 0, false
	}
	switch v *= 1000; {
	case v >= math.MaxInt64: // as a double, that is 2⁶³
		return math.MaxInt64, true
	case v <= math.MinInt64:
		return math.MinInt64, true
	}
	return int64(v), true
}
