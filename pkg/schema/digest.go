package schema

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
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
	if b.digest == nil {
		b.digest = &digestState{sha: sha256.New()}
		b.digest.w, b.digest.buf = b.digest.sha, make([]byte, 0, digestBuffer)
	}
	b.digest.sha.Reset()
	h := &b.digest.digester
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
	sum := b.digest.sha.Sum(h.buf)
	b.Digest = batch.Digest(sum[:16])
}

// digestBuffer is how much is gathered before it is hashed: hashing many small
// pieces would cost more than copying them.
const digestBuffer = 4 << 10

// digestState is what a batch keeps of the computation for the next one.
type digestState struct {
	digester
	sha hash.Hash
}

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

// content is what was sent of an event, whatever its place in the batch. Nearly all
// events fit the buffer whole, and then need not be looked at piece by piece.
func (d *digester) content(e *Event) {
	n := 2 + 8 + 8 + 9*4 + len(e.Experiment) + len(e.Variant) + len(e.Name) + len(e.UnitType) +
		len(e.UnitID) + len(e.Rule) + len(e.Reason) + len(e.ClientID)
	for i := range e.Attributes {
		n += 2*4 + len(e.Attributes[i].Key) + len(e.Attributes[i].Value)
	}
	if n > cap(d.buf) {
		d.largeContent(e)
		return
	}
	d.room(n)
	b := d.buf
	flags := byte(0)
	if e.HasTime {
		flags |= 1
	}
	if e.HasValue {
		flags |= 2
	}
	b = append(b, byte(e.Kind), flags)
	if e.HasTime {
		b = binary.BigEndian.AppendUint64(b, uint64(e.Time))
	}
	if e.HasValue {
		b = binary.BigEndian.AppendUint64(b, math.Float64bits(e.Value))
	}
	b = appendDigestText(b, e.Experiment)
	b = appendDigestText(b, e.Variant)
	b = appendDigestText(b, e.Name)
	b = appendDigestText(b, e.UnitType)
	b = appendDigestText(b, e.UnitID)
	b = appendDigestText(b, e.Rule)
	b = appendDigestText(b, e.Reason)
	b = appendDigestText(b, e.ClientID)
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Attributes)))
	for i := range e.Attributes {
		b = appendDigestText(b, e.Attributes[i].Key)
		b = appendDigestText(b, e.Attributes[i].Value)
	}
	d.buf = b
}

func appendDigestText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// largeContent is content for an event of any size.
func (d *digester) largeContent(e *Event) {
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
