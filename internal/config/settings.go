package config

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"
)

// Process is what every program has.
type Process struct {
	Config    string     `name:"config" group:"process" unit:"file" help:"YAML file with settings: one key a setting, x-y or x_y for --x-y." wrong:"A file that cannot be read, a key that is no setting and a key that comes twice stop the start."`
	LogLevel  slog.Level `name:"log-level" group:"process" default:"info" unit:"level" help:"Least severe messages that are logged: debug, info, warn or error." wrong:"At error, batches that go to the spool or to dead_letters pass in silence; metrics still count them."`
	LogFormat string     `name:"log-format" group:"process" default:"auto" enum:"auto,text,json" unit:"format" help:"How messages are written: text, json, or auto (text on a terminal, else json)." wrong:"Nothing is lost; what collects the logs may not be able to read them."`
}

// Service is what a program has that runs until it is told to stop.
type Service struct {
	ShutdownTimeout time.Duration `name:"shutdown-timeout" group:"process" default:"25s" unit:"duration" help:"How long a stop may take: answers are finished, what is in flight is made durable. Keep it under the time after which your platform kills the process (Kubernetes: 30s)." wrong:"Too short: requests in flight are cut off and their clients send them again; nothing acknowledged is lost."`
}

// Validate names what cannot be right.
func (s Service) Validate() error {
	return within("shutdown-timeout", s.ShutdownTimeout, time.Millisecond, time.Hour)
}

// Kafka is how Kafka is reached.
type Kafka struct {
	Brokers       Addresses `name:"kafka-brokers" group:"kafka" default:"127.0.0.1:9092" unit:"addresses" help:"Brokers to ask for the cluster, host:port, several separated by commas. One that answers is enough." wrong:"None answers: collectors acknowledge from the spool until it is full, sinks wait."`
	TLS           bool      `name:"kafka-tls" group:"kafka" default:"false" unit:"true or false" help:"Speak TLS to Kafka, with the system's certificate authorities." wrong:"Wrong for the listener: no broker can be reached, as above."`
	SASLMechanism SASL      `name:"kafka-sasl-mechanism" group:"kafka" unit:"mechanism" help:"How to authenticate: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty: not at all. Needs the user name and the password. PLAIN without SLUICE_KAFKA_TLS sends the password as it is." wrong:"Kafka refuses the connection: as if no broker could be reached."`
	SASLUsername  string    `name:"kafka-sasl-username" group:"kafka" unit:"name" help:"User to authenticate as. Needs SLUICE_KAFKA_SASL_MECHANISM." wrong:"As above."`
	SASLPassword  Secret    `name:"kafka-sasl-password" group:"kafka" secret:"" unit:"password" help:"Password to authenticate with. On the command line others on the machine can read it: use the environment or the file." wrong:"As above."`
}

// Validate names what cannot be right.
func (k Kafka) Validate() error {
	switch {
	case len(k.Brokers) == 0:
		return refuse("kafka-brokers", "", wantAddresses)
	case k.SASLMechanism == "" && k.SASLUsername != "":
		return refuse("kafka-sasl-username", k.SASLUsername, Env("kafka-sasl-mechanism")+" with it ("+wantSASL+"), or no user name")
	case k.SASLMechanism == "" && k.SASLPassword != "":
		return refuse("kafka-sasl-password", k.SASLPassword, Env("kafka-sasl-mechanism")+" with it ("+wantSASL+"), or no password")
	case k.SASLMechanism != "" && (k.SASLUsername == "" || k.SASLPassword == ""):
		return refuse("kafka-sasl-mechanism", k.SASLMechanism, Env("kafka-sasl-username")+" and "+Env("kafka-sasl-password")+" with it")
	}
	return nil
}

// Topics says which topics are used, and how one is made that is not there.
type Topics struct {
	Prefix      string `name:"topic-prefix" group:"topics" default:"sluice" unit:"name" help:"Topics are <prefix>.batches, <prefix>.ledger and <prefix>.dead. The same for collectors, sinks and the tool." wrong:"Sinks with another prefix than the collectors find nothing to store; the lag metrics stay at 0."`
	Partitions  int    `name:"topic-partitions" group:"topics" default:"12" unit:"partitions" help:"Partitions of <prefix>.batches, if it has to be created. No more sinks than this can share the work." wrong:"Too few: sinks beyond that number idle. Adding partitions later sends copies of a batch that straddle the change to two of them, where they meet only by event_id."`
	Replication int    `name:"topic-replication" group:"topics" default:"0" unit:"copies" help:"Copies of each partition, if a topic has to be created; 0: as the broker is set. min.insync.replicas becomes the lower of 2 and this." wrong:"1: a lost disk is lost data. More than there are brokers: the topic cannot be created, and the start fails."`
}

// Validate names what cannot be right.
func (t Topics) Validate() error {
	// Kafka's rule for topic names, less what the longest suffix needs.
	const longest = 249 - len(".batches")
	outside := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r))
	}
	if t.Prefix == "" || len(t.Prefix) > longest || strings.ContainsFunc(t.Prefix, outside) {
		return refuse("topic-prefix", t.Prefix, "1 to 241 letters, digits, '.', '_' or '-'")
	}
	return cmp.Or(
		within("topic-partitions", t.Partitions, 1, 10_000),
		within("topic-replication", t.Replication, 0, 100),
	)
}

// Batches is the topic of the batches.
func (t Topics) Batches() string { return t.Prefix + ".batches" }

// Ledger is the topic of the collectors' ledger.
func (t Topics) Ledger() string { return t.Prefix + ".ledger" }

// Dead is the topic of what could not be stored.
func (t Topics) Dead() string { return t.Prefix + ".dead" }

// ClickHouse is where the rows go.
type ClickHouse struct {
	DSN         DSN           `name:"clickhouse-dsn" group:"clickhouse" default:"clickhouse://127.0.0.1:9000/sluice" secret:"" unit:"address" help:"ClickHouse's native address and the database: clickhouse://[user[:password]@]host:9000/database. secure=true after a ? speaks TLS. The password is never printed." wrong:"Not reachable: sinks stop fetching and Kafka keeps the batches. Refused (user, password): the sink stops the partition with an alarm."`
	Cluster     string        `name:"clickhouse-cluster" group:"clickhouse" unit:"name" help:"Cluster to create the tables on: ReplicatedMergeTree, ON CLUSTER, quorum inserts. Empty: one server." wrong:"Empty on a cluster: tables on one server only, and its loss is a loss of data. A name the server does not know: the migration fails."`
	DedupWindow time.Duration `name:"dedup-window" group:"clickhouse" default:"720h" unit:"duration" help:"How long a batch is known: a copy that comes within it is recognised. Sinks and sluice migrate must agree. In whole seconds." wrong:"Shorter than Kafka keeps records (7 days), or than clients keep unsent batches: a late copy can be stored again; it still collapses by event_id. Longer: the table batches grows with it."`
}

// Validate names what cannot be right.
func (c ClickHouse) Validate() error {
	if c.DSN == "" {
		return refuse("clickhouse-dsn", "", wantDSN)
	}
	outside := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_')
	}
	if strings.ContainsFunc(c.Cluster, outside) {
		return refuse("clickhouse-cluster", c.Cluster, "letters, digits and '_'")
	}
	if c.DedupWindow%time.Second != 0 {
		return refuse("dedup-window", c.DedupWindow, "whole seconds")
	}
	return within("dedup-window", c.DedupWindow, time.Second, 10*365*24*time.Hour)
}

// Keys is where the write keys are.
type Keys struct {
	File string `name:"keys-file" group:"access" unit:"file" help:"Write keys, as hashes; made by sluice keys (docs/keys.md). Read again within seconds when it changes." wrong:"Not there or not readable at the start: the start fails. Broken later: the keys known before stay in force, and it is logged."`
}

// Embedded is everything that sluice up starts on this machine.
type Embedded struct {
	Dir              string `name:"up-dir" group:"embedded" default:".sluice" unit:"directory" help:"Data and logs of everything sluice up starts. It survives a restart; remove it to start from nothing." wrong:"Not writable: the start fails, and says so. Used by another sluice up: the same."`
	Listen           string `name:"listen" group:"listening" default:"127.0.0.1:8080" unit:"address" help:"The collector's public address." wrong:"Taken: sluice up says by whom, and ends."`
	CollectorAdmin   string `name:"up-collector-admin-listen" group:"embedded" default:"127.0.0.1:8081" unit:"address" help:"The collector's admin address under sluice up." wrong:"Taken: sluice up says by whom, and ends."`
	SinkAdmin        string `name:"up-sink-admin-listen" group:"embedded" default:"127.0.0.1:8082" unit:"address" help:"The sink's admin address under sluice up." wrong:"As above."`
	KafkaListen      string `name:"up-kafka-listen" group:"embedded" default:"127.0.0.1:9092" unit:"address" help:"Address of the broker that sluice up starts." wrong:"As above."`
	ClickHouseListen string `name:"up-clickhouse-listen" group:"embedded" default:"127.0.0.1:9000" unit:"address" help:"Native address of the ClickHouse that sluice up starts." wrong:"As above."`
	ClickHouseHTTP   string `name:"up-clickhouse-http-listen" group:"embedded" default:"127.0.0.1:8123" unit:"address" help:"HTTP address of the ClickHouse that sluice up starts; on the same host." wrong:"As above."`
	EngineDir        string `name:"engine-dir" group:"embedded" unit:"directory" help:"Where the ClickHouse engine of sluice up is installed, and looked for; empty: the user's cache directory." wrong:"Not writable: it cannot be installed, and sluice up says so. Thrown away: it is fetched again (570 MB on disk)."`
}

// Validate names what cannot be right.
func (e Embedded) Validate() error {
	return cmp.Or(
		listen("listen", e.Listen),
		listen("up-collector-admin-listen", e.CollectorAdmin),
		listen("up-sink-admin-listen", e.SinkAdmin),
		listen("up-kafka-listen", e.KafkaListen),
		listen("up-clickhouse-listen", e.ClickHouseListen),
		listen("up-clickhouse-http-listen", e.ClickHouseHTTP),
	)
}

// Tool is what verbs of the sluice command share; a verb embeds what it needs.
type Tool struct {
	Process    Process    `embed:""`
	Kafka      Kafka      `embed:""`
	Topics     Topics     `embed:""`
	ClickHouse ClickHouse `embed:""`
	Keys       Keys       `embed:""`
	Embedded   Embedded   `embed:""`
}

// within refuses a value that is not between two bounds, which both are fine.
func within[T interface {
	~int | ~int64
	cmp.Ordered
}](flag string, v, low, high T) error {
	if v < low || v > high {
		return refuse(flag, v, fmt.Sprintf("%v to %v", low, high))
	}
	return nil
}

// listen refuses what a server cannot listen on.
func listen(flag, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || !validPort(port, 0) || strings.ContainsAny(host, " /@") {
		return refuse(flag, addr, "host:port to listen on, such as 127.0.0.1:8080, or :8080 for every interface")
	}
	return nil
}

// apart refuses two servers on one address.
func apart(flag, addr, other, otherAddr string) error {
	if _, port, _ := net.SplitHostPort(addr); addr == otherAddr && port != "0" {
		return refuse(flag, addr, "another address than "+Env(other))
	}
	return nil
}

var errNoKeys = errors.New("SLUICE_KEYS_FILE is not set: nobody could send anything. Create keys with `sluice keys add` and name their file, or set SLUICE_ALLOW_ANONYMOUS=true to let everybody in")
