package prove

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// attemptTime is how long an answer is waited for, as SDKs do.
	attemptTime = 10 * time.Second
	// longestAfter bounds how long a Retry-After is honoured.
	longestAfter = 10 * time.Second
	longestWait  = time.Second // between attempts that failed otherwise
)

// senders send the traffic as an SDK does: a batch until it is acknowledged, under
// the same key, to whichever collector answers. It is an open loop: batch n is due
// at a time that no answer moves, and how long it took is counted from then.
type senders struct {
	traffic  *traffic
	book     *book
	phases   *phases
	urls     []string // of the collectors
	clients  []*http.Client
	rate     float64 // batches a second
	inFlight int     // most batches that are sent at once

	sent      atomic.Uint64 // requests
	refused   atomic.Uint64 // answered 503
	failed    atomic.Uint64 // without an answer
	resent    atomic.Uint64 // acknowledged batches that were sent again
	spooled   atomic.Uint64 // acknowledged from a spool
	unsent    atomic.Uint64 // due and not begun: everybody was busy
	resending chan struct{} // takes a token for each repeat under way
	repeats   sync.WaitGroup

	mu     sync.Mutex
	wrong  map[string]uint64 // answers that a collector may not give, counted
	sample map[string]string
}

func newSenders(t *traffic, b *book, p *phases, urls []string, rate float64, inFlight int) *senders {
	s := &senders{traffic: t, book: b, phases: p, urls: urls, rate: rate, inFlight: inFlight,
		resending: make(chan struct{}, 64), wrong: map[string]uint64{}, sample: map[string]string{}}
	for range urls {
		s.clients = append(s.clients, &http.Client{
			Timeout: attemptTime,
			Transport: &http.Transport{
				DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
				MaxIdleConnsPerHost: inFlight, MaxIdleConns: inFlight,
				DisableCompression: true,
			},
		})
	}
	return s
}

// close gives the connections back.
func (s *senders) close() {
	for _, c := range s.clients {
		c.CloseIdleConnections()
	}
}

type due struct {
	batch uint64
	at    time.Time
}

// run sends until sending ends, then waits for the answers that are out until
// ctx ends. What has no acknowledgement by then stays open.
func (s *senders) run(ctx, sending context.Context) {
	queue := make(chan due)
	var workers sync.WaitGroup
	for range s.inFlight {
		workers.Go(func() {
			for d := range queue {
				s.batch(ctx, d)
			}
		})
	}
	s.pace(sending, queue)
	close(queue)
	workers.Wait()
	s.repeats.Wait()
}

// pace hands out batches when they are due. Where everybody is busy they are
// handed out late, and their times say so.
func (s *senders) pace(ctx context.Context, queue chan<- due) {
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := 0; ; n++ {
		at := began.Add(time.Duration(float64(n) / s.rate * float64(time.Second)))
		if wait := time.Until(at); wait > 0 {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
		}
		d := due{s.book.begin(), at}
		select {
		case queue <- d:
		case <-ctx.Done():
			s.unsent.Add(uint64(time.Since(at).Seconds() * s.rate))
			return
		}
	}
}

// batch sends one batch until it is acknowledged or ctx ends.
func (s *senders) batch(ctx context.Context, d due) {
	body := s.traffic.body(d.batch)
	to := int(d.batch % uint64(len(s.urls)))
	for attempt := 0; ; attempt++ {
		acked, wait := s.attempt(ctx, d.batch, body, to)
		if acked {
			s.book.ack(d.batch)
			s.phases.acked(d.at, time.Now())
			s.repeat(ctx, d.batch, body, to)
			return
		}
		if wait == 0 { // full jitter
			wait = rand.N(min(longestWait, 20*time.Millisecond<<min(attempt, 10)) + 1)
		}
		if !pause(ctx, wait) {
			return
		}
		to = (to + 1) % len(s.urls)
	}
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// repeat sends some of the acknowledged batches again, some of them to another
// collector: they must not be stored again. Beside the bounded number of repeats
// under way it does nothing.
func (s *senders) repeat(ctx context.Context, batch uint64, body []byte, to int) {
	if batch%16 != 3 {
		return
	}
	select {
	case s.resending <- struct{}{}:
	default:
		return
	}
	s.repeats.Go(func() {
		defer func() { <-s.resending }()
		if !pause(ctx, rand.N(3*time.Second)) {
			return
		}
		to += int(batch/16) % 2
		if acked, _ := s.attempt(ctx, batch, body, to%len(s.urls)); acked {
			s.resent.Add(1)
		}
	})
}

// answer is what is read of a collector's answer.
type answer struct {
	Accepted int `json:"accepted"`
	Rejected []struct {
		Index int `json:"index"`
	} `json:"rejected"`
	Durable string `json:"durable"`
}

// attempt sends a batch once. wait is how long the collector wants to be left
// alone, if it said so.
func (s *senders) attempt(ctx context.Context, batch uint64, body []byte, to int) (acked bool, wait time.Duration) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.urls[to]+"/v1/exposures", bytes.NewReader(body))
	if err != nil {
		s.note("request", err.Error())
		return false, longestWait
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", s.traffic.key(batch))
	s.sent.Add(1)
	resp, err := s.clients[to].Do(req)
	if err != nil {
		s.failed.Add(1)
		return false, 0
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	_ = resp.Body.Close() // what was read is what counts
	if err != nil {
		// An answer that was cut off is none: nobody knows how it would have ended.
		s.failed.Add(1)
		return false, 0
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusAccepted:
		var a answer
		if err := json.Unmarshal(text, &a); err != nil {
			s.note("acknowledged in no words", string(text))
			return false, 0
		}
		bads := s.traffic.bads(batch)
		if a.Accepted != s.traffic.events-bads || len(a.Rejected) != bads {
			s.note("acknowledged with other counts", string(text))
		}
		if a.Durable == "spool" {
			s.spooled.Add(1)
		}
		return true, 0
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		s.refused.Add(1)
		s.phases.refused(time.Now())
		seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if err != nil || seconds < 0 {
			s.note(fmt.Sprintf("%d without Retry-After", resp.StatusCode), string(text))
			return false, 0
		}
		// The collector's seconds are jittered; in between, so are we.
		return false, min(longestAfter, time.Duration(seconds)*time.Second) + rand.N(200*time.Millisecond)
	}
	if resp.StatusCode != http.StatusRequestTimeout { // a body that a fault held up
		s.note(strconv.Itoa(resp.StatusCode), string(text))
	}
	return false, longestWait
}

// note counts an answer that should not have been given.
func (s *senders) note(what, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrong[what]++
	if _, ok := s.sample[what]; !ok {
		s.sample[what] = fmt.Sprintf("%.300s", text)
	}
}

// wrongAnswers lists them, with an example each.
func (s *senders) wrongAnswers() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for what, n := range s.wrong {
		out = append(out, fmt.Sprintf("%s: %d times, the first: %s", what, n, s.sample[what]))
	}
	return out
}
