package ingest

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"sluice/internal/protocol"
	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// Who is told to come back later comes back at some moment of this range, so that
// those who were refused together do not return together.
const (
	soonest = time.Second
	latest  = 5 * time.Second
)

func comeBack() time.Duration { return soonest + rand.N(latest-soonest) }

// serve is the way of one request to an endpoint: from its headers to an answer.
// Where several protocols share the path, the body tells which of them it is for;
// until then the first one speaks.
func (c *Collector) serve(w *answerWriter, r *http.Request, eps []*protocol.Endpoint) {
	in := &intake{start: time.Now(), ep: eps[0], request: r}
	if p := c.admit(r, eps, in); p != nil {
		c.refuse(w, r, in.ep.Refuse, p)
		return
	}
	in.held = c.inflight.enter(in.grant.ID)
	if in.held == nil {
		c.refuse(w, r, in.ep.Refuse, overloaded())
		return
	}
	// What is held covers the answer too, which may list thousands of events.
	defer in.held.close()

	res, p := c.take(w, r, eps, in)
	w.name = in.ep.Name
	if p != nil {
		c.refuse(w, r, in.ep.Refuse, p)
		return
	}
	c.write(w, in.ep.Accept(res))
}

// unidentified is whose account a request is on before its body, which has the
// key, was read. No key has this name: names are text.
const unidentified = "\x00"

// admit decides what can be decided without the body: who sends, whether they
// may, and whether there is somewhere to put it.
func (c *Collector) admit(r *http.Request, eps []*protocol.Endpoint, in *intake) *protocol.Problem {
	key := in.ep.Key(r)
	if key == "" && slices.ContainsFunc(eps, func(ep *protocol.Endpoint) bool { return ep.BodyKey != nil }) {
		in.grant.ID = unidentified
	} else if p := c.authorize(key, in); p != nil {
		return p
	} else if len(eps) == 1 { // else the body says which scope it takes
		if p := allowed(in); p != nil {
			return p
		}
	}
	if err := c.accepting(); err != nil {
		return notDurable(err)
	}
	return nil
}

// identified finishes what admit could not, now that the body is there: which of
// the protocols it is for, and who sends.
func (c *Collector) identified(eps []*protocol.Endpoint, req *protocol.Request, in *intake) *protocol.Problem {
	for _, ep := range eps[1:] {
		if ep.Takes(req) {
			in.ep = ep
			break
		}
	}
	if in.grant.ID == unidentified {
		key := ""
		if in.ep != eps[0] { // whose way to send a key was tried
			key = in.ep.Key(in.request)
		}
		if key == "" && in.ep.BodyKey != nil {
			key = in.ep.BodyKey(req)
		}
		if p := c.authorize(key, in); p != nil {
			return p
		}
		if !in.held.move(in.grant.ID) {
			return overloaded()
		}
	}
	return allowed(in)
}

// allowed reports whether the key may use the endpoint.
func allowed(in *intake) *protocol.Problem {
	if in.ep.Scope != "" && len(in.grant.Scopes) > 0 && !slices.Contains(in.grant.Scopes, in.ep.Scope) {
		return protocol.NewProblem(protocol.CodeScopeMissing, "the write key may not use this endpoint")
	}
	return nil
}

// authorize finds out what a key allows.
func (c *Collector) authorize(key string, in *intake) *protocol.Problem {
	g, err := c.keys.Lookup(key)
	switch {
	case errors.Is(err, ErrUnknownKey) && key == "":
		return protocol.NewProblem(protocol.CodeNoKey, "the request has no write key")
	case errors.Is(err, ErrUnknownKey):
		return protocol.NewProblem(protocol.CodeUnknownKey, "no such write key")
	case err != nil:
		return protocol.NewProblem(protocol.CodeInternal, "the write key could not be checked").Because(err)
	case g.Disabled:
		return protocol.NewProblem(protocol.CodeKeyDisabled, "the write key is disabled")
	}
	in.grant = g
	in.limiter = c.rates.limiter(&in.grant)
	if wait := spent(in.limiter); wait > 0 {
		return overRate(wait)
	}
	return nil
}

func overloaded() *protocol.Problem {
	return protocol.NewProblem(protocol.CodeOverloaded, "the collector has too much in hand").After(comeBack())
}

func overRate(wait time.Duration) *protocol.Problem {
	return protocol.NewProblem(protocol.CodeRateLimited, "the write key is over its rate").After(wait + rand.N(soonest))
}

func notDurable(err error) *protocol.Problem {
	return protocol.NewProblem(protocol.CodeNotDurable, "there is nowhere durable to put the batch").
		After(retry.After(err) + comeBack()).Because(err)
}

// intake is one request on its way to being a published batch.
type intake struct {
	ep      *protocol.Endpoint
	request *http.Request // its body excepted
	grant   Grant
	limiter *rate.Limiter // nil: no rate
	held    *holding
	start   time.Time
	trace   string

	// What prepare makes of it.
	records []batch.Record
	one     [1]batch.Record // memory of records, where one is enough
	stamp   batch.Stamp
	given   int               // numbers from the stamp's on that nobody else is going to settle
	size    int64             // of the records, charged to held
	result  protocol.Result   // what there is to say once they are durable
	refusal *protocol.Problem // instead, where every event was rejected
	dropped int

	// Its place among the recent batches. Without an attempt, no copy of the batch
	// could be recognised, or there is nothing to publish.
	attempt  *attempt
	done     <-chan struct{} // another's attempt, in flight until it is closed; nil: it is over
	first    bool            // the attempt is this request's
	finished bool
	digest   batch.Digest
}

// finish shares the outcome with the copies that wait for it.
func (c *Collector) finish(in *intake, o outcome) {
	if in.first && !in.finished {
		in.finished = true
		// A copy's answer is about its own body, and the memory of this one is not counted.
		o.result.Reply, o.result.BodyBytes = nil, 0
		c.recent.finish(in.attempt, o)
	}
}

// fail shares a problem that came before the batch was published, and returns it.
func (c *Collector) fail(in *intake, p *protocol.Problem) *protocol.Problem {
	c.finish(in, outcome{failed: true, problem: p})
	return p
}

// end sees to it that, whatever happened, copies that wait are told, and that the
// numbers that were given do not stay in flight: an encoder may panic.
func (c *Collector) end(in *intake) {
	c.withdraw(in)
	if in.first && !in.finished {
		c.finish(in, outcome{failed: true, problem: protocol.NewProblem(protocol.CodeInternal, "a fault in the collector")})
	}
}

// withdraw settles the numbers that were given and did not get to the publisher.
func (c *Collector) withdraw(in *intake) {
	if in.given > 0 {
		c.ledger.Withdraw(in.stamp, in.given)
	}
}

// take makes the request's batch durable and returns what to answer.
func (c *Collector) take(w *answerWriter, r *http.Request, eps []*protocol.Endpoint, in *intake) (protocol.Result, *protocol.Problem) {
	mediaType, p := mediaType(r.Header["Content-Type"], in.ep)
	if p != nil {
		return protocol.Result{}, p
	}
	enc, ok := codingOf(r.Header["Content-Encoding"])
	if !ok {
		return protocol.Result{}, protocol.NewProblem(protocol.CodeUnsupportedCoding, "want gzip, zstd, br, deflate or identity, and one of them")
	}
	wire, err := c.read(w, r, in.held)
	if err != nil {
		return protocol.Result{}, unread(err)
	}
	defer wire.free()

	defer c.end(in)
	in.trace = traceparent(r)
	req := &protocol.Request{Header: r.Header, Path: r.URL.Path, MediaType: mediaType, MaxEvents: c.limits.MaxEvents}
	if r.URL.RawQuery != "" {
		req.Query = r.URL.Query()
	}
	if p := c.prepare(eps, req, enc, wire, in); p != nil {
		return protocol.Result{}, p
	}
	if in.attempt != nil && !in.first {
		return c.share(in)
	}
	return c.publish(in)
}

// unread is what to refuse a request for whose body could not be read.
func unread(err error) *protocol.Problem {
	switch {
	case errors.Is(err, errTooLarge):
		return protocol.NewProblem(protocol.CodeBodyTooLarge, "the body is too large")
	case errors.Is(err, errOverloaded):
		return overloaded()
	case tooSlow(err):
		return protocol.NewProblem(protocol.CodeBodyTimeout, "the body came too slowly").Because(err)
	}
	return protocol.NewProblem(protocol.CodeIncompleteBody, "the body did not arrive whole").Because(err)
}

// publish makes the records durable. It goes on when the client hangs up: copies
// of the batch may be waiting for the outcome, and the ledger counts on one.
func (c *Collector) publish(in *intake) (protocol.Result, *protocol.Problem) {
	if len(in.records) == 0 { // all of it was noise
		c.metrics.count(eventsDropped, in.dropped)
		return in.result, nil
	}
	in.given = 0 // the publisher settles them from here on
	durable, err := c.publisher.Publish(c.time.left(), in.records)
	// From here on the records are the publisher's, who bounds what it keeps.
	in.records = nil
	in.held.give(in.size)

	if err != nil {
		c.metrics.count(eventsNotDurable, in.result.Accepted)
		p := notDurable(err)
		if in.refusal != nil { // keeping rejected events is best effort
			p = in.refusal
		}
		// Nothing is claimed: a crash here, or an answer that is lost, leaves the
		// client to send the same batch again under the same identity.
		c.finish(in, outcome{failed: true, problem: p})
		return protocol.Result{}, p
	}
	c.metrics.count(eventsDropped, in.dropped)
	if in.refusal != nil {
		c.metrics.count(eventsRejected, len(in.refusal.Rejected))
		c.finish(in, outcome{problem: in.refusal})
		return protocol.Result{}, in.refusal
	}
	in.result.Durable = durable
	c.metrics.acknowledged(durable, time.Since(in.start))
	c.metrics.count(eventsAccepted, in.result.Accepted)
	c.metrics.count(eventsRejected, len(in.result.Rejected))
	c.finish(in, outcome{result: in.result})
	return in.result, nil
}

// share waits for the outcome of another request's attempt at the same batch.
// Nothing but the answer's size is held meanwhile.
func (c *Collector) share(in *intake) (protocol.Result, *protocol.Problem) {
	if in.done != nil {
		// The first one ends by itself, soon after its time for publishing. It is
		// given a little longer; past that something is broken.
		guard := time.NewTimer(c.limits.Publish + latest)
		defer guard.Stop()
		select {
		case <-in.done:
		case <-guard.C:
			return protocol.Result{}, notDurable(errors.New("the first copy of the batch does not end"))
		}
	}
	o := &in.attempt.outcome
	if in.attempt.digest != in.digest {
		if o.failed { // its problem is about other events; its key is free again
			c.metrics.count(eventsNotDurable, in.result.Accepted)
			return protocol.Result{}, notDurable(errors.New("another batch under the same key failed meanwhile"))
		}
		c.metrics.count(eventsConflict, in.result.Accepted)
		return protocol.Result{}, protocol.NewProblem(protocol.CodeKeyReused, "the idempotency key was used before with other events")
	}
	res, p := o.answer()
	res.Reply, res.BodyBytes = in.result.Reply, in.result.BodyBytes
	switch {
	case p == nil:
		c.metrics.count(eventsDuplicate, res.Accepted)
	case o.failed:
		c.metrics.count(eventsNotDurable, in.result.Accepted)
		if p.RetryAfter > 0 {
			p.RetryAfter = max(p.RetryAfter, comeBack())
		}
	}
	var listed int64
	if p != nil {
		listed = answerSize(p.Rejected)
	} else {
		listed = answerSize(res.Rejected)
	}
	if err := in.held.take(listed); err != nil {
		return protocol.Result{}, overloaded()
	}
	return res, p
}

// mediaType returns the request's media type, or what to refuse it for. None is
// always accepted: some SDKs name none.
func mediaType(headers []string, ep *protocol.Endpoint) (string, *protocol.Problem) {
	if len(headers) == 0 {
		return "", nil
	}
	t, _, _ := strings.Cut(headers[0], ";")
	t = strings.ToLower(strings.TrimSpace(t))
	if t == "" || len(headers) == 1 && (len(ep.MediaTypes) == 0 || slices.Contains(ep.MediaTypes, t)) {
		return t, nil
	}
	return "", protocol.NewProblem(protocol.CodeUnsupportedType, "want "+strings.Join(ep.MediaTypes, ", "))
}

// traceparent returns the request's trace context (W3C Trace Context, version 00)
// where it is well formed. A tracing middleware in front puts its own there.
func traceparent(r *http.Request) string {
	v := r.Header.Get("Traceparent")
	if len(v) != len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") || v[:3] != "00-" || v[35] != '-' || v[52] != '-' {
		return ""
	}
	for i := 3; i < len(v); i++ {
		if c := v[i]; i != 35 && i != 52 && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return ""
		}
	}
	return v
}
