package batch

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// vectors is testdata/identity.json, which other implementations read too. It
// was not written by this package.
type vectors struct {
	ForKey []struct {
		Project, Key string
		ID           ID
	} `json:"for_key"`
	ForContent []struct {
		Project, Digest string
		ID              ID
	} `json:"for_content"`
	EventID []struct {
		BatchID ID `json:"batch_id"`
		Index   uint32
		ID      ID
	} `json:"event_id"`
	ClientEventID []struct {
		Project string
		EventID string `json:"event_id"`
		ID      ID
	} `json:"client_event_id"`
	PartID []struct {
		BatchID     ID `json:"batch_id"`
		First, Last uint32
		ID          ID
	} `json:"part_id"`
	ReplayID []struct {
		BatchID ID `json:"batch_id"`
		Index   uint32
		ID      ID
	} `json:"replay_id"`
	DeadLetterID []struct {
		BatchID ID `json:"batch_id"`
		Digest  string
		Index   uint32
		Stage   string
		ID      ID
	} `json:"dead_letter_id"`
	Partition []struct {
		BatchID    ID `json:"batch_id"`
		Partitions uint32
		Partition  uint32
	}
}

func TestPublishedVectors(t *testing.T) {
	raw, err := os.ReadFile("testdata/identity.json")
	require.NoError(t, err)
	var v vectors
	require.NoError(t, json.Unmarshal(raw, &v))
	digest := func(s string) Digest {
		d, err := ParseDigest(s)
		require.NoError(t, err)
		return d
	}
	for _, x := range v.ForKey {
		assert.Equal(t, x.ID, ForKey(x.Project, x.Key), "%q %q", x.Project, x.Key)
	}
	for _, x := range v.ForContent {
		assert.Equal(t, x.ID, ForContent(x.Project, digest(x.Digest)))
	}
	for _, x := range v.EventID {
		assert.Equal(t, x.ID, EventID(x.BatchID, x.Index), "%v %d", x.BatchID, x.Index)
	}
	for _, x := range v.ClientEventID {
		assert.Equal(t, x.ID, ClientEventID(x.Project, x.EventID), x.EventID)
	}
	for _, x := range v.PartID {
		assert.Equal(t, x.ID, PartID(x.BatchID, x.First, x.Last))
	}
	for _, x := range v.ReplayID {
		assert.Equal(t, x.ID, ReplayID(x.BatchID, x.Index))
	}
	for _, x := range v.DeadLetterID {
		assert.Equal(t, x.ID, DeadLetterID(x.BatchID, digest(x.Digest), x.Index, x.Stage))
	}
	for _, x := range v.Partition {
		key := []byte(x.BatchID.String())
		assert.Equal(t, x.Partition, murmur2(key)&math.MaxInt32%x.Partitions, "%s of %d", key, x.Partitions)
	}
	for name, n := range map[string]int{"for_key": len(v.ForKey), "for_content": len(v.ForContent), "event_id": len(v.EventID),
		"client_event_id": len(v.ClientEventID), "part_id": len(v.PartID), "replay_id": len(v.ReplayID),
		"dead_letter_id": len(v.DeadLetterID), "partition": len(v.Partition)} {
		assert.NotZero(t, n, name)
	}
}

// murmur2 is the hash by which Java clients of Kafka choose a partition: that of
// A. Appleby with m = 0x5bd1e995 and the seed 0x9747b28c.
func murmur2(b []byte) uint32 {
	const m = 0x5bd1e995
	h := uint32(0x9747b28c) ^ uint32(len(b))
	for ; len(b) >= 4; b = b[4:] {
		k := binary.LittleEndian.Uint32(b) * m
		k = (k ^ k>>24) * m
		h = h*m ^ k
	}
	for i := len(b) - 1; i >= 0; i-- {
		h ^= uint32(b[i]) << (8 * i)
	}
	if len(b) > 0 {
		h *= m
	}
	h = (h ^ h>>13) * m
	return h ^ h>>15
}

// Nothing that tells two things apart may give them one identity.
func TestIdentitiesDiffer(t *testing.T) {
	a, b := ForKey("p", "a"), ForKey("p", "b")
	d := Digest{1}
	seen := map[ID]string{}
	for name, id := range map[string]ID{
		"key a": a, "key b": b, "key a of another project": ForKey("q", "a"), "moved border": ForKey("pa", ""), "moved border 2": ForKey("", "pa"),
		"content": ForContent("p", d), "other content": ForContent("p", Digest{2}), "content of another project": ForContent("q", d),
		"key that looks like content": ForKey("p", string(d[:])),
		"random":                      Random(), "random again": Random(),
		"event 0": EventID(a, 0), "event 1": EventID(a, 1), "event 0 of b": EventID(b, 0),
		"client event": ClientEventID("p", "a"), "client event of another project": ClientEventID("q", "a"),
		"part": PartID(a, 0, 1), "other part": PartID(a, 0, 2), "part of b": PartID(b, 0, 1), "part from 1": PartID(a, 1, 1),
		"replay": ReplayID(a, 0), "replay 1": ReplayID(a, 1), "replay of b": ReplayID(b, 0),
		"dead": DeadLetterID(a, d, 0, "sink"), "dead of another stage": DeadLetterID(a, d, 0, "collector"),
		"dead 1": DeadLetterID(a, d, 1, "sink"), "dead with another body": DeadLetterID(a, Digest{2}, 0, "sink"), "dead of b": DeadLetterID(b, d, 0, "sink"),
	} {
		other, taken := seen[id]
		assert.False(t, taken, "%s and %s", name, other)
		seen[id] = name
		assert.False(t, id.IsZero(), name)
		if !strings.HasPrefix(name, "event") {
			assert.Equal(t, byte(0x80), id[6]&0xf0, "version 8: %s", name)
			assert.Equal(t, byte(0x80), id[8]&0xc0, "variant: %s", name)
		}
	}
	assert.Equal(t, a, ForKey("p", "a"))
}

func TestEventIDsOfOneBatch(t *testing.T) {
	b := ForKey("p", "k")
	seen := map[ID]bool{}
	for i := range uint32(100_000) {
		id := EventID(b, i)
		assert.False(t, seen[id], i)
		seen[id] = true
		assert.Equal(t, b[:12], id[:12])
	}
}

func TestParseID(t *testing.T) {
	want := ID{0x5f, 0x0f, 0x4b, 0x6e, 0x0c, 0x39, 0x4f, 0x60, 0x9d, 0x2e, 0xd1, 0xa1, 0xf3, 0xc2, 0xb4, 0xa5}
	for _, s := range []string{"5f0f4b6e-0c39-4f60-9d2e-d1a1f3c2b4a5", "5F0F4B6E-0C39-4F60-9D2E-D1A1F3C2B4A5", "5f0f4b6e0c394f609d2ed1a1f3c2b4a5"} {
		id, err := ParseID(s)
		require.NoError(t, err)
		assert.Equal(t, want, id)
		assert.Equal(t, "5f0f4b6e-0c39-4f60-9d2e-d1a1f3c2b4a5", id.String())
	}
	for _, s := range []string{
		"", "5f0f4b6e", "5f0f4b6e-0c39-4f60-9d2e-d1a1f3c2b4a", "5f0f4b6e-0c39-4f60-9d2e-d1a1f3c2b4ag", "5f0f4b6e-0c39-4f60-9d2ed-1a1f3c2b4a5",
		"5f0f4b6e+0c39+4f60+9d2e+d1a1f3c2b4a5", "{5f0f4b6e-0c39-4f60-9d2e-d1a1f3c2b4a5}", "5f0f4b6e0c394f609d2ed1a1f3c2b4a5----",
		"5f0f4b6e0c394f609d2ed1a1f3c2b4-5", "5f0f4b6e-0c39-4f60-9d2e-d1a1f3c2b4a5 ", strings.Repeat("-", 36), strings.Repeat("é", 18),
	} {
		id, err := ParseID(s)
		assert.ErrorIs(t, err, ErrBadID, s)
		assert.Zero(t, id)
	}
}

func TestIDText(t *testing.T) {
	var v struct{ ID ID }
	require.NoError(t, json.Unmarshal([]byte(`{"ID":"5F0F4B6E0C394F609D2ED1A1F3C2B4A5"}`), &v))
	out, err := json.Marshal(v)
	require.NoError(t, err)
	assert.Equal(t, `{"ID":"5f0f4b6e-0c39-4f60-9d2e-d1a1f3c2b4a5"}`, string(out))
	assert.Error(t, json.Unmarshal([]byte(`{"ID":"x"}`), &v))
	assert.True(t, ID{}.IsZero())
}

func TestParseDigest(t *testing.T) {
	d, err := ParseDigest("00112233445566778899aabbccddeeff")
	require.NoError(t, err)
	assert.Equal(t, "00112233445566778899aabbccddeeff", d.String())
	for _, s := range []string{"", "0011", "00112233445566778899aabbccddeefg", "00112233445566778899aabbccddeeff00"} {
		d, err := ParseDigest(s)
		assert.Error(t, err, s)
		assert.Zero(t, d)
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("5f0f4b6e-0c39-4f60-9d2e-d1a1f3c2b4a5")
	f.Add("5F0F4B6E0C394F609D2ED1A1F3C2B4A5")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		require.Equal(t, strings.ToLower(strings.ReplaceAll(s, "-", "")), strings.ReplaceAll(id.String(), "-", ""))
		again, err := ParseID(id.String())
		require.NoError(t, err)
		require.Equal(t, id, again)
	})
}
