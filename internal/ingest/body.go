package ingest

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// bufferClasses are the sizes of the buffers that are used again, and how many
// of each are kept: 4.5 MiB together. Larger ones are left to the garbage
// collector: they are rare.
var bufferClasses = [...]struct{ size, kept int }{
	{8 << 10, 64}, {32 << 10, 64}, {128 << 10, 8}, {512 << 10, 2},
}

// firstBuffer bounds what a request is given before any of its body has come.
const firstBuffer = 128 << 10

// buffers hands out buffers that are charged to a request for as long as it
// holds them.
type buffers struct {
	idle [len(bufferClasses)]chan []byte
}

func newBuffers() *buffers {
	p := &buffers{}
	for i, class := range bufferClasses {
		p.idle[i] = make(chan []byte, class.kept)
	}
	return p
}

// buffer is a body in memory. One request owns it.
type buffer struct {
	b    []byte
	from *buffers
	held *holding
}

// get returns an empty buffer for about size bytes. However much a client
// announces, it starts small: memory is taken as bytes arrive, so that an
// announcement alone holds nothing.
func (p *buffers) get(h *holding, size int64) (*buffer, error) {
	b, err := p.alloc(h, int(min(max(size, 1), firstBuffer)))
	if err != nil {
		return nil, err
	}
	return &buffer{b: b, from: p, held: h}, nil
}

func (p *buffers) alloc(h *holding, size int) ([]byte, error) {
	for i, class := range bufferClasses {
		if size > class.size {
			continue
		}
		if err := h.take(int64(class.size)); err != nil {
			return nil, err
		}
		select {
		case b := <-p.idle[i]:
			return b, nil
		default:
			return make([]byte, 0, class.size), nil
		}
	}
	if err := h.take(int64(size)); err != nil {
		return nil, err
	}
	return make([]byte, 0, size), nil
}

func (p *buffers) release(h *holding, b []byte) {
	for i, class := range bufferClasses {
		if cap(b) == class.size {
			select {
			case p.idle[i] <- b[:0]:
			default:
			}
		}
	}
	h.give(int64(cap(b)))
}

// free gives the buffer back. Nothing may alias it any more.
func (b *buffer) free() {
	if b == nil || b.b == nil {
		return
	}
	b.from.release(b.held, b.b)
	b.b = nil
}

// grow makes room for more, up to size bytes in all.
func (b *buffer) grow(size int64) error {
	bigger, err := b.from.alloc(b.held, int(size))
	if err != nil {
		return err
	}
	bigger = append(bigger, b.b...)
	b.from.release(b.held, b.b)
	b.b = bigger
	return nil
}

// fill reads r to its end. It returns errTooLarge when there is more than limit,
// having read one byte more than that at most (or when the request may not hold
// that much), errOverloaded when the budget is used up, or what r returned.
func (b *buffer) fill(r io.Reader, limit int64) error {
	idle := 0
	for {
		if len(b.b) == cap(b.b) {
			if err := b.grow(max(min(2*int64(cap(b.b)), limit+1), int64(cap(b.b))+1)); err != nil {
				return err
			}
		}
		n, err := r.Read(b.b[len(b.b):cap(b.b)])
		b.b = b.b[:len(b.b)+n]
		if int64(len(b.b)) > limit {
			return errTooLarge
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if n > 0 {
			idle = 0
		} else if idle++; idle == 100 {
			return io.ErrNoProgress
		}
	}
}

// A body has to arrive at bodyRate bytes a second (on the whole, not counting
// the first bodyGrace), and within Limits.BodyTimeout: who sends slower holds a
// connection and a buffer for next to nothing. 2 KiB/s is a tenth of what GPRS
// carries, so no real network is cut off.
const (
	bodyRate  = 2 << 10
	bodyGrace = 5 * time.Second
)

// read reads the body as it was sent. The error is what to refuse the request
// for: errTooLarge, errOverloaded, a time-out, or a broken connection or framing.
func (c *Collector) read(w *answerWriter, r *http.Request, h *holding) (*buffer, error) {
	limit := c.limits.MaxBody
	if r.ContentLength > limit {
		return nil, errTooLarge
	}
	size := r.ContentLength + 1 // one more: the end is only seen by reading on
	if r.ContentLength < 0 {
		size = int64(bufferClasses[0].size)
	}
	body, err := c.buffers.get(h, size)
	if err != nil {
		return nil, err
	}
	in := &pacedReader{r: r.Body, on: w.ResponseWriter, start: time.Now(), timeout: c.limits.BodyTimeout}
	if err := body.fill(in, limit); err != nil {
		body.free()
		return nil, err
	}
	in.done()
	w.unread = false
	return body, nil
}

// pacedReader moves a connection's read deadline along as its body arrives.
type pacedReader struct {
	r       io.Reader
	on      http.ResponseWriter // of the connection
	start   time.Time
	timeout time.Duration
	n       int64
}

func (p *pacedReader) Read(b []byte) (int, error) {
	setDeadline(p.on, deadliner.SetReadDeadline, p.deadline())
	n, err := p.r.Read(b)
	p.n += int64(n)
	return n, err
}

// deadline is when the next bytes have to be there.
func (p *pacedReader) deadline() time.Time {
	earned := time.Duration(float64(p.n) / bodyRate * float64(time.Second))
	return p.start.Add(min(p.timeout, bodyGrace+earned))
}

// done takes the deadline away. Left alone it would end the request's context,
// and the connection, while the batch is being published.
func (p *pacedReader) done() { setDeadline(p.on, deadliner.SetReadDeadline, time.Time{}) }

// tooSlow reports whether reading stopped at a deadline.
func tooSlow(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
