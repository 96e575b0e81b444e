package kafka

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/pkg/retry"
)

const (
	// retention is how long records stay: explicit, because a broker's default may
	// be anything, and shorter than the dedup window.
	retention = 7 * 24 * time.Hour
	// MaxRecordBatch is the largest record batch the topics take, in bytes as
	// compressed: 1 MiB and the 12 bytes in front of a batch, which is Kafka's own
	// default, so that brokers and consumers with default settings can carry it.
	MaxRecordBatch = 1<<20 + 12
)

// TopicNames are the topics of one prefix.
type TopicNames struct {
	Batches string // the log
	Ledger  string // compacted
	Dead    string // what could not be stored
}

// Topics names the topics of a prefix.
func Topics(prefix string) TopicNames {
	return TopicNames{Batches: prefix + ".batches", Ledger: prefix + ".ledger", Dead: prefix + ".dead"}
}

// EnsureTopics creates the topics of a prefix that are not there and returns
// when every partition has a leader that answers. Any number of processes may do so at once.
// Topics that are there stay as they are. replication 0 is the brokers' default.
// It does not wait for a Kafka that is away: the caller repeats it.
func (c *Client) EnsureTopics(ctx context.Context, prefix string, partitions, replication int) error {
	if partitions < 1 || replication < 0 {
		return permanentf("SLUICE_TOPIC_PARTITIONS %d, SLUICE_TOPIC_REPLICATION %d: want at least 1 partition and no negative replication", partitions, replication)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	names := Topics(prefix)
	missing, err := c.missing(ctx, names)
	if err != nil {
		return c.classify(fmt.Errorf("look for the topics of %q: %w", prefix, err))
	}
	if len(missing) > 0 {
		if err := c.create(ctx, names, missing, partitions, replication); err != nil {
			return c.classify(fmt.Errorf("create the topics of %q: %w", prefix, err))
		}
	}
	return c.awaitLeaders(ctx, names)
}

func (c *Client) missing(ctx context.Context, names TopicNames) ([]string, error) {
	m, err := c.describe(ctx, names.Batches, names.Ledger, names.Dead)
	if err != nil {
		return nil, err
	}
	var missing []string
	for name, t := range m.topics {
		if t.err == kafkago.UnknownTopicOrPartition {
			missing = append(missing, name)
		}
	}
	return missing, nil
}

func (c *Client) create(ctx context.Context, names TopicNames, missing []string, partitions, replication int) error {
	k := c.open(missing)
	defer c.release(k)
	if replication == 0 {
		n, err := defaultReplication(ctx, k)
		if err != nil {
			return fmt.Errorf("read the brokers' default.replication.factor (set SLUICE_TOPIC_REPLICATION to do without): %w", err)
		}
		replication = n
	}
	req := &kafkago.CreateTopicsRequest{}
	for _, name := range missing {
		t := kafkago.TopicConfig{Topic: name, NumPartitions: partitions, ReplicationFactor: replication, ConfigEntries: settings(replication)}
		if name == names.Ledger {
			// One partition, so that its records have one order.
			t.NumPartitions = 1
			t.ConfigEntries = append(t.ConfigEntries, kafkago.ConfigEntry{ConfigName: "cleanup.policy", ConfigValue: "compact"})
		} else {
			t.ConfigEntries = append(t.ConfigEntries,
				kafkago.ConfigEntry{ConfigName: "cleanup.policy", ConfigValue: "delete"},
				kafkago.ConfigEntry{ConfigName: "retention.ms", ConfigValue: strconv.FormatInt(retention.Milliseconds(), 10)},
				kafkago.ConfigEntry{ConfigName: "retention.bytes", ConfigValue: "-1"})
		}
		req.Topics = append(req.Topics, t)
	}
	res, err := k.CreateTopics(ctx, req)
	if err != nil {
		return err
	}
	for _, name := range missing {
		// Another process may have been faster, with the same settings.
		if err := res.Errors[name]; err != nil && !errors.Is(err, kafkago.TopicAlreadyExists) {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// settings are those of every topic. An acknowledged record is on two brokers
// where there are two, a broker that has not got it cannot become the leader,
// and deletion goes by the brokers' clock, never by a client's.
func settings(replication int) []kafkago.ConfigEntry {
	return []kafkago.ConfigEntry{
		{ConfigName: "message.timestamp.type", ConfigValue: "LogAppendTime"},
		{ConfigName: "min.insync.replicas", ConfigValue: strconv.Itoa(min(2, replication))},
		{ConfigName: "unclean.leader.election.enable", ConfigValue: "false"},
		{ConfigName: "max.message.bytes", ConfigValue: strconv.Itoa(MaxRecordBatch)},
	}
}

// defaultReplication asks the controller: min.insync.replicas depends on it.
func defaultReplication(ctx context.Context, k *kafkago.Client) (int, error) {
	const name = "default.replication.factor"
	m, err := k.Metadata(ctx, &kafkago.MetadataRequest{})
	if err != nil {
		return 0, err
	}
	res, err := k.DescribeConfigs(ctx, &kafkago.DescribeConfigsRequest{Resources: []kafkago.DescribeConfigRequestResource{{
		ResourceType: kafkago.ResourceTypeBroker, ResourceName: strconv.Itoa(m.Controller.ID), ConfigNames: []string{name},
	}}})
	if err != nil {
		return 0, err
	}
	for _, r := range res.Resources {
		if r.Error != nil {
			return 0, r.Error
		}
		for _, e := range r.ConfigEntries {
			if n, err := strconv.Atoi(e.ConfigValue); e.ConfigName == name && err == nil && n > 0 {
				return n, nil
			}
		}
	}
	return 0, errors.New("the broker does not say")
}

// awaitLeaders waits until the topics can be used: brokers learn of a new topic
// one after another, and the leader of a partition after everybody who can tell
// that it is the leader.
func (c *Client) awaitLeaders(ctx context.Context, names TopicNames) error {
	k := c.open([]string{names.Batches, names.Ledger, names.Dead})
	defer c.release(k)
	policy := retry.Policy{Min: 20 * time.Millisecond, Max: time.Second}
	return policy.Do(ctx, func(ctx context.Context) error {
		m, err := c.describe(ctx, names.Batches, names.Ledger, names.Dead)
		if err == nil {
			err = c.askLeaders(ctx, k, m)
		}
		return c.classify(err)
	})
}

// askLeaders asks each leader for the end of its partitions.
func (c *Client) askLeaders(ctx context.Context, k *kafkago.Client, m *clusterInfo) error {
	asks := map[int32]*leaderRequest{}
	for name, t := range m.topics {
		if t.err != 0 {
			return fmt.Errorf("topic %s: %w", name, t.err)
		}
		for id, leader := range t.leaders {
			if leader < 0 {
				return fmt.Errorf("topic %s partition %d: %w", name, id, kafkago.LeaderNotAvailable)
			}
			if asks[leader] == nil {
				req := kmsg.NewPtrListOffsetsRequest()
				req.SetVersion(5)
				req.ReplicaID = -1
				asks[leader] = &leaderRequest{rawRequest: rawRequest{body: req, clientID: c.cfg.ClientID}, topic: name, partition: id}
			}
			req := asks[leader].body.(*kmsg.ListOffsetsRequest)
			p := kmsg.NewListOffsetsRequestTopicPartition()
			p.Partition, p.Timestamp = int32(id), kafkago.LastOffset
			if n := len(req.Topics); n == 0 || req.Topics[n-1].Topic != name {
				topic := kmsg.NewListOffsetsRequestTopic()
				topic.Topic = name
				req.Topics = append(req.Topics, topic)
			}
			last := &req.Topics[len(req.Topics)-1]
			last.Partitions = append(last.Partitions, p)
		}
	}
	for _, ask := range asks {
		res, err := k.Transport.RoundTrip(ctx, c.addr, ask)
		if err != nil {
			return err
		}
		for _, t := range res.(*rawResponse).body.(*kmsg.ListOffsetsResponse).Topics {
			for _, p := range t.Partitions {
				if p.ErrorCode != 0 {
					return fmt.Errorf("topic %s partition %d: %w", t.Topic, p.Partition, kafkago.Error(p.ErrorCode))
				}
			}
		}
	}
	return nil
}

// DeleteTopics deletes the topics of a prefix, with all that is in them. Those
// that are not there are no error.
func (c *Client) DeleteTopics(ctx context.Context, prefix string) error {
	names := Topics(prefix)
	all := []string{names.Batches, names.Ledger, names.Dead}
	k := c.open(all)
	defer c.release(k)
	res, err := k.DeleteTopics(ctx, &kafkago.DeleteTopicsRequest{Topics: all})
	if err != nil {
		return c.classify(fmt.Errorf("delete the topics of %q: %w", prefix, err))
	}
	for name, err := range res.Errors {
		if err != nil && !errors.Is(err, kafkago.UnknownTopicOrPartition) {
			return c.classify(fmt.Errorf("delete topic %s: %w", name, err))
		}
	}
	return nil
}

// Log returns the id of the log that the prefix's batches topic is now: the
// cluster's id and the topic's, in Kafka's own writing, joined by a dot. Kafka
// gives every topic a random id when it is created (KIP-516, Kafka 2.8 and
// newer), so a topic that was deleted and created again is another log, however
// much like the old one it looks, and all processes agree on the id without
// having to write it anywhere. It returns a Permanent error for a broker that
// has no topic ids, and a Transient one while the topic is not there.
func (c *Client) Log(ctx context.Context, prefix string) (string, error) {
	return c.logID(ctx, Topics(prefix).Batches)
}

func (c *Client) logID(ctx context.Context, name string) (string, error) {
	m, err := c.describe(ctx, name)
	if err != nil {
		return "", c.classify(fmt.Errorf("ask for the id of topic %s: %w", name, err))
	}
	t := m.topics[name]
	if t.err != 0 {
		return "", c.classify(fmt.Errorf("ask for the id of topic %s: %w", name, t.err))
	}
	if t.id == [16]byte{} || m.cluster == "" {
		return "", permanentf("topic %s has no topic id: Kafka 2.8 or newer is needed", name)
	}
	return m.cluster + "." + base64.RawURLEncoding.EncodeToString(t.id[:]), nil
}

// clusterInfo is what a broker knows right now.
type clusterInfo struct {
	cluster string
	topics  map[string]topicInfo // of every topic that was asked about
}

type topicInfo struct {
	id      [16]byte // zero before Kafka 2.8
	leaders []int32  // by partition; -1: none
	err     kafkago.Error
}

// describe asks a broker, not a cache, about topics. It creates none.
func (c *Client) describe(ctx context.Context, names ...string) (*clusterInfo, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(12)
	for _, name := range names {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, t)
	}
	res, err := c.send(ctx, req)
	if err != nil {
		return nil, err
	}
	return readMetadata(res.(*kmsg.MetadataResponse), names)
}

func readMetadata(m *kmsg.MetadataResponse, names []string) (*clusterInfo, error) {
	info := &clusterInfo{topics: map[string]topicInfo{}}
	if m.ClusterID != nil {
		info.cluster = *m.ClusterID
	}
	for i := range m.Topics {
		t := &m.Topics[i]
		if t.Topic == nil {
			continue
		}
		n := len(t.Partitions)
		topic := topicInfo{id: t.TopicID, leaders: make([]int32, n), err: kafkago.Error(t.ErrorCode)}
		for i := range topic.leaders {
			topic.leaders[i] = -1
		}
		for _, p := range t.Partitions {
			if p.Partition < 0 || int(p.Partition) >= n {
				return nil, fmt.Errorf("%w: partition %d of %d", errResponse, p.Partition, n)
			}
			topic.leaders[p.Partition] = p.Leader
		}
		if topic.err == 0 && n == 0 {
			topic.err = kafkago.UnknownTopicOrPartition
		}
		info.topics[*t.Topic] = topic
	}
	for _, name := range names {
		if _, ok := info.topics[name]; !ok {
			return nil, fmt.Errorf("%w: it says nothing about topic %s", errResponse, name)
		}
	}
	return info, nil
}
