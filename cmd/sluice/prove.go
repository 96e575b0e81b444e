package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"sluice/internal/config"
	"sluice/internal/embedded"
	"sluice/internal/prove"
)

// proveVerb breaks a pipeline of its own in every way there is, and counts.
type proveVerb struct {
	output
	Duration   time.Duration `default:"3m" help:"How long batches are sent and parts are broken. What is on its way then is waited for."`
	Faults     string        `default:"all" help:"Kinds of fault, with commas between them: names, beginnings as kill-*, or all. A wrong one lists them."`
	Seed       uint64        `help:"Repeats a schedule; 0: a new one, which the report names."`
	Rate       float64       `default:"200" help:"Batches a second."`
	Events     int           `default:"10" help:"Events a batch, 1 to 1000."`
	Collectors int           `default:"2" help:"Collectors to start, 1 to 8."`
	Sinks      int           `default:"2" help:"Sinks to start, 1 to 8."`
	Partitions int           `default:"4" help:"Partitions of the topic."`
	Outage     time.Duration `help:"How long outage-broker and outage-clickhouse last. Default: 30 to 60 s, less in a short run."`
	Report     string        `placeholder:"FILE" help:"Write the report to FILE as JSON, and beside it, ending in .md, for people."`
	Programs   string        `placeholder:"DIR" help:"Where the collector and the sink are. Default: faults/ beside this program, else beside it. Those built with -tags faults can be told that their disk fails."`
	Kafka      string        `placeholder:"HOST:PORT" help:"A running Kafka to use instead of one of its own. It is not broken."`
	ClickHouse string        `name:"clickhouse" placeholder:"HOST:PORT" help:"A running ClickHouse, native protocol, to use instead of one of its own. It is not broken; the way to it is."`
	OverHTTP   string        `name:"clickhouse-http" placeholder:"HOST:PORT" help:"The same ClickHouse over HTTP, which the rows are counted by."`
	Dir        string        `help:"Directory for data and logs. Default: a temporary one, which is removed unless something was found."`
	Broker     proveBroker   `embed:""`
	SelfTest   bool          `help:"Prove the proof: run pipelines that are broken on purpose, each of which must be caught within 60 s. Wants programs built with -tags faults."`
}

// Validate names what cannot be right.
func (p *proveVerb) Validate() error {
	_, err := prove.Select(p.Faults)
	switch {
	case err != nil:
		return fmt.Errorf("--faults: %w", err)
	case p.Duration < 10*time.Second || p.Duration > 24*time.Hour:
		return fmt.Errorf("--duration=%v: want 10s to 24h", p.Duration)
	case p.Rate <= 0 || p.Rate > 100_000:
		return fmt.Errorf("--rate=%v: want more than 0, up to 100000", p.Rate)
	case p.Events < 1 || p.Events > 1000:
		return fmt.Errorf("--events=%d: want 1 to 1000", p.Events)
	case p.Collectors < 1 || p.Collectors > 8:
		return fmt.Errorf("--collectors=%d: want 1 to 8", p.Collectors)
	case p.Sinks < 1 || p.Sinks > 8:
		return fmt.Errorf("--sinks=%d: want 1 to 8", p.Sinks)
	case p.Partitions < 1 || p.Partitions > 100:
		return fmt.Errorf("--partitions=%d: want 1 to 100", p.Partitions)
	case p.Outage < 0 || p.Outage > p.Duration:
		return fmt.Errorf("--outage=%v: want 0 to --duration", p.Outage)
	case (p.ClickHouse == "") != (p.OverHTTP == ""):
		return errors.New("--clickhouse and --clickhouse-http: want both or none")
	}
	return cmp.Or(hostPort("kafka", p.Kafka), hostPort("clickhouse", p.ClickHouse), hostPort("clickhouse-http", p.OverHTTP))
}

// foundProblem is the error of a run that found what it looked for.
type foundProblem struct{ text string }

func (e foundProblem) Error() string { return e.text }

// ExitCode is what the process should exit with: 3.
func (foundProblem) ExitCode() int { return 3 }

// Run implements the verb.
func (p *proveVerb) Run(t *tool) (err error) {
	if p.Broker.Dir != "" {
		return p.Broker.run(t.ctx, t.stderr)
	}
	if p.Seed == 0 {
		p.Seed = rand.Uint64N(1_000_000) + 1 // short enough to be typed
	}
	programs, err := p.programs()
	if err != nil {
		return err
	}
	if p.SelfTest && !programs.faults {
		return fmt.Errorf("%s: --self-test wants a collector and a sink built with -tags faults (make prove builds them)", programs.dir)
	}
	dir, remove, err := p.workplace()
	if err != nil {
		return err
	}
	defer func() {
		var found foundProblem
		if errors.As(err, &found) {
			fmt.Fprintln(t.stderr, "Data and logs are in", dir)
			return
		}
		err = errors.Join(err, remove())
	}()
	g, err := p.ground(t, dir, programs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	if p.SelfTest {
		return p.selfTest(t, g)
	}
	return p.proof(t, g)
}

// workplace is the directory of the run, and what removes it.
func (p *proveVerb) workplace() (dir string, remove func() error, err error) {
	if p.Dir != "" {
		dir, err := filepath.Abs(p.Dir)
		return dir, func() error { return nil }, err
	}
	dir, err = os.MkdirTemp("", "sluice-prove-")
	return dir, func() error { return os.RemoveAll(dir) }, err
}

func (p *proveVerb) proof(t *tool, g *ground) (err error) {
	pipe, err := g.start(t.ctx, nil, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pipe.stop()) }()
	names, err := prove.Select(p.Faults)
	if err != nil {
		return err
	}
	fmt.Fprintf(t.stderr, "Seed %d: repeat with --seed %d --duration %s --faults %s\n", p.Seed, p.Seed, p.Duration, p.Faults)
	show := newShow(t.stderr)
	report, err := prove.Run(t.ctx, pipe.stack, prove.Options{
		Seed: p.Seed, Duration: p.Duration, Kinds: names, Rate: p.Rate, Events: p.Events, Outage: p.Outage, Progress: show.status,
	})
	show.end()
	if err != nil {
		return err
	}
	if err := p.write(t.stdout, report); err != nil {
		return err
	}
	if !report.OK {
		return foundProblem{fmt.Sprintf("the pipeline did not keep its promise: lost %d, doubled %d, other findings %d (seed %d)",
			report.Verdict.Lost, report.Verdict.Doubled+report.Verdict.Twice, len(report.Findings()), p.Seed)}
	}
	return nil
}

// write prints the report, and puts it into files.
func (p *proveVerb) write(stdout io.Writer, r *prove.Report) error {
	if p.Output == "json" {
		if err := p.print(stdout, r, nil, nil); err != nil {
			return err
		}
	} else if err := r.WriteText(stdout); err != nil {
		return err
	}
	if p.Report == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	var md strings.Builder
	if err := r.WriteMarkdown(&md); err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	people := strings.TrimSuffix(p.Report, filepath.Ext(p.Report)) + ".md"
	return errors.Join(os.WriteFile(p.Report, append(text, '\n'), 0o644), os.WriteFile(people, []byte(md.String()), 0o644))
}

func (p *proveVerb) selfTest(t *tool, g *ground) error {
	show := newShow(t.stderr)
	results, err := prove.SelfTest(t.ctx, func(ctx context.Context, b prove.Broken) (*prove.Stack, func() error, error) {
		pipe, err := g.start(ctx, b.CollectorEnv, b.SinkEnv)
		if err != nil {
			return nil, nil, err
		}
		return pipe.stack, pipe.stop, nil
	}, p.Seed, show.status)
	show.end()
	if err != nil {
		return err
	}
	rows := [][]string{}
	missed := 0
	for _, r := range results {
		state := "as it should be"
		if !r.Right {
			missed++
			state = "NOT CAUGHT"
			if !r.Broken {
				state = "FALSE ALARM"
			}
		} else if r.Broken {
			state = "caught"
		}
		rows = append(rows, []string{r.Name, state, fmt.Sprintf("%.1f s", r.After.Seconds()), r.How})
	}
	if err := p.print(t.stdout, results, []string{"PIPELINE", "RESULT", "AFTER", "HOW"}, rows); err != nil {
		return err
	}
	if missed > 0 {
		return foundProblem{fmt.Sprintf("%d of %d pipelines were judged wrongly", missed, len(results))}
	}
	return nil
}

// proveBroker makes of sluice prove the broker of another one, where there is no
// Apache Kafka: in a process of its own, so that it can be killed.
type proveBroker struct {
	Dir        string `name:"broker-dir" hidden:""`
	Listen     string `name:"broker-listen" hidden:""`
	Advertised string `name:"broker-advertised" hidden:""`
}

// run serves until ctx ends.
func (b *proveBroker) run(ctx context.Context, log io.Writer) error {
	broker, err := embedded.StartBroker(ctx, embedded.BrokerConfig{
		Dir: b.Dir, Listen: embedded.Endpoint{Addr: b.Listen}, Advertised: b.Advertised, Log: log})
	if err != nil {
		return err
	}
	<-ctx.Done()
	return broker.Close()
}

// show tells how far a run is: in one line of a terminal, elsewhere in a line
// every ten seconds.
type show struct {
	w    io.Writer
	bar  *progressbar.ProgressBar
	told time.Time
}

func newShow(w io.Writer) *show {
	s := &show{w: w}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.bar = progressbar.NewOptions64(1000, progressbar.OptionSetWriter(w), progressbar.OptionClearOnFinish(),
			progressbar.OptionSetPredictTime(false), progressbar.OptionSetWidth(12), progressbar.OptionSetElapsedTime(false))
	}
	return s
}

func (s *show) status(st prove.Status) {
	active := "nothing is broken"
	if len(st.Active) > 0 {
		slices.Sort(st.Active)
		active = strings.Join(slices.Compact(st.Active), " ")
	}
	text := fmt.Sprintf("%s %s, faults %d/%d, acknowledged %d, refused %d, %s", st.Stage, st.Elapsed.Round(time.Second), st.Faults, st.Planned, st.Acknowledged, st.Refused, active)
	if s.bar != nil {
		s.bar.Describe(cut(text, max(20, terminalWidth(s.w)-24)))
		// Not full before the end: a full bar ends.
		_ = s.bar.Set64(min(999, int64(1000*st.Elapsed/max(1, st.Of)))) // who cannot be told is not told
		return
	}
	if time.Since(s.told) >= 10*time.Second {
		s.told = time.Now()
		fmt.Fprintln(s.w, text)
	}
}

func (s *show) end() {
	if s.bar != nil {
		_ = s.bar.Finish() // as above
	}
}

func hostPort(flag, addr string) error {
	if _, _, err := net.SplitHostPort(addr); addr != "" && err != nil {
		return fmt.Errorf("--%s=%q: want host:port", flag, addr)
	}
	return nil
}

// settingsOf are variables for a service of the stack that undo what this
// process's environment says of others.
func settingsOf(process config.Process) []string {
	return []string{
		"SLUICE_CONFIG=" + process.Config,
		"SLUICE_LOG_LEVEL=" + process.LogLevel.String(),
		"SLUICE_LOG_FORMAT=" + cmp.Or(process.LogFormat, "auto"),
		"SLUICE_KAFKA_TLS=false",
		"SLUICE_KAFKA_SASL_MECHANISM=", "SLUICE_KAFKA_SASL_USERNAME=", "SLUICE_KAFKA_SASL_PASSWORD=",
		"SLUICE_CLICKHOUSE_CLUSTER=", "SLUICE_KEYS_FILE=",
	}
}
