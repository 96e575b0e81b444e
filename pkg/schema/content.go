package schema

import (
	"crypto/sha256"
	"unsafe"

	"sluice/pkg/batch"
)

// domainEvent keeps these hashes apart from every other one, and is their version.
const domainEvent = "sluice/event/content/1"

// IdentifyEvents gives every event that has a time and no id of its own one that
// is a hash of its content, and of how many equal events came before it in the
// batch (docs/identity.md). It is for SDKs that name neither events nor batches and
// send what failed again among newer events: the copies then are one by their
// event_id. Call it when the batch was decoded, before ComputeDigest.
func (b *Batch) IdentifyEvents() {
	const uuid = len("00000000-0000-0000-0000-000000000000")
	seen := make(map[batch.ID]uint32, len(b.Events))
	text := make([]byte, 0, uuid*len(b.Events)) // never grows: the ids alias it
	h := digester{h: sha256.New(), buf: make([]byte, 0, digestBuffer)}
	var sum [sha256.Size]byte
	for i := range b.Events {
		e := &b.Events[i]
		if e.ClientID != "" || !e.HasTime {
			continue
		}
		h.h.Reset()
		h.text(domainEvent)
		h.content(e)
		h.flush()
		h.h.Sum(sum[:0])
		id := batch.ContentEventID(sum, 0)
		if n := seen[id]; n == 0 {
			seen[id] = 1
		} else {
			seen[id] = n + 1
			id = batch.ContentEventID(sum, n)
		}
		start := len(text)
		text, _ = id.AppendText(text) // has no error to return
		e.ClientID = unsafe.String(&text[start], len(text)-start)
	}
}
