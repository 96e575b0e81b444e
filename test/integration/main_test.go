// Package integration holds the tests of the pipeline as a whole: collectors and
// sinks as processes, a real Kafka, a real ClickHouse, real SDKs.
package integration

import (
	"os"
	"testing"

	"sluice/internal/embedded/teststack"
	"sluice/test/pipeline"
)

func TestMain(m *testing.M) {
	os.Exit(pipeline.Main(m, teststack.NeedKafka, teststack.NeedClickHouse))
}
