package main

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/test/pipeline"
)

// Everything the three sample requests leave behind, once: what has an
// idempotency key is recognised by the next start, through its own process's
// memory or through the sink.
func TestUpWithExamplesTwice(t *testing.T) {
	p := newPlace(t)
	examples, err := filepath.Abs("../../examples")
	require.NoError(t, err)
	for start := range 2 {
		r := startUp(t, p, "--examples", examples, "--once")
		assert.Zero(t, r.exit(t), "start %d", start)
		out := r.stdout.String()
		t.Logf("start %d: %s", start, regexp.MustCompile(`Sluice is up after .* s`).FindString(out))
		for _, s := range []string{
			"Sluice is up after ",
			p.url(),
			"curl -sS " + p.url() + "/v1/exposures \\\n  -H 'Content-Type: application/json' \\\n  -H 'Idempotency-Key: example-exposures-1' \\\n  --data-binary @" + examples + "/exposures.json\n",
			`"accepted":5,"rejected":[],"durable":"kafka"`,
			`"accepted":2,"rejected":[{"index":2,"code":"missing_field","field":"unit_id",`,
			`202 {"success":true}`,
		} {
			assert.Contains(t, out, s)
		}
		for _, row := range []string{
			`checkout_button +green +user-17 +everyone +native`,
			`search_ranking +control +device-9f3 +everyone +native`,
			`onboarding +short_flow +user-20 +short_flow +statsig`,
			`purchase +42\.5 +user-17 +native`,
			`collector +missing_field +unit_id`,
		} {
			assert.Regexp(t, row, out)
		}
		for line := range strings.Lines(out) {
			if !strings.Contains(line, examples) && !strings.Contains(line, `"batch_id"`) && !strings.Contains(line, p.dir) {
				assert.LessOrEqual(t, len([]rune(strings.TrimSuffix(line, "\n"))), 120)
			}
		}
		outcomes := regexp.MustCompile(`(?m)^[0-9a-f-]{36}  (stored|duplicate) `).FindAllStringSubmatch(out, -1)
		counts := map[string]int{}
		for _, m := range outcomes {
			counts[m[1]]++
		}
		if start == 0 {
			assert.Equal(t, map[string]int{"stored": 3}, counts)
		} else {
			assert.Equal(t, map[string]int{"stored": 4, "duplicate": 2}, counts)
		}
		p.free(t)
	}

	r := startUp(t, p)
	r.ready(t)
	look := p.pipeline(t)
	assert.Equal(t, 5, look.Count("SELECT countIf(source = 'native') FROM exposures"), "also without FINAL")
	assert.Equal(t, 4, look.Count("SELECT countIf(source = 'statsig') FROM exposures"), "two a start: Statsig's requests have no key")
	assert.Equal(t, 2, look.Count("SELECT count() FROM events"))
	assert.Equal(t, 1, look.Count("SELECT count() FROM dead_letters"))
	assert.Equal(t, 6, look.Count("SELECT count() FROM batches"))
}

// Everything dies with the process, whatever it was doing, and the next one goes
// on from what is on disk: what was acknowledged is stored, once.
func TestUpKilledUnderLoad(t *testing.T) {
	p := newPlace(t)
	r := startUp(t, p)
	r.ready(t)
	look := p.pipeline(t)
	look.KeepEveryRow()
	load := pipeline.StartLoad(t, []string{p.url()}, 4, 20, 5*time.Millisecond)
	for range 3 {
		before := load.Acked()
		require.Eventually(t, func() bool {
			stored, err := load.Judge(look)
			return err == nil && load.Acked() > before+1000 && stored.Stored > before
		}, patience, tick)
		kids := children(t, r.cmd.Process.Pid)
		kill(t, r.cmd.Process.Pid)
		assert.Equal(t, -1, r.exit(t))
		next := startUp(t, p) // at once: it waits for what is still on its way out
		gone(t, kids)
		r = next
		r.ready(t)
	}
	load.Stop()
	v := load.AllOnce(look, patience)
	assert.Greater(t, v.Acked, 3000)
}

func TestUpTakenPort(t *testing.T) {
	p := newPlace(t)
	for _, setting := range p.env()[1:] {
		name, addr, _ := strings.Cut(setting, "=")
		taken, err := net.Listen("tcp", addr)
		require.NoError(t, err)
		got := sluice(t, []string{"up"}, p.env()...)
		require.NoError(t, taken.Close())
		assert.Equal(t, 1, got.code, name)
		assert.Empty(t, got.stdout, name)
		line := oneLine(t, got.stderr)
		assert.Contains(t, line, addr)
		assert.Contains(t, line, "set "+name+" to another address")
		p.free(t)
		assert.NoDirExists(t, p.dir, "nothing was begun")
	}
}

func TestUpEndsWhenAsked(t *testing.T) {
	for _, tc := range []struct {
		name  string
		sig   syscall.Signal
		after string // what it has said by then
	}{
		{"Ctrl-C", syscall.SIGINT, "Ctrl-C ends it."},
		{"SIGTERM", syscall.SIGTERM, "Ctrl-C ends it."},
		{"Ctrl-C while starting", syscall.SIGINT, "broker "},
		{"Ctrl-C before the collector", syscall.SIGINT, "ClickHouse "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPlace(t)
			r := startUp(t, p)
			r.await(t, tc.after)
			kids := children(t, r.cmd.Process.Pid)
			require.NoError(t, r.cmd.Process.Signal(tc.sig))
			assert.Zero(t, r.exit(t))
			assert.Empty(t, r.stderr.String())
			if len(kids) > 0 {
				gone(t, kids)
			}
			p.free(t)
		})
	}
}

func TestUpTwiceInOneDirectory(t *testing.T) {
	p := newPlace(t)
	first := startUp(t, p)
	first.ready(t)

	// The usual case: the same settings.
	got := sluice(t, []string{"up"}, p.env()...)
	assert.Equal(t, 1, got.code)
	assert.Contains(t, oneLine(t, got.stderr), p.kafka)

	// Only the directory is the same.
	other := newPlace(t)
	other.dir = p.dir
	got = sluice(t, []string{"up"}, other.env()...)
	assert.Equal(t, 1, got.code)
	line := oneLine(t, got.stderr)
	assert.Contains(t, line, p.dir)
	assert.Contains(t, line, "another process uses this directory")
	assert.Contains(t, line, "set SLUICE_UP_DIR to another directory")
	other.free(t)

	// The first one has not noticed.
	answer, err := pipeline.Post(t.Context(), p.url()+"/v1/exposures", []byte(`[{"experiment":"e","variant":"v","unit_id":"u"}]`), nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusAccepted, answer.Status, "%s", answer.Body)
	p.pipeline(t).Eventually(1, "SELECT count() FROM exposures", patience)
}

// A service that dies says why, and takes the rest with it: half a pipeline would
// look like a whole one.
func TestUpServiceDies(t *testing.T) {
	for _, name := range []string{"collector", "sink"} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			r := startUp(t, p)
			r.ready(t)
			kids := children(t, r.cmd.Process.Pid)
			kill(t, one(t, kids, string(filepath.Separator)+name).pid)
			assert.Equal(t, 1, r.exit(t))
			assert.Contains(t, r.stderr.String(), name+" ended by itself (signal: killed)")
			gone(t, kids)
			p.free(t)
		})
	}
}

func TestUpRestartsClickHouse(t *testing.T) {
	p := newPlace(t)
	r := startUp(t, p)
	r.ready(t)
	look := p.pipeline(t)
	look.KeepEveryRow()
	load := pipeline.StartLoad(t, []string{p.url()}, 2, 20, 5*time.Millisecond)
	look.Eventually(1, "SELECT count() > 200 FROM exposures", patience)

	kill(t, one(t, children(t, r.cmd.Process.Pid), "clickhouse").pid)
	r.awaitIn(t, &r.stderr, "ClickHouse ended and is started again")
	before := load.Acked()
	require.Eventually(t, func() bool {
		v, err := load.Judge(look)
		return err == nil && v.Stored > before
	}, patience, tick)
	load.Stop()
	load.AllOnce(look, patience)

	require.NoError(t, r.cmd.Process.Signal(os.Interrupt))
	assert.Zero(t, r.exit(t))
}

// Whoever names a keys file, on the command line too, expects it to be asked; and
// what the environment says of another Kafka does not count here.
func TestUpWithKeys(t *testing.T) {
	p := newPlace(t)
	file := filepath.Join(t.TempDir(), "keys.json")
	got := sluice(t, []string{"keys", "add", "--project", "shop", "--keys-file", file})
	require.Zero(t, got.code, got.stderr)
	key := oneLine(t, got.stdout)

	r := startUpWith(t, p, []string{"SLUICE_KAFKA_BROKERS=kafka.invalid:9092", "SLUICE_KAFKA_TLS=true",
		"SLUICE_KAFKA_SASL_MECHANISM=PLAIN", "SLUICE_KAFKA_SASL_USERNAME=u", "SLUICE_KAFKA_SASL_PASSWORD=p"}, "--keys-file", file)
	r.ready(t)
	body := []byte(`[{"experiment":"e","variant":"v","unit_id":"u"}]`)
	answer, err := pipeline.Post(t.Context(), p.url()+"/v1/exposures", body, nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusUnauthorized, answer.Status)
	answer, err = pipeline.Post(t.Context(), p.url()+"/v1/exposures", body, map[string]string{"Authorization": "Bearer " + key})
	require.NoError(t, err)
	assert.Equal(t, http.StatusAccepted, answer.Status, "%s", answer.Body)
	p.pipeline(t).Eventually(1, "SELECT countIf(project = 'shop') FROM exposures", patience)
}

// The services lie beside the tool, or it says where they should.
func TestUpWithoutTheServices(t *testing.T) {
	alone := filepath.Join(t.TempDir(), "sluice")
	require.NoError(t, os.Link(filepath.Join(os.Getenv("SLUICE_TEST_BIN"), "sluice"), alone))
	cmd := command(t.Context(), t, []string{"up"}, newPlace(t).env())
	cmd.Path = alone
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	assert.Equal(t, 1, cmd.ProcessState.ExitCode())
	assert.Contains(t, oneLine(t, string(out)), "make build makes all three")
}
