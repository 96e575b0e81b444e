package posthog

import (
	"encoding/json"
	"strings"

	"sluice/pkg/schema"
)

// results is the answer of the later API while it is written: what became of each
// event, by its uuid. It must not alias the body. Events without a uuid have no
// place in it.
type results struct {
	json []byte
	size int // bytes of memory to begin with
}

// resultsShare is what part of a body its results are about: 57 bytes for an event
// of some 500.
const resultsShare = 8

// maxUUID bounds what is repeated of the body: what is longer is no uuid. An SDK
// takes an event that is not listed for delivered.
const maxUUID = 256

const opening = `{"results":{`

// begin starts the entry of an event, and reports whether it has one.
func (r *results) begin(uuid string) bool {
	if uuid == "" || len(uuid) > maxUUID {
		return false
	}
	if len(r.json) > 0 {
		r.json = append(r.json, ',')
	} else {
		r.json = append(make([]byte, 0, r.size), opening...)
	}
	if strings.Trim(uuid, "0123456789abcdefABCDEF-") == "" {
		r.json = append(r.json, '"')
		r.json = append(r.json, uuid...)
		r.json = append(r.json, '"')
	} else {
		r.json = appendText(r.json, uuid)
	}
	return true
}

// ok notes an event that is safe, or was noise.
func (r *results) ok(uuid string) {
	if r.begin(uuid) {
		r.json = append(r.json, `:{"result":"ok"}`...)
	}
}

// drop notes an event that was rejected. It is kept, but the SDK may tell its user.
func (r *results) drop(uuid string, why *schema.Rejected) {
	if !r.begin(uuid) {
		return
	}
	r.json = append(r.json, `:{"result":"drop","details":`...)
	r.json = appendText(r.json, string(why.Code)+": "+why.Message)
	r.json = append(r.json, '}')
}

// finish ends the answer; nil where no event is in it.
func (r *results) finish() []byte {
	if len(r.json) == 0 {
		return nil
	}
	return append(r.json, "}}\n"...)
}

func appendText(out []byte, s string) []byte {
	text, err := json.Marshal(s)
	if err != nil { // a string cannot fail
		return append(out, `""`...)
	}
	return append(out, text...)
}
