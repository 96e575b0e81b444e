package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/launchdarkly/go-sdk-common/v3/ldcontext"
	"github.com/launchdarkly/go-sdk-common/v3/ldlog"
	"github.com/launchdarkly/go-sdk-common/v3/ldvalue"
	"github.com/launchdarkly/go-server-sdk-evaluation/v3/ldbuilders"
	"github.com/launchdarkly/go-server-sdk-evaluation/v3/ldmodel"
	ld "github.com/launchdarkly/go-server-sdk/v7"
	"github.com/launchdarkly/go-server-sdk/v7/interfaces"
	"github.com/launchdarkly/go-server-sdk/v7/ldcomponents"
	"github.com/launchdarkly/go-server-sdk/v7/testhelpers/ldtestdata"
	"github.com/posthog/posthog-go"
	"github.com/segmentio/analytics-go/v3"
	"github.com/statsig-io/go-sdk"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
)

// limit is how long an SDK may take to send what is flushed, resends included.
const limit = 2 * time.Minute

func launchDarkly(r *run) error {
	// Users with variant b by a rule, the others by what is left. Test data made with
	// the simple builder would have no event for each evaluation.
	rule := ldbuilders.NewRuleBuilder().ID(r.id + "-rule").Variation(1).Clauses(ldbuilders.Clause("key", ldmodel.OperatorIn, r.ofVariant("b")...))
	data := ldtestdata.DataSource()
	data.UsePreconfiguredFlag(ldbuilders.NewFlagBuilder(r.experiment()).On(true).TrackEvents(true).
		Variations(ldvalue.String("a"), ldvalue.String("b")).AddRule(rule).FallthroughVariation(0).Build())
	loggers := ldlog.NewDefaultLoggers()
	loggers.SetBaseLogger(ldLogger{r})
	client, err := ld.MakeCustomClient(r.key, ld.Config{
		DataSource: data,
		Logging:    ldcomponents.Logging().Loggers(loggers),
		// Nothing listens at port 1: only events are to be sent.
		ServiceEndpoints: interfaces.ServiceEndpoints{Streaming: "http://127.0.0.1:1", Polling: "http://127.0.0.1:1", Events: r.url},
	}, 5*time.Second)
	if err != nil {
		return err
	}
	for unit, variant := range r.units {
		err := r.logged(unit, variant, func(l *line) error {
			value, detail, err := client.StringVariationDetail(r.experiment(), ldcontext.New(unit), "x")
			if err == nil && value != variant {
				err = fmt.Errorf("evaluated to %q", value)
			}
			l.Variant, l.Rule, l.Reason = detail.VariationIndex.String(), detail.Reason.GetRuleID(), string(detail.Reason.GetKind())
			return err
		})
		if err != nil {
			return err
		}
	}
	// Close flushes and waits. But a flush is left out while the SDK's first report
	// about itself has not begun, and then FlushAndWait sees nothing happen: 2 s are
	// for that report, and for one more attempt.
	client.FlushAndWait(2 * time.Second)
	return client.Close()
}

// ldLogger passes on what LaunchDarkly's SDK logs. It has no other word for events
// that it gives up.
type ldLogger struct{ r *run }

func (l ldLogger) Println(values ...any) {
	said := strings.TrimSpace(fmt.Sprintln(values...))
	fmt.Fprintln(os.Stderr, said)
	if strings.Contains(said, "events were dropped") || strings.Contains(said, "giving up permanently") {
		l.r.gaveUp(errors.New(said))
	}
}

func (l ldLogger) Printf(format string, values ...any) { l.Println(fmt.Sprintf(format, values...)) }

// ofVariant are the ids of the users with a variant.
func (r *run) ofVariant(wanted string) []ldvalue.Value {
	var ids []ldvalue.Value
	for unit, variant := range r.units {
		if variant == wanted {
			ids = append(ids, ldvalue.String(unit))
		}
	}
	return ids
}

// statsigServer drives Statsig's server SDK.
func statsigServer(r *run) error {
	// What it fetches besides rules, and its reports about itself: one of them is that
	// it gives events up.
	vendor := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var report struct {
			Exception, Tag string
		}
		if json.NewDecoder(req.Body).Decode(&report) == nil && report.Tag == "statsig::log_event_failed" {
			r.gaveUp(errors.New(report.Exception))
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}")
	}))
	defer vendor.Close()
	rules, err := json.Marshal(statsigSpecs(r))
	if err != nil {
		return err
	}
	client := statsig.NewClientWithOptions(r.key, &statsig.Options{
		API:              vendor.URL,
		APIOverrides:     statsig.APIOverrides{LogEvent: r.url + "/v1"},
		BootstrapValues:  string(rules),
		IPCountryOptions: statsig.IPCountryOptions{Disabled: true},
		UAParserOptions:  statsig.UAParserOptions{Disabled: true},
		OutputLoggerOptions: statsig.OutputLoggerOptions{LogCallback: func(message string, err error) {
			if err != nil {
				fmt.Fprintln(os.Stderr, message)
			}
		}},
	})
	for unit := range r.units {
		err := r.logged(unit, "", func(l *line) error {
			config := client.GetExperiment(statsig.User{UserID: unit}, r.experiment())
			if !strings.HasPrefix(config.RuleID, r.id) {
				return fmt.Errorf("evaluated to rule %q", config.RuleID)
			}
			l.Variant, l.Rule = config.RuleID, config.RuleID
			return nil
		})
		if err != nil {
			return err
		}
	}
	client.Shutdown() // sends, and sends again
	return nil
}

func statsigSpecs(r *run) map[string]any {
	var odd []string
	for unit, variant := range r.units {
		if variant == "b" {
			odd = append(odd, unit)
		}
	}
	rule := func(name string, condition map[string]any) map[string]any {
		condition["idType"], condition["additionalValues"] = "userID", map[string]any{}
		return map[string]any{
			"id": name, "name": name, "groupName": name, "salt": name, "passPercentage": 100, "idType": "userID",
			"isExperimentGroup": true, "conditions": []any{condition}, "returnValue": map[string]any{"v": name},
		}
	}
	return map[string]any{
		"has_updates": true, "time": time.Now().UnixMilli(), "feature_gates": []any{}, "layer_configs": []any{}, "layers": map[string]any{}, "id_lists": map[string]any{},
		"dynamic_configs": []any{map[string]any{
			"name": r.experiment(), "type": "dynamic_config", "entity": "experiment", "salt": r.id, "enabled": true, "isActive": true,
			"idType": "userID", "defaultValue": map[string]any{},
			"rules": []any{
				rule(r.id+"-b", map[string]any{"type": "user_field", "field": "userID", "operator": "any", "targetValue": odd}),
				rule(r.id+"-a", map[string]any{"type": "public"}),
			},
		}},
	}
}

// delivery waits for what the clients of Segment and PostHog call back for each
// event. Closing them earlier would lose what has to be sent again.
type delivery struct {
	r       *run
	waiting sync.WaitGroup
}

func newDelivery(r *run) *delivery {
	d := &delivery{r: r}
	d.waiting.Add(r.users)
	return d
}

func (d *delivery) failure(err error) {
	d.r.gaveUp(err)
	d.waiting.Done()
}

type segmentDelivery struct{ *delivery }

func (d segmentDelivery) Success(analytics.Message)            { d.waiting.Done() }
func (d segmentDelivery) Failure(_ analytics.Message, e error) { d.failure(e) }

func segment(r *run) error {
	sent := newDelivery(r)
	// As many events as there will be are a batch: it goes when the last one comes.
	client, err := analytics.NewWithConfig(r.key, analytics.Config{Endpoint: r.url, Interval: time.Hour, BatchSize: r.users, Callback: segmentDelivery{sent}})
	if err != nil {
		return err
	}
	for unit, variant := range r.units {
		err := r.logged(unit, variant, func(*line) error {
			return client.Enqueue(analytics.Track{UserId: unit, Event: "Experiment Viewed", Properties: analytics.NewProperties().
				Set("experiment_id", r.experiment()).Set("variation_id", variant)})
		})
		if err != nil {
			return err
		}
	}
	sent.waiting.Wait()
	return client.Close()
}

type postHogDelivery struct{ *delivery }

func (d postHogDelivery) Success(posthog.APIMessage)            { d.waiting.Done() }
func (d postHogDelivery) Failure(_ posthog.APIMessage, e error) { d.failure(e) }

func postHog(r *run) error {
	sent := newDelivery(r)
	client, err := posthog.NewWithConfig(r.key, posthog.Config{
		Endpoint: r.url, Interval: time.Hour, BatchSize: r.users, Callback: postHogDelivery{sent}, Transport: postHogFlags{r},
	})
	if err != nil {
		return err
	}
	for unit, variant := range r.units {
		err := r.logged(unit, variant, func(l *line) error {
			value, err := client.GetFeatureFlag(posthog.FeatureFlagPayload{Key: r.experiment(), DistinctId: unit})
			if err == nil && value != variant {
				err = fmt.Errorf("evaluated to %v", value)
			}
			l.Reason = "because"
			return err
		})
		if err != nil {
			return err
		}
	}
	sent.waiting.Wait()
	return client.Close()
}

// postHogFlags answers requests for flags in PostHog's place, for the SDK has one
// setting for flags and events, and passes the others on.
type postHogFlags struct{ r *run }

func (f postHogFlags) RoundTrip(req *http.Request) (*http.Response, error) {
	if !strings.HasPrefix(req.URL.Path, "/flags") {
		return http.DefaultTransport.RoundTrip(req)
	}
	defer req.Body.Close()
	var asked posthog.FlagsRequestData
	if err := json.NewDecoder(req.Body).Decode(&asked); err != nil {
		return nil, fmt.Errorf("request for flags: %w", err)
	}
	flags := map[string]posthog.FlagDetail{}
	for unit, variant := range f.r.units {
		if unit == asked.DistinctId {
			flags[f.r.experiment()] = posthog.FlagDetail{Key: f.r.experiment(), Enabled: true, Variant: &variant, Reason: &posthog.FlagReason{Code: "condition_match", Description: "because"}}
		}
	}
	answer, err := json.Marshal(map[string]any{"flags": flags, "requestId": "7ad5f0a8-0cd4-4ca4-8a90-2a4e2c3b8d11"})
	if err != nil {
		return nil, err
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(answer)), ContentLength: int64(len(answer)),
	}, nil
}

func otlp(r *run) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	exporter, err := otlploghttp.New(ctx, otlploghttp.WithEndpointURL(r.url+"/v1/logs"), otlploghttp.WithHeaders(map[string]string{"x-api-key": r.key}))
	if err != nil {
		return err
	}
	provider := sdklog.NewLoggerProvider(sdklog.WithProcessor(sdklog.NewBatchProcessor(exporter, sdklog.WithExportInterval(time.Hour), sdklog.WithExportTimeout(limit))))
	logger := provider.Logger("openfeature")
	for unit, variant := range r.units {
		err := r.logged(unit, variant, func(l *line) error {
			l.Reason = "split"
			var record log.Record
			record.SetTimestamp(time.Now())
			record.SetEventName("feature_flag.evaluation")
			record.AddAttributes(attribute.String("feature_flag.key", r.experiment()), attribute.String("feature_flag.result.variant", variant),
				attribute.String("feature_flag.context.id", unit), attribute.String("feature_flag.result.reason", l.Reason))
			logger.Emit(ctx, record)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return errors.Join(provider.ForceFlush(ctx), provider.Shutdown(ctx))
}
