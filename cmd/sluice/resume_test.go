package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/test/pipeline"
)

func TestMigrate(t *testing.T) {
	p := pipeline.New(t)
	env := []string{"SLUICE_KAFKA_BROKERS=" + p.Kafka, "SLUICE_CLICKHOUSE_DSN=" + p.DSN, "SLUICE_TOPIC_PREFIX=" + p.Prefix, "SLUICE_TOPIC_PARTITIONS=3"}
	// Several at once, on nothing: a deployment starts all its processes together.
	got := make([]outcome, 4)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i] = sluice(t, []string{"migrate"}, env...) })
	}
	wg.Wait()
	// And once more, on what is there.
	got = append(got, sluice(t, []string{"migrate"}, env...))
	for _, g := range got {
		assert.Zero(t, g.code, g.stderr)
		assert.Empty(t, g.stderr)
		assert.Equal(t, got[0].stdout, g.stdout, "the same log for all")
	}
	assert.Contains(t, got[0].stdout, "ClickHouse tables are up to date: "+p.DSN)
	assert.Contains(t, got[0].stdout, p.Prefix+".batches, "+p.Prefix+".ledger, "+p.Prefix+".dead")
	for _, table := range []string{"exposures", "events", "batches", "dead_letters", "progress", "stops"} {
		assert.Zero(t, p.Count("SELECT count() FROM "+table))
	}
	assert.Equal(t, map[int32]int64{0: 0, 1: 0, 2: 0}, ends(t, p))
}

func kafkaClient(t *testing.T, p *pipeline.Pipeline) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(p.Kafka))
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// ends are the offsets at which the partitions of the batches' topic end.
func ends(t *testing.T, p *pipeline.Pipeline) map[int32]int64 {
	t.Helper()
	c := kafkaClient(t, p)
	meta := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = kmsg.StringPtr(p.Prefix + ".batches")
	meta.Topics = append(meta.Topics, topic)
	m, err := meta.RequestWith(t.Context(), c)
	require.NoError(t, err)
	list := kmsg.NewPtrListOffsetsRequest()
	list.ReplicaID = -1
	lt := kmsg.NewListOffsetsRequestTopic()
	lt.Topic = p.Prefix + ".batches"
	for _, part := range m.Topics[0].Partitions {
		lp := kmsg.NewListOffsetsRequestTopicPartition()
		lp.Partition, lp.Timestamp = part.Partition, -1 // the end
		lt.Partitions = append(lt.Partitions, lp)
	}
	list.Topics = append(list.Topics, lt)
	l, err := list.RequestWith(t.Context(), c)
	require.NoError(t, err)
	out := map[int32]int64{}
	for _, part := range l.Topics[0].Partitions {
		require.Zero(t, part.ErrorCode)
		out[part.Partition] = part.Offset
	}
	return out
}

// deleteRecords does what retention does: the partition then begins at an offset.
func deleteRecords(t *testing.T, p *pipeline.Pipeline, partition int32, before int64) {
	t.Helper()
	req := kmsg.NewPtrDeleteRecordsRequest()
	topic := kmsg.NewDeleteRecordsRequestTopic()
	topic.Topic = p.Prefix + ".batches"
	part := kmsg.NewDeleteRecordsRequestTopicPartition()
	part.Partition, part.Offset = partition, before
	topic.Partitions = append(topic.Partitions, part)
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(t.Context(), kafkaClient(t, p))
	require.NoError(t, err)
	require.Zero(t, resp.Topics[0].Partitions[0].ErrorCode)
}

// listed is what sluice resume prints as JSON.
type listed struct {
	Partition int
	Offset    int64
	ResumeAt  int64 `json:"resume_at"`
	Reason    string
	Detail    string
	Resumed   bool
}

// Retention deletes records while the sink is stopped: the partition stops, and
// goes on when a person says so. Nothing of what is left is lost or doubled.
func TestResumeAfterGap(t *testing.T) {
	p := pipeline.New(t)
	env := []string{"SLUICE_KAFKA_BROKERS=" + p.Kafka, "SLUICE_CLICKHOUSE_DSN=" + p.DSN, "SLUICE_TOPIC_PREFIX=" + p.Prefix}
	collector := p.Collector()
	sink := p.Sink()
	p.KeepEveryRow()
	n := 0
	send := func(batches int) {
		for range batches {
			n++
			body := fmt.Sprintf(`[{"experiment":"e","variant":"v","unit_id":"a%d"},{"experiment":"e","variant":"v","unit_id":"b%d"}]`, n, n)
			a, err := pipeline.Post(t.Context(), collector.URL+"/v1/exposures", []byte(body), map[string]string{"Idempotency-Key": fmt.Sprint(n)})
			require.NoError(t, err)
			require.Equal(t, http.StatusAccepted, a.Status, "%s", a.Body)
		}
	}
	resume := func(code int, args ...string) outcome {
		t.Helper()
		got := sluice(t, append([]string{"resume"}, args...), env...)
		require.Equal(t, code, got.code, "%s%s", got.stdout, got.stderr)
		return got
	}
	list := func() (out []listed) {
		t.Helper()
		require.NoError(t, json.Unmarshal([]byte(resume(0, "--output", "json").stdout), &out))
		return out
	}

	send(40)
	p.Eventually(40, "SELECT count() FROM batches", patience)
	assert.Equal(t, "No partition is stopped.\n", resume(0).stdout)
	assert.Empty(t, list())
	require.NoError(t, sink.Stop(t.Context()))

	// Two of the records that the sink has not read are deleted.
	before := ends(t, p)
	send(40)
	after := ends(t, p)
	const lost = 2
	partition := int32(-1)
	for id := range after {
		if after[id]-before[id] > lost {
			partition = id
		}
	}
	require.NotEqual(t, int32(-1), partition, "%v %v", before, after)
	deleteRecords(t, p, partition, before[partition]+lost)
	require.NoError(t, sink.Restart(t.Context()))

	// The other partitions go on.
	here := int(after[partition] - before[partition])
	p.Eventually(80-here, "SELECT count() FROM batches", patience)
	want := listed{Partition: int(partition), Offset: before[partition], ResumeAt: before[partition] + lost, Reason: "deleted"}
	require.Eventually(t, func() bool { return len(list()) == 1 }, patience, tick)
	one := list()[0]
	want.Detail = one.Detail
	assert.Equal(t, want, one)
	assert.Equal(t, 1.0, sink.Metric(t, "sluice_sink_alarms_total", `kind="deleted"`))
	table := resume(0).stdout
	assert.Regexp(t, fmt.Sprintf(`(?m)^PARTITION .*\n%d +stopped +%d +%d +deleted `, partition, want.Offset, want.ResumeAt), table)

	// Asking first, and not for another partition.
	got := resume(1, "--partition", fmt.Sprint(partition))
	assert.Empty(t, got.stdout)
	line := oneLine(t, got.stderr)
	for _, s := range []string{fmt.Sprintf("partition %d", partition), fmt.Sprintf("at offset %d instead of %d", want.ResumeAt, want.Offset), "--yes"} {
		assert.Contains(t, line, s)
	}
	got = resume(1, "--partition", fmt.Sprint(partition+100), "--yes")
	assert.Contains(t, oneLine(t, got.stderr), "no such partition is stopped")
	require.Len(t, list(), 1)

	got = resume(0, "--partition", fmt.Sprint(partition), "--yes")
	assert.Regexp(t, regexp.MustCompile(fmt.Sprintf(`(?m)^%d +resumed `, partition)), got.stdout)
	p.Eventually(80-lost, "SELECT count() FROM batches", patience)
	assert.Empty(t, list())
	got = resume(1, "--all", "--yes")
	assert.Contains(t, oneLine(t, got.stderr), "no such partition is stopped")

	// What comes after goes its usual way, in that partition too.
	send(40)
	p.Eventually(120-lost, "SELECT count() FROM batches", patience)
	p.Settled(patience)
	assert.Equal(t, 120-lost, p.Count("SELECT countIf(outcome = 'stored') FROM batches"))
	assert.Equal(t, 2*(120-lost), p.Count("SELECT count() FROM exposures"), "also without FINAL")
	assert.Equal(t, 2*(120-lost), p.Count("SELECT uniqExact(event_id) FROM exposures"))
	assert.Equal(t, lost, p.Count(fmt.Sprintf("SELECT max(offset) + 1 - count() FROM batches WHERE partition = %d", partition)))
	assert.Equal(t, 1, p.Count("SELECT count() FROM stops FINAL WHERE state = 'resumed' AND by != ''"), "it is kept who resumed it")
}
