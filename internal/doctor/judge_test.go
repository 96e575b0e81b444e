package doctor

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What each SDK does at an answer, as it was measured.
func TestVerdicts(t *testing.T) {
	for name, rows := range map[string][]struct {
		status int
		body   string
		want   Does
	}{
		"native": {
			{202, `{"batch_id":"b"}`, Done}, {200, `{"batch_id":"b"}`, Done}, {200, ``, Again}, {301, ``, Again}, {405, ``, Again}, {415, ``, Drops}, {400, ``, Drops}, {401, ``, Again}, {403, ``, Again}, {404, ``, Again},
			{408, ``, Again}, {413, ``, Drops}, {422, ``, Drops}, {429, ``, Again}, {503, ``, Again},
		},
		"statsig": {
			{202, `{"success":true}`, Done}, {202, ``, Done}, {400, ``, Again}, {401, ``, Again}, {302, ``, Again}, {429, ``, Again}, {503, ``, Again},
		},
		"statsig-js": {
			{202, ``, Done}, {408, ``, Again}, {429, ``, Drops}, {401, ``, Drops}, {500, ``, Again}, {302, ``, Drops},
		},
		"statsig-core": {
			{202, `{"success":true}`, Done}, {200, `{}`, Done}, {202, ``, Again}, {200, `OK`, Again}, {200, `{"success":false}`, Again},
			{400, ``, Drops}, {401, ``, Again}, {403, ``, Drops}, {405, ``, Drops}, {413, ``, Drops}, {429, ``, Drops}, {501, ``, Drops}, {503, ``, Again},
		},
		"launchdarkly": {
			{202, ``, Done}, {400, ``, Again}, {408, ``, Again}, {429, ``, Again}, {503, ``, Again}, {401, ``, Stops}, {403, ``, Stops}, {404, ``, Stops},
			{413, ``, Drops}, {302, ``, Stops},
		},
		"launchdarkly-js":     {{202, ``, Done}, {401, ``, Stops}, {500, ``, Again}},
		"launchdarkly-mobile": {{202, ``, Done}, {401, ``, Stops}, {500, ``, Again}},
		"segment": {
			{200, ``, Done}, {400, ``, Drops}, {401, ``, Drops}, {408, ``, Again}, {410, ``, Again}, {429, ``, Again}, {460, ``, Again}, {503, ``, Again},
		},
		"posthog": {
			{200, `{"status":1}`, Done}, {202, ``, Again}, {204, ``, Again}, {400, ``, Drops}, {401, ``, Drops}, {408, ``, Again}, {429, ``, Again}, {500, ``, Again},
		},
		"posthog-v1": {
			{200, `{"results":{"u":{"result":"ok"}}}`, Done}, {200, `{"results":{"u":{"result":"warning"}}}`, Done}, {200, `{"results":{}}`, Done}, {200, ``, Done},
			{200, `{"results":{"u":{"result":"retry"}}}`, Again}, {200, `{"results":{"u":{"result":"drop","details":"x"}}}`, Drops},
			{404, ``, Again}, {408, ``, Again}, {429, ``, Again}, {500, ``, Again}, {504, ``, Again}, {401, ``, Drops}, {400, ``, Drops}, {501, ``, Drops},
		},
		"posthog-js": {
			{200, ``, Done}, {202, ``, Again}, {400, ``, Drops}, {401, ``, Drops}, {429, ``, Drops}, {503, ``, Again},
		},
		"amplitude": {
			{200, `{"code":200}`, Done}, {200, `{"code":503}`, Again}, {503, `{"code":200}`, Done}, {200, ``, Done}, {401, ``, Drops}, {400, `{"code":400}`, Drops},
			{429, `{"code":429}`, Again}, {413, `{"code":413}`, Again}, {503, `{"code":"overloaded"}`, Again},
		},
		"optimizely": {{204, ``, Done}, {400, ``, Again}, {503, ``, Again}},
		"otlp": {
			{200, `{}`, Done}, {200, `{"partialSuccess":{}}`, Done}, {200, `{"partialSuccess":{"rejectedLogRecords":"0"}}`, Done},
			{200, `{"partialSuccess":{"rejectedLogRecords":"1"}}`, Drops}, {200, `{"partialSuccess":{"rejectedLogRecords":1}}`, Drops},
			{302, ``, Drops}, {400, ``, Drops}, {401, ``, Drops}, {429, ``, Again}, {500, ``, Drops}, {502, ``, Again}, {503, ``, Again}, {504, ``, Again},
		},
		"otlp-protobuf": {{200, "", Done}, {429, ``, Again}},
		"growthbook":    {{200, ``, Done}, {401, ``, Drops}, {503, ``, Drops}},
		"eppo": {
			{200, `{"failed_events":[]}`, Done}, {200, `{}`, Done}, {200, `{"failed_events":["u"]}`, Again}, {200, ``, Again}, {401, ``, Again}, {503, ``, Again},
		},
	} {
		sdk, ok := Find(name)
		require.True(t, ok, name)
		for _, row := range rows {
			v := sdk.judge(&Answer{Status: row.status, Body: []byte(row.body)})
			assert.Equal(t, row.want, v.Does, "%s at %d %s: %s", name, row.status, row.body, v.Why)
			assert.NotEmpty(t, v.Why)
		}
	}
}

// A binary answer is OTLP's in protobuf: partial_success with one rejected record.
func TestPartialSuccessInProtobuf(t *testing.T) {
	sdk, _ := Find("otlp-protobuf")
	assert.Equal(t, Drops, sdk.judge(&Answer{Status: 200, Body: []byte{0x0a, 0x02, 0x08, 0x01}}).Does)
	assert.Equal(t, Done, sdk.judge(&Answer{Status: 200, Body: []byte{0x0a, 0x00}}).Does)
	assert.Equal(t, Done, sdk.judge(&Answer{Status: 200, Body: []byte{0x0a, 0x02, 0x12, 0x00}}).Does, "a message and no number")
	assert.Equal(t, Done, sdk.judge(&Answer{Status: 200, Body: []byte{0xff}}).Does)
}

func TestCodeOfARefusal(t *testing.T) {
	for body, want := range map[string][2]string{
		`{"title":"x","status":401,"code":"unknown_key","detail":"no such write key"}`: {"unknown_key", "no such write key"},
		`{"code":401,"error":"Invalid API key: none","reason":"no_key"}`:               {"no_key", "Invalid API key: none"},
		`{"code":14,"message":"overloaded: the collector has too much in hand"}`:       {"overloaded", "the collector has too much in hand"},
		`{"code":14,"message":"Something else"}`:                                       {"", "Something else"},
		`<html>`:                                                                       {}, ``: {}, `[]`: {}, `{}`: {},
	} {
		code, detail := (&Answer{Body: []byte(body)}).refusal()
		assert.Equal(t, want, [2]string{code, detail}, body)
	}
}

func TestEverySDK(t *testing.T) {
	assert.Len(t, Names(), 17)
	seen := map[string]bool{}
	p := Probe{Unit: "doctor-u", ID: "0f0f4b6e-0c39-4f60-9d2e-d1a1f3c2b4a5", Key: "geheim/+ ="}
	for _, s := range SDKs() {
		assert.False(t, seen[s.Name], s.Name)
		seen[s.Name] = true
		req, err := s.Request(t.Context(), "https://collector.example/sluice/", p)
		require.NoError(t, err, s.Name)
		assert.Equal(t, "POST", req.Method)
		assert.Equal(t, "collector.example", req.URL.Host)
		assert.Regexp(t, "^/sluice/[^/]", req.URL.Path)
		assert.NotContains(t, masked(req.URL.String(), p), "geheim", s.Name)
	}
	_, ok := Find("nobody")
	assert.False(t, ok)
}
