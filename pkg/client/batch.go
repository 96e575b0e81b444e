package client

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"
	"time"
)

// batch is events that are sent together. Its key, created and events never change
// once it is sealed.
type batch struct {
	key     string
	created time.Time // since when it waits
	events  []byte    // JSON objects with commas between; nil while it is only on disk
	count   int       // of events, reports included; 0: not known yet (on disk, from an earlier session)
	reports int

	number  uint64 // order of sealing, for Flush
	settled bool   // Flush need not wait for it any more
	counted bool   // in Logger.queued and queuedBytes

	// What follows belongs to the sending goroutine.
	failures  int
	notBefore time.Time // zero: as soon as an endpoint may be used
	tried     uint      // endpoints that failed since it went round all of them, a bit each

	size    int64 // of its file
	written bool  // there may be a file of it
	safe    bool  // there is one, durably

	parent *batch // of a half
	left   int    // halves that are neither done nor on disk
}

// safely reports whether the batch, or one it is a half of, is on disk.
func (b *batch) safely() bool {
	for ; b != nil; b = b.parent {
		if b.safe {
			return true
		}
	}
	return false
}

func newBatch(now time.Time) *batch { return &batch{key: newID(), created: now} }

// add puts an event at the end.
func (b *batch) add(event []byte) {
	if b.count > 0 {
		b.events = append(b.events, ',')
	}
	b.events = append(b.events, event...)
	b.count++
}

// newID is a random UUID. (crypto/rand does not fail.)
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return string(appendUUID(nil, binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), 4))
}

// halfKey is the key of the first or second half of a batch: a UUID of version 8
// (RFC 9562: of one's own making) from a SHA-256 of the batch's key. Whoever halves
// the batch, and however often, gives its halves the same keys.
func halfKey(key string, half byte) string {
	h := sha256.Sum256(append([]byte("sluice half\x00"+key), half))
	return string(appendUUID(nil, binary.BigEndian.Uint64(h[:8]), binary.BigEndian.Uint64(h[8:]), 8))
}

// split takes the events of a batch apart.
func split(events []byte) ([]json.RawMessage, error) {
	var out []json.RawMessage
	err := json.Unmarshal(slices.Concat([]byte("["), events, []byte("]")), &out)
	return out, err
}

// halves makes two batches of one of at least two events.
func (b *batch) halves() ([2]*batch, error) {
	var out [2]*batch
	events, err := split(b.events)
	if err != nil {
		return out, fmt.Errorf("halve batch %s: %w", b.key, err)
	}
	for i, part := range [2][]json.RawMessage{events[:len(events)/2], events[len(events)/2:]} {
		h := &batch{key: halfKey(b.key, byte(i)), created: b.created, number: b.number, parent: b}
		for _, e := range part {
			h.add(e)
			if readEvent(e).isReport() {
				h.reports++
			}
		}
		out[i] = h
	}
	b.left = 2
	return out, nil
}

// readEvent reads an event that the Logger wrote. One it cannot read counts under
// no name.
func readEvent(e json.RawMessage) *logged {
	l := new(logged)
	if json.Unmarshal(e, l) != nil {
		return new(logged)
	}
	return l
}

// The file of a batch: a line "sluice-batch 1 CRC LENGTH", then a JSON object of
// LENGTH bytes whose CRC-32C is CRC, in hexadecimal:
//
//	{"key":"…","created":<epoch ms>,"count":<n>,"reports":<n>,"events":[…]}
//
// Its name is <created, 13 digits>-<key>.batch, so that names sort by age and two
// copies of a batch are one file.
const (
	fileMagic  = "sluice-batch 1 "
	fileSuffix = ".batch"
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func (b *batch) file() string {
	return fmt.Sprintf("%013d-%s%s", b.created.UnixMilli(), b.key, fileSuffix)
}

// encode is the content of the batch's file.
func (b *batch) encode() []byte {
	body := make([]byte, 0, len(b.events)+160)
	body = append(body, `{"key":"`...)
	body = append(body, b.key...)
	body = append(body, `","created":`...)
	body = strconv.AppendInt(body, b.created.UnixMilli(), 10)
	body = append(body, `,"count":`...)
	body = strconv.AppendInt(body, int64(b.count), 10)
	body = append(body, `,"reports":`...)
	body = strconv.AppendInt(body, int64(b.reports), 10)
	body = append(body, `,"events":[`...)
	body = append(body, b.events...)
	body = append(body, "]}"...)
	head := fmt.Sprintf("%s%08x %d\n", fileMagic, crc32.Checksum(body, castagnoli()), len(body))
	return append([]byte(head), body...)
}

// decode reads the content of a batch's file. Its error says what is wrong with it.
func decode(content []byte) (*batch, error) {
	head, body, ok := bytes.Cut(content, []byte("\n"))
	rest, is := strings.CutPrefix(string(head), fileMagic)
	if !ok || !is {
		return nil, fmt.Errorf("the first line is not %q", fileMagic+"…")
	}
	sum, length, _ := strings.Cut(rest, " ")
	if n, err := strconv.Atoi(length); err != nil || n != len(body) {
		return nil, fmt.Errorf("%d bytes instead of %.20q", len(body), length)
	}
	if want := fmt.Sprintf("%08x", crc32.Checksum(body, castagnoli())); sum != want {
		return nil, fmt.Errorf("checksum %s instead of %.20q", want, sum)
	}
	var f struct {
		Key     string          `json:"key"`
		Created int64           `json:"created"`
		Count   int             `json:"count"`
		Reports int             `json:"reports"`
		Events  json.RawMessage `json:"events"`
	}
	if err := json.Unmarshal(body, &f); err != nil {
		return nil, err
	}
	n := len(f.Events)
	if !validKey(f.Key) || f.Count < 1 || f.Reports < 0 || f.Reports > f.Count || n < 4 || f.Events[0] != '[' || f.Events[n-1] != ']' {
		return nil, errors.New("key, counts or events are not a batch's")
	}
	return &batch{key: f.Key, created: time.UnixMilli(f.Created), events: f.Events[1 : n-1], count: f.Count, reports: f.Reports}, nil
}

// validKey reports whether a collector takes the key, and a file may be named by it.
func validKey(key string) bool {
	return key != "" && len(key) <= 64 && !strings.ContainsFunc(key, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z')
	})
}
