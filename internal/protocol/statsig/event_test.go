package statsig

import (
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/schema"
)

func attrs(kv ...string) []schema.Attribute {
	var out []schema.Attribute
	for i := 0; i < len(kv); i += 2 {
		out = append(out, schema.Attribute{Key: kv[i], Value: kv[i+1]})
	}
	return out
}

const at = 1_795_487_185_225 * 1000 // the time of most events below, in microseconds

// One event each, as the named SDK writes it.
func TestMapping(t *testing.T) {
	for name, c := range map[string]struct {
		event string
		want  schema.Event
	}{
		"gate, statsig-node": {
			`{"eventName":"statsig::gate_exposure","metadata":{"gate":"g","gateValue":"true","ruleID":"r","configVersion":"7",
			"reason":"Network","configSyncTime":1700000000000,"initTime":1700000000000,"serverTime":1795487185225},
			"time":1795487185225,"user":{"userID":"u","email":"a@b.c","custom":{"plan":"pro"},"privateAttributes":null,
			"customIDs":{"companyID":"co"},"statsigEnvironment":{"tier":"production"}},"value":null,
			"secondaryExposures":[{"gate":"holdout","gateValue":"false","ruleID":"hr"}],"statsigMetadata":{}}`,
			schema.Event{Kind: schema.KindExposure, HasTime: true, Time: at, Experiment: "g", Variant: "true", Rule: "r", Reason: "Network",
				UnitType: "user", UnitID: "u", Attributes: attrs("configSyncTime", "1700000000000", "configVersion", "7",
					"secondary_exposures", `[{"gate":"holdout","gateValue":"false","ruleID":"hr"}]`,
					"user.custom.plan", "pro", "user.customIDs.companyID", "co", "user.statsigEnvironment.tier", "production")},
		},
		"gate, js-client, bootstrapped with the whole user": {
			`{"eventName":"statsig::gate_exposure","user":{"userID":"u"},"value":null,"metadata":{"gate":"g","gateValue":"false","ruleID":"",
			"bootstrapMetadata":{"user":{"userID":"u","privateAttributes":{"x":1},"email":"a@b.c"},"lcut":1},"reason":"Bootstrap:Recognized",
			"lcut":"1700000000000","receivedAt":"1795487185225"},"secondaryExposures":[],"time":1795487185225,
			"statsigMetadata":{"currentPage":"https://example.com/"}}`,
			schema.Event{Kind: schema.KindExposure, HasTime: true, Time: at, Experiment: "g", Variant: "false", Reason: "Bootstrap:Recognized",
				UnitType: "user", UnitID: "u", Attributes: attrs("lcut", "1700000000000", "statsigMetadata.currentPage", "https://example.com/")},
		},
		"config, node-core": {
			`{"eventName":"statsig::config_exposure","value":null,"metadata":{"rulePassed":"true","config":"c","reason":"Network:Recognized",
			"ruleID":"group_test"},"statsigMetadata":{"samplingRate":101},"user":{"userID":"u","country":"DE",
			"custom":{"n":3.0,"f":true,"l":["a"],"o":{}}},"time":1795487185225,"secondaryExposures":null}`,
			schema.Event{Kind: schema.KindExposure, HasTime: true, Time: at, Experiment: "c", Variant: "group_test", Rule: "group_test",
				Reason: "Network:Recognized", UnitType: "user", UnitID: "u", Attributes: attrs("rulePassed", "true",
					"statsigMetadata.samplingRate", "101", "user.country", "DE", "user.custom.f", "true", "user.custom.n", "3.0")},
		},
		"config, members in another order and none to spare": {
			`{"time":"1795487185225","metadata":{"ruleID":"r","config":"c"},"user":{"userID":7},"eventName":"statsig::config_exposure"}`,
			schema.Event{Kind: schema.KindExposure, HasTime: true, Time: at, Experiment: "c", Variant: "r", Rule: "r", UnitType: "user", UnitID: "7"},
		},
		"layer, parameter of an experiment": {
			`{"eventName":"statsig::layer_exposure","user":{"userID":"u"},"value":"","metadata":{"config":"l","parameterName":"color",
			"ruleID":"r","allocatedExperiment":"e","isExplicitParameter":"true"},"time":1795487185225}`,
			schema.Event{Kind: schema.KindExposure, HasTime: true, Time: at, Experiment: "e", Variant: "r", Rule: "r", UnitType: "user", UnitID: "u",
				Attributes: attrs("isExplicitParameter", "true", "layer", "l", "parameter", "color")},
		},
		"layer, parameter of the layer": {
			`{"eventName":"statsig::layer_exposure","user":{"userID":"u"},"metadata":{"config":"l","parameterName":"color",
			"ruleID":"r","allocatedExperiment":"","isExplicitParameter":"false"},"time":1795487185225}`,
			schema.Event{Kind: schema.KindExposure, HasTime: true, Time: at, Experiment: "l", Variant: "r", Rule: "r", UnitType: "user", UnitID: "u",
				Attributes: attrs("isExplicitParameter", "false", "layer", "l", "parameter", "color")},
		},
		"custom event": {
			`{"eventName":"purchase","metadata":{"sku":"x","n":2,"gift":false,"none":null,"cart":{"items": [1,2]},"reason":"sale"},
			"time":1795487185225.5,"user":{"userID":"u","ip":"10.0.0.1","userAgent":"x","locale":"de","appVersion":"1.2",
			"privateAttributes":{"salary":1},"analyticsOnlyMetadata":{"utm":"a"}},"value":9.99,"secondaryExposures":[]}`,
			schema.Event{Kind: schema.KindEvent, HasTime: true, Time: at + 500, HasValue: true, Value: 9.99, Name: "purchase",
				UnitType: "user", UnitID: "u", Attributes: attrs("cart", `{"items": [1,2]}`, "gift", "false", "n", "2", "reason", "sale",
					"sku", "x", "user.analyticsOnlyMetadata.utm", "a", "user.appVersion", "1.2", "user.locale", "de")},
		},
		"custom event, PHP's empty maps": {
			`{"eventName":"e","metadata":[],"user":{"userID":"u","custom":[],"customIDs":[]},"time":1795487185225,"statsigMetadata":[]}`,
			schema.Event{Kind: schema.KindEvent, HasTime: true, Time: at, Name: "e", UnitType: "user", UnitID: "u"},
		},
		"custom event, a user of empty fields": {
			`{"eventName":"e","user":{"userID":"u","email":"","ip":"","userAgent":"","country":"","locale":"","appVersion":"","custom":null,
			"privateAttributes":null,"statsigEnvironment":{"tier":""},"customIDs":{"a":""}},"value":"1","metadata":{"note":""},"time":1795487185225}`,
			schema.Event{Kind: schema.KindEvent, HasTime: true, Time: at, HasValue: true, Value: 1, Name: "e", UnitType: "user", UnitID: "u",
				Attributes: attrs("note", "")},
		},
		"custom event without a time": {
			`{"eventName":"e","user":{"userID":"u"},"time":null}`,
			schema.Event{Kind: schema.KindEvent, Name: "e", UnitType: "user", UnitID: "u"},
		},
		"of the SDK, but about a person": {
			`{"eventName":"statsig::identify","value":null,"metadata":null,"user":{"userID":"u"},"time":1795487185225}`,
			schema.Event{Kind: schema.KindEvent, HasTime: true, Time: at, Name: "statsig::identify", UnitType: "user", UnitID: "u"},
		},
		"what is not read may be anything": {
			`{"eventName":"e","user":{"userID":"u","email":"\ud800","ip":[1]},"time":1795487185225,"other":"\u0000"}`,
			schema.Event{Kind: schema.KindEvent, HasTime: true, Time: at, Name: "e", UnitType: "user", UnitID: "u"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := decoded(t, request(`{"events":[`+c.event+`],"statsigMetadata":{"sdkType":"s","sdkVersion":"1"}}`))
			require.Empty(t, b.Rejected)
			require.Len(t, b.Events, 1)
			got := b.Events[0]
			assert.Equal(t, got.HasTime, got.ClientID != "", "known by its content")
			got.ClientID = ""
			assert.Equal(t, c.want, got)
			assert.Equal(t, "s/1", b.SDK)
			assert.Equal(t, b.Events, decoded(t, request(`[`+c.event+`]`)).Events, "bare array")
		})
	}
}

func TestUnits(t *testing.T) {
	for user, want := range map[string][2]string{
		`{"userID":"u","customIDs":{"a":"x"}}`:                          {"user", "u"},
		`{"customIDs":{"zID":"z","companyID":"co","b":""},"userID":""}`: {"companyID", "co"},
		`{"customIDs":{"zID":"z","companyID":null,"orgID":12}}`:         {"orgID", "12"},
		`{"customIDs":{"stableID":"own"}}`:                              {"stableID", "own"},
		`{"customIDs":{"":"x"}}`:                                        {"stableID", "device"},
		`{"userID":null,"customIDs":null}`:                              {"stableID", "device"},
		`{}`:                                                            {"stableID", "device"},
		`null`:                                                          {"stableID", "device"},
		`{"userID":"","customIDs":{"a":""},"custom":{"userID":"custom"}}`: {"stableID", "device"},
	} {
		for where, body := range map[string]string{
			"events first": `{"events":[{"eventName":"e","user":` + user + `,"time":1}],"statsigMetadata":{"stableID":"device"}}`,
			"events last":  `{"statsigMetadata":{"stableID":"device"},"events":[{"eventName":"e","user":` + user + `,"time":1}]}`,
		} {
			b := decoded(t, request(body))
			require.Len(t, b.Events, 1, "%s, %s", user, where)
			assert.Equal(t, want, [2]string{b.Events[0].UnitType, b.Events[0].UnitID}, "%s, %s", user, where)
		}
	}
	// The id that became the unit is not an attribute too; the others are.
	b := decoded(t, request(`[{"eventName":"e","user":{"customIDs":{"b":"2","a":"1","c":"3"}},"time":1}]`))
	assert.Equal(t, attrs("user.customIDs.b", "2", "user.customIDs.c", "3"), b.Events[0].Attributes)
}

func TestValues(t *testing.T) {
	for value, want := range map[string]struct {
		number float64
		has    bool
		text   string
	}{
		`9.5`: {9.5, true, ""}, `-3`: {-3, true, ""}, `0`: {0, true, ""}, `"12"`: {12, true, ""}, `"-0.5e-3"`: {-0.0005, true, ""},
		`"1e+21"`: {1e21, true, ""}, `null`: {}, `""`: {}, `12345678901234567`: {12345678901234567, true, ""},
		`"007"`: {0, false, "007"}, `"12345678901234567"`: {0, false, "12345678901234567"}, `"1e999"`: {0, false, "1e999"},
		`"NaN"`: {0, false, "NaN"}, `"0x10"`: {0, false, "0x10"}, `"1."`: {0, false, "1."}, `" 1"`: {0, false, " 1"}, `"1e"`: {0, false, "1e"},
		`"-"`: {0, false, "-"}, `"SKU-1"`: {0, false, "SKU-1"}, `true`: {0, false, "true"}, `{"a": [1]}`: {0, false, `{"a": [1]}`},
		`[1,2]`: {0, false, `[1,2]`},
	} {
		b := decoded(t, request(`[{"eventName":"e","user":{"userID":"u"},"time":1,"value":`+value+`}]`))
		require.Len(t, b.Events, 1, value)
		e := b.Events[0]
		assert.Equal(t, want.has, e.HasValue, value)
		assert.Equal(t, want.number, e.Value, value)
		if want.text == "" {
			assert.Empty(t, e.Attributes, value)
		} else {
			assert.Equal(t, attrs("value", want.text), e.Attributes, value)
		}
	}
	// Of names that come twice the last one counts.
	b := decoded(t, request(`[{"eventName":"e","user":{"userID":"u"},"time":1,"metadata":{`+strings.Repeat(`"a":1,"b":{},`, 200)+`"a":2}}]`))
	require.Len(t, b.Events, 1)
	assert.Equal(t, attrs("a", "2", "b", "{}"), b.Events[0].Attributes)
	// An exposure has no value; what comes as one is kept.
	b = decoded(t, request(`[{"eventName":"statsig::gate_exposure","metadata":{"gate":"g","gateValue":true},"user":{"userID":"u"},"time":1,"value":1}]`))
	assert.Equal(t, "true", b.Events[0].Variant)
	assert.False(t, b.Events[0].HasValue)
	assert.Equal(t, attrs("value", "1"), b.Events[0].Attributes)
}

// Each stands between two good events, which it must not cost.
func TestRejected(t *testing.T) {
	exposure := func(metadata string) string {
		return `{"eventName":"statsig::config_exposure","user":{"userID":"u"},"time":1,"metadata":` + metadata + `}`
	}
	event := func(members string) string { return `{"user":{"userID":"u"},"time":1,` + members + `}` }
	long := strings.Repeat("x", schema.MaxFieldBytes+1)
	for in, want := range map[string][2]string{
		`{"eventName":"e","user":{},"time":1}`:                                 {"missing_field", "unit_id"},
		`{"eventName":"e","time":1}`:                                           {"missing_field", "unit_id"},
		`{"eventName":"statsig::gate_exposure","user":null,"time":1}`:          {"missing_field", "unit_id"},
		`{"user":{"userID":"u"},"time":1}`:                                     {"missing_field", "name"},
		event(`"eventName":""`):                                                {"missing_field", "name"},
		event(`"EventName":"e"`):                                               {"missing_field", "name"},
		exposure(`{"config":"c","ruleID":"","reason":"Network:Unrecognized"}`): {"missing_field", "variant"},
		exposure(`{"ruleID":"r"}`):                                             {"missing_field", "experiment"},
		exposure(`null`):                                                       {"missing_field", "experiment"},
		exposure(`{"config":{"a":1},"ruleID":"r"}`):                            {"missing_field", "experiment"},
		`7`:                                     {"invalid_type", ""},
		`null`:                                  {"invalid_type", ""},
		`[]`:                                    {"invalid_type", ""},
		event(`"eventName":7`):                  {"invalid_type", "name"},
		event(`"eventName":"e","metadata":"m"`): {"invalid_type", "metadata"},
		event(`"eventName":"e","metadata":[1]`): {"invalid_type", "metadata"},
		event(`"eventName":"e","secondaryExposures":{"a":1}`):              {"invalid_type", "secondaryExposures"},
		event(`"eventName":"e","statsigMetadata":1`):                       {"invalid_type", "statsigMetadata"},
		`{"eventName":"e","user":"u","time":1}`:                            {"invalid_type", "user"},
		`{"eventName":"e","user":{"userID":["u"]},"time":1}`:               {"invalid_type", "unit_id"},
		`{"eventName":"e","user":{"userID":true},"time":1}`:                {"invalid_type", "unit_id"},
		`{"eventName":"e","user":{"userID":"u","customIDs":"c"},"time":1}`: {"invalid_type", "user"},
		`{"eventName":"e","user":{"userID":"u"},"time":true}`:              {"invalid_type", "time"},
		`{"eventName":"e","user":{"userID":"u"},"time":{}}`:                {"invalid_type", "time"},
		`{"eventName":"e","user":{"userID":"u"},"time":"yesterday"}`:       {"invalid_time", "time"},
		`{"eventName":"e","user":{"userID":"u"},"time":1e999}`:             {"invalid_number", "time"},
		event(`"eventName":"e","value":1e999`):                             {"invalid_number", "value"},
		event(`"eventName":"e","value":NaN`):                               {"invalid_number", "value"},
		event(`"eventName":"e","metadata":{"a":99999999999999999999}`):     {"invalid_number", "metadata"},
		event(`"eventName":"a\ud800"`):                                     {"invalid_string", "name"},
		event("\"eventName\":\"\xff\""):                                    {"invalid_string", "name"},
		event(`"eventName":"e","metadata":{"a":"\u0000"}`):                 {"invalid_string", "metadata"},
		event(`"eventName":"e","metadata":{"\udc00":1}`):                   {"invalid_string", "metadata"},
		event(`"eventName":"e","metadata":{"a":["\udc00"]}`):               {"invalid_string", "metadata"},
		`{"eventName":"e","user":{"userID":"\ud800"},"time":1}`:            {"invalid_string", "unit_id"},
		event(`"eventName":"e","eventName":"f"`):                           {"duplicate_field", "name"},
		event(`"eventName":"e","time":2`):                                  {"duplicate_field", "time"},
		`{"eventName":"e","user":{"userID":"u","userID":"v"},"time":1}`:    {"duplicate_field", "unit_id"},
		`{"eventName":"e","user":{"userID":"` + long + `"},"time":1}`:      {"too_long", "unit_id"},
		event(`"eventName":"` + long + `"`):                                {"too_long", "name"},
		event(`"eventName":"e","metadata":{` + manyMembers(600) + `}`):     {"too_many_attributes", "attributes"},
		event(`"eventName":"e","metadata":{` + manyMembers(257) + `}`):     {"too_many_attributes", "attributes"},
	} {
		t.Run(want[0]+" "+want[1], func(t *testing.T) {
			good := `{"eventName":"good","user":{"userID":"u"},"time":1795487185225}`
			req := request(`{"events":[` + good + `,` + in + `,` + good + `]}`)
			b := decoded(t, req)
			require.Len(t, b.Rejected, 1, in)
			r := b.Rejected[0]
			assert.Equal(t, schema.Rejected{Index: 1, Code: schema.Code(want[0]), Field: want[1], Message: r.Message,
				Bytes: []byte(in), Size: len(in)}, r)
			assert.NotEmpty(t, r.Message)
			require.Len(t, b.Events, 2)
			for _, e := range b.Events {
				e.ClientID = ""
				assert.Equal(t, schema.Event{Kind: schema.KindEvent, HasTime: true, Time: at, Name: "good", UnitType: "user", UnitID: "u", Index: e.Index}, e)
			}
			assert.Equal(t, uint32(2), b.Events[1].Index)

			// A batch with a rejected event is known again all the same.
			id, _ := identity(t, b)
			again := decoded(t, req)
			id2, _ := identity(t, again)
			assert.Equal(t, id, id2)
			other := request(`{"events":[` + good + `,` + in + `,` + strings.Replace(good, "225", "226", 1) + `]}`)
			id3, _ := identity(t, decoded(t, other))
			assert.NotEqual(t, id, id3)
		})
	}
}

func manyMembers(n int) string {
	var s []string
	for i := range n {
		s = append(s, `"k`+strconv.Itoa(i)+`":1`)
	}
	return strings.Join(s, ",")
}

func TestNoise(t *testing.T) {
	b := decoded(t, request(`{"events":[
		{"eventName":"statsig::diagnostics","user":null,"metadata":{"context":"initialize","markers":[{"key":"overall"}]},"time":1},
		{"eventName":"statsig::diagnostics","user":{"userID":"u"},"metadata":{"markers":"[{\"key\":1}]"},"time":1},
		{"user":{"userID":"u"},"time":"never","eventName":"statsig::log_line"},
		{"eventName":"statsig::non_exposed_checks","user":null,"metadata":{"checks":{"g":3}},"time":1},
		{"eventName":"statsig::default_value_type_mismatch","user":{"userID":"u"},"value":"message","time":1},
		{"eventName":"statsig::session_recording","user":{"userID":"u"},"value":"session","metadata":{"rrweb_events":"[]"},"time":1},
		{"eventName":"statsig::of_tomorrow","user":null,"time":1},
		{"eventName":"auto_capture::page_view","user":{"userID":"u"},"value":"https://example.com/","time":1}
	]}`))
	assert.Equal(t, uint32(7), b.Dropped)
	assert.Equal(t, uint32(1), b.Count)
	require.Len(t, b.Events, 1)
	assert.Equal(t, "auto_capture::page_view", b.Events[0].Name)
	assert.Equal(t, uint32(0), b.Events[0].Index, "noise has no index")

	b = decoded(t, request(`{"events":[{"eventName":"statsig::diagnostics","time":1}]}`))
	assert.Equal(t, uint32(0), b.Count, "acknowledged, and nothing to keep")
	assert.Equal(t, uint32(1), b.Dropped)
}

// More gates on the way than an attribute can hold cost the list, not the exposure.
func TestLongSecondaryExposures(t *testing.T) {
	gates := `[` + strings.Repeat(`{"gate":"some_gate","gateValue":"false","ruleID":"rule"},`, 2000) + `{"gate":"g"}]`
	b := decoded(t, request(`[{"eventName":"statsig::gate_exposure","metadata":{"gate":"g","gateValue":"true"},"user":{"userID":"u"},"time":1,"secondaryExposures":`+gates+`}]`))
	require.Len(t, b.Events, 1)
	assert.Empty(t, b.Events[0].Attributes)
}
