package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"sluice/internal/clickhouse"
	"sluice/pkg/retry"
)

// exampleWait is how long the rows of the samples are waited for.
const exampleWait = time.Minute

// sample is one request of examples/requests.yaml.
type sample struct {
	File    string            `yaml:"file"`
	Path    string            `yaml:"path"`
	Headers map[string]string `yaml:"headers"`
}

// examples sends the sample requests, shows each as a curl command with its
// answer, and then the rows that came out of ClickHouse.
func (s *stack) examples(ctx context.Context) error {
	dir := s.up.Examples
	index, err := os.ReadFile(filepath.Join(dir, "requests.yaml"))
	if err != nil {
		return fmt.Errorf("--examples: %w", err)
	}
	var list []sample
	if err := yaml.Unmarshal(index, &list); err != nil {
		return fmt.Errorf("--examples: %s: %w", filepath.Join(dir, "requests.yaml"), err)
	}
	store, err := clickhouse.Open(clickhouse.Config{DSN: s.up.dsn()})
	if err != nil {
		return err
	}
	defer store.Close()
	before, err := records(ctx, store)
	if err != nil {
		return err
	}
	sent := uint64(0)
	for _, r := range list {
		stored, err := s.send(ctx, dir, r)
		if err != nil {
			return err
		}
		if stored {
			sent++
		}
	}
	ctx, cancel := context.WithTimeout(ctx, exampleWait)
	defer cancel()
	for {
		now, err := records(ctx, store)
		if err != nil {
			return fmt.Errorf("wait for the rows of the samples: %w", err)
		}
		if now >= before+sent {
			break
		}
		if !retry.Sleep(ctx, 200*time.Millisecond) {
			return fmt.Errorf("the rows of the samples are not there after %s; the sink's log is %s", exampleWait, s.sink.Log())
		}
	}
	return s.show(ctx, store)
}

// records counts what the sink has read from Kafka.
func records(ctx context.Context, store *clickhouse.Client) (n uint64, err error) {
	rows, err := store.Query(ctx, "SELECT count() FROM batches")
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	if rows.Next() {
		err = rows.Scan(&n)
	}
	return n, errors.Join(err, rows.Err())
}

// send makes one request and reports whether the collector made a record of it:
// a copy that it remembers needs none.
func (s *stack) send(ctx context.Context, dir string, r sample) (bool, error) {
	path := filepath.Join(dir, r.File)
	body, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("--examples: %w", err)
	}
	url := "http://" + reachable(s.up.Embedded.Listen) + r.Path
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return false, fmt.Errorf("--examples: %s: %w", r.File, err)
	}
	var curl strings.Builder
	fmt.Fprintf(&curl, "curl -sS %s", quoted(url))
	for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
		req.Header.Set(name, r.Headers[name])
		fmt.Fprintf(&curl, " \\\n  -H %s", quoted(name+": "+r.Headers[name]))
	}
	fmt.Fprintf(&curl, " \\\n  --data-binary %s", quoted("@"+path))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, fmt.Errorf("send %s: %w", path, err)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return false, fmt.Errorf("send %s: %w", path, err)
	}
	fmt.Fprintf(s.tool.stdout, "%s\n%d %s\n\n", curl.String(), resp.StatusCode, bytes.TrimSpace(answer))
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusAccepted {
		return false, fmt.Errorf("send %s: the collector answered %s", path, resp.Status)
	}
	var a struct {
		Duplicate bool `json:"duplicate"`
	}
	// Other protocols answer in their own words: those are never remembered copies
	// here, since the samples' events have no times.
	_ = json.Unmarshal(answer, &a)
	return !a.Duplicate, nil
}

// quoted makes one word of a shell's command line.
func quoted(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%+=:,./_-", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// show prints what ClickHouse has.
func (s *stack) show(ctx context.Context, store *clickhouse.Client) error {
	for _, q := range []struct {
		title, query string
		header       []string
	}{
		// A few of each source: what has no idempotency key is stored again by every start.
		{"exposures", `SELECT experiment, variant, unit_id, rule, source, formatDateTime(received_at, '%m-%d %T'), toString(attributes)
FROM exposures FINAL ORDER BY received_at DESC, batch_index LIMIT 5 BY source LIMIT 10`,
			[]string{"EXPERIMENT", "VARIANT", "UNIT", "RULE", "SOURCE", "RECEIVED (UTC)", "ATTRIBUTES"}},
		{"events", `SELECT name, ifNull(toString(value), ''), unit_id, source, formatDateTime(received_at, '%m-%d %T'), toString(attributes)
FROM events FINAL ORDER BY received_at DESC, batch_index LIMIT 10`,
			[]string{"NAME", "VALUE", "UNIT", "SOURCE", "RECEIVED (UTC)", "ATTRIBUTES"}},
		{"dead_letters", `SELECT stage, reason, field, formatDateTime(received_at, '%m-%d %T'), bytes
FROM dead_letters FINAL ORDER BY received_at DESC LIMIT 10`,
			[]string{"STAGE", "REASON", "FIELD", "RECEIVED (UTC)", "BYTES"}},
		{"batches", `SELECT toString(batch_id), toString(outcome), toString(events), toString(rejected), toString(partition) || ':' || toString(offset)
FROM batches ORDER BY stored_at DESC, partition, offset LIMIT 10`,
			[]string{"BATCH", "OUTCOME", "EVENTS", "REJECTED", "POSITION"}},
	} {
		rows, err := store.Query(ctx, q.query)
		if err != nil {
			return err
		}
		var cells [][]string
		for rows.Next() {
			row := make([]string, len(q.header))
			into := make([]any, len(row))
			for i := range row {
				into[i] = &row[i]
			}
			if err := rows.Scan(into...); err != nil {
				return errors.Join(err, rows.Close())
			}
			cells = append(cells, row)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
		fmt.Fprintf(s.tool.stdout, "SELECT … FROM %s\n", q.title)
		if err := table(s.tool.stdout, q.header, cells); err != nil {
			return err
		}
		fmt.Fprintln(s.tool.stdout)
	}
	return nil
}
