package kafka

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"sluice/pkg/retry"
)

// GroupConfig says which consumer group to take part in. Every zero duration
// gets its default.
type GroupConfig struct {
	ID    string // SLUICE_SINK_GROUP
	Topic string

	// Session is how long a silent member keeps its partitions: a process that is
	// paused for longer is thrown out. Brokers allow 6 s to 30 min unless told
	// otherwise. Default 10 s.
	Session time.Duration
	// Heartbeat is how often the member says that it is alive, and how late it
	// learns at most of a rebalance. Default 3 s, at most a third of Session.
	Heartbeat time.Duration
	// Rebalance is how long the others are waited for when the members change: the
	// time a partition loop has to end in. Default 30 s.
	Rebalance time.Duration
	// CommitTimeout bounds one commit. Default 5 s.
	CommitTimeout time.Duration
	// Rejoin is the pause after a failed attempt to join. Default 1 s.
	Rejoin time.Duration
}

func (g *GroupConfig) check() error {
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{{&g.Session, 10 * time.Second}, {&g.Heartbeat, 3 * time.Second}, {&g.Rebalance, 30 * time.Second},
		{&g.CommitTimeout, 5 * time.Second}, {&g.Rejoin, time.Second}} {
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	if g.ID == "" || g.Topic == "" {
		return permanentf("SLUICE_SINK_GROUP %q, topic %q: want both", g.ID, g.Topic)
	}
	if 3*g.Heartbeat > g.Session {
		return permanentf("group %s: a heartbeat every %s and a session of %s: want at least three heartbeats a session", g.ID, g.Heartbeat, g.Session)
	}
	return nil
}

// closeGrace is how long Close lets the partition loops end, and the member
// leave the group in peace, before it closes the connections under them.
const closeGrace = 15 * time.Second

// Group is this process's membership of a consumer group.
type Group struct {
	cfg    GroupConfig
	c      *Client
	group  *kafkago.ConsumerGroup
	conns  connSet
	wg     sync.WaitGroup // commits in flight
	broker atomic.Uint32  // which of the configured ones is asked next
}

// NewGroup joins a group, in the background; Next reports what comes of it. The
// caller closes it. It returns an error for a configuration that cannot be right.
func (c *Client) NewGroup(cfg GroupConfig) (*Group, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	g := &Group{cfg: cfg, c: c, conns: connSet{dialer: c.conns.dialer}}
	group, err := kafkago.NewConsumerGroup(kafkago.ConsumerGroupConfig{
		ID:      cfg.ID,
		Brokers: []string{anyBroker},
		Topics:  []string{cfg.Topic},
		// TLS is done by dial, which knows whom it has called.
		Dialer: &kafkago.Dialer{ClientID: c.cfg.ClientID, Timeout: dialTimeout, DialFunc: g.dial,
			SASLMechanism: c.mechanism},
		GroupBalancers:         []kafkago.GroupBalancer{kafkago.RangeGroupBalancer{}},
		SessionTimeout:         cfg.Session,
		HeartbeatInterval:      cfg.Heartbeat,
		RebalanceTimeout:       cfg.Rebalance,
		JoinGroupBackoff:       cfg.Rejoin,
		WatchPartitionChanges:  true,
		PartitionWatchInterval: 10 * time.Second,
	})
	if err != nil {
		return nil, permanentf("group %s: %w", cfg.ID, err)
	}
	g.group = group
	return g, nil
}

// anyBroker stands for the configured brokers. kafka-go asks the first that
// takes a connection for the coordinator, every time: were that one stopped, it
// would never ask another.
const anyBroker = "any.broker.invalid:1"

// dial connects to an address, or to the configured brokers in turn.
func (g *Group) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if address != anyBroker {
		return g.connect(ctx, network, address)
	}
	var err error
	for range g.c.cfg.Brokers {
		n := int(g.broker.Add(1)-1) % len(g.c.cfg.Brokers)
		var conn net.Conn
		if conn, err = g.connect(ctx, network, g.c.cfg.Brokers[n]); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

func (g *Group) connect(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := g.conns.dial(ctx, network, address)
	if err != nil || g.c.tls == nil {
		return conn, err
	}
	cfg := g.c.tls.Clone()
	if cfg.ServerName, _, err = net.SplitHostPort(address); err != nil {
		conn.Close()
		return nil, err
	}
	secure := tls.Client(conn, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}

// Next waits for the next generation: until the one before has ended, with all
// that was started in it, and the group has dealt out the partitions anew. It
// must be called again and again; a member that nobody waits for does not join.
// It returns a classified error for an attempt to join that failed (call it
// again, another attempt follows) and a Shutdown error after Close.
func (g *Group) Next(ctx context.Context) (*Generation, error) {
	gen, err := g.group.Next(ctx)
	if err != nil {
		return nil, g.c.classify(fmt.Errorf("join group %s: %w", g.cfg.ID, err))
	}
	return newGeneration(g, gen), nil
}

// Close ends the generation, waits for what was started in it, and leaves the
// group, so that the other members take over at once. Where that takes too long
// (a broker that does not answer) it leaves without a word, and the others take
// over when the session has run out.
func (g *Group) Close() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.group.Close() // its error is always nil
	}()
	timer := time.NewTimer(closeGrace)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
	g.conns.close()
	<-done
	g.wg.Wait()
}

// Generation is this member's share of the partitions for as long as the
// members do not change. Safe for concurrent use.
//
// It ends, and the group rejoins, when the members change, when anything that
// was started in it returns, when a commit is refused because the member is not
// in the group any more, and when it is not known what became of a commit.
type Generation struct {
	g    *Group
	gen  *kafkago.Generation
	once sync.Once
	over chan struct{} // closed to end it

	mu      sync.Mutex
	flying  bool // a commit is in flight
	pending []*pendingCommit
	fenced  error // sticks: all partitions share one membership
}

func newGeneration(g *Group, gen *kafkago.Generation) *Generation {
	n := &Generation{g: g, gen: gen, over: make(chan struct{})}
	// When anything started in it returns, kafka-go ends the generation: the way to
	// end one from here.
	gen.Start(func(ctx context.Context) {
		select {
		case <-ctx.Done():
		case <-n.over:
		}
	})
	return n
}

// Partitions are those this member has, in order.
func (n *Generation) Partitions() []int {
	assigned := n.gen.Assignments[n.g.cfg.Topic]
	out := make([]int, len(assigned))
	for i, a := range assigned {
		out[i] = a.ID
	}
	slices.Sort(out)
	return out
}

// Start runs fn until the generation ends, which cancels its context. The
// generation also ends when fn returns. Next waits for fn.
func (n *Generation) Start(fn func(ctx context.Context)) {
	n.gen.Start(func(ended context.Context) {
		// An ordinary context, so that what fn calls finds context.Canceled.
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		stop := context.AfterFunc(ended, cancel)
		defer stop()
		fn(ctx)
	})
}

// Committed returns a partition's committed offset, -1 where there is none, and
// what was committed with it. A coordinator that is just starting or moving is
// waited for, for a few seconds.
func (n *Generation) Committed(ctx context.Context, partition int) (offset int64, metadata string, err error) {
	policy := retry.Policy{Min: 50 * time.Millisecond, Max: time.Second, Attempts: 6}
	err = policy.Do(ctx, func(ctx context.Context) error {
		offset, metadata, err = n.committed(ctx, partition)
		if err != nil {
			return n.g.c.classify(fmt.Errorf("read the offset group %s has committed for %s/%d: %w", n.g.cfg.ID, n.g.cfg.Topic, partition, err))
		}
		return nil
	})
	return offset, metadata, err
}

func (n *Generation) committed(ctx context.Context, partition int) (int64, string, error) {
	ctx, cancel := context.WithTimeout(ctx, n.g.cfg.CommitTimeout)
	defer cancel()
	res, err := n.g.c.cluster.OffsetFetch(ctx, &kafkago.OffsetFetchRequest{
		GroupID: n.g.cfg.ID, Topics: map[string][]int{n.g.cfg.Topic: {partition}}})
	if err != nil {
		return 0, "", err
	}
	if res.Error != nil {
		return 0, "", res.Error
	}
	for _, p := range res.Topics[n.g.cfg.Topic] {
		if p.Partition == partition {
			return p.CommittedOffset, p.Metadata, p.Error
		}
	}
	return 0, "", errResponse
}
