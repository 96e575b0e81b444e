// Package clients runs Sluice's own loggers, for Go, Node and browsers, against
// collectors that are down, killed and brought back, and counts in ClickHouse.
package clients

import (
	"os"
	"testing"

	"sluice/internal/embedded/teststack"
	"sluice/test/pipeline"
)

func TestMain(m *testing.M) {
	os.Exit(pipeline.Main(m, teststack.NeedKafka, teststack.NeedClickHouse))
}
