package doctor

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// object is a JSON object.
type object = map[string]any

const (
	typeJSON = "application/json"
	typeText = "text/plain"
)

// SDK is one that can be imitated.
type SDK struct {
	Name   string // as --sdk has it
	As     string // package and version that is imitated
	Source string // the protocol, as the source column has it
	KeyIn  string // where in the request the key is
	Page   string // of the documentation

	variant  string // as it is to arrive; empty: Variant
	unitType string // as it is to arrive; empty: user
	timeless bool   // it sends no time: that of receipt is to arrive

	call  func(p Probe) call
	judge func(a *Answer) Verdict
}

// Request makes the request in which the SDK would send the exposure to a collector
// at base, a URL without the SDK's own path.
func (s SDK) Request(ctx context.Context, base string, p Probe) (*http.Request, error) {
	return s.call(p).request(ctx, base)
}

// Expect is the exposure as it is to arrive.
func (s SDK) Expect(p Probe) Exposure {
	e := Exposure{Experiment: Experiment, Variant: Variant, UnitType: "user", UnitID: p.Unit, Source: s.Source}
	if s.variant != "" {
		e.Variant = s.variant
	}
	if s.unitType != "" {
		e.UnitType = s.unitType
	}
	if !s.timeless {
		at := p.Time.UTC()
		e.Time = &at
	}
	return e
}

// Find returns the SDK of a name.
func Find(name string) (SDK, bool) {
	for _, s := range SDKs() {
		if s.Name == name {
			return s, true
		}
	}
	return SDK{}, false
}

// Names lists the names, in the order of SDKs.
func Names() []string {
	var out []string
	for _, s := range SDKs() {
		out = append(out, s.Name)
	}
	return out
}

// SDKs lists what can be imitated. What each sends and how it takes an answer was
// measured with the package and version named, or is what its source says.
func SDKs() []SDK {
	return []SDK{
		{Name: "native", As: "Sluice's own loggers", Source: "native", KeyIn: "the header Authorization (Bearer)", Page: "docs/errors.md", call: native, judge: judgeNative},
		{Name: "statsig", As: "statsig-node 6.5.2", Source: "statsig", KeyIn: "the header STATSIG-API-KEY", Page: "docs/sdk/statsig.md", call: statsig, judge: judgeStatsig},
		{Name: "statsig-js", As: "@statsig/js-client 3.33.5", Source: "statsig", KeyIn: "the query parameter k", Page: "docs/sdk/statsig.md", call: statsigJS, judge: judgeStatsigJS},
		{Name: "statsig-core", As: "@statsig/statsig-node-core 0.23.2", Source: "statsig", KeyIn: "the header STATSIG-API-KEY", Page: "docs/sdk/statsig.md", call: statsigCore, judge: judgeStatsigCore},
		{Name: "launchdarkly", As: "@launchdarkly/node-server-sdk 9.13.7", Source: "launchdarkly", KeyIn: "the header Authorization (the key alone)", Page: "docs/sdk/launchdarkly.md", variant: "1", call: launchDarkly, judge: judgeLaunchDarkly},
		{Name: "launchdarkly-js", As: "launchdarkly-js-client-sdk 3.9.5", Source: "launchdarkly", KeyIn: "the last segment of the path", Page: "docs/sdk/launchdarkly.md", variant: "1", call: launchDarklyJS, judge: judgeLaunchDarkly},
		{Name: "launchdarkly-mobile", As: "LaunchDarkly's mobile SDKs", Source: "launchdarkly", KeyIn: "the header Authorization (the key alone)", Page: "docs/sdk/launchdarkly.md", variant: "1", call: launchDarklyMobile, judge: judgeLaunchDarkly},
		{Name: "segment", As: "@segment/analytics-node 3.1.0", Source: "segment", KeyIn: "the header Authorization (Basic, the key as user)", Page: "docs/sdk/segment.md", call: segment, judge: judgeSegment},
		{Name: "posthog", As: "posthog-node 5.70.0", Source: "posthog", KeyIn: "the body's api_key", Page: "docs/sdk/posthog.md", call: postHog, judge: judgePostHog},
		{Name: "posthog-v1", As: "posthog-node 5.70.0, POSTHOG_CAPTURE_MODE=v1", Source: "posthog", KeyIn: "the header Authorization (Bearer)", Page: "docs/sdk/posthog.md", call: postHogV1, judge: judgePostHogV1},
		{Name: "posthog-js", As: "posthog-js 1.449.2", Source: "posthog", KeyIn: "the body's api_key", Page: "docs/sdk/posthog.md", call: postHogJS, judge: judgePostHogJS},
		{Name: "amplitude", As: "@amplitude/node 1.5.73", Source: "amplitude", KeyIn: "the body's api_key", Page: "docs/sdk/amplitude.md", call: amplitude, judge: judgeAmplitude},
		{Name: "optimizely", As: "@optimizely/optimizely-sdk 6.6.1", Source: "optimizely", KeyIn: "the body's account_id", Page: "docs/sdk/optimizely.md", unitType: "visitor", call: optimizely, judge: judgeOptimizely},
		{Name: "otlp", As: "OpenTelemetry JS 0.223.1, JSON", Source: "otlp", KeyIn: "the header X-API-Key", Page: "docs/sdk/otlp.md", call: otlp, judge: judgeOTLP},
		{Name: "otlp-protobuf", As: "OpenTelemetry JS 0.223.1, protobuf", Source: "otlp", KeyIn: "the header X-API-Key", Page: "docs/sdk/otlp.md", call: otlpProtobuf, judge: judgeOTLP},
		{Name: "growthbook", As: "GrowthBook's tracking plugin", Source: "growthbook", KeyIn: "the query parameter client_key", Page: "docs/sdk/growthbook.md", timeless: true, call: growthBook, judge: judgeGrowthBook},
		{Name: "eppo", As: "Eppo's event dispatcher", Source: "eppo", KeyIn: "the header x-eppo-token", Page: "docs/sdk/eppo.md", call: eppo, judge: judgeEppo},
	}
}

func native(p Probe) call {
	return call{
		path: "/v1/exposures",
		header: map[string]string{
			"Content-Type": typeJSON, "Authorization": "Bearer " + p.key(), "Idempotency-Key": p.ID,
		},
		body: object{
			"events": []object{{
				"experiment": Experiment, "variant": Variant, "unit_id": p.Unit, "time": p.millis(), "event_id": p.ID,
			}},
			"sent_at": p.millis(),
			"sdk":     object{"name": "sluice-doctor"},
		},
	}
}

// configExposure is an experiment's exposure in Statsig's words.
func configExposure(p Probe) object {
	return object{
		"eventName": "statsig::config_exposure",
		"user":      object{"userID": p.Unit},
		"value":     nil,
		"metadata":  object{"config": Experiment, "ruleID": Variant, "rulePassed": "true", "reason": "Network"},
		"time":      p.millis(), "secondaryExposures": []any{}, "statsigMetadata": object{},
	}
}

func statsig(p Probe) call {
	return call{
		path: "/v1/log_event",
		header: map[string]string{
			"Content-Type": "application/json; charset=UTF-8", "STATSIG-API-KEY": p.key(),
			"STATSIG-CLIENT-TIME": strconv.FormatInt(p.millis(), 10), "STATSIG-EVENT-COUNT": "1",
			"STATSIG-SDK-TYPE": "statsig-node", "STATSIG-SDK-VERSION": "6.5.2", "STATSIG-SERVER-SESSION-ID": p.ID,
		},
		body: object{
			"statsigMetadata": object{"sdkType": "statsig-node", "sdkVersion": "6.5.2", "sessionID": p.ID},
			"events":          []object{configExposure(p)},
		},
		coding: gzipped,
	}
}

func statsigJS(p Probe) call {
	e := configExposure(p)
	delete(e["metadata"].(object), "rulePassed")
	e["statsigMetadata"] = object{"currentPage": "http://localhost/"}
	return call{
		path: "/v1/rgstr",
		query: url.Values{
			"k": {p.key()}, "st": {"javascript-client"}, "sv": {"3.33.5"}, "t": {strconv.FormatInt(p.millis(), 10)},
			"sid": {p.ID}, "ec": {"1"}, "gz": {"1"},
		},
		header: map[string]string{
			"statsig-event-count": "1", "statsig-retry-count": "0", "statsig-sdk-type": "javascript-client", "statsig-sdk-version": "3.33.5",
		},
		body: object{
			"events":          []object{e},
			"statsigMetadata": object{"sdkType": "javascript-client", "sdkVersion": "3.33.5", "sessionID": p.ID, "stableID": p.ID},
		},
		coding: unmarked,
	}
}

func statsigCore(p Probe) call {
	return call{
		path: "/v1/log_event",
		header: map[string]string{
			"Content-Type": typeJSON, "statsig-api-key": p.key(), "statsig-client-time": strconv.FormatInt(p.millis(), 10),
			"statsig-event-count": "1", "statsig-retry-count": "0", "statsig-sdk-type": "statsig-server-core-node",
			"statsig-sdk-version": "0.23.2", "statsig-server-session-id": p.ID,
		},
		body: object{
			"events":          []object{configExposure(p)},
			"statsigMetadata": object{"sdkType": "statsig-server-core-node", "sdkVersion": "0.23.2", "sessionID": p.ID},
		},
		coding: zstded,
	}
}

// feature is an evaluation in LaunchDarkly's words. Its variant is the index of the
// variation: 1.
func feature(p Probe) object {
	return object{
		"kind": "feature", "creationDate": p.millis(), "key": Experiment,
		"context": object{"kind": "user", "key": p.Unit},
		"value":   Variant, "default": "", "variation": 1, "version": 1, "reason": object{"kind": "FALLTHROUGH"},
	}
}

func launchDarkly(p Probe) call {
	return call{
		path: "/bulk",
		header: map[string]string{
			"Content-Type": typeJSON, "Authorization": p.key(), "User-Agent": "NodeJSClient/9.13.7",
			"X-LaunchDarkly-Event-Schema": "4", "X-LaunchDarkly-Payload-ID": p.ID, "X-LaunchDarkly-Instance-Id": p.ID,
		},
		body: []object{
			{"kind": "index", "creationDate": p.millis(), "context": object{"kind": "user", "key": p.Unit}},
			feature(p),
		},
		chunked: true,
	}
}

func launchDarklyJS(p Probe) call {
	return call{
		path: "/events/bulk/" + url.PathEscape(p.key()),
		header: map[string]string{
			"Content-Type": typeJSON, "X-LaunchDarkly-User-Agent": "JSClient/3.9.5",
			"X-LaunchDarkly-Event-Schema": "4", "X-LaunchDarkly-Payload-ID": p.ID,
		},
		body: []object{feature(p)},
	}
}

func launchDarklyMobile(p Probe) call {
	return call{
		path: "/mobile",
		header: map[string]string{
			"Content-Type": typeJSON, "Authorization": p.key(), "User-Agent": "AndroidClient/5.0.0",
			"X-LaunchDarkly-Event-Schema": "4", "X-LaunchDarkly-Payload-ID": p.ID,
		},
		body: []object{feature(p)},
	}
}

func segment(p Probe) call {
	return call{
		path: "/v1/batch",
		header: map[string]string{
			"Content-Type": typeJSON, "Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(p.key()+":")),
			"User-Agent": "analytics-node-next/latest",
		},
		body: object{
			"batch": []object{{
				"type": "track", "event": "Experiment Viewed", "userId": p.Unit, "timestamp": p.iso(),
				"messageId": "node-next-" + p.ID, "integrations": object{},
				"properties": object{"experiment_id": Experiment, "variation_id": Variant},
				"context":    object{"library": object{"name": "@segment/analytics-node", "version": "3.1.0"}},
			}},
			"writeKey": p.key(), "sentAt": p.iso(),
		},
	}
}

func flagCalled(p Probe) object {
	return object{
		"event": "$feature_flag_called", "uuid": p.ID, "distinct_id": p.Unit, "timestamp": p.iso(),
		"properties": object{
			"$feature_flag": Experiment, "$feature_flag_response": Variant, "$feature_flag_request_id": p.ID,
			"$lib": "posthog-node", "$lib_version": "5.70.0",
		},
	}
}

func postHog(p Probe) call {
	return call{
		path:   "/batch/",
		header: map[string]string{"Content-Type": typeJSON, "User-Agent": "posthog-node/5.70.0"},
		body:   object{"api_key": p.key(), "batch": []object{flagCalled(p)}, "sent_at": p.iso()},
		coding: gzipped,
	}
}

func postHogV1(p Probe) call {
	e := flagCalled(p)
	e["options"] = object{}
	return call{
		path: "/i/v1/analytics/events",
		header: map[string]string{
			"Content-Type": typeJSON, "Authorization": "Bearer " + p.key(), "User-Agent": "posthog-node/5.70.0",
			"PostHog-Attempt": "1", "PostHog-Request-Id": p.ID, "PostHog-Request-Timestamp": p.iso(), "PostHog-Sdk-Info": "posthog-node/5.70.0",
		},
		body:   object{"created_at": p.iso(), "batch": []object{e}},
		coding: gzipped,
	}
}

func postHogJS(p Probe) call {
	e := flagCalled(p)
	properties := e["properties"].(object)
	properties["distinct_id"], properties["token"] = p.Unit, p.key()
	properties["$lib"], properties["$lib_version"] = "web", "1.449.2"
	delete(e, "distinct_id")
	return call{
		path:   "/e/",
		header: map[string]string{"Content-Type": typeText},
		body:   object{"api_key": p.key(), "batch": []object{e}, "sent_at": p.iso()},
		coding: unmarked,
	}
}

func amplitude(p Probe) call {
	return call{
		path:   "/2/httpapi",
		header: map[string]string{"Content-Type": typeJSON},
		body: object{
			"api_key": p.key(),
			"events": []object{{
				"event_type": "$exposure", "time": p.millis(), "insert_id": p.ID, "user_id": p.Unit, "event_id": 0,
				"event_properties": object{"flag_key": Experiment, "variant": Variant}, "library": "amplitude-node-ts/1.5.73",
			}},
			"options": object{}, "client_upload_time": p.iso(),
		},
	}
}

func optimizely(p Probe) call {
	return call{
		path:   "/v1/events",
		header: map[string]string{"Content-Type": typeJSON},
		body: object{
			"client_name": "node-sdk", "client_version": "6.6.1", "account_id": p.key(), "project_id": "1", "revision": "1",
			"anonymize_ip": true, "enrich_decisions": true,
			"visitors": []object{{
				"visitor_id": p.Unit, "attributes": []any{},
				"snapshots": []object{{
					"decisions": []object{{
						"campaign_id": "1", "experiment_id": Experiment, "variation_id": Variant,
						"metadata": object{"flag_key": Experiment, "rule_key": Experiment, "rule_type": "feature-test", "variation_key": Variant, "enabled": true},
					}},
					"events": []object{{"entity_id": "1", "timestamp": p.millis(), "key": "campaign_activated", "uuid": p.ID}},
				}},
			}},
		},
	}
}

func growthBook(p Probe) call {
	return call{
		path:   "/track",
		query:  url.Values{"client_key": {p.key()}},
		header: map[string]string{"Content-Type": typeText, "Accept": typeJSON},
		body: []object{{
			"event_name":      "Experiment Viewed",
			"properties_json": object{"experimentId": Experiment, "variationId": Variant, "hashAttribute": "user_id", "hashValue": p.Unit},
			"user_id":         p.Unit, "device_id": nil, "page_id": nil, "session_id": nil,
			"sdk_language": "js", "sdk_version": "1.6.0", "url": "http://localhost/", "context_json": object{},
		}},
	}
}

func eppo(p Probe) call {
	return call{
		path:   "/v0/i",
		header: map[string]string{"Content-Type": typeJSON, "x-eppo-token": p.key()},
		body: object{
			"eppo_events": []object{{
				"uuid": p.ID, "type": "assignment", "timestamp": p.millis(),
				"payload": object{
					"experiment": Experiment, "featureFlag": Experiment, "allocation": "sluice-doctor-allocation", "variation": Variant,
					"subject": p.Unit, "timestamp": p.iso(), "subjectAttributes": object{},
				},
			}},
			"context": object{},
		},
	}
}

// masked is a URL in which the key cannot be read.
func masked(u string, p Probe) string {
	if p.Key == "" {
		return u
	}
	for _, k := range []string{url.QueryEscape(p.Key), url.PathEscape(p.Key)} {
		u = strings.ReplaceAll(u, k, "******")
	}
	return u
}
