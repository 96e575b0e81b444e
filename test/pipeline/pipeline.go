// Package pipeline runs collectors and sinks as the processes they are, on the
// test stack's Kafka and ClickHouse, and checks what they did from outside: over
// HTTP, and in ClickHouse. Only tests import it.
package pipeline

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/clickhouse"
	"sluice/internal/embedded"
	"sluice/internal/embedded/teststack"
	"sluice/internal/telemetry"
)

// binVariable names the folder of the binaries for the tests of a package.
const binVariable = "SLUICE_TEST_BIN"

// Main builds the services, starts what the tests need and runs them. It is the
// one call of TestMain. The binaries can break the delivery protocol on purpose
// (build tag faults), and have the race detector when the tests have it.
func Main(m *testing.M, needs ...teststack.Need) int {
	if code, child := embedded.EngineMain(); child {
		return code
	}
	dir, err := os.MkdirTemp("", "sluice-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "pipeline:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := Build(dir, race); err != nil {
		fmt.Fprintln(os.Stderr, "pipeline:", err)
		return 1
	}
	if err := os.Setenv(binVariable, dir); err != nil {
		fmt.Fprintln(os.Stderr, "pipeline:", err)
		return 1
	}
	return teststack.Main(m, needs...)
}

// Build makes the binaries in dir.
func Build(dir string, race bool) error {
	args := []string{"build", "-tags", "faults", "-o", dir + string(filepath.Separator)}
	if race {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "sluice/cmd/collector", "sluice/cmd/sink", "sluice/cmd/sluice")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the services: %w\n%s", err, out)
	}
	return nil
}

// Pipeline is a set of services that share topics and a database nobody else has.
type Pipeline struct {
	t testing.TB

	Kafka  string // host:port
	DSN    string
	Prefix string
	Store  *clickhouse.Client
	Bin    string // folder of the binaries
}

// New prepares a pipeline on the package's own servers.
func New(t testing.TB) *Pipeline {
	return On(t, teststack.Kafka(t), teststack.DSN(t))
}

// On prepares a pipeline on given servers.
func On(t testing.TB, kafka, dsn string) *Pipeline {
	t.Helper()
	store, err := clickhouse.Open(clickhouse.Config{DSN: dsn})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return &Pipeline{t: t, Kafka: kafka, DSN: dsn, Prefix: teststack.Prefix(t), Store: store, Bin: os.Getenv(binVariable)}
}

// Service is a collector or a sink in a process of its own.
type Service struct {
	*embedded.Program
	Admin string // host:port
	URL   string // of a collector
	ready string // what is asked until it answers, after each start
}

// Collector starts a collector that lets anybody in, or what env says, and waits
// until it is ready.
func (p *Pipeline) Collector(env ...string) *Service {
	p.t.Helper()
	return p.collector("/readyz", env)
}

// StartCollector starts a collector and waits only until it listens.
func (p *Pipeline) StartCollector(env ...string) *Service {
	p.t.Helper()
	return p.collector("/healthz", env)
}

func (p *Pipeline) collector(ready string, env []string) *Service {
	p.t.Helper()
	s := &Service{Admin: freeAddr(p.t), ready: ready}
	listen := freeAddr(p.t)
	s.URL = "http://" + listen
	return p.start(s, "collector", append([]string{
		"SLUICE_LISTEN=" + listen,
		"SLUICE_ALLOW_ANONYMOUS=true",
		"SLUICE_SPOOL_DIR=" + filepath.Join(p.t.TempDir(), "spool"),
	}, env...))
}

// Sink starts a sink.
func (p *Pipeline) Sink(env ...string) *Service {
	p.t.Helper()
	return p.start(&Service{Admin: freeAddr(p.t), ready: "/readyz"}, "sink", append([]string{
		"SLUICE_CLICKHOUSE_DSN=" + p.DSN,
		"SLUICE_SINK_GROUP=" + p.Prefix,
	}, env...))
}

func (p *Pipeline) start(s *Service, name string, env []string) *Service {
	p.t.Helper()
	log := filepath.Join(p.t.TempDir(), name+".log")
	program, err := embedded.StartProgram(p.t.Context(), embedded.ProgramConfig{
		Name: name, Path: filepath.Join(p.Bin, name), Log: log,
		Env: append([]string{
			"SLUICE_ADMIN_LISTEN=" + s.Admin,
			"SLUICE_KAFKA_BROKERS=" + p.Kafka,
			"SLUICE_TOPIC_PREFIX=" + p.Prefix,
			"SLUICE_TOPIC_PARTITIONS=4",
		}, env...),
		Ready: func(ctx context.Context) error { return telemetry.Healthcheck(ctx, s.Admin, s.ready) },
	})
	require.NoError(p.t, err)
	s.Program = program
	p.t.Cleanup(func() {
		// One that died by itself is a finding, whatever else the test saw.
		require.NoError(p.t, s.Err())
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		require.NoError(p.t, s.Stop(ctx))
		if p.t.Failed() {
			p.t.Logf("end of the log of %s:\n%s", name, tail(log))
		}
	})
	return s
}

func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

func freeAddr(t testing.TB) string {
	addr, err := embedded.FreeAddr()
	require.NoError(t, err)
	return addr
}

// Count runs a query that yields one number.
func (p *Pipeline) Count(query string) int {
	p.t.Helper()
	n, err := p.count(query)
	require.NoError(p.t, err, query)
	return n
}

func (p *Pipeline) count(query string) (int, error) {
	rows, err := p.Store.Query(context.Background(), "SELECT toUInt64(("+query+"))")
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var n uint64
	for rows.Next() {
		if err := rows.Scan(&n); err != nil {
			return 0, err
		}
	}
	return int(n), rows.Err()
}

// Eventually waits until a query yields the number. ClickHouse may be away
// meanwhile.
func (p *Pipeline) Eventually(want int, query string, within time.Duration) {
	p.t.Helper()
	got, err := 0, error(nil)
	require.Eventually(p.t, func() bool {
		got, err = p.count(query)
		return err == nil && got == want
	}, within, 100*time.Millisecond, "%s: want %d, last %d (%v)", query, want, &got, &err)
}

// Metric adds up the samples of a metric of a service that have all the labels.
func (s *Service) Metric(t testing.TB, name string, labels ...string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + s.Admin + "/metrics")
	if err != nil {
		return 0 // the service is down at the moment
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	sum := 0.0
	for line := range strings.Lines(string(body)) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || !strings.HasPrefix(series, name) || strings.TrimPrefix(series, name) != "" && series[len(name)] != '{' {
			continue
		}
		all := true
		for _, l := range labels {
			all = all && strings.Contains(series, l)
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil && all {
			sum += v
		}
	}
	return sum
}

// Answer is what a collector said.
type Answer struct {
	Status int
	Body   []byte
}

// Post sends a body to a collector once.
func Post(ctx context.Context, url string, body []byte, headers map[string]string) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	for k, v := range headers {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return Answer{Status: resp.StatusCode, Body: b}, err
}
