package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"sync"
	"time"

	"sluice/internal/config"
	"sluice/internal/kafka"
	"sluice/internal/spool"
	"sluice/internal/telemetry"
	"sluice/pkg/batch"
	"sluice/pkg/retry"
	"sluice/pkg/schema"
)

// spools are the verbs that look after a collector's spool, offline.
type spools struct {
	Ls     spoolLs     `cmd:"" help:"List the files of a spool, and what waits in them. A collector may go on meanwhile."`
	Verify spoolVerify `cmd:"" help:"Read every record of a spool and check it. Exit code 3 where anything is damaged, lost or set aside. A collector may go on meanwhile."`
	Dump   spoolDump   `cmd:"" help:"Print the records that wait, one JSON object a line. A collector may go on meanwhile."`
	Drain  spoolDrain  `cmd:"" help:"Send what waits in the spool of a collector that does not run to Kafka, and remove what Kafka has taken. Exit code 3 where not all of it could be sent."`
}

// spoolDir is the directory a verb of spool works on.
type spoolDir struct {
	Dir     string `arg:"" optional:"" help:"The spool's directory. Default: SLUICE_SPOOL_DIR."`
	Default string `name:"spool-dir" group:"durability" default:"./.sluice/spool" unit:"directory" help:"The spool's directory, as the collector has it." wrong:"Another collector's spool is looked at; one that is not there is an error."`
}

func (d spoolDir) path() string { return cmp.Or(d.Dir, d.Default) }

type spoolLs struct {
	output
	spoolDir
}

// Run implements the verb.
func (l *spoolLs) Run(t *tool) error {
	i, err := spool.Inspect(nil, l.path(), nil)
	if err != nil {
		return err
	}
	rows := [][]string{}
	for _, g := range i.Segments {
		state := "open"
		if g.Closed {
			state = "closed"
		}
		rows = append(rows, []string{g.File, state, strconv.FormatUint(g.Records, 10), strconv.FormatUint(g.Waiting, 10),
			strconv.FormatInt(g.Bytes, 10), clock(g.Oldest), clock(g.Newest)})
	}
	if err := l.print(t.stdout, i.Report, []string{"FILE", "STATE", "RECORDS", "WAITING", "BYTES", "OLDEST (UTC)", "NEWEST (UTC)"}, rows); err != nil || l.Output == "json" {
		return err
	}
	return summary(t.stdout, &i.Report)
}

// clock is a time as a table shows it.
func clock(at *time.Time) string {
	if at == nil {
		return "-"
	}
	return at.UTC().Format("2006-01-02 15:04:05.000")
}

// summary says in a few lines what a spool holds.
func summary(w io.Writer, r *spool.Report) error {
	line := fmt.Sprintf("%d records wait (%d bytes)", r.Records, r.Bytes)
	if r.Oldest != nil {
		line += fmt.Sprintf("; the oldest was received at %s", clock(r.Oldest))
	}
	if r.Lost > 0 {
		line += fmt.Sprintf("\n%d acknowledged records are lost or set aside, none of them received before %s", r.Lost, clock(r.LostFrom))
	}
	for _, a := range r.SetAside {
		line += fmt.Sprintf("\nset aside: %s (%d bytes)", a.File, a.Bytes)
	}
	_, err := fmt.Fprintln(w, line+".")
	return err
}

type spoolVerify struct {
	output
	spoolDir
}

// Run implements the verb.
func (v *spoolVerify) Run(t *tool) error {
	quick, err := spool.Inspect(nil, v.path(), nil)
	if err != nil {
		return err
	}
	total, done := int64(0), int64(0)
	for _, g := range quick.Segments {
		total += g.Bytes
	}
	b := startBar(t.stderr, "read the spool")
	i, err := spool.Inspect(nil, v.path(), func(bytes int64) error {
		b.set(done, total)
		done += bytes
		return t.ctx.Err()
	})
	b.end()
	if err != nil {
		return err
	}
	rows := [][]string{}
	for _, kind := range []struct {
		state string
		list  []spool.Finding
	}{{"new", i.Findings}, {"counted before", i.Known}, {"cut off", i.Cut}} {
		for _, f := range kind.list {
			numbers := ""
			if f.First > 0 {
				numbers = fmt.Sprintf("%d-%d", f.First, f.Last)
			}
			rows = append(rows, []string{kind.state, string(f.Kind), f.File, strconv.FormatInt(f.Offset, 10), strconv.FormatInt(f.Length, 10),
				strconv.FormatUint(f.Lost, 10), numbers, f.What})
		}
	}
	if v.Output == "json" {
		err = v.print(t.stdout, i.Report, nil, nil)
	} else {
		if len(rows) > 0 {
			err = v.print(t.stdout, nil, []string{"STATE", "KIND", "FILE", "OFFSET", "BYTES", "LOST", "RECORDS", "WHAT"}, rows)
		}
		err = errors.Join(err, summary(t.stdout, &i.Report))
	}
	if err != nil {
		return err
	}
	if n := len(i.Findings) + len(i.SetAside); n > 0 || i.Lost > 0 {
		return foundProblem{fmt.Sprintf("%s is damaged: %d findings, %d records lost, %d files set aside", v.path(), len(i.Findings), i.Lost, len(i.SetAside))}
	}
	return nil
}

type spoolDump struct {
	spoolDir
	Raw     bool `help:"Print the values as they are, in base64, and not what is in them."`
	Refused bool `help:"Print the records that Kafka has refused, instead of those that wait."`
}

// spooled is a record as dump prints it.
type spooled struct {
	Number      uint64    `json:"number"`
	BatchID     batch.ID  `json:"batch_id"`
	DedupID     batch.ID  `json:"dedup_id"`
	Digest      string    `json:"digest"`
	Project     string    `json:"project"`
	Collector   batch.ID  `json:"collector"`
	Epoch       uint64    `json:"epoch"`
	Seq         uint64    `json:"seq"`
	ReceivedAt  time.Time `json:"received_at"`
	Traceparent string    `json:"traceparent,omitempty"`
	Count       int       `json:"count"` // of events
	Source      string    `json:"source,omitempty"`
	SDK         string    `json:"sdk,omitempty"`

	Events   []json.RawMessage `json:"events,omitempty"`
	Rejected []refusedEvent    `json:"rejected,omitempty"`
	Value    []byte            `json:"value,omitempty"` // with --raw, and where it cannot be decoded
	Problem  string            `json:"problem,omitempty"`
}

// refusedEvent is an event that its collector rejected.
type refusedEvent struct {
	Index   uint32 `json:"index"`
	Code    string `json:"code"`
	Field   string `json:"field,omitempty"`
	Message string `json:"message,omitempty"`
	Bytes   []byte `json:"bytes"` // as it came
}

// dumped makes a record ready to be printed.
func dumped(s *batch.Spooled, raw bool) spooled {
	r := &s.Record
	out := spooled{Number: s.Number, BatchID: r.BatchID, DedupID: r.DedupID, Digest: r.Digest.String(), Project: r.Project, Collector: r.Collector,
		Epoch: r.Epoch, Seq: r.Seq, ReceivedAt: r.ReceivedAt.UTC(), Traceparent: r.Traceparent, Count: r.Events}
	var b schema.Batch
	err := error(nil)
	if !raw {
		err = schema.DecodeRecord(r.Value, &b)
	}
	if raw || err != nil {
		out.Value = r.Value
		if err != nil {
			out.Problem = err.Error()
		}
		return out
	}
	out.Source, out.SDK = b.Source, b.SDK
	for i := range b.Events {
		out.Events = append(out.Events, schema.AppendEventJSON(nil, &b.Events[i]))
	}
	for i := range b.Rejected {
		x := &b.Rejected[i]
		out.Rejected = append(out.Rejected, refusedEvent{x.Index, string(x.Code), x.Field, x.Message, x.Bytes})
	}
	return out
}

// Run implements the verb.
func (d *spoolDump) Run(t *tool) error {
	i, err := spool.Inspect(nil, d.path(), nil)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(t.stdout)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	print := func(records []batch.Spooled) error {
		for j := range records {
			if err := enc.Encode(dumped(&records[j], d.Raw)); err != nil {
				return err
			}
		}
		return nil
	}
	err = eachSpooled(t.ctx, i, d.Refused, print)
	return errors.Join(err, w.Flush())
}

// readBytes is how much is read of a spool at once.
const readBytes = 4 << 20

// eachSpooled calls do with everything that waits, or was refused, in order.
func eachSpooled(ctx context.Context, i *spool.Inspection, refused bool, do func([]batch.Spooled) error) error {
	if refused {
		for _, number := range i.Refused() {
			s, err := i.ReadRefused(number)
			if err != nil {
				return err
			}
			if err := cmp.Or(ctx.Err(), do([]batch.Spooled{s})); err != nil {
				return err
			}
		}
		return nil
	}
	for from := uint64(0); ; {
		records, next, err := i.Read(ctx, from, readBytes)
		if err != nil {
			return err
		}
		if len(records) == 0 {
			return nil
		}
		if err := do(records); err != nil {
			return err
		}
		from = next
	}
}

type spoolDrain struct {
	output
	spoolDir
	Refused bool          `help:"Send the records that Kafka has refused before, once whatever was in their way is mended, instead of those that wait."`
	For     time.Duration `default:"0" placeholder:"DURATION" help:"Give up when Kafka has taken nothing for so long; 0: wait for it."`
	Kafka   config.Kafka  `embed:""`
	Topics  config.Topics `embed:""`
}

// drained is what became of a spool.
type drained struct {
	Sent    uint64 `json:"sent"` // Kafka has them
	Bytes   int64  `json:"bytes"`
	Refused uint64 `json:"refused"` // by Kafka, for good: set aside
	Waiting uint64 `json:"waiting"` // still in the spool
	Lost    uint64 `json:"lost"`    // cannot be read; set aside
}

// Run implements the verb.
func (d *spoolDrain) Run(t *tool) (err error) {
	dir := d.path()
	if _, err := spool.Inspect(nil, dir, nil); err != nil {
		return err // nothing is made where there is no spool
	}
	unlock, err := spool.Lock(dir)
	if errors.Is(err, spool.ErrRunning) {
		return fmt.Errorf("%w; it drains its spool itself", err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	client, err := openKafka(d.Kafka)
	if err != nil {
		return err
	}
	defer client.Close()
	send := &sender{to: client.NewProducer(d.Topics.Batches()), patience: d.For, bar: startBar(t.stderr, "send the spool")}
	if d.Refused {
		err = send.refused(t.ctx, dir)
	} else {
		err = send.spool(t.ctx, t, dir)
	}
	send.bar.end()
	var problem foundProblem
	if err != nil && !errors.As(err, &problem) {
		err = fmt.Errorf("%d records are sent, %d wait: %w", send.done.Sent, send.done.Waiting, err)
	}
	done := send.done
	if d.Output == "json" {
		return errors.Join(err, d.print(t.stdout, done, nil, nil))
	}
	_, perr := fmt.Fprintf(t.stdout, "%d records are in Kafka (%d bytes), %d wait, %d were refused and set aside, %d cannot be read.\n",
		done.Sent, done.Bytes, done.Waiting, done.Refused, done.Lost)
	return errors.Join(err, perr)
}

// producer is Kafka as the drain needs it.
type producer interface {
	Partition(ctx context.Context, id batch.ID) (int, error)
	Produce(ctx context.Context, partition int, records []batch.Record) (base int64, at time.Time, err error)
}

var _ producer = (*kafka.Producer)(nil)

// sender sends records to Kafka and counts.
type sender struct {
	to       producer
	patience time.Duration
	bar      *bar

	mu   sync.Mutex
	done drained
}

const (
	// sendBytes is less than a topic takes at once (1 MiB).
	sendBytes   = 900 << 10
	sendTimeout = 10 * time.Second
)

// spool sends everything that waits.
func (s *sender) spool(ctx context.Context, t *tool, dir string) (err error) {
	q, err := spool.Open(dir, spool.Options{MaxBytes: math.MaxInt64 / 4, Log: telemetry.NewLogger(t.stderr, t.process.LogLevel, t.process.LogFormat)})
	if err != nil {
		return err
	}
	defer func() {
		b := q.Backlog()
		s.done.Waiting, s.done.Lost = b.Records, b.Lost-min(b.Lost, s.done.Refused)
		err = errors.Join(err, q.Close())
		if err == nil && b.Lost > 0 {
			err = foundProblem{fmt.Sprintf("%d records of %s are lost or set aside; sluice spool verify names them", b.Lost, dir)}
		}
	}()
	total := int64(q.Backlog().Records)
	for from := uint64(0); ; {
		records, next, err := q.Read(ctx, from, readBytes, nil)
		if err != nil {
			return err
		}
		if len(records) == 0 {
			return nil
		}
		err = s.send(ctx, records, func(r batch.Spooled) error {
			q.Remove(r.Number)
			return nil
		}, func(r batch.Spooled, why error) error { return q.SetAside(r.Number, why) })
		s.bar.set(int64(s.done.Sent), total)
		if err != nil {
			return err
		}
		from = next
	}
}

// refused sends what Kafka refused before.
func (s *sender) refused(ctx context.Context, dir string) error {
	i, err := spool.Inspect(nil, dir, nil)
	if err != nil {
		return err
	}
	total := int64(len(i.Refused()))
	again := 0
	err = eachSpooled(ctx, i, true, func(records []batch.Spooled) error {
		err := s.send(ctx, records, func(r batch.Spooled) error { return i.ForgetRefused(r.Number) }, func(r batch.Spooled, why error) error {
			again++
			return nil // it stays where it is
		})
		s.bar.set(int64(s.done.Sent), total)
		return err
	})
	s.done.Waiting = uint64(again)
	if err == nil && again > 0 {
		err = foundProblem{fmt.Sprintf("Kafka refuses %d records again; they stay set aside", again)}
	}
	return err
}

// send sends records, each to its partition, and returns when each is in Kafka
// and taken out, or refused. Until then it tries again, until ctx ends or the
// patience does.
func (s *sender) send(ctx context.Context, records []batch.Spooled, taken func(batch.Spooled) error, refuse func(batch.Spooled, error) error) error {
	parts := map[int][]batch.Spooled{}
	for _, r := range records {
		p := 0
		err := s.try(ctx, func(ctx context.Context) (err error) {
			p, err = s.to.Partition(ctx, r.Record.BatchID)
			return err
		})
		if err != nil {
			return err
		}
		parts[p] = append(parts[p], r)
	}
	var wg sync.WaitGroup
	errs := make(chan error, len(parts))
	for p, list := range parts {
		wg.Go(func() { errs <- s.partition(ctx, p, list, taken, refuse) })
	}
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// partition sends one partition's records in groups, in order.
func (s *sender) partition(ctx context.Context, p int, list []batch.Spooled, taken func(batch.Spooled) error, refuse func(batch.Spooled, error) error) error {
	for len(list) > 0 {
		n, size := 0, 0
		for n < len(list) && (n == 0 || size+list[n].Record.Size() <= sendBytes) {
			size += list[n].Record.Size()
			n++
		}
		if err := s.group(ctx, p, list[:n], taken, refuse); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

func (s *sender) group(ctx context.Context, p int, list []batch.Spooled, taken func(batch.Spooled) error, refuse func(batch.Spooled, error) error) error {
	records := make([]batch.Record, len(list))
	for i := range list {
		records[i] = list[i].Record
	}
	err := s.try(ctx, func(ctx context.Context) error {
		_, _, err := s.to.Produce(ctx, p, records)
		return err
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		// A crash before they are taken out: they are sent again, and known by their
		// dedup id.
		for _, r := range list {
			s.done.Sent++
			s.done.Bytes += int64(len(r.Record.Value))
			if err := taken(r); err != nil {
				return err
			}
		}
		return nil
	}
	if !refusal(err) {
		return err
	}
	if len(list) == 1 {
		s.done.Refused++
		return refuse(list[0], err)
	}
	// One of them is at fault: which, shows alone.
	for i := range list {
		s.mu.Unlock()
		err := s.group(ctx, p, list[i:i+1], taken, refuse)
		s.mu.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}

// refusal reports whether the broker took none of the records because of what
// they are.
func refusal(err error) bool {
	var r interface{ Refused() []int }
	return errors.As(err, &r)
}

// try repeats fn until it succeeds, is refused, or its patience is at its end.
func (s *sender) try(ctx context.Context, fn func(context.Context) error) error {
	began := time.Now()
	for attempt := 0; ; attempt++ {
		one, cancel := context.WithTimeout(ctx, sendTimeout)
		err := fn(one)
		cancel()
		switch {
		case err == nil, refusal(err), retry.ClassOf(err) == retry.Permanent:
			return err
		case s.patience > 0 && time.Since(began) >= s.patience:
			return fmt.Errorf("nothing was taken for %v: %w", s.patience, err)
		case !retry.Sleep(ctx, (retry.Policy{Max: 5 * time.Second}).Wait(attempt, err)):
			return errors.Join(ctx.Err(), err)
		}
	}
}
