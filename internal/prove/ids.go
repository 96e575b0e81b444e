package prove

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// eventID is an event's id as ClickHouse has it: the bytes of a UUID in the order
// in which they are written.
type eventID [16]byte

// String writes the id as a lower-case UUID.
func (id eventID) String() string {
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// parseID reads what String wrote.
func parseID(s string) (eventID, error) {
	var id eventID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return id, fmt.Errorf("%.40q is no UUID", s)
	}
	var digits [32]byte
	n := 0
	for _, r := range [...][2]int{{0, 8}, {9, 13}, {14, 18}, {19, 23}, {24, 36}} {
		n += copy(digits[n:], s[r[0]:r[1]])
	}
	if _, err := hex.Decode(id[:], digits[:]); err != nil {
		return id, fmt.Errorf("%q is no UUID: %w", s, err)
	}
	return id, nil
}

// mint makes the ids of a run's events and reads them back: an id is the event's
// place in the traffic (batch and index), enciphered by a key that is the seed's.
// So every event has an id of its own, nothing has to be kept to know an id again,
// and one that was never given is told: of 2^48 foreign ids one passes.
type mint struct{ block cipher.Block }

func newMint(seed uint64) (mint, error) {
	key := sha256.Sum256(binary.BigEndian.AppendUint64([]byte("sluice prove: event ids: "), seed))
	block, err := aes.NewCipher(key[:16])
	if err != nil {
		return mint{}, fmt.Errorf("prepare the events' ids: %w", err)
	}
	return mint{block}, nil
}

func (m mint) id(batch uint64, index int) (id eventID) {
	binary.BigEndian.PutUint64(id[:], batch)
	binary.BigEndian.PutUint16(id[8:], uint16(index))
	m.block.Encrypt(id[:], id[:])
	return id
}

// place is where an id belongs; ok is false for one that was not made here.
func (m mint) place(id eventID) (batch uint64, index int, ok bool) {
	m.block.Decrypt(id[:], id[:])
	return binary.BigEndian.Uint64(id[:]), int(binary.BigEndian.Uint16(id[8:])), [6]byte(id[10:]) == [6]byte{}
}
