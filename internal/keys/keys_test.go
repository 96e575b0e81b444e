package keys

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func add(t *testing.T, path, id string) string {
	t.Helper()
	key, err := Add(path, NewKey{ID: id, Project: "p-" + id})
	require.NoError(t, err)
	return key
}

func TestAddAndLookup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	full, err := Add(path, NewKey{ID: "web", Project: "shop", Scopes: []string{ScopeExposures}, Rate: 1000, Burst: 5000, Prefix: "secret-"})
	require.NoError(t, err)
	assert.Regexp(t, `^secret-slk_[a-z2-7]{26}$`, full)
	simple := add(t, path, "server")
	assert.Regexp(t, `^slk_[a-z2-7]{26}$`, simple)

	text, err := os.ReadFile(path)
	require.NoError(t, err)
	sum := sha256.Sum256([]byte(full))
	assert.Contains(t, string(text), hex.EncodeToString(sum[:]))
	assert.NotContains(t, string(text), strings.TrimPrefix(full, "secret-slk_"), "the key itself is nowhere")
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o600), info.Mode())

	k, err := Open(path, nil)
	require.NoError(t, err)
	assert.Equal(t, 2, k.Len())
	got, err := k.Lookup(full)
	require.NoError(t, err)
	assert.Equal(t, Grant{ID: "web", Project: "shop", Scopes: []string{"exposures"}, Rate: 1000, Burst: 5000}, got)
	got, err = k.Lookup(simple)
	require.NoError(t, err)
	assert.Equal(t, Grant{ID: "server", Project: "p-server"}, got)
	for _, wrong := range []string{
		"", full[:len(full)-1], full + "a", strings.ToUpper(full), "slk_", " " + simple, hex.EncodeToString(sum[:]),
		strings.Repeat("k", maxKey), strings.Repeat("k", maxKey+1),
	} {
		got, err := k.Lookup(wrong)
		require.ErrorIs(t, err, ErrUnknown, wrong)
		assert.Empty(t, got)
	}

	list, err := List(path)
	require.NoError(t, err)
	require.Len(t, list, 2)
	assert.Equal(t, "web", list[0].ID)
	assert.WithinDuration(t, time.Now(), list[0].Created, time.Minute)
}

func TestAddMakesUpAnID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	for range 2 {
		_, err := Add(path, NewKey{Project: "p"})
		require.NoError(t, err)
	}
	list, err := List(path)
	require.NoError(t, err)
	require.Len(t, list, 2)
	for _, k := range list {
		assert.Regexp(t, `^key-[a-z2-7]{8}$`, k.ID)
	}
}

func TestDisableAndEnable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	key := add(t, path, "a")
	add(t, path, "b")
	for _, disabled := range []bool{true, false} {
		change := Enable
		if disabled {
			change = Disable
		}
		require.NoError(t, change(path, "a"))
		k, err := Open(path, nil)
		require.NoError(t, err)
		got, err := k.Lookup(key)
		require.NoError(t, err)
		assert.Equal(t, disabled, got.Disabled)
		assert.Equal(t, 2, k.Len())
	}
	require.ErrorIs(t, Disable(path, "c"), ErrNoKey)
	require.ErrorIs(t, Enable(filepath.Join(t.TempDir(), "new.json"), "c"), ErrNoKey)
}

func TestAddRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	add(t, path, "a")
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	_, err = Add(path, NewKey{ID: "a", Project: "other"})
	require.ErrorIs(t, err, ErrExists)
	for _, n := range []NewKey{
		{ID: "x y", Project: "p"}, {ID: "x", Project: ""}, {ID: "x", Project: "p\n"},
		{ID: strings.Repeat("x", 65), Project: "p"},
		{ID: "x", Project: "p", Scopes: []string{"admin"}}, {ID: "x", Project: "p", Rate: -1}, {ID: "x", Project: "p", Burst: 3},
	} {
		_, err := Add(path, n)
		require.ErrorIs(t, err, ErrFile, "%+v", n)
	}
	_, err = Add(path, NewKey{ID: "x", Project: "p", Prefix: "a b"})
	require.Error(t, err)
	_, err = Add(path, NewKey{ID: "x", Project: "p", Prefix: strings.Repeat("a", 33)})
	require.Error(t, err)
	_, err = Add(filepath.Join(t.TempDir(), "no", "keys.json"), NewKey{ID: "x", Project: "p"})
	require.ErrorIs(t, err, fs.ErrNotExist)
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, before, after)
}

// Several commands at once: nobody's key is lost.
func TestChangesDoNotOverwriteEachOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			_, err := Add(path, NewKey{ID: fmt.Sprint("k", i), Project: "p"})
			assert.NoError(t, err)
		})
	}
	wg.Wait()
	list, err := List(path)
	require.NoError(t, err)
	assert.Len(t, list, 16)
}

func TestReplaceKeepsModeAndLinksAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "keys.json"), filepath.Join(dir, "link.json")
	add(t, path, "a")
	require.NoError(t, os.Chmod(path, 0o640))
	require.NoError(t, os.Symlink("keys.json", link))
	add(t, link, "b")
	info, err := os.Lstat(path)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o640), info.Mode())
	list, err := List(path)
	require.NoError(t, err)
	assert.Len(t, list, 2)

	// A rename that fails leaves no half-made file behind.
	busy := filepath.Join(dir, "busy", "x")
	require.NoError(t, os.MkdirAll(busy, 0o700))
	require.Error(t, replace(filepath.Dir(busy), []byte("x")))
	names, err := filepath.Glob(filepath.Join(dir, ".*"))
	require.NoError(t, err)
	assert.Empty(t, names)
}

func TestDecodeRefuses(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	key := func(more string) string {
		return `{"version":1,"keys":[{"id":"a","project":"p","sha256":"` + hash + `"` + more + `}]}`
	}
	_, err := decode([]byte(key("")))
	require.NoError(t, err)
	_, err = decode([]byte(`{"version":1,"keys":[]}`))
	require.NoError(t, err, "no keys yet: everybody is refused, nothing is wrong")
	for name, tc := range map[string]struct{ text, want string }{
		"empty":          {"", "not JSON"},
		"cut off":        {key("")[:60], "not JSON"},
		"two documents":  {key("") + key(""), "not JSON"},
		"no version":     {`{"keys":[]}`, `want "version": 1`},
		"newer":          {`{"version":2,"keys":[],"rings":[]}`, `want "version": 1`},
		"misspelled":     {key(`,"disable":true`), `"disable"`},
		"no hash":        {`{"version":1,"keys":[{"id":"a","project":"p"}]}`, `want "sha256"`},
		"short hash":     {`{"version":1,"keys":[{"id":"a","project":"p","sha256":"abcd"}]}`, "64 hex digits"},
		"no hex":         {`{"version":1,"keys":[{"id":"a","project":"p","sha256":"` + strings.Repeat("zz", 32) + `"}]}`, "64 hex digits"},
		"scope":          {key(`,"scopes":["all"]`), `scope "all"`},
		"rate":           {key(`,"rate":-1`), "rate -1"},
		"endless rate":   {key(`,"rate":1e400`), "rate"},
		"burst":          {key(`,"rate":1,"burst":-1`), "burst -1"},
		"burst alone":    {key(`,"burst":1`), "without a rate"},
		"id":             {strings.Replace(key(""), `"a"`, `"a/b"`, 1), `id "a/b"`},
		"project":        {strings.Replace(key(""), `"p"`, `""`, 1), "project"},
		"id twice":       {strings.Replace(key(""), `}]`, `},{"id":"a","project":"p","sha256":"`+strings.Repeat("cd", 32)+`"}]`, 1), "comes twice"},
		"hash twice":     {strings.Replace(key(""), `}]`, `},{"id":"b","project":"p","sha256":"`+hash+`"}]`, 1), `has the hash of key "a"`},
		"too many":       {`{"version":1,"keys":[` + strings.Repeat(`{},`, maxKeys) + `{}]}`, "want at most"},
		"too large":      {strings.Repeat(" ", maxFile+1), "over"},
		"not a document": {`[]`, "JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := decode([]byte(tc.text))
			require.ErrorContains(t, err, tc.want)
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	_, err := Open(filepath.Join(t.TempDir(), "keys.json"), nil)
	require.ErrorIs(t, err, fs.ErrNotExist)
	path := filepath.Join(t.TempDir(), "keys.json")
	require.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
	_, err = Open(path, nil)
	require.ErrorIs(t, err, ErrFile)
	assert.Contains(t, err.Error(), path)
	_, err = Open(t.TempDir(), nil)
	require.Error(t, err, "a directory")
	require.ErrorIs(t, Disable(path, "a"), ErrFile, "what cannot be read is not overwritten")
}

func TestReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	first := add(t, path, "first")
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		k, err := Open(path, slog.New(slog.NewTextHandler(&logged, nil)))
		require.NoError(t, err)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { k.Run(ctx, 0); close(ended) }()
		look := func() {
			<-time.After(time.Second)
			synctest.Wait()
		}
		known := func(key string) bool { _, err := k.Lookup(key); return err == nil }

		look()
		assert.Empty(t, logged.String(), "nothing changed")

		second := add(t, path, "second")
		assert.False(t, known(second))
		look()
		assert.True(t, known(second))
		require.NoError(t, Disable(path, "first"))
		look()
		got, err := k.Lookup(first)
		require.NoError(t, err)
		assert.True(t, got.Disabled)
		good, err := os.ReadFile(path)
		require.NoError(t, err)

		// Broken, in place, for a while: one line, and the keys from before.
		logged.Reset()
		require.NoError(t, os.WriteFile(path, []byte(`{"version":1,"keys":[{}]}`), 0o600))
		look()
		look()
		assert.Equal(t, 1, strings.Count(logged.String(), "level=ERROR"), logged.String())
		require.ErrorIs(t, k.Err(), ErrFile)
		assert.True(t, known(second))

		// Broken in another way: one more line. Gone: another.
		require.NoError(t, os.WriteFile(path, []byte(`{`), 0o600))
		look()
		require.NoError(t, os.Remove(path))
		look()
		look()
		assert.Equal(t, 3, strings.Count(logged.String(), "level=ERROR"), logged.String())
		require.ErrorIs(t, k.Err(), fs.ErrNotExist)
		assert.True(t, known(second))

		// Mended.
		require.NoError(t, os.WriteFile(path, good, 0o600))
		look()
		require.NoError(t, k.Err())
		assert.True(t, known(second))
		assert.Contains(t, logged.String(), "read again")

		stop()
		<-ended
	})
}

// A mounted secret changes by a link that is turned, with equal sizes and times.
func TestReloadOfATurnedLink(t *testing.T) {
	dir := t.TempDir()
	var plain [2]string
	stamp := time.Now()
	for i := range plain {
		sub := filepath.Join(dir, fmt.Sprint(i))
		require.NoError(t, os.Mkdir(sub, 0o700))
		plain[i] = add(t, filepath.Join(sub, "keys.json"), "k")
		require.NoError(t, os.Chtimes(filepath.Join(sub, "keys.json"), stamp, stamp))
	}
	turn := func(to string) {
		require.NoError(t, os.Symlink(to, filepath.Join(dir, "new")))
		require.NoError(t, os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "data")))
	}
	turn("0")
	k, err := Open(filepath.Join(dir, "data", "keys.json"), nil)
	require.NoError(t, err)
	turn("1")
	k.refresh()
	_, err = k.Lookup(plain[1])
	require.NoError(t, err)
	_, err = k.Lookup(plain[0])
	require.ErrorIs(t, err, ErrUnknown)
}

func TestLookupWhileReloading(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	key := add(t, path, "k")
	k, err := Open(path, nil)
	require.NoError(t, err)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					_, err := k.Lookup(key)
					assert.NoError(t, err)
				}
			}
		})
	}
	for i := range 20 {
		add(t, path, fmt.Sprint("more", i))
		k.refresh()
	}
	close(done)
	wg.Wait()
	assert.Equal(t, 21, k.Len())
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"keys":[{"id":"a","project":"p","sha256":"` + strings.Repeat("ab", 32) + `","rate":1,"burst":2,"scopes":["events"],"created":"2026-01-02T03:04:05Z"}]}`))
	f.Add([]byte(`{"version":1,"keys":null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := decode(text)
		if err != nil {
			return
		}
		require.NoError(t, check(keys))
		require.Len(t, snapshotOf(keys).byHash, len(keys))
	})
}

func BenchmarkLookup(b *testing.B) {
	path := filepath.Join(b.TempDir(), "keys.json")
	key, err := Add(path, NewKey{ID: "a", Project: "p"})
	require.NoError(b, err)
	k, err := Open(path, nil)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.Lookup(key); err != nil {
			b.Fatal(err)
		}
	}
}
