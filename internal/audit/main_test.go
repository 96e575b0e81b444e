package audit

import (
	"os"
	"testing"

	"sluice/internal/embedded/teststack"
)

func TestMain(m *testing.M) {
	os.Exit(teststack.Main(m, teststack.NeedKafka, teststack.NeedClickHouse, teststack.CheckLeaks))
}
