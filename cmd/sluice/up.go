package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"sluice/internal/config"
	"sluice/internal/embedded"
	"sluice/internal/telemetry"
	"sluice/pkg/retry"
)

// up runs the whole pipeline on one machine: the broker in this process, the
// others in child processes that end with it.
type up struct {
	Embedded       config.Embedded `embed:""`
	Topics         config.Topics   `embed:""`
	Keys           config.Keys     `embed:""`
	AllowAnonymous bool            `name:"allow-anonymous" group:"access" default:"false" unit:"true or false" help:"Accept any write key, or none, also where the collector listens on more than loopback." wrong:"On a public address anybody can write to your tables."`
	Database       string          `default:"sluice" help:"ClickHouse database."`
	Examples       string          `help:"Folder of sample requests (examples/) to send once everything is up; their rows are shown."`
	Once           bool            `help:"End after the samples are shown instead of staying up."`
}

// Validate refuses what the settings' own checks let pass: a collector that
// anybody on the network could write to.
func (u *up) Validate() error {
	if u.Keys.File == "" && !u.AllowAnonymous && !loopback(u.Embedded.Listen) {
		return fmt.Errorf("SLUICE_LISTEN=%q: want an address of this machine alone, such as 127.0.0.1:8080, or SLUICE_KEYS_FILE or SLUICE_ALLOW_ANONYMOUS=true with it: others can reach this one", u.Embedded.Listen)
	}
	return nil
}

func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// reachable is where a client on this machine finds what listens on addr.
func reachable(addr string) string {
	switch host, port, _ := net.SplitHostPort(addr); host {
	case "", "0.0.0.0":
		return net.JoinHostPort("127.0.0.1", port)
	case "::":
		return net.JoinHostPort("::1", port)
	}
	return addr
}

// Run implements the verb.
func (u *up) Run(t *tool) (err error) {
	start := time.Now()
	programs, err := siblings()
	if err != nil {
		return err
	}
	// All ports before anything starts: half a pipeline helps nobody.
	if err := u.checkPorts(t.ctx); err != nil {
		return err
	}
	s := &stack{up: u, tool: t, programs: programs}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.start(t.ctx); err != nil {
		if t.ctx.Err() != nil {
			return nil // Ctrl-C while starting
		}
		return err
	}
	fmt.Fprintf(t.stdout, "\nSluice is up after %.1f s.\n\n", time.Since(start).Seconds())
	u.announce(t.stdout)
	if u.Examples != "" {
		if err := s.examples(t.ctx); err != nil {
			if t.ctx.Err() != nil {
				return nil // Ctrl-C while they are under way
			}
			return err
		}
		if u.Once {
			return nil
		}
	}
	fmt.Fprintln(t.stdout, "Ctrl-C ends it. The data stays.")
	return s.watch(t.ctx)
}

// leaving is how long the address of a ClickHouse that was killed just now may
// still be taken: its process is dead, and its memory is being given back.
const leaving = 2 * time.Second

func (u *up) checkPorts(ctx context.Context) error {
	deadline := time.Now()
	if _, err := os.Stat(u.Embedded.Dir); err == nil {
		deadline = deadline.Add(leaving) // there was one before
	}
	for _, e := range u.endpoints() {
		err := embedded.CheckPort(e)
		for errors.Is(err, embedded.ErrPortTaken) && time.Now().Before(deadline) && retry.Sleep(ctx, 50*time.Millisecond) {
			err = embedded.CheckPort(e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (u *up) endpoints() []embedded.Endpoint {
	e := u.Embedded
	return []embedded.Endpoint{
		{Addr: e.KafkaListen, Setting: "SLUICE_UP_KAFKA_LISTEN"},
		{Addr: e.ClickHouseListen, Setting: "SLUICE_UP_CLICKHOUSE_LISTEN"},
		{Addr: e.ClickHouseHTTP, Setting: "SLUICE_UP_CLICKHOUSE_HTTP_LISTEN"},
		{Addr: e.Listen, Setting: "SLUICE_LISTEN"},
		{Addr: e.CollectorAdmin, Setting: "SLUICE_UP_COLLECTOR_ADMIN_LISTEN"},
		{Addr: e.SinkAdmin, Setting: "SLUICE_UP_SINK_ADMIN_LISTEN"},
	}
}

func (u *up) dsn() string {
	return "clickhouse://" + u.Embedded.ClickHouseListen + "/" + u.Database
}

func (u *up) announce(w io.Writer) {
	e := u.Embedded
	rows := [][2]string{
		{"collector", "http://" + reachable(e.Listen) + "  (API description: /openapi.json)"},
		{"metrics", "http://" + reachable(e.CollectorAdmin) + "/metrics, http://" + reachable(e.SinkAdmin) + "/metrics"},
		{"ClickHouse", "http://" + e.ClickHouseHTTP + "/play, native " + e.ClickHouseListen + ", database " + u.Database},
		{"Kafka", e.KafkaListen + ", topic " + u.Topics.Batches()},
		{"data, logs", e.Dir},
	}
	for _, r := range rows {
		fmt.Fprintf(w, "  %-11s %s\n", r[0], r[1])
	}
	fmt.Fprintln(w)
}

// siblings are the service binaries, which lie beside this one.
func siblings() (map[string]string, error) {
	own, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	out := map[string]string{}
	for _, name := range []string{"collector", "sink"} {
		path := filepath.Join(filepath.Dir(own), name)
		if runtime.GOOS == "windows" {
			path += ".exe"
		}
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("%s is not there: sluice up runs the collector and the sink that lie beside it (make build makes all three)", path)
		}
		out[name] = path
	}
	return out, nil
}

// stack is what is running. Its parts are started in the order in which they need
// each other and stopped in the reverse one.
type stack struct {
	up       *up
	tool     *tool
	programs map[string]string

	broker     *embedded.Broker
	clickhouse *embedded.ClickHouse
	sink       *embedded.Program
	collector  *embedded.Program
}

func (s *stack) start(ctx context.Context) (err error) {
	e := s.up.Embedded
	endpoints := s.up.endpoints()
	dir, err := filepath.Abs(e.Dir)
	if err != nil {
		return fmt.Errorf("SLUICE_UP_DIR: %w", err)
	}
	step := func(what string, do func() error) {
		if err != nil {
			return
		}
		begin := time.Now()
		if err = do(); err == nil {
			fmt.Fprintf(s.tool.stdout, "%-28s %.1f s\n", what, time.Since(begin).Seconds())
		} else {
			err = fmt.Errorf("start %s: %w", what, err)
			if errors.Is(err, embedded.ErrInUse) {
				err = fmt.Errorf("%w (another sluice up?): end that, or set SLUICE_UP_DIR to another directory", err)
			}
		}
	}
	step("broker", func() (err error) {
		s.broker, err = embedded.StartBroker(ctx, embedded.BrokerConfig{
			Dir: filepath.Join(dir, "kafka"), Listen: endpoints[0], Log: s.tool.stderr})
		return err
	})
	step("ClickHouse", func() (err error) {
		s.clickhouse, err = embedded.StartClickHouse(ctx, embedded.ClickHouseConfig{
			Dir: filepath.Join(dir, "clickhouse"), Native: endpoints[1], HTTP: endpoints[2],
			EngineDir: e.EngineDir, Progress: s.tool.stderr})
		return err
	})
	// The sink makes the tables when it starts.
	step("sink", func() (err error) {
		s.sink, err = s.program(ctx, dir, "sink", e.SinkAdmin,
			"SLUICE_CLICKHOUSE_DSN="+s.up.dsn())
		return err
	})
	step("collector", func() (err error) {
		s.collector, err = s.program(ctx, dir, "collector", e.CollectorAdmin,
			"SLUICE_LISTEN="+e.Listen,
			"SLUICE_SPOOL_DIR="+filepath.Join(dir, "spool"),
			"SLUICE_KEYS_FILE="+s.up.Keys.File,
			// Without keys any will do: Validate has seen to who can reach it.
			fmt.Sprintf("SLUICE_ALLOW_ANONYMOUS=%t", s.up.Keys.File == ""))
		return err
	})
	return err
}

// program starts one of the services with the settings of this stack. The broker
// and the ClickHouse it is given are this stack's, so what the environment says
// of reaching others must not count.
func (s *stack) program(ctx context.Context, dir, name, admin string, env ...string) (*embedded.Program, error) {
	return embedded.StartProgram(ctx, embedded.ProgramConfig{
		Name: name, Path: s.programs[name],
		Log: filepath.Join(dir, "log", name+".log"),
		Env: append(env,
			"SLUICE_ADMIN_LISTEN="+admin,
			"SLUICE_CONFIG="+s.tool.process.Config,
			"SLUICE_LOG_LEVEL="+s.tool.process.LogLevel.String(),
			"SLUICE_LOG_FORMAT="+s.tool.process.LogFormat,
			"SLUICE_KAFKA_BROKERS="+s.up.Embedded.KafkaListen,
			"SLUICE_KAFKA_TLS=false",
			"SLUICE_KAFKA_SASL_MECHANISM=", "SLUICE_KAFKA_SASL_USERNAME=", "SLUICE_KAFKA_SASL_PASSWORD=",
			"SLUICE_CLICKHOUSE_CLUSTER=",
			"SLUICE_TOPIC_PREFIX="+s.up.Topics.Prefix,
			fmt.Sprintf("SLUICE_TOPIC_PARTITIONS=%d", s.up.Topics.Partitions)),
		Ready: func(ctx context.Context) error { return telemetry.Healthcheck(ctx, admin, "/readyz") },
	})
}

// watch waits for Ctrl-C. ClickHouse is started again when it dies; a service
// that dies ends the stack, with the end of its log.
func (s *stack) watch(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.clickhouse.Done():
			fmt.Fprintln(s.tool.stderr, "ClickHouse ended and is started again:", s.clickhouse.Err())
			if err := s.clickhouse.Restart(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		case <-s.sink.Done():
			return s.sink.Err()
		case <-s.collector.Done():
			return s.collector.Err()
		}
	}
}

// stop ends everything in order: no new batches, what is queued reaches the
// broker, what the sink holds is committed or left to the next start.
func (s *stack) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	if s.collector != nil {
		errs = append(errs, s.collector.Stop(ctx))
	}
	if s.sink != nil {
		errs = append(errs, s.sink.Stop(ctx))
	}
	if s.clickhouse != nil {
		errs = append(errs, s.clickhouse.Stop(ctx))
	}
	if s.broker != nil {
		errs = append(errs, s.broker.Close())
	}
	return errors.Join(errs...)
}
