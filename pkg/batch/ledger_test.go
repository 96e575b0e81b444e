package batch

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLedgerRecord(t *testing.T) {
	at := time.Date(2026, 11, 25, 2, 0, 0, 123_000, time.UTC)
	r := LedgerRecord{Kind: LedgerInterval, Collector: ForKey("c", "1"), Epoch: 7, Number: 3, At: at, Settled: 20,
		Voids: []SeqRange{{4, 4}, {8, 11}}, CompleteUntil: at, Log: "l", Offsets: map[int]int64{0: 12, 11: 5},
		Pending: 2, PendingBytes: 100, Oldest: &at, Spool: SpoolIntact}
	b, err := r.Encode()
	require.NoError(t, err)
	back, err := DecodeLedgerRecord(b)
	require.NoError(t, err)
	assert.Equal(t, r, back)
	assert.Equal(t, r.Collector.String()+"/0000000000000007", r.Key())
	r.Kind = LedgerRetire
	assert.Equal(t, r.Collector.String()+"/retire", r.Key())
}

func TestDecodeLedgerRecordRefuses(t *testing.T) {
	for name, value := range map[string]string{
		"nothing": "", "not JSON": "{", "no collector": `{"kind":"open"}`,
		"unknown kind": `{"kind":"other","collector":"5f0f4b6e-0c39-4f60-9d2e-d1a1f3c2b4a5"}`,
	} {
		_, err := DecodeLedgerRecord([]byte(value))
		assert.Error(t, err, name)
	}
}

func FuzzDecodeLedgerRecord(f *testing.F) {
	f.Add([]byte(`{"kind":"open","collector":"5f0f4b6e-0c39-4f60-9d2e-d1a1f3c2b4a5","epoch":1,"offsets":{"0":1}}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		r, err := DecodeLedgerRecord(value)
		if err != nil {
			return
		}
		if b, err := r.Encode(); err == nil { // a year beyond 9999 cannot be written
			_, err = DecodeLedgerRecord(b)
			require.NoError(t, err)
		}
	})
}
