package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"sluice/internal/audit"
	"sluice/internal/clickhouse"
	"sluice/internal/config"
	"sluice/pkg/batch"
)

// receipts is the verb receipt: what became of one batch.
type receipts struct {
	output
	ClickHouse config.ClickHouse `embed:""`
	Kafka      config.Kafka      `embed:""`
	Topics     config.Topics     `embed:""`

	Batch   string `arg:"" name:"key|batch_id" help:"The idempotency key that the batch was sent with, or its id, as the answer had it."`
	Project string `default:"default" help:"Project the key belongs to: that of the write key."`
}

// Validate refuses what can be no key.
func (r *receipts) Validate() error {
	if r.Batch == "" || len(r.Batch) > 256 {
		return errors.New("want a key of 1 to 256 characters, or a batch's id")
	}
	return nil
}

// Run implements the verb.
func (r *receipts) Run(t *tool) error {
	store, err := openStore(r.ClickHouse)
	if err != nil {
		return err
	}
	defer store.Close()
	client, err := openKafka(r.Kafka)
	if err != nil {
		return err
	}
	defer client.Close()
	// A key may look like an id.
	ids := []batch.ID{batch.ForKey(r.Project, r.Batch)}
	if id, err := batch.ParseID(r.Batch); err == nil {
		ids = []batch.ID{id, ids[0]}
	}
	bar := startBar(t.stderr, "records")
	receipt, err := audit.FindReceipt(t.ctx, audit.ReceiptOptions{
		Store: receiptStore{store}, Source: client.NewSource(r.Topics.Batches()), Partitioner: client.NewProducer(r.Topics.Batches()),
		Progress: func(_ string, done, total int64) { bar.set(done, total) },
	}, ids)
	bar.end()
	if err != nil {
		return err
	}
	if r.Output == "json" {
		err = r.print(t.stdout, receipt, nil, nil)
	} else {
		err = writeReceipt(t.stdout, receipt)
	}
	if err != nil {
		return err
	}
	if !receipt.Found() {
		return foundProblem{"no such batch is known"}
	}
	return nil
}

// writeReceipt prints a receipt for people.
func writeReceipt(w io.Writer, r *audit.Receipt) error {
	at := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000") }
	fmt.Fprintf(w, "Batch %s: %s\n", r.BatchID, map[string]string{
		audit.ReceiptStored: "stored", audit.ReceiptRefused: "nothing of it was stored as an event", audit.ReceiptInKafka: "in Kafka, not stored yet", audit.ReceiptUnknown: "not known",
	}[r.State])
	if r.Detail != "" {
		fmt.Fprintln(w, printable(r.Detail))
	}
	rows := [][]string{}
	for _, x := range r.Records {
		stored := "-"
		if x.StoredAt != nil {
			stored = at(*x.StoredAt)
		}
		rows = append(rows, []string{x.Outcome, x.Path, x.Part, at(x.AcceptedAt), stored, strconv.FormatUint(uint64(x.Events), 10), strconv.FormatUint(uint64(x.Rejected), 10),
			fmt.Sprintf("%d/%d", x.Partition, x.Offset)})
	}
	if len(rows) > 0 {
		fmt.Fprintln(w)
		if err := table(w, []string{"OUTCOME", "PATH", "PART", "ACCEPTED (UTC)", "STORED (UTC)", "EVENTS", "REJECTED", "PARTITION/OFFSET"}, rows); err != nil {
			return err
		}
		for i, x := range r.Records {
			if i == 0 || x.Collector != r.Records[i-1].Collector || x.Epoch != r.Records[i-1].Epoch || x.Seq != r.Records[i-1].Seq {
				fmt.Fprintf(w, "%d/%d was accepted by collector %s, epoch %d, seq %d\n", x.Partition, x.Offset, x.Collector, x.Epoch, x.Seq)
			}
		}
	}
	if r.State == audit.ReceiptStored || r.Rows > 0 {
		fmt.Fprintf(w, "%d rows in exposures and events\n", r.Rows)
	}
	if len(r.Dead) > 0 {
		rows = rows[:0]
		for _, d := range r.Dead {
			rows = append(rows, []string{strconv.FormatUint(uint64(d.Index), 10), d.Stage, d.Reason, d.Field, d.Error})
		}
		fmt.Fprintln(w, "\nIn dead_letters:")
		if err := table(w, []string{"EVENT", "STAGE", "REASON", "FIELD", "ERROR"}, rows); err != nil {
			return err
		}
	}
	for _, s := range r.Spools {
		oldest := ""
		if s.Oldest != nil {
			oldest = ", the oldest received " + at(*s.Oldest)
		}
		fmt.Fprintf(w, "collector %s holds %d batches%s; heard of %s\n", s.Collector, s.Pending, oldest, at(s.HeardAt))
	}
	return nil
}

type receiptStore struct{ *clickhouse.Client }

func (s receiptStore) LedgerEntries(ctx context.Context, row func(audit.Row)) error {
	return auditStore(s).LedgerEntries(ctx, row)
}

func (s receiptStore) RecordsOf(ctx context.Context, ids []batch.ID, found func(audit.Record)) error {
	return auditStore(s).RecordsOf(ctx, ids, found)
}
