// Package house holds the rules of the house that no compiler and no linter
// checks. Each says why it is there when it is broken. They look at what git
// would commit, tracked or not yet, and need nothing but the sources.
package house

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// file is one file of the repository; ast is nil where it is not Go.
type file struct {
	path string // from the top, with slashes
	text []byte
	fset *token.FileSet
	ast  *ast.File
}

func (f *file) dir() string     { return path.Dir(f.path) }
func (f *file) isTest() bool    { return strings.HasSuffix(f.path, "_test.go") || layer(f.dir()) == free }
func (f *file) generated() bool { return f.ast != nil && ast.IsGenerated(f.ast) }

// at is a place in the file.
func (f *file) at(pos token.Pos) string {
	return fmt.Sprintf("%s:%d", f.path, f.fset.Position(pos).Line)
}

func parse(name string, text []byte) (*file, error) {
	f := &file{path: name, text: text, fset: token.NewFileSet()}
	if !strings.HasSuffix(name, ".go") {
		return f, nil
	}
	var err error
	f.ast, err = parser.ParseFile(f.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	return f, err
}

// top is the directory of the checkout.
func top(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "git", "rev-parse", "--show-toplevel").Output()
	require.NoError(t, err, "the rules need git and a checkout")
	return strings.TrimSpace(string(out))
}

func repository(t *testing.T) []*file {
	t.Helper()
	dir := top(t)
	list := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = dir
	out, err := list.Output()
	require.NoError(t, err)
	var files []*file
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || !info.Mode().IsRegular() {
			continue // deleted and not committed yet, or a link
		}
		text, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		f, err := parse(name, text)
		require.NoError(t, err)
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b *file) int { return strings.Compare(a.path, b.path) })
	return files
}

// rule finds what breaks it.
type rule struct {
	name string
	why  string
	find func(files []*file) []string
}

func rules(machine []string) []rule {
	return []rule{
		{"imports go down", "imports go cmd → internal → pkg → standard library, and siblings in internal meet through small interfaces that the consumer declares; cmd wires them. Whatever is imported sideways can no longer be replaced, or tested, alone. (Everything may have internal/protocol's types; internal/embedded, a broker and a database, is for cmd/sluice and tests.)", wrongImports},
		{"one importer a client", "only the adapter imports a client library, because it is the one place where that library's errors are told apart and its pitfalls are known", wrongClients},
		{"no init", "what init does, nobody asked for and no test can leave out", inits},
		{"no mutable globals", "two instances in one process, and tests in parallel, must not see each other: pass it in. Sentinel errors, compiled patterns, embedded files and tables that nothing writes to are fine", globals},
		{"exit in main only", "os.Exit and log.Fatal skip every defer: a batch in flight is not flushed, a spool not closed. Return an error; main (TestMain, in a test) has the one exit", exits},
		{"no panic", "a panic takes every request in flight with it. Return an error", panics},
		{"no skipped tests", "a test that cannot run has not passed: have it install or start what it needs, or fail", skips},
		{"no sleeping tests", "a sleep is too short on a busy machine and too long on every other: use testing/synctest, a channel or a condition", sleeps},
		{"names say what is there", "a package or file called util, common, helpers or manager takes in anything, and says nothing about it: name it for what it does", vagueNames},
		{"files stay readable", "a Go file over 600 lines is several files: cut it where its subject changes", longFiles},
		{"gofmt", "run gofmt", unformatted},
		{"no machine in the files", "a path of the machine it was written on, or the address of the registry it was fetched from, does not work anywhere else", func(fs []*file) []string { return machinePaths(fs, machine) }},
	}
}

// everywhere are folders that programs may well name.
var everywhere = []string{"/tmp", "/var/tmp", "/var", "/usr", "/usr/src", "/opt", "/srv", "/home", "/etc", "/data", "/app", "/src"}

// machine is where this checkout lives: its parent and the home directory.
func machine(t *testing.T) []string {
	t.Helper()
	var out []string
	dirs := []string{filepath.Dir(top(t))}
	if home, err := os.UserHomeDir(); err == nil {
		dirs = append(dirs, home)
	}
	for _, d := range dirs {
		// A checkout right below the root, or no home of its own, says nothing, nor
		// does a folder that every machine has.
		d = strings.TrimSuffix(filepath.ToSlash(d), "/")
		if d != "" && !slices.Contains(everywhere, d) {
			out = append(out, d+"/")
		}
	}
	return out
}

func TestHouse(t *testing.T) {
	files := repository(t)
	require.NotEmpty(t, files)
	for _, r := range rules(machine(t)) {
		t.Run(r.name, func(t *testing.T) {
			for _, found := range r.find(files) {
				t.Errorf("%s\n    why: %s", found, r.why)
			}
		})
	}
}

// snippet makes a file of a few lines, with the package clause in front where it
// is Go without one.
func snippet(t *testing.T, name, text string) *file {
	t.Helper()
	if strings.HasSuffix(name, ".go") && !strings.Contains(text, "package ") {
		text = "package x\n\n" + text
	}
	f, err := parse(name, []byte(text))
	require.NoError(t, err)
	return f
}

// Each rule must notice what it is there for, and only that.
func TestRulesNotice(t *testing.T) {
	const home = "/machines/seven/"
	byName := map[string]rule{}
	for _, r := range rules([]string{home}) {
		byName[r.name] = r
	}
	for _, tc := range []struct {
		rule, path, text string
		broken           bool
	}{
		{"imports go down", "cmd/sink/main.go", "import _ \"sluice/internal/sink\"\n", false},
		{"imports go down", "internal/sink/a.go", "import _ \"sluice/cmd/sink\"\n", true},
		{"imports go down", "internal/sink/a.go", "import _ \"sluice/internal/kafka\"\n", true},
		{"imports go down", "internal/sink/a_test.go", "import _ \"sluice/internal/kafka\"\n", false},
		{"imports go down", "internal/ingest/a.go", "import _ \"sluice/internal/protocol\"\n", false},
		{"imports go down", "internal/ingest/a.go", "import _ \"sluice/internal/protocol/native\"\n", true},
		{"imports go down", "internal/protocol/segment/a.go", "import _ \"sluice/internal/protocol/native\"\n", false},
		{"imports go down", "internal/clickhouse/a.go", "import _ \"sluice/migrations\"\n", false},
		{"imports go down", "internal/embedded/teststack/a.go", "import _ \"sluice/internal/embedded\"\n", false},
		{"imports go down", "cmd/sluice/a.go", "import _ \"sluice/internal/embedded\"\n", false},
		{"imports go down", "cmd/sink/a.go", "import _ \"sluice/internal/embedded\"\n", true},
		{"imports go down", "cmd/sink/a.go", "import _ \"sluice/internal/embedded/teststack\"\n", true},
		{"imports go down", "cmd/sink/a_test.go", "import _ \"sluice/internal/embedded/teststack\"\n", false},
		{"imports go down", "test/integration/a.go", "import _ \"sluice/internal/embedded/teststack\"\n", false},
		{"imports go down", "pkg/schema/a.go", "import _ \"sluice/pkg/batch\"\n", false},
		{"imports go down", "pkg/schema/a.go", "import _ \"sluice/internal/protocol\"\n", true},
		{"imports go down", "migrations/a.go", "import _ \"sluice/pkg/batch\"\n", true},
		{"imports go down", "cmd/sink/a.go", "import _ \"sluice/test/house\"\n", true},
		{"imports go down", "elsewhere/a.go", "import _ \"sluice/pkg/batch\"\n", true},

		{"one importer a client", "internal/kafka/a.go", "import _ \"github.com/segmentio/kafka-go/sasl\"\n", false},
		{"one importer a client", "internal/sink/a.go", "import _ \"github.com/segmentio/kafka-go\"\n", true},
		{"one importer a client", "internal/sink/a_test.go", "import _ \"github.com/segmentio/kafka-go\"\n", false},
		{"one importer a client", "cmd/sluice/a.go", "import _ \"github.com/ClickHouse/clickhouse-go/v2\"\n", true},
		{"one importer a client", "internal/ledger/a.go", "import _ \"github.com/ClickHouse/ch-go/proto\"\n", true},
		{"one importer a client", "internal/bench/a.go", "import _ \"github.com/ClickHouse/ch-go/proto\"\n", false},
		{"one importer a client", "internal/bench/a.go", "import _ \"github.com/twmb/franz-go/pkg/kfake\"\n", true},
		{"one importer a client", "internal/embedded/a.go", "import _ \"github.com/twmb/franz-go/pkg/kfake\"\n", false},
		{"one importer a client", "internal/kafka/a.go", "import _ \"github.com/twmb/franz-go/pkg/kfake\"\n", true},
		{"one importer a client", "internal/kafka/a.go", "import _ \"github.com/twmb/franz-go/pkg/kmsg\"\n", false},

		{"no init", "pkg/x/a.go", "func init() {}\n", true},
		{"no init", "pkg/x/a_test.go", "func init() {}\n", true},
		{"no init", "pkg/x/a.go", "type t int\n\nfunc (t) init() {}\n", false},

		{"no mutable globals", "pkg/x/a.go", "var n int\n", true},
		{"no mutable globals", "pkg/x/a.go", "var n = 3\n", true},
		{"no mutable globals", "pkg/x/a.go", "import \"time\"\n\nvar now = time.Now\n", true},
		{"no mutable globals", "pkg/x/a.go", "import \"sync\"\n\nvar mu sync.Mutex\n", true},
		{"no mutable globals", "pkg/x/a.go", "import \"sync\"\n\nvar pool = sync.Pool{}\n", true},
		{"no mutable globals", "pkg/x/a.go", "var p = &struct{ n int }{}\n", true},
		{"no mutable globals", "pkg/x/a_test.go", "var n int\n", false},
		{"no mutable globals", "pkg/x/a.go", "import \"errors\"\n\nvar ErrX, ErrY = errors.New(\"x\"), errors.New(\"y\")\n", false},
		{"no mutable globals", "pkg/x/a.go", "import \"io\"\n\nvar _ io.Reader = (*int)(nil)\n", false},
		{"no mutable globals", "pkg/x/a.go", "import _ \"embed\"\n\n//go:embed a.txt\nvar text []byte\n", false},
		{"no mutable globals", "pkg/x/a.go", "import \"embed\"\n\nvar (\n\t//go:embed a.txt\n\tfiles embed.FS\n)\n", false},
		{"no mutable globals", "pkg/x/a.go", "var table = map[string]int{\"a\": 1}\n\nfunc f() int { return table[\"a\"] }\n", false},
		{"no mutable globals", "pkg/x/a.go", "var table = map[string]int{\"a\": 1}\n\nfunc f() { table[\"a\"] = 2 }\n", true},
		{"no mutable globals", "pkg/x/a.go", "var table = map[string]int{\"a\": 1}\n\nfunc f() { table[\"a\"]++ }\n", true},
		{"no mutable globals", "pkg/x/a.go", "var table = map[string]int{\"a\": 1}\n\nfunc f() { delete(table, \"a\") }\n", true},
		{"no mutable globals", "pkg/x/a.go", "var table = []int{1}\n\nfunc f() *int { return &table[0] }\n", true},
		{"no mutable globals", "pkg/x/a.go", "var table = []int{1}\n\nfunc f() { table = append(table, 2) }\n", true},
		{"no mutable globals", "pkg/x/a.go", "var table = []int{1}\n\nfunc f() int { table := []int{2}; table[0] = 3; return table[0] }\n", false},

		{"exit in main only", "pkg/x/a.go", "import \"os\"\n\nfunc f() { os.Exit(1) }\n", true},
		{"exit in main only", "pkg/x/a.go", "import \"log\"\n\nfunc f() { log.Fatalf(\"x\") }\n", true},
		{"exit in main only", "cmd/x/main.go", "package main\n\nimport \"os\"\n\nfunc main() { os.Exit(1) }\n", false},

		{"exit in main only", "pkg/x/a_test.go", "import (\n\t\"os\"\n\t\"testing\"\n)\n\nfunc TestMain(*testing.M) { os.Exit(1) }\n", false},
		{"exit in main only", "pkg/x/a_test.go", "import (\n\t\"os\"\n\t\"testing\"\n)\n\nfunc TestX(*testing.T) { os.Exit(1) }\n", true},

		{"no panic", "pkg/x/a.go", "func f() { panic(\"x\") }\n", true},
		{"no panic", "pkg/x/a_test.go", "func f() { panic(\"x\") }\n", false},
		{"no panic", "pkg/x/a.go", "// Code generated by x. DO NOT EDIT.\npackage x\n\nfunc f() { panic(\"x\") }\n", false},

		{"no skipped tests", "pkg/x/a_test.go", "import \"testing\"\n\nfunc TestX(t *testing.T) { t.Skip(\"later\") }\n", true},
		{"no skipped tests", "pkg/x/a_test.go", "import \"testing\"\n\nfunc need(tb testing.TB) { tb.SkipNow() }\n", true},
		{"no skipped tests", "pkg/x/a_test.go", "import \"testing\"\n\nfunc FuzzX(f *testing.F) { f.Fuzz(func(q *testing.T, s string) { q.Skipf(s) }) }\n", true},
		{"no skipped tests", "pkg/x/a_test.go", "type dec struct{}\n\nfunc (dec) Skip() {}\n\nfunc f(d dec) { d.Skip() }\n", false},

		{"no sleeping tests", "pkg/x/a_test.go", "import \"time\"\n\nfunc f() { time.Sleep(1) }\n", true},
		{"no sleeping tests", "pkg/x/a.go", "import \"time\"\n\nfunc f() { time.Sleep(1) }\n", false},

		{"names say what is there", "pkg/util/a.go", "", true},
		{"names say what is there", "pkg/x/helpers_test.go", "", true},
		{"names say what is there", "web/src/common.ts", "", true},
		{"names say what is there", "pkg/batch/accumulator.go", "", false},

		{"files stay readable", "pkg/x/a.go", "package x\n" + strings.Repeat("//\n", 599), false},
		{"files stay readable", "pkg/x/a.go", "package x\n" + strings.Repeat("//\n", 600), true},
		{"files stay readable", "pkg/x/a.go", "// Code generated by x. DO NOT EDIT.\npackage x\n" + strings.Repeat("//\n", 600), false},

		{"gofmt", "pkg/x/a.go", "var  n int\n", true},
		{"gofmt", "pkg/x/a.go", "var n int\n", false},

		{"no machine in the files", "a.md", "see " + home + "x\n", true},
		{"no machine in the files", "a.md", "file://" + home + "x\n", true},
		{"no machine in the files", "a.md", "see ." + home + "x and a" + home + "x\n", false},
		{"no machine in the files", "package-lock.json", "\"resolved\"" + ": \"https://x/y.tgz\"\n", true},
		{"no machine in the files", "package-lock.json", "\"resolved\"" + ": \"file:../x\"\n", false},
		{"no machine in the files", ".npmrc", "registry=https://registry." + "npmjs.org/\n", true},
	} {
		t.Run(tc.rule+"/"+tc.path, func(t *testing.T) {
			r, ok := byName[tc.rule]
			require.True(t, ok)
			found := r.find([]*file{snippet(t, tc.path, tc.text)})
			assert.Equal(t, tc.broken, len(found) > 0, "%s\n%v", tc.text, found)
		})
	}
}

// Files whose bytes are no text.
func (f *file) binary() bool { return bytes.IndexByte(f.text[:min(len(f.text), 8000)], 0) >= 0 }

// first is the first match of a pattern that is not within another word or path.
func first(re *regexp.Regexp, text []byte) (line int, ok bool) {
	at := re.FindIndex(text)
	if at == nil {
		return 0, false
	}
	return 1 + bytes.Count(text[:at[1]-1], []byte("\n")), true
}
