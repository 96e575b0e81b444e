package openfeature

import (
	"context"
	"errors"
	"testing"

	"github.com/open-feature/go-sdk/openfeature"
	"github.com/open-feature/go-sdk/openfeature/isolated"
	"github.com/open-feature/go-sdk/openfeature/memprovider"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"sluice/pkg/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type recorder struct{ got []client.Exposure }

func (r *recorder) Exposure(e client.Exposure) { r.got = append(r.got, e) }

func split(this memprovider.InMemoryFlag, c openfeature.FlattenedContext) (any, openfeature.ProviderResolutionDetail) {
	variant := "control"
	if c["plan"] == "pro" {
		variant = "treatment"
	}
	return this.Variants[variant], openfeature.ProviderResolutionDetail{
		Variant: variant, Reason: openfeature.SplitReason, FlagMetadata: openfeature.FlagMetadata{"version": int64(7), "owner": "growth"},
	}
}

func evaluator(v any, d openfeature.ProviderResolutionDetail) memprovider.ContextEvaluator {
	f := func(memprovider.InMemoryFlag, openfeature.FlattenedContext) (any, openfeature.ProviderResolutionDetail) {
		return v, d
	}
	return &f
}

// setUp is a client of an API of its own, with the SDK's provider in memory.
func setUp(t *testing.T, h *Hook) *openfeature.Client {
	ctx := split
	static := openfeature.ProviderResolutionDetail{Reason: openfeature.StaticReason}
	provider := memprovider.NewInMemoryProvider(map[string]memprovider.InMemoryFlag{
		"button": {Key: "button", State: memprovider.Enabled, DefaultVariant: "control",
			Variants: map[string]any{"control": "grey", "treatment": "green"}, ContextEvaluator: (memprovider.ContextEvaluator)(&ctx)},
		"on":    {Key: "on", State: memprovider.Enabled, DefaultVariant: "yes", Variants: map[string]any{"yes": true, "no": false}},
		"off":   {Key: "off", State: memprovider.Disabled, DefaultVariant: "yes", Variants: map[string]any{"yes": true}},
		"bool":  {Key: "bool", State: memprovider.Enabled, ContextEvaluator: evaluator(false, static)},
		"int":   {Key: "int", State: memprovider.Enabled, ContextEvaluator: evaluator(int64(-5), static)},
		"float": {Key: "float", State: memprovider.Enabled, ContextEvaluator: evaluator(0.25, static)},
		"obj":   {Key: "obj", State: memprovider.Enabled, ContextEvaluator: evaluator(map[string]any{"b": 1, "a": "x"}, static)},
		"empty": {Key: "empty", State: memprovider.Enabled, ContextEvaluator: evaluator("", static)},
	})
	api := isolated.NewAPI()
	require.NoError(t, api.SetProviderAndWait(t.Context(), provider))
	t.Cleanup(func() { require.NoError(t, api.Shutdown(context.Background())) })
	api.AddHooks(h)
	return api.NewClient()
}

func TestExposures(t *testing.T) {
	user := openfeature.NewEvaluationContext("u1", map[string]any{"plan": "pro"})
	for name, tt := range map[string]struct {
		evaluate func(context.Context, *openfeature.Client) error
		want     client.Exposure
	}{
		"variant, reason and metadata": {
			func(ctx context.Context, c *openfeature.Client) error {
				v, err := c.StringValue(ctx, "button", "none", user)
				return errors.Join(err, same("green", v))
			},
			client.Exposure{Experiment: "button", Variant: "treatment", Reason: "SPLIT", Attributes: map[string]any{"version": int64(7), "owner": "growth"}},
		},
		"static": {
			func(ctx context.Context, c *openfeature.Client) error {
				v, err := c.BooleanValue(ctx, "on", false, user)
				return errors.Join(err, same(true, v))
			},
			client.Exposure{Experiment: "on", Variant: "yes", Reason: "STATIC"},
		},
		"disabled": {
			func(ctx context.Context, c *openfeature.Client) error {
				_, err := c.BooleanValue(ctx, "off", false, user)
				return err
			},
			client.Exposure{Experiment: "off", Variant: "false", Reason: "DISABLED"},
		},
		"bool": {
			func(ctx context.Context, c *openfeature.Client) error {
				_, err := c.BooleanValue(ctx, "bool", true, user)
				return err
			},
			client.Exposure{Experiment: "bool", Variant: "false", Reason: "STATIC"},
		},
		"int": {
			func(ctx context.Context, c *openfeature.Client) error {
				_, err := c.IntValue(ctx, "int", 1, user)
				return err
			},
			client.Exposure{Experiment: "int", Variant: "-5", Reason: "STATIC"},
		},
		"float": {
			func(ctx context.Context, c *openfeature.Client) error {
				_, err := c.FloatValue(ctx, "float", 1, user)
				return err
			},
			client.Exposure{Experiment: "float", Variant: "0.25", Reason: "STATIC"},
		},
		"object": {
			func(ctx context.Context, c *openfeature.Client) error {
				_, err := c.ObjectValue(ctx, "obj", nil, user)
				return err
			},
			client.Exposure{Experiment: "obj", Variant: `{"a":"x","b":1}`, Reason: "STATIC"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var r recorder
			h := New(&r, UnitType(func(ec openfeature.EvaluationContext) string { return ec.Attribute("plan").(string) }))
			require.NoError(t, tt.evaluate(t.Context(), setUp(t, h)))
			require.Len(t, r.got, 1)
			got := r.got[0]
			tt.want.UnitID, tt.want.UnitType = "u1", "pro"
			if len(got.Attributes) == 0 {
				got.Attributes = nil
			}
			assert.Equal(t, tt.want, got)
			assert.Equal(t, Stats{Exposures: 1}, h.Stats())
		})
	}
}

func same(want, got any) error {
	if want != got {
		return errors.New("another value")
	}
	return nil
}

// What is no exposure is counted, and the evaluation goes on as it would.
func TestNoExposure(t *testing.T) {
	var r recorder
	h := New(&r)
	c := setUp(t, h)
	user := openfeature.NewEvaluationContext("u1", nil)
	v, err := c.StringValue(t.Context(), "unknown", "mine", user)
	assert.Error(t, err)
	assert.Equal(t, "mine", v)
	_, err = c.IntValue(t.Context(), "button", 3, user)
	assert.Error(t, err, "another type")
	b, err := c.BooleanValue(t.Context(), "on", false, openfeature.EvaluationContext{})
	assert.NoError(t, err)
	assert.True(t, b)
	assert.Empty(t, r.got)
	assert.Equal(t, Stats{WithoutTargetingKey: 1, Failed: 2}, h.Stats())

	details := openfeature.InterfaceEvaluationDetails{Value: "x"}
	details.Reason = openfeature.ErrorReason
	hc := openfeature.NewHookContext("f", openfeature.String, "x", openfeature.ClientMetadata{}, openfeature.Metadata{}, user)
	assert.NoError(t, h.After(t.Context(), hc, details, openfeature.HookHints{}), "a provider that says error, and no code")
	assert.Empty(t, r.got)
}

// With the Logger itself: a variant that would be empty is invalid there.
func TestWithLogger(t *testing.T) {
	l, err := client.New(client.Options{Endpoints: []string{"http://127.0.0.1:1"}, Dir: t.TempDir()})
	require.NoError(t, err)
	c := setUp(t, New(l))
	user := openfeature.NewEvaluationContext("u1", nil)
	_, err = c.StringValue(t.Context(), "empty", "mine", user)
	require.NoError(t, err)
	_, err = c.BooleanValue(t.Context(), "on", false, user)
	require.NoError(t, err)
	require.NoError(t, l.Close(t.Context()))
	s := l.Stats()
	assert.Equal(t, []uint64{1, 1}, []uint64{s.Logged, s.Invalid})
	assert.Equal(t, 1, s.Stored)
}

// An option without a function changes nothing.
func TestUnitTypeNil(t *testing.T) {
	r := &recorder{}
	c := setUp(t, New(r, UnitType(nil)))
	_, err := c.BooleanValue(t.Context(), "on", false, openfeature.NewEvaluationContext("u1", nil))
	require.NoError(t, err)
	require.Len(t, r.got, 1)
	assert.Empty(t, r.got[0].UnitType)
}
