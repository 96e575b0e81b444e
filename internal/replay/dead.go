package replay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// DeadFilter chooses dead letters. An empty field chooses all.
type DeadFilter struct {
	Reasons, Stages, Projects []string
	Since, Until              time.Time // of the events' receipt; Until is not included
	IDs                       []batch.ID
}

// DeadLetters is ClickHouse as a replay of dead letters needs it.
type DeadLetters interface {
	// DeadLetters hands out the letters that follow after, in an order that is
	// always the same, at most limit and about maxBytes of them. The zero letter is
	// before all.
	DeadLetters(ctx context.Context, f DeadFilter, after schema.DeadLetter, limit int, maxBytes int64) ([]schema.DeadLetter, error)
	CountDead(ctx context.Context, f DeadFilter) (int64, error)
	// Copies reports the stored records of the batches.
	Copies(ctx context.Context, ids []batch.ID, found func(schema.Copy)) error
	// Replayed reports which of the batches are events that were sent again.
	Replayed(ctx context.Context, ids []batch.ID, found func(batch.ID)) error
}

// DeadOptions is how dead letters are replayed.
type DeadOptions struct {
	Filter     DeadFilter
	Experiment string // only events that say so, before repairs where that can be told; empty: all
	Fixes      []Fix
	Protocols  map[string]Protocol // by source; the native API needs none
	Limits     schema.Limits       // of an event's time, as the collectors have them
	RecordMax  int                 // bytes of a record, 16 KiB or more
	DryRun     bool                // count only

	// Progress, if set, is told now and then how many of how many letters were
	// looked at.
	Progress func(done, total int64)
}

// The results of an event.
const (
	ResultReplay   = "replay"           // valid now: sent, or would be
	ResultAlready  = "already_replayed" // stored by an earlier replay
	ResultOtherFix = "replayed_otherwise"
	ResultResent   = "sent_again" // its sender sent the batch again, and that is stored
)

// DeadCount counts events by what they are and what becomes of them. Result is one
// of the results above, a code of validation, or cut_short, unreadable or
// unknown_source: why it cannot be sent.
type DeadCount struct {
	Stage      string `json:"stage"`
	Reason     string `json:"reason"`
	Experiment string `json:"experiment"` // of a custom event: its name
	Variant    string `json:"variant"`
	Result     string `json:"result"`
	Events     int64  `json:"events"`
}

// DeadReport is what a replay of dead letters did.
type DeadReport struct {
	Letters int64       `json:"letters"`
	Events  int64       `json:"events"` // in them; a record that could not be read has several
	Valid   int64       `json:"valid"`  // to be sent: valid now, and not stored yet
	Sent    int64       `json:"sent"`   // acknowledged by Kafka
	Counts  []DeadCount `json:"counts"`
	// Example says in words why one of the events cannot be sent; empty: all can.
	Example string `json:"example,omitempty"`
}

const (
	pageLetters = 500
	pageBytes   = 16 << 20
	// What goes into one request to Kafka: with its headers less than a topic takes
	// (1 MiB), unless one record is that large by itself.
	sendRecords = 500
	sendBytes   = 512 << 10
)

// Dead replays dead letters: it reads them again, applies the repairs, validates,
// and produces what is valid now, each event as a record of its own.
//
// Sending an event twice is harmless. Its identity follows from where it was lost,
// so of two records with the same content the second is a duplicate, and of two
// repairs in different ways the first counts and the other is a conflict; the sink
// decides, by the log. What an earlier replay has stored already is not sent. The
// letters themselves stay.
//
// On an error the report says what was done until then; what Kafka acknowledged
// stays, and the sink stores it whenever it runs.
func Dead(ctx context.Context, letters DeadLetters, producer Producer, o DeadOptions) (DeadReport, error) {
	d := &dead{o: o, letters: letters, producer: producer, policy: patience(),
		reader: reader{fixes: o.Fixes, protocols: o.Protocols, limits: o.Limits, recordMax: o.RecordMax},
		counts: newTally(func(c DeadCount) DeadCount { c.Experiment, c.Variant = others, others; return c })}
	err := d.run(ctx)
	d.report.Counts = list(d.counts, func(c DeadCount, n int64) DeadCount { c.Events = n; return c }, func(a, b DeadCount) int {
		return cmp.Or(cmp.Compare(a.Stage, b.Stage), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Result, b.Result),
			cmp.Compare(a.Experiment, b.Experiment), cmp.Compare(a.Variant, b.Variant))
	})
	return d.report, err
}

type dead struct {
	o        DeadOptions
	letters  DeadLetters
	producer Producer
	policy   retry.Policy
	reader   reader
	counts   *tally[DeadCount]
	report   DeadReport
}

func (d *dead) run(ctx context.Context) error {
	var total int64
	err := d.policy.Do(ctx, func(ctx context.Context) (err error) {
		total, err = d.letters.CountDead(ctx, d.o.Filter)
		return err
	})
	if err != nil {
		return err
	}
	var last schema.DeadLetter
	for {
		var page []schema.DeadLetter
		err := d.policy.Do(ctx, func(ctx context.Context) (err error) {
			page, err = d.letters.DeadLetters(ctx, d.o.Filter, last, pageLetters, pageBytes)
			return err
		})
		if err != nil || len(page) == 0 {
			return err
		}
		last = page[len(page)-1]
		if err := d.page(ctx, page); err != nil {
			return err
		}
		if d.o.Progress != nil {
			d.o.Progress(min(d.report.Letters, total), total)
		}
	}
}

func (d *dead) page(ctx context.Context, page []schema.DeadLetter) error {
	var events []*lost
	var records []batch.Record
	for i := range page {
		for _, x := range d.reader.read(&page[i]) {
			var r batch.Record
			if x.problem == "" {
				r = d.reader.record(x)
			}
			if d.o.Experiment != "" && d.o.Experiment != x.experiment {
				continue
			}
			events, records = append(events, x), append(records, r)
		}
	}
	d.report.Letters += int64(len(page))
	d.report.Events += int64(len(events))
	results, err := d.results(ctx, events, records)
	if err != nil {
		return err
	}
	var send []batch.Record
	for i, x := range events {
		if results[i] == ResultReplay {
			send = append(send, records[i])
			d.report.Valid++
		} else if x.problem != "" && d.report.Example == "" {
			d.report.Example = fmt.Sprintf("dead letter %s, event %d: %s", x.letter.ID, x.letter.Index, x.detail)
		}
		d.counts.add(countOf(x, results[i]), 1)
	}
	if d.o.DryRun {
		return nil
	}
	return d.send(ctx, send)
}

func countOf(x *lost, result string) DeadCount {
	c := DeadCount{Stage: x.letter.Stage, Reason: x.letter.Reason, Experiment: x.event.Experiment, Variant: x.event.Variant, Result: result}
	if x.event.Kind == schema.KindEvent {
		c.Experiment, c.Variant = x.event.Name, ""
	}
	if c.Experiment == "" {
		c.Experiment = x.experiment
	}
	return c
}

// results says what becomes of each event.
func (d *dead) results(ctx context.Context, events []*lost, records []batch.Record) ([]string, error) {
	var ids, conflicts []batch.ID
	for _, x := range events {
		if x.problem != "" {
			continue
		}
		ids = append(ids, x.identity)
		if x.record {
			ids = append(ids, x.at.batch)
		}
		if x.letter.Stage == schema.StageConflict {
			conflicts = append(conflicts, x.letter.BatchID)
		}
	}
	stored := map[batch.ID][]schema.Copy{}
	if err := d.ask(ctx, ids, func(ctx context.Context, ids []batch.ID) error {
		clear(stored)
		return d.letters.Copies(ctx, ids, func(c schema.Copy) { stored[c.BatchID] = append(stored[c.BatchID], c) })
	}); err != nil {
		return nil, err
	}
	replays := map[batch.ID]bool{}
	if err := d.ask(ctx, conflicts, func(ctx context.Context, ids []batch.ID) error {
		return d.letters.Replayed(ctx, ids, func(id batch.ID) { replays[id] = true })
	}); err != nil {
		return nil, err
	}
	out := make([]string, len(events))
	for i, x := range events {
		switch {
		case x.problem != "":
			out[i] = x.problem
		// A repair that lost to an earlier one: sent once more under a name of its
		// own it would take that one's place.
		case x.letter.Stage == schema.StageConflict && replays[x.letter.BatchID]:
			out[i] = ResultOtherFix
		case len(stored[x.identity]) > 0:
			out[i] = ResultAlready
			if !slices.ContainsFunc(stored[x.identity], func(c schema.Copy) bool { return c.Digest == records[i].Digest }) {
				out[i] = ResultOtherFix
			}
		case x.record && slices.ContainsFunc(stored[x.at.batch], func(c schema.Copy) bool {
			return c.Digest == x.digest && c.First <= x.at.index && x.at.index <= c.Last
		}):
			out[i] = ResultResent
		default:
			out[i] = ResultReplay
		}
	}
	return out, nil
}

func (d *dead) ask(ctx context.Context, ids []batch.ID, question func(context.Context, []batch.ID) error) error {
	if len(ids) == 0 {
		return nil
	}
	ids = unique(ids)
	return d.policy.Do(ctx, func(ctx context.Context) error { return question(ctx, ids) })
}

// send produces records, by partition, a few at a time.
func (d *dead) send(ctx context.Context, records []batch.Record) error {
	waiting := map[int][]batch.Record{}
	size := map[int]int{}
	flush := func(partition int) error {
		group := waiting[partition]
		delete(waiting, partition)
		delete(size, partition)
		return d.produce(ctx, partition, group)
	}
	for _, r := range records {
		var partition int
		err := d.policy.Do(ctx, func(ctx context.Context) (err error) {
			partition, err = d.producer.Partition(ctx, r.BatchID)
			return err
		})
		if err != nil {
			return err
		}
		if n := len(waiting[partition]); n > 0 && (n >= sendRecords || size[partition]+r.Size() > sendBytes) {
			if err := flush(partition); err != nil {
				return err
			}
		}
		waiting[partition] = append(waiting[partition], r)
		size[partition] += r.Size()
	}
	for partition := range waiting {
		if err := flush(partition); err != nil {
			return err
		}
	}
	return nil
}

// produceTime bounds one attempt.
const produceTime = 30 * time.Second

// produce sends records until Kafka has them. An attempt whose outcome is unknown is
// repeated: what arrives twice is a duplicate.
func (d *dead) produce(ctx context.Context, partition int, records []batch.Record) error {
	err := d.policy.Do(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, produceTime)
		defer cancel()
		_, _, err := d.producer.Produce(ctx, partition, records)
		return err
	})
	var refused interface{ Refused() []int }
	if errors.As(err, &refused) {
		return fmt.Errorf("the records are refused for what they are: %w", err)
	}
	if err != nil {
		return err
	}
	d.report.Sent += int64(len(records))
	return nil
}
