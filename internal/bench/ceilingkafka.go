package bench

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"sluice/pkg/batch"
)

// Produce writes the records of native requests to a topic for a while, with the
// bare client: callers who wait for their record's acknowledgement, and one request
// at a time and partition that carries what has gathered meanwhile.
func Produce(ctx context.Context, d time.Duration, broker, topic string, partitions, callers int, w Workload) (Ceiling, error) {
	w.Protocol, w.Encoding = Native, "none"
	g, err := newGenerator(w)
	if err != nil {
		return Ceiling{}, err
	}
	templates, err := g.recordTemplates(callers, 2)
	if err != nil {
		return Ceiling{}, err
	}
	transport := &kafkago.Transport{MetadataTopics: []string{topic}}
	defer transport.CloseIdleConnections()
	client := &kafkago.Client{Addr: kafkago.TCP(broker), Timeout: 30 * time.Second, Transport: transport}
	type call struct {
		record *batch.Record
		answer chan error
	}
	run := func(d time.Duration) (int64, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, d, nil)
		defer cancel()
		lanes := make([]chan call, partitions)
		var senders, wg sync.WaitGroup
		for p := range lanes {
			lanes[p] = make(chan call, callers)
			senders.Go(func() {
				for first := range lanes[p] {
					group := []call{first}
					for more := true; more && len(group) < fillGroup; {
						select {
						case next, ok := <-lanes[p]:
							if more = ok; ok {
								group = append(group, next)
							}
						default:
							more = false
						}
					}
					records := make([]protocol.Record, len(group))
					for i, c := range group {
						records[i] = bareRecord(c.record)
					}
					res, err := client.Produce(context.WithoutCancel(ctx), &kafkago.ProduceRequest{Topic: topic, Partition: p,
						RequiredAcks: kafkago.RequireAll, Compression: kafkago.Snappy, Records: protocol.NewRecordReader(records...)})
					if err == nil {
						err = res.Error
					}
					for _, c := range group {
						c.answer <- err
					}
				}
			})
		}
		var n atomic.Int64
		var failed atomic.Pointer[error]
		for i, t := range templates {
			wg.Go(func() {
				answer := make(chan error, 1)
				r := t.stamped(g, uint64(i), nil)
				for k := i; ctx.Err() == nil; k++ {
					lanes[k*7%partitions] <- call{&r, answer}
					if err := <-answer; err != nil {
						failed.Store(&err)
						return
					}
					n.Add(int64(g.Events))
				}
			})
		}
		wg.Wait()
		for _, l := range lanes {
			close(l)
		}
		senders.Wait()
		if err := failed.Load(); err != nil {
			return n.Load(), fmt.Errorf("produce to %s: %w", broker, *err)
		}
		return n.Load(), nil
	}
	if _, err := run(d / 4); err != nil { // connections, metadata
		return Ceiling{}, err
	}
	return timed(func() (int64, error) { return run(d) })
}

// bareRecord has the headers of proto/sluice/v1/batch.proto.
func bareRecord(r *batch.Record) protocol.Record {
	header := func(key, value string) protocol.Header { return protocol.Header{Key: key, Value: []byte(value)} }
	return protocol.Record{
		Key: protocol.NewBytes([]byte(r.BatchID.String())), Value: protocol.NewBytes(r.Value),
		Headers: []protocol.Header{
			header("project", r.Project), header("collector", r.Collector.String()), header("epoch", strconv.FormatUint(r.Epoch, 10)),
			header("seq", strconv.FormatUint(r.Seq, 10)), header("dedup-id", r.DedupID.String()), header("digest", r.Digest.String()),
			header("path", string(r.Path)), header("received-at", strconv.FormatInt(r.ReceivedAt.UnixMicro(), 10)), header("content-type", "application/x-protobuf"),
		},
	}
}
