package config

import (
	"flag"
	"testing"
)

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write docs/settings.md")
	m.Run()
}
