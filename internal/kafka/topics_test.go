package kafka

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

func TestEnsureTopicsAtOnce(t *testing.T) {
	prefix := "t-" + batch.Random().String()
	var wg sync.WaitGroup
	logs := make([]string, 6)
	for i := range logs {
		c := testClient(t) // a process of its own
		wg.Go(func() {
			if assert.NoError(t, c.EnsureTopics(t.Context(), prefix, 3, 0)) {
				var err error
				logs[i], err = c.Log(t.Context(), prefix)
				assert.NoError(t, err)
			}
		})
	}
	wg.Wait()
	c := testClient(t)
	t.Cleanup(func() { deleteTopics(t, c, prefix) })
	require.NotEmpty(t, logs[0])
	for _, l := range logs {
		assert.Equal(t, logs[0], l, "all processes see the same log")
	}

	// Again, with other wishes: what is there stays.
	require.NoError(t, c.EnsureTopics(t.Context(), prefix, 5, 1))
	names := Topics(prefix)
	m, err := c.describe(t.Context(), names.Batches, names.Ledger, names.Dead)
	require.NoError(t, err)
	assert.Len(t, m.topics[names.Batches].leaders, 3)
	assert.Len(t, m.topics[names.Dead].leaders, 3)
	assert.Len(t, m.topics[names.Ledger].leaders, 1)

	for topic, want := range map[string]map[string]string{
		names.Batches: {"cleanup.policy": "delete", "retention.ms": "604800000", "retention.bytes": "-1"},
		names.Dead:    {"cleanup.policy": "delete", "retention.ms": "604800000", "retention.bytes": "-1"},
		names.Ledger:  {"cleanup.policy": "compact"},
	} {
		want["message.timestamp.type"] = "LogAppendTime"
		want["unclean.leader.election.enable"] = "false"
		want["min.insync.replicas"] = "1" // of the test broker's one replica
		want["max.message.bytes"] = "1048588"
		got := topicSettings(t, c, topic)
		for k, v := range want {
			assert.Equal(t, v, got[k], "%s %s", topic, k)
		}
	}
}

func TestEnsureTopicsRefusals(t *testing.T) {
	c := testClient(t)
	classOf(t, retry.Permanent, c.EnsureTopics(t.Context(), "t-x", 0, 1))
	classOf(t, retry.Permanent, c.EnsureTopics(t.Context(), "t-not a name", 1, 1))
	err := c.EnsureTopics(t.Context(), "t-"+batch.Random().String(), 1, 100)
	classOf(t, retry.Permanent, err)
	assert.ErrorContains(t, err, "100", "says that there are not as many brokers")
}

func TestRecreatedTopicIsAnotherLog(t *testing.T) {
	c := testClient(t)
	prefix := testTopics(t, c, 1)
	s := c.NewSource(Topics(prefix).Batches)
	first, err := c.Log(t.Context(), prefix)
	require.NoError(t, err)
	again, err := s.Log(t.Context())
	require.NoError(t, err)
	assert.Equal(t, first, again)
	assert.Regexp(t, `^[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{22}$`, first)

	deleteTopics(t, c, prefix)
	// A broker may tell of a deleted topic for a moment.
	require.Eventually(t, func() bool { _, err = c.Log(t.Context(), prefix); return err != nil }, 20*time.Second, 10*time.Millisecond)
	classOf(t, retry.Transient, err)
	require.NoError(t, c.EnsureTopics(t.Context(), prefix, 1, 0))
	second, err := s.Log(t.Context())
	require.NoError(t, err)
	assert.NotEqual(t, first, second)
}
