package schema

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

var limits = Limits{Past: 720 * time.Hour, Future: time.Hour}

func TestRepeatable(t *testing.T) {
	for name, tt := range map[string]struct {
		body string
		want bool
	}{
		"a time each":     {`[{"experiment":"e","variant":"v","unit_id":"u","time":0}]`, true},
		"an id each":      {`[{"experiment":"e","variant":"v","unit_id":"u","event_id":"x"}]`, true},
		"one or other":    {`[{"experiment":"e","variant":"v","unit_id":"u","event_id":"x"},{"experiment":"e","variant":"v","unit_id":"u","time":5}]`, true},
		"neither":         {`[` + good + `]`, false},
		"one has neither": {`[{"experiment":"e","variant":"v","unit_id":"u","time":0},` + good + `]`, false},
		"one is rejected": {`[{"experiment":"e","variant":"v","unit_id":"u","time":0},1]`, true},
		"all rejected":    {`[1]`, true},
	} {
		assert.Equal(t, tt.want, decode(t, tt.body).Repeatable(), name)
	}
	assert.False(t, new(Batch).Repeatable())
}

func TestResolveTimes(t *testing.T) {
	now := time.Date(2026, 11, 24, 7, 0, 0, 123_456_789, time.UTC)
	at := now.UnixMicro()
	ago := func(d time.Duration) int64 { return at - d.Microseconds() }
	for name, tt := range map[string]struct {
		sent     int64
		time     int64
		want     int64
		adjusted bool
	}{
		"as sent":                     {0, ago(time.Minute), ago(time.Minute), false},
		"exactly the past limit":      {0, ago(720 * time.Hour), ago(720 * time.Hour), false},
		"over the past limit":         {0, ago(720*time.Hour) - 1, ago(720 * time.Hour), true},
		"exactly the future limit":    {0, ago(-time.Hour), ago(-time.Hour), false},
		"over the future limit":       {0, ago(-time.Hour) + 1, ago(-time.Hour), true},
		"year 1":                      {0, -62135596800000000, ago(720 * time.Hour), true},
		"year 9999":                   {0, 253402300799000000, ago(-time.Hour), true},
		"least":                       {0, math.MinInt64, ago(720 * time.Hour), true},
		"most":                        {0, math.MaxInt64, ago(-time.Hour), true},
		"clock right":                 {ago(0), ago(time.Minute), ago(time.Minute), false},
		"clock right, slow request":   {ago(5 * time.Second), ago(time.Minute), ago(time.Minute), false},
		"clock behind":                {ago(10 * time.Minute), ago(11 * time.Minute), ago(time.Minute), false},
		"clock ahead":                 {ago(-3 * time.Hour), ago(-2 * time.Hour), ago(time.Hour), false},
		"clock ahead, past the limit": {ago(-3 * time.Hour), ago(-2 * time.Hour), ago(time.Hour), false},
		"on the wrong day":            {ago(48 * time.Hour), ago(48*time.Hour + time.Minute), ago(time.Minute), false},
		"sent_at in seconds":          {now.Unix() * 1000, ago(time.Minute), ago(time.Minute), false},
		"sent_at far ahead":           {ago(-49 * time.Hour), ago(time.Minute), ago(time.Minute), false},
		"sent_at absurd":              {math.MaxInt64, ago(time.Minute), ago(time.Minute), false},
		"shift over the end":          {ago(time.Hour), math.MaxInt64, ago(-time.Hour), true},
		"shift over the start":        {ago(-time.Hour), math.MinInt64, ago(720 * time.Hour), true},
		"corrected, then clamped":     {ago(time.Hour), ago(722 * time.Hour), ago(720 * time.Hour), true},
		"corrected into the limits":   {ago(time.Hour), ago(721 * time.Hour), ago(720 * time.Hour), false},
		"corrected, then ahead":       {ago(time.Hour), ago(-time.Minute), ago(-time.Hour), true},
	} {
		t.Run(name, func(t *testing.T) {
			b := &Batch{SentAt: tt.sent, Count: 2, Events: []Event{{HasTime: true, Time: tt.time}, {Index: 1}}}
			b.Resolve(now, limits)
			assert.Equal(t, tt.want, b.Events[0].Time, "by %v", time.Duration(b.Events[0].Time-tt.want)*time.Microsecond)
			assert.Equal(t, tt.adjusted, b.Events[0].TimeAdjusted)
			assert.Equal(t, at, b.Events[1].Time, "one without a time is never moved")
			assert.False(t, b.Events[1].TimeAdjusted)
			assert.False(t, b.Events[1].HasTime)
			assert.Equal(t, at, b.ReceivedAt)
		})
	}
}

func TestResolveDefaults(t *testing.T) {
	b := &Batch{Project: "p", ID: batch.ForKey("p", "k"), Count: 3, Events: []Event{
		{}, {Index: 1, UnitType: "device", ClientID: "5f0f4b6e-0c39-4f60-9d2e-d1a1f3c2b4a5"}, {Index: 2, ClientID: "mine"},
	}}
	b.Resolve(time.Unix(5, 0), limits)
	assert.Equal(t, []string{"user", "device", "user"}, []string{b.Events[0].UnitType, b.Events[1].UnitType, b.Events[2].UnitType})
	assert.Equal(t, batch.EventID(b.ID, 0), b.Events[0].ID)
	assert.Equal(t, "5f0f4b6e-0c39-4f60-9d2e-d1a1f3c2b4a5", b.Events[1].ID.String())
	assert.Equal(t, batch.ClientEventID("p", "mine"), b.Events[2].ID)
}

func TestAppendEventJSONCanBeSentAgain(t *testing.T) {
	for _, e := range everything() {
		var b Batch
		require.NoError(t, DecodeJSON(append(AppendEventJSON([]byte("["), &e), ']'), KindUnspecified, 1, &b))
		require.Len(t, b.Events, 1, "%v", b.Rejected)
		e.Index = 0
		assert.Equal(t, e, b.Events[0])
	}
	b := Batch{Project: "p", ID: batch.ForKey("p", "k"), Events: everything()}
	b.Resolve(time.Date(2026, 11, 24, 7, 0, 0, 0, time.UTC), limits)
	for _, e := range b.Events {
		var again Batch
		require.NoError(t, DecodeJSON(append(AppendEventJSON([]byte("["), &e), ']'), KindUnspecified, 1, &again))
		require.Len(t, again.Events, 1, "%v", again.Rejected)
		assert.Equal(t, e.Time, again.Events[0].Time)
		assert.Equal(t, e.ID, batch.ClientEventID("p", again.Events[0].ClientID), "the same identity")
	}
}
