package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ledgerFetchBytes is how much is asked for at once: a record or two at their
// largest, thousands as they usually are.
const ledgerFetchBytes = 4 << 20

// LedgerTopic is the compacted topic that collectors report to, with what a
// reporter must know of the batches topic. Its one partition gives its records one
// order. Safe for concurrent use.
type LedgerTopic struct {
	c       *Client
	k       *kafkago.Client
	topic   string
	batches string
}

// LedgerEntry is one record of the ledger topic.
type LedgerEntry struct {
	Offset int64
	At     time.Time // the broker's
	Key    string
	Value  []byte // nil: the key was deleted
}

// NewLedger returns the ledger topic of a prefix. It lives as long as the Client.
func (c *Client) NewLedger(prefix string) *LedgerTopic {
	names := Topics(prefix)
	return &LedgerTopic{c: c, k: c.open([]string{names.Ledger, names.Batches}), topic: names.Ledger, batches: names.Batches}
}

// Write appends a record and returns, once all in-sync replicas have it, the
// broker's time of it. It tries once, until ctx's deadline. After an error the
// record may be in the log all the same, now or later, also behind records that
// are written after it. A topic that takes its times from the writers is a
// Permanent error: they are worth nothing to a reader.
func (t *LedgerTopic) Write(ctx context.Context, key string, value []byte) (appendedAt time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, err := t.k.Produce(ctx, &kafkago.ProduceRequest{
		Topic:        t.topic,
		RequiredAcks: kafkago.RequireAll,
		Records:      kafkago.NewRecordReader(kafkago.Record{Key: protocol.NewBytes([]byte(key)), Value: protocol.NewBytes(notNil(value))}),
		Compression:  compression,
	})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return time.Time{}, t.c.classify(fmt.Errorf("write %s: %w", t.topic, err))
	}
	if res.LogAppendTime.IsZero() {
		return time.Time{}, permanentf("write %s: its message.timestamp.type is not LogAppendTime", t.topic)
	}
	return res.LogAppendTime, nil
}

// notNil keeps a value from being written as a tombstone.
func notNil(value []byte) []byte {
	if value == nil {
		return []byte{}
	}
	return value
}

// ID is the id of the log that the ledger topic is now, as Client.Log tells it of
// the batches topic.
func (t *LedgerTopic) ID(ctx context.Context) (string, error) { return t.c.logID(ctx, t.topic) }

// Ends returns the id of the batches topic's log, as Client.Log tells it, and the
// offset that each of its partitions gives next. When it returns, whatever was
// acknowledged before the call, by whomever, lies below: every broker is asked for
// the topic's partitions, since one may not have heard yet of those that another
// one leads, and each leader for the end of its own, by its term of office, so
// that one that was deposed and has not heard of it does not answer for the log.
//
// It fails, in a way that is worth repeating, while a broker that is said to be
// there does not answer, a partition has no leader, or the topic is not there.
func (t *LedgerTopic) Ends(ctx context.Context) (log string, next []int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	log, next, err = t.ends(ctx)
	if err != nil {
		return "", nil, t.c.classify(fmt.Errorf("ask for the ends of %s: %w", t.batches, err))
	}
	return log, next, nil
}

func (t *LedgerTopic) ends(ctx context.Context) (string, []int64, error) {
	before, err := t.c.logID(ctx, t.batches)
	if err != nil {
		return "", nil, err
	}
	terms, err := t.leaders(ctx)
	if err != nil {
		return "", nil, err
	}
	next := make([]int64, len(terms))
	for p, term := range terms {
		if next[p], err = t.end(ctx, p, term); err != nil {
			return "", nil, fmt.Errorf("partition %d: %w", p, err)
		}
	}
	after, err := t.c.logID(ctx, t.batches)
	if err == nil && after != before {
		err = errors.New("the topic was deleted and created again meanwhile")
	}
	return before, next, err
}

// term is the time of one leader of a partition.
type term struct{ leader, epoch int32 }

// leaders asks every broker for the partitions of the batches topic. Of what they
// say of one partition the newest counts.
func (t *LedgerTopic) leaders(ctx context.Context) ([]term, error) {
	first, err := t.metadata(ctx, -1)
	if err != nil {
		return nil, err
	}
	terms, err := mergeTerms(nil, first)
	if err != nil {
		return nil, err
	}
	for _, b := range first.Brokers {
		m, err := t.metadata(ctx, b.NodeID)
		if err != nil {
			return nil, fmt.Errorf("broker %d: %w", b.NodeID, err)
		}
		if terms, err = mergeTerms(terms, m); err != nil {
			return nil, fmt.Errorf("broker %d: %w", b.NodeID, err)
		}
	}
	for p, term := range terms {
		if term.leader < 0 {
			return nil, fmt.Errorf("partition %d: %w", p, kafkago.LeaderNotAvailable)
		}
	}
	return terms, nil
}

// metadata asks one broker, or any with -1, for the batches topic.
func (t *LedgerTopic) metadata(ctx context.Context, broker int32) (*kmsg.MetadataResponse, error) {
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = kmsg.StringPtr(t.batches)
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(12)
	req.Topics = append(req.Topics, topic)
	raw := rawRequest{body: req, clientID: t.c.cfg.ClientID, ask: true}
	m, err := t.k.Transport.RoundTrip(ctx, t.c.addr, &brokerRequest{rawRequest: raw, id: broker})
	if err != nil {
		return nil, err
	}
	return m.(*rawResponse).body.(*kmsg.MetadataResponse), nil
}

func mergeTerms(terms []term, m *kmsg.MetadataResponse) ([]term, error) {
	if len(m.Topics) != 1 {
		return nil, fmt.Errorf("%w: %d topics", errResponse, len(m.Topics))
	}
	if code := m.Topics[0].ErrorCode; code != 0 {
		return nil, kafkago.Error(code)
	}
	partitions := m.Topics[0].Partitions
	for len(terms) < len(partitions) {
		terms = append(terms, term{-1, -1})
	}
	for _, p := range partitions {
		if p.Partition < 0 || int(p.Partition) >= len(terms) {
			return nil, fmt.Errorf("%w: partition %d of %d", errResponse, p.Partition, len(partitions))
		}
		if p.LeaderEpoch > terms[p.Partition].epoch {
			terms[p.Partition] = term{p.Leader, p.LeaderEpoch}
		}
	}
	if len(terms) == 0 {
		return nil, kafkago.UnknownTopicOrPartition
	}
	return terms, nil
}

// end asks a partition's leader for its end. From version 5 on a leader that is new
// in office says nothing before it knows how far its predecessor had come.
func (t *LedgerTopic) end(ctx context.Context, partition int, in term) (int64, error) {
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Partition, p.Timestamp, p.CurrentLeaderEpoch = int32(partition), kafkago.LastOffset, in.epoch
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic, rt.Partitions = t.batches, append(rt.Partitions, p)
	req := kmsg.NewPtrListOffsetsRequest()
	req.SetVersion(5)
	req.ReplicaID, req.Topics = -1, append(req.Topics, rt)
	m, err := t.k.Transport.RoundTrip(ctx, t.c.addr, &brokerRequest{
		rawRequest: rawRequest{body: req, clientID: t.c.cfg.ClientID}, id: in.leader})
	if err != nil {
		return 0, err
	}
	res := m.(*rawResponse).body.(*kmsg.ListOffsetsResponse)
	if len(res.Topics) != 1 || len(res.Topics[0].Partitions) != 1 || res.Version < 5 {
		return 0, fmt.Errorf("%w: %d topics in version %d", errResponse, len(res.Topics), res.Version)
	}
	answer := res.Topics[0].Partitions[0]
	if answer.ErrorCode != 0 {
		return 0, kafkago.Error(answer.ErrorCode)
	}
	if answer.Offset < 0 {
		return 0, fmt.Errorf("%w: offset %d", errResponse, answer.Offset)
	}
	return answer.Offset, nil
}

// brokerRequest is a rawRequest for one broker, or for any with a negative id.
type brokerRequest struct {
	rawRequest
	id int32
}

// Broker implements protocol.BrokerMessage.
func (r *brokerRequest) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	if r.id < 0 {
		return protocol.Broker{ID: -1}, nil
	}
	b, ok := cluster.Brokers[r.id]
	if !ok {
		return protocol.Broker{ID: -1}, kafkago.BrokerNotAvailable
	}
	return b, nil
}

// Read returns records from an offset on, in order, and where to go on; nothing
// new within maxWait is no record, and next may have moved all the same, over what
// compaction left empty.
//
// Offsets that are not in the log any more are passed over: those that compaction
// took out in between, and, where the log begins above from, all before it. The
// caller sees from the offsets that they are missing; of each key the newest record
// is there. An offset beyond the end is batch.ErrOffsetGone: it is another log.
//
// A record batch that cannot be read is an error for as long as it is in the log.
func (t *LedgerTopic) Read(ctx context.Context, from int64, maxWait time.Duration) (entries []LedgerEntry, next int64, err error) {
	deadline := time.Now().Add(maxWait)
	entries, next, err = t.read(ctx, from, maxWait)
	if errors.Is(err, kafkago.OffsetOutOfRange) {
		var start int64
		if start, err = t.start(ctx); err == nil {
			if from >= start {
				err = kafkago.OffsetOutOfRange
			} else {
				entries, next, err = t.read(ctx, start, max(0, time.Until(deadline)))
			}
		}
	}
	if err != nil {
		return nil, from, t.c.classify(fmt.Errorf("read %s from offset %d: %w", t.topic, from, err))
	}
	return entries, next, nil
}

// start is the first offset the log has.
func (t *LedgerTopic) start(ctx context.Context) (int64, error) {
	res, err := t.k.ListOffsets(ctx, &kafkago.ListOffsetsRequest{Topics: map[string][]kafkago.OffsetRequest{
		t.topic: {kafkago.FirstOffsetOf(0)},
	}})
	if err != nil {
		return 0, err
	}
	for _, p := range res.Topics[t.topic] {
		if p.Partition == 0 {
			return p.FirstOffset, p.Error
		}
	}
	return 0, errResponse
}

func (t *LedgerTopic) read(ctx context.Context, from int64, maxWait time.Duration) ([]LedgerEntry, int64, error) {
	// The transport's reads end with a deadline, not with a cancelled context.
	ctx, cancel := context.WithTimeout(ctx, maxWait+fetchGrace)
	defer cancel()
	p := kmsg.NewFetchRequestTopicPartition()
	p.FetchOffset, p.PartitionMaxBytes = from, ledgerFetchBytes
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic, rt.Partitions = t.topic, append(rt.Partitions, p)
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(11) // as Source does
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes = int32(maxWait.Milliseconds()), 1, ledgerFetchBytes
	req.Topics = append(req.Topics, rt)
	m, err := t.k.Transport.RoundTrip(ctx, t.c.addr, &leaderRequest{
		rawRequest: rawRequest{body: req, clientID: t.c.cfg.ClientID}, topic: t.topic})
	if err != nil {
		return nil, from, err
	}
	res := m.(*rawResponse).body.(*kmsg.FetchResponse)
	if res.ErrorCode != 0 {
		return nil, from, kafkago.Error(res.ErrorCode)
	}
	if len(res.Topics) != 1 || len(res.Topics[0].Partitions) != 1 {
		return nil, from, fmt.Errorf("%w: %d topics", errResponse, len(res.Topics))
	}
	answer := &res.Topics[0].Partitions[0]
	if answer.ErrorCode != 0 {
		return nil, from, kafkago.Error(answer.ErrorCode)
	}
	return readEntries(answer.RecordBatches, from)
}

// readEntries reads the records from an offset on out of a fetch's record batches,
// as readBatches does, and how far they go. A batch whose records compaction has
// taken out still says where it ended.
func readEntries(src []byte, from int64) (out []LedgerEntry, next int64, err error) {
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	next = from
	var b kmsg.RecordBatch
	for first := true; len(src) >= batchLengthEnd; first = false {
		end := batchLengthEnd + int64(int32(binary.BigEndian.Uint32(src[8:batchLengthEnd])))
		if end > int64(len(src)) && !first {
			break // cut short; it comes with the next fetch
		}
		if end < batchHeader || end > int64(len(src)) {
			return nil, from, fmt.Errorf("%w: %d bytes of %d", errBatch, len(src), end)
		}
		frame := src[:end]
		src = src[end:]
		if magic := frame[16]; magic != 2 {
			return nil, from, fmt.Errorf("%w: format %d (2 is what Kafka has written since 0.11)", errBatch, magic)
		}
		if err := b.ReadFrom(frame); err != nil {
			return nil, from, fmt.Errorf("%w: %w", errBatch, err)
		}
		if uint32(b.CRC) != crc32.Checksum(frame[batchCRCStart:], castagnoli) {
			return nil, from, fmt.Errorf("%w: checksum of the batch at offset %d", errBatch, b.FirstOffset)
		}
		last := b.FirstOffset + int64(b.LastOffsetDelta)
		if b.FirstOffset < 0 || b.LastOffsetDelta < 0 || last < b.FirstOffset || last == math.MaxInt64 {
			return nil, from, fmt.Errorf("%w: offsets %d and %d more", errBatch, b.FirstOffset, b.LastOffsetDelta)
		}
		if last < next {
			continue
		}
		if b.Attributes&attrControl == 0 {
			if out, err = readEntriesOf(out, &b, next); err != nil {
				return nil, from, fmt.Errorf("%w: at offset %d: %w", errBatch, b.FirstOffset, err)
			}
		}
		next = last + 1
	}
	return out, next, nil
}

func readEntriesOf(out []LedgerEntry, b *kmsg.RecordBatch, from int64) ([]LedgerEntry, error) {
	src, err := decompress(b)
	if err != nil {
		return nil, err
	}
	var rec kmsg.Record
	for i := range b.NumRecords {
		length, used := binary.Varint(src)
		if used <= 0 || length < 0 || length > int64(len(src)-used) {
			return nil, fmt.Errorf("record %d of %d is cut short", i, b.NumRecords)
		}
		end := used + int(length)
		if err := rec.ReadFrom(src[:end]); err != nil {
			return nil, fmt.Errorf("record %d of %d: %w", i, b.NumRecords, err)
		}
		src = src[end:]
		at := b.FirstOffset + int64(rec.OffsetDelta)
		if at < from || rec.OffsetDelta < 0 || rec.OffsetDelta > b.LastOffsetDelta {
			continue
		}
		ms := b.FirstTimestamp + rec.TimestampDelta64
		if b.Attributes&attrAppendTime != 0 {
			// The broker stamps the batch and leaves the records' own times alone.
			ms = b.MaxTimestamp
		}
		out = append(out, LedgerEntry{Offset: at, At: time.UnixMilli(ms), Key: string(rec.Key), Value: rec.Value})
	}
	return out, nil
}
