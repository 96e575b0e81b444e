package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// maxResponse is the largest answer that is read: more than any fetch asks for
// plus the one record batch a broker may add to it.
const maxResponse = 128 << 20

var errResponse = errors.New("the broker's answer cannot be read")

// rawRequest is a request in the protocol's own messages, sent over one of
// kafka-go's connections (its protocol.RawExchanger), which do the dialling, TLS
// and SASL. Any broker may answer it.
type rawRequest struct {
	body     kmsg.Request
	clientID string
	// ask makes it learn the broker's highest version first: kafka-go has settled
	// versions for its own messages only.
	ask bool
}

func (r *rawRequest) ApiKey() protocol.ApiKey { return protocol.ApiKey(r.body.Key()) }

// Required settles the version; it is called with what kafka-go and the broker
// have agreed on before every exchange.
func (r *rawRequest) Required(versions map[protocol.ApiKey]int16) bool {
	if v, ok := versions[r.ApiKey()]; ok && !r.ask {
		r.body.SetVersion(min(v, r.body.GetVersion()))
	}
	return true
}

func (r *rawRequest) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if r.ask {
		highest, err := r.highest(rw)
		if err != nil {
			return nil, err
		}
		r.body.SetVersion(min(highest, r.body.GetVersion()))
	}
	res, err := exchange(rw, r.clientID, r.body)
	if err != nil {
		return nil, err
	}
	return &rawResponse{res}, nil
}

func (r *rawRequest) highest(rw io.ReadWriter) (int16, error) {
	ask := kmsg.NewPtrApiVersionsRequest() // version 0: every broker has it
	res, err := exchange(rw, r.clientID, ask)
	if err != nil {
		return 0, err
	}
	answer := res.(*kmsg.ApiVersionsResponse)
	if answer.ErrorCode != 0 {
		return 0, fmt.Errorf("ask for the API versions: %w", kafkago.Error(answer.ErrorCode))
	}
	for _, k := range answer.ApiKeys {
		if k.ApiKey == r.body.Key() {
			return k.MaxVersion, nil
		}
	}
	return 0, fmt.Errorf("request %s: %w", kmsg.NameForKey(r.body.Key()), kafkago.UnsupportedVersion)
}

// leaderRequest is a rawRequest for the leader of one partition.
type leaderRequest struct {
	rawRequest
	topic     string
	partition int
}

// Broker implements protocol.BrokerMessage.
func (r *leaderRequest) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	none := protocol.Broker{ID: -1}
	p, ok := cluster.Topics[r.topic].Partitions[int32(r.partition)]
	if !ok {
		return none, kafkago.UnknownTopicOrPartition
	}
	b, ok := cluster.Brokers[p.Leader]
	if !ok {
		return none, kafkago.LeaderNotAvailable
	}
	return b, nil
}

type rawResponse struct{ body kmsg.Response }

func (r *rawResponse) ApiKey() protocol.ApiKey { return protocol.ApiKey(r.body.Key()) }

// exchange writes a request and reads its answer. The connection is its own for
// that time, so one correlation id will do.
func exchange(rw io.ReadWriter, clientID string, req kmsg.Request) (kmsg.Response, error) {
	frame := kmsg.NewRequestFormatter(kmsg.FormatterClientID(clientID)).AppendRequest(nil, req, onlyCorrelation)
	if _, err := rw.Write(frame); err != nil {
		return nil, err
	}
	return readAnswer(rw, req)
}

// onlyCorrelation is the id of every request that is sent this way.
const onlyCorrelation = 1

// readAnswer reads the answer to the request that was sent last.
func readAnswer(rw io.Reader, req kmsg.Request) (kmsg.Response, error) {
	var head [8]byte
	if _, err := io.ReadFull(rw, head[:]); err != nil {
		return nil, err
	}
	size := int64(int32(binary.BigEndian.Uint32(head[:4]))) - 4
	if id := int32(binary.BigEndian.Uint32(head[4:])); id != onlyCorrelation || size < 0 || size > maxResponse {
		return nil, fmt.Errorf("%w: %d bytes for request %d", errResponse, size, id)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(rw, body); err != nil {
		return nil, err
	}
	return readResponse(req, body)
}

// readResponse reads what follows an answer's correlation id. The response
// keeps references into body.
func readResponse(req kmsg.Request, body []byte) (kmsg.Response, error) {
	res := req.ResponseKind()
	res.SetVersion(req.GetVersion())
	if res.IsFlexible() && req.Key() != int16(protocol.ApiVersions) {
		// Tagged fields of the header; nobody has defined any yet.
		n, used := binary.Uvarint(body)
		if n != 0 || used <= 0 {
			return nil, fmt.Errorf("%w: %d fields in its header", errResponse, n)
		}
		body = body[used:]
	}
	if err := res.ReadFrom(body); err != nil {
		return nil, fmt.Errorf("%w: %s v%d: %w", errResponse, kmsg.NameForKey(req.Key()), req.GetVersion(), err)
	}
	return res, nil
}

// send sends a request to any broker and returns its unclassified error.
func (c *Client) send(ctx context.Context, req kmsg.Request) (kmsg.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	m, err := c.cluster.Transport.RoundTrip(ctx, c.addr, &rawRequest{body: req, clientID: c.cfg.ClientID, ask: true})
	if err != nil {
		return nil, err
	}
	return m.(*rawResponse).body, nil
}
