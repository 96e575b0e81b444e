package integration

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/test/pipeline"
)

// The published SDKs in bad weather: refusals, an answer that gets lost, a collector
// that is killed after it took a batch. Each exposure is there once.
func TestSDKsInBadWeather(t *testing.T) {
	all := sdks()
	p := pipeline.New(t)
	p.Sink()
	env := withKeys(keysFile(t, all))
	// A collector a lane: the one that is killed is nobody else's.
	lanes := make(chan *pipeline.Service, atOnce)
	for range atOnce {
		lanes <- p.Collector(env...)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()

	runs := make([]*driven, len(all))
	fronts := make([]*front, len(all))
	var wg sync.WaitGroup
	for i, s := range all {
		fronts[i] = newFront(s, troubles(s)...)
		wg.Go(func() {
			fronts[i].collector = <-lanes
			server := httptest.NewServer(fronts[i])
			runs[i] = s.drive(ctx, server.URL, sdkUsers, 200)
			server.Close()
			fronts[i].rest.Wait()
			lanes <- fronts[i].collector
		})
	}
	wg.Wait()
	p.Settled(settle)
	for i, s := range all {
		t.Run(s.name, func(t *testing.T) {
			f, d := fronts[i], runs[i]
			require.NoError(t, f.err, "the collector came back")
			assert.Empty(t, f.troubles, "what was to happen happened")
			t.Logf("%d requests", f.requests)
			if !s.mixes {
				checkDelivered(t, p, s, d)
				return
			}
			want := parseLines(t, d.stdout.Bytes())
			if s.quits {
				// It is wrong about that: they had been taken.
				assert.Positive(t, want.done.GivenUp)
			} else {
				require.NoError(t, d.err, "%s", d.complaint())
			}
			checkStored(t, p, s, want, " FINAL")
		})
	}
}

// trouble is what happens to a request with events.
type trouble int

const (
	pass    trouble = iota
	refuse          // 503, and the collector knows nothing of it
	lose            // the collector takes it, and the connection breaks off before the answer
	kill            // the collector takes it and is killed at once: 502
	garbled         // the collector takes it, and the answer breaks off in its middle
)

func troubles(s published) []trouble {
	switch {
	case s.once:
		return []trouble{refuse, refuse, lose}
	case s.quits:
		return []trouble{refuse, refuse, garbled, pass, kill, pass, lose}
	}
	return []trouble{refuse, refuse, lose, pass, kill}
}

// front stands before a collector and has things happen to requests with events, in
// the order of its list. Each SDK gives up at some time: no event is hit more often
// than the SDK sends again, the request passes, or waits for the collector.
type front struct {
	sdk       published
	collector *pipeline.Service
	rest      sync.WaitGroup // of the restart

	mu       sync.Mutex
	troubles []trouble
	requests int
	times    map[string]int // how often a unit's events were hit
	down     chan struct{}  // closed when the collector is back; nil: it is there
	err      error          // of the restart
}

func newFront(s published, troubles ...trouble) *front {
	return &front{sdk: s, troubles: troubles, times: map[string]int{}}
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	units := f.units(r, body)
	switch f.next(r, units) {
	case refuse:
		http.Error(w, `{"error":"not now"}`, http.StatusServiceUnavailable)
		return
	case lose:
		_, _ = f.relay(r, body)
		panic(http.ErrAbortHandler)
	case garbled:
		_, _ = f.relay(r, body)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, `{"code":200,"ev`)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case kill:
		_, _ = f.relay(r, body)
		f.restart(r.Context())
		http.Error(w, "nobody there", http.StatusBadGateway)
		return
	}
	resp, answer := f.relay(r, body)
	if resp == nil {
		f.hit(units)
		http.Error(w, "nobody there", http.StatusBadGateway)
		return
	}
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(answer)
}

// next takes what happens to a request. While the collector is away, one that is not
// to be hit waits.
func (f *front) next(r *http.Request, units []string) trouble {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(units) == 0 {
		return pass
	}
	f.requests++
	most := 0
	for _, u := range units {
		most = max(most, f.times[u])
	}
	mayHit := most < f.resends()
	happens := pass
	switch {
	case f.down != nil && mayHit:
		happens = refuse
	case f.down != nil:
		back := f.down
		f.mu.Unlock()
		select {
		case <-back:
		case <-r.Context().Done():
		}
		f.mu.Lock()
	case len(f.troubles) > 0 && (mayHit || f.troubles[0] == pass):
		happens, f.troubles = f.troubles[0], f.troubles[1:]
		if happens == kill {
			f.down = make(chan struct{})
		}
	}
	if happens != pass {
		for _, u := range units {
			f.times[u]++
		}
	}
	return happens
}

// hit counts a trouble that was in no list: the collector went in the middle of it.
func (f *front) hit(units []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, u := range units {
		f.times[u]++
	}
}

func (f *front) resends() int {
	if f.sdk.resends > 0 {
		return f.sdk.resends
	}
	return 3
}

// restart kills the collector and starts it again, in a moment.
func (f *front) restart(ctx context.Context) {
	killed := f.collector.Kill()
	f.rest.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err := killed
		if err == nil {
			err = f.collector.Restart(ctx)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.err = err
		close(f.down)
		f.down = nil
	})
}

// relay passes the request on and returns the complete answer, or nil.
func (f *front) relay(r *http.Request, body []byte) (*http.Response, []byte) {
	req, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), r.Method, f.collector.URL+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return nil, nil
	}
	req.Header = r.Header.Clone()
	if len(r.TransferEncoding) > 0 {
		req.ContentLength = -1
	}
	// One connection a request: none of a collector that is gone.
	req.Close = true
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, nil
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil
	}
	return resp, answer
}

// units are the units named in a request.
func (f *front) units(r *http.Request, body []byte) []string {
	var plain io.Reader = bytes.NewReader(body)
	switch {
	case bytes.HasPrefix(body, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(plain)
		if err != nil {
			return nil
		}
		plain = z
	case strings.EqualFold(r.Header.Get("Content-Encoding"), "zstd"):
		z, err := zstd.NewReader(plain)
		if err != nil {
			return nil
		}
		defer z.Close()
		plain = z
	}
	text, err := io.ReadAll(plain)
	if err != nil {
		return nil
	}
	var units []string
	seen := map[string]bool{}
	for _, u := range regexp.MustCompile(regexp.QuoteMeta(f.sdk.name)+`-u\d+`).FindAllString(string(text), -1) {
		if !seen[u] {
			seen[u] = true
			units = append(units, u)
		}
	}
	return units
}
