package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/google/uuid"

	"sluice/internal/clickhouse"
	"sluice/internal/config"
	"sluice/internal/doctor"
)

// doctorStore asks the tables about one exposure.
type doctorStore struct {
	*clickhouse.Client
	system clickhouse.Config // the same server's database system
}

func openDoctorStore(c config.ClickHouse) (doctorStore, error) {
	client, err := openStore(c)
	if err != nil {
		return doctorStore{}, err
	}
	u, err := url.Parse(c.DSN.Reveal())
	if err != nil { // openStore has read it
		return doctorStore{}, errors.Join(clickhouse.ErrDSN, client.Close())
	}
	u.Path = "/system"
	return doctorStore{client, clickhouse.Config{DSN: u.String()}}, nil
}

// each runs a query and hands each row to scan.
func (s doctorStore) each(ctx context.Context, query string, args []any, scan func(func(...any) error) error) error {
	rows, err := s.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// Check implements doctor.Store. It asks the database system, which is always there,
// for the tables: connecting to a database that is not there ends the engine that
// sluice up runs.
func (s doctorStore) Check(ctx context.Context) error {
	system, err := clickhouse.Open(s.system)
	if err != nil {
		return err
	}
	defer system.Close()
	var n uint64
	err = doctorStore{Client: system}.each(ctx, "SELECT count() FROM system.tables WHERE database = ? AND name IN ('exposures', 'dead_letters', 'batches')",
		[]any{s.Database()}, func(scan func(...any) error) error { return scan(&n) })
	if err == nil && n < 3 {
		err = fmt.Errorf("database %s: %w", s.Database(), doctor.ErrNoTables)
	}
	return err
}

// Rows implements doctor.Store. The sorting key begins with the project, which is
// not known here: its few values are passed over.
func (s doctorStore) Rows(ctx context.Context, experiment, unit string, since time.Time) (out []doctor.Row, err error) {
	err = s.each(ctx, `
SELECT project, experiment, variant, unit_type, unit_id, time, source, rule, reason, sdk, batch_id, received_at, time_adjusted
FROM exposures WHERE experiment = ? AND unit_id = ? AND received_at >= ? ORDER BY received_at LIMIT 10`,
		[]any{experiment, unit, since}, func(scan func(...any) error) error {
			var r doctor.Row
			var at time.Time
			var id uuid.UUID
			if err := scan(&r.Project, &r.Experiment, &r.Variant, &r.UnitType, &r.UnitID, &at, &r.Source, &r.Rule, &r.Reason, &r.SDK, &id, &r.ReceivedAt, &r.TimeAdjusted); err != nil {
				return err
			}
			at = at.UTC()
			r.Time, r.BatchID, r.ReceivedAt = &at, id.String(), r.ReceivedAt.UTC()
			out = append(out, r)
			return nil
		})
	if err != nil || len(out) == 0 {
		return nil, err
	}
	// Written after the rows, so it may not be there yet; then it is not told.
	r := &out[0]
	id, err := uuid.Parse(r.BatchID)
	if err != nil {
		return nil, err
	}
	return out, s.each(ctx, "SELECT toString(path), stored_at FROM batches WHERE batch_id = ? AND outcome = 'stored' LIMIT 1", []any{id},
		func(scan func(...any) error) error {
			if err := scan(&r.Path, &r.StoredAt); err != nil {
				return err
			}
			r.StoredAt = r.StoredAt.UTC()
			return nil
		})
}

// Dead implements doctor.Store. What the sink and conflicts leave there has the
// event in its bytes too.
func (s doctorStore) Dead(ctx context.Context, text string, since time.Time) (out []doctor.Dead, err error) {
	err = s.each(ctx, `
SELECT project, stage, reason, field, error, batch_id FROM dead_letters
WHERE received_at >= ? AND position(bytes, ?) > 0 ORDER BY received_at LIMIT 10`,
		[]any{since, text}, func(scan func(...any) error) error {
			var d doctor.Dead
			var id uuid.UUID
			if err := scan(&d.Project, &d.Stage, &d.Reason, &d.Field, &d.Error, &id); err != nil {
				return err
			}
			d.BatchID = id.String()
			out = append(out, d)
			return nil
		})
	return out, err
}

// Holdup implements doctor.Store.
func (s doctorStore) Holdup(ctx context.Context) (doctor.Holdup, error) {
	w, err := s.Watermark(ctx)
	return doctor.Holdup{CompleteUntil: w.CompleteUntil.UTC(), Why: w.Why, JudgedAt: w.JudgedAt.UTC()}, err
}
