package ingest

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"time"
)

const (
	headerTimeout = 5 * time.Second  // for a request's headers to arrive, from their first byte
	idleTimeout   = 60 * time.Second // between two requests of a connection
	// maxHead is what net/http reads of a request before its body, in bytes: the
	// URL and the headers within their own bounds (maxURL, maxHeaders), and as many
	// cookies as a browser may have collected from its site.
	maxHead = 64 << 10
)

// Server serves a Collector on one public address, in HTTP/1.1: HTTP/2 without
// TLS is off, since nothing would bound a body that comes by an upgrade, and TLS
// ends in front of the collector.
type Server struct {
	http      *http.Server
	collector *Collector
}

// NewServer returns a server for the collector. handler is what is called: the
// collector itself where it is nil, or something around it.
func NewServer(c *Collector, handler http.Handler) *Server {
	if handler == nil {
		handler = c
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	l := c.limits
	return &Server{collector: c, http: &http.Server{
		Handler:   handler,
		Protocols: protocols,
		// "OPTIONS *" is for the collector to refuse, as every path it does not know.
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            headerTimeout,
		// Handlers set deadlines of their own; these two hold where none has.
		ReadTimeout:    headerTimeout + l.BodyTimeout,
		WriteTimeout:   headerTimeout + l.BodyTimeout + 2*l.Publish + l.WriteTimeout,
		IdleTimeout:    idleTimeout,
		MaxHeaderBytes: maxHead,
		ErrorLog:       log.New(c.log, "", 0),
		ConnContext:    withConn,
	}}
}

// Serve accepts connections until Shutdown or Close, and then returns nil. Call
// it once.
func (s *Server) Serve(l net.Listener) error {
	bounded := &listener{Listener: l, max: s.collector.limits.MaxConns, collector: s.collector}
	s.http.ConnState = bounded.track
	if err := s.http.Serve(bounded); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// Shutdown stops listening and waits until every request is answered: many SDKs
// do not send again what was received and not answered. When ctx ends first, it
// returns its error, and requests go on; Close ends them.
func (s *Server) Shutdown(ctx context.Context) error {
	s.collector.Drain()
	if err := s.http.Shutdown(ctx); err != nil {
		return fmt.Errorf("wait for requests to be answered: %w", err)
	}
	return nil
}

// Close closes every connection.
func (s *Server) Close() error { return s.http.Close() }
