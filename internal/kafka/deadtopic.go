package kafka

import (
	"context"
	"maps"
	"slices"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// DeadTopic is where what could not be stored is kept, for other consumers and for
// replay. Safe for concurrent use.
type DeadTopic struct{ p *Producer }

// NewDead returns the dead topic of a prefix. It lives as long as the Client.
func (c *Client) NewDead(prefix string) *DeadTopic {
	return &DeadTopic{c.NewProducer(Topics(prefix).Dead)}
}

// Write appends a record to the partition of its key (murmur2, as Java clients do)
// and returns when all in-sync replicas have it. It tries once, until ctx's
// deadline; after an error the record may be there all the same. Errors are those
// of Producer.Produce: one with a method Refused() []int says that the broker will
// never take this record.
func (t *DeadTopic) Write(ctx context.Context, key, value []byte, headers map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	l, err := t.p.current(ctx)
	if err != nil {
		return err
	}
	b := kafkago.Murmur2Balancer{Consistent: true}
	partition := b.Balance(kafkago.Message{Key: key}, l.numbers...)
	record := kafkago.Record{Key: protocol.NewBytes(key), Value: protocol.NewBytes(notNil(value))}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		record.Headers = append(record.Headers, protocol.Header{Key: name, Value: []byte(headers[name])})
	}
	res, err := t.p.k.Produce(ctx, &kafkago.ProduceRequest{
		Topic:        t.p.topic,
		Partition:    partition,
		RequiredAcks: kafkago.RequireAll,
		Records:      kafkago.NewRecordReader(record),
		Compression:  compression,
	})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return t.p.produceError(partition, 1, res, err)
	}
	return nil
}
