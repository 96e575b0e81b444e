package prove

import (
	"fmt"
	"strconv"
)

// maxEvents bounds the events of a batch: their index has two bytes in an id, and
// a batch has to stay one Kafka record.
const maxEvents = 1000

// experiments is how many experiments the exposures are of. The checker reads
// exposures an experiment at a time.
const experiments = 16

// traffic is all that is ever sent, as a function of the seed: batch n is the same
// whenever it is asked for, so nothing of it is kept.
type traffic struct {
	seed   uint64
	events int // a batch
	mint   mint
}

func newTraffic(seed uint64, events int) (*traffic, error) {
	m, err := newMint(seed)
	if err != nil {
		return nil, err
	}
	return &traffic{seed: seed, events: events, mint: m}, nil
}

// kind is what an event is, and with it the table it belongs in.
type kind uint8

const (
	exposure kind = iota
	custom
	bad // lacks its unit: the collector keeps it as a dead letter
)

// kindOf is what an event is: one in five is a custom event, one batch in 20 has a
// bad one.
func (t *traffic) kindOf(batch uint64, index int) kind {
	switch {
	case batch%20 == 7 && t.events > 1 && index == int(batch/20)%t.events:
		return bad
	case index%5 == 4:
		return custom
	}
	return exposure
}

// bads is how many events of a batch are bad.
func (t *traffic) bads(batch uint64) int {
	if batch%20 == 7 && t.events > 1 {
		return 1
	}
	return 0
}

// key is a batch's idempotency key.
func (t *traffic) key(batch uint64) string { return fmt.Sprintf("prove-%016x-%d", t.seed, batch) }

func experimentOf(batch uint64) string { return "exp-" + strconv.FormatUint(batch%experiments, 10) }

func variantOf(batch uint64, index int) string {
	return "v" + strconv.FormatUint((batch+uint64(index))%3, 10)
}

// unitOf is the unit of an event: another one each, so that the table's rows come
// in no order that the pipeline could profit from.
func unitOf(batch uint64, index int) string {
	return "u-" + strconv.FormatUint(batch, 10) + "-" + strconv.Itoa(index)
}

func valueOf(batch uint64, index int) string {
	return strconv.FormatUint(batch*maxEvents+uint64(index), 10)
}

// body is the request of a batch.
func (t *traffic) body(batch uint64) []byte {
	b := make([]byte, 0, 32+190*t.events)
	b = append(b, '[')
	for i := range t.events {
		if i > 0 {
			b = append(b, ',')
		}
		id := t.mint.id(batch, i).String()
		switch t.kindOf(batch, i) {
		case exposure:
			b = fmt.Appendf(b, `{"experiment":%q,"variant":%q,"unit_id":%q,"event_id":%q,"attributes":{"country":"DE","n":%d}}`,
				experimentOf(batch), variantOf(batch, i), unitOf(batch, i), id, batch)
		case custom:
			b = fmt.Appendf(b, `{"kind":"event","name":"purchase","value":%s,"unit_id":%q,"event_id":%q}`,
				valueOf(batch, i), unitOf(batch, i), id)
		case bad:
			b = fmt.Appendf(b, `{"experiment":%q,"variant":%q,"event_id":%q}`, experimentOf(batch), variantOf(batch, i), id)
		}
	}
	return append(b, ']')
}
