package sink

import (
	"encoding/json"
	"fmt"
)

// intent is the metadata of a committed offset: what the owner was about to
// insert. It is at most a few hundred bytes (Kafka takes 4,096). Without a
// block in doubt only the log is set: an offset means nothing in another log.
type intent struct {
	Version int    `json:"v"`
	Log     string `json:"log"`
	First   int64  `json:"first,omitempty"`
	Last    int64  `json:"last,omitempty"`
	Token   string `json:"token,omitempty"`
}

const intentVersion = 1

func (i intent) String() string {
	i.Version = intentVersion
	b, _ := json.Marshal(i) // strings and numbers: cannot fail
	return string(b)
}

// parseIntent reads the metadata of a commit. Empty metadata is no intent. An
// intent of a version this code does not know must not be passed over: its rows
// may be half there.
func parseIntent(metadata string) (intent, error) {
	if metadata == "" {
		return intent{}, nil
	}
	var i intent
	if err := json.Unmarshal([]byte(metadata), &i); err != nil {
		return intent{}, fmt.Errorf("committed metadata %q is not an intent: %w", metadata, err)
	}
	if i.Version != intentVersion {
		return intent{}, fmt.Errorf("committed intent has version %d, this sink knows %d", i.Version, intentVersion)
	}
	return i, nil
}
