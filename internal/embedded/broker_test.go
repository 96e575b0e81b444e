package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

const topic = "batches"

func client(t *testing.T, addr string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	// Later requests name topics by id, which these would have to look up.
	c, err := kgo.NewClient(append(opts, kgo.SeedBrokers(addr), kgo.MaxVersions(kversion.V3_6_0()))...)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func createTopic(t *testing.T, c *kgo.Client) {
	t.Helper()
	req := kmsg.NewPtrCreateTopicsRequest()
	top := kmsg.NewCreateTopicsRequestTopic()
	top.Topic, top.NumPartitions, top.ReplicationFactor = topic, 3, -1
	req.Topics, req.TimeoutMillis = append(req.Topics, top), 10_000
	resp, err := req.RequestWith(t.Context(), c)
	require.NoError(t, err)
	require.NoError(t, kerr.ErrorForCode(resp.Topics[0].ErrorCode))
}

func metadata(t *testing.T, c *kgo.Client, topics ...string) *kmsg.MetadataResponse {
	t.Helper()
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = true
	for _, name := range topics {
		top := kmsg.NewMetadataRequestTopic()
		top.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, top)
	}
	resp, err := req.RequestWith(t.Context(), c)
	require.NoError(t, err)
	return resp
}

// values reads the topic until it holds all of want.
func values(t *testing.T, addr string, want map[string]bool) map[string]bool {
	t.Helper()
	c := client(t, addr, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	got := map[string]bool{}
	missing := len(want)
	for missing > 0 {
		fetches := c.PollFetches(t.Context())
		require.NoError(t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			v := string(r.Value)
			if want[v] && !got[v] {
				missing--
			}
			got[v] = true
		})
	}
	return got
}

func TestBrokerIsOnItsAddressAndKeepsItsIdentity(t *testing.T) {
	dir := t.TempDir()
	b, err := StartBroker(t.Context(), BrokerConfig{Dir: dir})
	require.NoError(t, err)
	c := client(t, b.Addr())
	createTopic(t, c)
	m := metadata(t, c, "not.there")
	require.Len(t, m.Brokers, 1)
	assert.Equal(t, b.Addr(), net.JoinHostPort(m.Brokers[0].Host, strconv.Itoa(int(m.Brokers[0].Port))))
	assert.Equal(t, kerr.UnknownTopicOrPartition.Code, m.Topics[0].ErrorCode, "no topic appears by itself")
	require.NotNil(t, m.ClusterID)

	_, err = StartBroker(shortly(t), BrokerConfig{Dir: dir})
	require.ErrorIs(t, err, ErrInUse)

	require.NoError(t, b.Close())
	require.NoError(t, b.Close())
	b, err = StartBroker(t.Context(), BrokerConfig{Dir: dir, Listen: Endpoint{Addr: b.Addr()}})
	require.NoError(t, err)
	again := metadata(t, client(t, b.Addr()), topic)
	assert.Equal(t, m.ClusterID, again.ClusterID)
	assert.Zero(t, again.Topics[0].ErrorCode)
	require.NoError(t, b.Close())

	b, err = StartBroker(t.Context(), BrokerConfig{Dir: t.TempDir()})
	require.NoError(t, err)
	other := metadata(t, client(t, b.Addr()))
	assert.NotEqual(t, m.ClusterID, other.ClusterID)
	require.NoError(t, b.Close())
}

// The broker's process is killed while records are on their way; what it had
// acknowledged is there when it is back, commits with their metadata too.
func TestBrokerSurvivesKill(t *testing.T) {
	dir, addr := t.TempDir(), ""
	var mu sync.Mutex
	acked := map[string]bool{}
	const rounds = 3
	for round := range rounds {
		broker, said := perform(t, "broker", dir, addr)
		addr = said
		var once sync.Once
		c := client(t, addr, kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()), kgo.RecordRetries(0),
			// An idempotent producer waits for a broker that is gone, to hear what became of a record.
			kgo.DisableIdempotentWrite())
		if round == 0 {
			createTopic(t, c)
		} else {
			assert.Equal(t, fmt.Sprintf("round %d", round-1), committed(t, c))
		}
		commit(t, c, fmt.Sprintf("round %d", round))
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for writer := range 4 {
			wg.Go(func() {
				for i := 0; ; i++ {
					v := fmt.Sprintf("%d/%d/%d", round, writer, i)
					if err := c.ProduceSync(ctx, kgo.StringRecord(v)).FirstErr(); err != nil {
						return
					}
					mu.Lock()
					acked[v] = true
					enough := len(acked) >= 200*(round+1)
					mu.Unlock()
					if enough {
						once.Do(func() { kill(broker) }) // others are producing
						cancel()
					}
				}
			})
		}
		wg.Wait()
		cancel()
	}
	require.GreaterOrEqual(t, len(acked), 200*rounds)
	b, err := StartBroker(t.Context(), BrokerConfig{Dir: dir})
	require.NoError(t, err)
	values(t, b.Addr(), acked)
	assert.Equal(t, "round 2", committed(t, client(t, b.Addr())))
	require.NoError(t, b.Close())
}

// commit and committed keep metadata beside an offset, as the sink's intents do.
func commit(t *testing.T, c *kgo.Client, note string) {
	t.Helper()
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.Generation = "g", -1
	top := kmsg.NewOffsetCommitRequestTopic()
	part := kmsg.NewOffsetCommitRequestTopicPartition()
	part.Offset, part.Metadata = 7, &note
	top.Topic, top.Partitions = topic, append(top.Partitions, part)
	req.Topics = append(req.Topics, top)
	resp, err := req.RequestWith(t.Context(), c)
	require.NoError(t, err)
	require.NoError(t, kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode))
}

func committed(t *testing.T, c *kgo.Client) string {
	t.Helper()
	req := kmsg.NewPtrOffsetFetchRequest()
	group := kmsg.NewOffsetFetchRequestGroup()
	top := kmsg.NewOffsetFetchRequestGroupTopic()
	top.Topic, top.Partitions = topic, []int32{0}
	group.Group, group.Topics = "g", append(group.Topics, top)
	req.Groups = append(req.Groups, group)
	resp, err := req.RequestWith(t.Context(), c)
	require.NoError(t, err)
	part := resp.Groups[0].Topics[0].Partitions[0]
	require.NoError(t, kerr.ErrorForCode(part.ErrorCode))
	require.NotNil(t, part.Metadata)
	return *part.Metadata
}

func TestBrokerLogKeepsTheLastError(t *testing.T) {
	var l brokerLog
	assert.NoError(t, l.failure())
	l.Logf(2, "a warning")
	assert.NoError(t, l.failure())
	l.Logf(1, "disk: %v", errors.New("full"))
	assert.ErrorContains(t, l.failure(), "disk: full")
}
