// Package openfeature logs an exposure for each flag that an OpenFeature client
// evaluates, whatever provider it has.
//
//	api.AddHooks(sluice.New(logger))
//
//	flag key            → experiment
//	variant             → variant; without one the value as text (objects as JSON)
//	targeting key       → unit id
//	reason              → reason
//	flag metadata       → attributes
//
// Not an exposure, and why:
//   - An evaluation that ended in an error. The program got its default value because
//     the flag was not there, had another type, or the provider was not ready: nobody
//     assigned the unit to anything. (A default that the provider answered without an
//     error, reasons DEFAULT and DISABLED, is one: filter by reason if need be.)
//   - An evaluation without a targeting key: there is no unit. It is counted
//     (Hook.Stats), never an error of the evaluation.
//   - One whose variant would be empty: no variant, and an empty string as the value.
//     The Logger counts it as invalid.
//
// If the After hook of somebody else fails after this one, the SDK hands out the
// default value for an exposure that is logged.
package openfeature

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync/atomic"

	"github.com/open-feature/go-sdk/openfeature"

	"sluice/pkg/client"
)

// Logger takes the exposures: *client.Logger does. Exposure must not block.
type Logger interface {
	Exposure(client.Exposure)
}

// Hook logs exposures. Add it to the API, to a client or to an evaluation, but to
// one of them only: each logs. It is safe for concurrent use.
type Hook struct {
	openfeature.UnimplementedHook

	logger   Logger
	unitType func(openfeature.EvaluationContext) string

	logged   atomic.Uint64
	withoutT atomic.Uint64
	failed   atomic.Uint64
}

// Option is a choice about a Hook.
type Option func(*Hook)

// UnitType has f name the unit type of an evaluation, such as "user" or "device";
// empty: user. A nil f changes nothing.
func UnitType(f func(openfeature.EvaluationContext) string) Option {
	return func(h *Hook) {
		if f != nil {
			h.unitType = f
		}
	}
}

// New returns a hook that logs to l.
func New(l Logger, options ...Option) *Hook {
	h := &Hook{logger: l, unitType: func(openfeature.EvaluationContext) string { return "" }}
	for _, o := range options {
		o(h)
	}
	return h
}

// Stats counts evaluations.
type Stats struct {
	Exposures           uint64 // given to the Logger
	WithoutTargetingKey uint64 // not logged: no unit
	Failed              uint64 // not logged: ended in an error
}

// Stats returns the counts up to now.
func (h *Hook) Stats() Stats {
	return Stats{h.logged.Load(), h.withoutT.Load(), h.failed.Load()}
}

// After implements openfeature.Hook: it is called for evaluations that succeeded.
// It returns nil.
func (h *Hook) After(_ context.Context, hc openfeature.HookContext, d openfeature.InterfaceEvaluationDetails, _ openfeature.HookHints) error {
	if d.ErrorCode != "" || d.Reason == openfeature.ErrorReason {
		h.failed.Add(1) // a provider that answers with both
		return nil
	}
	ec := hc.EvaluationContext()
	unit := ec.TargetingKey()
	if unit == "" {
		h.withoutT.Add(1)
		return nil
	}
	variant := d.Variant
	if variant == "" {
		variant = text(d.Value)
	}
	h.logged.Add(1)
	h.logger.Exposure(client.Exposure{
		Experiment: hc.FlagKey(),
		Variant:    variant,
		UnitID:     unit,
		UnitType:   h.unitType(ec),
		Reason:     string(d.Reason),
		Attributes: d.FlagMetadata,
	})
	return nil
}

// Error implements openfeature.Hook: it counts.
func (h *Hook) Error(context.Context, openfeature.HookContext, error, openfeature.HookHints) {
	h.failed.Add(1)
}

// text is a flag's value as the name of a variant.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	}
	if b, err := json.Marshal(v); err == nil {
		return string(b) // the members of a map in order, so that equal values are one variant
	}
	return fmt.Sprint(v)
}
