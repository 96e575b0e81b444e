// Drives published Go SDKs against a collector, and prints as JSON lines what it
// made them log.
//
//	go run . SDK COLLECTOR_URL KEY RUN_ID [USERS]
//
// SDK is one of those that `go run .` lists. COLLECTOR_URL has no path, and its host
// is an IP address or localhost: any other name is refused, so that nothing but the
// collector is contacted. Rules come from this program: bootstrap values, test data,
// or answers it gives in the vendor's place. RUN_ID goes into every name.
//
// Lines on standard output:
//
//	{"type":"exposure","experiment","variant","rule","unit_type","unit_id","reason"?,"from","to"}
//	{"type":"done","sdk","version","exposures","events","given_up"?,"elapsed_ms"}
//
// from and to: the event's time lies between, epoch ms. Exit status: 0 the SDK
// reported delivery, or has no word for it; 1 it gave events up, or looked another
// host up; 2 wrong arguments (`go run` makes 1 of it). What SDKs say of themselves is
// on standard error.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// driver makes one SDK log an exposure for each unit of the run, and returns when
// the SDK has sent them all, or has given up.
type driver struct {
	module string // whose version is printed
	drive  func(*run) error
}

func drivers() map[string]driver {
	return map[string]driver{
		"launchdarkly": {"github.com/launchdarkly/go-server-sdk/v7", launchDarkly},
		"statsig":      {"github.com/statsig-io/go-sdk", statsigServer},
		"segment":      {"github.com/segmentio/analytics-go/v3", segment},
		"posthog":      {"github.com/posthog/posthog-go", postHog},
		"otlp":         {"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp", otlp},
	}
}

func main() {
	os.Exit(execute(os.Args[1:]))
}

func execute(args []string) int {
	r, ok := parse(args)
	if !ok {
		names := slices.Sorted(maps.Keys(drivers()))
		fmt.Fprintf(os.Stderr, "usage: go run . SDK COLLECTOR_URL KEY RUN_ID [USERS], SDK one of %s\n", strings.Join(names, ", "))
		return 2
	}
	r.stayHere()
	started := time.Now()
	if err := drivers()[r.sdk].drive(r); err != nil {
		r.gaveUp(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	done := map[string]any{
		"type": "done", "sdk": r.sdk, "version": version(drivers()[r.sdk].module),
		"exposures": r.exposures, "events": 0, "elapsed_ms": time.Since(started).Milliseconds(),
	}
	if len(r.givenUp) > 0 {
		done["given_up"] = len(r.givenUp)
	}
	r.print(done)
	slices.Sort(r.givenUp)
	for _, why := range slices.Compact(r.givenUp) {
		fmt.Fprintf(os.Stderr, "%s: %s\n", r.sdk, why)
	}
	if len(r.givenUp) > 0 {
		return 1
	}
	return 0
}

// run is one run of the program.
type run struct {
	sdk, url, key, id string
	users             int
	out               *json.Encoder

	mu        sync.Mutex
	exposures int
	givenUp   []string
}

func parse(args []string) (*run, bool) {
	if len(args) < 4 || len(args) > 5 {
		return nil, false
	}
	r := &run{sdk: args[0], url: strings.TrimRight(args[1], "/"), key: args[2], id: args[3], users: 20, out: json.NewEncoder(os.Stdout)}
	r.out.SetEscapeHTML(false)
	if len(args) == 5 {
		n, err := strconv.Atoi(args[4])
		if err != nil || n < 1 || n > 9999 {
			return nil, false
		}
		r.users = n
	}
	_, known := drivers()[r.sdk]
	return r, known && r.url != "" && r.key != "" && regexp.MustCompile(`^[\w-]+$`).MatchString(r.id)
}

// stayHere refuses every look-up of a name that is not in the machine's own table of
// hosts, and counts it as a failure.
func (r *run) stayHere() {
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		err := errors.New("looked up another host")
		r.gaveUp(err)
		return nil, err
	}}
}

// experiment is the name of the run's only experiment.
func (r *run) experiment() string { return r.id + "-exp" }

// units yields the users' ids, and which of two variants each gets: two, so that
// none is right for all.
func (r *run) units(yield func(unit, variant string) bool) {
	for i := range r.users {
		if !yield(fmt.Sprintf("%s-u%d", r.id, i), []string{"a", "b"}[i%2]) {
			return
		}
	}
}

// line is what an exposure must be stored as, times aside.
type line struct {
	Type       string `json:"type"`
	Experiment string `json:"experiment"`
	Variant    string `json:"variant"`
	Rule       string `json:"rule"`
	UnitType   string `json:"unit_type"`
	UnitID     string `json:"unit_id"`
	Reason     string `json:"reason,omitempty"`
	From       int64  `json:"from"`
	To         int64  `json:"to"`
}

// logged runs what logs one exposure of a unit, and prints it. log may put right
// what only the SDK knows.
func (r *run) logged(unit, variant string, log func(*line) error) error {
	l := line{Type: "exposure", Experiment: r.experiment(), Variant: variant, UnitType: "user", UnitID: unit, From: time.Now().UnixMilli()}
	if err := log(&l); err != nil {
		return fmt.Errorf("log an exposure of %s: %w", unit, err)
	}
	l.To = time.Now().UnixMilli()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exposures++
	r.print(l)
	return nil
}

// print writes a line; standard output that is closed ends the run.
func (r *run) print(v any) {
	if err := r.out.Encode(v); err != nil {
		fmt.Fprintln(os.Stderr, "standard output:", err)
		os.Exit(1)
	}
}

// gaveUp notes that the SDK reported to have given events up.
func (r *run) gaveUp(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	why := err.Error()
	r.givenUp = append(r.givenUp, why[:min(len(why), 300)])
}

// version is that of a module this program is built with.
func version(module string) string {
	info, _ := debug.ReadBuildInfo()
	if info == nil {
		return ""
	}
	for _, dep := range info.Deps {
		if dep.Path == module {
			return strings.TrimPrefix(dep.Version, "v")
		}
	}
	return ""
}
