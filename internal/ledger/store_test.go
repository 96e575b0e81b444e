package ledger

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

func TestDamagedFiles(t *testing.T) {
	line := func(s state, id batch.ID) string { return string(appendState(nil, s, id)) }
	for name, tt := range map[string]struct {
		file       string
		content    func(good string, id batch.ID) string
		keepsID    bool
		keepsBound bool
		ready      bool // without a new opening record
		aside      bool
	}{
		"intact":         {stateFile, func(good string, _ batch.ID) string { return good }, true, true, true, false},
		"id empty":       {idFile, func(string, batch.ID) string { return "" }, false, true, false, false}, // crashed while it was made
		"id half":        {idFile, func(string, batch.ID) string { return "0b2f3c4d-1111" }, false, true, false, true},
		"id zero":        {idFile, func(string, batch.ID) string { return batch.ID{}.String() }, false, true, false, true},
		"id garbage":     {idFile, func(string, batch.ID) string { return "\x00\x00\xff" + strings.Repeat("x", 10_000) }, false, true, false, true},
		"state empty":    {stateFile, func(string, batch.ID) string { return "" }, true, false, false, false},
		"state half":     {stateFile, func(good string, _ batch.ID) string { return good[:10] }, false, false, false, true},
		"state torn":     {stateFile, func(good string, _ batch.ID) string { return "9" + good[1:] }, false, false, false, true},
		"state zeroed":   {stateFile, func(string, batch.ID) string { return strings.Repeat("\x00", lineBytes) }, false, false, false, true},
		"state and more": {stateFile, func(good string, _ batch.ID) string { return good + "x" }, false, false, false, true},
		"state negative": {stateFile, func(_ string, id batch.ID) string { return line(state{-5, 0, opened}, id) }, false, false, false, true},
		"state far ahead": {stateFile, func(_ string, id batch.ID) string {
			return line(state{noon.Add(maxAhead).UnixMicro(), 0, opened}, id)
		}, false, false, false, true},
		"no such phase":    {stateFile, func(_ string, id batch.ID) string { return line(state{5, 5, "ajar"}, id) }, false, false, false, true},
		"another id's":     {stateFile, func(string, batch.ID) string { return line(state{noon.UnixMicro(), 7, opened}, batch.ForKey("c", "2")) }, true, true, false, false},
		"closed":           {stateFile, func(_ string, id batch.ID) string { return line(state{noon.UnixMicro(), 7, closed}, id) }, true, true, false, false},
		"not yet opened":   {stateFile, func(_ string, id batch.ID) string { return line(state{noon.UnixMicro(), 7, fresh}, id) }, true, true, false, false},
		"state of letters": {stateFile, func(string, batch.ID) string { return strings.Repeat("x", lineBytes-1) + "\n" }, false, false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := &clock{t: noon}
			l, _ := open(t, dir, c)
			id := l.Collector()
			at(l)
			require.NoError(t, l.Close())
			good, err := os.ReadFile(filepath.Join(dir, stateFile))
			require.NoError(t, err)
			content := tt.content(string(good), id)
			require.NoError(t, os.WriteFile(filepath.Join(dir, tt.file), []byte(content), 0o644))

			c.set(noon.Add(-time.Hour))
			var log bytes.Buffer
			l, err = Open(dir, textLog(&log), WithClock(c.now))
			require.NoError(t, err)
			assert.Equal(t, tt.keepsID, l.Collector() == id)
			assert.Equal(t, tt.ready, l.Ready() == nil)
			begin(t, l)
			assert.Equal(t, tt.keepsBound, !at(l).Before(noon))
			kept, err := filepath.Glob(filepath.Join(dir, "*.damaged-*"))
			require.NoError(t, err)
			if tt.aside {
				require.Len(t, kept, 1)
				aside, err := os.ReadFile(kept[0])
				require.NoError(t, err)
				assert.Equal(t, content[:min(len(content), maxFile)], string(aside))
				assert.Contains(t, log.String(), "level=WARN")
				assert.Contains(t, log.String(), tt.file)
			} else {
				assert.Empty(t, kept)
				assert.Empty(t, log.String())
			}
			id = l.Collector()
			require.NoError(t, l.Close())
			l, _ = open(t, dir, c)
			assert.Equal(t, id, l.Collector(), "and then it stays")
			require.NoError(t, l.Close())
		})
	}
}

func TestStateIsOneLine(t *testing.T) {
	id := batch.ForKey("c", "1")
	for _, s := range []state{{0, 0, fresh}, {1, 1, opened}, {1<<63 - 1, 1<<63 - 1, closed}} {
		line := appendState(nil, s, id)
		assert.Len(t, line, lineBytes, "what is there is as long as what comes")
		got, of, err := parseState(line)
		require.NoError(t, err)
		assert.Equal(t, s, got)
		assert.Equal(t, id, of)
	}
}

func FuzzParseState(f *testing.F) {
	good := appendState(nil, state{noon.UnixMicro(), noon.UnixMicro(), opened}, batch.ForKey("c", "1"))
	f.Add(good)
	f.Add(appendState(nil, state{0, 0, fresh}, batch.ID{}))
	f.Add(bytes.Replace(good, []byte("opened"), []byte("closed"), 1))
	f.Add([]byte("0"))
	f.Fuzz(func(t *testing.T, line []byte) {
		s, id, err := parseState(line)
		if err == nil && !bytes.Equal(appendState(nil, s, id), line) {
			t.Fatalf("%q is read as %v of %s", line, s, id)
		}
	})
}
