package batch

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestRecordSize(t *testing.T) {
	r := Record{Value: make([]byte, 1000), Project: "project", Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
	assert.Equal(t, 1000+7+55+256, r.Size())
	assert.Equal(t, 256, (&Record{}).Size())
}
