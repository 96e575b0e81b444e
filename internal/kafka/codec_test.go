package kafka

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/pkg/batch"
)

// wire lays records out as a fetch would bring them: encoded, in one batch.
func wire(t testing.TB, records []batch.Record) (keys, values [][]byte, headers [][]kmsg.Header) {
	var e encoder
	set := e.encode(records, time.Now())
	var b kmsg.RecordBatch
	require.NoError(t, b.ReadFrom(set))
	assert.EqualValues(t, len(set)-12, b.Length)
	assert.EqualValues(t, 2, b.Magic)
	assert.Equal(t, crc32.Checksum(set[21:], castagnoli), uint32(b.CRC))
	assert.EqualValues(t, len(records), b.NumRecords)
	assert.EqualValues(t, len(records)-1, b.LastOffsetDelta)
	assert.EqualValues(t, -1, b.ProducerID)
	assert.EqualValues(t, -1, b.ProducerEpoch)
	assert.EqualValues(t, -1, b.FirstSequence)
	src, err := decompress(&b)
	require.NoError(t, err)
	for i := range records {
		length, used := binary.Varint(src)
		require.Positive(t, used)
		end := used + int(length)
		require.LessOrEqual(t, end, len(src))
		var rec kmsg.Record
		require.NoError(t, rec.ReadFrom(src[:end]))
		assert.EqualValues(t, i, rec.OffsetDelta)
		keys, values, headers = append(keys, rec.Key), append(values, rec.Value), append(headers, rec.Headers)
		src = src[end:]
	}
	assert.Empty(t, src)
	return keys, values, headers
}

// encode has records for kafka-go to lay out, compressed in other ways than ours.
func encode(t testing.TB, records []batch.Record) protocol.RecordReader {
	keys, values, headers := wire(t, records)
	out := make([]protocol.Record, len(keys))
	for i := range keys {
		out[i] = protocol.Record{Key: protocol.NewBytes(keys[i]), Value: protocol.NewBytes(values[i])}
		for _, h := range headers[i] {
			out[i].Headers = append(out[i].Headers, protocol.Header{Key: h.Key, Value: h.Value})
		}
	}
	return protocol.NewRecordReader(out...)
}

func TestCodecRoundTrip(t *testing.T) {
	records := []batch.Record{testRecord(0, []byte("value")), testRecord(1, nil), testRecord(2, []byte{0, 1, 2})}
	records[1].Traceparent, records[1].Path, records[1].ReceivedAt, records[1].Project = "", batch.Spool, time.Time{}, ""
	keys, values, headers := wire(t, records)
	require.Len(t, keys, len(records))
	for i := range records {
		var d batch.Delivery
		decode(&d, keys[i], values[i], headers[i])
		require.NoError(t, d.Bad)
		want := records[i]
		if want.Value == nil {
			want.Value = []byte{}
		}
		assert.Equal(t, want.BatchID.String(), string(keys[i]))
		assert.True(t, want.ReceivedAt.Equal(d.ReceivedAt))
		want.ReceivedAt, d.ReceivedAt = time.Time{}, time.Time{}
		assert.Equal(t, want, d.Record)
	}
}

func TestDecodeKeepsWhatItCanRead(t *testing.T) {
	keys, values, headers := wire(t, []batch.Record{testRecord(0, []byte("value"))})
	with := func(key, value string) []kmsg.Header {
		out := append([]kmsg.Header(nil), headers[0]...)
		return append(out, kmsg.Header{Key: key, Value: []byte(value)})
	}
	without := func(key string) []kmsg.Header {
		var out []kmsg.Header
		for _, h := range headers[0] {
			if h.Key != key {
				out = append(out, h)
			}
		}
		return out
	}
	for name, tt := range map[string]struct {
		key     []byte
		headers []kmsg.Header
		bad     string
	}{
		"fine":             {keys[0], headers[0], ""},
		"unknown header":   {keys[0], with("x", "y"), ""},
		"other type":       {keys[0], with("content-type", "text/plain"), ""},
		"last one counts":  {keys[0], with("seq", "1"), ""},
		"no trace":         {keys[0], without("traceparent"), ""},
		"no receive time":  {keys[0], without("received-at"), ""},
		"no key":           {nil, headers[0], "key"},
		"bad key":          {[]byte("x"), headers[0], "key"},
		"no project":       {keys[0], without("project"), "project: missing"},
		"no collector":     {keys[0], without("collector"), "collector: missing"},
		"no epoch":         {keys[0], without("epoch"), "epoch: missing"},
		"no dedup id":      {keys[0], without("dedup-id"), "dedup-id: missing"},
		"no digest":        {keys[0], without("digest"), "digest: missing"},
		"no path":          {keys[0], without("path"), "path: missing"},
		"negative seq":     {keys[0], with("seq", "-1"), "seq"},
		"seq over 64 bits": {keys[0], with("seq", "18446744073709551616"), "seq"},
		"bad epoch":        {keys[0], with("epoch", ""), "epoch"},
		"bad digest":       {keys[0], with("digest", "zz"), "digest"},
		"bad path":         {keys[0], with("path", "mail"), "path"},
		"far future":       {keys[0], with("received-at", "253402300800000000"), "received-at"},
	} {
		t.Run(name, func(t *testing.T) {
			d := batch.Delivery{Offset: 7}
			decode(&d, tt.key, values[0], tt.headers)
			assert.Equal(t, "value", string(d.Value))
			assert.Equal(t, batch.ForKey("c", "1"), orID(d.Collector, batch.ForKey("c", "1"), name == "no collector"))
			if tt.bad == "" {
				assert.NoError(t, d.Bad)
				return
			}
			require.ErrorContains(t, d.Bad, tt.bad)
			assert.ErrorContains(t, d.Bad, "record 7")
			assert.Equal(t, int64(7), d.Offset)
		})
	}
}

func orID(got, other batch.ID, use bool) batch.ID {
	if use {
		return other
	}
	return got
}

func TestPartitionIsJavas(t *testing.T) {
	numbers := make([]int, 12)
	for i := range numbers {
		numbers[i] = i
	}
	// From org.apache.kafka.common.utils.Utils: toPositive(murmur2(key)) % 12.
	for id, want := range javaPartitions {
		parsed, err := batch.ParseID(id)
		require.NoError(t, err)
		assert.Equal(t, want, partitionOf(parsed, numbers), id)
	}
}

// Keys of every length, against kafka-go's.
func TestMurmur2(t *testing.T) {
	numbers := make([]int, 1<<20)
	for i := range numbers {
		numbers[i] = i
	}
	b := kafkago.Murmur2Balancer{Consistent: true}
	for n := range 64 {
		key := []byte(strings.Repeat("\xff7a\x80", 16))[:n]
		want := b.Balance(kafkago.Message{Key: key}, numbers...)
		assert.Equal(t, want, int(murmur2(key)&math.MaxInt32)%len(numbers), n)
	}
}

func FuzzDecode(f *testing.F) {
	keys, values, headers := wire(f, []batch.Record{testRecord(0, []byte("value"))})
	for _, h := range headers[0] {
		f.Add(keys[0], values[0], h.Key, h.Value)
	}
	f.Fuzz(func(t *testing.T, key, value []byte, name string, text []byte) {
		d := batch.Delivery{Offset: 1}
		decode(&d, key, value, append(headers[0], kmsg.Header{Key: name, Value: text}))
		if !bytes.Equal(d.Value, value) {
			t.Fatal("the value changed")
		}
		if d.Bad != nil {
			if len(d.Bad.Error()) > 2000 {
				t.Fatalf("an error of %d bytes", len(d.Bad.Error()))
			}
			return
		}
		// What was read without complaint is written the same.
		_, _, again := wire(t, []batch.Record{d.Record})
		var e batch.Delivery
		decode(&e, []byte(d.BatchID.String()), value, again[0])
		if e.Bad != nil {
			t.Fatal(e.Bad)
		}
		e.Value, d.Value = nil, nil
		assert.Equal(t, d.Record, e.Record)
	})
}

var javaPartitions = map[string]int{
	"00000000-0000-8000-8000-000000000000": 9,
	"a3bb189e-8bf9-8888-9912-ace4e6543002": 10,
	"6ba7b810-9dad-81d1-80b4-00c04fd430c8": 10,
	"ffffffff-ffff-8fff-bfff-ffffffffffff": 8,
	"018f2a3c-1b2d-8e4f-9a5b-0c1d2e3f4a5b": 8,
	"7d444840-9dc0-81d1-b245-5ffdce74fad2": 4,
}
