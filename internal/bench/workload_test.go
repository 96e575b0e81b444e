package bench

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/schema"
)

func made(t *testing.T, w Workload) (*generator, *template) {
	t.Helper()
	g, err := newGenerator(w)
	require.NoError(t, err)
	list, err := g.templates(1, 2)
	require.NoError(t, err)
	return g, list[0]
}

func decoded(t *testing.T, body []byte) *schema.Batch {
	t.Helper()
	var b schema.Batch
	require.NoError(t, schema.DecodeJSON(body, schema.KindExposure, 10_000, &b))
	require.Empty(t, b.Rejected)
	return &b
}

func TestWorkloadCheck(t *testing.T) {
	require.NoError(t, Workload{}.Check())
	for says, w := range map[string]Workload{
		`protocol "telex": want one of [amplitude eppo`: {Protocol: "telex"},
		"-1 events a request: want 1 to 10000":          {Events: -1},
		"events of 10 bytes: want 287 to 4096":          {EventBytes: 10},
		`encoding "br": want none, gzip or zstd`:        {Encoding: "br"},
		"a share of 1 duplicates: want 0 to 0.9":        {Duplicates: 1},
		"20000 experiments: want 1 to 10000":            {Experiments: 20_000},
		"-5 units: want 1 to 99999999":                  {Units: -5},
	} {
		assert.ErrorContains(t, w.Check(), says)
	}
}

func TestNativeEvents(t *testing.T) {
	for _, size := range []int{287, 288, 289, 295, 500, 4096} {
		_, tmpl := made(t, Workload{Events: 10, EventBytes: size})
		body := bodyOf(tmpl)
		assert.Equal(t, 10*size+10+1, len(body), "commas and brackets")
		require.Len(t, decoded(t, body).Events, 10)
	}
}

func TestRequestsDiffer(t *testing.T) {
	g, tmpl := made(t, Workload{Events: 3})
	ids, keys := map[string]bool{}, map[string]bool{}
	for n := range uint64(50) {
		tmpl.stamp(g, n<<16)
		keys[string(tmpl.wire[tmpl.key:tmpl.key+keyDigits])] = true
		for i, e := range decoded(t, bodyOf(tmpl)).Events {
			ids[strings.Clone(e.ClientID)] = true // it aliases the request
			assert.Equal(t, "user-"+g.unit(n<<16, i), e.UnitID)
		}
	}
	assert.Equal(t, 150, len(ids))
	assert.Equal(t, 50, len(keys))
}

// Zipf: few experiments have most events, and many have some.
func TestDistribution(t *testing.T) {
	g, err := newGenerator(Workload{Events: 1000})
	require.NoError(t, err)
	list, err := g.templates(20, 2)
	require.NoError(t, err)
	count := map[string]int{}
	for _, tmpl := range list {
		for _, e := range decoded(t, bodyOf(tmpl)).Events {
			count[e.Experiment]++
		}
	}
	most := 0
	for _, n := range count {
		most = max(most, n)
	}
	assert.Equal(t, most, count["experiment-0000"])
	assert.Greater(t, most, 20_000/10)
	assert.Greater(t, len(count), 150)
	units := map[string]bool{}
	for i := range drawn {
		units[g.unit(0, i)] = true
	}
	assert.Greater(t, len(units), drawn/4, "most units are rare")
	assert.Less(t, len(units), drawn)
}

func TestEncodings(t *testing.T) {
	for encoding, open := range map[string]func(io.Reader) (io.Reader, error){
		"gzip": func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"zstd": func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r, zstd.WithDecoderConcurrency(1)) },
	} {
		_, tmpl := made(t, Workload{Events: 20, Encoding: encoding})
		assert.Contains(t, string(tmpl.wire), "Content-Encoding: "+encoding)
		r, err := open(bytes.NewReader(bodyOf(tmpl)))
		require.NoError(t, err)
		body, err := io.ReadAll(r)
		require.NoError(t, err)
		assert.Equal(t, 20*295+21, len(body), "events have the same size")
		for _, e := range decoded(t, body).Events {
			assert.Empty(t, e.ClientID, "which could not differ")
			assert.NotContains(t, e.UnitID, "@")
		}
	}
}

func TestEveryProtocolIsJSON(t *testing.T) {
	assert.Len(t, Others(), len(Protocols())-1)
	for _, p := range Protocols() {
		_, tmpl := made(t, Workload{Protocol: p, Events: 2})
		assert.True(t, json.Valid(bodyOf(tmpl)), "%s: %s", p, bodyOf(tmpl))
		for _, mark := range []string{unitMark, eventMark, keyMark} {
			assert.NotContains(t, string(tmpl.wire), mark, p)
		}
	}
}

func TestRecords(t *testing.T) {
	g, err := newGenerator(Workload{Events: 5})
	require.NoError(t, err)
	list, err := g.recordTemplates(2, 2)
	require.NoError(t, err)
	ids := map[[16]byte]bool{}
	for n := range uint64(20) {
		r := list[n%2].stamped(g, n+1<<30, nil)
		var b schema.Batch
		require.NoError(t, schema.DecodeRecord(r.Value, &b))
		assert.Equal(t, r.BatchID, b.ID)
		assert.Equal(t, r.DedupID, b.DedupID)
		assert.Equal(t, r.Digest, b.Digest)
		for i, e := range b.Events {
			ids[e.ID] = true
			assert.Equal(t, e.ID.String(), e.ClientID)
			assert.Equal(t, "user-"+g.unit(n+1<<30, i), e.UnitID)
		}
		ids[b.ID] = true
	}
	assert.Equal(t, 20*6, len(ids))
}
