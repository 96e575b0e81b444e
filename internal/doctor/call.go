package doctor

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Experiment and Variant are what every test exposure is about. Reports can leave
// the experiment out by its name.
const (
	Experiment = "sluice-doctor"
	Variant    = "test"
)

// placeholder is the key where none was given: every SDK sends one.
const placeholder = "sluice-doctor"

// Probe is one test exposure.
type Probe struct {
	Unit string    // nobody else's
	ID   string    // a UUID: of the event, and of the batch where it has a name
	Time time.Time // in whole milliseconds, as SDKs send it
	Key  string    // the SDK's key; empty: none was given
}

func (p Probe) key() string {
	if p.Key == "" {
		return placeholder
	}
	return p.Key
}

func (p Probe) millis() int64 { return p.Time.UnixMilli() }

func (p Probe) iso() string { return p.Time.UTC().Format("2006-01-02T15:04:05.000Z") }

// The ways a body is packed.
const (
	plain   = ""
	gzipped = "gzip"
	zstded  = "zstd"
	// unmarked is gzip that no header speaks of.
	unmarked = "gzip without Content-Encoding"
)

// call is a request as an SDK makes it.
type call struct {
	path    string
	query   url.Values
	header  map[string]string
	body    any // marshalled as JSON, unless it is []byte
	coding  string
	chunked bool // without Content-Length
}

// request makes the request for a collector at base, a URL to whose path the SDK's
// own is added.
func (c call) request(ctx context.Context, base string) (*http.Request, error) {
	body, ok := c.body.([]byte)
	if !ok {
		var err error
		if body, err = json.Marshal(c.body); err != nil {
			return nil, fmt.Errorf("write the body: %w", err)
		}
	}
	body, err := pack(c.coding, body)
	if err != nil {
		return nil, fmt.Errorf("compress the body: %w", err)
	}
	to := strings.TrimRight(base, "/") + c.path
	if len(c.query) > 0 {
		to += "?" + c.query.Encode()
	}
	var r io.Reader = bytes.NewReader(body)
	if c.chunked {
		r = io.MultiReader(r) // of no known length
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, r)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	for k, v := range c.header {
		req.Header.Set(k, v)
	}
	if c.coding == gzipped || c.coding == zstded {
		req.Header.Set("Content-Encoding", c.coding)
	}
	return req, nil
}

func pack(coding string, body []byte) ([]byte, error) {
	var out bytes.Buffer
	var w io.WriteCloser
	switch coding {
	case plain:
		return body, nil
	case zstded:
		z, err := zstd.NewWriter(&out)
		if err != nil {
			return nil, err
		}
		w = z
	default:
		w = gzip.NewWriter(&out)
	}
	if _, err := w.Write(body); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
