package embedded

import (
	"encoding/binary"
	"hash/crc32"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// The pipeline's topics have message.timestamp.type=LogAppendTime: a record's time
// is the broker's, and the answer to a produce request tells it. The library of the
// broker has the setting and does not act on it (it would, for a batch that says so
// itself, and then leaves the batch's checksum as it was, so that it reads as
// damaged). So records are stamped before the library sees them, and answers on
// their way out, whatever topic they are for.

// stampRecords writes the time into the record batches of a produce request.
func stampRecords(req kmsg.Request) (kmsg.Response, error, bool) {
	// Where a batch of version 2 has its magic byte, its checksum, what the checksum
	// is of, and the times of its first and last record.
	const magic, crc, summed, first, last, header = 16, 17, 21, 27, 35, 61
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	now := uint64(time.Now().UnixMilli())
	for _, t := range req.(*kmsg.ProduceRequest).Topics {
		for _, p := range t.Partitions {
			b := p.Records
			if len(b) < header || b[magic] != 2 || binary.BigEndian.Uint32(b[crc:]) != crc32.Checksum(b[summed:], castagnoli) {
				continue // the library refuses it
			}
			binary.BigEndian.PutUint64(b[first:], now)
			binary.BigEndian.PutUint64(b[last:], now)
			binary.BigEndian.PutUint32(b[crc:], crc32.Checksum(b[summed:], castagnoli))
		}
	}
	return nil, nil, false // go on as usual
}

// stampingListener stamps the answers to produce requests. addr is what the library
// tells clients to dial.
type stampingListener struct {
	net.Listener
	addr net.Addr
}

// Addr implements net.Listener.
func (l stampingListener) Addr() net.Addr { return l.addr }

// Accept implements net.Listener.
func (l stampingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &stampingConn{Conn: conn, produces: map[uint32]int16{}}, nil
}

// stampingConn looks at the headers of requests, and changes the answers to produce
// requests.
type stampingConn struct {
	net.Conn

	// Of the request that is being read, by one goroutine.
	head []byte // its size and the first bytes of its header
	rest uint32 // bytes of it that follow

	mu       sync.Mutex
	produces map[uint32]int16 // versions of the produce requests without an answer, by correlation id
}

// Of a request: its size, API key, version and correlation id. An answer has its
// size and the correlation id.
const requestHead, answerHead = 12, 8

// Read implements net.Conn. It reads no further than the head of a request at
// once, or no further than its end.
func (c *stampingConn) Read(p []byte) (int, error) {
	want := c.rest
	if want == 0 {
		want = uint32(requestHead - len(c.head))
	}
	n, err := c.Conn.Read(p[:min(len(p), int(want))])
	if c.rest > 0 {
		c.rest -= uint32(n)
		return n, err
	}
	if c.head = append(c.head, p[:n]...); len(c.head) == requestHead {
		size, key := binary.BigEndian.Uint32(c.head), int16(binary.BigEndian.Uint16(c.head[4:]))
		if key == int16(kmsg.Produce) {
			c.mu.Lock()
			c.produces[binary.BigEndian.Uint32(c.head[8:])] = int16(binary.BigEndian.Uint16(c.head[6:]))
			c.mu.Unlock()
		}
		c.rest, c.head = max(size, requestHead-4)-(requestHead-4), c.head[:0]
	}
	return n, err
}

// Write implements net.Conn. The library writes an answer at a time.
func (c *stampingConn) Write(p []byte) (int, error) {
	if len(p) < answerHead {
		return c.Conn.Write(p)
	}
	correlation := binary.BigEndian.Uint32(p[4:])
	c.mu.Lock()
	version, ok := c.produces[correlation]
	delete(c.produces, correlation)
	c.mu.Unlock()
	if !ok {
		return c.Conn.Write(p)
	}
	answer := kmsg.NewPtrProduceResponse()
	answer.SetVersion(version)
	head := answerHead
	if answer.IsFlexible() {
		head++ // no tagged fields
	}
	if len(p) < head || answer.ReadFrom(p[head:]) != nil {
		return c.Conn.Write(p)
	}
	now := time.Now().UnixMilli()
	for i := range answer.Topics {
		for j := range answer.Topics[i].Partitions {
			if part := &answer.Topics[i].Partitions[j]; part.ErrorCode == 0 {
				part.LogAppendTime = now
			}
		}
	}
	out := answer.AppendTo(append([]byte(nil), p[:head]...))
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	if _, err := c.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}
