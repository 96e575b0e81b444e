package schema

import (
	"encoding/binary"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

func TestIdentifyEvents(t *testing.T) {
	decode := func(body string) *Batch {
		b := new(Batch)
		require.NoError(t, DecodeJSON([]byte(body), KindExposure, 100, b))
		b.IdentifyEvents()
		return b
	}
	const (
		a = `{"experiment":"e","variant":"v","unit_id":"a","time":1000,"attributes":{"x":"1","y":2}}`
		c = `{"attributes":{"y":2,"x":"1"},"time":1000,"unit_id":"a","variant":"v","experiment":"e"}` // a, written otherwise
		d = `{"experiment":"e","variant":"v","unit_id":"d","time":1000}`
	)
	first, again := decode("["+a+","+a+","+d+"]"), decode("["+d+","+c+`,{"experiment":"new","variant":"v","unit_id":"n","time":5},`+a+"]")
	ids := func(b *Batch) (out []string) {
		for i := range b.Events {
			out = append(out, b.Events[i].ClientID)
		}
		return out
	}
	one, two := ids(first), ids(again)
	assert.Equal(t, []string{one[2], one[0], two[2], one[1]}, two, "known by their content, wherever they are")
	assert.NotEqual(t, one[0], one[1], "two equal events of one batch are two")
	for _, id := range one {
		parsed, err := batch.ParseID(id)
		require.NoError(t, err)
		assert.Equal(t, parsed, batch.ClientEventID("p", id), "taken as it is")
	}

	odd := decode(`[{"experiment":"e","variant":"v","unit_id":"a"},{"experiment":"e","variant":"v","unit_id":"a","time":1,"event_id":"mine"}]`)
	assert.Equal(t, []string{"", "mine"}, ids(odd), "without a time nothing tells a repeat from news")

	// The encoding of docs/identity.md, by hand.
	b := decode(`[{"experiment":"e","variant":"v","unit_id":"u","time":1}]`)
	text := func(s string) string { return string(binary.BigEndian.AppendUint32(nil, uint32(len(s)))) + s }
	encoded := []byte(text("sluice/event/content/1") + "\x01\x01" + string(binary.BigEndian.AppendUint64(nil, 1000)) +
		text("e") + text("v") + text("") + text("") + text("u") + text("") + text("") + text("") + "\x00\x00\x00\x00")
	var sum []byte
	for seed := range uint64(2) {
		h := xxhash.NewWithSeed(seed)
		_, err := h.Write(encoded)
		require.NoError(t, err)
		sum = binary.BigEndian.AppendUint64(sum, h.Sum64())
	}
	id := batch.ID(sum)
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	assert.Equal(t, id.String(), b.Events[0].ClientID)
}

func BenchmarkIdentifyEvents(b *testing.B) {
	body := []byte("[")
	for i := range 1000 {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, `{"experiment":"checkout","variant":"v","unit_id":"user-`...)
		body = append(body, byte('a'+i%26), byte('a'+i/26%26), byte('a'+i/676))
		body = append(body, `","time":1795487185225,"rule":"r","attributes":{"country":"NZ","plan":"family","member":true}}`...)
	}
	body = append(body, ']')
	batch := new(Batch)
	require.NoError(b, DecodeJSON(body, KindExposure, 1000, batch))
	b.ReportAllocs()
	for b.Loop() {
		for i := range batch.Events {
			batch.Events[i].ClientID = ""
		}
		batch.IdentifyEvents()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/event")
}
