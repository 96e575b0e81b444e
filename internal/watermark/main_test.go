package watermark

import (
	"os"
	"testing"

	"sluice/internal/embedded/teststack"
)

func TestMain(m *testing.M) {
	os.Exit(teststack.Main(m, teststack.NeedClickHouse, teststack.NeedKafka, teststack.CheckLeaks))
}
