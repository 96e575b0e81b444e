// Package spool is the collector's disk: records that Kafka cannot take now wait
// here, through kill -9 and power loss, until it can. It is a log of our own,
// because of what must hold when a disk is damaged: the collector starts, every
// intact record is delivered, before and behind the damage, and what is not is
// named (docs/adr/0011-the-spool-is-our-own-log.md).
//
// # Promises
//
//   - When Append returns nil, the records are on the disk: the file is fsynced, and
//     so is the directory if the file is new.
//   - Read returns every record that was appended and not removed, in order, unless
//     its bytes are damaged; Remove may be forgotten by a crash (a second's worth),
//     which sends copies.
//   - A file that could not be written or fsynced is never written to again.
//   - Nothing is dropped to make room. A full spool refuses.
//   - Damage is set aside and counted, never deleted.
//
// # Files
//
//	segments/
//	  0000000000000007-9f3a…c2.seg      a segment: its ordinal, its marker
//	  manifest                          which segments there are, what was lost
//	  progress.a, progress.b            which records were removed, in turns
//	  damaged/NAME-OFFSET-LENGTH        a stretch that could not be read
//	  damaged/NAME                      a segment of which nothing could be read
//	  refused/NUMBER.seg, NUMBER.txt    what Kafka does not take, and why
//
// A segment, little-endian; every checksum is a CRC-32C:
//
//	┌──────────────────────────────── header, 72 bytes ─────────────────────────────┐
//	│ "sluiseg1" 8 │ marker 8 │ ordinal 8 │ first number 8 │ not before, µs 8       │
//	│ previous: ordinal 8, length 8, next number 8 │ 0 4 │ checksum 4               │
//	├──────────────────────────────── record ───────────────────────────────────────┤
//	│ marker 8 │ header length 4 │ value length 4 │ value checksum 4 │ events 4     │
//	│ number 8 │ received, µs 8 │ batch 16 │ dedup 16 │ digest 16 │ collector 16    │
//	│ epoch 8 │ seq 8 │ project length 2 │ trace length 2 │ index in its group 4    │
//	│ project │ trace context │ checksum of all that 4 ├─ value ─────────────────── │
//	├──────────────────────────────── … ────────────────────────────────────────────┤
//	│ record, record, record                                                        │
//	├──────────────────────────────── footer, if it was closed in order ────────────┤
//	│ "sluiend1" 8 │ ordinal 8 │ first number 8 │ next number 8 │ records' end 8     │
//	│ a block of 64 records: offset 4, none received before, µs 8 │ …               │
//	│ footer's length 4 │ checksum 4 │ "sluiend1" 8                                 │
//	└───────────────────────────────────────────────────────────────────────────────┘
//
// The marker is eight random bytes. A reader that comes to something that is not
// an intact record header looks for the next marker that begins one; as nobody
// outside knows it, no event can be made to look like a record.
//
// # Writing
//
// One goroutine writes. Callers put their encoded records into a buffer; whatever
// is there when the disk is free becomes one write and one fdatasync. A new segment
// is written under another name, with its first group in it, fsynced, renamed, and
// the directory fsynced: so a segment without an intact record is always damage,
// and a file that was never finished never looks like one. Its header says where
// the one before it ended, as far as it was acknowledged; what lies beyond is no
// damage. A process never appends to a file that it has not made.
//
// After a failed write or fsync the segment is left as it is: its callers get the
// error, and the next group begins another segment.
//
// A second goroutine does what nobody waits for: it writes footers, the manifest
// and the progress, copies damage aside, and deletes segments of which every
// record is removed, in any order. The manifest forgets a segment before its file
// is deleted, and what was lost is written down before that.
//
// # Start
//
// Of a segment with a footer only the header and the footer are read, so that 10
// GiB take a tenth of a second. One without (a crash, an error, the last) is read
// whole. Numbers within a segment are consecutive, and its end is known from the
// next header, the manifest or the footer, so that what is missing is counted, not
// guessed. Only of the newest segment the end is not known: there, a damaged last
// write cannot be told from a torn one, unless the progress file, at most a second
// older, says that it was acknowledged.
//
// # Assumptions
//
//   - After an fsync of a file and of its directory, both survive a power loss. A
//     disk that lies about that loses what it lied about; records that were
//     acknowledged over a second before are then reported as lost.
//   - A write that was fsynced is not torn by a later one to the same file.
//   - rename replaces a file as a whole.
//   - Only one process writes (internal/ledger's lock on collector-id).
//
// # Limits
//
//   - Damage in a segment with a footer is found when it is read: by the drain, or
//     by sluice spool verify.
//   - A block that cannot be read (EIO) counts as damaged even if a later read would
//     succeed; its segment's bytes are copied aside as far as they can be read.
//   - A record is at most 64 MiB, one Append at most 256 MiB.
package spool
