package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"sluice/internal/embedded"
	"sluice/internal/prove"
	"sluice/internal/telemetry"
	"sluice/pkg/retry"
)

// programs are the services that are put to the proof.
type programs struct {
	dir             string
	collector, sink string
	faults          bool // they were built with -tags faults
}

// programs looks for the services: in --programs, in faults/ beside this program,
// beside it.
func (p *proveVerb) programs() (programs, error) {
	own, err := os.Executable()
	if err != nil {
		return programs{}, fmt.Errorf("find this program: %w", err)
	}
	dirs := []string{filepath.Join(filepath.Dir(own), "faults"), filepath.Dir(own)}
	if p.Programs != "" {
		dirs = []string{p.Programs}
	}
	for _, dir := range dirs {
		found := programs{dir: dir, faults: true}
		for name, path := range map[string]*string{"collector": &found.collector, "sink": &found.sink} {
			*path = filepath.Join(dir, name)
			if runtime.GOOS == "windows" {
				*path += ".exe"
			}
			info, infoErr := buildinfo.ReadFile(*path)
			if infoErr != nil {
				err = infoErr
				break
			}
			tagged := false
			for _, s := range info.Settings {
				tagged = tagged || s.Key == "-tags" && strings.Contains(","+s.Value+",", ",faults,")
			}
			found.faults = found.faults && tagged
			err = nil
		}
		if err == nil {
			return found, nil
		}
	}
	return programs{}, fmt.Errorf("find the collector and the sink (make build makes both): %w", err)
}

// ground is what pipelines are proven on: a Kafka, a ClickHouse and the wires to
// them, which stay the same for several pipelines, one at a time.
type ground struct {
	tool     *tool
	verb     *proveVerb
	dir      string
	programs programs
	number   int // of pipelines started

	broker, clickhouse *embedded.Child // nil: given
	kafka              string          // host:port, not by way of a wire
	native, http       string          // ClickHouse's
	about              prove.About
	stations           []station // of the collectors, then of the sinks
	wires              []*prove.Wire
}

// station is where a service listens, and its ways to others.
type station struct {
	name              string
	listen, admin     string
	client            *prove.Wire // of a collector
	kafka, clickhouse *prove.Wire
	kafkaAddr         string // what the service is told
}

// ground starts the servers.
func (p *proveVerb) ground(t *tool, dir string, programs programs) (g *ground, err error) {
	g = &ground{tool: t, verb: p, dir: dir, programs: programs, about: prove.About{Collectors: p.Collectors, Sinks: p.Sinks,
		Machine: fmt.Sprintf("%s/%s, %d cores", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())}}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	g.about.Programs = "as released"
	if programs.faults {
		g.about.Programs = "built with -tags faults: kill -9 loses what was not synced"
	} else {
		g.about.Notes = append(g.about.Notes, "the programs were built without -tags faults: their disks cannot fail")
	}
	// A service has two addresses, two of a listener for it and one of a wire.
	addrs, err := freeAddrs(5*(p.Collectors+p.Sinks) + 5)
	if err != nil {
		return nil, err
	}
	next := func() string {
		a := addrs[0]
		addrs = addrs[1:]
		return a
	}
	for i := range p.Collectors {
		g.stations = append(g.stations, station{name: fmt.Sprintf("collector-%d", i+1), listen: next(), admin: next()})
	}
	for i := range p.Sinks {
		g.stations = append(g.stations, station{name: fmt.Sprintf("sink-%d", i+1), admin: next()})
	}
	if err := g.startKafka(t.ctx, next); err != nil {
		return nil, err
	}
	if err := g.startClickHouse(t.ctx, next); err != nil {
		return nil, err
	}
	for i := range g.stations {
		at := &g.stations[i]
		if at.listen != "" {
			if at.client, err = g.wire("client>"+at.name, next(), at.listen); err != nil {
				return nil, err
			}
		} else if at.clickhouse, err = g.wire(at.name+">clickhouse", next(), g.native); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func (g *ground) wire(name, listen, upstream string) (*prove.Wire, error) {
	w, err := prove.NewWire(name, listen, upstream)
	if err == nil {
		g.wires = append(g.wires, w)
	}
	return w, err
}

// startKafka starts an Apache Kafka that every service reaches by a wire of its
// own: by a listener whose advertised address is the wire's. Where there is no
// Java, the embedded broker, which has one listener, and so one wire for all.
func (g *ground) startKafka(ctx context.Context, next func() string) error {
	if g.verb.Kafka != "" {
		g.kafka, g.about.Kafka = g.verb.Kafka, "given"
		g.about.Notes = append(g.about.Notes, "Kafka was given: neither it nor the ways to it are broken, since clients are told its own address; the topics of this run stay there")
		for i := range g.stations {
			g.stations[i].kafkaAddr = g.kafka
		}
		return nil
	}
	own := next()
	cfg := embedded.KafkaConfig{
		Dir: filepath.Join(g.dir, "kafka"), Listen: embedded.Endpoint{Addr: own}, Controller: embedded.Endpoint{Addr: next()}, Progress: g.tool.stderr,
		JavaOptions: []string{"-XX:TieredStopAtLevel=1"}, // it is killed before the good compiler pays
	}
	for i := range g.stations {
		inner, outer := next(), next()
		cfg.Listeners = append(cfg.Listeners, embedded.Listener{Endpoint: embedded.Endpoint{Addr: inner}, Advertised: outer})
		g.stations[i].kafkaAddr = outer
	}
	kafka, err := embedded.StartApacheKafka(ctx, cfg)
	if errors.Is(err, embedded.ErrMissingTool) {
		g.about.Notes = append(g.about.Notes, fmt.Sprintf("no Apache Kafka: %v", err))
		return g.startBroker(ctx, own, next())
	}
	if err != nil {
		return err
	}
	g.broker, g.kafka, g.about.Kafka = &kafka.Child, own, "Apache Kafka "+kafka.Version()
	for i, l := range cfg.Listeners {
		if g.stations[i].kafka, err = g.wire(g.stations[i].name+">kafka", l.Advertised, l.Addr); err != nil {
			return err
		}
	}
	return nil
}

func (g *ground) startBroker(ctx context.Context, own, outer string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program, to run the broker in: %w", err)
	}
	wire, err := g.wire("services>kafka", outer, own)
	if err != nil {
		return err
	}
	program, err := embedded.StartProgram(ctx, embedded.ProgramConfig{
		Name: "broker", Path: self, Log: filepath.Join(g.dir, "log", "broker.log"),
		Args:  []string{"prove", "--broker-dir", filepath.Join(g.dir, "broker"), "--broker-listen", own, "--broker-advertised", outer},
		Ready: func(ctx context.Context) error { return dials(ctx, own) },
	})
	if err != nil {
		return err
	}
	g.broker, g.kafka, g.about.Kafka = &program.Child, outer, "embedded broker (kfake)"
	g.about.Notes = append(g.about.Notes, "the embedded broker has one address: collectors and sinks share their way to it")
	for i := range g.stations {
		g.stations[i].kafka, g.stations[i].kafkaAddr = wire, outer
	}
	return nil
}

func (g *ground) startClickHouse(ctx context.Context, next func() string) error {
	if g.verb.ClickHouse != "" {
		g.native, g.http, g.about.ClickHouse = g.verb.ClickHouse, g.verb.OverHTTP, "given"
		return nil
	}
	g.native, g.http = next(), next()
	ch, err := embedded.StartClickHouse(ctx, embedded.ClickHouseConfig{
		Dir: filepath.Join(g.dir, "clickhouse"), Native: embedded.Endpoint{Addr: g.native}, HTTP: embedded.Endpoint{Addr: g.http}, Progress: g.tool.stderr})
	if err != nil {
		return err
	}
	g.clickhouse = &ch.Child
	version, err := g.ask(ctx, "SELECT version()")
	g.about.ClickHouse = "ClickHouse " + version
	return err
}

// ask sends a query to ClickHouse over HTTP.
func (g *ground) ask(ctx context.Context, query string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+g.http+"/?query="+url.QueryEscape(query), nil)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("ask ClickHouse: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return "", fmt.Errorf("ask ClickHouse: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("ask ClickHouse: %s: %s", resp.Status, bytes.TrimSpace(text))
	}
	return string(bytes.TrimSpace(text)), nil
}

func (g *ground) close() error {
	var errs []error
	// What is on their disks is thrown away: there is no need to wait for an orderly end.
	for _, c := range []*embedded.Child{g.broker, g.clickhouse} {
		if c != nil {
			errs = append(errs, c.Kill())
		}
	}
	for _, w := range g.wires {
		w.Close()
	}
	return errors.Join(errs...)
}

// subject is what is put to the proof: collectors and sinks on the ground, with
// topics and a database of their own.
type subject struct {
	ground   *ground
	prefix   string
	database string
	services []*embedded.Program
	stack    *prove.Stack
}

// start starts the services; more settings are for breaking them.
func (g *ground) start(ctx context.Context, collectorEnv, sinkEnv []string) (_ *subject, err error) {
	g.number++
	name := "prove_" + strings.ToLower(rand.Text()[:8])
	p := &subject{ground: g, prefix: name, database: name}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.stop())
		}
	}()
	p.stack = &prove.Stack{Rows: prove.ClickHouse{URL: "http://" + g.http, Database: p.database}, About: g.about, Audit: p.audit}
	if g.broker != nil {
		p.stack.Broker = g.broker
	}
	if g.clickhouse != nil {
		p.stack.ClickHouse = g.clickhouse
	}
	work := filepath.Join(g.dir, fmt.Sprintf("pipeline-%d", g.number))
	// Sinks first: they make the tables.
	for _, at := range g.stations {
		if at.listen != "" {
			continue
		}
		s, err := p.service(ctx, work, at, "sink", g.programs.sink, append([]string{
			"SLUICE_CLICKHOUSE_DSN=clickhouse://" + at.clickhouse.Addr() + "/" + p.database,
			"SLUICE_SINK_GROUP=" + p.prefix,
			// Small blocks and early changes of owner, so that a fault finds something half done.
			"SLUICE_KAFKA_SESSION_TIMEOUT=3s",
			"SLUICE_SINK_FLUSH_INTERVAL=200ms", "SLUICE_SINK_FLUSH_INTERVAL_MAX=1s",
		}, sinkEnv...))
		if err != nil {
			return nil, err
		}
		p.stack.Sinks = append(p.stack.Sinks, prove.Sink{Name: at.name, Admin: at.admin, Process: s, Kafka: at.kafka, ClickHouse: at.clickhouse})
	}
	for _, at := range g.stations {
		if at.listen == "" {
			continue
		}
		c := prove.Collector{Name: at.name, Admin: at.admin, Client: at.client, Kafka: at.kafka}
		env := []string{
			"SLUICE_LISTEN=" + at.listen,
			"SLUICE_ALLOW_ANONYMOUS=true",
			"SLUICE_SPOOL_DIR=" + filepath.Join(work, at.name, "spool"),
		}
		if g.programs.faults {
			c.SpoolFault = filepath.Join(work, at.name, "disk-fault")
			env = append(env, "SLUICE_TEST_SPOOL_FAULT="+c.SpoolFault)
			if err := errors.Join(os.MkdirAll(filepath.Dir(c.SpoolFault), 0o755), os.WriteFile(c.SpoolFault, nil, 0o644)); err != nil {
				return nil, err
			}
		}
		s, err := p.service(ctx, work, at, "collector", g.programs.collector, append(env, collectorEnv...))
		if err != nil {
			return nil, err
		}
		c.Process = s
		p.stack.Collectors = append(p.stack.Collectors, c)
	}
	for _, at := range g.stations {
		if err := p.ready(ctx, at); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// service starts a service and waits until it serves its admin address: not until
// it is ready, since what it needs may be broken whenever it starts again.
func (p *subject) service(ctx context.Context, work string, at station, name, path string, env []string) (*embedded.Program, error) {
	s, err := embedded.StartProgram(ctx, embedded.ProgramConfig{
		Name: at.name, Path: path, Log: filepath.Join(work, at.name+".log"),
		Env: append(append(settingsOf(p.ground.tool.process),
			"SLUICE_ADMIN_LISTEN="+at.admin,
			"SLUICE_KAFKA_BROKERS="+at.kafkaAddr,
			"SLUICE_TOPIC_PREFIX="+p.prefix,
			fmt.Sprintf("SLUICE_TOPIC_PARTITIONS=%d", p.ground.verb.Partitions),
			"GORACE=atexit_sleep_ms=0"), env...),
		Ready: func(ctx context.Context) error { return telemetry.Healthcheck(ctx, at.admin, "/healthz") },
	})
	if err != nil {
		return nil, fmt.Errorf("start a %s: %w", name, err)
	}
	p.services = append(p.services, s)
	return s, nil
}

func (p *subject) ready(ctx context.Context, at station) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := telemetry.Healthcheck(ctx, at.admin, "/readyz")
		if err == nil {
			return nil
		}
		if !retry.Sleep(ctx, 50*time.Millisecond) {
			return fmt.Errorf("%s is not ready: %w", at.name, err)
		}
	}
}

// audit runs `sluice audit`, by this program.
func (p *subject) audit(ctx context.Context) (prove.AuditReport, error) {
	self, err := os.Executable()
	if err != nil {
		return prove.AuditReport{}, fmt.Errorf("find this program: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "audit", "--output", "json")
	cmd.Env = append(os.Environ(), append(settingsOf(p.ground.tool.process),
		"SLUICE_KAFKA_BROKERS="+p.ground.kafka, "SLUICE_TOPIC_PREFIX="+p.prefix,
		"SLUICE_CLICKHOUSE_DSN=clickhouse://"+p.ground.native+"/"+p.database, "SLUICE_SINK_GROUP="+p.prefix)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	a := prove.AuditReport{}
	if json.Valid(stdout.Bytes()) {
		a.Findings = stdout.Bytes()
	}
	switch code := cmd.ProcessState.ExitCode(); {
	case err == nil:
		a.Ran = true
	case code == 3:
		a.Ran, a.Found = true, true
	case code == 2 && strings.Contains(stderr.String(), "audit"):
		a.Error = "this program has no audit"
	default:
		a.Error = fmt.Sprintf("%v: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return a, nil
}

func (p *subject) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	for _, s := range p.services {
		errs = append(errs, s.Stop(ctx))
	}
	if p.ground.verb.ClickHouse != "" {
		_, err := p.ground.ask(ctx, "DROP DATABASE IF EXISTS "+p.database+" SYNC")
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// dials reports whether somebody listens at addr.
func dials(ctx context.Context, addr string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return conn.Close()
}

// Ports of what is broken and comes back: below those that embedded servers take
// for themselves, one of which restarts while another's port is free for a moment.
const lowestPort, highestPort = 12000, 20000

// freeAddrs are n different addresses that nobody listens on.
func freeAddrs(n int) (addrs []string, err error) {
	var held []net.Listener
	defer func() {
		for _, l := range held {
			err = errors.Join(err, l.Close())
		}
	}()
	for range 100 * n {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", lowestPort+mathrand.IntN(highestPort-lowestPort)))
		if err != nil {
			continue // taken
		}
		held = append(held, l)
		if addrs = append(addrs, l.Addr().String()); len(addrs) == n {
			return addrs, nil
		}
	}
	return nil, fmt.Errorf("find %d free ports between %d and %d", n, lowestPort, highestPort)
}
