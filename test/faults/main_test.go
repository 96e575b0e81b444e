// Package faults kills, stops and pauses the parts of a pipeline under load and
// then counts, event by event, what ClickHouse has.
package faults

import (
	"os"
	"testing"

	"sluice/internal/embedded"
	"sluice/internal/embedded/teststack"
	"sluice/test/pipeline"
)

func TestMain(m *testing.M) {
	if code, child := aimMain(); child {
		os.Exit(code)
	}
	os.Exit(pipeline.Main(m)) // each test starts the servers it breaks
}

// session is how long a silent sink keeps its partitions here: short, so that many
// changes of owner fit into a test.
const session = "SLUICE_KAFKA_SESSION_TIMEOUT=2s"

type servers struct {
	kafka      *embedded.ApacheKafka
	clickhouse *embedded.ClickHouse
}

func startServers(t *testing.T) servers {
	return servers{
		kafka: teststack.StartKafka(t, func(c *embedded.KafkaConfig) {
			c.Properties = map[string]string{"group.min.session.timeout.ms": "1000"}
		}),
		clickhouse: teststack.StartClickHouse(t),
	}
}

func (s servers) pipeline(t *testing.T) *pipeline.Pipeline {
	return pipeline.On(t, s.kafka.Addr(), "clickhouse://"+s.clickhouse.Addr()+"/faults")
}
