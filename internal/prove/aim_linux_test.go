package prove

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAim(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "log")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	hit, err := aim(t.Context(), dir, 10*time.Millisecond)
	require.NoError(t, err)
	assert.False(t, hit, "nothing was written")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for pause(ctx, 10*time.Millisecond) {
			_ = os.WriteFile(file, []byte("token"), 0o644) // the next one will do
		}
	}()
	hit, err = aim(t.Context(), dir, time.Minute)
	require.NoError(t, err)
	assert.True(t, hit)

	_, err = aim(t.Context(), filepath.Join(dir, "nowhere"), time.Second)
	assert.ErrorContains(t, err, "nowhere")
}
