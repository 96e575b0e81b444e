package client

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"sluice/pkg/schema"
)

// A reason for dropping events, as reported.
type reason string

const (
	queueFull reason = "queue_full"
	expired   reason = "expired"
	refused   reason = "refused"
	tooLarge  reason = "too_large"
)

// dropKey is what dropped events are counted by: experiment and variant of
// exposures, the name of custom events.
type dropKey struct {
	experiment, variant, event string
	reason                     reason
}

// Bounds of what is remembered: so many keys, and so many bytes of a name.
const (
	mostDropKeys  = 100
	mostNameBytes = 256
)

// drops counts what was dropped and not reported yet. Logger.mu guards it.
type drops map[dropKey]uint64

// rest is what events are counted by that have no room of their own.
func rest(why reason) dropKey { return dropKey{experiment: "*", variant: "*", reason: why} }

// named is how many keys are of their own.
func (d drops) named() int {
	n := len(d)
	for _, why := range []reason{queueFull, expired, refused, tooLarge} {
		if _, there := d[rest(why)]; there {
			n--
		}
	}
	return n
}

// add counts n events. Past mostDropKeys they go under "*", which takes the place of
// no other: reports that are put back, in any order, are the same as before.
func (d drops) add(k dropKey, n uint64) {
	if _, known := d[k]; !known && k != rest(k.reason) {
		if d.named() >= mostDropKeys {
			k = rest(k.reason)
		}
		// Copies: the caller's strings may be small parts of large ones.
		k.experiment, k.variant, k.event = shorten(k.experiment), shorten(k.variant), shorten(k.event)
	}
	d[k] += n
}

func shorten(s string) string {
	return strings.ToValidUTF8(strings.Clone(s[:min(len(s), mostNameBytes)]), "")
}

// append writes a report as a custom event of a client.
func (k dropKey) append(dst []byte, client string, n uint64, now time.Time) []byte {
	dst = append(dst, `{"kind":"event","name":"`+droppedName+`","unit_type":"`+clientUnit+`","unit_id":`...)
	dst = schema.AppendQuoted(dst, client)
	dst = append(dst, `,"value":`...)
	dst = strconv.AppendUint(dst, n, 10)
	dst = append(dst, `,"time":`...)
	dst = strconv.AppendInt(dst, now.UnixMilli(), 10)
	dst = append(dst, `,"event_id":"`...)
	dst = appendUUID(dst, rand.Uint64(), rand.Uint64(), 4)
	dst = append(dst, `","attributes":{"reason":"`...)
	dst = append(dst, k.reason...)
	dst = append(dst, '"')
	dst = appendField(dst, `,"event":`, k.event)
	dst = appendField(dst, `,"experiment":`, k.experiment)
	dst = appendField(dst, `,"variant":`, k.variant)
	return append(dst, "}}"...)
}

// logged is what is read of an event to count it.
type logged struct {
	Experiment string         `json:"experiment"`
	Variant    string         `json:"variant"`
	Kind       string         `json:"kind"`
	Name       string         `json:"name"`
	UnitType   string         `json:"unit_type"`
	Value      float64        `json:"value"`
	Attributes map[string]any `json:"attributes"`
}

// isReport reports whether the event is one of the Logger's own.
func (l *logged) isReport() bool {
	return l.Kind == "event" && l.Name == droppedName && l.UnitType == clientUnit
}

// key is what the event is counted by when it is dropped, and n for how many it
// stands: a report for those it reports.
func (l *logged) key(why reason) (k dropKey, n uint64) {
	if l.isReport() {
		text := func(name string) string { s, _ := l.Attributes[name].(string); return s }
		return dropKey{text("experiment"), text("variant"), text("event"), reason(text("reason"))}, uint64(l.Value)
	}
	if l.Kind == "event" {
		return dropKey{event: l.Name, reason: why}, 1
	}
	return dropKey{experiment: l.Experiment, variant: l.Variant, reason: why}, 1
}
