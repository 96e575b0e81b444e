package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"sluice/pkg/retry"
)

// ClickHouse is asked over HTTP: to count, and to make and drop databases.
type ClickHouse struct {
	HTTP     string // host:port
	Database string
}

// Ask returns the text that a query answers.
func (c ClickHouse) Ask(ctx context.Context, query string) (string, error) {
	return c.post(ctx, query, nil, nil)
}

// Count asks for one number.
func (c ClickHouse) Count(ctx context.Context, query string) (int64, error) {
	text, err := c.Ask(ctx, query)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("ask ClickHouse %q: %q is no number", query, text)
	}
	return n, nil
}

// FillBatches puts n stored batches with ids that no others have into a database's
// batches, in parts of five million that stay as they are: merging them would take more
// CPU than what is measured beside it.
func (c ClickHouse) FillBatches(ctx context.Context, database string, n int64) error {
	const once = 5_000_000
	if _, err := c.Ask(ctx, "ALTER TABLE "+database+".batches MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 100000000"); err != nil {
		return err
	}
	for at := int64(0); at < n; at += once {
		_, err := c.Ask(ctx, fmt.Sprintf(`
INSERT INTO %s.batches (dedup_id, batch_id, project, source, outcome, events, received_at, log, topic, partition, offset)
SELECT id, generateUUIDv4(number) AS id, 'bench', 'native', 'stored', 100, now64(6), 'before', 'before', number %% 12, number
FROM numbers(%d, %d)
SETTINGS max_block_size = %d, max_insert_block_size = %d, min_insert_block_size_rows = %d, min_insert_block_size_bytes = 0, max_insert_threads = 1, optimize_on_insert = 0`,
			database, at, min(once, n-at), once, once, once))
		if err != nil {
			return err
		}
	}
	query := fmt.Sprintf("SELECT toInt64(count()) FROM system.merges WHERE database = '%s'", database)
	for quiet := 0; quiet < 8; quiet++ { // for 2 s
		merging, err := c.Count(ctx, query)
		if err != nil {
			return err
		}
		if merging > 0 {
			quiet = 0
		}
		if !retry.Sleep(ctx, 250*time.Millisecond) {
			return ctx.Err()
		}
	}
	return nil
}

func (c ClickHouse) post(ctx context.Context, query string, settings url.Values, body io.Reader) (string, error) {
	if settings == nil {
		settings = url.Values{}
	}
	settings.Set("query", query)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.HTTP+"/?"+settings.Encode(), body)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("ask ClickHouse: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("ask ClickHouse: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("ask ClickHouse: %s: %s", resp.Status, bytes.TrimSpace(text[:min(len(text), 500)]))
	}
	return string(bytes.TrimSpace(text)), nil
}
