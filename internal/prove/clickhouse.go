package prove

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// ClickHouse says where the rows are, over HTTP: the way that nothing of the
// pipeline takes.
type ClickHouse struct {
	URL      string // http://host:port
	Database string
	User     string
	Password string
}

// rows is the checker's own client: net/http, and rows as lines of text.
type rows struct {
	at     ClickHouse
	client *http.Client
}

func newRows(at ClickHouse) *rows {
	return &rows{at: at, client: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost:   4,
		ResponseHeaderTimeout: 2 * time.Minute,
	}}}
}

func (r *rows) close() { r.client.CloseIdleConnections() }

// errNoTable is returned for a table or view that is not there.
var errNoTable = errors.New("no such table")

// each calls row with the cells of every row of a query's result, columns of them.
// The query must not name a format, and its cells must hold no tab, line break or
// backslash.
func (r *rows) each(ctx context.Context, query string, columns int, row func(cells []string) error) error {
	params := url.Values{"database": {r.at.Database}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.at.URL+"/?"+params.Encode(),
		strings.NewReader(query+"\nFORMAT TabSeparated"))
	if err != nil {
		return fmt.Errorf("ask ClickHouse: %w", err)
	}
	if r.at.User != "" {
		req.Header.Set("X-ClickHouse-User", r.at.User)
		req.Header.Set("X-ClickHouse-Key", r.at.Password)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return fmt.Errorf("ask ClickHouse: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(resp.Body, 1000))
		err = errors.Join(fmt.Errorf("ask ClickHouse: %s: %s", resp.Status, strings.TrimSpace(string(text))), err)
		if resp.Header.Get("X-ClickHouse-Exception-Code") == "60" { // UNKNOWN_TABLE
			err = fmt.Errorf("%w: %w", errNoTable, err)
		}
		return err
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		cells := strings.Split(lines.Text(), "\t")
		if len(cells) != columns {
			// Newer servers break the connection in the middle of what fails half way;
			// older ones end it well, with the error in the last lines.
			return fmt.Errorf("ClickHouse's answer breaks off: %.300q", lines.Text())
		}
		if err := row(cells); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read ClickHouse's answer: %w", err)
	}
	return nil
}

// numbers asks for one row of whole numbers.
func (r *rows) numbers(ctx context.Context, query string, columns int) (out []int64, err error) {
	err = r.each(ctx, query, columns, func(cells []string) error {
		out = out[:0]
		for _, c := range cells {
			n, err := strconv.ParseInt(c, 10, 64)
			if err != nil {
				return fmt.Errorf("ClickHouse answered %q: %w", c, err)
			}
			out = append(out, n)
		}
		return nil
	})
	if err == nil && len(out) == 0 {
		err = errors.New("ClickHouse answered with no row")
	}
	return out, err
}
