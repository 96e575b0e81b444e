package chromium

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// script puts a program on a PATH of its own.
func script(t *testing.T, dir, name, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o700))
}

func TestFind(t *testing.T) {
	// An apt-get that puts a browser where it is looked for, if it is told to.
	const installs = `case "$*" in *install*chromium) echo >"${0%/*}/chromium" && chmod 755 "${0%/*}/chromium";; esac`
	chmod, err := filepath.EvalSymlinks("/bin/chmod")
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		browser, apt string
		want, fails  string
		says         string
	}{
		"there":             {browser: "google-chrome", apt: "exit 1", want: "google-chrome"},
		"installed":         {apt: installs, want: "chromium", says: "apt-get install chromium"},
		"apt-get fails":     {apt: "echo no network; echo >&2; exit 100", fails: "apt-get update failed: exit status 100: no network"},
		"nothing installed": {apt: "exit 0", fails: "not on PATH"},
		"no apt-get":        {fails: "put chromium or google-chrome on PATH"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("PATH", dir)
			t.Setenv("TMPDIR", t.TempDir())
			require.NoError(t, os.Symlink(chmod, filepath.Join(dir, "chmod")))
			if tc.browser != "" {
				script(t, dir, tc.browser, "")
			}
			if tc.apt != "" {
				script(t, dir, "apt-get", tc.apt)
			}
			if os.Geteuid() != 0 && tc.browser == "" {
				tc.want, tc.fails, tc.says = "", "put chromium or google-chrome on PATH", "" // only root may install
			}
			var said strings.Builder
			got, err := Find(t.Context(), &said)
			if tc.fails != "" {
				require.ErrorContains(t, err, tc.fails)
				assert.NotContains(t, err.Error(), "\n", "one line")
				return
			}
			require.NoError(t, err)
			assert.Equal(t, filepath.Join(dir, tc.want), got)
			assert.Contains(t, said.String(), tc.says)
		})
	}
}
