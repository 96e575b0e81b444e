package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	kafkago "github.com/segmentio/kafka-go"

	"sluice/pkg/batch"
	"sluice/pkg/retry"
)

// What may be done about the errors a broker answers with. A code that is not
// named is Transient: leaders move, brokers restart, topics appear; waiting is
// the safe mistake, since nothing is claimed and nothing is skipped meanwhile.
// The numbers are the protocol's (kafka.apache.org/protocol#protocol_error_codes).
var (
	// permanent is what the same request gets again until somebody changes a
	// setting, a right or the request.
	permanent = map[kafkago.Error]bool{
		kafkago.InvalidMessageSize:                 true,
		kafkago.MessageSizeTooLarge:                true,
		kafkago.OffsetMetadataTooLarge:             true,
		kafkago.InvalidTopic:                       true,
		kafkago.RecordListTooLarge:                 true,
		kafkago.InvalidRequiredAcks:                true,
		kafkago.InconsistentGroupProtocol:          true,
		kafkago.InvalidGroupId:                     true,
		kafkago.InvalidSessionTimeout:              true,
		kafkago.InvalidCommitOffsetSize:            true,
		kafkago.TopicAuthorizationFailed:           true,
		kafkago.GroupAuthorizationFailed:           true,
		kafkago.ClusterAuthorizationFailed:         true,
		kafkago.InvalidTimestamp:                   true,
		kafkago.UnsupportedSASLMechanism:           true,
		kafkago.IllegalSASLState:                   true,
		kafkago.UnsupportedVersion:                 true,
		kafkago.InvalidPartitionNumber:             true,
		kafkago.InvalidReplicationFactor:           true,
		kafkago.InvalidReplicaAssignment:           true,
		kafkago.InvalidConfiguration:               true,
		kafkago.InvalidRequest:                     true,
		kafkago.UnsupportedForMessageFormat:        true,
		kafkago.PolicyViolation:                    true,
		kafkago.TransactionalIDAuthorizationFailed: true,
		kafkago.SecurityDisabled:                   true,
		kafkago.SASLAuthenticationFailed:           true,
		kafkago.TopicDeletionDisabled:              true,
		kafkago.UnsupportedCompressionType:         true,
		kafkago.InvalidRecord:                      true,
	}
	throttled = map[kafkago.Error]bool{
		kafkago.GroupMaxSizeReached:     true,
		kafkago.ThrottlingQuotaExceeded: true,
	}
	// fencing is how a group tells a member that its partitions have another
	// owner, or are about to. RebalanceInProgress belongs to it: a commit is
	// answered with it only after the members have joined anew, so whatever was
	// prepared before is not this member's any more, even if it gets the same
	// partition again.
	fencing = map[kafkago.Error]bool{
		kafkago.IllegalGeneration:   true,
		kafkago.UnknownMemberId:     true,
		kafkago.RebalanceInProgress: true,
		kafkago.FencedInstanceID:    true,
	}
	// refusing is what a broker answers to records it will not take for what they
	// are. Nothing of the request is in the log then.
	refusing = map[kafkago.Error]bool{
		kafkago.MessageSizeTooLarge:         true,
		kafkago.RecordListTooLarge:          true,
		kafkago.InvalidTimestamp:            true,
		kafkago.InvalidRecord:               true,
		kafkago.UnsupportedForMessageFormat: true,
	}
	// moving is what a broker in good health answers when the partition is led by
	// another one by now.
	moving = map[kafkago.Error]bool{
		kafkago.UnknownTopicOrPartition: true,
		kafkago.LeaderNotAvailable:      true,
		kafkago.NotLeaderForPartition:   true,
		kafkago.FencedLeaderEpoch:       true,
		kafkago.UnknownLeaderEpoch:      true,
	}
)

// errClosed is what every call gets after Close.
var errClosed = errors.New("the Kafka client is closed")

// classify tells once, here, what may be done about an error. Fencing becomes
// batch.ErrFenced and a missing offset batch.ErrOffsetGone.
func (c *Client) classify(err error) error {
	if err == nil {
		return nil
	}
	if c.base.Err() != nil {
		return retry.Mark(fmt.Errorf("%w (%w)", errClosed, err), retry.Shutdown)
	}
	return classify(err)
}

func classify(err error) error {
	var code kafkago.Error
	var badCertificate *tls.CertificateVerificationError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, kafkago.ErrGenerationEnded),
		errors.Is(err, kafkago.ErrGroupClosed), errors.Is(err, net.ErrClosed):
		return retry.Mark(err, retry.Shutdown)
	case errors.As(err, &badCertificate):
		return retry.Mark(err, retry.Permanent)
	case !errors.As(err, &code):
		return retry.Mark(err, retry.Transient)
	case fencing[code]:
		return retry.Mark(fmt.Errorf("%w: %w", batch.ErrFenced, err), retry.Permanent)
	case code == kafkago.OffsetOutOfRange:
		return retry.Mark(fmt.Errorf("%w: %w", batch.ErrOffsetGone, err), retry.Permanent)
	case permanent[code]:
		return retry.Mark(err, retry.Permanent)
	case throttled[code]:
		return retry.Mark(err, retry.Throttled)
	}
	return retry.Mark(err, retry.Transient)
}

// refusedError says that the broker took none of a request's records because
// some of them will never do.
type refusedError struct {
	error
	indexes []int
}

func (e *refusedError) Unwrap() error { return e.error }

// Refused lists the records at fault by their index in the request, where the
// broker named them; empty where it did not.
func (e *refusedError) Refused() []int { return e.indexes }

// movedError says that the partition has moved, which is not the broker's fault.
type movedError struct{ error }

func (e *movedError) Unwrap() error { return e.error }

// Moved marks the error.
func (e *movedError) Moved() {}

// codeOf is the broker's error code in err's chain, where there is one.
func codeOf(err error) (kafkago.Error, bool) {
	var code kafkago.Error
	ok := errors.As(err, &code)
	return code, ok
}
