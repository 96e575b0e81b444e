package embedded

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// BrokerConfig says where a broker keeps its data and listens.
type BrokerConfig struct {
	Dir    string   // made if it has to be
	Listen Endpoint // what the broker tells its clients, too, unless Advertised is set
	// Advertised is the host:port that clients are told to dial: something in front
	// of the broker. Empty: Listen.
	Advertised string
	Log        io.Writer // warnings and errors, a line each; nil: none
}

// Broker is a Kafka broker of one node inside this process. It speaks the real
// protocol, with groups and their commits. Each record is written to disk before it
// is acknowledged, so what was acknowledged survives kill -9. Errors of fsync are not
// looked at and folders are not synced: against power loss, and for more than one
// machine, there is Apache Kafka. Topics have to be created: none appears by itself.
type Broker struct {
	addr    string
	cluster *kfake.Cluster
	lock    *os.File
	log     *brokerLog
	close   sync.Once
	err     error
}

// StartBroker starts a broker on what is in cfg.Dir. It returns ErrPortTaken when
// another process listens on its address and ErrInUse when one has its directory.
func StartBroker(ctx context.Context, cfg BrokerConfig) (*Broker, error) {
	// First the lock: a broker that was killed just now may not be quite gone.
	lock, err := lockData(ctx, cfg.Dir)
	if err != nil {
		return nil, err
	}
	if err := claim(&cfg.Listen); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	log := &brokerLog{to: cfg.Log}
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.DataDir(filepath.Join(cfg.Dir, "data")),
		kfake.SyncWrites(),
		// The id of the first start is kept with the data, and goes before this one.
		kfake.ClusterID(base64.RawURLEncoding.EncodeToString(id)),
		kfake.BrokerConfigs(map[string]string{"default.replication.factor": "1"}),
		kfake.GroupMinSessionTimeout(time.Second), // as ApacheKafka's: a dead member may be noticed early
		kfake.WithLogger(log),
		// What is listened on is what clients are told, so the library's own choice
		// of address is ignored.
		kfake.ListenFn(func(string, string) (net.Listener, error) { return cfg.listen() }),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start broker on %s: %w", cfg.Dir, err), lock.Close())
	}
	cluster.ControlKey(int16(kmsg.Produce), stampRecords)
	return &Broker{addr: cfg.Listen.Addr, cluster: cluster, lock: lock, log: log}, nil
}

// listen listens for the library, which tells clients the address of its listener.
func (c BrokerConfig) listen() (net.Listener, error) {
	l, err := listen(c.Listen)
	if err != nil {
		return nil, err
	}
	addr := l.Addr()
	if c.Advertised != "" {
		if addr, err = net.ResolveTCPAddr("tcp", c.Advertised); err != nil {
			return nil, errors.Join(fmt.Errorf("advertised address %q: %w", c.Advertised, err), l.Close())
		}
	}
	return stampingListener{l, addr}, nil
}

// Addr is the host:port it listens on.
func (b *Broker) Addr() string { return b.addr }

// Close cuts its connections, saves what speeds up the next start, and gives the
// directory back. Closing again does nothing and returns the same.
func (b *Broker) Close() error {
	b.close.Do(func() {
		b.cluster.Close()
		b.err = errors.Join(b.log.failure(), b.lock.Close())
	})
	return b.err
}

// brokerLog passes on warnings and errors and keeps the last error: closing the
// library's broker returns none.
type brokerLog struct {
	to io.Writer

	mu   sync.Mutex
	last error
}

// Logf implements kfake.Logger.
func (l *brokerLog) Logf(level kfake.LogLevel, format string, args ...any) {
	if level > kfake.LogLevelWarn {
		return
	}
	line := fmt.Sprintf(format, args...)
	l.mu.Lock()
	defer l.mu.Unlock()
	if level == kfake.LogLevelError {
		l.last = errors.New(line)
	}
	if l.to != nil {
		_, _ = fmt.Fprintf(l.to, "broker: %s\n", line) // a lost log line stops nothing
	}
}

func (l *brokerLog) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		return nil
	}
	return fmt.Errorf("broker: %w", l.last)
}
