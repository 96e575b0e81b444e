package doctor

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// network answers without any.
type network struct {
	status int
	header http.Header
	body   string
	err    error
}

func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	if n.err != nil {
		return nil, n.err
	}
	return &http.Response{StatusCode: n.status, Header: n.header, Body: io.NopCloser(strings.NewReader(n.body)), Request: r}, nil
}

// tables are a store whose rows come after a while.
type tables struct {
	away      error         // of Check
	failing   error         // of Rows
	after     time.Duration // from the first question on
	rows      func(unit string) []Row
	dead      []Dead
	holdup    Holdup
	holdupErr error

	first time.Time
}

func (s *tables) Check(context.Context) error { return s.away }

func (s *tables) Rows(_ context.Context, _, unit string, _ time.Time) ([]Row, error) {
	if s.first.IsZero() {
		s.first = time.Now()
	}
	if s.failing != nil {
		return nil, s.failing
	}
	if s.rows == nil || time.Since(s.first) < s.after {
		return nil, nil
	}
	return s.rows(unit), nil
}

func (s *tables) Dead(context.Context, string, time.Time) ([]Dead, error) { return s.dead, nil }

func (s *tables) Holdup(context.Context) (Holdup, error) { return s.holdup, s.holdupErr }

// like makes rows as they should be, and changes them.
func like(sdk SDK, at time.Time, change func(*Row)) func(string) []Row {
	return func(unit string) []Row {
		r := Row{Exposure: sdk.Expect(Probe{Unit: unit, Time: at.Truncate(time.Millisecond)}), Project: "shop", ReceivedAt: at, StoredAt: at.Add(time.Second), Path: "direct"}
		if r.Time == nil {
			r.Time = &at
		}
		if change != nil {
			change(&r)
		}
		return []Row{r}
	}
}

const accepted = `{"batch_id":"b","accepted":1,"rejected":[],"durable":"kafka","duplicate":false}`

func TestRun(t *testing.T) {
	type world struct {
		network
		tables
		sdk string
		key string
	}
	elsewhere := errors.New("elsewhere")
	for name, tt := range map[string]struct {
		change  func(w *world, sdk SDK, now time.Time)
		state   string
		unasked bool
		says    []string // each in one of the problems
		notes   string
	}{
		"arrives": {func(w *world, sdk SDK, now time.Time) { w.rows, w.after = like(sdk, now, nil), 3*time.Second }, StateStored, false, nil, ""},
		"arrives without its way": {func(w *world, sdk SDK, now time.Time) {
			w.rows = like(sdk, now, func(r *Row) { r.Path = "" })
		}, StateStored, false, nil, ""},
		"through the spool": {func(w *world, sdk SDK, now time.Time) {
			w.rows = like(sdk, now, func(r *Row) { r.Path = "spool" })
		}, StateStored, false, nil, "spool"},
		"without a time": {func(w *world, sdk SDK, now time.Time) { w.sdk, w.rows = "growthbook", like(sdk, now, nil) }, StateStored, false, nil, "no time"},
		"another variant": {func(w *world, sdk SDK, now time.Time) {
			w.rows = like(sdk, now, func(r *Row) { r.Variant = "true" })
		}, StateStored, false, []string{`variant arrived as "true", and was to be "test"`}, ""},
		"another time": {func(w *world, sdk SDK, now time.Time) {
			w.rows = like(sdk, now, func(r *Row) { r.Time = &r.ReceivedAt; r.ReceivedAt = now.Add(time.Second) })
		}, StateStored, false, []string{"the time arrived as"}, ""},
		"clocks differ": {func(w *world, sdk SDK, now time.Time) {
			w.rows = like(sdk, now, func(r *Row) { r.Time = &r.ReceivedAt; r.ReceivedAt = now.Add(time.Minute) })
		}, StateStored, false, nil, "one of them is off"},
		"clamped": {func(w *world, sdk SDK, now time.Time) {
			w.rows = like(sdk, now, func(r *Row) { r.TimeAdjusted = true })
		}, StateStored, false, []string{"moved into the limits"}, ""},
		"twice": {func(w *world, sdk SDK, now time.Time) {
			w.rows = func(unit string) []Row { return append(like(sdk, now, nil)(unit), like(sdk, now, nil)(unit)...) }
		}, StateStored, false, []string{"2 rows are stored"}, ""},
		"dead": {func(w *world, _ SDK, _ time.Time) {
			w.dead = []Dead{{Stage: "collector", Reason: "missing_field", Field: "unit_id", Error: "no id"}}
		}, StateDead, false, []string{"dead letter (stage collector): missing_field unit_id: no id"}, ""},
		"refused by ClickHouse": {func(w *world, _ SDK, _ time.Time) { w.dead = []Dead{{Stage: "sink", Reason: "refused"}} }, StateDead, false, []string{"ClickHouse did not take the row"}, ""},
		"in conflict":           {func(w *world, _ SDK, _ time.Time) { w.dead = []Dead{{Stage: "conflict", Reason: "key_reused"}} }, StateDead, false, []string{"same idempotency key"}, ""},
		"all rejected": {func(w *world, _ SDK, _ time.Time) {
			w.status, w.body, w.dead = 422, `{"code":"all_rejected"}`, []Dead{{Stage: "collector", Reason: "too_long"}}
		}, StateDead, false, []string{"422, all_rejected", "too_long"}, ""},
		"no sink ever": {func(*world, SDK, time.Time) {}, StateMissing, false, []string{"no sink has ever stored anything", "start a sink"}, ""},
		"no sink now":  {func(w *world, _ SDK, now time.Time) { w.holdup.JudgedAt = now.Add(-time.Hour) }, StateMissing, false, []string{"no sink has looked after this database since"}, ""},
		"in the spool": {func(w *world, _ SDK, _ time.Time) { w.body = strings.Replace(accepted, "kafka", "spool", 1) }, StateMissing, false, []string{"in the collector's spool"}, ""},
		"held back": {func(w *world, _ SDK, now time.Time) {
			w.holdup = Holdup{CompleteUntil: now, JudgedAt: now.Add(9 * time.Second), Why: "partition 3 is to be stored through offset 900"}
		}, StateMissing, false, []string{"What the pipeline waits for: partition 3"}, ""},
		"another Kafka": {func(w *world, _ SDK, now time.Time) {
			w.holdup = Holdup{CompleteUntil: now.Add(8 * time.Second), JudgedAt: now.Add(9 * time.Second)}
		}, StateMissing, false, []string{"go elsewhere"}, ""},
		"no watermark": {func(w *world, _ SDK, _ time.Time) { w.holdupErr = elsewhere }, StateMissing, false, []string{"delivery_watermark could not be asked: elsewhere"}, ""},
		"ClickHouse is away": {func(w *world, _ SDK, _ time.Time) {
			w.away = errors.New("dial tcp: connection refused")
		}, StateNotAsked, true, []string{"ClickHouse could not be asked", "--clickhouse-dsn"}, ""},
		"no tables": {func(w *world, _ SDK, _ time.Time) { w.away = fmt.Errorf("database x: %w", ErrNoTables) }, StateNotAsked, true, []string{"sluice migrate"}, ""},
		"password":  {func(w *world, _ SDK, _ time.Time) { w.away = errors.New("code: 516, message: no") }, StateNotAsked, true, []string{"user or the password"}, ""},
		"ClickHouse goes away": {func(w *world, _ SDK, _ time.Time) { w.failing = elsewhere }, StateNotAsked, true,
			[]string{"ClickHouse could not be asked whether the exposure arrived: elsewhere"}, ""},
		"answer changed on the way": {func(w *world, sdk SDK, now time.Time) {
			w.sdk, w.body, w.rows = "statsig-core", "", like(sdk, now, nil)
		}, StateStored, false, []string{"does not take this answer for success"}, ""},
		"refused": {func(w *world, _ SDK, _ time.Time) { w.err = syscall.ECONNREFUSED }, StateNotAsked, true, []string{"nobody listens there"}, ""},
		"reset":   {func(w *world, _ SDK, _ time.Time) { w.err = syscall.ECONNRESET }, StateNotAsked, true, []string{"closed without an answer"}, ""},
		"unknown key": {func(w *world, _ SDK, _ time.Time) {
			w.status, w.body, w.key = 401, `{"code":"unknown_key","detail":"no such write key"}`, "geheim"
		}, StateNotAsked, false, []string{
			"401, unknown_key, no such write key", "came in the header Authorization (Bearer)", fmt.Sprintf("%x", sha256.Sum256([]byte("geheim"))),
		}, ""},
		"unknown key that stops": {func(w *world, _ SDK, _ time.Time) {
			w.status, w.body, w.key, w.sdk = 401, `{"code":"unknown_key"}`, "geheim", "launchdarkly"
		}, StateNotAsked, false, []string{"restart what has this SDK in it"}, ""},
		"lost key": {func(w *world, _ SDK, _ time.Time) { w.status, w.body, w.key = 401, `{"code":"no_key"}`, "geheim" }, StateNotAsked, false, []string{"something in front of the collector takes it away"}, ""},
		"no key":   {func(w *world, _ SDK, _ time.Time) { w.status = 401 }, StateNotAsked, false, []string{"no key was given", "--key"}, ""},
		"disabled": {func(w *world, _ SDK, _ time.Time) { w.status, w.body = 403, `{"code":"key_disabled"}` }, StateNotAsked, false, []string{"sluice keys enable"}, ""},
		"scope":    {func(w *world, _ SDK, _ time.Time) { w.status, w.body = 403, `{"code":"scope_missing"}` }, StateNotAsked, false, []string{"exposures is not among them"}, ""},
		"no path":  {func(w *world, _ SDK, _ time.Time) { w.status, w.body = 404, `{"code":"not_found"}` }, StateNotAsked, false, []string{"without the SDK's own path"}, ""},
		"no collector": {func(w *world, _ SDK, _ time.Time) { w.status, w.body = 404, `<html>` }, StateNotAsked, false,
			[]string{"whatever answers there is no collector"}, ""},
		"redirect": {func(w *world, _ SDK, _ time.Time) {
			w.status, w.header = 301, http.Header{"Location": {"https://x/"}}
		}, StateNotAsked, false, []string{`redirect, 301 to "https://x/"`}, ""},
		"rate":       {func(w *world, _ SDK, _ time.Time) { w.status = 429 }, StateNotAsked, false, []string{"over its rate"}, ""},
		"overloaded": {func(w *world, _ SDK, _ time.Time) { w.status, w.body = 503, `{"code":"overloaded"}` }, StateNotAsked, false, []string{"too much in hand"}, ""},
		"nowhere":    {func(w *world, _ SDK, _ time.Time) { w.status, w.body = 503, `{"code":"not_durable"}` }, StateNotAsked, false, []string{"neither Kafka nor the spool"}, ""},
		"a gateway":  {func(w *world, _ SDK, _ time.Time) { w.status = 502 }, StateNotAsked, false, []string{"in front of the collector answers"}, ""},
		"a fault":    {func(w *world, _ SDK, _ time.Time) { w.status, w.body = 500, `{"code":"internal"}` }, StateNotAsked, false, []string{"see the collector's log"}, ""},
		"malformed":  {func(w *world, _ SDK, _ time.Time) { w.status, w.body = 400, `{"code":"malformed"}` }, StateNotAsked, false, []string{"what malformed means"}, ""},
		"a stranger": {func(w *world, _ SDK, _ time.Time) { w.status = 418 }, StateNotAsked, false, []string{"not a collector's"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{network: network{status: 202, body: accepted}, sdk: "native"}
				native, _ := Find(w.sdk)
				tt.change(w, native, time.Now())
				sdk, ok := Find(w.sdk)
				require.True(t, ok)
				if w.sdk != "native" {
					tt.change(w, sdk, time.Now())
				}
				r, err := Run(t.Context(), Options{SDK: sdk, URL: "http://c", Key: w.key, Wait: 10 * time.Second, Store: &w.tables, Client: &http.Client{
					Transport: &w.network, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
				}})
				require.NoError(t, err)
				assert.Equal(t, tt.state, r.Arrival.State)
				assert.Equal(t, tt.unasked, r.Unasked)
				assert.Equal(t, len(tt.says) == 0, r.OK(), "%v", r.Problems)
				for _, s := range tt.says {
					assert.Contains(t, fmt.Sprint(r.Problems), s)
				}
				assert.Contains(t, fmt.Sprint(r.Notes), tt.notes)
				assert.NotContains(t, fmt.Sprintf("%+v", r), "geheim")
				if tt.state == StateMissing {
					assert.Equal(t, 10.0, r.Arrival.Seconds)
				}
			})
		})
	}
}

// Ctrl-C ends the wait at once.
func TestRunIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		sdk, _ := Find("native")
		began := time.Now()
		var told time.Duration
		_, err := Run(ctx, Options{SDK: sdk, URL: "http://c", Wait: time.Hour, Store: &tables{}, Client: &http.Client{Transport: &network{status: 202}},
			Progress: func(done, total time.Duration) { told = total }})
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, 3*time.Second, time.Since(began))
		assert.Equal(t, time.Hour, told)
	})
}

func TestAnswerAsText(t *testing.T) {
	assert.Equal(t, `{"a":1}`, text([]byte("{\"a\":1}\n")))
	assert.Equal(t, "(3 bytes that are no text)", text([]byte{0xff, 0xfe, 1}))
	long := text([]byte(strings.Repeat("ä", 400)))
	assert.Equal(t, strings.Repeat("ä", 150)+"…", long)
}
