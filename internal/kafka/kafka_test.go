package kafka

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

func TestOpenNamesTheSetting(t *testing.T) {
	const password = "hunter2"
	for name, tt := range map[string]struct {
		cfg  Config
		want string
	}{
		"no broker":         {Config{}, "SLUICE_KAFKA_BROKERS"},
		"no port":           {Config{Brokers: []string{"kafka"}}, `SLUICE_KAFKA_BROKERS "kafka"`},
		"no host":           {Config{Brokers: []string{":9092"}}, "SLUICE_KAFKA_BROKERS"},
		"port 0":            {Config{Brokers: []string{"kafka:0"}}, "SLUICE_KAFKA_BROKERS"},
		"unknown mechanism": {Config{Brokers: []string{"k:1"}, SASLMechanism: "GSSAPI", SASLUsername: "u", SASLPassword: password}, "SLUICE_KAFKA_SASL_MECHANISM \"GSSAPI\""},
		"no mechanism":      {Config{Brokers: []string{"k:1"}, SASLPassword: password}, "SLUICE_KAFKA_SASL_MECHANISM"},
		"no user":           {Config{Brokers: []string{"k:1"}, SASLMechanism: "PLAIN", SASLPassword: password}, "SLUICE_KAFKA_SASL_USERNAME"},
		"no password":       {Config{Brokers: []string{"k:1"}, SASLMechanism: "PLAIN", SASLUsername: "u"}, "SLUICE_KAFKA_SASL_PASSWORD"},
		"bad user":          {Config{Brokers: []string{"k:1"}, SASLMechanism: "SCRAM-SHA-256", SASLUsername: "\x00", SASLPassword: password}, "SLUICE_KAFKA_SASL_USERNAME"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(tt.cfg)
			require.ErrorContains(t, err, tt.want)
			assert.NotContains(t, err.Error(), password)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestConfigHidesThePassword(t *testing.T) {
	cfg := Config{Brokers: []string{"k:1"}, TLS: true, SASLMechanism: "PLAIN", SASLUsername: "me", SASLPassword: "hunter2"}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "kafka", cfg)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "kafka", cfg)
	doc, err := json.Marshal(cfg)
	require.NoError(t, err)
	text := fmt.Sprintf("%v %+v %#v %s %q %v", cfg, cfg, cfg, cfg, cfg, &cfg) + log.String() + string(doc)
	assert.NotContains(t, text, "hunter2")
	assert.Contains(t, text, "me")
}

func TestClassify(t *testing.T) {
	for name, tt := range map[string]struct {
		err   error
		class retry.Class
		is    error
	}{
		"leader moved":       {kafkago.NotLeaderForPartition, retry.Transient, nil},
		"topic unknown":      {kafkago.UnknownTopicOrPartition, retry.Transient, nil},
		"too few replicas":   {kafkago.NotEnoughReplicas, retry.Transient, nil},
		"corrupt on arrival": {kafkago.InvalidMessage, retry.Transient, nil},
		"no code":            {io.ErrUnexpectedEOF, retry.Transient, nil},
		"refused":            {&net.OpError{Op: "dial", Err: errors.New("refused")}, retry.Transient, nil},
		"time-out":           {context.DeadlineExceeded, retry.Transient, nil},
		"cancelled":          {context.Canceled, retry.Shutdown, nil},
		"generation ended":   {kafkago.ErrGenerationEnded, retry.Shutdown, nil},
		"group closed":       {kafkago.ErrGroupClosed, retry.Shutdown, nil},
		"quota":              {kafkago.ThrottlingQuotaExceeded, retry.Throttled, nil},
		"too large":          {kafkago.MessageSizeTooLarge, retry.Permanent, nil},
		"no right":           {kafkago.TopicAuthorizationFailed, retry.Permanent, nil},
		"wrong password":     {kafkago.SASLAuthenticationFailed, retry.Permanent, nil},
		"wrong certificate":  {&tls.CertificateVerificationError{Err: errors.New("x")}, retry.Permanent, nil},
		"generation":         {kafkago.IllegalGeneration, retry.Permanent, batch.ErrFenced},
		"member":             {kafkago.UnknownMemberId, retry.Permanent, batch.ErrFenced},
		"rebalance":          {kafkago.RebalanceInProgress, retry.Permanent, batch.ErrFenced},
		"instance":           {kafkago.FencedInstanceID, retry.Permanent, batch.ErrFenced},
		"offset":             {kafkago.OffsetOutOfRange, retry.Permanent, batch.ErrOffsetGone},
	} {
		t.Run(name, func(t *testing.T) {
			err := classify(fmt.Errorf("doing this: %w", tt.err))
			assert.Equal(t, tt.class, retry.ClassOf(err))
			assert.ErrorIs(t, err, tt.err)
			if tt.is != nil {
				assert.ErrorIs(t, err, tt.is)
			}
		})
	}
	assert.NoError(t, classify(nil))
}

func TestClosedClientSaysShutdown(t *testing.T) {
	c := testClient(t)
	p := c.NewProducer("t-none")
	c.Close()
	_, err := p.Partition(t.Context(), batch.ID{})
	classOf(t, retry.Shutdown, err)
	_, _, err = p.Produce(t.Context(), 0, testRecords(1, 1))
	classOf(t, retry.Shutdown, err)
	_, _, err = c.NewSource("t-none").Fetch(t.Context(), 0, 0, 1, time.Second)
	classOf(t, retry.Shutdown, err)
	classOf(t, retry.Shutdown, p.Probe(t.Context()))
}
