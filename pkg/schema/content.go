package schema

import (
	"encoding/binary"
	"unsafe"

	"github.com/cespare/xxhash/v2"

	"sluice/pkg/batch"
)

// domainEvent keeps these hashes apart from every other one, and is their version.
const domainEvent = "sluice/event/content/1"

// IdentifyEvents gives every event that has a time and no id of its own one that
// is a hash of its content, and of how many equal events came before it in the
// batch (docs/identity.md). It is for SDKs that name neither events nor batches and
// send what failed again among newer events: the copies then are one by their
// event_id. Call it when the batch was decoded, before ComputeDigest.
//
// The hash is not a cryptographic one, which took as long as the decoding: an
// event_id tells a unit's events at one experiment apart, and whoever could make two
// meet could as well send the same id.
func (b *Batch) IdentifyEvents() {
	const uuid = len("00000000-0000-0000-0000-000000000000")
	seen := make(map[uint64]uint32, len(b.Events))
	text := make([]byte, 0, uuid*len(b.Events)) // never grows: the ids alias it
	var w twin
	h := digester{w: &w, buf: make([]byte, 0, digestBuffer)}
	for i := range b.Events {
		e := &b.Events[i]
		if e.ClientID != "" || !e.HasTime {
			continue
		}
		w.reset()
		h.text(domainEvent)
		h.content(e)
		h.flush()
		sum := w.sum()
		first := binary.BigEndian.Uint64(sum[:])
		n := seen[first]
		seen[first] = n + 1
		start := len(text)
		text, _ = batch.ContentEventID(sum, n).AppendText(text) // has no error to return
		e.ClientID = unsafe.String(&text[start], len(text)-start)
	}
}

// twin is XXH64 with the seeds 0 and 1: 128 bits.
type twin struct{ a, b xxhash.Digest }

func (t *twin) reset() {
	t.a.ResetWithSeed(0)
	t.b.ResetWithSeed(1)
}

func (t *twin) Write(p []byte) (int, error) {
	_, _ = t.a.Write(p)
	return t.b.Write(p)
}

func (t *twin) sum() (s [16]byte) {
	binary.BigEndian.PutUint64(s[:], t.a.Sum64())
	binary.BigEndian.PutUint64(s[8:], t.b.Sum64())
	return s
}
