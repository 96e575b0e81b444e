package replay

import (
	"errors"
	"math"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"sluice/pkg/schema"
)

// protoNumber is the number of an event's field in proto/sluice/v1/batch.proto, 0
// for what is none.
func protoNumber(field string) protowire.Number {
	switch field {
	case "kind":
		return 1
	case "experiment":
		return 2
	case "variant":
		return 3
	case "unit_id":
		return 4
	case "unit_type":
		return 5
	case "time":
		return 6
	case "rule":
		return 7
	case "reason":
		return 8
	case "event_id":
		return 9
	case attributesField:
		return 10
	case "name":
		return 11
	case "value":
		return 12
	}
	return 0
}

// batchEvents is the field of a batch that holds its events.
const batchEvents protowire.Number = 1

var errNotProto = errors.New("it is not protobuf")

// inProto repairs an event that came as protobuf, before it is read. Every field of
// that number goes, since it may be what the event was refused for.
func (f *Fix) inProto(raw []byte) ([]byte, error) {
	num := protoNumber(f.field)
	if num == 0 {
		return nil, errors.New("body. repairs JSON, and it is protobuf")
	}
	var out []byte
	for len(raw) > 0 {
		n, typ, tag := protowire.ConsumeTag(raw)
		if tag < 0 {
			return nil, errNotProto
		}
		size := protowire.ConsumeFieldValue(n, typ, raw[tag:])
		if size < 0 {
			return nil, errNotProto
		}
		if n != num || f.field == attributesField && entryKey(typ, raw[tag:tag+size]) != f.key {
			out = append(out, raw[:tag+size]...)
		}
		raw = raw[tag+size:]
	}
	if f.value == "" {
		return out, nil
	}
	switch f.field {
	case "kind":
		out = protowire.AppendTag(out, num, protowire.VarintType)
		out = protowire.AppendVarint(out, uint64(kindOf(f.value)))
	case "time":
		us, _ := timeOf(f.value)
		out = protowire.AppendTag(out, num, protowire.VarintType)
		out = protowire.AppendVarint(out, uint64(us))
	case "value":
		v, _ := strconv.ParseFloat(f.value, 64)
		out = protowire.AppendTag(out, num, protowire.Fixed64Type)
		out = protowire.AppendFixed64(out, math.Float64bits(v))
	case attributesField:
		entry := protowire.AppendTag(nil, 1, protowire.BytesType)
		entry = protowire.AppendString(entry, f.key)
		entry = protowire.AppendTag(entry, 2, protowire.BytesType)
		entry = protowire.AppendString(entry, f.value)
		out = protowire.AppendTag(out, num, protowire.BytesType)
		out = protowire.AppendBytes(out, entry)
	default:
		out = protowire.AppendTag(out, num, protowire.BytesType)
		out = protowire.AppendString(out, f.value)
	}
	return out, nil
}

// entryKey is the key of one entry of a map, which is the content of a field.
func entryKey(typ protowire.Type, content []byte) (key string) {
	if typ != protowire.BytesType {
		return ""
	}
	b, _ := protowire.ConsumeBytes(content)
	for len(b) > 0 {
		n, t, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return key
		}
		size := protowire.ConsumeFieldValue(n, t, b[tag:])
		if size < 0 {
			return key
		}
		if n == 1 && t == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b[tag:])
			key = string(v)
		}
		b = b[tag+size:]
	}
	return key
}

// protoKind guesses the kind of an event that names none.
func protoKind(raw []byte) schema.Kind {
	kind := schema.KindExposure
	for len(raw) > 0 {
		n, typ, tag := protowire.ConsumeTag(raw)
		if tag < 0 {
			break
		}
		size := protowire.ConsumeFieldValue(n, typ, raw[tag:])
		if size < 0 {
			break
		}
		switch n {
		case protoNumber("experiment"), protoNumber("variant"):
			return schema.KindExposure
		case protoNumber("name"):
			kind = schema.KindEvent
		}
		raw = raw[tag+size:]
	}
	return kind
}

// protoBatch is a batch of one event.
func protoBatch(event []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, batchEvents, protowire.BytesType), event)
}
