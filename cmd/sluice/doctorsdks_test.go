package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/doctor"
	"sluice/internal/ingest"
	"sluice/internal/protocol"
	"sluice/internal/protocol/amplitude"
	"sluice/internal/protocol/eppo"
	"sluice/internal/protocol/growthbook"
	"sluice/internal/protocol/launchdarkly"
	"sluice/internal/protocol/native"
	"sluice/internal/protocol/optimizely"
	"sluice/internal/protocol/otlp"
	"sluice/internal/protocol/posthog"
	"sluice/internal/protocol/segment"
	"sluice/internal/protocol/statsig"
	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

func everyProtocol() []protocol.Endpoint {
	return slices.Concat(native.Endpoints(), statsig.Endpoints(), launchdarkly.Endpoints(), segment.Endpoints(), posthog.Endpoints(),
		amplitude.Endpoints(), optimizely.Endpoints(), otlp.Endpoints(), growthbook.Endpoints(), eppo.Endpoints())
}

// shortcut is what comes after a collector, all in memory: what is published can be
// asked for at once.
type shortcut struct {
	mu      sync.Mutex
	batches []*schema.Batch
}

func (s *shortcut) Publish(_ context.Context, records []batch.Record) (batch.Durable, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range records {
		b := &schema.Batch{}
		if err := schema.DecodeRecord(r.Value, b); err != nil {
			return "", err
		}
		s.batches = append(s.batches, b)
	}
	return batch.InKafka, nil
}

func (s *shortcut) Accept(int) batch.Stamp    { return batch.Stamp{ReceivedAt: time.Now(), FirstSeq: 1} }
func (s *shortcut) Withdraw(batch.Stamp, int) {}
func (s *shortcut) Ready() error              { return nil }

func (s *shortcut) Check(context.Context) error { return nil }

func (s *shortcut) Rows(_ context.Context, experiment, unit string, _ time.Time) (rows []doctor.Row, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.batches {
		for i := range b.Events {
			e := &b.Events[i]
			if e.Kind != schema.KindExposure || e.Experiment != experiment || e.UnitID != unit {
				continue
			}
			at := time.UnixMicro(e.Time).UTC()
			rows = append(rows, doctor.Row{
				Exposure: doctor.Exposure{Experiment: strings.Clone(e.Experiment), Variant: strings.Clone(e.Variant),
					UnitType: strings.Clone(e.UnitType), UnitID: strings.Clone(e.UnitID), Time: &at, Source: strings.Clone(b.Source)},
				Project: b.Project, ReceivedAt: time.UnixMicro(b.ReceivedAt), TimeAdjusted: e.TimeAdjusted, Path: "direct",
			})
		}
	}
	return rows, nil
}

func (s *shortcut) Dead(context.Context, string, time.Time) ([]doctor.Dead, error) { return nil, nil }

func (s *shortcut) Holdup(context.Context) (doctor.Holdup, error) { return doctor.Holdup{}, nil }

// theKey lets one key in.
type theKey string

func (k theKey) Lookup(key string) (ingest.Grant, error) {
	if key != string(k) {
		return ingest.Grant{}, ingest.ErrUnknownKey
	}
	return ingest.Grant{ID: "k", Project: "shop", Scopes: []string{"exposures"}}, nil
}

// A whole collector takes each SDK's request, finds the key in it, makes the very
// exposure of it and nothing else, and answers what that SDK takes for success.
func TestDoctorSpeaksLikeEverySDK(t *testing.T) {
	const key = "some.Key/with+signs="
	for _, sdk := range doctor.SDKs() {
		t.Run(sdk.Name, func(t *testing.T) {
			if sdk.Name == "launchdarkly-js" {
				// A key in a path is an id: it has no slash.
				runLikeSDK(t, sdk, "5f0f4b6e0c398f609d2ed1a1")
				return
			}
			runLikeSDK(t, sdk, key)
		})
	}
}

func runLikeSDK(t *testing.T, sdk doctor.SDK, key string) {
	pipe := &shortcut{}
	collector, err := ingest.New(ingest.Options{Endpoints: everyProtocol(), Publisher: pipe, Ledger: pipe, Keys: theKey(key)})
	require.NoError(t, err)
	var got *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		collector.ServeHTTP(w, r)
	}))
	defer server.Close()
	options := doctor.Options{SDK: sdk, URL: server.URL, Key: key, Wait: 5 * time.Second, Store: pipe, Client: server.Client()}

	r, err := doctor.Run(t.Context(), options)
	require.NoError(t, err)
	assert.Empty(t, r.Problems)
	require.NotNil(t, r.Answer)
	require.NotNil(t, r.Verdict)
	assert.Equal(t, doctor.Done, r.Verdict.Does, "%+v", r.Answer)
	assert.Equal(t, doctor.StateStored, r.Arrival.State)
	require.NotNil(t, r.Arrival.Row)
	assert.Equal(t, "shop", r.Arrival.Row.Project)
	assert.NotContains(t, r.Sent.URL, key)
	require.Len(t, pipe.batches, 1)
	b := pipe.batches[0]
	assert.Len(t, b.Events, 1)
	assert.Empty(t, b.Rejected)
	if sdk.Name != "growthbook" {
		assert.True(t, b.Events[0].Time == r.Sent.Time.UnixMicro())
	}
	if sdk.As[0] == '@' && sdk.Name != "optimizely" {
		assert.NotEmpty(t, b.SDK)
	}
	assert.Equal(t, sdk.Name == "launchdarkly" || sdk.Name == "otlp", slices.Contains(got.TransferEncoding, "chunked"))

	// The same with a key nobody knows: refused, and said where the key was.
	options.Key = "wrong"
	r, err = doctor.Run(t.Context(), options)
	require.NoError(t, err)
	require.Len(t, r.Problems, 1)
	assert.Equal(t, http.StatusUnauthorized, r.Answer.Status)
	assert.Equal(t, "unknown_key", r.Answer.Code, "%s", r.Answer.Body)
	assert.NotEqual(t, doctor.Done, r.Verdict.Does)
	assert.Contains(t, r.Problems[0].What, sdk.KeyIn)
	assert.Contains(t, r.Problems[0].Do, "keys add")
	assert.Equal(t, doctor.StateNotAsked, r.Arrival.State)
	assert.Len(t, pipe.batches, 1)
}
