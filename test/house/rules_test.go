package house

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The layers, lowest first. What is free may import anything, and nothing of it
// may be imported from below.
const (
	unknown = iota
	leaf    // files and generated code
	public
	private
	program
	free // tests
)

func layer(dir string) int {
	first, _, _ := strings.Cut(dir, "/")
	switch first {
	case "proto", "migrations", "web", "examples":
		return leaf
	case "pkg":
		return public
	case "internal":
		return private
	case "cmd":
		return program
	case "test", "deploy", "bench":
		return free
	}
	return unknown
}

// sibling is the package of internal that a directory belongs to.
func sibling(dir string) string {
	parts := strings.SplitN(dir, "/", 3)
	return strings.Join(parts[:min(len(parts), 2)], "/")
}

// imports are the paths a Go file imports.
func (f *file) imports() []*ast.ImportSpec {
	if f.ast == nil {
		return nil
	}
	return f.ast.Imports
}

func target(s *ast.ImportSpec) string {
	p, err := strconv.Unquote(s.Path.Value)
	if err != nil {
		return s.Path.Value
	}
	return p
}

func wrongImports(files []*file) (found []string) {
	for _, f := range files {
		for _, s := range f.imports() {
			to, own := strings.CutPrefix(target(s), "sluice/")
			if own && !f.isTest() && !mayImport(f.dir(), to) {
				found = append(found, fmt.Sprintf("%s: %s imports %s", f.at(s.Pos()), f.dir(), to))
			}
		}
	}
	return found
}

func mayImport(from, to string) bool {
	a, b := layer(from), layer(to)
	switch {
	case a == unknown || b == unknown || b == free:
		return false
	case sibling(to) == "internal/embedded" && sibling(from) != "internal/embedded":
		return from == "cmd/sluice" || strings.HasPrefix(from, "cmd/sluice/")
	case a == b && a == private:
		return sibling(from) == sibling(to) || to == "internal/protocol"
	case a == b && a == program:
		return sibling(from) == sibling(to)
	}
	return a >= b
}

func wrongClients(files []*file) (found []string) {
	for _, f := range files {
		if f.isTest() {
			continue
		}
		for _, s := range f.imports() {
			for _, c := range []struct{ library, adapter string }{
				{"github.com/segmentio/kafka-go", "internal/kafka"},
				{"github.com/ClickHouse/clickhouse-go", "internal/clickhouse"},
				{"github.com/ClickHouse/ch-go", "internal/clickhouse"},
				// The broker is franz-go's; its message codecs (kmsg) are no client.
				{"github.com/twmb/franz-go/pkg/kfake", "internal/embedded"},
				{"github.com/ebitengine/purego", "internal/embedded"},
			} {
				to := target(s)
				// The benchmark holds the adapters against the bare libraries.
				if sibling(f.dir()) == "internal/bench" && c.adapter != "internal/embedded" {
					continue
				}
				if (to == c.library || strings.HasPrefix(to, c.library+"/")) && sibling(f.dir()) != c.adapter {
					found = append(found, fmt.Sprintf("%s: imports %s, which is %s's", f.at(s.Pos()), to, c.adapter))
				}
			}
		}
	}
	return found
}

func inits(files []*file) (found []string) {
	for _, f := range files {
		if f.ast == nil || f.generated() {
			continue
		}
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				found = append(found, f.at(fn.Pos())+": func init")
			}
		}
	}
	return found
}

// calls visits the calls in a file as "name" or "x.name".
func (f *file) calls(visit func(name string, call *ast.CallExpr)) {
	if f.ast == nil {
		return
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			visit(callee(call), call)
		}
		return true
	})
}

func callee(call *ast.CallExpr) string {
	switch fn := call.Fun.(type) {
	case *ast.Ident:
		return fn.Name
	case *ast.SelectorExpr:
		if x, ok := fn.X.(*ast.Ident); ok {
			return x.Name + "." + fn.Sel.Name
		}
	}
	return ""
}

func exits(files []*file) (found []string) {
	for _, f := range files {
		if f.ast == nil || f.ast.Name.Name == "main" {
			continue
		}
		// A test binary's main is TestMain.
		var main ast.Node
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "TestMain" && f.isTest() {
				main = fn
			}
		}
		f.calls(func(name string, call *ast.CallExpr) {
			if main != nil && main.Pos() <= call.Pos() && call.End() <= main.End() {
				return
			}
			if name == "os.Exit" || strings.HasPrefix(name, "log.Fatal") {
				found = append(found, f.at(call.Pos())+": "+name)
			}
		})
	}
	return found
}

func panics(files []*file) (found []string) {
	for _, f := range files {
		if f.isTest() || f.generated() {
			continue
		}
		f.calls(func(name string, call *ast.CallExpr) {
			if name == "panic" {
				found = append(found, f.at(call.Pos())+": panic")
			}
		})
	}
	return found
}

func sleeps(files []*file) (found []string) {
	for _, f := range files {
		if !f.isTest() {
			continue
		}
		f.calls(func(name string, call *ast.CallExpr) {
			if name == "time.Sleep" {
				found = append(found, f.at(call.Pos())+": time.Sleep")
			}
		})
	}
	return found
}

func skips(files []*file) (found []string) {
	for _, f := range files {
		if f.ast == nil || !f.isTest() {
			continue
		}
		// The names under which the file has a *testing.T, B or F, or a testing.TB.
		handles := map[string]bool{}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if fn, ok := n.(*ast.FuncType); ok {
				for _, p := range fn.Params.List {
					typ := p.Type
					if star, ok := typ.(*ast.StarExpr); ok {
						typ = star.X
					}
					if sel, ok := typ.(*ast.SelectorExpr); ok && fmt.Sprint(sel.X) == "testing" {
						for _, name := range p.Names {
							handles[name.Name] = true
						}
					}
				}
			}
			return true
		})
		f.calls(func(name string, call *ast.CallExpr) {
			handle, method, _ := strings.Cut(name, ".")
			if handles[handle] && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, method) {
				found = append(found, f.at(call.Pos())+": "+name)
			}
		})
	}
	return found
}

func vagueNames(files []*file) (found []string) {
	vague := regexp.MustCompile(`^(utils?|commons?|helpers?|managers?|misc)$`)
	for _, f := range files {
		for _, part := range strings.Split(f.path, "/") {
			stem, _, _ := strings.Cut(part, ".")
			if vague.MatchString(strings.ToLower(strings.TrimSuffix(stem, "_test"))) {
				found = append(found, f.path)
				break
			}
		}
	}
	return found
}

const longest = 600

func longFiles(files []*file) (found []string) {
	for _, f := range files {
		if n := bytes.Count(f.text, []byte("\n")); f.ast != nil && !f.generated() && n > longest {
			found = append(found, fmt.Sprintf("%s: %d lines", f.path, n))
		}
	}
	return found
}

func unformatted(files []*file) (found []string) {
	for _, f := range files {
		if f.ast == nil {
			continue
		}
		if want, err := format.Source(f.text); err != nil || !bytes.Equal(want, f.text) {
			found = append(found, f.path)
		}
	}
	return found
}

func machinePaths(files []*file, machine []string) (found []string) {
	var patterns []*regexp.Regexp
	for _, dir := range machine {
		// As a path of its own, or after a scheme's two slashes; not as the middle of
		// another path.
		patterns = append(patterns, regexp.MustCompile(`(?m)(^|[^A-Za-z0-9_./-]|//)`+regexp.QuoteMeta(dir)))
	}
	patterns = append(patterns, regexp.MustCompile(`"resolved"\s*:\s*"https?:`))
	// Written in two halves, so as not to find themselves.
	for _, host := range []string{"registry." + "npmjs.org", "proxy." + "golang.org", "repo1." + "maven.org", "repo.maven." + "apache.org", "files." + "pythonhosted.org"} {
		patterns = append(patterns, regexp.MustCompile(regexp.QuoteMeta(host)))
	}
	for _, f := range files {
		if f.binary() {
			continue
		}
		for _, re := range patterns {
			if line, ok := first(re, f.text); ok {
				found = append(found, fmt.Sprintf("%s:%d: %s", f.path, line, re))
			}
		}
	}
	return found
}

// globals are package-level variables that are, or could be, written to.
func globals(files []*file) (found []string) {
	packages := map[string][]*file{}
	for _, f := range files {
		if f.ast != nil && !f.isTest() && !f.generated() {
			packages[path.Join(f.dir(), f.ast.Name.Name)] = append(packages[path.Join(f.dir(), f.ast.Name.Name)], f)
		}
	}
	for _, f := range files {
		if f.ast == nil || f.isTest() || f.generated() {
			continue
		}
		for _, d := range f.ast.Decls {
			decl, ok := d.(*ast.GenDecl)
			if !ok || decl.Tok != token.VAR {
				continue
			}
			for _, s := range decl.Specs {
				spec := s.(*ast.ValueSpec)
				if embeds(decl.Doc) || embeds(spec.Doc) {
					continue
				}
				for i, name := range spec.Names {
					var value ast.Expr
					if i < len(spec.Values) {
						value = spec.Values[i]
					}
					if name.Name == "_" {
						continue
					}
					if why := mutable(name.Name, value, packages[path.Join(f.dir(), f.ast.Name.Name)]); why != "" {
						found = append(found, fmt.Sprintf("%s: var %s %s", f.at(name.Pos()), name.Name, why))
					}
				}
			}
		}
	}
	return found
}

func embeds(doc *ast.CommentGroup) bool {
	return doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
}

// mutable says why a variable counts as one that changes, or "".
func mutable(name string, value ast.Expr, pkg []*file) string {
	switch v := value.(type) {
	case *ast.CallExpr:
		// Their results cannot be changed.
		if slices.Contains([]string{"errors.New", "fmt.Errorf", "regexp.MustCompile", "strings.NewReplacer", "crc32.MakeTable"}, callee(v)) {
			return ""
		}
	case *ast.CompositeLit:
		if sel, ok := v.Type.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && (x.Name == "sync" || x.Name == "atomic") {
				return "is there to be changed"
			}
		}
		for _, f := range pkg {
			if where := writes(f, name); where != "" {
				return "is written to at " + where
			}
		}
		return ""
	}
	return "is neither a sentinel error, a pattern, an embedded file nor a table (a constant would do for a single value)"
}

// writes is the first place in a file where a package-level table is changed or
// handed out for changing. A function that has a variable of the same name is
// passed over.
func writes(f *file, name string) (where string) {
	for _, d := range f.ast.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || declares(fn, name) {
			continue
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			var changed []ast.Expr
			switch n := n.(type) {
			case *ast.AssignStmt:
				changed = n.Lhs
			case *ast.IncDecStmt:
				changed = []ast.Expr{n.X}
			case *ast.UnaryExpr:
				if n.Op == token.AND {
					changed = []ast.Expr{n.X}
				}
			case *ast.CallExpr:
				if c := callee(n); (c == "delete" || c == "clear" || c == "copy") && len(n.Args) > 0 {
					changed = n.Args[:1]
				}
			}
			for _, e := range changed {
				if rootOf(e) == name && where == "" {
					where = f.at(e.Pos())
				}
			}
			return true
		})
	}
	return where
}

// rootOf is the variable an expression reaches into.
func rootOf(e ast.Expr) string {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x.Name
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.SliceExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return ""
		}
	}
}

// declares reports whether a function has a parameter or variable of its own
// under the name.
func declares(fn *ast.FuncDecl, name string) (found bool) {
	is := func(e ast.Expr) bool {
		id, ok := e.(*ast.Ident)
		return ok && id.Name == name
	}
	ast.Inspect(fn, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			found = found || slices.ContainsFunc(n.Names, func(id *ast.Ident) bool { return id.Name == name })
		case *ast.AssignStmt:
			found = found || n.Tok == token.DEFINE && slices.ContainsFunc(n.Lhs, is)
		case *ast.RangeStmt:
			found = found || n.Tok == token.DEFINE && (n.Key != nil && is(n.Key) || n.Value != nil && is(n.Value))
		case *ast.ValueSpec:
			found = found || slices.ContainsFunc(n.Names, func(id *ast.Ident) bool { return id.Name == name })
		}
		return true
	})
	return found
}
