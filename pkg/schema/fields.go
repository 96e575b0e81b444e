package schema

import "google.golang.org/protobuf/encoding/protowire"

// The field numbers of proto/sluice/v1/batch.proto, which documents them.
const (
	batchEvents     protowire.Number = 1
	batchSDK        protowire.Number = 2
	batchSentAt     protowire.Number = 3
	batchID         protowire.Number = 16
	batchDedupID    protowire.Number = 17
	batchDigest     protowire.Number = 18
	batchProject    protowire.Number = 19
	batchSource     protowire.Number = 20
	batchReceivedAt protowire.Number = 21
	batchCount      protowire.Number = 22
	batchFirst      protowire.Number = 23
	batchLast       protowire.Number = 24
	batchRejected   protowire.Number = 25

	sdkName    protowire.Number = 1
	sdkVersion protowire.Number = 2

	eventKind         protowire.Number = 1
	eventExperiment   protowire.Number = 2
	eventVariant      protowire.Number = 3
	eventUnitID       protowire.Number = 4
	eventUnitType     protowire.Number = 5
	eventTime         protowire.Number = 6
	eventRule         protowire.Number = 7
	eventReason       protowire.Number = 8
	eventClientID     protowire.Number = 9
	eventAttributes   protowire.Number = 10
	eventName         protowire.Number = 11
	eventValue        protowire.Number = 12
	eventIndex        protowire.Number = 16
	eventID           protowire.Number = 17
	eventTimeAdjusted protowire.Number = 18

	entryKey   protowire.Number = 1
	entryValue protowire.Number = 2

	rejectedIndex   protowire.Number = 1
	rejectedCode    protowire.Number = 2
	rejectedField   protowire.Number = 3
	rejectedMessage protowire.Number = 4
	rejectedBytes   protowire.Number = 5
	rejectedSize    protowire.Number = 6
)
