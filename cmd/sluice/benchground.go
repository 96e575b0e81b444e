package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"sluice/internal/bench"
	"sluice/internal/embedded"
	"sluice/internal/kafka"
	"sluice/internal/keys"
	"sluice/internal/telemetry"
	"sluice/pkg/retry"
)

// bencher is one run of sluice bench: what it measures on, and what it has measured.
type bencher struct {
	verb    *benchVerb
	tool    *tool
	only    map[string]bool
	results *bench.Results
	dir     string
	bar     *bar
	planned int
	done    int
	told    time.Time

	programs   map[string]string
	key        string // a write key, in keysFile
	keysFile   string
	kafka      string // host:port
	broker     *embedded.Child
	native     string
	store      bench.ClickHouse
	clickhouse *embedded.Child
	pids       map[string]int // of kafka and clickhouse, where they are on this machine
	closers    []func() error
	logs       []string
}

// wants reports whether a measurement is asked for.
func (b *bencher) wants(name string) bool { return b.only[name] }

// step tells that a measurement begins.
func (b *bencher) step(name string, run int) {
	b.bar.set(int64(b.done), int64(b.planned))
	b.done++
	if b.bar.shown != nil {
		b.bar.shown.Describe(fmt.Sprintf("%s, run %d of %d", name, run+1, b.verb.Runs))
		return
	}
	if time.Since(b.told) > 10*time.Second {
		b.told = time.Now()
		fmt.Fprintf(b.tool.stderr, "%s, run %d of %d\n", name, run+1, b.verb.Runs)
	}
}

// later has something done at the end, in reverse order.
func (b *bencher) later(f func() error) { b.closers = append(b.closers, f) }

func (b *bencher) close() error {
	var errs []error
	for i := len(b.closers) - 1; i >= 0; i-- {
		errs = append(errs, b.closers[i]())
	}
	return errors.Join(errs...)
}

// withLogs shows the ends of the logs of the services that were started last: they may
// say why something failed.
func (b *bencher) withLogs() {
	const newest = 2
	for _, log := range b.logs[max(0, len(b.logs)-newest):] {
		text, err := os.ReadFile(log)
		if err == nil && len(text) > 0 && b.tool.ctx.Err() == nil {
			fmt.Fprintf(b.tool.stderr, "end of %s:\n%s\n", filepath.Base(log), text[max(0, len(text)-1000):])
		}
	}
}

// needKafka starts a Kafka, the first time.
func (b *bencher) needKafka(ctx context.Context) error {
	if b.kafka != "" {
		return nil
	}
	if b.pids == nil {
		b.pids = map[string]int{}
	}
	if b.verb.Kafka != "" {
		b.kafka = b.verb.Kafka
		b.given("kafka", b.kafka)
		return nil
	}
	k, err := embedded.StartApacheKafka(ctx, embedded.KafkaConfig{Dir: filepath.Join(b.dir, "kafka"), Progress: b.tool.stderr,
		// Neither a busy machine nor a pause makes it think that it is away: it is alone.
		Properties: map[string]string{"broker.session.timeout.ms": "60000"}})
	if errors.Is(err, embedded.ErrMissingTool) {
		return fmt.Errorf("%w; or name a running Kafka with --kafka", err)
	}
	if err != nil {
		return err
	}
	b.kafka, b.broker = k.Addr(), &k.Child
	b.pids["kafka"] = k.PID()
	b.later(k.Kill) // its data is thrown away
	return b.warmKafka(ctx)
}

// warmKafka has a Kafka that just started take records until its compiler has done
// most of its work: before that it costs twice as much and takes the cores from what
// is measured.
func (b *bencher) warmKafka(ctx context.Context) (err error) {
	l, err := b.newLane(ctx, b.verb.Partitions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.remove()) }()
	f, err := bench.NewFiller(l.client.NewProducer(l.name+".batches"), b.verb.standard())
	if err == nil {
		_, err = f.Fill(ctx, min(2_000_000, b.verb.Rows), 0)
	}
	return err
}

// given looks for the process of a server that was given.
func (b *bencher) given(name, addr string) {
	pid, err := bench.Listener(addr)
	if err != nil {
		fmt.Fprintf(b.tool.stderr, "The CPU of %s is not measured: %v\n", name, err)
		return
	}
	b.pids[name] = pid
}

// needClickHouse starts a ClickHouse, the first time.
func (b *bencher) needClickHouse(ctx context.Context) error {
	if b.native != "" {
		return nil
	}
	if b.pids == nil {
		b.pids = map[string]int{}
	}
	if b.verb.ClickHouse != "" {
		b.native, b.store.HTTP = b.verb.ClickHouse, b.verb.OverHTTP
		b.given("clickhouse", b.store.HTTP)
		return nil
	}
	ch, err := embedded.StartClickHouse(ctx, embedded.ClickHouseConfig{Dir: filepath.Join(b.dir, "clickhouse"), Progress: b.tool.stderr})
	if err != nil {
		return err
	}
	b.native, b.store.HTTP, b.clickhouse = ch.Addr(), ch.HTTPAddr(), &ch.Child
	b.pids["clickhouse"] = ch.PID()
	b.later(ch.Kill)
	return nil
}

// lane is what one measurement has for itself: topics and a database.
type lane struct {
	b          *bencher
	name       string // topic prefix, database, group
	partitions int
	client     *kafka.Client
	tables     bool // there is a database, too
}

// newLane makes topics, and a database where there is a ClickHouse.
func (b *bencher) newLane(ctx context.Context, partitions int) (*lane, error) {
	l := &lane{b: b, name: "bench_" + strings.ToLower(rand.Text()[:8]), partitions: partitions, tables: b.native != ""}
	var err error
	if l.client, err = kafka.Open(kafka.Config{Brokers: []string{b.kafka}, ClientID: "sluice-bench"}); err != nil {
		return nil, err
	}
	if err := l.client.EnsureTopics(ctx, l.name, partitions, 0); err != nil {
		l.client.Close()
		return nil, err
	}
	if l.tables {
		// Over HTTP, and before anybody connects to it.
		if _, err := b.store.Ask(ctx, "CREATE DATABASE "+l.name); err != nil {
			return nil, errors.Join(err, l.remove())
		}
	}
	return l, nil
}

// remove deletes the topics and drops the database.
func (l *lane) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	defer l.client.Close()
	err := l.client.DeleteTopics(ctx, l.name)
	if l.tables {
		_, derr := l.b.store.Ask(ctx, "DROP DATABASE IF EXISTS "+l.name+" SYNC")
		err = errors.Join(err, derr)
	}
	return err
}

// benched is a collector, a sink or a server that reads, in its process.
type benched struct {
	*embedded.Program
	name        string
	addr, admin string
}

func (s *benched) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return errors.Join(s.Err(), s.Stop(ctx))
}

func (b *bencher) service(ctx context.Context, name, program string, l *lane, env ...string) (*benched, error) {
	if b.programs == nil {
		var err error
		if b.programs, err = programsIn(b.verb.Programs); err != nil {
			return nil, err
		}
	}
	s := &benched{name: name}
	var err error
	if s.addr, err = embedded.FreeAddr(); err != nil {
		return nil, err
	}
	if s.admin, err = embedded.FreeAddr(); err != nil {
		return nil, err
	}
	if program == "collector" {
		env = append([]string{"SLUICE_LISTEN=" + s.addr, "SLUICE_SPOOL_DIR=" + filepath.Join(b.dir, l.name+"-"+name+"-spool")}, env...)
	} else {
		env = append([]string{"SLUICE_CLICKHOUSE_DSN=clickhouse://" + b.native + "/" + l.name, "SLUICE_SINK_GROUP=" + l.name}, env...)
	}
	log := filepath.Join(b.dir, l.name+"-"+name+".log")
	s.Program, err = embedded.StartProgram(ctx, embedded.ProgramConfig{
		Name: name, Path: b.programs[program], Log: log,
		Env: append(append(settingsOf(b.tool.process), "SLUICE_ADMIN_LISTEN="+s.admin, "SLUICE_KAFKA_BROKERS="+b.kafka, "SLUICE_TOPIC_PREFIX="+l.name,
			fmt.Sprintf("SLUICE_TOPIC_PARTITIONS=%d", l.partitions)), env...),
		Ready: func(ctx context.Context) error { return telemetry.Healthcheck(ctx, s.admin, "/healthz") },
	})
	if err != nil {
		return nil, fmt.Errorf("start the %s: %w", name, err)
	}
	b.logs = append(b.logs, log)
	return s, nil
}

// programsIn are the services in a folder, or beside this program.
func programsIn(dir string) (map[string]string, error) {
	if dir == "" {
		return siblings()
	}
	out := map[string]string{}
	for _, name := range []string{"collector", "sink"} {
		out[name] = filepath.Join(dir, name)
		if _, err := os.Stat(out[name]); err != nil {
			return nil, fmt.Errorf("--programs: %w (make build makes both)", err)
		}
	}
	return out, nil
}

func (s *benched) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := telemetry.Healthcheck(ctx, s.admin, "/readyz")
		if err == nil {
			return nil
		}
		if !retry.Sleep(ctx, 10*time.Millisecond) {
			return fmt.Errorf("the %s is not ready: %w", s.name, err)
		}
	}
}

// metric is the sum of a metric's series whose line begins with a text.
func (s *benched) metric(ctx context.Context, begin string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.admin+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return 0, fmt.Errorf("read the metrics of the %s: %w", s.name, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, fmt.Errorf("read the metrics of the %s: %w", s.name, err)
	}
	sum := 0.0
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, begin) {
			fields := strings.Fields(line)
			v, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err != nil {
				return 0, fmt.Errorf("metric %s: %w", begin, err)
			}
			sum += v
		}
	}
	return sum, nil
}

// needKey makes a keys file with one key.
func (b *bencher) needKey() error {
	if b.key != "" {
		return nil
	}
	b.keysFile = filepath.Join(b.dir, "keys.yaml")
	var err error
	b.key, err = keys.Add(b.keysFile, keys.NewKey{ID: "bench", Project: "bench"})
	return err
}

// startCollector starts a collector with its defaults, and write keys on.
func (b *bencher) startCollector(ctx context.Context, name string, l *lane) (*benched, error) {
	if err := b.needKey(); err != nil {
		return nil, err
	}
	s, err := b.service(ctx, name, "collector", l, "SLUICE_KEYS_FILE="+b.keysFile)
	if err != nil {
		return nil, err
	}
	if err := s.awaitReady(ctx); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// ceiling runs one of the bare parts in a process of its own.
func (b *bencher) ceiling(ctx context.Context, args ...string) (bench.Ceiling, error) {
	var out bench.Ceiling
	self, err := os.Executable()
	if err != nil {
		return out, fmt.Errorf("find this program: %w", err)
	}
	w := b.verb.standard()
	args = append([]string{"bench-ceiling"}, append(args, fmt.Sprintf("--events=%d", w.Events), fmt.Sprintf("--event-bytes=%d", w.EventBytes))...)
	cmd := exec.CommandContext(ctx, self, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	if err != nil {
		return out, fmt.Errorf("ceiling %s: %w: %s", args[1], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// startReading starts the server that only reads.
func (b *bencher) startReading(ctx context.Context) (*benched, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	s := &benched{name: "read"}
	if s.addr, err = embedded.FreeAddr(); err != nil {
		return nil, err
	}
	s.Program, err = embedded.StartProgram(ctx, embedded.ProgramConfig{
		Name: "server that only reads", Path: self, Log: filepath.Join(b.dir, "read.log"),
		Args:  []string{"bench-ceiling", "read", "--listen", s.addr},
		Ready: func(ctx context.Context) error { return dials(ctx, s.addr) },
	})
	return s, err
}

// taken is what processes had taken at one time.
type taken struct {
	at   time.Time
	cpu  map[string]time.Duration
	busy time.Duration
	self time.Duration
}

// moment looks at processes, those of Kafka and ClickHouse among them.
func (b *bencher) moment(services ...*benched) (m taken, err error) {
	m.cpu = map[string]time.Duration{}
	pids := map[string][]int{}
	for name, pid := range b.pids {
		pids[name] = []int{pid}
	}
	for _, s := range services {
		pids[s.name] = append(pids[s.name], s.PID())
	}
	for name, list := range pids {
		for _, pid := range list {
			c, err := bench.CPU(pid)
			if err != nil {
				return m, err
			}
			m.cpu[name] += c
		}
	}
	if m.busy, err = bench.Busy(); err != nil {
		return m, err
	}
	m.self, err = bench.CPU(os.Getpid())
	m.at = time.Now()
	return m, err
}

// span is what happened between two moments.
type span struct {
	seconds float64
	cpu     map[string]float64 // seconds
}

// since is the span from a moment to now. It notes what others had of the machine.
func (b *bencher) since(from taken, services ...*benched) (span, error) {
	now, err := b.moment(services...)
	if err != nil {
		return span{}, err
	}
	s := span{seconds: now.at.Sub(from.at).Seconds(), cpu: map[string]float64{}}
	known := (now.self - from.self).Seconds()
	for name, c := range now.cpu {
		s.cpu[name] = (c - from.cpu[name]).Seconds()
		known += s.cpu[name]
	}
	others := (now.busy - from.busy).Seconds() - known
	b.results.Add("machine/others", "% of the cores", max(0, 100*others/s.seconds/float64(runtime.NumCPU())))
	return s, nil
}
