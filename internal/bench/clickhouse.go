package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
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
