package schema

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math"

	"sluice/pkg/batch"
)

// domainDigest keeps digests apart from every other hash, and is their version.
const domainDigest = "sluice/digest/1"

// ComputeDigest sets Digest, the fingerprint of what was sent: the first 16
// bytes of SHA-256 over the encoding that docs/identity.md describes. It covers
// Count, the events as decoded and the rejected ones (index, size, bytes), and
// nothing that differs between copies of a batch: not how it was written (JSON
// or protobuf, the order of keys, white space between fields), not the SDK, not
// when it was sent or received. Of rejected events only the bytes are known, so
// those have to be the same.
//
// Call it before Resolve. Whether it is called before or after RejectOversized
// makes no difference.
func (b *Batch) ComputeDigest() {
	if b.digested {
		return
	}
	sha := sha256.New()
	h := digester{w: sha, buf: make([]byte, 0, digestBuffer)}
	h.text(domainDigest)
	h.u32(b.Count)
	h.u32(uint32(len(b.Events)))
	for i := range b.Events {
		h.event(&b.Events[i])
	}
	h.u32(uint32(len(b.Rejected)))
	for i := range b.Rejected {
		r := &b.Rejected[i]
		h.u32(r.Index)
		h.u64(uint64(r.Size))
		h.u32(uint32(len(r.Bytes)))
		h.bytes(r.Bytes)
	}
	h.flush()
	sum := sha.Sum(h.buf)
	b.Digest = batch.Digest(sum[:16])
}

// digestBuffer is how much is gathered before it is hashed: hashing many small
// pieces would cost more than copying them.
const digestBuffer = 4 << 10

// digester writes the canonical encoding into a hash. Integers are big-endian.
type digester struct {
	w   io.Writer // a hash: it never fails
	buf []byte
}

func (d *digester) flush() {
	_, _ = d.w.Write(d.buf)
	d.buf = d.buf[:0]
}

func (d *digester) room(n int) {
	if cap(d.buf)-len(d.buf) < n {
		d.flush()
	}
}

func (d *digester) u32(v uint32) {
	d.room(4)
	d.buf = binary.BigEndian.AppendUint32(d.buf, v)
}

func (d *digester) u64(v uint64) {
	d.room(8)
	d.buf = binary.BigEndian.AppendUint64(d.buf, v)
}

func (d *digester) bytes(p []byte) {
	d.room(len(p))
	if len(p) > cap(d.buf) {
		_, _ = d.w.Write(p)
		return
	}
	d.buf = append(d.buf, p...)
}

func (d *digester) text(s string) {
	d.u32(uint32(len(s)))
	for len(s) > cap(d.buf) {
		n := cap(d.buf)
		d.flush()
		d.buf = append(d.buf, s[:n]...)
		s = s[n:]
	}
	d.room(len(s))
	d.buf = append(d.buf, s...)
}

func (d *digester) event(e *Event) {
	d.u32(e.Index)
	d.content(e)
}

// content is what was sent of an event, whatever its place in the batch.
func (d *digester) content(e *Event) {
	d.room(2)
	flags := byte(0)
	if e.HasTime {
		flags |= 1
	}
	if e.HasValue {
		flags |= 2
	}
	d.buf = append(d.buf, byte(e.Kind), flags)
	if e.HasTime {
		d.u64(uint64(e.Time))
	}
	if e.HasValue {
		d.u64(math.Float64bits(e.Value))
	}
	d.text(e.Experiment)
	d.text(e.Variant)
	d.text(e.Name)
	d.text(e.UnitType)
	d.text(e.UnitID)
	d.text(e.Rule)
	d.text(e.Reason)
	d.text(e.ClientID)
	d.u32(uint32(len(e.Attributes)))
	for i := range e.Attributes {
		d.text(e.Attributes[i].Key)
		d.text(e.Attributes[i].Value)
	}
}
