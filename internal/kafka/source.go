package kafka

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/s2"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// fetchGrace is how long after maxWait a broker's answer is waited for.
const fetchGrace = 10 * time.Second

// Source reads one topic. Safe for concurrent use; each call in flight uses a
// connection of its own to the partition's leader, and they are used again.
type Source struct {
	c     *Client
	k     *kafkago.Client
	topic string

	mu   sync.Mutex
	last map[int]amount // of each partition's last answer: how well its records compress
}

// NewSource returns a reader of a topic. It lives as long as the Client.
func (c *Client) NewSource(topic string) *Source {
	return &Source{c: c, k: c.open([]string{topic}), topic: topic, last: map[int]amount{}}
}

// Fetch returns a partition's records from offset on, in order and none before
// it, and the bounds of the log. Nothing new within maxWait is an empty slice.
// It never goes anywhere else by itself: an offset the log does not hold is
// batch.ErrOffsetGone.
//
// The offsets of two neighbours may differ by more than one, where the log has
// no record in between (compaction, markers of a transaction): what that means
// is the caller's to decide. Records of aborted transactions are in the log and
// are returned; nobody is supposed to write to the topic in a transaction.
//
// maxBytes bounds the records as they are in memory, decompressed, to within one
// record batch (1 MiB on the wire); a first record larger than that is returned
// all the same. The values refer to the answer's memory, which lives as long as
// one of them.
//
// A record batch that cannot be read (checksum, unknown compression) is an error
// for as long as it is in the log: nothing is passed over.
func (s *Source) Fetch(ctx context.Context, partition int, offset int64, maxBytes int, maxWait time.Duration) ([]batch.Delivery, batch.Bounds, error) {
	deadline := time.Now().Add(maxWait)
	deliveries, bounds, err := s.fetch(ctx, partition, offset, maxBytes, maxWait)
	if err != nil {
		return nil, bounds, s.c.classify(fmt.Errorf("fetch %s/%d from offset %d: %w", s.topic, partition, offset, err))
	}
	if len(deliveries) == 0 {
		// There may be something there, at once, that is not a record: without this
		// the caller would ask again and again without a pause.
		if left := time.Until(deadline); left > 0 && !retry.Sleep(ctx, left) {
			return nil, bounds, s.c.classify(ctx.Err())
		}
	}
	return deliveries, bounds, nil
}

func (s *Source) fetch(ctx context.Context, partition int, offset int64, maxBytes int, maxWait time.Duration) ([]batch.Delivery, batch.Bounds, error) {
	// The transport's reads end with a deadline, not with a cancelled context.
	ctx, cancel := context.WithTimeout(ctx, maxWait+fetchGrace)
	defer cancel()
	p := kmsg.NewFetchRequestTopicPartition()
	wire := s.wireBytes(partition, maxBytes)
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = int32(partition), offset, int32(wire)
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.Partitions = s.topic, append(t.Partitions, p)
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(11) // from 13 on topics go by id; kafka-go settles on 11 at most
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes = int32(maxWait.Milliseconds()), 1, int32(wire)
	req.Topics = append(req.Topics, t)
	m, err := s.k.Transport.RoundTrip(ctx, s.c.addr, &leaderRequest{
		rawRequest: rawRequest{body: req, clientID: s.c.cfg.ClientID}, topic: s.topic, partition: partition})
	if err != nil {
		return nil, batch.Bounds{}, err
	}
	res := m.(*rawResponse).body.(*kmsg.FetchResponse)
	if res.ErrorCode != 0 {
		return nil, batch.Bounds{}, kafkago.Error(res.ErrorCode)
	}
	if len(res.Topics) != 1 || len(res.Topics[0].Partitions) != 1 {
		return nil, batch.Bounds{}, fmt.Errorf("%w: %d topics", errResponse, len(res.Topics))
	}
	answer := &res.Topics[0].Partitions[0]
	bounds := batch.Bounds{Start: answer.LogStartOffset, End: answer.HighWatermark}
	if answer.ErrorCode != 0 {
		return nil, bounds, kafkago.Error(answer.ErrorCode)
	}
	deliveries, read, err := readBatches(answer.RecordBatches, partition, offset, maxBytes)
	s.learn(partition, read)
	return deliveries, bounds, err
}

// amount is what was read of an answer: as it was on the wire, and decompressed.
type amount struct{ wire, memory int }

// wireBytes is how much to ask a broker for, so that it comes to about maxBytes
// in memory: what is fetched beyond that is read again with the next fetch.
func (s *Source) wireBytes(partition, maxBytes int) int {
	const least = 64 << 10
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.last[partition]; r.memory > r.wire {
		maxBytes = int(float64(maxBytes) * float64(r.wire) / float64(r.memory))
	}
	return max(maxBytes, least)
}

func (s *Source) learn(partition int, read amount) {
	if read.wire == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last[partition] = read
}

// Bounds returns the first offset a partition still has and the one its next
// record will get.
func (s *Source) Bounds(ctx context.Context, partition int) (batch.Bounds, error) {
	res, err := s.k.ListOffsets(ctx, &kafkago.ListOffsetsRequest{Topics: map[string][]kafkago.OffsetRequest{
		s.topic: {kafkago.FirstOffsetOf(partition), kafkago.LastOffsetOf(partition)},
	}})
	what := fmt.Sprintf("read the bounds of %s/%d", s.topic, partition)
	if err != nil {
		return batch.Bounds{}, s.c.classify(fmt.Errorf("%s: %w", what, err))
	}
	for _, p := range res.Topics[s.topic] {
		switch {
		case p.Partition != partition:
		case p.Error != nil:
			return batch.Bounds{}, s.c.classify(fmt.Errorf("%s: %w", what, p.Error))
		case p.FirstOffset < 0 || p.LastOffset < p.FirstOffset:
			return batch.Bounds{}, s.c.classify(fmt.Errorf("%s: %w: %d to %d", what, errResponse, p.FirstOffset, p.LastOffset))
		default:
			return batch.Bounds{Start: p.FirstOffset, End: p.LastOffset}, nil
		}
	}
	return batch.Bounds{}, s.c.classify(fmt.Errorf("%s: %w", what, errResponse))
}

// Log is the id of the log that the topic is now, as Client.Log tells it. A
// broker is asked every time.
func (s *Source) Log(ctx context.Context) (string, error) { return s.c.logID(ctx, s.topic) }

// The layout of a record batch, format 2 (kafka.apache.org/documentation,
// "Record Batch"): its length counts from byte 12 on, its checksum from byte 21.
const (
	batchLengthEnd = 12
	batchCRCStart  = 21
	batchHeader    = 61

	attrCompression = 0x07
	attrAppendTime  = 0x08
	attrControl     = 0x20
)

var errBatch = errors.New("a record batch in the log cannot be read")

// readBatches reads the records from an offset on out of a fetch's record
// batches. A broker sends whole batches, so the first may begin earlier; the last
// may be cut short, and is left for the next fetch, as are those behind the one
// with which limit bytes, decompressed, have been read.
func readBatches(src []byte, partition int, offset int64, limit int) (out []batch.Delivery, read amount, err error) {
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	var b kmsg.RecordBatch
	first := true
	for len(src) >= batchLengthEnd && (first || read.memory < limit) {
		length := int64(int32(binary.BigEndian.Uint32(src[8:batchLengthEnd])))
		end := batchLengthEnd + length
		if end > int64(len(src)) && !first {
			break
		}
		if end < batchHeader || end > int64(len(src)) {
			return nil, read, fmt.Errorf("%w: %d bytes of %d", errBatch, len(src), end)
		}
		frame := src[:end]
		src, first = src[end:], false
		if magic := frame[16]; magic != 2 {
			return nil, read, fmt.Errorf("%w: format %d (2 is what Kafka has written since 0.11)", errBatch, magic)
		}
		if err := b.ReadFrom(frame); err != nil {
			return nil, read, fmt.Errorf("%w: %w", errBatch, err)
		}
		if uint32(b.CRC) != crc32.Checksum(frame[batchCRCStart:], castagnoli) {
			return nil, read, fmt.Errorf("%w: checksum of the batch at offset %d", errBatch, b.FirstOffset)
		}
		if b.Attributes&attrControl != 0 || b.FirstOffset+int64(b.LastOffsetDelta) < offset {
			continue
		}
		read.wire += len(frame)
		size := 0
		if out, size, err = readRecords(out, &b, partition, offset); err != nil {
			return nil, read, fmt.Errorf("%w: at offset %d: %w", errBatch, b.FirstOffset, err)
		}
		read.memory += size
	}
	return out, read, nil
}

func readRecords(out []batch.Delivery, b *kmsg.RecordBatch, partition int, offset int64) (_ []batch.Delivery, size int, err error) {
	src, err := decompress(b)
	if err != nil {
		return nil, 0, err
	}
	size = len(src)
	if n := int(b.NumRecords); n >= 0 && n <= len(src) {
		out = slices.Grow(out, n)
	}
	var rec kmsg.Record
	for i := range b.NumRecords {
		length, used := binary.Varint(src)
		if used <= 0 || length < 0 || length > int64(len(src)-used) {
			return nil, 0, fmt.Errorf("record %d of %d is cut short", i, b.NumRecords)
		}
		end := used + int(length)
		// Unsafe: the headers' keys refer to src. decode keeps none of them.
		if err := rec.UnsafeReadFrom(src[:end]); err != nil {
			return nil, 0, fmt.Errorf("record %d of %d: %w", i, b.NumRecords, err)
		}
		src = src[end:]
		at := b.FirstOffset + int64(rec.OffsetDelta)
		if at < offset {
			continue
		}
		ms := b.FirstTimestamp + rec.TimestampDelta64
		if b.Attributes&attrAppendTime != 0 {
			// The broker stamps the batch and leaves the records' own times alone.
			ms = b.MaxTimestamp
		}
		d := batch.Delivery{Partition: partition, Offset: at, AppendAt: time.UnixMilli(ms)}
		decode(&d, rec.Key, rec.Value, rec.Headers)
		out = append(out, d)
	}
	return out, size, nil
}

func decompress(b *kmsg.RecordBatch) ([]byte, error) {
	c := compress.Compression(b.Attributes & attrCompression)
	if c == compress.None {
		return b.Records, nil
	}
	if c == compress.Snappy {
		if plain, err := unsnap(b.Records); err == nil {
			return plain, nil
		} // else as any other codec, which says what is wrong
	}
	codec := c.Codec()
	if codec == nil {
		return nil, fmt.Errorf("compression %d is unknown", c)
	}
	r := codec.NewReader(bytes.NewReader(b.Records))
	defer r.Close()
	var buf bytes.Buffer
	buf.Grow(3 * len(b.Records))
	if _, err := io.Copy(&buf, io.LimitReader(r, maxResponse+1)); err != nil {
		return nil, fmt.Errorf("decompress %s: %w", c, err)
	}
	if buf.Len() > maxResponse {
		return nil, fmt.Errorf("more than %d bytes when decompressed", maxResponse)
	}
	// What is read is kept by the records made of it, for as long as a block grows:
	// the room a growing buffer has left would be kept with it.
	return bytes.Clone(buf.Bytes()), nil
}

// unsnap decompresses snappy, in blocks behind the head that Kafka's Java clients
// write or as one block, into memory of just the right size.
func unsnap(src []byte) ([]byte, error) {
	block := func() ([]byte, error) { one := src; src = nil; return one, nil }
	if rest, ok := bytes.CutPrefix(src, []byte(xerial[:8])); ok && len(rest) >= 8 {
		src = rest[8:] // two versions
		block = func() ([]byte, error) {
			if len(src) < 4 || uint64(binary.BigEndian.Uint32(src)) > uint64(len(src)-4) {
				return nil, errBatch
			}
			n := binary.BigEndian.Uint32(src)
			one := src[4 : 4+n]
			src = src[4+n:]
			return one, nil
		}
	}
	start, size := src, 0
	for len(src) > 0 {
		one, err := block()
		if err != nil {
			return nil, err
		}
		n, err := s2.DecodedLen(one)
		if err != nil {
			return nil, err
		}
		if size += n; size > maxResponse {
			return nil, fmt.Errorf("more than %d bytes when decompressed", maxResponse)
		}
	}
	out := make([]byte, size)
	src, size = start, 0
	for len(src) > 0 {
		one, err := block()
		if err != nil {
			return nil, err
		}
		plain, err := s2.Decode(out[size:], one)
		if err != nil {
			return nil, err
		}
		size += len(plain)
	}
	return out, nil
}
