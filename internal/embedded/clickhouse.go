package embedded

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// ClickHouseConfig says which ClickHouse to run, where it keeps its data and
// listens.
type ClickHouseConfig struct {
	Dir       string    // made if it has to be
	Native    Endpoint  // the protocol of SLUICE_CLICKHOUSE_DSN
	HTTP      Endpoint  // on the same host
	Binary    string    // a clickhouse binary; empty: the one on PATH if it is new enough, else the engine from npm
	EngineDir string    // where the engine is installed; see EnsureEngine
	Progress  io.Writer // told about an installation that takes long; nil: nobody
}

// ClickHouse is a real ClickHouse in a child process, with the user default and no
// password. A program that starts one calls EngineMain first thing in main.
type ClickHouse struct {
	Child
	native, http string
}

// Addr is the host:port of the native protocol.
func (c *ClickHouse) Addr() string { return c.native }

// HTTPAddr is the host:port of the HTTP interface.
func (c *ClickHouse) HTTPAddr() string { return c.http }

// oldest is the first version that a binary on PATH is used of: older ones miss
// what the sink's inserts and the migrations use.
var oldest = version{25, 3}

type version [2]int // year, release

func (v version) String() string { return fmt.Sprintf("%d.%d", v[0], v[1]) }

func (v version) before(w version) bool {
	return v[0] < w[0] || v[0] == w[0] && v[1] < w[1]
}

// StartClickHouse starts a ClickHouse on what is in cfg.Dir, installing the engine
// first if there is no binary, and returns when both protocols answer. It returns
// ErrPortTaken when another process listens on one of its addresses and ErrInUse
// when one has its directory.
func StartClickHouse(ctx context.Context, cfg ClickHouseConfig) (*ClickHouse, error) {
	if os.Getenv(childVariable) != "" {
		// Without this, a program that forgot EngineMain would start itself without end.
		return nil, fmt.Errorf("%s is set: this is an engine's process, whose main must begin with EngineMain", childVariable)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	cfg.Dir = dir
	if err := reserve(ctx, cfg.Dir, &cfg.Native, &cfg.HTTP); err != nil {
		return nil, err
	}
	if host := hostOf(cfg.Native); host != hostOf(cfg.HTTP) {
		return nil, fmt.Errorf("%s%q: want the host of the native address, %s", prefixed(cfg.HTTP.Setting), cfg.HTTP.Addr, host)
	}
	engine, err := findEngine(ctx, cfg)
	if err != nil {
		return nil, err
	}
	c := &ClickHouse{native: cfg.Native.Addr, http: cfg.HTTP.Addr}
	c.launch = func(ctx context.Context) (*process, error) { return launchClickHouse(ctx, cfg, engine) }
	if err := c.up(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// engineFile is a clickhouse binary or the engine's library.
type engineFile struct {
	path    string
	library bool
}

func findEngine(ctx context.Context, cfg ClickHouseConfig) (engineFile, error) {
	if cfg.Binary != "" {
		path, err := exec.LookPath(cfg.Binary)
		if err != nil {
			return engineFile{}, fmt.Errorf("clickhouse binary: %w", err)
		}
		return engineFile{path: path}, nil
	}
	if path, err := exec.LookPath("clickhouse"); err == nil {
		v, err := versionOf(ctx, path)
		if err == nil && !v.before(oldest) {
			return engineFile{path: path}, nil
		}
		why := fmt.Sprintf("version %s", v)
		if err != nil {
			why = err.Error()
		}
		note(cfg.Progress, "not using %s (%s; %s or newer will do)", path, why, oldest)
	}
	library, err := EnsureEngine(ctx, cfg.EngineDir, cfg.Progress)
	return engineFile{path: library, library: true}, err
}

var versionPattern = regexp.MustCompile(`version (\d+)\.(\d+)`)

func versionOf(ctx context.Context, binary string) (version, error) {
	out, err := exec.CommandContext(ctx, binary, "server", "--version").Output()
	if err != nil {
		return version{}, fmt.Errorf("ask for its version: %w", err)
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return version{}, errors.New("it names no version")
	}
	year, _ := strconv.Atoi(string(m[1])) // digits
	release, _ := strconv.Atoi(string(m[2]))
	return version{year, release}, nil
}

func launchClickHouse(ctx context.Context, cfg ClickHouseConfig, engine engineFile) (*process, error) {
	// Waits for a process that was killed just now and is not quite gone.
	lock, err := lockData(ctx, cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // the child has its own
	for _, e := range []Endpoint{cfg.Native, cfg.HTTP} {
		if err := CheckPort(e); err != nil {
			return nil, err
		}
	}
	c := command{
		name: "clickhouse",
		path: engine.path,
		dir:  cfg.Dir, // the engine would read a config.xml where it starts
		log:  filepath.Join(cfg.Dir, "clickhouse.log"),
		lock: lock,
	}
	data := filepath.Join(cfg.Dir, "data")
	if engine.library {
		if c.path, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("find this program, to run the engine in: %w", err)
		}
		c.args = engineArgs(engine.path, data, cfg)
		c.env = []string{childVariable + "=1"}
	} else {
		config := filepath.Join(cfg.Dir, "server.xml")
		if err := os.WriteFile(config, serverConfig(cfg, data), 0o644); err != nil {
			return nil, fmt.Errorf("write clickhouse's configuration: %w", err)
		}
		c.args = []string{"server", "--config-file=" + config}
	}
	p, err := start(c)
	if err != nil {
		return nil, err
	}
	return started(ctx, p, func(ctx context.Context) error { return answers(ctx, cfg) })
}

// answers reports whether both protocols do. The native one is served before HTTP is.
func answers(ctx context.Context, cfg ClickHouseConfig) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", cfg.Native.Addr)
	if err != nil {
		return err
	}
	if err := conn.Close(); err != nil {
		return err
	}
	return ping(ctx, cfg.HTTP.Addr)
}

func ping(ctx context.Context, addr string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/ping", nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || strings.TrimSpace(string(body)) != "Ok." {
		return fmt.Errorf("ping: %s %q", resp.Status, body)
	}
	return nil
}

// serverConfig is all that `clickhouse server` needs for itself: loopback only, no
// logs in tables, warnings to standard output.
func serverConfig(cfg ClickHouseConfig, data string) []byte {
	text := func(s string) string {
		var b strings.Builder
		_ = xml.EscapeText(&b, []byte(s)) // a Builder takes all
		return b.String()
	}
	return []byte(`<clickhouse>
  <logger><level>warning</level><console>1</console></logger>
  <path>` + text(data) + `/</path>
  <tmp_path>` + text(data) + `/tmp/</tmp_path>
  <user_files_path>` + text(data) + `/user_files/</user_files_path>
  <format_schema_path>` + text(data) + `/format_schemas/</format_schema_path>
  <listen_host>` + text(hostOf(cfg.Native)) + `</listen_host>
  <tcp_port>` + portOf(cfg.Native) + `</tcp_port>
  <http_port>` + portOf(cfg.HTTP) + `</http_port>
  <user_directories><users_xml><path>server.xml</path></users_xml></user_directories>
  <users>
    <default>
      <password></password>
      <networks><ip>127.0.0.0/8</ip><ip>::1</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
      <access_management>1</access_management>
    </default>
  </users>
  <profiles><default/></profiles>
  <quotas><default/></quotas>
</clickhouse>
`)
}
