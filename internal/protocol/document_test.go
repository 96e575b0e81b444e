package protocol

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the documents that are made from tables")

const errorsDocument = "../../docs/errors.md"

// TestErrorsDocument compares docs/errors.md with the tables it is made from.
// After a change of those, write it anew: go test ./internal/protocol -update
func TestErrorsDocument(t *testing.T) {
	want := errorsMarkdown()
	if *update {
		require.NoError(t, os.WriteFile(errorsDocument, []byte(want), 0o644))
	}
	got, err := os.ReadFile(errorsDocument)
	require.NoError(t, err)
	assert.Equal(t, want, string(got), "docs/errors.md is not current; run the test with -update")
}

func errorsMarkdown() string {
	var b strings.Builder
	b.WriteString(`# Errors

<!-- Made from internal/protocol/codes.go and events.go by "go test ./internal/protocol -update"; do not edit. -->

Every refused request is answered with ` + "`application/problem+json`" + ` (RFC 9457):

` + "```json" + `
{"title":"Service Unavailable","status":503,"code":"overloaded","detail":"the collector has too much in hand"}
` + "```" + `

` + "`code`" + ` is stable: programs should look at it, and at nothing else but the status. ` + "`title` and `detail`" + ` are for people.
Endpoints of other vendors' SDKs may answer with another status or body, where that SDK would otherwise lose or repeat
its events; see the page of the protocol.

Answers to refused requests close the connection where the request's body was not read to its end. No request is ever
answered with a redirect.

## Problems: the request as a whole

*Retry* says whether the same request may succeed later. Where it may, send it with the same ` + "`Idempotency-Key`" + `: whatever
became of the first one, its events are then stored once. With 429 and 503, ` + "`Retry-After`" + ` (seconds, jitter included) says
when.

| status | code | retry | meaning | what to do |
|---|---|---|---|---|
`)
	for _, c := range Codes() {
		retry := "no"
		if c.Retry {
			retry = "yes"
		}
		fmt.Fprintf(&b, "| %d %s | `%s` | %s | %s | %s |\n", c.Status, http.StatusText(c.Status), c.Code, retry, cell(c.Meaning), cell(c.Do))
	}
	b.WriteString(`
## Reasons: one event

One bad event never costs its neighbours. It is listed in ` + "`rejected`" + ` of the answer, as
` + "`{\"index\":3,\"code\":\"missing_field\",\"field\":\"unit_id\",\"message\":\"…\"}`" + `, and kept in ` + "`dead_letters`" + ` with the reason and
its bytes. Where every event of a batch was rejected, the answer is 422 ` + "`all_rejected`" + ` with the same list.

| code | meaning | what to do |
|---|---|---|
`)
	for _, c := range EventCodes() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", c.Code, cell(c.Meaning), cell(c.Do))
	}
	return b.String()
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

// TestEventCodesAreComplete reads the package that has the codes: each of its
// constants is documented, and nothing else is.
func TestEventCodesAreComplete(t *testing.T) {
	files, err := filepath.Glob("../../pkg/schema/*.go")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var want []string
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if typ, ok := v.Type.(*ast.Ident); ok && typ.Name == "Code" {
				for _, x := range v.Values {
					s, err := strconv.Unquote(x.(*ast.BasicLit).Value)
					require.NoError(t, err)
					want = append(want, s)
				}
			}
			return true
		})
	}
	var got []string
	for _, c := range EventCodes() {
		got = append(got, string(c.Code))
		assert.NotEmpty(t, c.Meaning)
		assert.NotEmpty(t, c.Do)
	}
	assert.ElementsMatch(t, want, got)
}
