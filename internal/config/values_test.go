package config

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseBytes(t *testing.T) {
	for _, tc := range []struct {
		text string
		want Bytes
	}{
		{"0", 0}, {"1048576", 1 << 20}, {"12B", 12}, {"900KiB", 900 << 10}, {"10GiB", 10 << 30}, {"2TiB", 2 << 40},
		{"1kB", 1000}, {"1KB", 1000}, {"5MB", 5e6}, {"3gb", 3e9}, {"1TB", 1e12},
		{" 10 mib ", 10 << 20}, {"1.5KiB", 1536}, {"0.001kB", 1}, {".5KiB", 512},
		{"9223372036854775807", math.MaxInt64}, {"8388607TiB", 8388607 << 40},
	} {
		got, err := ParseBytes(tc.text)
		if assert.NoError(t, err, tc.text) {
			assert.Equal(t, tc.want, got, tc.text)
		}
	}
	for _, text := range []string{
		"", " ", "B", "KiB", "10G", "10K", "1Mi", "-1", "+1", "1e3", "0x10", "1_000", "1/2", "1..2", "1.2.3", ".", "1.3B",
		"9223372036854775808", "8388608TiB", "1 2", "１", "10 Gi B", "99999999999999999999999999999999999999",
	} {
		got, err := ParseBytes(text)
		assert.Error(t, err, "%q gave %v", text, got)
	}
}

func TestBytesString(t *testing.T) {
	for want, b := range map[string]Bytes{
		"0": 0, "1": 1, "1023": 1023, "1KiB": 1024, "1025": 1025, "900KiB": 900 << 10, "10GiB": 10 << 30, "1TiB": 1 << 40, "1025GiB": 1025 << 30,
	} {
		assert.Equal(t, want, b.String())
	}
}

func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{"10GiB", "1.5KiB", "5MB", "1", "", ".", "9223372036854775807"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseBytes(s)
		if err != nil {
			return
		}
		require.GreaterOrEqual(t, v, Bytes(0))
		again, err := ParseBytes(v.String())
		require.NoError(t, err)
		require.Equal(t, v, again)
	})
}

func TestAddresses(t *testing.T) {
	for text, want := range map[string]Addresses{
		"a:1":                       {"a:1"},
		"a:1, b.c:65535 ,[::1]:443": {"a:1", "b.c:65535", "[::1]:443"},
	} {
		got, err := fromText[Addresses](text)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	for _, text := range []string{"", ",", "a:1,", "a", ":1", "a:0", "a:65536", "a:-1", "a:http", "http://a:1", "user@a:1", "::1:443", "a b:1"} {
		_, err := fromText[Addresses](text)
		assert.Error(t, err, text)
	}
}

func TestDSN(t *testing.T) {
	for text, shown := range map[string]string{
		"clickhouse://127.0.0.1:9000/sluice":       "clickhouse://127.0.0.1:9000/sluice",
		"clickhouse://u@h:9000/d":                  "clickhouse://u@h:9000/d",
		"clickhouse://u:p@h:9000/d?secure=true":    "clickhouse://u:******@h:9000/d?secure=true",
		"clickhouse://u:p%40@h:9000,i:9000/d":      "clickhouse://u:******@h:9000,i:9000/d",
		"clickhouse://h:9000/d?password=p&debug=1": "clickhouse://h:9000/d?debug=1&password=******",
	} {
		got, err := fromText[DSN](text)
		require.NoError(t, err, text)
		assert.Equal(t, text, got.Reveal())
		assert.Equal(t, shown, got.String())
	}
	for _, text := range []string{"", "h:9000", "http://h:8123/d", "clickhouse://h/d", "clickhouse:///d", "clickhouse://h:9000/d#x", "clickhouse://:9000/d"} {
		_, err := fromText[DSN](text)
		assert.Error(t, err, text)
	}
}

func FuzzDecodeFile(f *testing.F) {
	for _, s := range []string{"listen: ':1'\n", "a: [x, y]\n", "a: &b 1\nc: *b\n", "a: ~\n", "---\n---\n", "{", "a: {b: c}", "<<: x", "? [a]\n: b\n", "a: *a"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		values, err := decodeFile(text)
		if err != nil {
			return
		}
		for name, v := range values {
			require.NotContains(t, name, "_")
			require.Positive(t, v.line)
		}
	})
}

func TestNearest(t *testing.T) {
	known := map[string]bool{"kafka-brokers": true, "keys-file": true, "listen": true}
	assert.Equal(t, "kafka-brokers", nearest("kafka-broker", known))
	assert.Equal(t, "kafka-brokers", nearest("kakfa-brokers", known))
	assert.Equal(t, "listen", nearest("listn", known))
	assert.Empty(t, nearest("topic", known))
}
