package client

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"sluice/pkg/retry"
)

// Version is the Logger's, as sent with each batch.
const Version = "0.1.0"

const sdkName = "sluice-go"

// verdict is what an attempt means for the batch.
type verdict uint8

const (
	again     verdict = iota // the same once more: another endpoint, or later
	wrong                    // key or URL are wrong, as it seems: the same, much later
	taken                    // the collector has it
	discarded                // the collector has it, every event rejected, as dead letters
	halve                    // too large
	refuse                   // final: the same again fails the same
	unread                   // nothing was sent: the batch's file cannot be read
)

// result is what became of an attempt.
type result struct {
	batch    *batch
	endpoint *endpoint
	started  time.Time
	verdict  verdict
	rejected int    // events the server did not take
	loaded   *batch // what was sent, where it came from disk
	err      error  // nil for taken
}

// answer is a collector's, the part that is read.
type answer struct {
	BatchID  string            `json:"batch_id"`
	Rejected []json.RawMessage `json:"rejected"`
	Code     string            `json:"code"` // of a problem
	Detail   string            `json:"detail"`
}

// What is read of an answer, in bytes, and of its text in an error.
const (
	answerBytes = 4 << 20 // 5,000 events, each rejected with a sentence, are 1 MiB
	detailBytes = 200
)

// attempt sends a batch once.
func (l *Logger) attempt(ctx context.Context, b *batch, e *endpoint) result {
	r := result{batch: b, endpoint: e, started: time.Now()}
	if b.events == nil {
		loaded, err := l.store.load(b)
		if err != nil {
			r.verdict, r.err = unread, err
			return r
		}
		r.loaded, b = loaded, loaded
	}
	ctx, cancel := context.WithTimeout(ctx, l.opts.RequestTimeout)
	defer cancel()
	req, err := l.request(ctx, b, e.url)
	if err != nil {
		r.err = err
		return r
	}
	resp, err := l.http.Do(req)
	if err != nil {
		r.err = fmt.Errorf("client: %w", err)
		return r
	}
	// An answer whose body breaks off is judged by its status: the collector has
	// decided.
	text, cut := io.ReadAll(io.LimitReader(resp.Body, answerBytes))
	_ = resp.Body.Close()
	var a answer
	_ = json.Unmarshal(text, &a) // one that is no JSON says nothing
	r.verdict = judge(resp.StatusCode, &a)
	if cut != nil && r.verdict == wrong {
		r.verdict = again // its body could have told whose answer it is
	}
	r.rejected = len(a.Rejected)
	if r.verdict != taken {
		said := a.Code
		if a.Detail != "" {
			said += ": " + a.Detail
		}
		r.err = retry.MarkAfter(fmt.Errorf("client: %s answered %d %.*q", e.url, resp.StatusCode, detailBytes, said),
			retry.Throttled, retry.ParseAfter(resp.Header, clock(resp.Header)))
	}
	return r
}

// clock is the time by the clock that a date in Retry-After was made with.
func clock(h http.Header) time.Time {
	if t, err := http.ParseTime(h.Get("Date")); err == nil {
		return t
	}
	return time.Now()
}

// judge tells the answers apart.
func judge(status int, a *answer) verdict {
	switch status {
	case http.StatusAccepted:
		return taken
	case http.StatusOK:
		// A proxy's page, or a portal's, is a 200 too.
		if a.BatchID != "" {
			return taken
		}
		return wrong
	case http.StatusRequestEntityTooLarge:
		return halve
	case http.StatusUnprocessableEntity:
		if a.Code == "all_rejected" {
			return discarded
		}
		return refuse
	case http.StatusBadRequest, http.StatusUnsupportedMediaType:
		// What broke off or was damaged on the way is none of the batch's fault.
		if a.Code == "incomplete_body" || a.Code == "bad_encoding" {
			return again
		}
		return refuse
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return again
	}
	if status >= 500 {
		return again
	}
	// 401, 403, 404, 405, redirects, and what no collector answers: whatever is in
	// the way may be taken out of it, and nothing is lost by waiting.
	return wrong
}

// request is one attempt's. sent_at is this attempt's clock: by it the collector
// corrects the events' times; it is no part of what the key stands for.
func (l *Logger) request(ctx context.Context, b *batch, url string) (*http.Request, error) {
	body := make([]byte, 0, len(b.events)+128)
	body = append(body, `{"sent_at":`...)
	body = strconv.AppendInt(body, time.Now().UnixMilli(), 10)
	body = append(body, `,"sdk":{"name":"`+sdkName+`","version":"`+Version+`"},"events":[`...)
	body = append(body, b.events...)
	body = append(body, "]}"...)
	zip := l.opts.GzipAbove > 0 && len(body) > l.opts.GzipAbove
	if zip {
		var err error
		if body, err = compress(body); err != nil {
			return nil, fmt.Errorf("client: compress a batch: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	h := req.Header
	h.Set("Content-Type", "application/json")
	h.Set("Idempotency-Key", b.key)
	h.Set("User-Agent", sdkName+"/"+Version)
	if zip {
		h.Set("Content-Encoding", "gzip")
	}
	if l.opts.Key != "" {
		h.Set("Authorization", "Bearer "+l.opts.Key)
	}
	return req, nil
}

func compress(b []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(b)
	err = errors.Join(err, w.Close())
	return out.Bytes(), err
}
