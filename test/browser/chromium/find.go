package chromium

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// names are the browsers that are looked for on PATH, in this order.
var names = []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"}

// Find returns the path of a Chromium. Where there is none and this machine is
// Debian's, run as root, it installs the package and says so on progress. What it
// cannot get is an error of one line that says how a person can.
func Find(ctx context.Context, progress io.Writer) (string, error) {
	if path := onPath(); path != "" {
		return path, nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil || os.Geteuid() != 0 {
		return "", errors.New("no Chromium: put chromium or google-chrome on PATH (Debian: apt-get install chromium)")
	}
	// Packages of tests run side by side, and apt-get update does not wait for
	// another one.
	unlock, err := lock(filepath.Join(os.TempDir(), "sluice-install-chromium.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if path := onPath(); path != "" {
		return path, nil // somebody else was faster
	}
	fmt.Fprintln(progress, "chromium: not on this machine; installing Debian's package (apt-get install chromium)")
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	for _, args := range [][]string{
		{"update", "-q"},
		{"install", "-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", "chromium"},
	} {
		cmd := exec.CommandContext(ctx, apt, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("no Chromium, and apt-get %s failed: %w: %s", args[0], err, lastLine(out))
		}
	}
	if path := onPath(); path != "" {
		return path, nil
	}
	return "", errors.New("no Chromium: apt-get installed it and it is not on PATH")
}

func onPath() string {
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// lock waits for a file's lock and returns what gives it back.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock of the installation: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock of the installation: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

func lastLine(out []byte) []byte {
	out = bytes.TrimSpace(out)
	return out[bytes.LastIndexByte(out, '\n')+1:]
}
