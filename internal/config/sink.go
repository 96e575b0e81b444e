package config

import (
	"cmp"
	"fmt"
	"time"
)

// Sink are the sink's settings.
type Sink struct {
	AdminListen string `name:"admin-listen" group:"listening" default:"127.0.0.1:8082" unit:"address" help:"Address of /healthz, /readyz, /metrics, /status and /debug/pprof/. It asks for no key: keep it off the public network." wrong:"Taken or not this machine's: the start fails."`

	Group            string        `name:"sink-group" group:"blocks" default:"sluice-sink" unit:"name" help:"Consumer group; the sinks of one group share the partitions. How far each partition is stored is kept under this name." wrong:"Another name goes on from what ClickHouse has of the topic. Two groups at once on one database cancel each other's inserts and get nowhere."`
	SessionTimeout   time.Duration `name:"kafka-session-timeout" group:"blocks" default:"10s" unit:"duration" help:"How long a sink may be silent before its partitions go to others. Within the broker's group.min.session.timeout.ms and group.max.session.timeout.ms (6s to 30m unless changed)." wrong:"Too short: pauses of the machine move partitions about, and each move reads back from ClickHouse. Too long: the partitions of a dead sink wait that long."`
	FlushRows        int           `name:"sink-flush-rows" group:"blocks" default:"500000" unit:"rows" help:"Most rows in one block, 1 to 500000: a block must reach ClickHouse in one piece." wrong:"Too small: many small inserts, which cost ClickHouse up to five times as much a row."`
	FlushBytes       Bytes         `name:"sink-flush-bytes" group:"blocks" default:"256MiB" unit:"bytes" help:"Records held in memory by the whole process; a block may take a quarter. Columns sent to ClickHouse come on top." wrong:"Too small: as above. Too large: the process is killed for its memory, and a healthy one takes over."`
	FlushInterval    time.Duration `name:"sink-flush-interval" group:"blocks" default:"1s" unit:"duration" help:"How long a block waits for more rows while there is little to do; with more rows a second it waits longer, up to SLUICE_SINK_FLUSH_INTERVAL_MAX." wrong:"Too long: rows become queryable late. Too short: ClickHouse has more parts to merge."`
	FlushIntervalMax time.Duration `name:"sink-flush-interval-max" group:"blocks" default:"10s" unit:"duration" help:"Longest a block waits, also when ClickHouse falls behind with merging. At least SLUICE_SINK_FLUSH_INTERVAL." wrong:"Too short: ClickHouse may refuse inserts under load (too many parts); the sink waits and lags."`

	ClickHouse ClickHouse `embed:""`
	Kafka      Kafka      `embed:""`
	Topics     Topics     `embed:""`
	Process    Process    `embed:""`
	Service    Service    `embed:""`
}

// Validate names the first setting that cannot be right, its value and what
// would do. It looks at no file and no network.
func (s Sink) Validate() error {
	if err := cmp.Or(
		listen("admin-listen", s.AdminListen),
		within("kafka-session-timeout", s.SessionTimeout, time.Second, 30*time.Minute),
		within("sink-flush-rows", s.FlushRows, 1, 500_000),
		within("sink-flush-bytes", s.FlushBytes, 1<<20, 1<<40),
		within("sink-flush-interval", s.FlushInterval, time.Millisecond, 10*time.Minute),
		within("sink-flush-interval-max", s.FlushIntervalMax, time.Millisecond, time.Hour),
		s.ClickHouse.Validate(),
		s.Kafka.Validate(),
		s.Topics.Validate(),
		s.Service.Validate(),
	); err != nil {
		return err
	}
	switch {
	case s.Group == "" || len(s.Group) > 249:
		return refuse("sink-group", s.Group, "a name of 1 to 249 bytes")
	case s.FlushInterval > s.FlushIntervalMax:
		return refuse("sink-flush-interval", s.FlushInterval, fmt.Sprintf("at most %s (%v)", Env("sink-flush-interval-max"), s.FlushIntervalMax))
	}
	return nil
}
