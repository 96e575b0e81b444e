package embedded

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// thing is an installation of one file, and how often it was filled.
func thing(dir string, fills *atomic.Int32, err error) installation {
	return installation{
		what:     "thing",
		dir:      dir,
		complete: func(dir string) bool { _, err := os.Stat(filepath.Join(dir, "thing")); return err == nil },
		fill: func(_ context.Context, tmp string, lock *os.File) error {
			fills.Add(1)
			if lock == nil {
				return errors.New("not locked")
			}
			return errors.Join(os.WriteFile(filepath.Join(tmp, "thing"), []byte("all of it"), 0o644), err)
		},
	}
}

func TestInstallOnceWhoeverAsks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "thing-1")
	// One that died in the middle left this.
	left := dir + ".tmp-123"
	require.NoError(t, os.MkdirAll(left, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(left, "thing"), []byte("half"), 0o644))

	var fills atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { assert.NoError(t, install(t.Context(), thing(dir, &fills, nil))) })
	}
	wg.Wait()
	assert.EqualValues(t, 1, fills.Load())
	b, err := os.ReadFile(filepath.Join(dir, "thing"))
	require.NoError(t, err)
	assert.Equal(t, "all of it", string(b))
	assert.NoDirExists(t, left)
}

func TestFailedInstallLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "thing-1")
	var fills atomic.Int32
	err := install(t.Context(), thing(dir, &fills, errors.New("network is down")))
	require.ErrorContains(t, err, "network is down")
	left, err := filepath.Glob(dir + "*")
	require.NoError(t, err)
	assert.Equal(t, []string{dir + ".lock"}, left)
	require.NoError(t, install(t.Context(), thing(dir, &fills, nil)))
}

func TestInstallRemovesNothingOfOthers(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "precious"), nil, 0o644))
	var fills atomic.Int32
	require.ErrorContains(t, install(t.Context(), thing(dir, &fills, nil)), "remove it")
	assert.Zero(t, fills.Load())
	assert.FileExists(t, filepath.Join(dir, "precious"))
}

func TestInstallWithoutWhatTheMachineNeeds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "thing-1")
	i := thing(dir, new(atomic.Int32), nil)
	i.complete = func(string) bool { return false }
	assert.ErrorContains(t, install(t.Context(), i), "there is none for")
}

func TestInstallWaitsForAnother(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "thing-1")
	lock, err := lockFile(t.Context(), dir+".lock", func() {})
	require.NoError(t, err)
	var told strings.Builder
	i := thing(dir, new(atomic.Int32), nil)
	i.progress = &told
	require.ErrorIs(t, install(shortly(t), i), context.DeadlineExceeded)
	assert.Contains(t, told.String(), "another process is installing thing")
	require.NoError(t, lock.Close())
	require.NoError(t, install(t.Context(), i))
}

func TestInstalledEngineAndKafkaAreTakenAsTheyAre(t *testing.T) {
	library, err := EnsureEngine(t.Context(), "", os.Stderr)
	require.NoError(t, err)
	jars, err := EnsureKafka(t.Context(), "", os.Stderr)
	require.NoError(t, err)
	assert.FileExists(t, library)
	list, err := kafkaFiles.ReadFile("kafka/jars.sha256")
	require.NoError(t, err)
	assert.NoError(t, checkHashes(jars, list))

	// Neither npm nor Maven is needed any more.
	java, err := findJava(t.Context())
	require.NoError(t, err)
	t.Setenv("JAVA_HOME", filepath.Dir(filepath.Dir(java)))
	t.Setenv("PATH", t.TempDir())
	again, err := EnsureEngine(t.Context(), "", nil)
	require.NoError(t, err)
	assert.Equal(t, library, again)
	again, err = EnsureKafka(t.Context(), "", nil)
	require.NoError(t, err)
	assert.Equal(t, jars, again)

	_, err = EnsureEngine(t.Context(), t.TempDir(), nil)
	require.ErrorIs(t, err, ErrMissingTool)
	assert.ErrorContains(t, err, "install Node.js 18 or newer")
	assert.NotContains(t, err.Error(), "\n")
	_, err = EnsureKafka(t.Context(), t.TempDir(), nil)
	require.ErrorIs(t, err, ErrMissingTool)
	assert.ErrorContains(t, err, "install Maven")
	assert.NotContains(t, err.Error(), "\n")
}

func TestNpmsReasonIsTold(t *testing.T) {
	bin := t.TempDir()
	script(t, filepath.Join(bin, "npm"), "echo npm error network is down >&2; exit 1")
	t.Setenv("PATH", bin+":/bin:/usr/bin")
	_, err := EnsureEngine(t.Context(), t.TempDir(), nil)
	assert.ErrorContains(t, err, "npm error network is down")
}

func TestJavaVersions(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("JAVA_HOME", filepath.Dir(bin))
	t.Setenv("PATH", bin+":/bin:/usr/bin")
	require.NoError(t, os.Mkdir(filepath.Join(filepath.Dir(bin), "bin"), 0o755))
	java := filepath.Join(filepath.Dir(bin), "bin", "java")
	_, err := findJava(t.Context())
	require.ErrorIs(t, err, ErrMissingTool, "JAVA_HOME without one")
	for body, says := range map[string]string{
		`echo 'openjdk version "17.0.15" 2025-04-15' >&2`: "",
		`echo 'openjdk version "25-ea" 2025-09-16' >&2`:   "",
		`echo 'java version "1.8.0_412"' >&2`:             "is version 1",
		`echo 'openjdk version "11.0.2" 2019-01-15' >&2`:  "is version 11",
		`echo 'Unable to locate a Java Runtime.'; exit 1`: "does not run",
		`echo hello`: "names no version",
	} {
		script(t, java, body)
		_, err := findJava(t.Context())
		if says == "" {
			assert.NoError(t, err, body)
			continue
		}
		require.ErrorIs(t, err, ErrMissingTool, body)
		assert.ErrorContains(t, err, says)
		assert.ErrorContains(t, err, "install a JDK of version 17 or newer")
	}
}

func TestCheckHashes(t *testing.T) {
	const a = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb  a.jar\n" // sha256("a")
	for name, c := range map[string]struct {
		files map[string]string
		list  string
		says  string
	}{
		"all there":  {map[string]string{"a.jar": "a"}, a, ""},
		"changed":    {map[string]string{"a.jar": "A"}, a, "a.jar has SHA-256"},
		"missing":    {nil, a, "a.jar is missing"},
		"one more":   {map[string]string{"a.jar": "a", "b.jar": "b"}, a, "b.jar is not in the list"},
		"bad list":   {nil, "a.jar\n", "list of hashes"},
		"empty list": {map[string]string{"a.jar": "a"}, "", "not in the list"},
	} {
		dir := t.TempDir()
		for file, content := range c.files {
			require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644))
		}
		err := checkHashes(dir, []byte(c.list))
		if c.says == "" {
			assert.NoError(t, err, name)
		} else {
			assert.ErrorContains(t, err, c.says, name)
		}
	}
}

// Versions are written in several places, and the lock must not send anybody to a
// registry that is not theirs.
func TestVersionsAgree(t *testing.T) {
	var manifest struct {
		OptionalDependencies map[string]string
	}
	b, err := engineFiles.ReadFile("engine/package.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &manifest))
	require.Len(t, manifest.OptionalDependencies, 4)

	var lock struct {
		Packages map[string]struct {
			Version, Integrity, Resolved string
			OptionalDependencies         map[string]string
		}
	}
	b, err = engineFiles.ReadFile("engine/package-lock.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &lock))
	assert.Equal(t, manifest.OptionalDependencies, lock.Packages[""].OptionalDependencies)
	for name, v := range manifest.OptionalDependencies {
		assert.Equal(t, engineVersion, v)
		locked := lock.Packages["node_modules/"+name]
		assert.Equal(t, engineVersion, locked.Version, name)
		assert.Empty(t, locked.Resolved, name)
		if name == "@chdb/lib-linux-x64-gnu" {
			assert.NotEmpty(t, locked.Integrity)
		}
	}

	var pom struct {
		Dependencies []struct {
			GroupID string `xml:"groupId"`
			Version string `xml:"version"`
		} `xml:"dependencies>dependency"`
	}
	b, err = kafkaFiles.ReadFile("kafka/pom.xml")
	require.NoError(t, err)
	require.NoError(t, xml.Unmarshal(b, &pom))
	for _, d := range pom.Dependencies {
		if d.GroupID == "org.apache.kafka" {
			assert.Equal(t, kafkaVersion, d.Version)
		}
	}
}

func TestProgressIsLinesWhereThereIsNoTerminal(t *testing.T) {
	var told strings.Builder
	stop := follow(&told, "fetching", byteUnit, 10_000_000, func() int64 { return 7_000_000 })
	stop()
	assert.True(t, strings.HasPrefix(told.String(), "fetching …\nfetching: 7 MB in "), told.String())
	follow(nil, "nobody waits", fileUnit, 0, nil)()
}
