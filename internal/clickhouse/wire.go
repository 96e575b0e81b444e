package clickhouse

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/ch-go/proto"
	ch "github.com/ClickHouse/clickhouse-go/v2"

	"sluice/pkg/schema"
)

const (
	// frameBytes is how much of a block is compressed at once. A frame of the wire
	// format ends anywhere in a block, so memory for one is all that it takes.
	frameBytes = 256 << 10
	// wireName is how inserts name their client in system.query_log.
	wireName = "sluice"
)

// wire is one connection in ClickHouse's native protocol that is used for inserts of
// columns laid out by this package: what clickhouse-go does for every type, and at
// five times the CPU, is done here for the few types that exposures and events have
// (docs/adr/0016). Not safe for concurrent use.
type wire struct {
	conn    net.Conn
	in      *proto.Reader
	out     proto.Buffer
	version int
	frames  *compress.Writer // nil: blocks are sent as they are
	timeout time.Duration    // for an answer
	born    time.Time
	used    bool // for an insert before this one
	spent   bool // not to be used again
}

// dialWire connects to one of the DSN's servers.
func dialWire(ctx context.Context, o *ch.Options) (*wire, error) {
	addrs := slices.Clone(o.Addr)
	if o.ConnOpenStrategy != ch.ConnOpenInOrder {
		rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	}
	var err error
	for _, addr := range addrs {
		var w *wire
		if w, err = dialAddr(ctx, o, addr); err == nil || ctx.Err() != nil {
			return w, err
		}
	}
	return nil, err
}

func dialAddr(ctx context.Context, o *ch.Options, addr string) (*wire, error) {
	ctx, cancel := context.WithTimeout(ctx, o.DialTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if o.TLS != nil {
		secure := o.TLS.Clone()
		if secure.ServerName == "" {
			secure.ServerName, _, _ = net.SplitHostPort(addr)
		}
		over := tls.Client(conn, secure)
		if err := over.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, fmt.Errorf("TLS with %s: %w", addr, err)
		}
		conn = over
	}
	w := &wire{conn: conn, in: proto.NewReader(conn), version: proto.Version, timeout: o.ReadTimeout, born: time.Now()}
	switch o.Compression.Method {
	case ch.CompressionLZ4:
		w.frames = compress.NewWriter(compress.LevelZero, compress.LZ4)
	case ch.CompressionLZ4HC:
		w.frames = compress.NewWriter(compress.Level(max(0, o.Compression.Level)), compress.LZ4HC)
	case ch.CompressionZSTD:
		w.frames = compress.NewWriter(compress.LevelZero, compress.ZSTD)
	}
	if err := w.while(ctx, o.DialTimeout, func() error { return w.hello(o) }); err != nil {
		conn.Close()
		return nil, err
	}
	return w, nil
}

// while runs one exchange of packets, which ends after the timeout or with the
// context. The connection is of no use after an error that is not the server's.
func (w *wire) while(ctx context.Context, timeout time.Duration, exchange func() error) error {
	if err := w.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = w.conn.SetDeadline(time.Unix(1, 0)) })
	err := exchange()
	if !stop() {
		// The deadline may be set at any moment from here on, whoever has the
		// connection by then.
		w.spent = true
	}
	if err != nil && ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	return err
}

func (w *wire) flush() error {
	_, err := w.conn.Write(w.out.Buf)
	w.out.Buf = w.out.Buf[:0]
	return err
}

func (w *wire) hello(o *ch.Options) error {
	proto.ClientHello{Name: wireName, Major: 1, ProtocolVersion: w.version,
		Database: o.Auth.Database, User: or(o.Auth.Username, "default"), Password: o.Auth.Password}.Encode(&w.out)
	if err := w.flush(); err != nil {
		return err
	}
	code, err := w.packet()
	if err != nil {
		return err
	}
	if code != proto.ServerCodeHello {
		return fmt.Errorf("ClickHouse answers hello with packet %d", code)
	}
	var server proto.ServerHello
	if err := server.DecodeAware(w.in, w.version); err != nil {
		return fmt.Errorf("read hello: %w", err)
	}
	w.version = min(w.version, server.Revision)
	if proto.FeatureAddendum.In(w.version) {
		w.out.PutString("") // quota key
		return w.flush()
	}
	return nil
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// packet reads the next packet's code. An exception is read whole and returned as the
// error, in the type that clickhouse-go gives it.
func (w *wire) packet() (proto.ServerCode, error) {
	n, err := w.in.UVarInt()
	if err != nil {
		return 0, fmt.Errorf("read a packet: %w", err)
	}
	code := proto.ServerCode(n)
	if code == proto.ServerCodeException {
		var e proto.Exception
		if err := e.DecodeAware(w.in, w.version); err != nil {
			return 0, fmt.Errorf("read an exception: %w", err)
		}
		return 0, &ch.Exception{Code: int32(e.Code), Name: e.Name, Message: e.Message, StackTrace: e.Stack}
	}
	return code, nil
}

// until reads packets up to the first one with the code, which it leaves unread, or
// the end of the stream.
func (w *wire) until(want proto.ServerCode) error {
	for {
		code, err := w.packet()
		if err != nil || code == want {
			return err
		}
		switch code {
		case proto.ServerCodeProgress:
			err = (&proto.Progress{}).DecodeAware(w.in, w.version)
		case proto.ServerCodeProfile:
			err = (&proto.Profile{}).DecodeAware(w.in, w.version)
		case proto.ServerCodeTableColumns:
			err = (&proto.TableColumns{}).DecodeAware(w.in, w.version)
		case proto.ServerProfileEvents:
			err = w.block(code, (&proto.ProfileEvents{}).Result())
		case proto.ServerCodeLog:
			err = w.block(code, (&proto.Logs{}).Result())
		default:
			err = errors.New("it is not expected here")
		}
		if err != nil {
			return fmt.Errorf("packet %d: %w", code, err)
		}
	}
}

// block reads a block of a kind whose rows are of no interest, into target.
func (w *wire) block(code proto.ServerCode, target proto.Result) error {
	if _, err := w.in.Str(); err != nil { // a temporary table's name
		return err
	}
	if w.frames != nil && code.Compressible() {
		w.in.EnableCompression()
		defer w.in.DisableCompression()
	}
	var b proto.Block
	return b.DecodeBlock(w.in, w.version, target)
}

// begin sends an INSERT and waits until the server has opened it. It returns the types
// of the columns, in the query's order.
func (w *wire) begin(id, query string, settings []proto.Setting) (proto.ColInfoInput, error) {
	compression := proto.CompressionDisabled
	if w.frames != nil {
		compression = proto.CompressionEnabled
	}
	proto.Query{ID: id, Body: query, Stage: proto.StageComplete, Compression: compression, Settings: settings,
		Info: proto.ClientInfo{ProtocolVersion: w.version, Major: 1, Interface: proto.InterfaceTCP, Query: proto.ClientQueryInitial,
			InitialQueryID: id, InitialAddress: w.conn.LocalAddr().String(), ClientName: wireName},
	}.EncodeAware(&w.out, w.version)
	// No external tables.
	if err := w.send(nil); err != nil {
		return nil, err
	}
	if err := w.until(proto.ServerCodeData); err != nil {
		return nil, err
	}
	var types proto.ColInfoInput
	return types, w.block(proto.ServerCodeData, &types)
}

// send sends one block; none is the end of all blocks.
func (w *wire) send(columns []inputColumn) error {
	proto.ClientCodeData.Encode(&w.out)
	proto.ClientData{}.EncodeAware(&w.out, w.version)
	start := len(w.out.Buf)
	info := proto.Block{Columns: len(columns)}
	if len(columns) > 0 {
		info.Rows = columns[0].rows()
		info.Info.BucketNum = -1
	}
	info.EncodeAware(&w.out, w.version)
	var err error
	// piece adds bytes to the block: small ones are gathered, and what has become a
	// frame is sent.
	piece := func(p []byte) {
		for err == nil && len(p) > 0 {
			if len(w.out.Buf) == start && len(p) >= frameBytes {
				start, err = w.frame(start, p[:frameBytes])
				p = p[frameBytes:]
				continue
			}
			n := min(len(p), frameBytes-(len(w.out.Buf)-start))
			w.out.Buf = append(w.out.Buf, p[:n]...)
			p = p[n:]
			if len(w.out.Buf)-start == frameBytes {
				start, err = w.frame(start, nil)
			}
		}
	}
	var head proto.Buffer
	for i := range columns {
		head.Buf = head.Buf[:0]
		head.PutString(columns[i].name)
		head.PutString(columns[i].typ())
		if proto.FeatureCustomSerialization.In(w.version) {
			head.PutBool(false)
		}
		piece(head.Buf)
		columns[i].encode(piece)
	}
	if err == nil && len(w.out.Buf) > start {
		_, err = w.frame(start, nil)
	}
	return err
}

// frame sends what is gathered, of which everything from start on belongs to a block,
// and more of the block where that is given. It returns where the block goes on.
func (w *wire) frame(start int, more []byte) (int, error) {
	if w.frames == nil {
		if err := w.flush(); err != nil || more == nil {
			return 0, err
		}
		_, err := w.conn.Write(more)
		return 0, err
	}
	raw := w.out.Buf[start:]
	if more != nil {
		raw = more // nothing is gathered then
	}
	if err := w.frames.Compress(raw); err != nil {
		return 0, fmt.Errorf("compress: %w", err)
	}
	if start > 0 {
		w.out.Buf = append(w.out.Buf[:start], w.frames.Data...)
		return 0, w.flush()
	}
	w.out.Buf = w.out.Buf[:0]
	_, err := w.conn.Write(w.frames.Data)
	return 0, err
}

// end says that there are no more blocks, and waits for the server's word.
func (w *wire) end() error {
	if err := w.send(nil); err != nil {
		return err
	}
	return w.until(proto.ServerCodeEndOfStream)
}

// wireSettings are the settings of a query as the wire has them: all of them are such
// as a server must know.
func wireSettings(all ...ch.Settings) []proto.Setting {
	var out []proto.Setting
	for _, some := range all {
		for k, v := range some {
			s := proto.Setting{Key: k, Important: true}
			switch v := v.(type) {
			case ch.CustomSetting:
				s.Value, s.Custom, s.Important = v.Value, true, false
			case bool:
				s.Value = strconv.Itoa(map[bool]int{true: 1}[v])
			default:
				s.Value = fmt.Sprint(v)
			}
			out = append(out, s)
		}
	}
	return out
}

// idleWires is how many wires are kept for the next insert: two tables, and a few
// partitions at once.
const idleWires = 8

// openWire opens an insert on a wire. It returns nil without an error where the table
// has other types than ours.
func (c *Client) openWire(ctx context.Context, t schema.Table, id, query string, settings ch.Settings) (*wire, error) {
	for {
		w, err := c.takeWire(ctx)
		if err != nil {
			return nil, err
		}
		var types proto.ColInfoInput
		used := w.used
		w.used = true
		err = w.while(ctx, w.timeout, func() (err error) {
			types, err = w.begin(id, query, wireSettings(c.opts.Settings, settings))
			return err
		})
		var refused *ch.Exception
		switch {
		case errors.As(err, &refused):
			// The server has ended the query, and takes another.
			c.keepWire(w)
			return nil, err
		case err != nil:
			_ = w.conn.Close()
			if used && ctx.Err() == nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				continue // it was closed while nobody looked; nothing was sent
			}
			return nil, err
		}
		same := newEventTable(t).expects(types)
		which := 0
		if t == schema.Events {
			which = 1
		}
		c.changed[which].Store(!same)
		if same {
			return w, nil
		}
		c.closeWire(ctx, w)
		return nil, nil
	}
}

// takeWire returns a connection that is idle, or a new one.
func (c *Client) takeWire(ctx context.Context) (*wire, error) {
	for {
		select {
		case w := <-c.wires:
			if time.Since(w.born) < c.opts.ConnMaxLifetime {
				return w, nil
			}
			_ = w.conn.Close()
		default:
			return dialWire(ctx, c.opts)
		}
	}
}

func (c *Client) keepWire(w *wire) {
	if w.spent {
		_ = w.conn.Close()
		return
	}
	select {
	case c.wires <- w:
	default:
		_ = w.conn.Close()
	}
}

// sendWire sends the rows of an open insert and waits for the server's word.
func (c *Client) sendWire(ctx context.Context, w *wire, columns []inputColumn) error {
	// Whoever sends ends ctx when it takes too long, and says so; this is for a ctx
	// that nobody ends.
	return c.finishWire(w, w.while(ctx, w.timeout+closeGrace, func() error {
		if err := w.send(columns); err != nil {
			return w.instead(err)
		}
		return w.end()
	}))
}

// closeWire ends an open insert without rows.
func (c *Client) closeWire(ctx context.Context, w *wire) {
	_ = c.finishWire(w, w.while(ctx, closeGrace, w.end))
}

// finishWire keeps a connection for another insert after the server's word, and
// closes it, which ends the insert, after anything else.
func (c *Client) finishWire(w *wire, err error) error {
	var refused *ch.Exception
	if err == nil {
		c.keepWire(w)
	} else {
		// After an exception in the middle of a block, the rest of it may be under way.
		_ = w.conn.Close()
	}
	if errors.As(err, &refused) {
		return refused
	}
	return err
}

// instead looks for the reason where a server did not take a block: it says so, and
// closes the connection, before it has read it all.
func (w *wire) instead(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	var said *ch.Exception
	if _, e := w.packet(); errors.As(e, &said) {
		return said
	}
	return err
}
