// Package clickhouse is the only importer of the ClickHouse client. It writes
// the sink's blocks, answers what is already there, and runs the migrations;
// errors leave it classified.
package clickhouse

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"sluice/pkg/retry"
)

// Config says which ClickHouse, and for how long it may keep a sink waiting.
type Config struct {
	DSN         string // clickhouse://user:password@host:9000/database?…
	Cluster     string // ReplicatedMergeTree on this cluster, quorum inserts; empty: one server
	MaxConns    int    // connections held at most; default 32
	DialTimeout time.Duration
	// InsertTimeout bounds one insert on the server (max_execution_time,
	// receive_timeout) and on the wire; default 60 s.
	InsertTimeout time.Duration
}

// Client is a connection pool to one ClickHouse. Safe for concurrent use.
type Client struct {
	conn     driver.Conn
	opts     *ch.Options    // what the pool was made of; a wire is dialed with the same
	wires    chan *wire     // those that are idle
	changed  [2]atomic.Bool // whether exposures and events had other types than ours when last opened
	cfg      Config
	database string
	silence  *patience // receive_timeout of an open insert
	lookups  *patience // how long a question of the sink may take
	stored   *stored   // which batches the table has

	mu    sync.Mutex
	known map[string]bool // settings this server has that not every version has; nil until asked
}

// ErrDSN is returned for a DSN that cannot be right.
var ErrDSN = errors.New("SLUICE_CLICKHOUSE_DSN: want clickhouse://[user[:password]@]host:9000/database")

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func options(cfg Config) (*ch.Options, error) {
	opts, err := ch.ParseDSN(cfg.DSN)
	if err != nil || len(opts.Addr) == 0 || slices.ContainsFunc(opts.Addr, notAddress) {
		// The client's own error may quote the DSN, password included.
		return nil, ErrDSN
	}
	if opts.Auth.Database == "" {
		opts.Auth.Database = "sluice"
	}
	if !identifier.MatchString(opts.Auth.Database) {
		return nil, fmt.Errorf("%w (database %q: letters, digits and _ only)", ErrDSN, opts.Auth.Database)
	}
	if cfg.Cluster != "" && !identifier.MatchString(cfg.Cluster) {
		return nil, fmt.Errorf("SLUICE_CLICKHOUSE_CLUSTER %q: letters, digits and _ only", cfg.Cluster)
	}
	opts.DialTimeout = orDefault(cfg.DialTimeout, 5*time.Second)
	opts.MaxOpenConns = max(cfg.MaxConns, 8)
	opts.MaxIdleConns = opts.MaxOpenConns
	opts.ConnMaxLifetime = time.Hour
	// The server ends an insert first; this is for a server that is silent.
	opts.ReadTimeout = orDefault(cfg.InsertTimeout, time.Minute) + answerGrace
	if opts.Compression == nil {
		opts.Compression = &ch.Compression{Method: ch.CompressionLZ4}
	}
	if opts.TLS != nil && opts.TLS.MinVersion == 0 {
		opts.TLS.MinVersion = tls.VersionTLS12
	}
	return opts, nil
}

func notAddress(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	return err != nil || host == "" || port == ""
}

func orDefault(d, def time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return def
}

// Open prepares a pool; it does not wait for ClickHouse to be there. It returns
// ErrDSN where the configuration cannot be right.
func Open(cfg Config) (*Client, error) {
	if cfg.MaxConns == 0 {
		cfg.MaxConns = 32
	}
	cfg.InsertTimeout = orDefault(cfg.InsertTimeout, time.Minute)
	opts, err := options(cfg)
	if err != nil {
		return nil, err
	}
	conn, err := ch.Open(opts)
	if err != nil {
		return nil, fmt.Errorf("open ClickHouse pool: %w", err)
	}
	return &Client{conn: conn, opts: opts, wires: make(chan *wire, idleWires), cfg: cfg, database: opts.Auth.Database,
		silence: newPatience(min(cfg.InsertTimeout, usualSilence), cfg.InsertTimeout),
		lookups: newPatience(usualLookup, longestLookup), stored: newStored()}, nil
}

// Close gives the connections back.
func (c *Client) Close() error {
	for {
		select {
		case w := <-c.wires:
			_ = w.conn.Close() // nothing is under way on it
		default:
			return c.conn.Close()
		}
	}
}

// Database is the database the DSN names.
func (c *Client) Database() string { return c.database }

// Ping asks whether ClickHouse answers queries.
func (c *Client) Ping(ctx context.Context) error {
	if err := c.conn.Exec(ctx, "SELECT 1"); err != nil {
		return c.classify(fmt.Errorf("ping ClickHouse: %w", err))
	}
	return nil
}

// Query runs a query for the tools; args are bound by the client.
func (c *Client) Query(ctx context.Context, query string, args ...any) (driver.Rows, error) {
	rows, err := c.conn.Query(ctx, query, args...)
	if err != nil {
		return nil, c.classify(err)
	}
	return rows, nil
}

// Exec runs a statement for the tools.
func (c *Client) Exec(ctx context.Context, query string, args ...any) error {
	return c.classify(c.conn.Exec(ctx, query, args...))
}

// Server error codes by what may be done about them. Everything that is not
// named is transient: waiting is the safe mistake, since Kafka keeps the data.
var permanent = map[int32]bool{
	16:  true, // NO_SUCH_COLUMN_IN_TABLE
	47:  true, // UNKNOWN_IDENTIFIER
	53:  true, // TYPE_MISMATCH
	60:  true, // UNKNOWN_TABLE
	62:  true, // SYNTAX_ERROR
	81:  true, // UNKNOWN_DATABASE
	115: true, // UNKNOWN_SETTING
	164: true, // READONLY
	192: true, // UNKNOWN_USER
	193: true, // WRONG_PASSWORD
	497: true, // ACCESS_DENIED
	516: true, // AUTHENTICATION_FAILED
}

var throttled = map[int32]bool{
	202: true, // TOO_MANY_SIMULTANEOUS_QUERIES
	241: true, // MEMORY_LIMIT_EXCEEDED
	252: true, // TOO_MANY_PARTS
	243: true, // NOT_ENOUGH_SPACE
}

// refusedContent are the codes with which an insert of a native block is refused for
// what is in its rows. The sink's own tables take every row it makes; these come of
// what was added to them (a CHECK, a column that is computed from others, a narrower
// type), and each was seen with such a column on ClickHouse 26.7, or is what another
// type or function says in the same place. They are looked at for sent rows only:
// elsewhere the same codes speak of the query.
var refusedContent = map[int32]bool{
	6:   true, // CANNOT_PARSE_TEXT: toUInt8('x')
	26:  true, // CANNOT_PARSE_QUOTED_STRING
	27:  true, // CANNOT_PARSE_INPUT_ASSERTION_FAILED
	32:  true, // ATTEMPT_TO_READ_AFTER_EOF: toUInt8('')
	38:  true, // CANNOT_PARSE_DATE
	41:  true, // CANNOT_PARSE_DATETIME
	69:  true, // ARGUMENT_OUT_OF_BOUND: toDecimal32 of too many digits
	70:  true, // CANNOT_CONVERT_TYPE: accurateCast
	72:  true, // CANNOT_PARSE_NUMBER
	117: true, // INCORRECT_DATA: base64Decode, JSON
	128: true, // TOO_LARGE_ARRAY_SIZE
	130: true, // CANNOT_READ_ARRAY_FROM_TEXT
	131: true, // TOO_LARGE_STRING_SIZE: toFixedString
	153: true, // ILLEGAL_DIVISION
	321: true, // VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
	349: true, // CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
	376: true, // CANNOT_PARSE_UUID
	395: true, // FUNCTION_THROW_IF_VALUE_IS_NON_ZERO
	407: true, // DECIMAL_OVERFLOW
	467: true, // CANNOT_PARSE_BOOL
	469: true, // VIOLATED_CONSTRAINT
	675: true, // CANNOT_PARSE_IPV4
	676: true, // CANNOT_PARSE_IPV6
	691: true, // UNKNOWN_ELEMENT_OF_ENUM
}

// contentError is an insert that was refused for what is in its rows: the same rows
// are refused again, others may not be.
type contentError struct{ error }

func (e contentError) Unwrap() error { return e.error }

// Content tells it from other permanent errors, for those who do not import this
// package.
func (contentError) Content() {}

// content marks err as one of the rows' content.
func content(err error) error { return retry.Mark(contentError{err}, retry.Permanent) }

const (
	codeTooSlow        = 159 // TIMEOUT_EXCEEDED
	codeReceiveTimeout = 209 // SOCKET_TIMEOUT: the client was silent for too long
	codeQueryRunning   = 216 // QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING
)

// classify tells once, here, what kind of error it is.
func (c *Client) classify(err error) error {
	if err == nil {
		return nil
	}
	var ex *ch.Exception
	switch {
	case errors.Is(err, context.Canceled):
		return retry.Mark(err, retry.Shutdown)
	case errors.As(err, &ex) && permanent[ex.Code]:
		return retry.Mark(err, retry.Permanent)
	case errors.As(err, &ex) && throttled[ex.Code]:
		return retry.Mark(err, retry.Throttled)
	}
	return retry.Mark(err, retry.Transient)
}

func serverCode(err error) int32 {
	var ex *ch.Exception
	if errors.As(err, &ex) {
		return ex.Code
	}
	return 0
}
