package bench

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Native is the protocol of POST /v1/exposures.
const Native = "native"

// vendor is how one vendor's SDK sends exposures.
type vendor struct {
	path, contentType, headers string
	before, between, after     string
	event                      func(b *bytes.Buffer, e *drawnEvent) // nil: the workload's native one
}

// Protocols are the names of what can be sent, sorted.
func Protocols() []string { return slices.Sorted(maps.Keys(protocols)) }

// withIDs is the id of an event: its last digits differ each time it is sent.
const withIDs = "0306c88c-a784-49c5-%04x-" + eventMark

const jsonType = "application/json"

var protocols = map[string]vendor{
	Native: {path: "/v1/exposures", contentType: jsonType, before: "[", between: ",", after: "]"},
	"statsig": {path: "/v1/log_event", contentType: jsonType, headers: "Statsig-Sdk-Type: statsig-node\r\nStatsig-Sdk-Version: 6.5.2\r\n",
		before: `{"statsigMetadata":{"sdkType":"statsig-node","sdkVersion":"6.5.2"},"events":[`, between: ",", after: "]}",
		event: func(b *bytes.Buffer, e *drawnEvent) {
			fmt.Fprintf(b, `{"eventName":"statsig::config_exposure","metadata":{"config":"%s","ruleID":"%s","rulePassed":"true","configVersion":"11","reason":"Network"},`+
				`"time":%d,"user":{"userID":"user-%s","custom":{"plan":"pro"},"customIDs":{"companyID":"company-17"},"statsigEnvironment":{"tier":"production"}},"value":null,`+
				`"secondaryExposures":[{"gate":"holdout","gateValue":"false","ruleID":"hr"}],"statsigMetadata":{}}`, e.experiment, e.variant, e.at.UnixMilli(), unitMark)
		}},
	"launchdarkly": {path: "/bulk", contentType: jsonType, headers: "X-Launchdarkly-Event-Schema: 4\r\n", before: "[", between: ",", after: "]",
		event: func(b *bytes.Buffer, e *drawnEvent) {
			fmt.Fprintf(b, `{"kind":"feature","creationDate":%d,"context":{"kind":"user","key":"user-%s","country":"DE","plan":"pro"},`+
				`"key":"%s","value":"%s","default":"red","variation":1,"version":42,"reason":{"kind":"RULE_MATCH","ruleIndex":0,"ruleId":"rule-42"}}`,
				e.at.UnixMilli(), unitMark, e.experiment, e.variant)
		}},
	"segment": {path: "/v1/batch", contentType: jsonType, before: `{"batch":[`, between: ",", after: `],"writeKey":"wk"}`,
		event: func(b *bytes.Buffer, e *drawnEvent) {
			fmt.Fprintf(b, `{"timestamp":"%s","integrations":{},"event":"Experiment Viewed","type":"track","properties":{"experiment_id":"%s","variation_id":"%s"},`+
				`"context":{"library":{"name":"@segment/analytics-node","version":"3.1.0"}},"userId":"user-%s","messageId":"node-next-`+withIDs+`",`+
				`"_metadata":{"nodeVersion":"v20.20.2","jsRuntime":"node"}}`, stamp(e), e.experiment, e.variant, unitMark, e.index)
		}},
	"posthog": {path: "/batch/", contentType: jsonType, before: `{"batch":[`, between: ",", after: `]}`, event: posthog},
	"posthog-v1": {path: "/i/v1/analytics/events", contentType: jsonType, headers: "Posthog-Sdk-Info: posthog-node/5.70.0\r\n",
		before: `{"batch":[`, between: ",", after: `]}`, event: posthog},
	"amplitude": {path: "/2/httpapi", contentType: jsonType, before: `{"events":[`, between: ",", after: `],"options":{}}`,
		event: func(b *bytes.Buffer, e *drawnEvent) {
			fmt.Fprintf(b, `{"time":%d,"insert_id":"`+withIDs+`","event_type":"$exposure","user_id":"user-%s","event_properties":{"flag_key":"%s","variant":"%s"},`+
				`"event_id":%d,"library":"amplitude-node-ts/1.5.73"}`, e.at.UnixMilli(), e.index, unitMark, e.experiment, e.variant, e.index)
		}},
	"optimizely": {path: "/v1/events", contentType: jsonType, before: `{"client_name":"node-sdk","client_version":"6.6.1","account_id":"12","visitors":[`, between: ",", after: `]}`,
		event: func(b *bytes.Buffer, e *drawnEvent) {
			fmt.Fprintf(b, `{"snapshots":[{"decisions":[{"campaign_id":"9300000002","experiment_id":"%s","variation_id":"%s","metadata":{"flag_key":"checkout",`+
				`"rule_key":"everyone","rule_type":"feature-test","variation_key":"blue","enabled":true}}],"events":[{"entity_id":"9300000002","timestamp":%d,`+
				`"key":"campaign_activated","uuid":"`+withIDs+`"}]}],"visitor_id":"user-%s","attributes":[{"entity_id":"$opt_bot_filtering",`+
				`"key":"$opt_bot_filtering","type":"custom","value":false},{"entity_id":"7","key":"plan","type":"custom","value":"pro"}]}`,
				e.experiment, e.variant, e.at.UnixMilli(), e.index, unitMark)
		}},
	"otlp-json": {path: "/v1/logs", contentType: jsonType,
		before:  `{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},"scopeLogs":[{"scope":{"name":"openfeature"},"logRecords":[`,
		between: ",", after: `]}]}]}`,
		event: func(b *bytes.Buffer, e *drawnEvent) {
			fmt.Fprintf(b, `{"timeUnixNano":"%d","severityNumber":9,"body":{},"eventName":"feature_flag.evaluation","attributes":[`, e.at.UnixNano())
			for i, kv := range otlpAttributes(e) {
				if i > 0 {
					b.WriteByte(',')
				}
				fmt.Fprintf(b, `{"key":"%s","value":{"stringValue":"%s"}}`, kv[0], kv[1])
			}
			b.WriteString(`],"droppedAttributesCount":0}`)
		}},
	"growthbook": {path: "/track", contentType: jsonType, before: "[", between: ",", after: "]",
		event: func(b *bytes.Buffer, e *drawnEvent) {
			fmt.Fprintf(b, `{"event_name":"Experiment Viewed","properties_json":{"experimentId":"%s","variationId":"%s","hashAttribute":"id","hashValue":"user-%s"},"user_id":"user-%s",`+
				`"device_id":null,"page_id":null,"session_id":null,"sdk_language":"js","sdk_version":"1.8.0","url":"https://shop.example.com/cart","context_json":{"country":"NL"}}`,
				e.experiment, e.variant, unitMark, unitMark)
		}},
	"eppo": {path: "/v0/i", contentType: jsonType, before: `{"eppo_events":[`, between: ",", after: `],"context":{}}`,
		event: func(b *bytes.Buffer, e *drawnEvent) {
			fmt.Fprintf(b, `{"uuid":"`+withIDs+`","type":"__eppo_assignment","timestamp":%d,"payload":{"entity_id":1,"experiment":"%s","feature_flag":"checkout",`+
				`"allocation":"all","holdout_variation":null,"holdout":null,"subject":"user-%s","variation":"%s"}}`, e.index, e.at.UnixMilli(), e.experiment, unitMark, e.variant)
		}},
}

func stamp(e *drawnEvent) string { return e.at.UTC().Format("2006-01-02T15:04:05.000Z") }

func posthog(b *bytes.Buffer, e *drawnEvent) {
	fmt.Fprintf(b, `{"event":"$feature_flag_called","uuid":"`+withIDs+`","distinct_id":"user-%s","timestamp":"%s","properties":{"$feature_flag":"%s","$feature_flag_response":"%s",`+
		`"$feature_flag_id":5,"$feature_flag_version":9,"$feature_flag_reason":"Matched condition set 1","locally_evaluated":false,"$feature/%s":"%s",`+
		`"$lib":"posthog-node","$lib_version":"5.70.0","$is_server":true,"$geoip_disable":true}}`,
		e.index, unitMark, stamp(e), e.experiment, e.variant, e.experiment, e.variant)
}

func otlpAttributes(e *drawnEvent) [][2]string {
	return [][2]string{{"feature_flag.key", e.experiment}, {"feature_flag.provider.name", "cap"}, {"feature_flag.result.variant", e.variant},
		{"feature_flag.result.reason", "split"}, {"feature_flag.context.id", "user-" + unitMark}, {"feature_flag.set.id", "proj"}, {"feature_flag.version", "42"}}
}

// others are the protocols beside the native one.
func Others() []string {
	return slices.DeleteFunc(Protocols(), func(p string) bool { return strings.HasPrefix(p, Native) })
}
