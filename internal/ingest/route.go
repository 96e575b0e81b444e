package ingest

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"sluice/internal/protocol"
)

const (
	maxURL     = 8 << 10
	maxHeaders = 16 << 10 // cookies not counted: nobody reads them

	typeJSON = "application/json"
)

type handler func(*answerWriter, *http.Request)

// route is what one path takes.
type route struct {
	name    string // label in metrics
	methods map[string]handler
	// endpoints of each method that has any; the first takes what the others do not.
	endpoints map[string][]*protocol.Endpoint
	cors      []string // request headers pages of other origins may send; nil: not for them
	refuse    func(protocol.Problem) protocol.Answer
}

// add has an endpoint take a method of the path, alone or with others. Where it
// cannot, add returns who has it.
func (r *route) add(method string, ep *protocol.Endpoint, serve func(*answerWriter, *http.Request, []*protocol.Endpoint)) (by string) {
	if r.endpoints == nil {
		r.endpoints = map[string][]*protocol.Endpoint{}
	}
	eps := r.endpoints[method]
	if r.methods[method] != nil && eps == nil { // one of the builtin
		return r.name
	}
	switch {
	case ep.Takes != nil:
		eps = append(eps, ep)
	case len(eps) > 0 && eps[0].Takes == nil:
		return eps[0].Name
	default:
		eps = slices.Insert(eps, 0, ep)
	}
	r.endpoints[method] = eps
	r.methods[method] = func(w *answerWriter, req *http.Request) { serve(w, req, eps) }
	return ""
}

// find returns the route of a path: the exact one, or the one of any last segment.
// Two slashes at the start count as one: an SDK whose URL was set with a slash at its
// end sends them, and a 404 stops some SDKs for good.
func (c *Collector) find(path string) *route {
	if strings.HasPrefix(path, "//") {
		path = "/" + strings.TrimLeft(path, "/")
	}
	if rt := c.routes[path]; rt != nil {
		return rt
	}
	if i := strings.LastIndexByte(path, '/'); i >= 0 && i+1 < len(path) {
		if rt := c.wild[path[:i]]; rt != nil {
			return rt
		}
	}
	return nil
}

func (r *route) allow() string {
	ms := make([]string, 0, len(r.methods)+1)
	for m := range r.methods {
		ms = append(ms, m)
	}
	if r.cors != nil {
		ms = append(ms, http.MethodOptions)
	}
	slices.Sort(ms)
	return strings.Join(ms, ", ")
}

// Header values of every answer. Nobody changes them: Header.Set and Add make new ones.
var (
	noSniff = []string{"nosniff"}
	noStore = []string{"no-store"}
	// The media type of nearly every answer.
	jsonType = []string{typeJSON}
)

// ServeHTTP routes a request. Whatever happens below, one answer is written, one
// request is counted, and no panic leaves.
func (c *Collector) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w := &answerWriter{ResponseWriter: rw, unread: r.ContentLength != 0, last: &c.draining}
	w.name = "other"
	refuse := protocol.Refuse
	c.metrics.requestsInFlight.Inc()
	defer func() {
		if v := recover(); v != nil {
			c.log.fault(w.name, fmt.Sprint(v))
			c.metrics.refuse(w.name, protocol.CodeInternal)
			if w.status == 0 {
				c.write(w, protocol.Refuse(*protocol.NewProblem(protocol.CodeInternal, "a fault in the collector")))
			}
		}
		c.metrics.requestsInFlight.Dec()
		c.metrics.answered(w.name, w.code())
	}()
	h := w.Header()
	h["X-Content-Type-Options"], h["Cache-Control"] = noSniff, noStore

	rt := c.find(r.URL.Path)
	if rt != nil {
		w.name = rt.name
		if rt.refuse != nil {
			refuse = rt.refuse
		}
		if origin := r.Header.Get("Origin"); rt.cors != nil && origin != "" {
			// Nothing is ever read from a page's cookies, so any origin may ask. It is
			// named, and credentials are allowed, because beacons always carry them: a *
			// would have the browser refuse their preflight.
			h := w.Header()
			h.Set("Access-Control-Allow-Origin", origin)
			h.Set("Access-Control-Allow-Credentials", "true")
			h.Set("Access-Control-Expose-Headers", "Date, Retry-After") // LaunchDarkly's tells the time by Date
			h.Set("Vary", "Origin")
		}
	}
	if cn := connOf(r); cn != nil {
		defer cn.nextRequest()
		if why := cn.ambiguous(r); why != "" {
			w.unread = true // also where net/http sees no body: the connection must not be used again
			c.refuse(w, r, refuse, protocol.NewProblem(protocol.CodeBadRequest, why))
			return
		}
	}
	if p := tooLong(r); p != nil {
		c.refuse(w, r, refuse, p)
		return
	}
	if rt == nil {
		c.refuse(w, r, refuse, protocol.NewProblem(protocol.CodeNotFound, "no such path"))
		return
	}
	if h := rt.methods[r.Method]; h != nil {
		h(w, r)
		return
	}
	w.Header().Set("Allow", rt.allow())
	if r.Method == http.MethodOptions && rt.cors != nil {
		preflight(w, r, rt)
		return
	}
	c.refuse(w, r, refuse, protocol.NewProblem(protocol.CodeMethodNotAllowed, "this path takes "+rt.allow()))
}

// preflight answers a browser that asks what a page of another origin may send:
// the headers of the SDKs, and those it names, which another version of an SDK may
// have come up with. A header nobody reads does no harm. The browser remembers the
// answer for as long as it remembers any (Chromium: two hours).
func preflight(w http.ResponseWriter, r *http.Request, rt *route) {
	h := w.Header()
	h.Set("Access-Control-Allow-Methods", rt.allow())
	h.Set("Access-Control-Allow-Headers", strings.Join(append(asked(r.Header.Get("Access-Control-Request-Headers"), rt.cors), rt.cors...), ", "))
	h.Set("Access-Control-Max-Age", "86400")
	h.Set("Vary", "Origin, Access-Control-Request-Headers")
	w.WriteHeader(http.StatusNoContent)
}

// asked returns the names of headers in a list that are not in known, a bounded
// number of them.
func asked(list string, known []string) []string {
	const (
		most    = 32
		letters = "abcdefghijklmnopqrstuvwxyz0123456789-_" // what names of headers have in practice
	)
	var out []string
	for name := range strings.SplitSeq(list, ",") {
		name = strings.ToLower(strings.Trim(name, " \t"))
		if name != "" && strings.Trim(name, letters) == "" && !slices.Contains(known, name) && len(out) < most {
			out = append(out, name)
		}
	}
	return out
}

// tooLong checks the size of the URL and of the headers.
func tooLong(r *http.Request) *protocol.Problem {
	if len(r.RequestURI) > maxURL {
		return protocol.NewProblem(protocol.CodeURLTooLong, "the URL is over 8 KiB")
	}
	n := 0
	for k, vs := range r.Header {
		if k == "Cookie" {
			continue
		}
		for _, v := range vs {
			n += len(k) + len(v) + len(": \r\n")
		}
	}
	if n > maxHeaders {
		return protocol.NewProblem(protocol.CodeHeadersTooLarge, "the headers are over 16 KiB")
	}
	return nil
}

// refuse answers with a problem, and logs and counts it.
func (c *Collector) refuse(w *answerWriter, r *http.Request, shape func(protocol.Problem) protocol.Answer, p *protocol.Problem) {
	c.metrics.refuse(w.name, p.Code)
	c.log.refused(w.name, r.RemoteAddr, r.UserAgent(), p)
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="sluice"`)
	}
	c.write(w, shape(*p))
}

// refusedUnread logs and counts a request that never became one.
func (c *Collector) refusedUnread(remote string, p *protocol.Problem) {
	c.metrics.refuse("other", p.Code)
	c.metrics.requests.WithLabelValues("other", strconv.Itoa(p.Status)).Inc()
	c.log.refused("other", remote, "", p)
}

// write sends an answer. A client that does not take it loses its connection.
func (c *Collector) write(w *answerWriter, a protocol.Answer) {
	// Not every ResponseWriter has deadlines (tests); the server's own holds then.
	setDeadline(w.ResponseWriter, deadliner.SetWriteDeadline, time.Now().Add(c.limits.WriteTimeout))
	h := w.Header()
	for k, v := range a.Header {
		h.Set(k, v)
	}
	if a.ContentType != "" {
		if a.ContentType == typeJSON {
			h["Content-Type"] = jsonType
		} else {
			h.Set("Content-Type", a.ContentType)
		}
	}
	h["Content-Length"] = []string{strconv.Itoa(len(a.Body))}
	w.WriteHeader(a.Status)
	// The client may be gone; the batch is as safe as the answer says all the same.
	_, _ = w.Write(a.Body)
}

// linger is how long the rest of a body is read, and thrown away, after the
// request was refused: a connection closed over unread bytes is reset, which can
// take the answer from a client that is still sending.
const linger = time.Second

// answerWriter remembers the status for the metrics, and closes connections that
// cannot, or should not, be used again.
type answerWriter struct {
	http.ResponseWriter
	name   string // of the endpoint: a label in metrics
	status int
	unread bool         // there is a body, and it was not read to its end
	last   *atomic.Bool // this is the last answer on any connection
}

func (w *answerWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		if w.unread || w.last.Load() {
			w.Header().Set("Connection", "close")
		}
		if w.unread {
			// Not every ResponseWriter has deadlines (tests).
			setDeadline(w.ResponseWriter, deadliner.SetReadDeadline, time.Now().Add(linger))
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *answerWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *answerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// deadliner is what net/http's own ResponseWriter is too.
type deadliner interface {
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// setDeadline sets a deadline of a request's connection. Not every ResponseWriter has
// any (in tests); then what there is to read or write is there anyway.
func setDeadline(w http.ResponseWriter, set func(deadliner, time.Time) error, t time.Time) {
	d, ok := w.(deadliner)
	if !ok { // something around it
		d = http.NewResponseController(w)
	}
	_ = set(d, t)
}

// code is the label of the status. Protocols choose among a few constants, so
// the label is bounded; 0 is a client that was gone before there was an answer.
func (w *answerWriter) code() string {
	if w.status < 200 || w.status > 599 {
		return "none"
	}
	if w.status == http.StatusAccepted {
		return codeAccepted
	}
	return strconv.Itoa(w.status)
}

func openAPI(w *answerWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Access-Control-Allow-Origin", "*")
	_, _ = w.Write(openAPIDocument)
}

// healthz says that the process serves requests, and nothing about what is
// behind it: that is readyz.
func healthz(w *answerWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n"))
}
