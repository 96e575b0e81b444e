package batch

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// ID is a 128-bit identity, written as a UUID. Every ID this package makes is
// a version 8 UUID (RFC 9562, section 5.8: custom layout), so that any UUID
// parser takes it and nobody mistakes it for a random or a time-ordered one.
type ID [16]byte

// Digest is a 128-bit fingerprint of a batch's events as they were sent:
// before defaults, skew correction and clamping. Two copies of a batch have
// the same Digest whichever collector decoded them and whenever.
type Digest [16]byte

// ErrBadID is returned by ParseID for text that is not a UUID.
var ErrBadID = errors.New("not a UUID (want 32 hex digits, with or without hyphens at 8-4-4-4-12)")

// Domain strings keep identities of different kinds apart: without them a
// client could choose an idempotency key that equals another kind's input.
// They are part of the published algorithm (docs/identity.md); changing one
// changes every identity.
const (
	domainKey     = "sluice/batch/key/1"
	domainContent = "sluice/batch/content/1"
	domainPart    = "sluice/batch/part/1"
	domainReplay  = "sluice/batch/replay/1"
	domainDead    = "sluice/dead/1"
	domainClient  = "sluice/event/client/1"
	domainRepeat  = "sluice/event/repeat/1"
)

// indexSpread is 2^32 divided by the golden ratio, made odd (Knuth, TAOCP 6.4):
// multiplying by an odd number permutes the 32-bit integers, so the events of
// one batch never share an identity, and neighbours land far apart.
const indexSpread = 0x9E3779B1

// ForKey returns the identity of the batch that project sent under an
// idempotency key. The same pair gives the same ID in every collector and every
// version of this package.
func ForKey(project, key string) ID {
	return hash(domainKey, []byte(project), []byte(key))
}

// ForContent returns the identity of a batch that has no idempotency key but
// whose events tell repeats apart by themselves (each has an id of its own or a
// time in milliseconds): an exact repeat has the same digest, so the same ID.
func ForContent(project string, d Digest) ID {
	return hash(domainContent, []byte(project), d[:])
}

// Random returns a fresh identity, for a batch of which a repeat cannot be
// told from new data.
func Random() ID {
	var id ID
	rand.Read(id[:]) // never fails: crypto/rand.Read crashes the process instead
	return id.stamped()
}

// EventID returns the identity of the event at index (counted from 0 in the
// batch as sent) that came without an id of its own: the batch's, with the last
// four bytes XORed by (index+1)·0x9E3779B1 mod 2³², big-endian. Within a batch
// it is a permutation, so two events never share one; across batches it is as
// unlikely to collide as the remaining 90 bits of a hash; and a person sees
// which batch an event came from.
func EventID(b ID, index uint32) ID {
	tail := binary.BigEndian.Uint32(b[12:])
	binary.BigEndian.PutUint32(b[12:], tail^(index+1)*indexSpread)
	return b
}

// ClientEventID returns the identity of an event that its sender gave an id. A
// UUID is taken as it is; any other text is hashed together with the project.
func ClientEventID(project, s string) ID {
	if id, err := ParseID(s); err == nil {
		return id
	}
	return hash(domainClient, []byte(project), []byte(s))
}

// ContentEventID returns the identity of an event that is known by its content.
// sum is a hash of that, and n counts the events before it in the batch that have
// the same one: equal events of one batch are several events.
func ContentEventID(sum [16]byte, n uint32) ID {
	if n == 0 {
		return ID(sum).stamped()
	}
	return hash(domainRepeat, sum[:], be32(n))
}

// PartID returns the dedup id of one part of a batch that passed the record
// size limit: the part that holds the original indices first to last,
// inclusive.
func PartID(b ID, first, last uint32) ID {
	return hash(domainPart, b[:], be32(first), be32(last))
}

// ReplayID returns the dedup id of a dead event that is sent again: replaying
// it twice gives the same id, so the second replay is a duplicate.
func ReplayID(b ID, index uint32) ID {
	return hash(domainReplay, b[:], be32(index))
}

// DeadLetterID returns the identity of what could not be stored of a batch at
// one stage ("collector", "sink", "conflict"). d is the digest of the copy it
// came from: two different bodies under one key are two dead letters.
func DeadLetterID(b ID, d Digest, index uint32, stage string) ID {
	return hash(domainDead, b[:], d[:], be32(index), []byte(stage))
}

// hash is the first 16 bytes of SHA-256 over the domain and the fields, each
// preceded by its length in bytes as a big-endian uint32, with the version and
// variant bits of a version 8 UUID written over it.
func hash(domain string, fields ...[]byte) ID {
	var buf [256]byte
	b := buf[:0]
	b = binary.BigEndian.AppendUint32(b, uint32(len(domain)))
	b = append(b, domain...)
	for _, f := range fields {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	sum := sha256.Sum256(b)
	return ID(sum[:16]).stamped()
}

func (id ID) stamped() ID {
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// IsZero reports whether the identity was never set.
func (id ID) IsZero() bool { return id == ID{} }

// String writes the identity as a lower-case UUID.
func (id ID) String() string {
	var b [36]byte
	return string(id.appendTo(b[:0]))
}

// AppendText implements encoding.TextAppender. It returns no error.
func (id ID) AppendText(b []byte) ([]byte, error) { return id.appendTo(b), nil }

func (id ID) appendTo(b []byte) []byte {
	const digits = "0123456789abcdef"
	var text [36]byte
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	for i, v := range id {
		at := hyphened[i]
		text[at], text[at+1] = digits[v>>4], digits[v&0xf]
	}
	return append(b, text[:]...)
}

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return id.appendTo(nil), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(b []byte) error {
	v, err := ParseID(string(b))
	if err != nil {
		return err
	}
	*id = v
	return nil
}

// String writes the digest as 32 hex digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// ParseDigest reads what Digest.String wrote.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if len(s) != 32 {
		return d, fmt.Errorf("digest of %d characters: want 32 hex digits", len(s))
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return Digest{}, fmt.Errorf("digest %q: %w", s, err)
	}
	return d, nil
}

// ParseID reads a UUID of any version in either case, with or without its
// hyphens. It returns ErrBadID for anything else.
func ParseID(s string) (ID, error) {
	var id ID
	switch len(s) {
	case 32:
	case 36:
		if s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
			return id, ErrBadID
		}
	default:
		return id, ErrBadID
	}
	places := hyphened
	if len(s) == 32 {
		places = plain
	}
	for i := range id {
		at := places[i]
		high, low := hexDigits[s[at]], hexDigits[s[at+1]]
		if high == 0 || low == 0 {
			return ID{}, ErrBadID
		}
		id[i] = (high-1)<<4 | (low - 1)
	}
	return id, nil
}

// Where the digits of each byte are, with hyphens and without.
const (
	hyphened = "\x00\x02\x04\x06\x09\x0b\x0e\x10\x13\x15\x18\x1a\x1c\x1e\x20\x22"
	plain    = "\x00\x02\x04\x06\x08\x0a\x0c\x0e\x10\x12\x14\x16\x18\x1a\x1c\x1e"
)

// hexDigits are the values of the hex digits, plus one; 0 is none.
var hexDigits = [256]byte{
	'0': 1, '1': 2, '2': 3, '3': 4, '4': 5, '5': 6, '6': 7, '7': 8, '8': 9, '9': 10,
	'a': 11, 'b': 12, 'c': 13, 'd': 14, 'e': 15, 'f': 16,
	'A': 11, 'B': 12, 'C': 13, 'D': 14, 'E': 15, 'F': 16,
}
