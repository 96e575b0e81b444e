package client

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// sink acknowledges everything without reading it.
type sink struct{}

func (sink) RoundTrip(r *http.Request) (*http.Response, error) {
	_ = r.Body.Close()
	return &http.Response{StatusCode: 202, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"batch_id":"b"}`)), Request: r}, nil
}

func benchLogger(b *testing.B) *Logger {
	l, err := New(Options{Endpoints: []string{"http://a.test"}, HTTP: &http.Client{Transport: sink{}}, QueueEvents: 1 << 20, QueueBytes: 1 << 30})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, l.Close(context.Background())) })
	return l
}

func BenchmarkExposure(b *testing.B) {
	for name, e := range map[string]Exposure{
		"plain":           {Experiment: "checkout_button", Variant: "green", UnitID: "user-1234567"},
		"with attributes": {Experiment: "checkout_button", Variant: "green", UnitID: "user-1234567", Rule: "50-50", Reason: "SPLIT", Attributes: map[string]any{"country": "DE", "paying": true, "n": 17}},
	} {
		b.Run(name, func(b *testing.B) {
			l := benchLogger(b)
			b.ReportAllocs()
			for b.Loop() {
				l.Exposure(e)
			}
		})
	}
}

// What a full queue costs the caller.
func BenchmarkExposureDropped(b *testing.B) {
	l := benchLogger(b)
	l.opts.QueueEvents = 0
	b.ReportAllocs()
	for b.Loop() {
		l.Exposure(Exposure{Experiment: "checkout_button", Variant: "green", UnitID: "user-1234567"})
	}
}

func BenchmarkExposureParallel(b *testing.B) {
	l := benchLogger(b)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			l.Exposure(Exposure{Experiment: "checkout_button", Variant: "green", UnitID: "user-1234567"})
		}
	})
}
