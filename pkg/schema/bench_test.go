package schema

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"sluice/pkg/batch"
)

// benchBody is 100 exposures of 295 bytes.
func benchBody() []byte {
	var b bytes.Buffer
	b.WriteByte('[')
	for i := range 100 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"experiment":"checkout_button_color","variant":"treatment","unit_id":"user-%08d","unit_type":"account","time":"2026-11-24T06:59:%02d.%03dZ",`+
			`"rule":"rule_42","reason":"targeted","event_id":"5f0f4b6e-0c39-4f60-9d2e-%012x",`+
			`"attributes":{"country":"DE","platform":"ios","version":"4.12"}}`, i, i%60, i, i)
	}
	b.WriteByte(']')
	return b.Bytes()
}

func BenchmarkDecodeJSON(b *testing.B) {
	body := benchBody()
	b.Run("reused", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(body)))
		var v Batch
		for b.Loop() {
			v.Reset()
			if err := DecodeJSON(body, KindExposure, 10_000, &v); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/event")
	})
	b.Run("fresh", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var v Batch
			if err := DecodeJSON(body, KindExposure, 10_000, &v); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/event")
	})
}

func BenchmarkDecodeNDJSON(b *testing.B) {
	body := benchBody()
	body = bytes.ReplaceAll(body[1:len(body)-1], []byte("},{"), []byte("}\n{"))
	b.ReportAllocs()
	var v Batch
	for b.Loop() {
		v.Reset()
		if err := DecodeNDJSON(body, KindExposure, 10_000, &v); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/event")
}

func benchBatch(b testing.TB) *Batch {
	v := &Batch{Project: "project", Source: "native", SDK: "sluice-go/1.0.0", ID: batch.ForKey("project", "key")}
	if err := DecodeJSON(benchBody(), KindExposure, 10_000, v); err != nil {
		b.Fatal(err)
	}
	v.ComputeDigest()
	v.Resolve(time.Date(2026, 11, 24, 7, 0, 0, 0, time.UTC), Limits{Past: 720 * time.Hour, Future: time.Hour})
	return v
}

func BenchmarkAfterDecoding(b *testing.B) {
	var copied []byte
	scratch := make([]byte, 0, 32<<10)
	defer func() { _ = copied }()
	v := benchBatch(b)
	now := time.Date(2026, 11, 24, 7, 0, 0, 0, time.UTC)
	for name, f := range map[string]func(){
		"ComputeDigest":   func() { v.ComputeDigest() },
		"RejectOversized": func() { v.RejectOversized(900 << 10) },
		"Resolve":         func() { v.Resolve(now, Limits{Past: 720 * time.Hour, Future: time.Hour}) },
		"Split":           func() { v.Split(900 << 10) },
		"AppendRecord":    func() { AppendRecord(nil, v, v.whole()) },
		"AppendRecord and copy": func() {
			scratch = AppendRecord(scratch[:0], v, v.whole())
			copied = bytes.Clone(scratch)
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/event")
		})
	}
}

func BenchmarkDecodeRecord(b *testing.B) {
	v := benchBatch(b)
	value := AppendRecord(nil, v, v.whole())
	b.ReportAllocs()
	b.SetBytes(int64(len(value)))
	for b.Loop() {
		var out Batch
		if err := DecodeRecord(value, &out); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/event")
}

func BenchmarkDecodeProto(b *testing.B) {
	v := benchBatch(b)
	value := AppendRecord(nil, v, v.whole())
	b.ReportAllocs()
	b.SetBytes(int64(len(value)))
	var out Batch
	for b.Loop() {
		out.Reset()
		if err := DecodeProto(value, KindExposure, 10_000, &out); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/event")
}
