package prove

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fakeCollector acknowledges, unless answer says otherwise.
type fakeCollector struct {
	mu     sync.Mutex
	bodies map[string][]string // by key
	answer func(w http.ResponseWriter, key string, attempt int) (answered bool)
}

func startCollector(t *testing.T) (*fakeCollector, string) {
	c := &fakeCollector{bodies: map[string][]string{}}
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	return c, s.URL
}

// ServeHTTP implements http.Handler.
func (c *fakeCollector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil || r.URL.Path != "/v1/exposures" || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
		http.Error(w, "not what an SDK sends", http.StatusTeapot)
		return
	}
	key := r.Header.Get("Idempotency-Key")
	c.mu.Lock()
	c.bodies[key] = append(c.bodies[key], string(body))
	attempt := len(c.bodies[key])
	answer := c.answer
	c.mu.Unlock()
	if answer != nil && answer(w, key, attempt) {
		return
	}
	acknowledge(w, body)
}

func acknowledge(w http.ResponseWriter, body []byte) {
	var events []map[string]any
	if err := json.Unmarshal(body, &events); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	rejected := []string{}
	for i, e := range events {
		if e["unit_id"] == nil {
			rejected = append(rejected, fmt.Sprintf(`{"index":%d}`, i))
		}
	}
	w.WriteHeader(http.StatusAccepted)
	fmt.Fprintf(w, `{"accepted":%d,"rejected":[%s],"durable":"spool"}`, len(events)-len(rejected), strings.Join(rejected, ","))
}

func newTestSenders(t *testing.T, rate float64, inFlight int, urls ...string) *senders {
	s := newSenders(newTestTraffic(t, 9, 10), newBook(time.Now), newPhases(), urls, rate, inFlight)
	t.Cleanup(s.close)
	return s
}

// runUntil sends until so many batches are acknowledged.
func runUntil(t *testing.T, s *senders, acked uint64) {
	t.Helper()
	sending, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.run(t.Context(), sending)
	}()
	require.Eventually(t, func() bool {
		_, n, _ := s.book.totals()
		return n >= acked
	}, time.Minute, time.Millisecond)
	stop()
	<-done
}

func TestSendersSendUntilAcknowledged(t *testing.T) {
	// Each first attempt is refused, or cut off in the middle of its answer.
	stumble := func(w http.ResponseWriter, key string, attempt int) bool {
		if attempt > 1 {
			return false
		}
		if strings.HasSuffix(key, "2") {
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(http.StatusAccepted)
			_, _ = io.WriteString(w, `{"accepted":10`) // the handler's return ends the connection
			return true
		}
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	a, urlA := startCollector(t)
	b, urlB := startCollector(t)
	a.answer, b.answer = stumble, stumble
	s := newTestSenders(t, 500, 8, urlA, urlB)
	runUntil(t, s, 60)
	begun, acked, _ := s.book.totals()
	assert.LessOrEqual(t, begun-acked, uint64(1), "the one that was due when the time was over")
	assert.Empty(t, s.wrongAnswers())
	assert.Positive(t, s.refused.Load())
	assert.Positive(t, s.failed.Load())
	assert.GreaterOrEqual(t, s.spooled.Load(), acked)
	for n := range acked {
		key := s.traffic.key(n)
		all := slices.Concat(a.bodies[key], b.bodies[key])
		assert.GreaterOrEqual(t, len(all), 2, key)
		for _, body := range all {
			assert.Equal(t, string(s.traffic.body(n)), body, "the same bytes under the same key")
		}
	}
	assert.NotEmpty(t, a.bodies[s.traffic.key(0)])
	assert.NotEmpty(t, b.bodies[s.traffic.key(0)], "the next attempt goes to another collector")
	assert.Positive(t, s.resent.Load(), "some are sent again on purpose")
}

func TestRetryAfterIsHonoured(t *testing.T) {
	c, url := startCollector(t)
	var first, second time.Time
	c.answer = func(w http.ResponseWriter, _ string, attempt int) bool {
		if attempt == 2 {
			second = time.Now()
			return false
		}
		first = time.Now()
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	s := newTestSenders(t, 1, 1, url)
	s.batch(t.Context(), due{s.book.begin(), time.Now()})
	assert.GreaterOrEqual(t, second.Sub(first), time.Second)
}

// The time of a batch runs from when it was due, also where no sender was free.
func TestTimesRunFromWhenDue(t *testing.T) {
	c, url := startCollector(t)
	release := make(chan struct{})
	c.answer = func(_ http.ResponseWriter, key string, _ int) bool {
		if strings.HasSuffix(key, "-0") {
			<-release
		}
		return false
	}
	s := newTestSenders(t, 1000, 1, url)
	time.AfterFunc(300*time.Millisecond, func() { close(release) })
	runUntil(t, s, 100)
	all := s.phases.report(time.Now(), time.Now())[0]
	assert.Equal(t, phaseAll, all.Name)
	assert.Greater(t, all.AckP50, 100*time.Millisecond, "all the others have waited for the one sender")
}

func TestWrongAnswersAreNoted(t *testing.T) {
	c, url := startCollector(t)
	c.answer = func(w http.ResponseWriter, _ string, attempt int) bool {
		switch attempt {
		case 1:
			http.Error(w, "conflict, or so", http.StatusUnprocessableEntity)
		case 2:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 3:
			_, _ = io.WriteString(w, "yes")
		case 4:
			w.WriteHeader(http.StatusRequestTimeout)
		default:
			w.WriteHeader(http.StatusAccepted)
			_, _ = io.WriteString(w, `{"accepted":3,"rejected":[]}`)
		}
		return true
	}
	s := newTestSenders(t, 1, 1, url)
	n := s.book.begin()
	for range 5 {
		_, _ = s.attempt(t.Context(), n, s.traffic.body(n), 0)
	}
	got := strings.Join(s.wrongAnswers(), "\n")
	for _, want := range []string{"422: 1 times, the first: conflict, or so", "503 without Retry-After: 1", "acknowledged in no words: 1", "acknowledged with other counts: 1"} {
		assert.Contains(t, got, want)
	}
	assert.Len(t, s.wrongAnswers(), 4, "a 408 is a fault's doing")
}

func TestSendersGiveUp(t *testing.T) {
	c, url := startCollector(t)
	c.answer = func(w http.ResponseWriter, _ string, _ int) bool {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	s := newTestSenders(t, 100, 4, url)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	s.run(ctx, ctx)
	begun, acked, _ := s.book.totals()
	assert.Positive(t, begun)
	assert.Zero(t, acked)
}
