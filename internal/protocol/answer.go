package protocol

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"time"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

const (
	typeJSON    = "application/json"
	typeProblem = "application/problem+json"
)

// rejected is one rejected event as the answers list it.
type rejected struct {
	Index   uint32      `json:"index"`
	Code    schema.Code `json:"code"`
	Field   string      `json:"field,omitempty"`
	Message string      `json:"message"`
}

func listed(rs []schema.Rejected) []rejected {
	out := make([]rejected, len(rs)) // never nil: an empty list is [] and not null
	for i, r := range rs {
		out[i] = rejected{r.Index, r.Code, r.Field, r.Message}
	}
	return out
}

// Accept is the native answer: 202, or 200 for a duplicate.
func Accept(res Result) Answer {
	status := http.StatusAccepted
	if res.Duplicate {
		status = http.StatusOK
	}
	if len(res.Rejected) == 0 && (res.Durable == batch.InKafka || res.Durable == batch.InSpool) {
		return Answer{Status: status, ContentType: typeJSON, Body: appendAccepted(make([]byte, 0, acceptedBytes), res)}
	}
	return jsonAnswer(status, typeJSON, struct {
		BatchID   batch.ID      `json:"batch_id"`
		Accepted  int           `json:"accepted"`
		Rejected  []rejected    `json:"rejected"`
		Durable   batch.Durable `json:"durable"`
		Duplicate bool          `json:"duplicate"`
	}{res.BatchID, res.Accepted, listed(res.Rejected), res.Durable, res.Duplicate})
}

// acceptedBytes is enough for what appendAccepted writes.
const acceptedBytes = 160

// appendAccepted writes the answer to a batch that passed whole, which nearly every
// answer is, as encoding/json would.
func appendAccepted(b []byte, res Result) []byte {
	b = append(b, `{"batch_id":"`...)
	b, _ = res.BatchID.AppendText(b) // has no error to return
	b = append(b, `","accepted":`...)
	b = strconv.AppendInt(b, int64(res.Accepted), 10)
	b = append(b, `,"rejected":[],"durable":"`...)
	b = append(b, res.Durable...)
	b = append(b, `","duplicate":`...)
	b = strconv.AppendBool(b, res.Duplicate)
	return append(b, '}', '\n')
}

// Refuse is the native answer to a refused request: application/problem+json,
// with Retry-After where there is a time to come back after.
func Refuse(p Problem) Answer {
	body := struct {
		Title    string      `json:"title"`
		Status   int         `json:"status"`
		Code     string      `json:"code"`
		Detail   string      `json:"detail"`
		BatchID  *batch.ID   `json:"batch_id,omitempty"`
		Rejected *[]rejected `json:"rejected,omitempty"`
	}{Title: http.StatusText(p.Status), Status: p.Status, Code: p.Code, Detail: p.Detail}
	if !p.BatchID.IsZero() {
		body.BatchID = &p.BatchID
	}
	if p.Rejected != nil {
		l := listed(p.Rejected)
		body.Rejected = &l
	}
	a := jsonAnswer(p.Status, typeProblem, body)
	a.Header = RetryAfter(p)
	return a
}

// RetryAfter is the header that tells a sender when to come back, in whole
// seconds and at least one; nil where the problem does not say.
func RetryAfter(p Problem) map[string]string {
	if p.RetryAfter <= 0 {
		return nil
	}
	secs := math.Ceil(float64(p.RetryAfter) / float64(time.Second))
	return map[string]string{"Retry-After": strconv.Itoa(int(secs))}
}

func jsonAnswer(status int, contentType string, v any) Answer {
	body, err := json.Marshal(v)
	if err != nil {
		// Only strings and numbers in there: encoding/json has nothing to fail on.
		return Answer{Status: http.StatusInternalServerError, ContentType: typeProblem,
			Body: []byte(`{"title":"Internal Server Error","status":500,"code":"internal","detail":"the answer could not be written"}`)}
	}
	return Answer{Status: status, ContentType: contentType, Body: append(body, '\n')}
}
