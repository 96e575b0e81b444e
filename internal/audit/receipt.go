package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// ReceiptStore is ClickHouse as receipts need it.
type ReceiptStore interface {
	LedgerEntries(ctx context.Context, row func(Row)) error
	AllProgress(ctx context.Context, found func(log string, partition int, through int64)) error
	RecordsOf(ctx context.Context, ids []batch.ID, found func(Record)) error
	// RowsOfBatch counts the rows of a batch, each as after a merge.
	RowsOfBatch(ctx context.Context, id batch.ID) (rows uint64, err error)
	// DeadOf lists dead letters of a batch, without their bytes.
	DeadOf(ctx context.Context, id batch.ID, limit int, found func(schema.DeadLetter)) error
}

// Partitioner says where the records of a batch are in Kafka.
type Partitioner interface {
	Partition(ctx context.Context, id batch.ID) (int, error)
}

// ReceiptOptions is where a receipt is looked for.
type ReceiptOptions struct {
	Store       ReceiptStore
	Source      Source
	Partitioner Partitioner
	// Progress, if set, is told how much of what is not stored yet was looked at.
	Progress func(what string, done, total int64)
}

// The states of a receipt.
const (
	ReceiptStored  = "stored"   // a record of it was stored
	ReceiptRefused = "refused"  // all that is known of it is in dead_letters
	ReceiptInKafka = "in_kafka" // acknowledged or not, it waits for a sink
	ReceiptUnknown = "unknown"
)

// Receipt is all that is known of one batch.
type Receipt struct {
	BatchID batch.ID        `json:"batch_id"`
	State   string          `json:"state"`
	Detail  string          `json:"detail,omitempty"`
	Records []ReceiptRecord `json:"records"`
	Rows    uint64          `json:"rows"` // of exposures and events
	Dead    []ReceiptDead   `json:"dead_letters"`
	Spools  []ReceiptSpool  `json:"spools,omitempty"` // where it may be, if it is unknown
}

// Found reports whether anything is known of the batch.
func (r *Receipt) Found() bool { return r.State != ReceiptUnknown }

// ReceiptRecord is one record of the batch: a copy, or a part.
type ReceiptRecord struct {
	Outcome    string     `json:"outcome"` // waiting: no sink has read it yet
	Path       string     `json:"path"`
	Part       string     `json:"part,omitempty"`
	Collector  batch.ID   `json:"collector"`
	Epoch      uint64     `json:"epoch"`
	Seq        uint64     `json:"seq"`
	AcceptedAt time.Time  `json:"accepted_at"`
	StoredAt   *time.Time `json:"stored_at,omitempty"`
	Events     uint32     `json:"events"`
	Rejected   uint32     `json:"rejected"`
	Log        string     `json:"log"`
	Partition  int        `json:"partition"`
	Offset     int64      `json:"offset"`
	Ahead      int64      `json:"ahead,omitempty"` // records to be stored before it
}

// ReceiptDead is one dead letter of the batch.
type ReceiptDead struct {
	Index  uint32 `json:"index"`
	Stage  string `json:"stage"`
	Reason string `json:"reason"`
	Field  string `json:"field,omitempty"`
	Error  string `json:"error"`
}

// ReceiptSpool is a collector that holds batches.
type ReceiptSpool struct {
	Collector batch.ID   `json:"collector"`
	Pending   uint64     `json:"pending"`
	Oldest    *time.Time `json:"oldest,omitempty"`
	HeardAt   time.Time  `json:"heard_at"`
}

const (
	maxReceiptDead = 100
	receiptFetch   = 1 << 20
)

// FindReceipt looks for a batch under several ids, which one key may stand for, and
// returns what it finds of the first that is known, or of the first at all. It looks
// at batches, then at what no sink has read yet of the batch's partition, then says
// which collectors hold batches.
func FindReceipt(ctx context.Context, o ReceiptOptions, ids []batch.ID) (*Receipt, error) {
	if len(ids) == 0 {
		return nil, errors.New("no id to look for")
	}
	for _, id := range ids {
		r, err := stored(ctx, o.Store, id)
		if err != nil || r.Found() {
			return r, err
		}
	}
	var away error
	for _, id := range ids {
		r, err := inKafka(ctx, o, id)
		if ctx.Err() != nil {
			return nil, err
		}
		if err != nil {
			away = err
			continue
		}
		if r.Found() {
			return r, nil
		}
	}
	return unknown(ctx, o.Store, ids[0], away)
}

func empty(id batch.ID) *Receipt {
	return &Receipt{BatchID: id, State: ReceiptUnknown, Records: []ReceiptRecord{}, Dead: []ReceiptDead{}}
}

func stored(ctx context.Context, store ReceiptStore, id batch.ID) (*Receipt, error) {
	r := empty(id)
	var first *ReceiptRecord
	err := store.RecordsOf(ctx, []batch.ID{id}, func(x Record) {
		at := x.StoredAt
		r.Records = append(r.Records, ReceiptRecord{Outcome: string(x.Outcome), Path: string(x.Path), Part: x.Part, Collector: x.Collector,
			Epoch: x.Epoch, Seq: x.Seq, AcceptedAt: x.ReceivedAt, StoredAt: &at, Events: x.Events, Rejected: x.Rejected,
			Log: x.Log, Partition: x.Partition, Offset: x.Offset})
		if x.Outcome == schema.Stored {
			first = &r.Records[len(r.Records)-1]
		}
	})
	if err != nil || len(r.Records) == 0 {
		return r, err
	}
	r.State = ReceiptRefused
	if first != nil {
		r.State = ReceiptStored
	}
	if r.Rows, err = store.RowsOfBatch(ctx, id); err != nil {
		return nil, err
	}
	err = store.DeadOf(ctx, id, maxReceiptDead, func(l schema.DeadLetter) {
		r.Dead = append(r.Dead, ReceiptDead{l.Index, l.Stage, l.Reason, l.Field, l.Error})
	})
	return r, err
}

// inKafka looks through what no sink has read yet of the partition that the batch's
// records go to.
func inKafka(ctx context.Context, o ReceiptOptions, id batch.ID) (*Receipt, error) {
	r := empty(id)
	partition, err := o.Partitioner.Partition(ctx, id)
	if err != nil {
		return nil, err
	}
	log, err := o.Source.Log(ctx)
	if err != nil {
		return nil, err
	}
	bounds, err := o.Source.Bounds(ctx, partition)
	if err != nil {
		return nil, err
	}
	through := int64(-1)
	if err := o.Store.AllProgress(ctx, func(l string, p int, t int64) {
		if l == log && p == partition {
			through = t
		}
	}); err != nil {
		return nil, err
	}
	start := max(through+1, bounds.Start)
	for next := start; next < bounds.End; {
		if o.Progress != nil {
			o.Progress("looking through what is not stored yet", next-start, bounds.End-start)
		}
		list, _, err := o.Source.Fetch(ctx, partition, next, receiptFetch, time.Second)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			break
		}
		for i := range list {
			d := &list[i]
			next = d.Offset + 1
			if d.BatchID != id {
				continue
			}
			r.State = ReceiptInKafka
			r.Detail = fmt.Sprintf("it is in Kafka, partition %d, offset %d, and waits for a sink, which has stored through offset %d", partition, d.Offset, through)
			x := ReceiptRecord{Outcome: "waiting", Path: string(d.Path), Collector: d.Collector, Epoch: d.Epoch, Seq: d.Seq,
				AcceptedAt: d.ReceivedAt.UTC(), Log: log, Partition: partition, Offset: d.Offset, Ahead: d.Offset - through - 1}
			var b schema.Batch
			if schema.DecodeRecord(d.Value, &b) == nil {
				x.Events, x.Rejected = uint32(len(b.Events)), uint32(len(b.Rejected))
				if b.Part {
					x.Part = fmt.Sprintf("%d-%d", b.First, b.Last)
				}
			}
			if len(r.Records) < maxReceiptDead {
				r.Records = append(r.Records, x)
			}
		}
	}
	return r, nil
}

// unknown says where the batch may be.
func unknown(ctx context.Context, store ReceiptStore, id batch.ID, away error) (*Receipt, error) {
	r := empty(id)
	b := newBook()
	if err := store.LedgerEntries(ctx, func(row Row) {
		if row.Entry != "unreadable" {
			record := row.Record
			b.note(&record, row.At)
		}
	}); err != nil {
		return nil, err
	}
	for _, c := range b.sorted() {
		if c.newest != nil && !c.gone() && c.newest.Pending > 0 {
			r.Spools = append(r.Spools, ReceiptSpool{c.id, c.newest.Pending, c.newest.Oldest, c.heard})
		}
	}
	switch {
	case len(r.Spools) > 0:
		r.Detail = "no sink has read it; it may wait in the spool of a collector, or it was never acknowledged"
	default:
		r.Detail = "no sink has read it and no collector says that it holds batches: it was never acknowledged, is older than batches keeps its rows, or a collector that was not heard of since has it"
	}
	if away != nil {
		r.Detail += fmt.Sprintf(". Kafka could not be looked at: %v", away)
	}
	return r, nil
}
