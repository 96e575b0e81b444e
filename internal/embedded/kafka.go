package embedded

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// KafkaConfig says where an Apache Kafka keeps its data and listens.
type KafkaConfig struct {
	Dir         string            // made if it has to be
	Listen      Endpoint          // what it tells its clients, too
	Controller  Endpoint          // used by itself only
	Listeners   []Listener        // more addresses to listen on
	InstallDir  string            // where its jars are installed; see EnsureKafka
	Properties  map[string]string // broker settings, before this package's own
	JavaOptions []string          // after -Xmx512m, so -Xmx here wins
	Progress    io.Writer         // told about an installation that takes long; nil: nobody
}

// Listener is one more address of a server, for clients who reach it by way of
// another: Kafka's clients dial what it tells them, which then must be that other.
type Listener struct {
	Endpoint
	Advertised string // host:port told to the clients that came by this one; empty: its own
}

// ApacheKafka is a real Kafka broker of one node (KRaft) in a child process, for
// tests and fault runs. Topics have to be created.
type ApacheKafka struct {
	Child
	addr string
}

// Addr is the host:port it listens on.
func (k *ApacheKafka) Addr() string { return k.addr }

// Version is Kafka's.
func (k *ApacheKafka) Version() string { return kafkaVersion }

// StartApacheKafka starts Kafka on what is in cfg.Dir, installing it first if it
// has to, and returns when it serves metadata. It returns ErrPortTaken when another
// process listens on one of its addresses and ErrInUse when one has its directory.
func StartApacheKafka(ctx context.Context, cfg KafkaConfig) (*ApacheKafka, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	cfg.Dir = dir
	cfg.Listeners = slices.Clone(cfg.Listeners)
	if err := reserve(ctx, cfg.Dir, cfg.endpoints()...); err != nil {
		return nil, err
	}
	java, err := findJava(ctx)
	if err != nil {
		return nil, err
	}
	jars, err := EnsureKafka(ctx, cfg.InstallDir, cfg.Progress)
	if err != nil {
		return nil, err
	}
	k := &ApacheKafka{addr: cfg.Listen.Addr}
	k.launch = func(ctx context.Context) (*process, error) { return launchKafka(ctx, cfg, java, jars) }
	if err := k.up(ctx); err != nil {
		return nil, err
	}
	return k, nil
}

func (c *KafkaConfig) endpoints() []*Endpoint {
	all := []*Endpoint{&c.Listen, &c.Controller}
	for i := range c.Listeners {
		all = append(all, &c.Listeners[i].Endpoint)
	}
	return all
}

func launchKafka(ctx context.Context, cfg KafkaConfig, java, jars string) (*process, error) {
	// Waits for a process that was killed just now and is not quite gone.
	lock, err := lockData(ctx, cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // the child has its own
	for _, e := range cfg.endpoints() {
		if err := CheckPort(*e); err != nil {
			return nil, err
		}
	}
	properties := filepath.Join(cfg.Dir, "server.properties")
	if err := os.WriteFile(properties, kafkaProperties(cfg), 0o644); err != nil {
		return nil, fmt.Errorf("write kafka's properties: %w", err)
	}
	// Compression libraries unpack themselves into the temporary folder.
	tmp := filepath.Join(cfg.Dir, "tmp")
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return nil, fmt.Errorf("empty kafka's temporary folder: %w", err)
	}
	c := command{
		name: "kafka",
		path: java,
		dir:  cfg.Dir,
		log:  filepath.Join(cfg.Dir, "kafka.log"),
		lock: lock,
		args: slices.Concat([]string{"-Xmx512m"}, cfg.JavaOptions, []string{
			"-Djava.io.tmpdir=" + tmp,
			"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
			"-Dorg.slf4j.simpleLogger.showDateTime=true",
			"-cp", jars + "/*",
		}),
	}
	if err := format(ctx, c, cfg, properties); err != nil {
		return nil, err
	}
	c.args = append(c.args, "kafka.Kafka", properties)
	p, err := start(c)
	if err != nil {
		return nil, err
	}
	return started(ctx, p, func(ctx context.Context) error { return servesMetadata(ctx, cfg.Listen.Addr) })
}

// format makes an empty directory one that Kafka starts on. The marker is written
// when it is done: what a format that was cut off has left is removed.
func format(ctx context.Context, c command, cfg KafkaConfig, properties string) error {
	marker := filepath.Join(cfg.Dir, "formatted")
	if _, err := os.Stat(marker); err == nil {
		return nil
	}
	if err := os.RemoveAll(filepath.Join(cfg.Dir, "data")); err != nil {
		return fmt.Errorf("format kafka's data directory: %w", err)
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	id[0] &= 0x7f        // else an id may begin with "-" and be taken for an option
	c.name = "kafka's StorageTool"
	c.args = slices.Concat(c.args, []string{
		"kafka.tools.StorageTool", "format", "--standalone",
		"--cluster-id", base64.RawURLEncoding.EncodeToString(id), "--config", properties,
	})
	if err := run(ctx, c); err != nil {
		return err
	}
	if err := os.WriteFile(marker, nil, 0o644); err != nil {
		return fmt.Errorf("format kafka's data directory: %w", err)
	}
	return nil
}

// kafkaProperties are for one small broker that is its own controller.
func kafkaProperties(cfg KafkaConfig) []byte {
	p := map[string]string{
		"process.roles":                       "broker,controller",
		"node.id":                             "1",
		"controller.quorum.bootstrap.servers": cfg.Controller.Addr,
		"listeners":                           "PLAINTEXT://" + cfg.Listen.Addr + ",CONTROLLER://" + cfg.Controller.Addr,
		"advertised.listeners":                "PLAINTEXT://" + cfg.Listen.Addr + ",CONTROLLER://" + cfg.Controller.Addr,
		"controller.listener.names":           "CONTROLLER",
		"inter.broker.listener.name":          "PLAINTEXT",
		"listener.security.protocol.map":      "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
		"log.dirs":                            filepath.Join(cfg.Dir, "data"),
		"auto.create.topics.enable":           "false",
		// One node holds every copy there is.
		"offsets.topic.num.partitions":                     "4",
		"offsets.topic.replication.factor":                 "1",
		"transaction.state.log.num.partitions":             "2",
		"transaction.state.log.replication.factor":         "1",
		"transaction.state.log.min.isr":                    "1",
		"share.coordinator.state.topic.num.partitions":     "1",
		"share.coordinator.state.topic.replication.factor": "1",
		"share.coordinator.state.topic.min.isr":            "1",
		// Groups form at once, and may notice a dead member early.
		"group.initial.rebalance.delay.ms": "0",
		"group.min.session.timeout.ms":     "1000",
		// After kill -9 a broker is let in again when its old session has ended (by
		// itself after 9 s). Much less, and a busy machine looks like a dead broker.
		"broker.session.timeout.ms":    "1500",
		"broker.heartbeat.interval.ms": "300",
		// The cleaner takes this at once, out of 512 MB.
		"log.cleaner.dedupe.buffer.size": "16777216",
		"num.network.threads":            "2",
		"num.io.threads":                 "4",
	}
	for i, l := range cfg.Listeners {
		name := fmt.Sprintf("VIA%d", i)
		advertised := l.Advertised
		if advertised == "" {
			advertised = l.Addr
		}
		p["listeners"] += "," + name + "://" + l.Addr
		p["advertised.listeners"] += "," + name + "://" + advertised
		p["listener.security.protocol.map"] += "," + name + ":PLAINTEXT"
	}
	maps.Copy(p, cfg.Properties)
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(p)) {
		// java.util.Properties takes \ for an escape.
		fmt.Fprintf(&b, "%s=%s\n", key, strings.ReplaceAll(p[key], `\`, `\\`))
	}
	return []byte(b.String())
}

// servesMetadata reports whether the broker at addr answers and knows of a broker:
// itself, which is let in some time after its port is open. One request on one
// connection, all within ctx: a client would go on dialling a paused broker.
func servesMetadata(ctx context.Context, addr string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(8)
	req.Topics = []kmsg.MetadataRequestTopic{} // none; nil would be all
	if _, err := conn.Write(kmsg.NewRequestFormatter().AppendRequest(nil, req, 1)); err != nil {
		return errors.Join(err, ctx.Err())
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return errors.Join(err, ctx.Err())
	}
	const correlation, most = 4, 1 << 20
	n := binary.BigEndian.Uint32(size[:])
	if n < correlation || n > most {
		return fmt.Errorf("a metadata answer of %d bytes", n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(conn, body); err != nil {
		return errors.Join(err, ctx.Err())
	}
	resp := kmsg.NewPtrMetadataResponse()
	resp.SetVersion(req.GetVersion())
	if err := resp.ReadFrom(body[correlation:]); err != nil {
		return fmt.Errorf("metadata answer: %w", err)
	}
	if len(resp.Brokers) == 0 || resp.ControllerID < 0 {
		return errors.New("it is not part of its cluster yet")
	}
	return nil
}
