// Package client logs exposures and custom events of a Go program to Sluice
// collectors.
//
//	logger, err := client.New(client.Options{
//		Endpoints: []string{"https://collect-a.example.com", "https://collect-b.example.com"},
//		Key:       key,
//		Dir:       "/var/lib/shop/exposures",
//	})
//	...
//	logger.Exposure(client.Exposure{Experiment: "checkout", Variant: "blue", UnitID: user})
//	...
//	err = logger.Close(ctx)
//
// Exposure and Event put an event into a batch and return: they never wait for the
// network or the disk, and never fail the caller. A batch is sent when it has
// BatchEvents events or BatchBytes bytes, or is FlushInterval old.
//
// # Each batch once
//
// A batch has a random Idempotency-Key, and its events are written down once. Every
// attempt, to whichever endpoint, in this process or a later one, sends the same
// key and the same events, and the collectors' side stores the first copy only. So
// a batch whose answer was lost is simply sent again. A batch too large for a
// collector (413) is halved; the keys of the halves are a function of its own key,
// so a batch halved twice, because a crash came between, has the same halves.
//
// # What becomes of a batch
//
//	202, 200                       done; what the server rejected it keeps as dead letters
//	408, 429, 5xx, no answer       again, at the next endpoint at once
//	401, 403, 404, other statuses  a wrong key or URL, or something that is no collector:
//	                               kept, and tried again every few minutes until MaxAge
//	413                            halved; one event alone is dropped
//	400, 415, 422                  dropped (422 all_rejected: kept by the server as dead letters)
//
// An endpoint that failed is left alone for a random time between 0 and
// min(RetryCap, RetryBase·2^n), on top of what it asked for with Retry-After, and
// then tried with one request at a time until it answers. The first endpoint that
// may be used is used, so the first one of the list is returned to.
//
// # What is kept and what is lost
//
// Without Dir, everything not acknowledged is lost when the process ends, and
// Close says how much.
//
// With Dir, a batch is written there when it cannot be sent: after a failed attempt
// that no other endpoint makes good at once, while no endpoint works, when the queue
// is half full, and on Close. It is on disk when its file and the directory are
// fsynced. The next Logger on the same directory sends what it finds, with the same
// keys. A process killed at any moment loses what was logged in the last
// FlushInterval, and the batches that waited for the answer to their first attempt.
//
// Several processes may share a directory, if they log to one project: whatever is in
// it is sent with the Key of whoever finds it, and under two projects' keys it would
// be stored in both. There is no lock: two that send the same
// file send the same key, which stores it once, and whoever removes the file counts
// for it. DirMaxBytes is then the bound of each of them. A file that cannot be read
// is renamed to *.damaged, counted, and left for a person.
//
// Full is full: when QueueEvents or QueueBytes are in memory, the newest event is
// dropped. What waits was seen first by its user, and first exposures are what an
// experiment is analysed by. When DirMaxBytes are on disk, batches stay in memory.
//
// What had to be dropped is counted per experiment, variant and reason
// (queue_full, expired, refused, too_large) and reported with the next batch as
// custom events named sluice.dropped, so that an experiment which lost exposures
// can be told from one that did not.
package client
