package ingest

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/protocol/native"
	"sluice/pkg/batch"
)

func TestMetrics(t *testing.T) {
	e := start(t)
	body := []byte("[" + good + "," + good + `,{"experiment":"e"}]`)
	require.Equal(t, 202, e.post("/v1/exposures", body, "Idempotency-Key", "m").status)
	require.Equal(t, 200, e.post("/v1/exposures", body, "Idempotency-Key", "m").status)
	require.Equal(t, 422, e.post("/v1/exposures", []byte("["+good+"]"), "Idempotency-Key", "m").status)
	require.Equal(t, 422, e.post("/v1/exposures", []byte("[1]")).status)
	e.pub.set(refuseAll)
	require.Equal(t, 503, e.post("/v1/exposures", []byte("["+good+"]")).status)
	require.Equal(t, 404, e.post("/nowhere", nil).status)
	require.Equal(t, 431, e.raw(rawHead("POST", "/v1/exposures", "X-Long: "+strings.Repeat("x", 1<<20))).status)

	for outcome, want := range map[string]float64{"accepted": 2, "rejected": 2, "duplicate": 2, "conflict": 1, "not_durable": 1, "dropped": 0} {
		assert.Equal(t, want, value(t, e.reg, "sluice_events_total", "outcome", outcome), outcome)
	}
	for code, want := range map[string]float64{"202": 1, "200": 1, "422": 2, "503": 1} {
		assert.Equal(t, want, value(t, e.reg, "sluice_requests_total", "endpoint", "native_exposures", "code", code), code)
	}
	assert.Equal(t, 1.0, value(t, e.reg, "sluice_requests_total", "endpoint", "other", "code", "404"))
	assert.Equal(t, 1.0, value(t, e.reg, "sluice_requests_total", "endpoint", "other", "code", "431"))
	assert.Equal(t, 1.0, value(t, e.reg, "sluice_requests_refused_total", "endpoint", "native_exposures", "code", "key_reused"))
	assert.Equal(t, 1.0, value(t, e.reg, "sluice_ack_seconds", "durable", "kafka"))
	assert.Equal(t, 2.0, value(t, e.reg, "sluice_recent_batches"))
	assert.Zero(t, value(t, e.reg, "sluice_in_flight_bytes"))
	assert.Equal(t, float64(40<<20), value(t, e.reg, "sluice_in_flight_limit_bytes"))
}

func TestCORS(t *testing.T) {
	e := start(t)
	a := e.do("OPTIONS", "/v1/exposures", nil, "Authorization", "", "Origin", "https://shop.example", "Access-Control-Request-Method", "POST")
	assert.Equal(t, 204, a.status)
	assert.Equal(t, "https://shop.example", a.header.Get("Access-Control-Allow-Origin"))
	assert.Equal(t, "true", a.header.Get("Access-Control-Allow-Credentials"), "beacons always have them")
	assert.Contains(t, a.header.Get("Access-Control-Allow-Headers"), "idempotency-key")
	assert.Equal(t, "OPTIONS, POST", a.header.Get("Allow"))
	a = e.do("OPTIONS", "/v1/exposures", nil, "Origin", "https://shop.example", "Access-Control-Request-Method", "POST",
		"Access-Control-Request-Headers", "x-sdk-of-tomorrow,content-type, X-Other, no header")
	assert.Regexp(t, "^x-sdk-of-tomorrow, x-other, authorization, content-encoding, content-type, ", a.header.Get("Access-Control-Allow-Headers"))
	a = e.post("/v1/exposures", []byte("["+good+"]"), "Origin", "https://shop.example", "Authorization", "")
	assert.Equal(t, 401, a.status)
	assert.Equal(t, "https://shop.example", a.header.Get("Access-Control-Allow-Origin"), "a page may read why it was refused")
	a = e.post("/v1/exposures?k="+goodKey, []byte("["+good+"]"), "Content-Type", "text/plain;charset=UTF-8", "Authorization", "")
	assert.Equal(t, 202, a.status, "as sendBeacon sends it")
	assert.Equal(t, 405, e.do("OPTIONS", "/healthz", nil).status)
}

func TestNewChecksItsOptions(t *testing.T) {
	for name, tt := range map[string]struct {
		edit func(*Options)
		want string
	}{
		"no publisher":        {func(o *Options) { o.Publisher = nil }, "required"},
		"no ledger":           {func(o *Options) { o.Ledger = nil }, "required"},
		"no keys":             {func(o *Options) { o.Keys = nil }, "required"},
		"too little in hand":  {func(o *Options) { o.Limits.MaxInFlight = 30 << 20 }, "want at least 41943040"},
		"tiny records":        {func(o *Options) { o.Limits.RecordMax = 2 << 10 }, "record limit"},
		"negative":            {func(o *Options) { o.Limits.MaxBody = -1 }, "negative"},
		"a path twice":        {func(o *Options) { o.Endpoints = append(o.Endpoints, native.Endpoints()[0]) }, "is taken by"},
		"a path without root": {func(o *Options) { o.Endpoints[0].Path = "v1" }, "want a name"},
		"metrics registered": {func(o *Options) {
			other, _, _, _ := testOptions()
			other.Registerer = o.Registerer
			_, err := New(other)
			require.NoError(t, err)
		}, "metrics"},
	} {
		t.Run(name, func(t *testing.T) {
			o, _, _, _ := testOptions()
			tt.edit(&o)
			_, err := New(o)
			assert.ErrorContains(t, err, tt.want)
		})
	}
	o, _, _, _ := testOptions()
	o.Limits.MaxBody = 50 << 20
	c, err := New(o)
	require.NoError(t, err, "a larger body takes a larger budget, unless one is given")
	assert.Equal(t, int64(200<<20), c.inflight.limit)
}

func TestReady(t *testing.T) {
	o, pub, ledger, _ := testOptions()
	c, err := New(o)
	require.NoError(t, err)
	assert.NoError(t, c.Ready())
	pub.ready = errDown
	assert.ErrorIs(t, c.Ready(), errDown)
	pub.ready = nil
	ledger.ready = errDown
	assert.ErrorIs(t, c.Ready(), errDown, "nothing may be acknowledged that the ledger does not take down")
	ledger.ready = nil
	c.Drain()
	assert.Error(t, c.Ready())
	assert.True(t, c.Draining())
}

func TestAnonymous(t *testing.T) {
	e := start(t, func(o *Options) { o.Keys = Anonymous{} })
	a := e.post("/v1/exposures", []byte("["+good+"]"), "Authorization", "", "Idempotency-Key", "x")
	require.Equal(t, 202, a.status)
	assert.Equal(t, batch.ForKey("default", "x"), a.accepted(t).BatchID)
}
