package schema

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What the events before looked like makes no difference to an event: each is read
// the same among others as alone.
func TestNamesOfEarlierEventsMakeNoDifference(t *testing.T) {
	members := []string{
		`"experiment":"e1"`, `"experiment": "e2"`, `"variant":"v"`, `"unit_id":"u1"`, ` "unit_id" :"u2"`, `"unit_type":"account"`, `"time":5`,
		`"rule":"r"`, `"rule":null`, `"reason":7`, `"event_id":"id"`, `"name":"n"`, `"value":1.5`, `"kind":"event"`, `"kind":"exposure"`,
		`"Variant":"v"`, `"variant\u0020":"x"`, "\"vari\xffant\":1", `"other":{"experiment":"no"}`, `"other":[1,2]`, `"\u0076ariant":"escaped"`,
		`"attributes":{"a":1,"b":"x"}`, `"attributes":{"b":1,"a":"x"}`, `"attributes":{"a":1,"a":2}`, `"attributes":{"a":null, "b":true}`,
		`"attributes":{"\u0061":"x"}`, `"attributes":{}`, "\"attributes\":{\"\xff\":1}",
	}
	for i := range 20 { // more than are remembered
		members = append(members, `"unknown`+strings.Repeat("x", i)+`":1`)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		var events []string
		for range 1 + rng.IntN(6) {
			if len(events) > 0 && rng.IntN(2) == 0 { // nearly the one before
				events = append(events, strings.Replace(events[len(events)-1], `"e1"`, `"e3"`, 1))
				continue
			}
			rng.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
			events = append(events, "{"+strings.Join(members[:rng.IntN(24)], ",")+"}")
		}
		var together Batch
		require.NoError(t, DecodeJSON([]byte("["+strings.Join(events, ",")+"]"), KindExposure, 100, &together))
		var passed []Event
		var rejected []Rejected
		for i, e := range events {
			var alone Batch
			require.NoError(t, DecodeJSON([]byte("["+e+"]"), KindExposure, 100, &alone))
			for _, x := range alone.Events {
				x.Index = uint32(i)
				passed = append(passed, x)
			}
			for _, x := range alone.Rejected {
				x.Index = uint32(i)
				rejected = append(rejected, x)
			}
		}
		require.ElementsMatch(t, passed, together.Events)
		require.ElementsMatch(t, rejected, together.Rejected)
	}
}

// A batch that is used again allocates nothing, however many events there are.
func TestNoAllocationForAnEvent(t *testing.T) {
	body := benchBody()
	var b Batch
	var value []byte
	decode := func() {
		b.Reset()
		require.NoError(t, DecodeJSON(body, KindExposure, 10_000, &b))
		b.RejectOversized(900 << 10)
		b.ComputeDigest()
		value = AppendRecord(value[:0], &b, b.whole())
	}
	decode()
	assert.LessOrEqual(t, testing.AllocsPerRun(50, decode), 1.0, "for 100 events")
}
