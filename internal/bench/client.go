package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// requestTimeout is how long an answer may take. It is far longer than any that
// counts as one.
const requestTimeout = 30 * time.Second

// connection speaks just as much HTTP/1.1 as a load needs: it writes requests that
// are laid out already and reads answers for their status. It costs a fraction of
// net/http's client, which would be the dearest part of the machine.
type connection struct {
	conn net.Conn
	in   *bufio.Reader
}

func dial(ctx context.Context, addr string) (*connection, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect to the collector: %w", err)
	}
	return &connection{conn: conn, in: bufio.NewReaderSize(conn, 4<<10)}, nil
}

func (c *connection) close() { _ = c.conn.Close() } // nothing is on its way that counts

// send writes a request and returns the status of its answer. The beginning of an
// answer's body is returned where the status is not 2xx.
func (c *connection) send(request []byte) (status int, refusal string, err error) {
	if err := c.conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return 0, "", err
	}
	if _, err := c.conn.Write(request); err != nil {
		return 0, "", fmt.Errorf("send a request: %w", err)
	}
	status, body, err := readAnswer(c.in)
	if err != nil {
		return 0, "", fmt.Errorf("read an answer: %w", err)
	}
	if status/100 != 2 {
		text, err := io.ReadAll(io.LimitReader(c.in, min(body, 300)))
		if err != nil {
			return 0, "", fmt.Errorf("read an answer: %w", err)
		}
		body -= int64(len(text))
		refusal = string(text)
	}
	_, err = c.in.Discard(int(body))
	return status, refusal, err
}

var errAnswer = errors.New("not an HTTP/1.1 answer with a Content-Length")

// readAnswer reads an answer's head: its status and how long its body is.
func readAnswer(in *bufio.Reader) (status int, body int64, err error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return 0, 0, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
		return 0, 0, errAnswer
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, 0, errAnswer
	}
	body = -1
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return 0, 0, err
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			break
		}
		const name = "content-length:"
		if len(line) > len(name) && bytes.EqualFold(line[:len(name)], []byte(name)) {
			if body, err = strconv.ParseInt(string(bytes.TrimSpace(line[len(name):])), 10, 32); err != nil || body < 0 {
				return 0, 0, errAnswer
			}
		}
	}
	if body < 0 {
		if status != 204 && status != 304 {
			return 0, 0, errAnswer
		}
		body = 0
	}
	return status, body, nil
}
