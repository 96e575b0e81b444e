// Package doctor sends one test exposure the way an SDK would, says what that SDK
// makes of the answer, and follows the exposure until it is stored, is a dead
// letter, or does not arrive. It sends once and never again: what an SDK would do
// next is said, not done.
package doctor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Store is where exposures end up, as the doctor needs it.
type Store interface {
	// Check reports whether the tables can be asked: ErrNoTables where there are none.
	// Nothing else is asked where it fails.
	Check(ctx context.Context) error
	// Rows returns the exposures of a unit in an experiment, at most a few, and of
	// those received since.
	Rows(ctx context.Context, experiment, unit string, since time.Time) ([]Row, error)
	// Dead returns dead letters received since whose bytes have text in them, at most a
	// few.
	Dead(ctx context.Context, text string, since time.Time) ([]Dead, error)
	// Holdup says how far the pipeline is.
	Holdup(ctx context.Context) (Holdup, error)
}

// ErrNoTables is returned by Store.Check for a database without Sluice's tables.
var ErrNoTables = errors.New("there are no tables of Sluice")

// Exposure is what is compared: what was sent with what was stored.
type Exposure struct {
	Experiment string     `json:"experiment"`
	Variant    string     `json:"variant"`
	UnitType   string     `json:"unit_type"`
	UnitID     string     `json:"unit_id"`
	Time       *time.Time `json:"time,omitempty"` // nil: none was sent
	Source     string     `json:"source"`
}

// Row is the exposure as it is in the table.
type Row struct {
	Exposure
	Project      string    `json:"project"`
	Rule         string    `json:"rule"`
	Reason       string    `json:"reason"`
	SDK          string    `json:"sdk"`
	BatchID      string    `json:"batch_id"`
	ReceivedAt   time.Time `json:"received_at"`
	StoredAt     time.Time `json:"stored_at,omitzero"` // zero: not known
	TimeAdjusted bool      `json:"time_adjusted"`
	Path         string    `json:"path"` // direct, spool; empty: not known
}

// Dead is the exposure as a dead letter.
type Dead struct {
	Project string `json:"project"`
	Stage   string `json:"stage"`
	Reason  string `json:"reason"`
	Field   string `json:"field"`
	Error   string `json:"error"`
	BatchID string `json:"batch_id"`
}

// Holdup is what delivery_watermark says.
type Holdup struct {
	CompleteUntil time.Time `json:"complete_until"`
	Why           string    `json:"held_why"`
	JudgedAt      time.Time `json:"judged_at,omitzero"` // zero: no sink has ever looked
}

// Options say what to send, and where.
type Options struct {
	SDK  SDK
	URL  string // of the collector, without the SDK's own path
	Key  string // empty: none was given
	Wait time.Duration
	// Store is asked about the exposure.
	Store Store
	// Client sends the request. It must not follow redirects.
	Client *http.Client
	// Progress, if set, is told how much of the wait is over.
	Progress func(done, total time.Duration)
}

const (
	maxAnswer = 64 << 10         // bytes that are read of an answer
	shown     = 300              // bytes of it that are shown
	patience  = 20 * time.Second // for the answer
	asking    = 20 * time.Second // one look at the store may take
	interval  = 500 * time.Millisecond
	// clocks is how far the collector's clock may be off for its rows to be found.
	clocks = time.Hour
)

// Where an exposure may have ended up.
const (
	StateStored   = "stored"
	StateDead     = "dead_letter"
	StateMissing  = "missing"
	StateNotAsked = "not_asked" // there was nothing to look for, or nobody to ask
)

// Report is what was found.
type Report struct {
	SDK     string   `json:"sdk"`
	As      string   `json:"as"`
	Sent    Sent     `json:"sent"`
	Answer  *Said    `json:"answer"` // nil: there was none
	Verdict *Verdict `json:"sdk_does"`
	Arrival Arrival  `json:"arrival"`
	// Problems are what is wrong; empty: it arrived as it was sent.
	Problems []Problem `json:"problems"`
	// Notes are worth knowing, and nothing wrong.
	Notes []string `json:"notes"`
	// Unasked is set where a question got no answer at all: the collector's, or
	// ClickHouse's. Then it is not known whether the exposure arrives.
	Unasked bool `json:"unasked"`
}

// OK reports whether the exposure arrived as it was sent.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

// Sent is the request.
type Sent struct {
	Exposure
	URL    string    `json:"url"` // the key in it is not shown
	KeyIn  string    `json:"key_in"`
	Coding string    `json:"coding"`
	At     time.Time `json:"at"`
}

// Said is the answer, as it is shown.
type Said struct {
	Status  int     `json:"status"`
	Code    string  `json:"code,omitempty"`
	Body    string  `json:"body"`
	Durable string  `json:"durable,omitempty"` // kafka, spool; only the native API says
	Seconds float64 `json:"seconds"`
}

// Arrival is where the exposure ended up.
type Arrival struct {
	State   string  `json:"state"`
	Row     *Row    `json:"row,omitempty"`
	Dead    []Dead  `json:"dead_letters,omitempty"`
	Seconds float64 `json:"seconds,omitempty"` // from sending to finding it, or how long was waited
	Holdup  *Holdup `json:"holdup,omitempty"`
}

// Problem is what is wrong and what to do about it.
type Problem struct {
	What string `json:"what"`
	Do   string `json:"do"`
}

// Run sends the exposure and follows it. It returns an error only where ctx ended
// or the request could not be made; everything else is in the report.
func Run(ctx context.Context, o Options) (*Report, error) {
	now := time.Now()
	p := Probe{Unit: "doctor-" + strings.ToLower(rand.Text()[:12]), ID: uuid.NewString(), Time: now.Truncate(time.Millisecond), Key: o.Key}
	c := o.SDK.call(p)
	sending, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := c.request(sending, o.URL)
	if err != nil {
		return nil, err
	}
	r := &Report{SDK: o.SDK.Name, As: o.SDK.As, Problems: []Problem{}, Notes: []string{}, Arrival: Arrival{State: StateNotAsked}}
	r.Sent = Sent{Exposure: o.SDK.Expect(p), URL: masked(req.URL.String(), p), KeyIn: o.SDK.KeyIn, Coding: c.coding, At: now.UTC()}

	// Before anything is sent: nothing is waited for that cannot be seen.
	away := check(ctx, o.Store)
	answer, err := send(o.Client, req)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		r.Unasked = true
		r.problem(unreachable(req.URL, err))
		return r, nil
	}
	v := o.SDK.judge(answer)
	r.Verdict = &v
	r.Answer = &Said{Status: answer.Status, Body: text(answer.Body), Seconds: seconds(time.Since(now))}
	answer.member("durable", &r.Answer.Durable)
	if !answer.ok() {
		r.Answer.Code, _ = answer.refusal()
		r.problem(refused(o.SDK, req.URL, answer, p))
	} else if v.Does != Done {
		r.problem(Problem{
			fmt.Sprintf("the SDK does not take this answer for success (%s)", v.Why),
			"compare the answer with what " + o.SDK.Page + " has. If it is another, something between the SDK and the collector has changed it",
		})
	}
	// What was refused is nowhere, but for a batch all of which was rejected.
	if !answer.ok() && answer.Status != http.StatusUnprocessableEntity {
		return r, nil
	}
	if away != nil {
		r.Unasked = true
		r.problem(silent(away))
		return r, nil
	}
	if err := follow(ctx, o, r, p, now); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Report) problem(p Problem) { r.Problems = append(r.Problems, p) }

func check(ctx context.Context, s Store) error {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	return s.Check(ctx)
}

func send(client *http.Client, req *http.Request) (*Answer, error) {
	resp, err := client.Do(req)
	if err != nil {
		// The URL in the error may have the key in it.
		var where *url.Error
		if errors.As(err, &where) {
			err = where.Err
		}
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return &Answer{Status: resp.StatusCode, Header: resp.Header, Body: body}, nil
}

// text is an answer's body, as far as it is text and short.
func text(body []byte) string {
	s := strings.TrimSpace(string(body))
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return fmt.Sprintf("(%d bytes that are no text)", len(body))
	}
	if len(s) > shown {
		return strings.ToValidUTF8(s[:shown], "") + "…"
	}
	return s
}

func seconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }

// follow looks for the exposure until it is found or the wait is over.
func follow(ctx context.Context, o Options, r *Report, p Probe, sent time.Time) error {
	since := sent.Add(-clocks)
	over := time.Now().Add(o.Wait)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var found []Row
	for {
		rows, dead, err := look(ctx, o.Store, p.Unit, since)
		if found == nil {
			r.Arrival.Seconds = seconds(time.Since(sent))
		}
		switch {
		case err != nil:
		// The way it came is written down after the rows: one more look for it.
		case len(rows) > 0 && (rows[0].Path != "" || found != nil):
			r.arrived(o.SDK, rows, sent)
			return nil
		case len(rows) > 0:
			found = rows
		case len(dead) > 0:
			r.Arrival.State, r.Arrival.Dead = StateDead, dead
			r.problem(buried(o.SDK, dead[0]))
			return nil
		}
		if o.Progress != nil {
			o.Progress(time.Since(sent), o.Wait)
		}
		if time.Now().Before(over) {
			select {
			case <-tick.C:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case found != nil:
			r.arrived(o.SDK, found, sent)
		case err != nil:
			r.Unasked = true
			r.problem(silent(err))
		default:
			r.Arrival.State = StateMissing
			r.missing(ctx, o, sent)
		}
		return nil
	}
}

// look asks once. A question that was begun within the wait is finished: one that was
// cut off would tell nothing.
func look(ctx context.Context, s Store, unit string, since time.Time) (rows []Row, dead []Dead, err error) {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	if rows, err = s.Rows(ctx, Experiment, unit, since); err == nil && len(rows) == 0 {
		dead, err = s.Dead(ctx, unit, since)
	}
	return rows, dead, err
}

// arrived holds the row against what was sent.
func (r *Report) arrived(sdk SDK, rows []Row, sent time.Time) {
	row := rows[0]
	r.Arrival.State, r.Arrival.Row = StateStored, &row
	if len(rows) > 1 {
		r.problem(Problem{fmt.Sprintf("%d rows are stored of one exposure that was sent once", len(rows)),
			"see whether something between here and the collector sends requests twice; sluice receipt " + row.BatchID + " tells what became of the batch"})
	}
	want := r.Sent.Exposure
	for _, f := range [][3]string{
		{"experiment", want.Experiment, row.Experiment}, {"variant", want.Variant, row.Variant},
		{"unit_type", want.UnitType, row.UnitType}, {"unit_id", want.UnitID, row.UnitID}, {"source", want.Source, row.Source},
	} {
		if f[1] != f[2] {
			r.problem(Problem{fmt.Sprintf("%s arrived as %q, and was to be %q", f[0], f[2], f[1]),
				"this tool and the collector may be of different versions; " + sdk.Page + " has what arrives as what"})
		}
	}
	// A skew of 5 s and more between the clocks is corrected, if the SDK tells its own.
	skew := row.ReceivedAt.Sub(sent)
	far := skew.Abs() > 5*time.Second
	if far {
		r.Notes = append(r.Notes, fmt.Sprintf("it was received %v after it was sent, by the clocks of the collector and of this machine: one of them is off", skew.Round(time.Millisecond)))
	}
	switch {
	case want.Time == nil:
		r.Notes = append(r.Notes, "the SDK sends no time: the time of receipt is stored")
	case row.TimeAdjusted:
		r.problem(Problem{"the time was moved into the limits that the collector has for times", "set the clocks of this machine and the collector"})
	case !row.Time.Equal(*want.Time) && !far:
		r.problem(Problem{fmt.Sprintf("the time arrived as %s, and was to be %s", row.Time.Format(time.RFC3339Nano), want.Time.Format(time.RFC3339Nano)),
			"this tool and the collector may be of different versions; " + sdk.Page + " has what arrives as what"})
	}
	if row.Path == "spool" {
		r.Notes = append(r.Notes, "it came through the collector's spool: Kafka was slow or away when it was received")
	}
}
