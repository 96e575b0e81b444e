package protocol

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

// The usual answer, which is written by hand, is what encoding/json makes of it.
func TestAcceptIsJSON(t *testing.T) {
	for _, res := range []Result{
		{BatchID: batch.ForKey("p", "k"), Accepted: 100, Durable: batch.InKafka},
		{BatchID: batch.ForKey("p", "k"), Accepted: 1, Durable: batch.InSpool, Duplicate: true},
		{BatchID: batch.ForKey("p", "k"), Durable: batch.InKafka, Rejected: []schema.Rejected{{Index: 3, Code: schema.CodeTooLong, Field: "rule", Message: "m"}}},
		{},
	} {
		a := Accept(res)
		want, err := json.Marshal(struct {
			BatchID   batch.ID      `json:"batch_id"`
			Accepted  int           `json:"accepted"`
			Rejected  []rejected    `json:"rejected"`
			Durable   batch.Durable `json:"durable"`
			Duplicate bool          `json:"duplicate"`
		}{res.BatchID, res.Accepted, listed(res.Rejected), res.Durable, res.Duplicate})
		require.NoError(t, err)
		assert.Equal(t, string(want)+"\n", string(a.Body))
		assert.Equal(t, "application/json", a.ContentType)
		status := http.StatusAccepted
		if res.Duplicate {
			status = http.StatusOK
		}
		assert.Equal(t, status, a.Status)
	}
}
