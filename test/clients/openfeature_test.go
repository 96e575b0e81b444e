package clients

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/open-feature/go-sdk/openfeature"
	"github.com/open-feature/go-sdk/openfeature/isolated"
	"github.com/open-feature/go-sdk/openfeature/memprovider"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/client"
	hook "sluice/pkg/client/openfeature"
	"sluice/test/pipeline"
)

// row is what an evaluation becomes.
type row struct{ Experiment, Variant, UnitType, UnitID, Reason, Version string }

// The published OpenFeature SDK for Go, with its own provider and the hook: 20
// evaluations, 20 rows.
func TestOpenFeature(t *testing.T) {
	p := pipeline.New(t)
	c := p.Collector()
	p.Sink()
	l, err := client.New(client.Options{Endpoints: []string{c.URL}, Key: "slk_any"})
	require.NoError(t, err)

	byUser := func(this memprovider.InMemoryFlag, ec openfeature.FlattenedContext) (any, openfeature.ProviderResolutionDetail) {
		variant := "control"
		if ec["odd"] == true {
			variant = "treatment"
		}
		return this.Variants[variant], openfeature.ProviderResolutionDetail{
			Variant: variant, Reason: openfeature.SplitReason, FlagMetadata: openfeature.FlagMetadata{"version": int64(7)},
		}
	}
	api := isolated.NewAPI()
	require.NoError(t, api.SetProviderAndWait(t.Context(), memprovider.NewInMemoryProvider(map[string]memprovider.InMemoryFlag{
		"button": {Key: "button", State: memprovider.Enabled, Variants: map[string]any{"control": "grey", "treatment": "green"},
			ContextEvaluator: (memprovider.ContextEvaluator)(&byUser)},
		"banner": {Key: "banner", State: memprovider.Enabled, DefaultVariant: "on", Variants: map[string]any{"on": true}},
	})))
	defer func() { require.NoError(t, api.Shutdown(context.Background())) }()
	api.AddHooks(hook.New(l, hook.UnitType(func(openfeature.EvaluationContext) string { return "account" })))
	flags := api.NewClient()

	want := map[row][2]time.Time{}
	for i := range 10 {
		user := fmt.Sprintf("u%d", i)
		ec := openfeature.NewEvaluationContext(user, map[string]any{"odd": i%2 == 1})
		from := time.Now().Truncate(time.Millisecond)
		v, err := flags.StringValue(t.Context(), "button", "none", ec)
		require.NoError(t, err)
		assert.Equal(t, [2]string{"grey", "green"}[i%2], v)
		_, err = flags.BooleanValue(t.Context(), "banner", false, ec)
		require.NoError(t, err)
		_, err = flags.BooleanValue(t.Context(), "banner", false, openfeature.EvaluationContext{})
		require.NoError(t, err, "and no unit: no exposure")
		_, err = flags.BooleanValue(t.Context(), "unknown", false, ec)
		require.Error(t, err, "and the default by an error: no exposure")
		to := time.Now()
		want[row{"button", [2]string{"control", "treatment"}[i%2], "account", user, "SPLIT", "7"}] = [2]time.Time{from, to}
		want[row{"banner", "on", "account", user, "STATIC", ""}] = [2]time.Time{from, to}
	}
	require.NoError(t, l.Close(t.Context()))
	p.Eventually(20, "SELECT count() FROM exposures", settle)
	p.Settled(settle)

	rows, err := p.Store.Query(t.Context(), "SELECT experiment, variant, unit_type, unit_id, reason, attributes['version'], time, time_adjusted, source, sdk FROM exposures")
	require.NoError(t, err)
	defer rows.Close()
	n := 0
	for rows.Next() {
		var (
			r           row
			at          time.Time
			adjusted    bool
			source, sdk string
		)
		require.NoError(t, rows.Scan(&r.Experiment, &r.Variant, &r.UnitType, &r.UnitID, &r.Reason, &r.Version, &at, &adjusted, &source, &sdk))
		n++
		between, ok := want[r]
		if !assert.True(t, ok, "not evaluated, or twice: %+v", r) {
			continue
		}
		delete(want, r)
		assert.False(t, at.Before(between[0]) || at.After(between[1]), "%+v: %v is not between %v", r, at, between)
		assert.False(t, adjusted)
		assert.Equal(t, "native", source)
		assert.Equal(t, "sluice-go/"+client.Version, sdk)
	}
	require.NoError(t, rows.Err())
	assert.Equal(t, 20, n)
	assert.Empty(t, want, "evaluated and not stored")
}
