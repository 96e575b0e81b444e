package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Result is one figure: the median of its runs, which are in the order they were
// made in.
type Result struct {
	Name  string    `json:"name"`
	Value float64   `json:"value"`
	Unit  string    `json:"unit"`
	Runs  []float64 `json:"runs"`
}

// Results gather the figures of several rounds, in the order they were first seen
// in. The zero value is ready; it is not safe for concurrent use.
type Results struct {
	list []*Result
}

// Add appends a run to a figure.
func (r *Results) Add(name, unit string, run float64) {
	f := r.find(name)
	if f == nil {
		f = &Result{Name: name, Unit: unit}
		r.list = append(r.list, f)
	}
	f.Runs = append(f.Runs, run)
	f.Value = Median(f.Runs)
}

func (r *Results) find(name string) *Result {
	for _, f := range r.list {
		if f.Name == name {
			return f
		}
	}
	return nil
}

// Last is the newest run of a figure.
func (r *Results) Last(name string) (float64, bool) {
	f := r.find(name)
	if f == nil {
		return 0, false
	}
	return f.Runs[len(f.Runs)-1], true
}

// Ratio adds the newest run of one figure divided by the sum of those of others, which
// were made in the same round. It does nothing where one of them is missing.
func (r *Results) Ratio(name, of string, by ...string) {
	above, ok := r.Last(of)
	sum := 0.0
	for _, b := range by {
		v, there := r.Last(b)
		ok = ok && there
		sum += v
	}
	if ok && sum > 0 {
		r.Add(name, "ratio", above/sum)
	}
}

// List are the figures, rounded to four digits that count.
func (r *Results) List() []Result {
	out := make([]Result, len(r.list))
	for i, f := range r.list {
		out[i] = Result{Name: f.Name, Value: round(f.Value), Unit: f.Unit, Runs: make([]float64, len(f.Runs))}
		for j, v := range f.Runs {
			out[i].Runs[j] = round(v)
		}
	}
	return out
}

func round(v float64) float64 {
	r, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 4, 64), 64)
	if err != nil {
		return v
	}
	return r
}

// Median is the middle of some values, or the mean of the two in the middle; 0 of
// none.
func Median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	switch {
	case n == 0:
		return 0
	case n%2 == 1:
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

// WriteFile writes the figures as a JSON array, and makes the file's folder.
func WriteFile(path string, list []Result) error {
	text, err := json.MarshalIndent(list, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, append(text, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("write the results to %s: %w", path, err)
	}
	return nil
}

// WriteGoBench writes the figures in the format of `go test -bench`, a line a run,
// which benchstat compares: https://go.dev/design/14313-benchmark-format.
func WriteGoBench(w io.Writer, list []Result) error {
	for _, r := range list {
		name := strings.NewReplacer(" ", "-", "/", "_").Replace(r.Name)
		unit := strings.ReplaceAll(r.Unit, " ", "-")
		for _, run := range r.Runs {
			if _, err := fmt.Fprintf(w, "Benchmark%s%s 1 %v %s\n", strings.ToUpper(name[:1]), name[1:], run, unit); err != nil {
				return err
			}
		}
	}
	return nil
}
