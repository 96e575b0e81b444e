// Package kafka is the only importer of the Kafka client. It writes batches to
// the log, reads them back from exactly the offset asked for, takes part in the
// consumer group, and sets up the topics; errors leave it classified.
//
// Where kafka-go's own messages do not carry enough (topic ids, the broker's
// append time, the bounds of a batch), requests are built and read with the
// protocol's generated messages (franz-go's kmsg) and travel over kafka-go's
// connections: see wire.go.
package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"sluice/pkg/retry"
)

const (
	dialTimeout = 5 * time.Second
	// metadataAge is the longest a moved partition leader goes unnoticed; the
	// client asks again after a random share of it.
	metadataAge = 2 * time.Second
	// callTimeout bounds every call whose context has no earlier deadline.
	callTimeout = 30 * time.Second
)

// Config says which Kafka. Printing it leaves the password out.
type Config struct {
	Brokers       []string // host:port of some brokers; the others are found through them
	TLS           bool     // with the system's root certificates
	SASLMechanism string   // "", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"
	SASLUsername  string
	SASLPassword  string `json:"-"`
	ClientID      string // names this process in the brokers' logs and quotas; default "sluice"
}

// Format implements fmt.Formatter for every verb.
func (c Config) Format(f fmt.State, _ rune) { fmt.Fprint(f, c.text()) }

// LogValue implements slog.LogValuer.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.text()) }

func (c Config) text() string {
	s := strings.Join(c.Brokers, ",")
	if c.TLS {
		s += " tls"
	}
	if c.SASLMechanism != "" {
		s += fmt.Sprintf(" %s user=%q", c.SASLMechanism, c.SASLUsername)
	}
	return s
}

// check names the setting that cannot be right.
func (c *Config) check() error {
	if len(c.Brokers) == 0 {
		return errors.New("SLUICE_KAFKA_BROKERS: want host:port[,host:port…], got nothing")
	}
	for _, b := range c.Brokers {
		host, port, err := net.SplitHostPort(b)
		if n, perr := strconv.Atoi(port); err != nil || host == "" || perr != nil || n < 1 || n > 65535 {
			return fmt.Errorf("SLUICE_KAFKA_BROKERS %q: want host:port[,host:port…]", b)
		}
	}
	if c.SASLMechanism == "" {
		if c.SASLUsername != "" || c.SASLPassword != "" {
			return errors.New("SLUICE_KAFKA_SASL_MECHANISM: want PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512 where there is a user or a password")
		}
		return nil
	}
	if c.SASLUsername == "" || c.SASLPassword == "" {
		return fmt.Errorf("SLUICE_KAFKA_SASL_MECHANISM %s: SLUICE_KAFKA_SASL_USERNAME and SLUICE_KAFKA_SASL_PASSWORD are needed", c.SASLMechanism)
	}
	return nil
}

func (c *Config) mechanism() (sasl.Mechanism, error) {
	var algorithm scram.Algorithm
	switch c.SASLMechanism {
	case "":
		return nil, nil
	case "PLAIN":
		return plain.Mechanism{Username: c.SASLUsername, Password: c.SASLPassword}, nil
	case "SCRAM-SHA-256":
		algorithm = scram.SHA256
	case "SCRAM-SHA-512":
		algorithm = scram.SHA512
	default:
		return nil, fmt.Errorf("SLUICE_KAFKA_SASL_MECHANISM %q: want PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", c.SASLMechanism)
	}
	m, err := scram.Mechanism(algorithm, c.SASLUsername, c.SASLPassword)
	if err != nil {
		// The library's error may quote what it could not prepare.
		return nil, fmt.Errorf("SLUICE_KAFKA_SASL_USERNAME or _PASSWORD cannot be used with %s", c.SASLMechanism)
	}
	return m, nil
}

// Client is a connection to one Kafka cluster. Safe for concurrent use.
type Client struct {
	cfg       Config
	addr      net.Addr
	mechanism sasl.Mechanism
	tls       *tls.Config
	base      context.Context // ends with Close
	cancel    context.CancelFunc
	conns     connSet
	cluster   *kafkago.Client // knows the brokers, and of no topic

	mu         sync.Mutex
	transports map[*kafkago.Transport]bool
}

// Open checks the configuration; it neither connects nor waits for Kafka to be
// there. Close gives back everything that is made through the Client.
func Open(cfg Config) (*Client, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	mechanism, err := cfg.mechanism()
	if err != nil {
		return nil, err
	}
	if cfg.ClientID == "" {
		cfg.ClientID = "sluice"
	}
	c := &Client{cfg: cfg, addr: kafkago.TCP(cfg.Brokers...), mechanism: mechanism, transports: map[*kafkago.Transport]bool{}}
	if cfg.TLS {
		c.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	c.base, c.cancel = context.WithCancel(context.Background())
	c.cluster = c.open([]string{})
	return c, nil
}

// Close ends every call in flight with a Shutdown error and closes the
// connections. Groups are closed before it.
func (c *Client) Close() {
	c.cancel()
	c.mu.Lock()
	transports := c.transports
	c.transports = map[*kafkago.Transport]bool{}
	c.mu.Unlock()
	for t := range transports {
		t.CloseIdleConnections()
	}
	c.conns.close()
}

// open returns a client with connections of its own that keeps an eye on the
// topics given, and on no others: asking for all topics of a large cluster every
// other second would be noticed there.
func (c *Client) open(topics []string) *kafkago.Client {
	t := &kafkago.Transport{
		Dial:           c.conns.dial,
		DialTimeout:    dialTimeout,
		IdleTimeout:    idleTimeout,
		MetadataTTL:    metadataAge,
		MetadataTopics: topics,
		ClientID:       c.cfg.ClientID,
		TLS:            c.tls,
		SASL:           c.mechanism,
		Context:        c.base,
	}
	c.mu.Lock()
	c.transports[t] = true
	c.mu.Unlock()
	// Half of Timeout is what brokers are told they may take where a call's context
	// leaves more; without it they are told 500 ms.
	return &kafkago.Client{Addr: c.addr, Timeout: callTimeout, Transport: t}
}

// idleTimeout is how long a connection that nobody uses is kept: less than a broker
// is left alone after it failed (5 s), so that the one request that finds out
// whether it is back does not meet a connection that died with it. The library
// keeps them for 30 s, and so did outages last longer by up to that.
const idleTimeout = 3 * time.Second

// release closes what open opened, where that is not for the Client's lifetime.
func (c *Client) release(k *kafkago.Client) {
	t := k.Transport.(*kafkago.Transport)
	c.mu.Lock()
	delete(c.transports, t)
	c.mu.Unlock()
	t.CloseIdleConnections()
}

// connSet knows the connections that are open, so that they can be closed under
// whoever waits on one: the client library does not always watch a context.
type connSet struct {
	dialer func(ctx context.Context, network, address string) (net.Conn, error) // nil: the network's; set before use
	mu     sync.Mutex
	closed bool
	open   map[*trackedConn]struct{}
}

func (s *connSet) dial(ctx context.Context, network, address string) (net.Conn, error) {
	dial := s.dialer
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	conn, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	t := &trackedConn{Conn: conn, set: s}
	if s.open == nil {
		s.open = map[*trackedConn]struct{}{}
	}
	s.open[t] = struct{}{}
	return t, nil
}

func (s *connSet) close() {
	s.mu.Lock()
	open := s.open
	s.open, s.closed = nil, true
	s.mu.Unlock()
	for t := range open {
		t.Conn.Close()
	}
}

type trackedConn struct {
	net.Conn
	set *connSet
}

func (t *trackedConn) Close() error {
	t.set.mu.Lock()
	delete(t.set.open, t)
	t.set.mu.Unlock()
	return t.Conn.Close()
}

// permanentf is an error of our own finding that no repeat will change.
func permanentf(format string, args ...any) error {
	return retry.Mark(fmt.Errorf(format, args...), retry.Permanent)
}
