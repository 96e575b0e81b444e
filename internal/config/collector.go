package config

import (
	"cmp"
	"fmt"
	"time"
)

// Collector are the collector's settings.
type Collector struct {
	Listen         string `name:"listen" group:"listening" default:":8080" unit:"address" help:"Public address: the HTTP API for clients. TLS is ended in front of it." wrong:"Taken or not this machine's: the start fails."`
	AdminListen    string `name:"admin-listen" group:"listening" default:"127.0.0.1:8081" unit:"address" help:"Address of /healthz, /readyz, /metrics, /status and /debug/pprof/. It asks for no key: keep it off the public network." wrong:"Taken or not this machine's: the start fails."`
	AllowAnonymous bool   `name:"allow-anonymous" group:"access" default:"false" unit:"true or false" help:"Accept any write key, or none; everything goes to the project 'default'. Not together with SLUICE_KEYS_FILE." wrong:"On a public address anybody can write to your tables."`

	MaxBody     Bytes `name:"max-body-bytes" group:"limits" default:"10MiB" unit:"bytes" help:"Largest body of a request, as sent and after decompression." wrong:"Too small: clients get 413, and some SDKs drop the batch then."`
	MaxEvents   int   `name:"max-events" group:"limits" default:"10000" unit:"events" help:"Most events in a request." wrong:"Too small: as above."`
	MaxInFlight Bytes `name:"max-in-flight-bytes" group:"limits" default:"0B" unit:"bytes" help:"Memory for the bodies and records of all requests together, at least four times SLUICE_MAX_BODY_BYTES; 0: 40MiB, or those four times where they are more. Above it a request is answered 503 with Retry-After." wrong:"Too small: clients are sent away while the machine is idle. Too large: a flood of requests, or of compressed bodies, takes that much memory."`

	TimePast   time.Duration `name:"time-past-limit" group:"limits" default:"720h" unit:"duration" help:"How far before its receipt an event may say it happened; beyond, the time is clamped and time_adjusted set." wrong:"Too short: events of clients that were offline get a wrong time, and are marked. Too long: queries by event time have to look at more parts."`
	TimeFuture time.Duration `name:"time-future-limit" group:"limits" default:"1h" unit:"duration" help:"How far after its receipt an event may say it happened; beyond, as above." wrong:"Too short: clocks that are a little fast mark good events."`

	AckTimeout     time.Duration `name:"ack-timeout" group:"durability" default:"250ms" unit:"duration" help:"How long a request waits for Kafka before its batch is written to the spool and acknowledged from there." wrong:"Too short: ordinary hiccups of Kafka send batches through the disk. Too long: in a brown-out of Kafka clients wait that long."`
	RecordMax      Bytes         `name:"record-max-bytes" group:"durability" default:"900KiB" unit:"bytes" help:"Largest Kafka record; a larger batch is split into several. 16KiB to 1000KiB: topics take 1MiB at once, headers included. Changing it while clients repeat batches splits the repeats elsewhere: they then meet only by event_id." wrong:"Too small: more records, more work for everybody."`
	SpoolDir       string        `name:"spool-dir" group:"durability" default:"./.sluice/spool" unit:"directory" help:"Where batches wait that Kafka did not take in time, and the collector's own identity. On a local disk that survives a restart; one collector a directory." wrong:"Not writable, or another collector's: the start fails. On a disk that is thrown away: acknowledged batches are lost with it, and sluice audit names them."`
	SpoolMax       Bytes         `name:"spool-max-bytes" group:"durability" default:"10GiB" unit:"bytes" help:"Most the spool may take on disk. When it is full and Kafka is away, requests get 503; nothing is ever dropped to make room." wrong:"Too small for the longest time Kafka may be away (bytes a second times seconds): clients are sent away, and those that do not retry lose their events."`
	SpoolMinFree   Bytes         `name:"spool-min-free-bytes" group:"durability" default:"1GiB" unit:"bytes" help:"Free space the spool leaves on its disk; below it, the spool counts as full." wrong:"Too small: the disk fills up and other programs on it fail. Larger than what is free: the spool takes nothing, and without Kafka requests get 503."`
	DrainRate      Bytes         `name:"drain-bytes-per-second" group:"durability" default:"32MiB" unit:"bytes a second" help:"How fast the spool is sent to Kafka once it is back; at least SLUICE_RECORD_MAX_BYTES." wrong:"Too small: what waited becomes queryable late. Too large: the backlog takes Kafka's capacity from live requests, which then go to the spool too."`
	LedgerInterval time.Duration `name:"ledger-interval" group:"durability" default:"1s" unit:"duration" help:"How often the collector writes what it has acknowledged to the ledger topic. complete_until cannot be younger than this." wrong:"Too long: a batch whose collector died before the next record is reported as unproven. Too short: more small records."`

	Keys    Keys    `embed:""`
	Kafka   Kafka   `embed:""`
	Topics  Topics  `embed:""`
	Process Process `embed:""`
	Service Service `embed:""`
}

// Validate names the first setting that cannot be right, its value and what
// would do. It looks at no file and no network.
func (c Collector) Validate() error {
	const day = 24 * time.Hour
	if err := cmp.Or(
		listen("listen", c.Listen),
		listen("admin-listen", c.AdminListen),
		apart("admin-listen", c.AdminListen, "listen", c.Listen),
		within("max-body-bytes", c.MaxBody, 1<<10, 1<<30),
		within("max-events", c.MaxEvents, 1, 1_000_000),
		within("max-in-flight-bytes", c.MaxInFlight, 0, 1<<40),
		within("time-past-limit", c.TimePast, time.Second, 100*365*day),
		within("time-future-limit", c.TimeFuture, time.Second, 365*day),
		within("ack-timeout", c.AckTimeout, time.Millisecond, 10*time.Second),
		within("record-max-bytes", c.RecordMax, 16<<10, 1000<<10),
		within("spool-max-bytes", c.SpoolMax, 1<<20, 1<<60),
		within("spool-min-free-bytes", c.SpoolMinFree, 0, 1<<60),
		within("drain-bytes-per-second", c.DrainRate, 1<<10, 1<<40),
		within("ledger-interval", c.LedgerInterval, 10*time.Millisecond, time.Minute),
		c.Kafka.Validate(),
		c.Topics.Validate(),
		c.Service.Validate(),
	); err != nil {
		return err
	}
	switch {
	case c.SpoolDir == "":
		return refuse("spool-dir", c.SpoolDir, "a directory")
	case c.MaxInFlight != 0 && c.MaxInFlight < max(4*c.MaxBody, 4<<20):
		// A body is held as sent and decompressed, its buffer twice while it grows,
		// and then as a record.
		return refuse("max-in-flight-bytes", c.MaxInFlight, fmt.Sprintf("at least 4MiB and four times %s (%v), or the largest body could never be read", Env("max-body-bytes"), c.MaxBody))
	case c.SpoolMax < 2*c.MaxBody:
		return refuse("spool-max-bytes", c.SpoolMax, fmt.Sprintf("at least twice %s (%v), or the largest batch would never fit", Env("max-body-bytes"), c.MaxBody))
	case c.DrainRate < c.RecordMax:
		return refuse("drain-bytes-per-second", c.DrainRate, fmt.Sprintf("at least %s (%v), or the largest record would never be sent", Env("record-max-bytes"), c.RecordMax))
	case c.Keys.File == "" && !c.AllowAnonymous:
		return errNoKeys
	case c.Keys.File != "" && c.AllowAnonymous:
		// Whoever named a file expects it to be asked.
		return refuse("allow-anonymous", true, fmt.Sprintf("false, or no %s (%q): with both, nobody would ask the file", Env("keys-file"), c.Keys.File))
	}
	return nil
}
