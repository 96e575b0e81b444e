package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"sluice/internal/protocol"
)

func TestLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := newBoundedLog(slog.New(slog.NewJSONHandler(&out, nil)))
		lines := func() []string {
			s := strings.TrimSpace(out.String())
			out.Reset()
			if s == "" {
				return nil
			}
			return strings.Split(s, "\n")
		}
		for range 100 {
			l.refused("e", "peer", "agent", protocol.NewProblem(protocol.CodeNoKey, "no key"))
		}
		assert.Len(t, lines(), logBurst)
		l.refused("e", "peer", "agent", protocol.NewProblem(protocol.CodeOverloaded, "busy").Because(errors.New("why")))
		got := lines()
		assert.Len(t, got, 1, "other codes have their own allowance")
		assert.Contains(t, got[0], `"level":"WARN"`)
		assert.Contains(t, got[0], `"error":"why"`)
		<-time.After(logEvery)
		l.refused("e", "peer", "agent", protocol.NewProblem(protocol.CodeNoKey, "no key"))
		got = lines()
		assert.Len(t, got, 1)
		assert.Contains(t, got[0], `"suppressed":95`)
		for i := range 10_000 {
			_, _ = l.allow(fmt.Sprint(i))
		}
		assert.LessOrEqual(t, len(l.kinds), maxKinds+1)
	})
}

// TestLogEscapes: what comes from outside cannot forge lines or steer a terminal,
// whatever writes the log.
func TestLogEscapes(t *testing.T) {
	var out bytes.Buffer
	l := newBoundedLog(slog.New(slog.NewTextHandler(&out, nil)))
	evil := "a\r\nlevel=ERROR msg=forged \x1b[2J\u202e " + strings.Repeat("x", 1000)
	l.refused("e", "127.0.0.1:9", evil, protocol.NewProblem("odd\ncode", evil).Because(errors.New(evil)))
	_, _ = l.Write([]byte("http: " + evil + "\n"))
	assert.Equal(t, 2, strings.Count(out.String(), "\n"))
	assert.NotContains(t, out.String(), "\x1b")
	assert.NotContains(t, out.String(), "\u202e")
	assert.Less(t, out.Len(), 3000)
}

func TestLogNamesThePeer(t *testing.T) {
	var out bytes.Buffer
	e := start(t, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&out, nil)) })
	e.post("/v1/exposures", []byte("["+good+"]"), "Authorization", "", "X-Forwarded-For", "203.0.113.9")
	e.idle()
	assert.Contains(t, out.String(), "remote=127.0.0.1:")
	assert.NotContains(t, out.String(), "203.0.113.9")
}
