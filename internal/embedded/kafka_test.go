package embedded

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestApacheKafkaKeepsItsDataOverKillsAndPauses(t *testing.T) {
	k, err := StartApacheKafka(t.Context(), KafkaConfig{
		Dir:         t.TempDir(),
		Properties:  map[string]string{"message.max.bytes": "2000000"},
		JavaOptions: []string{"-XX:TieredStopAtLevel=1"},
		Progress:    os.Stderr,
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, k.Stop(context.Background())) })
	c := client(t, k.Addr(), kgo.DefaultProduceTopic(topic))
	createTopic(t, c)
	before := metadata(t, c)
	require.Len(t, before.Brokers, 1)
	assert.Equal(t, k.Addr(), net.JoinHostPort(before.Brokers[0].Host, strconv.Itoa(int(before.Brokers[0].Port))))

	acked := map[string]bool{}
	produce := func(n int) {
		for range n {
			v := fmt.Sprint(len(acked))
			require.NoError(t, c.ProduceSync(t.Context(), kgo.StringRecord(v)).FirstErr())
			acked[v] = true
		}
	}
	produce(50)
	require.NoError(t, k.Kill())
	assert.NoError(t, k.Err())
	require.NoError(t, k.Restart(t.Context()))
	produce(50)

	require.NoError(t, k.Pause())
	assert.ErrorIs(t, servesMetadata(shortly(t), k.Addr()), context.DeadlineExceeded)
	require.NoError(t, k.Resume())
	produce(50)

	require.NoError(t, k.Restart(t.Context()), "a running one")
	assert.Equal(t, before.ClusterID, metadata(t, client(t, k.Addr())).ClusterID)
	assert.Len(t, values(t, k.Addr(), acked), 150)
}

func TestKafkaProperties(t *testing.T) {
	p := "\n" + string(kafkaProperties(KafkaConfig{
		Dir:        "/data",
		Listen:     Endpoint{Addr: "127.0.0.1:1"},
		Controller: Endpoint{Addr: "127.0.0.1:2"},
		Properties: map[string]string{"num.io.threads": "9", "x": `a\b`},
	}))
	assert.Contains(t, p, "\nadvertised.listeners=PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2\n")
	assert.Contains(t, p, "\nnum.io.threads=9\n")
	assert.Contains(t, p, "\nx=a\\\\b\n")
	assert.Contains(t, p, "\nauto.create.topics.enable=false\n")

	p = "\n" + string(kafkaProperties(KafkaConfig{
		Listen:     Endpoint{Addr: "127.0.0.1:1"},
		Controller: Endpoint{Addr: "127.0.0.1:2"},
		Listeners:  []Listener{{Endpoint: Endpoint{Addr: "127.0.0.1:3"}, Advertised: "127.0.0.1:4"}, {Endpoint: Endpoint{Addr: "127.0.0.1:5"}}},
	}))
	assert.Contains(t, p, "\nlisteners=PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2,VIA0://127.0.0.1:3,VIA1://127.0.0.1:5\n")
	assert.Contains(t, p, "\nadvertised.listeners=PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2,VIA0://127.0.0.1:4,VIA1://127.0.0.1:5\n")
	assert.Contains(t, p, "\nlistener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,VIA0:PLAINTEXT,VIA1:PLAINTEXT\n")
}

// Whoever comes by a listener is told its advertised address.
func TestKafkaListeners(t *testing.T) {
	inner, err := FreeAddr()
	require.NoError(t, err)
	k, err := StartApacheKafka(t.Context(), KafkaConfig{Dir: t.TempDir(),
		Listeners: []Listener{{Endpoint: Endpoint{Addr: inner}, Advertised: "127.0.0.1:1234"}}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, k.Kill()) })
	assert.Equal(t, kafkaVersion, k.Version())
	for addr, want := range map[string]string{inner: "127.0.0.1:1234", k.Addr(): k.Addr()} {
		m := metadata(t, client(t, addr))
		require.Len(t, m.Brokers, 1)
		assert.Equal(t, want, net.JoinHostPort(m.Brokers[0].Host, strconv.Itoa(int(m.Brokers[0].Port))), addr)
	}
}
