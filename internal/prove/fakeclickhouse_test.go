package prove

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// fakeRow is a row of one of the three tables that are counted.
type fakeRow struct {
	table                     string
	id                        string
	experiment, variant, unit string // name, value and unit of an event
	stage                     string // of a dead letter
	offset, index             int
}

// fakeClickHouse answers the checker's queries, and no others, from rows in
// memory.
type fakeClickHouse struct {
	t  testing.TB
	at ClickHouse

	mu        sync.Mutex
	rows      []fakeRow
	away      bool    // every query fails
	watermark []int64 // what is answered, one after the other; the last one stays
	noView    bool
	queries   int
	merges    int // tables whose merges were stopped
}

func startFakeClickHouse(t testing.TB) (*fakeClickHouse, *rows) {
	f := &fakeClickHouse{t: t}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	f.at = ClickHouse{URL: server.URL, Database: "d", User: "u", Password: "p"}
	r := newRows(f.at)
	t.Cleanup(r.close)
	return f, r
}

// stored is the row that a pipeline makes of an event.
func stored(tr *traffic, batch uint64, index int) fakeRow {
	row := fakeRow{table: "exposures", id: tr.mint.id(batch, index).String(), experiment: experimentOf(batch),
		variant: variantOf(batch, index), unit: unitOf(batch, index), offset: int(batch), index: index}
	switch tr.kindOf(batch, index) {
	case custom:
		row.table, row.experiment, row.variant = "events", "purchase", valueOf(batch, index)
	case bad:
		row.table, row.stage = "dead_letters", "collector"
	}
	return row
}

// store puts a batch's rows there.
func (f *fakeClickHouse) store(tr *traffic, batch uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range tr.events {
		f.rows = append(f.rows, stored(tr, batch, i))
	}
}

func (f *fakeClickHouse) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

var (
	isExperiment = regexp.MustCompile(`experiment = '([^']*)'`)
	notIn        = regexp.MustCompile(`experiment IN \(([^)]*)\)`)
	isTable      = regexp.MustCompile(`FROM (exposures|events|dead_letters)`)
	idsIn        = regexp.MustCompile(`event_id IN \(([^)]*)\)`)
)

// ServeHTTP implements http.Handler.
func (f *fakeClickHouse) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Errorf("read a query: %v", err)
	}
	if r.URL.Query().Get("database") != "d" || r.Header.Get("X-ClickHouse-User") != "u" || r.Header.Get("X-ClickHouse-Key") != "p" {
		f.t.Errorf("asked as somebody else: %v %v", r.URL, r.Header)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queries++
	if f.away {
		http.Error(w, "away", http.StatusServiceUnavailable)
		return
	}
	query, ok := strings.CutSuffix(string(body), "\nFORMAT TabSeparated")
	if !ok {
		f.t.Errorf("a query in another format: %s", body)
	}
	f.answer(w, query)
}

func (f *fakeClickHouse) answer(w http.ResponseWriter, query string) {
	switch {
	case strings.HasPrefix(query, "SELECT event_id, experiment"):
		f.exposures(w, query)
	case strings.HasPrefix(query, "SELECT event_id, name"):
		for _, r := range f.final("events") {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.id, r.experiment, r.variant, r.unit)
		}
	case strings.HasPrefix(query, "SELECT extract(bytes"):
		for _, r := range f.final("dead_letters") {
			fmt.Fprintf(w, "%s\t%s\t%d\n", r.id, r.stage, r.index)
		}
	case strings.HasPrefix(query, "SELECT DISTINCT log"):
		fmt.Fprint(w, "log-1\t0\n")
	case strings.HasPrefix(query, "SELECT offset, batch_index"):
		f.twice(w, isTable.FindStringSubmatch(query)[1])
	case strings.HasPrefix(query, "SELECT (SELECT count()"):
		fmt.Fprintf(w, "%d\t%d\n", len(f.rows), len(f.rows))
	case strings.Contains(query, "FROM delivery_watermark"):
		if f.noView {
			w.Header().Set("X-ClickHouse-Exception-Code", "60")
			http.Error(w, "UNKNOWN_TABLE", http.StatusNotFound)
			return
		}
		fmt.Fprintf(w, "%d\tcollector-x\n", f.watermark[0])
		if len(f.watermark) > 1 {
			f.watermark = f.watermark[1:]
		}
	case strings.HasPrefix(query, "SELECT event_id FROM exposures WHERE"):
		ids := idsIn.FindStringSubmatch(query)[1]
		for _, r := range f.rows {
			if r.table != "dead_letters" && strings.Contains(ids, r.id) {
				fmt.Fprintln(w, r.id)
			}
		}
	case strings.HasPrefix(query, "ALTER TABLE"):
		f.merges++
	case strings.HasPrefix(query, "SELECT count(), countIf(path"):
		fmt.Fprint(w, "100\t10\t2000\t5000\t9000\n")
	case strings.HasPrefix(query, "SELECT broken"):
		fmt.Fprint(w, "1\t2\nCode: 159. DB::Exception: Timeout\n")
	default:
		f.t.Errorf("a query that nobody answers: %s", query)
		http.Error(w, "what?", http.StatusBadRequest)
	}
}

func (f *fakeClickHouse) exposures(w http.ResponseWriter, query string) {
	want := func(string) bool { return false }
	if m := isExperiment.FindStringSubmatch(query); m != nil {
		want = func(e string) bool { return e == m[1] }
	} else if m := notIn.FindStringSubmatch(query); m != nil {
		want = func(e string) bool { return !strings.Contains(m[1], "'"+e+"'") }
	}
	for _, r := range f.final("exposures") {
		if want(r.experiment) {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.id, r.experiment, r.variant, r.unit)
		}
	}
}

// final is a table's rows as FINAL shows them.
func (f *fakeClickHouse) final(table string) (out []fakeRow) {
	seen := map[[3]string]bool{}
	for _, r := range f.rows {
		key := [3]string{r.id, r.experiment, r.unit}
		if r.table == table && !seen[key] {
			seen[key] = true
			out = append(out, r)
		}
	}
	return out
}

func (f *fakeClickHouse) twice(w http.ResponseWriter, table string) {
	n := map[[2]int]int{}
	for _, r := range f.rows {
		if r.table == table {
			n[[2]int{r.offset, r.index}]++
		}
	}
	for at, count := range n {
		if count > 1 {
			fmt.Fprintf(w, "%d\t%d\t%d\n", at[0], at[1], count)
		}
	}
}
