package schema

import (
	"math"
	"strconv"
	"time"
	"unicode/utf8"
)

// AppendEventJSON appends the event as the native API takes it, so that what is
// kept in dead_letters can be read by a person and sent again. A time and an id
// are written where the event has them, of its own or from Resolve.
func AppendEventJSON(dst []byte, e *Event) []byte {
	return appendEventJSON(dst, e, math.MaxInt)
}

// appendEventJSON stops adding attributes once what it wrote is over limit.
func appendEventJSON(dst []byte, e *Event, limit int) []byte {
	start := len(dst)
	dst = append(dst, `{"kind":"`...)
	dst = append(dst, e.Kind.String()...)
	dst = append(dst, '"')
	for _, f := range [...]struct{ name, value string }{
		{"experiment", e.Experiment}, {"variant", e.Variant}, {"name", e.Name},
		{"unit_type", e.UnitType}, {"unit_id", e.UnitID}, {"rule", e.Rule}, {"reason", e.Reason},
	} {
		if f.value != "" {
			dst = append(dst, `,"`...)
			dst = append(dst, f.name...)
			dst = append(dst, `":`...)
			dst = AppendQuoted(dst, f.value)
		}
	}
	if e.HasValue && !math.IsNaN(e.Value) && !math.IsInf(e.Value, 0) {
		dst = append(dst, `,"value":`...)
		dst = strconv.AppendFloat(dst, e.Value, 'g', -1, 64)
	}
	if e.HasTime || e.Time != 0 {
		dst = append(dst, `,"time":`...)
		if firstSecond*1e6 <= e.Time && e.Time < endSecond*1e6 {
			dst = append(dst, '"')
			dst = time.UnixMicro(e.Time).UTC().AppendFormat(dst, "2006-01-02T15:04:05.999999Z")
			dst = append(dst, '"')
		} else { // RFC 3339 has four digits for the year
			dst = strconv.AppendInt(dst, e.Time/1000, 10)
		}
	}
	if e.ClientID != "" {
		dst = append(dst, `,"event_id":`...)
		dst = AppendQuoted(dst, e.ClientID)
	} else if !e.ID.IsZero() {
		dst = append(dst, `,"event_id":"`...)
		dst = append(dst, e.ID.String()...)
		dst = append(dst, '"')
	}
	if len(e.Attributes) > 0 {
		dst = append(dst, `,"attributes":{`...)
		for i, a := range e.Attributes {
			if len(dst)-start > limit {
				break
			}
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = AppendQuoted(dst, a.Key)
			dst = append(dst, ':')
			dst = AppendQuoted(dst, a.Value)
		}
		dst = append(dst, '}')
	}
	return append(dst, '}')
}

// The seconds since the Unix epoch at which the years 0000 and 10000 begin.
const (
	firstSecond = -62_167_219_200
	endSecond   = 253_402_300_800
)

// AppendQuoted appends s as a JSON string. Bytes that are not UTF-8 become the
// replacement character.
func AppendQuoted(dst []byte, s string) []byte {
	const hexDigits = "0123456789abcdef"
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += n
			continue
		}
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < 0x20 || c == 0x7f:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		default:
			dst = append(dst, c)
		}
		i++
	}
	return append(dst, '"')
}
