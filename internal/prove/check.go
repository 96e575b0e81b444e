package prove

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// Verdict is what became of the events, counted one by one.
type Verdict struct {
	Sent         uint64 `json:"sent"`         // events of batches that were begun
	Acknowledged uint64 `json:"acknowledged"` // of them, in acknowledged batches
	Open         uint64 `json:"open"`         // of them, in batches without an acknowledgement: they may be stored or not
	Stored       uint64 `json:"stored"`       // different events that are there, dead letters too
	OpenStored   uint64 `json:"open_stored"`
	DeadLetters  uint64 `json:"dead_letters"` // of Stored, bad events that are kept with their reason

	Lost    uint64 `json:"lost"`    // acknowledged and not there
	Doubled uint64 `json:"doubled"` // there more than once, through FINAL
	Twice   uint64 `json:"twice"`   // rows of one place in the log that are there more than once, without FINAL
	Phantom uint64 `json:"phantom"` // there and never sent
	Altered uint64 `json:"altered"` // there, in another table or with other values than were sent

	Examples []string `json:"examples,omitempty"` // of what is wrong, a few of each
}

// Bad reports whether a promise was broken.
func (v Verdict) Bad() bool {
	return v.Lost+v.Doubled+v.Twice+v.Phantom+v.Altered > 0
}

const mostExamples = 5 // of one kind

func (v *Verdict) example(n uint64, format string, args ...any) {
	if n <= mostExamples {
		v.Examples = append(v.Examples, fmt.Sprintf(format, args...))
	}
}

// checker compares what was acknowledged with what is stored.
type checker struct {
	traffic *traffic
	book    *book
	rows    *rows
}

// judge looks at every row there is. Its memory is a bit an event and eight bytes a
// batch; the tables are read in ranges of their sorting key.
func (c *checker) judge(ctx context.Context) (Verdict, error) {
	acked := c.book.copied()
	words := (c.traffic.events + 63) / 64
	seen := make([]uint64, len(acked)*words)
	var v Verdict
	// found notes an event that is stored.
	found := func(where, text string, want func(batch uint64, index int) bool) error {
		id, err := parseID(text)
		if err != nil {
			return fmt.Errorf("an event_id in %s: %w", where, err)
		}
		batch, index, ok := c.traffic.mint.place(id)
		if !ok || batch >= uint64(len(acked)) || index >= c.traffic.events {
			v.Phantom++
			v.example(v.Phantom, "never sent: event %s in %s", text, where)
			return nil
		}
		if !want(batch, index) {
			v.Altered++
			v.example(v.Altered, "altered: event %s (batch %d, index %d) in %s", text, batch, index, where)
		}
		word, bit := batch*uint64(words)+uint64(index/64), uint64(1)<<(index%64)
		if seen[word]&bit != 0 {
			v.Doubled++
			v.example(v.Doubled, "doubled: event %s (batch %d, index %d), again in %s", text, batch, index, where)
			return nil
		}
		seen[word] |= bit
		v.Stored++
		if acked[batch] == 0 {
			v.OpenStored++
		}
		return nil
	}
	if err := c.scan(ctx, &v, found); err != nil {
		return Verdict{}, err
	}
	if err := c.twice(ctx, &v); err != nil {
		return Verdict{}, err
	}
	for n := range uint64(len(acked)) {
		v.Sent += uint64(c.traffic.events)
		if acked[n] == 0 {
			v.Open += uint64(c.traffic.events)
			continue
		}
		v.Acknowledged += uint64(c.traffic.events)
		for i := range c.traffic.events {
			if seen[n*uint64(words)+uint64(i/64)]&(1<<(i%64)) == 0 {
				v.Lost++
				v.example(v.Lost, "lost: event %s (batch %d, index %d, key %s), acknowledged at %s",
					c.traffic.mint.id(n, i), n, i, c.traffic.key(n), clock(acked[n]))
			}
		}
	}
	return v, nil
}

// scan reads the rows as a query of a user would see them: through FINAL.
func (c *checker) scan(ctx context.Context, v *Verdict, found func(where, id string, want func(uint64, int) bool) error) error {
	exposures := func(where string) error {
		return c.rows.each(ctx, "SELECT event_id, experiment, variant, unit_id FROM exposures FINAL WHERE "+where, 4, func(cells []string) error {
			return found("exposures", cells[0], func(batch uint64, index int) bool {
				return c.traffic.kindOf(batch, index) == exposure && cells[1] == experimentOf(batch) &&
					cells[2] == variantOf(batch, index) && cells[3] == unitOf(batch, index)
			})
		})
	}
	var names []string
	for n := range uint64(experiments) {
		names = append(names, "'"+experimentOf(n)+"'")
		if err := exposures("project = 'default' AND experiment = " + names[n]); err != nil {
			return err
		}
	}
	if err := exposures("NOT (project = 'default' AND experiment IN (" + strings.Join(names, ", ") + "))"); err != nil {
		return err
	}
	err := c.rows.each(ctx, "SELECT event_id, name, toString(value), unit_id FROM events FINAL", 4, func(cells []string) error {
		return found("events", cells[0], func(batch uint64, index int) bool {
			return c.traffic.kindOf(batch, index) == custom && cells[1] == "purchase" &&
				cells[2] == valueOf(batch, index) && cells[3] == unitOf(batch, index)
		})
	})
	if err != nil {
		return err
	}
	// A dead letter has no event_id, but the event's bytes, as they were sent.
	return c.rows.each(ctx, `SELECT extract(bytes, '"event_id":"([0-9a-f-]{36})"'), stage, batch_index FROM dead_letters FINAL`, 3, func(cells []string) error {
		if cells[0] == "" {
			v.Phantom++
			v.example(v.Phantom, "never sent: a dead letter of stage %s without an event_id", cells[1])
			return nil
		}
		v.DeadLetters++
		return found("dead_letters", cells[0], func(batch uint64, index int) bool {
			return c.traffic.kindOf(batch, index) == bad && cells[1] == "collector" && cells[2] == strconv.Itoa(index)
		})
	})
}

// tables are those whose rows are counted by their places in the log.
var tables = []string{"exposures", "events", "dead_letters"}

// twice counts rows that were inserted again, as they lie on disk: through FINAL
// they would be one. The merges of the tables must be off.
func (c *checker) twice(ctx context.Context, v *Verdict) error {
	for _, table := range tables {
		var partitions []string
		err := c.rows.each(ctx, "SELECT DISTINCT log, partition FROM "+table+" ORDER BY ALL", 2, func(cells []string) error {
			partitions = append(partitions, fmt.Sprintf("log = '%s' AND partition = %s", cells[0], cells[1]))
			return nil
		})
		if err != nil {
			return err
		}
		for _, p := range partitions {
			err := c.rows.each(ctx, "SELECT offset, batch_index, count() AS n FROM "+table+" WHERE "+p+
				" GROUP BY offset, batch_index HAVING n > 1 ORDER BY offset, batch_index", 3, func(cells []string) error {
				v.Twice++
				v.example(v.Twice, "twice: the row of %s at %s, offset %s, index %s is there %s times", table, p, cells[0], cells[1], cells[2])
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// level is how many rows the tables have, and how many records were read from
// Kafka: both stand still when the sinks do.
type level struct{ rows, records int64 }

func (c *checker) level(ctx context.Context) (level, error) {
	n, err := c.rows.numbers(ctx, "SELECT (SELECT count() FROM exposures) + (SELECT count() FROM events) + (SELECT count() FROM dead_letters), (SELECT count() FROM batches)", 2)
	if err != nil {
		return level{}, err
	}
	return level{n[0], n[1]}, nil
}
