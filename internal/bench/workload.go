package bench

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Workload is what is sent. The zero value of a field takes its default.
type Workload struct {
	Protocol    string  // one of Protocols; default native
	Events      int     // a request, 1 to 10,000; default 100
	EventBytes  int     // of one native event, at least 287; default 295
	Encoding    string  // none, gzip, zstd; default none
	Duplicates  float64 // share of requests that repeat the one before, 0 to 0.9
	Experiments int     // drawn from by zipf; default 200
	Units       int     // as Experiments; default 10 million
	Key         string  // write key
	Seed        uint64  // of what is drawn
}

// zipfExponent makes the first of 200 experiments have 18 % of the events.
const zipfExponent = 1.07

// drawn is how many unit ids are drawn ahead: a power of two. They are used one
// after the other, over and over, by all connections.
const drawn = 1 << 17

const unitDigits = 8

// Check names what cannot be right.
func (w Workload) Check() error {
	_, err := w.withDefaults()
	return err
}

func (w Workload) withDefaults() (Workload, error) {
	set := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	set(&w.Events, 100)
	set(&w.EventBytes, 295)
	set(&w.Experiments, 200)
	set(&w.Units, 10_000_000)
	if w.Protocol == "" {
		w.Protocol = Native
	}
	if w.Encoding == "" {
		w.Encoding = "none"
	}
	switch {
	case protocols[w.Protocol].event == nil && w.Protocol != Native:
		return w, fmt.Errorf("protocol %q: want one of %v", w.Protocol, Protocols())
	case w.Events < 1 || w.Events > 10_000:
		return w, fmt.Errorf("%d events a request: want 1 to 10000", w.Events)
	case w.EventBytes < smallestEvent || w.EventBytes > 4096:
		return w, fmt.Errorf("events of %d bytes: want %d to 4096", w.EventBytes, smallestEvent)
	case w.Encoding != "none" && w.Encoding != "gzip" && w.Encoding != "zstd":
		return w, fmt.Errorf("encoding %q: want none, gzip or zstd", w.Encoding)
	case w.Duplicates < 0 || w.Duplicates > 0.9:
		return w, fmt.Errorf("a share of %v duplicates: want 0 to 0.9", w.Duplicates)
	case w.Experiments < 1 || w.Experiments > 10_000:
		return w, fmt.Errorf("%d experiments: want 1 to 10000", w.Experiments)
	case w.Units < 1 || w.Units > 99_999_999:
		return w, fmt.Errorf("%d units: want 1 to 99999999", w.Units)
	}
	return w, nil
}

// generator makes requests of one workload. What it holds is shared and not
// changed; each connection takes templates of its own.
type generator struct {
	Workload
	units []byte // unitDigits digits each
}

func newGenerator(w Workload) (*generator, error) {
	w, err := w.withDefaults()
	if err != nil {
		return nil, err
	}
	g := &generator{Workload: w, units: make([]byte, 0, drawn*unitDigits)}
	r := rand.New(rand.NewPCG(w.Seed, 1))
	z := rand.NewZipf(r, zipfExponent, 1, uint64(w.Units-1))
	for range drawn {
		g.units = fmt.Appendf(g.units, "%0*d", unitDigits, z.Uint64())
	}
	return g, nil
}

// template is one request, as it goes over the wire, and where in it is what
// differs each time.
type template struct {
	wire   []byte
	key    int   // of the idempotency key's digits; 0: it has none
	units  []int // of the unit ids' digits; none where the body is compressed
	events []int // of the event ids' digits; as units
	count  int   // of events
}

const (
	keyDigits     = 16 // hex
	eventIDDigits = 12 // hex, the last group of a UUID
)

// Marks that no text of an event holds: a template is written with them, and they
// are then found, noted and written over.
const (
	unitMark  = "@unit@@@"
	eventMark = "@event@id@@@"
	keyMark   = "@idempotency-k@@"
)

// templates are n requests with different bodies.
func (g *generator) templates(n int, seed uint64) ([]*template, error) {
	r := rand.New(rand.NewPCG(g.Seed, seed))
	out := make([]*template, n)
	for i := range out {
		t, err := g.template(r)
		if err != nil {
			return nil, err
		}
		out[i] = t
	}
	return out, nil
}

func (g *generator) template(r *rand.Rand) (*template, error) {
	p := protocols[g.Protocol]
	body := g.body(r)
	t := &template{count: g.Events}
	if g.Encoding != "none" {
		// What is compressed cannot be patched: the body stays, and its events have no
		// ids of their own but those that follow from the batch's.
		fill(body, unitMark, func(i int) string { return g.unit(uint64(r.Uint32()), i) })
		fill(body, eventMark, func(int) string { return fmt.Sprintf("%012x", r.Uint64()&(1<<48-1)) })
		var err error
		if body, err = compressed(g.Encoding, body); err != nil {
			return nil, err
		}
	}
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: bench\r\nContent-Type: %s\r\nContent-Length: %d\r\nAuthorization: Bearer %s\r\n",
		p.path, p.contentType, len(body), g.Key)
	if g.Encoding != "none" {
		head += "Content-Encoding: " + g.Encoding + "\r\n"
	}
	head += p.headers + "Idempotency-Key: " + keyMark + "\r\n\r\n"
	t.wire = append([]byte(head), body...)
	t.key = bytes.Index(t.wire, []byte(keyMark))
	if g.Encoding == "none" {
		t.units = places(t.wire, unitMark)
		t.events = places(t.wire, eventMark)
	}
	if g.Encoding == "none" && len(t.units) == 0 {
		return nil, errors.New("the bodies of this protocol have no units")
	}
	t.stamp(g, 0)
	return t, nil
}

// body is that of a request without its marks written over.
func (g *generator) body(r *rand.Rand) []byte {
	p := protocols[g.Protocol]
	z := rand.NewZipf(r, zipfExponent, 1, uint64(g.Experiments-1))
	now := time.Now()
	var b bytes.Buffer
	b.WriteString(p.before)
	for i := range g.Events {
		if i > 0 {
			b.WriteString(p.between)
		}
		e := drawnEvent{
			index: i, experiment: fmt.Sprintf("experiment-%04d", z.Uint64()), variant: "variant-" + string(rune('a'+r.IntN(3))),
			// Spread over the second before, as a logger gathers them.
			at: now.Add(-time.Duration(g.Events-i) * time.Second / time.Duration(g.Events)), number: r.Uint64(),
		}
		if p.event != nil {
			p.event(&b, &e)
		} else {
			g.native(&b, &e)
		}
	}
	b.WriteString(p.after)
	return b.Bytes()
}

// drawnEvent is an event before a protocol writes it.
type drawnEvent struct {
	index               int
	experiment, variant string
	at                  time.Time
	number              uint64
}

const smallestEvent = 287

// native writes an exposure of EventBytes bytes.
func (g *generator) native(b *bytes.Buffer, e *drawnEvent) {
	from := b.Len()
	fmt.Fprintf(b, `{"experiment":"%s","variant":"%s","unit_id":"user-%s","unit_type":"account","time":"%s",`+
		`"rule":"rule-%02d","reason":"targeted"`, e.experiment, e.variant, unitMark, e.at.UTC().Format("2006-01-02T15:04:05.000Z"), e.number%100)
	if g.Encoding == "none" {
		fmt.Fprintf(b, `,"event_id":"%08x-%04x-4%03x-9%03x-%s"`, e.index, e.number&0xffff, e.number>>16&0xfff, e.number>>28&0xfff, eventMark)
	}
	fmt.Fprintf(b, `,"attributes":{"country":"%s","platform":"ios","version":"4.12`, [...]string{"DE", "FR", "US", "JP"}[e.number>>40&3])
	pad := g.EventBytes - (b.Len() - from) - len(`"}}`)
	for digits := strconv.FormatUint(e.number|1<<63, 16); pad > 0; pad -= len(digits) {
		b.WriteByte('.')
		pad--
		b.WriteString(digits[:min(max(pad, 0), len(digits))])
	}
	b.WriteString(`"}}`)
}

// places are where a mark is, in order.
func places(text []byte, mark string) (at []int) {
	for from := 0; ; {
		i := bytes.Index(text[from:], []byte(mark))
		if i < 0 {
			return at
		}
		at = append(at, from+i)
		from += i + len(mark)
	}
}

// fill writes over the marks, which are as long as what takes their place.
func fill(text []byte, mark string, with func(i int) string) {
	for i, at := range places(text, mark) {
		copy(text[at:at+len(mark)], with(i))
	}
}

// unit is the id of event i of request n.
func (g *generator) unit(n uint64, i int) string {
	return string(g.unitAt(n, i))
}

func (g *generator) unitAt(n uint64, i int) []byte {
	at := (n*uint64(g.Events) + uint64(i)) % drawn * unitDigits
	return g.units[at : at+unitDigits]
}

// stamp makes it request number n: no two numbers give the same key, batch or
// event ids. It costs a few ns an event.
func (t *template) stamp(g *generator, n uint64) {
	var hex [keyDigits]byte
	for i, v := len(hex)-1, n; i >= 0; i, v = i-1, v>>4 {
		hex[i] = "0123456789abcdef"[v&15]
	}
	if t.key > 0 {
		copy(t.wire[t.key:], hex[:])
	}
	for i, at := range t.units {
		copy(t.wire[at:at+unitDigits], g.unitAt(n, i))
	}
	for _, at := range t.events {
		copy(t.wire[at:at+eventIDDigits], hex[keyDigits-eventIDDigits:])
	}
}

func compressed(encoding string, body []byte) ([]byte, error) {
	var b bytes.Buffer
	if encoding == "gzip" {
		w, err := gzip.NewWriterLevel(&b, 6)
		if err != nil {
			return nil, err
		}
		_, err = w.Write(body)
		err = errors.Join(err, w.Close())
		return b.Bytes(), err
	}
	w, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer w.Close()
	return w.EncodeAll(body, nil), nil
}
