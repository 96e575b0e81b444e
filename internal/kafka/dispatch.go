package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// inFlight is how many requests a broker has at once before what comes gathers
	// for the next one. The broker answers those of one connection one after the
	// other, and of as many records in fewer requests it makes less work.
	inFlight = 1
	// patience is how long a record batch waits for company. Past that what is on its
	// way is slow: one partition that waits for its replicas must not hold up all the
	// others of its broker.
	patience = 20 * time.Millisecond
	// maxRequest bounds a request of several partitions, in bytes: far below what
	// brokers take (socket.request.max.bytes, 100 MiB).
	maxRequest = 8 << 20
	// oldestProduce is the first version of the request that has record batches of
	// the present format; up to newestProduce requests look alike.
	oldestProduce, newestProduce = 3, 8
)

// dispatcher gathers the record batches that the partitions of one broker have to
// send, so that they share requests: most of what a request costs, here and at the
// broker, does not depend on what is in it.
type dispatcher struct {
	p      *Producer
	leader int32 // negative: those of several, or of none that is known

	mu      sync.Mutex
	out     int // requests on their way
	waiting []*parcel
}

// parcel is the record batch of one partition. Its shipment is set under the
// dispatcher's lock; what comes behind done is read when that is closed.
type parcel struct {
	partition int
	set       []byte // the record batch
	from      *encoder
	deadline  time.Time
	shipment  *shipment // nil: it waits
	done      chan struct{}

	base int64
	at   time.Time
	errs map[int]error // of single records
	err  error
}

// send brings a parcel to the broker and reports whether it was answered, or failed,
// before ctx ended: then the parcel says how. It tries once.
func (d *dispatcher) send(ctx context.Context, x *parcel) bool {
	d.mu.Lock()
	d.waiting = append(d.waiting, x)
	if d.out < inFlight {
		d.start()
	}
	waits := x.shipment == nil
	d.mu.Unlock()
	var slow *time.Timer
	var late <-chan time.Time
	if waits {
		slow = time.NewTimer(patience)
		defer slow.Stop()
		late = slow.C
	}
	for {
		select {
		case <-x.done:
			return true
		case <-ctx.Done():
			select {
			case <-x.done: // both at once: the better news counts
				return true
			default:
			}
			d.leave(x)
			return false
		case <-late:
			d.mu.Lock()
			if x.shipment == nil {
				d.start()
			}
			if x.shipment == nil { // one before it for the same partition was taken
				slow.Reset(patience)
			}
			d.mu.Unlock()
		}
	}
}

// leave gives a parcel up. What nobody waits for any more is not sent, or its request
// is ended.
func (d *dispatcher) leave(x *parcel) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := x.shipment; s != nil {
		if s.wanted--; s.wanted == 0 {
			s.cancel()
		}
		return
	}
	for i, y := range d.waiting {
		if y == x {
			d.waiting = append(d.waiting[:i], d.waiting[i+1:]...)
			d.p.encoders.put(x.from)
			return
		}
	}
}

// start sends what waits. d.mu is held.
func (d *dispatcher) start() {
	if s := d.take(); s != nil {
		d.out++
		go d.run(s)
	}
}

// take makes one request of what waits: of a partition one record batch, which is all
// the protocol allows. d.mu is held.
func (d *dispatcher) take() *shipment {
	if len(d.waiting) == 0 {
		return nil
	}
	s := &shipment{p: d.p, leader: d.leader}
	rest, size := d.waiting[:0], 0
	for _, x := range d.waiting {
		if len(s.parcels) > 0 && (size+len(x.set) > maxRequest || s.has(x.partition)) {
			rest = append(rest, x)
			continue
		}
		size += len(x.set)
		s.parcels = append(s.parcels, x)
		x.shipment = s
		if x.deadline.After(s.deadline) {
			s.deadline = x.deadline
		}
	}
	clear(d.waiting[len(rest):])
	d.waiting = rest
	s.wanted = len(s.parcels)
	// It is as long on its way as any of its senders waits.
	s.ctx, s.cancel = context.WithDeadline(d.p.c.base, s.deadline)
	return s
}

// run sends requests until nothing waits.
func (d *dispatcher) run(s *shipment) {
	for s != nil {
		s.deliver()
		d.mu.Lock()
		if d.out > inFlight {
			s = nil // it was sent beside a slow one
		} else {
			s = d.take()
		}
		if s == nil {
			d.out--
		}
		d.mu.Unlock()
	}
}

// shipment is one request to a broker, with parcels for some of its partitions. It
// travels over one of kafka-go's connections (protocol.RawExchanger) and is laid out
// here: the library's own way copies every record several times.
type shipment struct {
	p        *Producer
	leader   int32
	parcels  []*parcel
	deadline time.Time
	ctx      context.Context
	cancel   context.CancelFunc
	wanted   int // how many still wait for it; under the dispatcher's lock
	version  int16
}

func (s *shipment) has(partition int) bool {
	for _, x := range s.parcels {
		if x.partition == partition {
			return true
		}
	}
	return false
}

// deliver sends the request and tells every parcel what became of it.
func (s *shipment) deliver() {
	defer s.cancel()
	m, err := s.p.k.Transport.RoundTrip(s.ctx, s.p.c.addr, s)
	if err == nil {
		s.read(m.(*rawResponse).body.(*kmsg.ProduceResponse))
		return
	}
	for _, x := range s.parcels {
		x.err = err
		close(x.done)
	}
}

// read tells each parcel its partition's answer.
func (s *shipment) read(res *kmsg.ProduceResponse) {
	answers := map[int32]*kmsg.ProduceResponseTopicPartition{}
	for i := range res.Topics {
		for j := range res.Topics[i].Partitions {
			answers[res.Topics[i].Partitions[j].Partition] = &res.Topics[i].Partitions[j]
		}
	}
	for _, x := range s.parcels {
		x.answer(answers[int32(x.partition)])
		close(x.done)
	}
}

func (x *parcel) answer(a *kmsg.ProduceResponseTopicPartition) {
	switch {
	case a == nil:
		x.err = errResponse
		return
	case a.ErrorCode == 0:
		x.base = a.BaseOffset
		if a.LogAppendTime > 0 {
			x.at = time.UnixMilli(a.LogAppendTime)
		}
		return
	}
	x.err = kafkago.Error(a.ErrorCode)
	if a.ErrorMessage != nil && *a.ErrorMessage != "" {
		x.err = fmt.Errorf("%w: %s", x.err, *a.ErrorMessage)
	}
	for _, e := range a.ErrorRecords {
		if x.errs == nil {
			x.errs = map[int]error{}
		}
		x.errs[int(e.RelativeOffset)] = errRecord
	}
}

var errRecord = errors.New("the broker does not take the record")

// ApiKey implements protocol.Message.
func (s *shipment) ApiKey() protocol.ApiKey { return protocol.Produce }

// Broker implements protocol.BrokerMessage. Should one of the partitions have moved
// meanwhile, the broker says so of that one, and takes the others.
func (s *shipment) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	if b, ok := cluster.Brokers[s.leader]; ok {
		return b, nil
	}
	first := leaderRequest{topic: s.p.topic, partition: s.parcels[0].partition}
	return first.Broker(cluster)
}

// Required implements protocol.RawExchanger.
func (s *shipment) Required(versions map[protocol.ApiKey]int16) bool {
	s.version = min(versions[protocol.Produce], newestProduce)
	return true
}

// RawExchange implements protocol.RawExchanger.
func (s *shipment) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if s.version < oldestProduce {
		return nil, fmt.Errorf("produce v%d: %w", s.version, kafkago.UnsupportedVersion)
	}
	frame := s.p.frames.get()
	frame.b = s.append(frame.b[:0])
	_, err := rw.Write(frame.b)
	s.p.frames.put(frame)
	if err != nil {
		return nil, err
	}
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(s.version)
	res, err := readAnswer(rw, req)
	if err != nil {
		return nil, err
	}
	return &rawResponse{res}, nil
}

// append lays the request out: versions 3 to 8 look alike. It gives the parcels'
// memory back: once a request was begun it is not begun again.
func (s *shipment) append(b []byte) []byte {
	b = append(b, 0, 0, 0, 0) // length
	b = binary.BigEndian.AppendUint16(b, uint16(protocol.Produce))
	b = binary.BigEndian.AppendUint16(b, uint16(s.version))
	b = binary.BigEndian.AppendUint32(b, onlyCorrelation)
	b = appendShort(b, s.p.c.cfg.ClientID)
	b = append(b, 0xff, 0xff) // no transaction
	b = append(b, 0xff, 0xff) // all in-sync replicas
	// Half of what is left, as kafka-go has it: the answer has to come back too.
	b = binary.BigEndian.AppendUint32(b, uint32(max(1, min(time.Until(s.deadline), callTimeout).Milliseconds()/2)))
	b = binary.BigEndian.AppendUint32(b, 1) // topics
	b = appendShort(b, s.p.topic)
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.parcels)))
	for _, x := range s.parcels {
		b = binary.BigEndian.AppendUint32(b, uint32(x.partition))
		b = binary.BigEndian.AppendUint32(b, uint32(len(x.set)))
		b = append(b, x.set...)
		s.p.encoders.put(x.from)
		x.set, x.from = nil, nil
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

func appendShort(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

// frames are buffers for requests that nobody uses.
type frames struct{ idle sync.Pool }

type frame struct{ b []byte }

func (p *frames) get() *frame {
	if f, ok := p.idle.Get().(*frame); ok {
		return f
	}
	return &frame{}
}

func (p *frames) put(f *frame) {
	if cap(f.b) <= keptBytes {
		p.idle.Put(f)
	}
}

// dispatchers are those of one producer, by broker.
type dispatchers struct {
	mu   sync.RWMutex
	byID map[int]*dispatcher
}

// of returns a broker's dispatcher. Ids come from the network: past a bound, which no
// cluster reaches, they share one.
func (s *dispatchers) of(p *Producer, leader int) *dispatcher {
	const most, others = 1024, -1
	s.mu.RLock()
	d := s.byID[leader]
	s.mu.RUnlock()
	if d != nil {
		return d
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.byID) >= most {
		leader = others
	}
	if d = s.byID[leader]; d == nil {
		d = &dispatcher{p: p, leader: int32(leader)}
		if s.byID == nil {
			s.byID = map[int]*dispatcher{}
		}
		s.byID[leader] = d
	}
	return d
}
