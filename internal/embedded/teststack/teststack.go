// Package teststack gives tests a real Apache Kafka and a real ClickHouse. Only
// tests import it.
//
// A package that needs them says so once:
//
//	func TestMain(m *testing.M) {
//		os.Exit(teststack.Main(m, teststack.NeedKafka, teststack.NeedClickHouse, teststack.CheckLeaks))
//	}
//
// Main starts one of each for the run of the package, in a temporary folder, and
// the tests share them: each takes its own topics (Prefix) and database (DSN). A
// test that kills or pauses a server starts its own (StartKafka, StartClickHouse).
//
// SLUICE_TEST_KAFKA=host:port and SLUICE_TEST_CLICKHOUSE=host:port (native
// protocol) name running servers to use instead. The databases of the tests are
// dropped from a ClickHouse over HTTP, at SLUICE_TEST_CLICKHOUSE_HTTP=host:port;
// where only the native address is given they stay.
package teststack

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sluice/internal/embedded"
)

// Need is something Main does around the tests of a package.
type Need uint8

// What can be needed.
const (
	NeedKafka      Need = iota // Kafka and Prefix
	NeedClickHouse             // ClickHouse and DSN
	CheckLeaks                 // fail if goroutines are left when everything has ended
)

// The addresses of the servers. Main sets what was not set, for the tests and for
// the processes they start.
const (
	kafkaVariable      = "SLUICE_TEST_KAFKA"
	clickHouseVariable = "SLUICE_TEST_CLICKHOUSE"
	httpVariable       = "SLUICE_TEST_CLICKHOUSE_HTTP"
)

// Main runs a package's tests with what they need and returns the exit code. A
// server that does not start fails the run, with one line: nothing is skipped.
// It is the first call in TestMain, and also where the engine's child process runs.
func Main(m *testing.M, needs ...Need) int {
	if code, child := embedded.EngineMain(); child {
		return code
	}
	flag.Parse()
	if !runsTests() {
		return m.Run()
	}
	code, err := withServers(m.Run, needs)
	if err != nil {
		fmt.Fprintln(os.Stderr, "teststack:", err)
		return max(code, 1)
	}
	for _, n := range needs {
		if n != CheckLeaks || code != 0 {
			continue
		}
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "teststack: after the tests:", err)
			return 1
		}
	}
	return code
}

// runsTests reports whether the run needs servers: listing and fuzzing do not.
func runsTests() bool {
	for _, name := range []string{"test.list", "test.fuzz", "test.fuzzworker"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != "" && f.Value.String() != "false" {
			return false
		}
	}
	return true
}

func withServers(run func() int, needs []Need) (code int, err error) {
	dir, err := os.MkdirTemp("", "sluice-test-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, n := range needs {
		var child *embedded.Child
		switch {
		case n == NeedKafka && os.Getenv(kafkaVariable) == "":
			k, err := embedded.StartApacheKafka(context.Background(), kafkaConfig(filepath.Join(dir, "kafka")))
			if err != nil {
				return 1, fmt.Errorf("kafka: %w", err)
			}
			child = &k.Child
			err = os.Setenv(kafkaVariable, k.Addr())
			if err != nil {
				return 1, errors.Join(err, child.Kill())
			}
		case n == NeedClickHouse && os.Getenv(clickHouseVariable) == "":
			c, err := embedded.StartClickHouse(context.Background(), clickHouseConfig(filepath.Join(dir, "clickhouse")))
			if err != nil {
				return 1, fmt.Errorf("clickhouse: %w", err)
			}
			child = &c.Child
			err = errors.Join(os.Setenv(clickHouseVariable, c.Addr()), os.Setenv(httpVariable, c.HTTPAddr()))
			if err != nil {
				return 1, errors.Join(err, child.Kill())
			}
		default:
			continue
		}
		defer func() {
			// One that ended by itself may be why tests failed.
			err = errors.Join(err, child.Err(), child.Kill())
		}()
	}
	return run(), nil
}

func kafkaConfig(dir string) embedded.KafkaConfig {
	return embedded.KafkaConfig{
		Dir: dir,
		// Short runs gain more from the quick compiler than from the good one.
		JavaOptions: []string{"-XX:TieredStopAtLevel=1"},
		Progress:    os.Stderr,
	}
}

func clickHouseConfig(dir string) embedded.ClickHouseConfig {
	return embedded.ClickHouseConfig{Dir: dir, Progress: os.Stderr}
}

func given(t testing.TB, variable string, need string) string {
	t.Helper()
	addr := os.Getenv(variable)
	if addr == "" {
		t.Fatalf("%s is not set: TestMain of this package must return teststack.Main(m, teststack.%s)", variable, need)
	}
	return addr
}

// Kafka is the host:port of the package's Kafka.
func Kafka(t testing.TB) string {
	t.Helper()
	return given(t, kafkaVariable, "NeedKafka")
}

// Prefix is a topic prefix, and part of a group's name, that no other test has.
func Prefix(t testing.TB) string {
	t.Helper()
	return "t-" + strings.ToLower(rand.Text()[:16])
}

// ClickHouse is the host:port of the package's ClickHouse, native protocol.
func ClickHouse(t testing.TB) string {
	t.Helper()
	return given(t, clickHouseVariable, "NeedClickHouse")
}

// DSN names a database of the package's ClickHouse that no other test has. It does
// not exist yet, and is dropped when the test ends.
func DSN(t testing.TB) string {
	t.Helper()
	addr := ClickHouse(t)
	database := "t_" + strings.ToLower(rand.Text()[:16])
	if over := os.Getenv(httpVariable); over != "" {
		t.Cleanup(func() {
			if err := drop(over, database); err != nil {
				t.Errorf("drop the test's database: %v", err)
			}
		})
	}
	return "clickhouse://" + addr + "/" + database
}

func drop(addr, database string) error {
	// The test's own context has ended by now.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	query := "DROP DATABASE IF EXISTS " + database + " SYNC"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/?query="+url.QueryEscape(query), nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", query, resp.Status)
	}
	return errors.Join(err, resp.Body.Close())
}

// StartKafka starts a Kafka of the test's own, to be killed, paused and restarted.
// It ends with the test. configure changes how it is started.
func StartKafka(t testing.TB, configure ...func(*embedded.KafkaConfig)) *embedded.ApacheKafka {
	t.Helper()
	cfg := kafkaConfig(t.TempDir())
	for _, c := range configure {
		c(&cfg)
	}
	k, err := embedded.StartApacheKafka(t.Context(), cfg)
	if err != nil {
		t.Fatalf("start kafka: %v", err)
	}
	end(t, &k.Child)
	return k
}

// StartClickHouse starts a ClickHouse of the test's own, to be killed, paused and
// restarted. It ends with the test. configure changes how it is started.
func StartClickHouse(t testing.TB, configure ...func(*embedded.ClickHouseConfig)) *embedded.ClickHouse {
	t.Helper()
	cfg := clickHouseConfig(t.TempDir())
	for _, c := range configure {
		c(&cfg)
	}
	c, err := embedded.StartClickHouse(t.Context(), cfg)
	if err != nil {
		t.Fatalf("start clickhouse: %v", err)
	}
	end(t, &c.Child)
	return c
}

func end(t testing.TB, c *embedded.Child) {
	t.Cleanup(func() {
		if err := errors.Join(c.Err(), c.Kill()); err != nil {
			t.Errorf("at the end of the test: %v", err)
		}
	})
}
