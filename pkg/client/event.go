package client

import (
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"time"

	"sluice/pkg/schema"
)

// Exposure says that a unit was given a variant of an experiment. Experiment,
// Variant and UnitID are required.
type Exposure struct {
	Experiment string
	Variant    string
	UnitID     string
	UnitType   string    // empty: user
	Time       time.Time // zero: now. Kept to the millisecond
	Rule       string    // what in the experiment's configuration decided
	Reason     string    // why, in the flag system's words
	ID         string    // event id; empty: a random UUID
	// Attributes are strings, bools and numbers. Anything else is sent as its text
	// (fmt.Sprint), nil not at all. The map is read before Exposure returns.
	Attributes map[string]any
}

// Event is something else a unit did: what an experiment's outcome is measured by.
// Name and UnitID are required.
type Event struct {
	Name       string // sluice.dropped is the Logger's own
	UnitID     string
	UnitType   string    // empty: user
	Value      *float64  // nil, NaN or infinite: none
	Time       time.Time // zero: now. Kept to the millisecond
	ID         string    // event id; empty: a random UUID
	Attributes map[string]any
}

// droppedName is the name of the events that report what was dropped, clientUnit
// their unit type.
const (
	droppedName = "sluice.dropped"
	clientUnit  = "client"
)

func (e *Exposure) missing() string {
	switch {
	case e.Experiment == "":
		return "Experiment"
	case e.Variant == "":
		return "Variant"
	case e.UnitID == "":
		return "UnitID"
	}
	return ""
}

func (e *Event) missing() string {
	switch {
	case e.Name == "":
		return "Name"
	case e.UnitID == "":
		return "UnitID"
	}
	return ""
}

// append writes the exposure as the native API takes it: the one and only time, so
// that every attempt sends the same.
func (e *Exposure) append(dst []byte) []byte {
	dst = append(dst, `{"experiment":`...)
	dst = schema.AppendQuoted(dst, e.Experiment)
	dst = append(dst, `,"variant":`...)
	dst = schema.AppendQuoted(dst, e.Variant)
	dst = appendRest(dst, e.UnitType, e.UnitID, e.Time, e.ID)
	dst = appendField(dst, `,"rule":`, e.Rule)
	dst = appendField(dst, `,"reason":`, e.Reason)
	dst = appendAttributes(dst, e.Attributes)
	return append(dst, '}')
}

func (e *Event) append(dst []byte) []byte {
	dst = append(dst, `{"kind":"event","name":`...)
	dst = schema.AppendQuoted(dst, e.Name)
	dst = appendRest(dst, e.UnitType, e.UnitID, e.Time, e.ID)
	if e.Value != nil && !math.IsNaN(*e.Value) && !math.IsInf(*e.Value, 0) {
		dst = append(dst, `,"value":`...)
		dst = appendFloat(dst, *e.Value, 64)
	}
	dst = appendAttributes(dst, e.Attributes)
	return append(dst, '}')
}

func appendField(dst []byte, name, value string) []byte {
	if value == "" {
		return dst
	}
	return schema.AppendQuoted(append(dst, name...), value)
}

func appendRest(dst []byte, unitType, unitID string, at time.Time, id string) []byte {
	dst = appendField(dst, `,"unit_type":`, unitType)
	dst = append(dst, `,"unit_id":`...)
	dst = schema.AppendQuoted(dst, unitID)
	if at.IsZero() {
		at = time.Now()
	}
	dst = append(dst, `,"time":`...)
	dst = strconv.AppendInt(dst, at.UnixMilli(), 10)
	dst = append(dst, `,"event_id":`...)
	if id != "" {
		return schema.AppendQuoted(dst, id)
	}
	dst = append(dst, '"')
	// Unique, not secret: ChaCha8, seeded by the operating system.
	dst = appendUUID(dst, rand.Uint64(), rand.Uint64(), 4)
	return append(dst, '"')
}

// appendUUID writes 122 of the 128 bits as a UUID of a version (RFC 9562).
func appendUUID(dst []byte, high, low uint64, version byte) []byte {
	var b [16]byte
	for i := range 8 {
		b[i], b[8+i] = byte(high>>(56-8*i)), byte(low>>(56-8*i))
	}
	b[6] = b[6]&0x0f | version<<4
	b[8] = b[8]&0x3f | 0x80
	dst = hex.AppendEncode(dst, b[:4])
	dst = hex.AppendEncode(append(dst, '-'), b[4:6])
	dst = hex.AppendEncode(append(dst, '-'), b[6:8])
	dst = hex.AppendEncode(append(dst, '-'), b[8:10])
	return hex.AppendEncode(append(dst, '-'), b[10:])
}

func appendAttributes(dst []byte, attributes map[string]any) []byte {
	sep := `,"attributes":{`
	for k, v := range attributes {
		if v == nil {
			continue
		}
		dst = append(dst, sep...)
		dst = schema.AppendQuoted(dst, k)
		dst = append(dst, ':')
		dst = appendValue(dst, v)
		sep = ","
	}
	if sep == "," {
		dst = append(dst, '}')
	}
	return dst
}

func appendValue(dst []byte, v any) []byte {
	switch v := v.(type) {
	case string:
		return schema.AppendQuoted(dst, v)
	case bool:
		return strconv.AppendBool(dst, v)
	case int:
		return strconv.AppendInt(dst, int64(v), 10)
	case int8:
		return strconv.AppendInt(dst, int64(v), 10)
	case int16:
		return strconv.AppendInt(dst, int64(v), 10)
	case int32:
		return strconv.AppendInt(dst, int64(v), 10)
	case int64:
		return strconv.AppendInt(dst, v, 10)
	case uint:
		return strconv.AppendUint(dst, uint64(v), 10)
	case uint8:
		return strconv.AppendUint(dst, uint64(v), 10)
	case uint16:
		return strconv.AppendUint(dst, uint64(v), 10)
	case uint32:
		return strconv.AppendUint(dst, uint64(v), 10)
	case uint64:
		return strconv.AppendUint(dst, v, 10)
	case float32:
		if f := float64(v); !math.IsNaN(f) && !math.IsInf(f, 0) {
			return appendFloat(dst, f, 32)
		}
	case float64:
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			return appendFloat(dst, v, 64)
		}
	}
	return schema.AppendQuoted(dst, fmt.Sprint(v))
}

// appendFloat writes a finite number without a loss.
func appendFloat(dst []byte, f float64, bits int) []byte {
	return strconv.AppendFloat(dst, f, 'g', -1, bits)
}
