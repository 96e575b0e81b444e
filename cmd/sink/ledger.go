package main

import (
	"context"
	"time"

	"sluice/internal/clickhouse"
	"sluice/internal/kafka"
	"sluice/internal/watermark"
	"sluice/pkg/batch"
)

// ledgerTopic is the ledger topic in the words of watermark.
type ledgerTopic struct {
	*kafka.LedgerTopic
	bounds *kafka.Source
}

// Bounds implements watermark.Ledger.
func (t ledgerTopic) Bounds(ctx context.Context) (batch.Bounds, error) {
	return t.bounds.Bounds(ctx, 0)
}

// Read implements watermark.Ledger.
func (t ledgerTopic) Read(ctx context.Context, from int64, maxWait time.Duration) ([]watermark.Entry, int64, error) {
	entries, next, err := t.LedgerTopic.Read(ctx, from, maxWait)
	out := make([]watermark.Entry, 0, len(entries))
	for _, e := range entries {
		out = append(out, watermark.Entry{Offset: e.Offset, At: e.At, Key: e.Key, Value: e.Value})
	}
	return out, next, err
}

// ledgerTables are ClickHouse in the words of watermark.
type ledgerTables struct{ *clickhouse.Client }

// LedgerRows implements watermark.Store.
func (t ledgerTables) LedgerRows(ctx context.Context, ledger, topic string, row func(watermark.Row)) error {
	return t.Client.LedgerRows(ctx, ledger, topic, func(r clickhouse.LedgerRow) { row(watermark.Row(r)) })
}

// InsertLedger implements watermark.Store.
func (t ledgerTables) InsertLedger(ctx context.Context, rows []watermark.Row) error {
	out := make([]clickhouse.LedgerRow, 0, len(rows))
	for _, r := range rows {
		out = append(out, clickhouse.LedgerRow(r))
	}
	return t.Client.InsertLedger(ctx, out)
}

// CompletenessRows implements watermark.Store.
func (t ledgerTables) CompletenessRows(ctx context.Context, ledgersOnly bool, row func(watermark.Standing)) error {
	return t.Client.CompletenessRows(ctx, ledgersOnly, func(r clickhouse.Completeness) { row(watermark.Standing(r)) })
}

// InsertCompleteness implements watermark.Store.
func (t ledgerTables) InsertCompleteness(ctx context.Context, rows []watermark.Standing) error {
	out := make([]clickhouse.Completeness, 0, len(rows))
	for _, r := range rows {
		out = append(out, clickhouse.Completeness(r))
	}
	return t.Client.InsertCompleteness(ctx, out)
}
