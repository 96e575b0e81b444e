package prove

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Sample is the state of things at one second of a run.
type Sample struct {
	Second       int      `json:"second"`
	Acknowledged uint64   `json:"acknowledged"` // batches so far
	Refused      uint64   `json:"refused"`      // answers so far
	Rows         int64    `json:"rows"`         // stored so far; -1: ClickHouse did not say
	Spooled      float64  `json:"spooled"`      // batches in spools; -1: a collector did not say
	Lag          float64  `json:"lag"`          // records behind; -1: a sink did not say
	Faults       []string `json:"faults,omitempty"`
}

// sampler takes a sample a second. The services' own numbers (Spooled, Lag) are for
// people: nothing is decided by them.
type sampler struct {
	stack   *Stack
	checker *checker
	senders *senders
	phases  *phases
	began   time.Time
	client  *http.Client

	mu   sync.Mutex
	list []Sample
}

func (s *sampler) run(ctx context.Context) {
	for second := 0; pause(ctx, time.Until(s.began.Add(time.Duration(second)*time.Second))); second++ {
		s.take(ctx, second)
		second = max(second, int(time.Since(s.began)/time.Second))
	}
	s.client.CloseIdleConnections()
}

func (s *sampler) take(ctx context.Context, second int) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, acked, _ := s.senders.book.totals()
	out := Sample{Second: second, Acknowledged: acked, Refused: s.senders.refused.Load(), Rows: -1, Faults: s.phases.active()}
	var wg sync.WaitGroup
	wg.Go(func() {
		if h, err := s.checker.level(ctx); err == nil {
			out.Rows = h.rows
		}
	})
	sum := func(into *float64, name string, admins []string) {
		wg.Go(func() {
			for _, admin := range admins {
				v, err := s.metric(ctx, admin, name)
				if err != nil {
					*into = -1
					return
				}
				*into += v
			}
		})
	}
	var collectors, sinks []string
	for _, c := range s.stack.Collectors {
		collectors = append(collectors, c.Admin)
	}
	for _, k := range s.stack.Sinks {
		sinks = append(sinks, k.Admin)
	}
	sum(&out.Spooled, "sluice_spool_batches", collectors)
	sum(&out.Lag, "sluice_sink_lag_records", sinks)
	wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, out)
}

// last is the newest sample.
func (s *sampler) last() (Sample, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) == 0 {
		return Sample{}, false
	}
	return s.list[len(s.list)-1], true
}

func (s *sampler) all() []Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Sample(nil), s.list...)
}

// metric adds up the samples of a metric of a service.
func (s *sampler) metric(ctx context.Context, admin, name string) (sum float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		series, value, ok := strings.Cut(lines.Text(), " ")
		if rest, is := strings.CutPrefix(series, name); ok && is && (rest == "" || rest[0] == '{') {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return 0, fmt.Errorf("metric %s: %w", series, err)
			}
			sum += v
		}
	}
	return sum, lines.Err()
}
