// Package deploy tests what the images and docker-compose.yml promise, without a
// container engine: the compose file by the reference loader, its settings by
// the services' own reader.
package deploy

import (
	"bufio"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/config"
	"sluice/internal/keys"
)

const root = ".."

// project loads docker-compose.yml with every profile, as an operator would who
// has set the given variables.
func project(t *testing.T, environ types.Mapping) *types.Project {
	t.Helper()
	dir, err := filepath.Abs(root)
	require.NoError(t, err)
	p, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  dir,
		ConfigFiles: []types.ConfigFile{{Filename: filepath.Join(dir, "docker-compose.yml")}},
		Environment: environ,
	}, func(o *loader.Options) {
		o.SetProjectName("sluice", true)
		o.Profiles = []string{"*"}
	})
	require.NoError(t, err, "the loader checks the schema and that what is referred to is there")
	return p
}

// ours reports a service that runs one of our binaries.
func ours(s types.ServiceConfig) bool { return strings.HasPrefix(s.Image, "sluice-") }

func environ(s types.ServiceConfig) []string {
	var out []string
	for name, value := range s.Environment {
		if value != nil {
			out = append(out, name+"="+*value)
		}
	}
	slices.Sort(out)
	return out
}

func TestServices(t *testing.T) {
	p := project(t, nil)
	assert.Equal(t, []string{"clickhouse", "collector-1", "collector-2", "kafka", "keys", "migrate", "proxy", "sink"},
		slices.Sorted(maps.Keys(p.Services)))
	for name, s := range p.Services {
		t.Run(name, func(t *testing.T) {
			if !ours(s) {
				pinned(t, s.Image)
			}
			require.NotNil(t, s.Deploy)
			require.NotNil(t, s.Deploy.Resources.Limits)
			assert.Positive(t, s.Deploy.Resources.Limits.MemoryBytes)
			assert.NotEmpty(t, s.Restart)
			assert.Equal(t, "10m", s.Logging.Options["max-size"], "a log must not fill the disk")
			once := name == "migrate" || name == "keys"
			if once {
				assert.NotEqual(t, "unless-stopped", s.Restart)
			} else {
				require.NotNil(t, s.HealthCheck)
				assert.NotEmpty(t, s.HealthCheck.Test)
				assert.Equal(t, "unless-stopped", s.Restart)
			}
			for on, how := range s.DependsOn {
				want := types.ServiceConditionHealthy
				if on == "migrate" {
					want = types.ServiceConditionCompletedSuccessfully
				}
				assert.Equal(t, want, how.Condition, on)
			}
			for _, v := range s.Volumes {
				switch v.Type {
				case types.VolumeTypeVolume:
					assert.Contains(t, p.Volumes, v.Source)
				case types.VolumeTypeBind:
					assert.FileExists(t, filepath.Join(v.Source, "haproxy.cfg"))
					assert.True(t, v.ReadOnly)
				default:
					t.Errorf("volume of type %q", v.Type)
				}
			}
			for _, port := range s.Ports {
				assert.Equal(t, "127.0.0.1", port.HostIP, "nothing is public unless the operator says so")
			}
		})
	}
}

// A collector's spool has its identity in it: two must never share one.
func TestSpoolsAreNotShared(t *testing.T) {
	p := project(t, nil)
	seen := map[string]string{}
	for name, s := range p.Services {
		if s.Image != "sluice-collector:dev" {
			continue
		}
		found := false
		for _, v := range s.Volumes {
			if v.Target == *s.Environment["SLUICE_SPOOL_DIR"] {
				found = true
				assert.Empty(t, seen[v.Source], "%s has the spool of another", name)
				seen[v.Source] = name
				assert.False(t, v.ReadOnly)
			}
		}
		assert.True(t, found, "%s would lose its spool with the container", name)
		assert.Nil(t, s.Scale, name)
	}
	assert.Len(t, seen, 2)
}

func TestSettings(t *testing.T) {
	settings, err := config.Settings()
	require.NoError(t, err)
	known := map[string]bool{}
	for _, s := range settings {
		known[s.Env] = true
	}
	for _, variables := range []types.Mapping{nil, {"CLICKHOUSE_PASSWORD": "Abc123", "PUBLIC_PORT": "9090"}} {
		for name, s := range project(t, variables).Services {
			for env := range s.Environment {
				if strings.HasPrefix(env, "SLUICE_") {
					assert.True(t, ours(s), "%s does not read %s", name, env)
					assert.True(t, known[env], "%s: %s is no setting", name, env)
				}
			}
			var err error
			switch s.Image {
			case "sluice-collector:dev":
				_, err = config.ParseCollector(s.Command, environ(s), io.Discard, io.Discard)
			case "sluice-sink:dev":
				_, err = config.ParseSink(s.Command, environ(s), io.Discard, io.Discard)
			case "sluice-tool:dev":
				var tool config.Tool
				_, err = config.Parse(&tool, config.Program{Name: "sluice"}, nil, environ(s), io.Discard, io.Discard)
			}
			assert.NoError(t, err, name)
		}
	}
}

// What the services say to each other and what is there to answer.
func TestWiring(t *testing.T) {
	p := project(t, nil)
	broker := *p.Services["collector-1"].Environment["SLUICE_KAFKA_BROKERS"]
	assert.Equal(t, "PLAINTEXT://"+broker, *p.Services["kafka"].Environment["KAFKA_ADVERTISED_LISTENERS"])
	dsn := *p.Services["sink"].Environment["SLUICE_CLICKHOUSE_DSN"]
	ch := p.Services["clickhouse"].Environment
	assert.Equal(t, "clickhouse://"+*ch["CLICKHOUSE_USER"]+":"+*ch["CLICKHOUSE_PASSWORD"]+"@clickhouse:9000/"+*ch["CLICKHOUSE_DB"], dsn)

	text, err := os.ReadFile("haproxy/haproxy.cfg")
	require.NoError(t, err)
	servers := regexp.MustCompile(`(?m)^\s+server \S+ (\S+):(\d+)$`).FindAllStringSubmatch(string(text), -1)
	require.Len(t, servers, 2)
	for _, s := range servers {
		c, ok := p.Services[s[1]]
		require.True(t, ok, s[1])
		assert.Equal(t, *c.Environment["SLUICE_LISTEN"], ":"+s[2])
		assert.Contains(t, string(text), "check port "+strings.TrimPrefix(*c.Environment["SLUICE_ADMIN_LISTEN"], ":"))
	}

	// A stop is not cut short by the engine.
	defaults, err := config.ParseSink(nil, nil, io.Discard, io.Discard)
	require.NoError(t, err)
	for _, name := range []string{"collector-1", "collector-2", "sink"} {
		s := p.Services[name]
		require.NotNil(t, s.StopGracePeriod, name)
		assert.Greater(t, time.Duration(*s.StopGracePeriod), defaults.Service.ShutdownTimeout, name)
		assert.True(t, s.ReadOnly, name)
		assert.Equal(t, []string{"ALL"}, s.CapDrop, name)
		assert.Contains(t, s.Environment, "GOMEMLIMIT", name)
	}
}

// pinned wants a tag that names a version: what was tested is what runs.
func pinned(t *testing.T, image string) {
	t.Helper()
	_, tag, ok := strings.Cut(image, ":")
	assert.True(t, ok && tag != "latest", "%s: want a version", image)
	if !strings.HasPrefix(image, "gcr.io/distroless/") { // versioned by its name: base-debian12
		assert.Regexp(t, `^\d+\.\d+`, tag, image)
	}
}

// instruction is one line of a Dockerfile, continuations joined.
type instruction struct{ name, rest string }

func dockerfile(t *testing.T, path string) []instruction {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	var out []instruction
	line := ""
	for s := bufio.NewScanner(f); s.Scan(); {
		text := strings.TrimSpace(s.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		if part, more := strings.CutSuffix(text, "\\"); more {
			line += part
			continue
		}
		name, rest, _ := strings.Cut(line+text, " ")
		out, line = append(out, instruction{name, strings.TrimSpace(rest)}), ""
	}
	return out
}

func TestDockerfiles(t *testing.T) {
	module, err := os.ReadFile(filepath.Join(root, "go.mod"))
	require.NoError(t, err)
	toolchain := regexp.MustCompile(`(?m)^toolchain go(\S+)$`).FindStringSubmatch(string(module))
	require.NotNil(t, toolchain)

	for _, name := range []string{"collector", "sink", "sluice"} {
		t.Run(name, func(t *testing.T) {
			stages, last, env := map[string]bool{}, []instruction{}, map[string]string{}
			static := false
			for _, in := range dockerfile(t, filepath.Join(name, "Dockerfile")) {
				if in.name == "FROM" {
					image, stage, _ := strings.Cut(in.rest, " AS ")
					if image != "scratch" && !stages[image] {
						pinned(t, image)
					}
					if v, ok := strings.CutPrefix(image, "golang:"); ok {
						assert.Equal(t, toolchain[1], v, "the Go that go.mod asks for")
					}
					stages[stage] = true
					last, env = nil, map[string]string{}
				}
				if in.name == "ENV" {
					for _, kv := range strings.Fields(in.rest) {
						k, v, _ := strings.Cut(kv, "=")
						env[k] = v
						static = static || kv == "CGO_ENABLED=0"
					}
				}
				if sources := strings.Fields(in.rest); in.name == "COPY" && !strings.HasPrefix(in.rest, "--from=") {
					for _, source := range sources[:len(sources)-1] {
						_, err := os.Stat(filepath.Join(root, source))
						assert.NoError(t, err, "COPY %s", in.rest)
					}
				}
				last = append(last, in)
			}
			assert.True(t, static, "built without cgo")
			base := last[0].rest
			assert.Contains(t, []string{"scratch", "gcr.io/distroless/base-debian12:nonroot"}, base, "an image without a shell")
			user := ""
			for _, in := range last {
				switch in.name {
				case "RUN":
					t.Errorf("RUN %s: there is no shell to run it", in.rest)
				case "USER":
					user = in.rest
				case "ENTRYPOINT", "CMD":
					var argv []string
					require.NoError(t, json.Unmarshal([]byte(in.rest), &argv), "%s: want a JSON array: there is no shell", in.rest)
					assert.Equal(t, "/"+name, argv[0])
				}
			}
			assert.Regexp(t, `^[1-9]\d*:[1-9]\d*$`, user, "a number, and not root")

			settings, err := config.Settings()
			require.NoError(t, err)
			for k := range env {
				assert.True(t, slices.ContainsFunc(settings, func(s config.Setting) bool { return s.Env == k }), k)
			}
			assert.FileExists(t, filepath.Join(name, "Dockerfile.dockerignore"))
		})
	}
}

// The compose file builds each image from its Dockerfile, and the paths it
// mounts are those the image prepares.
func TestImagesAndComposeAgree(t *testing.T) {
	p := project(t, nil)
	for name, s := range p.Services {
		if s.Build == nil {
			continue
		}
		path := filepath.Join(root, s.Build.Dockerfile)
		require.FileExists(t, path, name)
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, v := range s.Volumes {
			assert.Contains(t, string(text), " "+v.Target+"\n", "%s: the image gives %s its first content and owner", name, v.Target)
		}
	}
	assert.Contains(t, p.Services["collector-1"].Build.Dockerfile, "collector")
}

// The keys file in the images: a collector starts with it and lets nobody in.
func TestFirstKeysFile(t *testing.T) {
	k, err := keys.Open("keys.json", nil)
	require.NoError(t, err)
	assert.Zero(t, k.Len())
}
