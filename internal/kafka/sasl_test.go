package kafka

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"

	"sluice/pkg/retry"
)

func TestSASL(t *testing.T) {
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		t.Run(mechanism, func(t *testing.T) {
			broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser(mechanism, "me", "hunter2"))
			require.NoError(t, err)
			defer broker.Close()
			cfg := Config{Brokers: broker.ListenAddrs(), SASLMechanism: mechanism, SASLUsername: "me", SASLPassword: "hunter2"}
			c, err := Open(cfg)
			require.NoError(t, err)
			defer c.Close()
			require.NoError(t, c.EnsureTopics(t.Context(), "t", 2, 1))
			topic := Topics("t").Batches
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, _, err = c.NewProducer(topic).Produce(ctx, 1, testRecords(3, 10))
			require.NoError(t, err)
			got, _, err := c.NewSource(topic).Fetch(t.Context(), 1, 0, 1<<20, time.Second)
			require.NoError(t, err)
			assert.Equal(t, []int64{0, 1, 2}, offsets(got))
			g := testGroup(t, c, "t")
			defer g.Close()
			require.NoError(t, next(t, g).Commit(t.Context(), 0, 1, "x"))

			cfg.SASLPassword = "hunter3"
			wrong, err := Open(cfg)
			require.NoError(t, err)
			defer wrong.Close()
			err = wrong.EnsureTopics(ctx, "t", 1, 1)
			require.Error(t, err) // this broker just hangs up; Kafka itself answers with a code
			assert.NotContains(t, err.Error(), "hunter")
		})
	}
}

func TestUntrustedCertificate(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	doc := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, doc, doc, &key.PublicKey, key)
	require.NoError(t, err)
	broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.TLS(&tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}))
	require.NoError(t, err)
	defer broker.Close()
	c, err := Open(Config{Brokers: broker.ListenAddrs(), TLS: true})
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Log(t.Context(), "t")
	classOf(t, retry.Permanent, err)
}
