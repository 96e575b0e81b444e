package browser

import (
	"os"
	"testing"

	"sluice/internal/embedded/teststack"
	"sluice/test/pipeline"
)

func TestMain(m *testing.M) {
	os.Exit(pipeline.Main(m, teststack.NeedKafka, teststack.NeedClickHouse))
}
