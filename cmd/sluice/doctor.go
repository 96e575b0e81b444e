package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"sluice/internal/config"
	"sluice/internal/doctor"
)

// doctors is the verb doctor: whether an exposure arrives that is sent as an SDK
// sends it.
type doctors struct {
	output
	ClickHouse config.ClickHouse `embed:""`

	SDK  string        `name:"sdk" default:"native" placeholder:"NAME" help:"Which SDK to send like: native, statsig, statsig-js, statsig-core, launchdarkly, launchdarkly-js, launchdarkly-mobile, segment, posthog, posthog-v1, posthog-js, amplitude, optimizely, otlp, otlp-protobuf, growthbook, eppo."`
	Key  config.Secret `secret:"" placeholder:"KEY" help:"The key the SDK is set up with. On the command line others on this machine can read it."`
	URL  string        `name:"url" default:"http://127.0.0.1:8080" placeholder:"URL" help:"The collector, without the SDK's own path; default http://127.0.0.1:8080."`
	Wait time.Duration `default:"30s" placeholder:"DURATION" help:"How long to wait for the exposure to be stored; default 30s."`
}

// Validate names the first flag that cannot be right.
func (d *doctors) Validate() error {
	if !slices.Contains(doctor.Names(), d.SDK) {
		return fmt.Errorf("--sdk=%q: want one of %s", d.SDK, strings.Join(doctor.Names(), ", "))
	}
	u, err := url.Parse(d.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("--url=%q: want http://host:port or https://host, without a query", d.URL)
	}
	if d.Wait < time.Second || d.Wait > time.Hour {
		return fmt.Errorf("--wait=%v: want 1s to 1h", d.Wait)
	}
	if strings.ContainsFunc(d.Key.Reveal(), func(r rune) bool { return r < '!' || r > '~' }) {
		return errors.New("--key: want visible ASCII characters only")
	}
	return nil
}

// Run implements the verb.
func (d *doctors) Run(t *tool) error {
	sdk, _ := doctor.Find(d.SDK) // Validate has looked
	store, err := openDoctorStore(d.ClickHouse)
	if err != nil {
		return err
	}
	defer store.Close()
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	bar := startBar(t.stderr, "milliseconds")
	report, err := doctor.Run(t.ctx, doctor.Options{
		SDK: sdk, URL: d.URL, Key: d.Key.Reveal(), Wait: d.Wait, Store: store,
		Client: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		Progress: func(done, total time.Duration) { bar.set(done.Milliseconds(), total.Milliseconds()) },
	})
	bar.end()
	if err != nil {
		return err
	}
	if d.Output == "json" {
		err = d.print(t.stdout, report, nil, nil)
	} else {
		err = writeDoctor(t.stdout, report)
	}
	switch {
	case err != nil:
		return err
	case report.OK():
		return nil
	case report.Unasked && len(report.Problems) == 1:
		return errors.New(printable(report.Problems[0].What))
	}
	return foundProblem{"the exposure did not arrive as it was sent: " + printable(report.Problems[0].What)}
}

// writeDoctor prints a report for people.
func writeDoctor(w io.Writer, r *doctor.Report) error {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-9s %s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	how := "plain"
	if r.Sent.Coding != "" {
		how = r.Sent.Coding
	}
	line("SDK", "%s, like %s", r.SDK, r.As)
	line("Sent", "POST %s (%s; the key in %s)", r.Sent.URL, how, r.Sent.KeyIn)
	if r.Answer == nil {
		line("Answer", "none")
	} else {
		line("Answer", "%d after %.3f s %s", r.Answer.Status, r.Answer.Seconds, r.Answer.Body)
		line("SDK does", "%s: %s", map[doctor.Does]string{
			doctor.Done: "nothing more", doctor.Again: "send it again", doctor.Drops: "drop it", doctor.Stops: "stop for good",
		}[r.Verdict.Does], r.Verdict.Why)
	}
	row := r.Arrival.Row
	if by := acceptedBy(r); by != "" {
		line("Accepted", "by %s", by)
	}
	line("Arrived", "%s", arrived(r))
	if row != nil {
		sentAt := "-"
		if r.Sent.Time != nil {
			sentAt = instant(*r.Sent.Time)
		}
		fmt.Fprintln(w)
		if err := table(w, []string{"FIELD", "SENT", "STORED"}, [][]string{
			{"project", "(the key's)", row.Project},
			{"experiment", r.Sent.Experiment, row.Experiment},
			{"variant", r.Sent.Variant, row.Variant},
			{"unit_type", r.Sent.UnitType, row.UnitType},
			{"unit_id", r.Sent.UnitID, row.UnitID},
			{"time", sentAt, instant(*row.Time)},
			{"source", r.Sent.Source, row.Source},
			{"sdk", "-", row.SDK},
			{"rule", "-", row.Rule},
			{"reason", "-", row.Reason},
			{"received_at", instant(r.Sent.At), instant(row.ReceivedAt)},
			{"batch_id", "-", row.BatchID},
		}); err != nil {
			return err
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "\nNote: %s\n", sentence(n))
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "\nProblem: %s\nDo: %s\n", sentence(p.What), sentence(p.Do))
	}
	if r.OK() {
		fmt.Fprintln(w, "\nIt arrived as it was sent.")
	}
	return nil
}

// sentence is a text with an end.
func sentence(s string) string {
	s = printable(s)
	if strings.HasSuffix(s, "?") || strings.HasSuffix(s, ".") {
		return s
	}
	return s + "."
}

func instant(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05.000") }

// acceptedBy is where the exposure was safe when it was acknowledged.
func acceptedBy(r *doctor.Report) string {
	if row := r.Arrival.Row; row != nil && row.Path != "" {
		return map[string]string{"direct": "Kafka", "spool": "the collector's spool"}[row.Path]
	}
	if r.Answer == nil {
		return ""
	}
	return map[string]string{"kafka": "Kafka", "spool": "the collector's spool"}[r.Answer.Durable]
}

func arrived(r *doctor.Report) string {
	switch a := r.Arrival; a.State {
	case doctor.StateStored:
		stored := ""
		if !a.Row.StoredAt.IsZero() {
			stored = fmt.Sprintf("; stored %.3f s after it was received", a.Row.StoredAt.Sub(a.Row.ReceivedAt).Seconds())
		}
		return fmt.Sprintf("in exposures, seen %.3f s after it was sent%s", a.Seconds, stored)
	case doctor.StateDead:
		return fmt.Sprintf("in dead_letters, seen %.3f s after it was sent", a.Seconds)
	case doctor.StateMissing:
		return fmt.Sprintf("no, not within %.0f s", a.Seconds)
	}
	return "not looked for"
}
