package prove

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"
)

// WriteText writes the report for a terminal of 80 columns.
func (r *Report) WriteText(w io.Writer) error {
	p := &printer{w: w}
	p.line("%s", r.headline())
	p.line("")
	for _, row := range r.facts() {
		p.wrap(fmt.Sprintf("  %-14s ", row[0]), row[1])
	}
	p.line("")
	p.table(r.phaseRows())
	p.line("")
	p.table(r.survivedRows())
	if list := r.remarks(); len(list) > 0 {
		p.line("")
		for _, l := range list {
			p.wrap("- ", l)
		}
	}
	return p.err
}

// WriteMarkdown writes the report for people, as a page.
func (r *Report) WriteMarkdown(w io.Writer) error {
	p := &printer{w: w}
	p.line("# Fault run, seed %d\n", r.Seed)
	p.line("%s\n", r.headline())
	p.line("%s\n", r.Began.Format("2006-01-02 15:04 UTC"))
	p.markdown(append([][]string{{"", ""}}, pairs(r.facts())...))
	p.line("\n## Acknowledgements by phase\n")
	p.line("A batch counts in every phase that it was due, waited for or answered in. Times run from when it was due.\n")
	p.markdown(r.phaseRows())
	p.line("\n## Faults\n")
	p.markdown(r.survivedRows())
	if list := r.remarks(); len(list) > 0 {
		p.line("\n## Remarks\n")
		for _, l := range list {
			p.line("- %s", l)
		}
	}
	return p.err
}

// headline says in one sentence how it went.
func (r *Report) headline() string {
	if r.OK {
		return fmt.Sprintf("Kept: %s faults, %s events acknowledged, 0 lost, 0 doubled.", count(r.survivedFaults()), count(r.Verdict.Acknowledged))
	}
	return fmt.Sprintf("NOT KEPT: %s faults, %s events acknowledged, %s lost, %s doubled, %d findings.", count(r.survivedFaults()),
		count(r.Verdict.Acknowledged), count(r.Verdict.Lost), count(r.Verdict.Doubled+r.Verdict.Twice), len(r.Findings()))
}

func (r *Report) facts() [][2]string {
	v := r.Verdict
	watermark := "no such view here: not checked"
	if w := r.Watermark; !w.Missing {
		watermark = fmt.Sprintf("asked %s times, held to %s batches: back %d, ahead %d; at most %s behind",
			count(w.Asked), count(w.Batches), w.Back, w.Ahead, short(w.Longest))
	}
	audit := "none run"
	switch {
	case r.Audit.Found:
		audit = "HAS FINDINGS"
	case r.Audit.Ran:
		audit = "no findings"
	case r.Audit.Error != "":
		audit = "not run: " + r.Audit.Error
	}
	facts := [][2]string{
		{"seed", fmt.Sprintf("%d (%s of traffic, then %s until all was there)", r.Seed, short(r.Duration), short(r.Drained))},
		{"traffic", fmt.Sprintf("%g batches/s of %d events", r.Rate, r.Events)},
		{"on", fmt.Sprintf("%s, %s", r.About.Kafka, r.About.ClickHouse)},
		{"", fmt.Sprintf("%d collectors, %d sinks; %s", r.About.Collectors, r.About.Sinks, r.About.Machine)},
		{"acknowledged", count(v.Acknowledged)},
		{"stored", fmt.Sprintf("%s, %s of them dead letters", count(v.Stored), count(v.DeadLetters))},
		{"lost", count(v.Lost)},
		{"doubled", fmt.Sprintf("%s (rows twice on disk: %s)", count(v.Doubled), count(v.Twice))},
		{"never sent", fmt.Sprintf("%s; altered %s", count(v.Phantom), count(v.Altered))},
		{"open", fmt.Sprintf("%s, %s of them stored", count(v.Open), count(v.OpenStored))},
		{"to the rows", fmt.Sprintf("longest %s, p50 %s, p99 %s; %s of %s batches by a spool", short(r.Delay.Longest), short(r.Delay.P50), short(r.Delay.P99), count(r.Delay.Spooled), count(r.Delay.Batches))},
		{"requests", fmt.Sprintf("%s, refused (503) %s, no answer %s, sent again %s", count(r.Requests.Sent), count(r.Requests.Refused), count(r.Requests.Failed), count(r.Requests.Resent))},
		{"watermark", watermark},
		{"audit", audit},
	}
	for _, c := range r.CatchUps {
		facts = append(facts, [2]string{"caught up", fmt.Sprintf("%s after %s, at %.1f times the rate of arrival", short(c.Took), c.Kind, c.TimesArrival)})
	}
	return facts
}

func pairs(in [][2]string) (out [][]string) {
	for _, row := range in {
		out = append(out, []string{row[0], row[1]})
	}
	return out
}

func (r *Report) phaseRows() [][]string {
	rows := [][]string{{"PHASE", "TIME", "BATCHES", "ACK/S", "503", "P50", "P99", "MAX"}}
	for _, p := range r.Phases {
		rate := ""
		if p.Duration >= time.Second && p.Name != phaseQuiet { // quiet has lost its batches at the rims
			rate = fmt.Sprintf("%.0f", float64(p.Batches)/p.Duration.Seconds())
		}
		rows = append(rows, []string{p.Name, short(p.Duration), count(p.Batches), rate, count(p.Refused), short(p.AckP50), short(p.AckP99), short(p.AckMax)})
	}
	return rows
}

func (r *Report) survivedRows() [][]string {
	rows := [][]string{{"FAULT", "SURVIVED", "TIME", ""}}
	for _, k := range r.Survived {
		rows = append(rows, []string{k.Kind, count(k.Times), short(k.Total), strings.Join(k.Notes, "; ")})
	}
	return rows
}

// remarks are findings, and what limits the proof.
func (r *Report) remarks() []string {
	out := r.Findings()
	if len(r.LeftOut) > 0 {
		out = append(out, "left out, for want of what they befall: "+strings.Join(r.LeftOut, ", "))
	}
	for _, k := range r.Survived {
		if k.Failed > 0 {
			out = append(out, fmt.Sprintf("%s could not be done %d times (the JSON report says why)", k.Kind, k.Failed))
		}
	}
	if !r.Settled && r.Verdict.Lost > 0 {
		out = append(out, "rows were still being stored when the wait for them ended")
	}
	if r.Stopped {
		out = append(out, "the traffic was stopped before its time")
	}
	out = append(out, "programs: "+r.About.Programs)
	return append(out, r.About.Notes...)
}

// short writes a duration in three digits or so.
func short(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// count writes a number with commas.
func count[N int | int64 | uint64](n N) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// printer writes lines and keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

// wrap writes a text in lines of 80 columns, all but the first one indented as far
// as the text after its mark.
func (p *printer) wrap(mark, text string) {
	const width = 80
	current := mark
	empty := true
	for word := range strings.FieldsSeq(text) {
		if !empty && utf8.RuneCountInString(current)+1+utf8.RuneCountInString(word) > width {
			p.line("%s", current)
			current, empty = strings.Repeat(" ", len(mark)), true
		}
		if !empty {
			current += " "
		}
		current += word
		empty = false
	}
	p.line("%s", current)
}

// table aligns rows.
func (p *printer) table(rows [][]string) {
	if p.err != nil {
		return
	}
	t := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		if _, p.err = fmt.Fprintln(t, strings.TrimRight(strings.Join(row, "\t"), "\t")); p.err != nil {
			return
		}
	}
	p.err = t.Flush()
}

func (p *printer) markdown(rows [][]string) {
	for i, row := range rows {
		p.line("| %s |", strings.ReplaceAll(strings.Join(row, " | "), "\n", " "))
		if i == 0 {
			p.line("|%s", strings.Repeat("---|", len(row)))
		}
	}
}
